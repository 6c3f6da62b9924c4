//! Why a server does not serve.

use std::{io, net::SocketAddr};

use super::config::InvalidConfig;

/// Why a server does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A limit that no server can keep.
    #[error("the configuration is not valid")]
    Config(#[from] InvalidConfig),
    /// A contract's path is no path.
    #[error("`{path}` is not the path of a route: it begins with `/` and has no `{{`, `}}`, `%`, `?` or `#`")]
    InvalidPath {
        /// The path.
        path: String,
    },
    /// Two contracts have the same path, or one has that of a route of the server's own.
    #[error(
        "there are two routes `{method} {path}`: give one of the contracts another, as in `#[task(path = \"/other\")]`"
    )]
    RouteTaken {
        /// The method.
        method: http::Method,
        /// The path.
        path: String,
    },
    /// Nobody's token would be checked there.
    #[error(
        "{addr} can be reached from other machines, and no token verifier is set; `open_to_all()` allows it all the same"
    )]
    BeyondLoopback {
        /// The address.
        addr: SocketAddr,
    },
    /// The address names nothing.
    #[error("the address to listen on was not found")]
    Resolve(#[source] io::Error),
    /// The system refused.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address, or addresses.
        address: String,
        /// What the system says.
        source: io::Error,
    },
}
