//! Discovery: where the arms are, and how that changes.
//!
//! A [`Resolver`] yields the endpoints of arms, at first and after each change. A client has those of its settings and those of
//! its resolvers together.

// A module uses only what stands before it here.
mod url;
mod file;
mod merged;

use std::{fmt, future, net::SocketAddr};

use async_trait::async_trait;
use octollm_core::{card::ArmCard, error::ConfigError};
use serde::Deserialize;
use tower::BoxError;

pub use self::file::File;
#[allow(unused_imports)]
pub(crate) use self::{
    merged::{Found, Resolvers},
    url::ServiceUrl,
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
/// #[async_trait]
/// impl Resolver for Movable {
///     async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
///         self.0.changed().await?;
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
}

#[async_trait]
impl<R: Resolver + ?Sized> Resolver for Box<R> {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        (**self).next().await
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
// The client parses each URL of an arm by this.
#[allow(dead_code)]
pub(crate) fn parse(arm: &str, url: &str) -> Result<Option<Box<dyn Resolver>>, ConfigError> {
    let url = url.trim();
    let is_dns =
        |prefix: &str| url.get(..prefix.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(prefix));
    if !is_dns("dns+") && !is_dns("srv+") {
        return Ok(None);
    }
    Err(ConfigError::new(
        arm.to_owned(),
        "has a URL for which octollm has to be built with its feature `dns`",
    ))
}
