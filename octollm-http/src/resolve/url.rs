//! The URL of a service.

use http::{Uri, uri::Authority};

/// The parts of the URL of a service: `http://host:port` or `https://host`, with a path if the service is mounted.
pub(crate) struct ServiceUrl {
    pub(crate) scheme: &'static str,
    /// It has a host, and a port other than 0 if it has one.
    pub(crate) authority: Authority,
    /// Path without a slash at its end. Empty for a service that is not mounted.
    pub(crate) path: String,
}

pub(crate) const MALFORMED: &str = "is not a URL such as http://judge-arm:8103";

impl ServiceUrl {
    /// # Errors
    /// The problem of the URL. The text does not repeat the URL, which could hold credentials.
    pub(crate) fn parse(url: &str) -> Result<Self, &'static str> {
        let url = url.trim();
        if url.is_empty() {
            return Err("has an empty URL");
        }
        if url.contains(['?', '#']) {
            return Err("has a query or a fragment");
        }
        let uri: Uri = url.parse().map_err(|_| MALFORMED)?;
        let scheme = match uri.scheme_str() {
            None => return Err("has no scheme: write http://host:port"),
            Some("https") if !cfg!(feature = "tls") => {
                return Err("is https, for which octollm has to be built with its feature `tls`");
            }
            Some("https") => "https",
            Some("http") => "http",
            Some(_) => return Err("has a scheme other than http and https"),
        };
        let authority = uri.authority().ok_or(MALFORMED)?.clone();
        if authority.as_str().contains('@') {
            return Err("holds credentials, which would end up in logs: use tokens");
        }
        let explicit_port = authority.as_str().len() > authority.host().len();
        if authority.host().is_empty() || (explicit_port && authority.port_u16().is_none_or(|port| port == 0))
        {
            return Err(MALFORMED);
        }
        let path = uri.path().trim_end_matches('/').to_owned();
        Ok(Self { scheme, authority, path })
    }

    /// The URL as text, at another authority.
    #[cfg(feature = "dns")]
    pub(super) fn at(&self, authority: &str) -> String {
        format!("{}://{authority}{}", self.scheme, self.path)
    }

    /// Port of the URL, or that of its scheme.
    #[cfg(feature = "dns")]
    pub(super) fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(if self.scheme == "https" { 443 } else { 80 })
    }
}
