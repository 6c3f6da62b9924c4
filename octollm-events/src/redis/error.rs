//! The errors of Redis.

use std::{error::Error, io, sync::Arc, time::Duration};

use octollm_core::{
    bus::BusError,
    error::{ConfigError, ErrorKind, Failure},
};

/// The error of a Redis server. No secret of a URL is in it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RedisError {
    /// A setting is not valid, such as the URL.
    #[error(transparent)]
    Setting(#[from] ConfigError),
    /// Nobody answers at the address, or the connection was lost.
    #[error("the Redis server is not reachable")]
    Unreachable(#[source] Cause),
    /// TLS with the server failed, such as for a certificate that is not trusted.
    #[error("TLS with the Redis server failed")]
    Tls(#[source] Cause),
    /// The server does not accept the user or the password, or needs one.
    #[error("the Redis server refused the connection: check user and password of the URL")]
    Refused(#[source] Cause),
    /// The user may not use the command, the key or the channel.
    #[error("the user of the Redis server has no permission")]
    NotPermitted(#[source] Cause),
    /// The server is a replica, which forwards nothing to the other servers.
    #[error("the Redis server is a read-only replica")]
    ReadOnly(#[source] Cause),
    /// The server is older than this version needs.
    #[error("the Redis server has version {found}: at least {least} is needed")]
    OldServer {
        /// Version of the server.
        found: String,
        /// Lowest version that can be used.
        least: &'static str,
    },
    /// The memory of the server is full.
    #[error("the memory of the Redis server is full")]
    Full(#[source] Cause),
    /// The server gave no answer in time. It may have executed the command.
    #[error("the Redis server gave no answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// The server failed. It may have executed the command.
    #[error("the Redis server failed")]
    Failed(#[source] Cause),
}

/// The cause of a [`RedisError`].
type Cause = Arc<dyn Error + Send + Sync>;

/// The lowest version of Redis that can be used.
pub(super) const LEAST_VERSION: &str = "6.2";

impl RedisError {
    pub(super) fn failed(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(Arc::from(cause.into()))
    }

    /// The error of a connection.
    pub(super) fn unreachable(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let cause = cause.into();
        let is_tls = is_tls(&*cause);
        if is_tls { Self::Tls(Arc::from(cause)) } else { Self::Unreachable(Arc::from(cause)) }
    }

    /// An error that a server has answered, such as `NOPERM User x has no permissions …`.
    pub(super) fn answered(text: &str) -> Self {
        let cause: Cause = Arc::from(Box::<dyn Error + Send + Sync>::from(text));
        Self::of_code(text.split(' ').next().unwrap_or_default(), cause)
    }

    fn of_code(code: &str, cause: Cause) -> Self {
        match code {
            "WRONGPASS" | "NOAUTH" => Self::Refused(cause),
            "NOPERM" => Self::NotPermitted(cause),
            "READONLY" => Self::ReadOnly(cause),
            "OOM" => Self::Full(cause),
            // The answer to a script that the user may run, and not what is in it.
            _ if cause.to_string().contains("The user executing the script can't") => {
                Self::NotPermitted(cause)
            }
            "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" => Self::Unreachable(cause),
            _ => Self::Failed(cause),
        }
    }
}

/// Whether TLS is what failed. A server may refuse a certificate after the handshake of the client.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if inner.is_some_and(|inner| inner.is::<tokio_rustls::rustls::Error>()) {
            return true;
        }
        next = error.source();
    }
    false
}

impl From<RedisError> for BusError {
    fn from(error: RedisError) -> Self {
        match error {
            RedisError::NotPermitted(cause) => {
                let message = format!("the Redis server does not permit it: {cause}");
                Self::Denied { source: Arc::new(Failure::new(ErrorKind::InsufficientScope, message)) }
            }
            error => Self::Unavailable { source: Some(Arc::new(error)) },
        }
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self::new(ErrorKind::Unavailable, error.to_string())
    }
}
