//! Discovery: where the arms are, and how that changes.
//!
//! A [`Resolver`] yields the endpoints of arms, at first and after each change. A client has those of its settings and those of
//! its resolvers together.

// A module uses only what stands before it here.
// The client reads all its URLs by this.
mod url;
mod file;
#[cfg(feature = "dns")]
mod dns;
// The client puts it around each resolver.
mod steady;

use std::{fmt, future, net::SocketAddr};

use async_trait::async_trait;
use octollm_core::{card::ArmCard, error::ConfigError};
use serde::Deserialize;
use tower::BoxError;

#[cfg(feature = "dns")]
pub use self::dns::Dns;
pub use self::file::File;
pub(crate) use self::{
    steady::Steady,
    url::{MALFORMED, ServiceUrl},
};

/// Finds the endpoints of arms, and follows their changes.
///
/// A client drives each of its resolvers in a loop, for as long as it exists. A resolver waits between two questions to its source
/// by itself, also after an error.
///
/// ```
/// use async_trait::async_trait;
/// use octollm_http::resolve::{Endpoint, Resolver};
/// use tokio::sync::watch;
/// use tower::BoxError;
///
/// /// One arm, at a URL that the program changes.
/// struct Movable(watch::Receiver<String>);
///
/// impl Movable {
///     fn new(mut url: watch::Receiver<String>) -> Self {
///         url.mark_changed(); // the first set is known at once
///         Self(url)
///     }
/// }
///
/// #[async_trait]
/// impl Resolver for Movable {
///     async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
///         if self.0.changed().await.is_err() {
///             std::future::pending::<()>().await; // the program changes it no more
///         }
///         let url = self.0.borrow_and_update().clone();
///         Ok(vec![Endpoint::new("judge", url)])
///     }
/// }
/// ```
#[async_trait]
pub trait Resolver: Send + 'static {
    /// Returns the next whole set: at the first call and after an error as soon as it is known, and later whenever it has changed.
    /// It is pending where nothing changes any more.
    ///
    /// # Errors
    /// The set could not be found. The last one stays in force, and the next call returns another or another error. The error is
    /// logged, so that it holds no secret.
    ///
    /// # Cancel safety
    /// The future may be dropped at any time. The next call returns what this one would have returned.
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError>;

    /// Returns whether an arm that is not in the last set is known to have no endpoints any more. Its last ones then leave at once,
    /// and otherwise after the `resolver_grace` of the client: the source may have forgotten them, such as by a restart. `false` by
    /// default.
    fn has_left(&self, arm: &str) -> bool {
        let _ = arm;
        false
    }
}

#[async_trait]
impl<R: Resolver + ?Sized> Resolver for Box<R> {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        (**self).next().await
    }

    fn has_left(&self, arm: &str) -> bool {
        (**self).has_left(arm)
    }
}

/// One endpoint of an arm.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Endpoint {
    /// Id of the arm.
    pub arm: String,
    /// URL: `http://host:port`, with a path if the arm is mounted. Its host is the `Host` of requests, and the name that a
    /// certificate has to have.
    pub url: String,
    /// Address to connect to. `None` for the host and port of the URL.
    #[serde(default)]
    pub address: Option<SocketAddr>,
    /// Share of calls in relation to the other endpoints of the arm, from 1. Default 1.
    #[serde(default = "one")]
    pub weight: u32,
    /// Card of the arm, if it is known. Without one the endpoint is asked.
    #[serde(default)]
    pub card: Option<ArmCard>,
}

fn one() -> u32 {
    1
}

impl Endpoint {
    /// Creates an endpoint of weight 1.
    pub fn new(arm: impl Into<String>, url: impl Into<String>) -> Self {
        Self { arm: arm.into(), url: url.into(), address: None, weight: 1, card: None }
    }

    /// Sets the address to connect to.
    #[must_use]
    pub fn address(mut self, address: SocketAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// Sets the share of calls. 0 counts as 1.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight.max(1);
        self
    }

