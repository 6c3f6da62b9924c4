//! Why a server does not serve.

use std::io;

use octollm_core::contract::InvalidContract;

use super::config::InvalidConfig;

/// Why a server does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A limit that no server can keep.
    #[error("the configuration is not valid")]
    Config(#[from] InvalidConfig),
    /// A contract that no server can serve: its name has no form in other protocols, or its input is not an object.
    #[error("a contract cannot be served")]
    Contract(#[from] InvalidContract),
    /// The path of a contract or of a route is no path.
    #[error("`{path}` is not the path of a route: it begins with `/` and has no `{{`, `}}`, `%`, `?` or `#`")]
    InvalidPath {
        /// The path.
        path: String,
    },
    /// Two routes have the same method and path: two contracts, or one and a route of the server.
    #[error(
        "there are two routes `{method} {path}`: give one of the contracts another, as in `#[task(path = \"/other\")]`"
    )]
    RouteTaken {
        /// The method.
        method: http::Method,
        /// The path.
        path: String,
    },
    /// A route lies where other protocols have theirs.
    #[error(
        "`{path}` is reserved: routes below /mcp, /a2a, /hooks and /.well-known belong to other protocols"
    )]
    ReservedPath {
        /// The path.
        path: String,
    },
    /// Nothing establishes who calls, and callers may come from anywhere.
    #[error(
        "nothing establishes who calls {exposed}, which others can reach: set `authenticate(..)`, \
         `identity_from_extensions()` or, to let everybody call everything, `open_to_all()`"
    )]
    Unguarded {
        /// What would be exposed: an address, or a service that is to be mounted.
        exposed: String,
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