    /// Sets the card, so that the endpoint is not asked for it.
    #[must_use]
    pub fn card(mut self, card: ArmCard) -> Self {
        self.card = Some(card);
        self
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No URL: it is not checked yet for credentials.
        let Self { arm, address, weight, .. } = self;
        let mut debug = f.debug_struct("Endpoint");
        debug.field("arm", arm).field("address", address).field("weight", weight).finish_non_exhaustive()
    }
}

/// A resolver of endpoints that never change.
pub fn fixed(endpoints: impl IntoIterator<Item = Endpoint>) -> impl Resolver {
    Fixed(Some(endpoints.into_iter().collect()))
}

/// The endpoints until they are returned.
struct Fixed(Option<Vec<Endpoint>>);

#[async_trait]
impl Resolver for Fixed {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        match self.0.take() {
            Some(endpoints) => Ok(endpoints),
            None => future::pending().await,
        }
    }
}

/// The resolver that a URL in a setting stands for: `dns+http://judge-arm:8103` for the addresses of a name, and
/// `srv+http://_http._tcp.judge-arm` for its SRV records. `None` for any other URL.
///
/// # Errors
/// The URL is not valid, or needs the feature `dns`. The setting of the error is the arm.
pub(crate) fn parse(arm: &str, url: &str) -> Result<Option<Box<dyn Resolver>>, ConfigError> {
    let url = url.trim();
    let after = |prefix: &str| {
        let scheme = url.get(..prefix.len())?;
        scheme.eq_ignore_ascii_case(prefix).then(|| &url[prefix.len()..])
    };
    match (after("dns+"), after("srv+")) {
        (None, None) => Ok(None),
        (Some(url), _) => of_name(arm, url, false).map(Some),
        (_, Some(url)) => of_name(arm, url, true).map(Some),
    }
}

#[cfg(feature = "dns")]
fn of_name(arm: &str, url: &str, is_srv: bool) -> Result<Box<dyn Resolver>, ConfigError> {
    let dns = if is_srv { Dns::srv(arm, url) } else { Dns::new(arm, url) };
    Ok(Box::new(dns.build()?))
}

#[cfg(not(feature = "dns"))]
fn of_name(arm: &str, _: &str, _: bool) -> Result<Box<dyn Resolver>, ConfigError> {
    let problem = "has a URL for which octollm has to be built with its feature `dns`";
    Err(ConfigError::new(arm.to_owned(), problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_names_are_those_with_a_prefix() {
        for plain in ["http://judge-arm:8103", "judge", "", "dns", "é+http://a", "dnsx+http://a"] {
            assert!(parse("judge", plain).unwrap().is_none(), "{plain}");
        }
        for name in ["dns+http://judge-arm:8103/path", " SRV+http://_http._tcp.judge-arm "] {
            let parsed = parse("judge", name);
            match parsed {
                Ok(resolver) => assert!(resolver.is_some() && cfg!(feature = "dns"), "{name}"),
                Err(error) => assert!(error.to_string().contains("feature `dns`"), "{error}"),
            }
        }
    }

    #[cfg(feature = "dns")]
    #[test]
    fn names_that_cannot_be_looked_up_are_refused() {
        for (url, problem) in [
            ("dns+", "empty URL"),
            ("dns+judge:80", "no scheme"),
            ("dns+ftp://judge", "other than http"),
            ("dns+http://me:secret@judge", "credentials"),
            ("dns+http://10.0.0.1:8103", "an address"),
            ("dns+http://[::1]:8103", "an address"),
            ("dns+http://a..b", "not a DNS name"),
            ("srv+http://_http._tcp.judge:80", "with a port"),
            ("dns+srv+http://judge", "other than http"),
        ] {
            let error = parse("judge", url).err().unwrap();
            assert_eq!(error.setting(), "judge");
            assert!(error.to_string().contains(problem), "{url}: {error}");
        }
        let long = format!("dns+http://{}", vec!["a".repeat(60); 5].join("."));
        assert!(parse("judge", &long).is_err() && parse("No Id", "dns+http://judge").is_err());
    }
}
