//! Opening a connection, and the protocol that it speaks.

use std::{io, sync::Arc, time::Duration};

use http::{Uri, uri::Scheme};
use octollm_core::error::ErrorKind;
use tokio::time::{Instant, timeout_at};

use super::{
    Connection, ExchangeError, Origin, Phase, Protocol, Shared,
    http2::{Http2, open_within},
    jittered,
    meter::{Meter, Metered},
};
use crate::io::{Secured, handshake_problem};

/// The versions of HTTP that a new connection may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Versions {
    Http1,
    Http2,
    /// HTTP/2 if the server speaks it.
    Either,
}

/// A connection that was opened.
pub(super) enum Opened {
    Http1(Box<Connection>),
    Http2(Box<Http2>),
}

/// Time for which a server that may speak HTTP/2 is waited for, before it is taken to speak HTTP/1.1 only.
const TRIAL: Duration = Duration::from_secs(1);

impl Shared {
    /// The versions of a connection that is to be shared.
    pub(super) fn versions(&self) -> Versions {
        match self.protocol {
            Protocol::Http1 => Versions::Http1,
            Protocol::Http2 => Versions::Http2,
            Protocol::Auto => Versions::Either,
        }
    }
}

/// Opens a connection. One time limit holds for all of it, also where a second one is opened after a trial.
///
/// # Errors
/// [`ErrorKind::Unreachable`]: nothing was sent.
pub(super) async fn open(
    pool: &Shared,
    origin: &Origin,
    versions: Versions,
) -> Result<Opened, ExchangeError> {
    let until = Instant::now() + pool.config.connect_timeout;
    let (io, meter, negotiated) = connect(pool, origin, versions, until).await?;
    let connected = Instant::now();
    let retires = connected + jittered(pool.config.max_age);
    let left = until.saturating_duration_since(connected);
    let speaks_http2 = match (versions, origin.is_https) {
        (Versions::Http1, _) => false,
        (Versions::Http2, true) if !negotiated => {
            let mut error =
                ExchangeError::new(ErrorKind::Unreachable, "no connection: the server does not offer HTTP/2");
            error.failure.retryable = false;
            return Err(error.in_phase(Phase::Connect));
        }
        (Versions::Either, true) => negotiated,
        (Versions::Http2, _) => true,
        (Versions::Either, false) => {
            // A second connection needs time too.
            match open_within((left / 2).min(TRIAL), io, meter, pool, retires).await {
                Ok(opened) => return Ok(Opened::Http2(Box::new(opened))),
                Err(error) => {
                    tracing::debug!(authority = %origin.authority, %error, "the server speaks HTTP/1.1 only")
                }
            }
            let (io, meter, _) = connect(pool, origin, Versions::Http1, until).await?;
            return Ok(Opened::Http1(Box::new(Connection::new(io, meter, retires).await?)));
        }
    };
    Ok(if speaks_http2 {
        Opened::Http2(Box::new(open_within(left, io, meter, pool, retires).await?))
    } else {
        Opened::Http1(Box::new(Connection::new(io, meter, retires).await?))
    })
}

/// Connects, and returns whether the server has chosen HTTP/2.
pub(super) async fn connect(
    pool: &Shared,
    origin: &Origin,
    versions: Versions,
    until: Instant,
) -> Result<(Secured<Metered>, Arc<Meter>, bool), ExchangeError> {
    let unusable = |_| ExchangeError::new(ErrorKind::BadRequest, "the origin is no URI").before_execution();
    let scheme = if origin.is_https { Scheme::HTTPS } else { Scheme::HTTP };
    let uri = |authority: &str| {
        Uri::builder().scheme(scheme.clone()).authority(authority).path_and_query("/").build()
    };
    let named = uri(origin.authority.as_str()).map_err(unusable)?;
    let at = match origin.address {
        Some(address) => &uri(&address.to_string()).map_err(unusable)?,
        None => &named,
    };
    let offered: &[&[u8]] = match versions {
        Versions::Http1 => &[b"http/1.1"],
        Versions::Http2 => &[b"h2"],
        Versions::Either => &[b"h2", b"http/1.1"],
    };
    let opening = async {
        // Below TLS, so that the meter counts what reaches the socket.
        let (io, meter) = Metered::new(pool.connector.connect(at).await?);
        let (io, negotiated) = pool.tls.secure(&named, io, offered).await?;
        Ok((io, meter, negotiated))
    };
    let failed = match timeout_at(until, opening).await {
        Ok(Ok(opened)) => return Ok(opened),
        Ok(Err(error)) => match handshake_problem(&error) {
            Some(problem) => ExchangeError::not_trusted(problem).caused_by(error),
            None => ExchangeError::new(ErrorKind::Unreachable, format!("no connection: {}", reason(&error)))
                .caused_by(error),
        },
        Err(_) => {
            let limit = pool.config.connect_timeout;
            ExchangeError::new(ErrorKind::Unreachable, format!("no connection within {limit:?}"))
        }
    };
    Err(failed.in_phase(Phase::Connect))
}

/// The kind of the error alone, since the text of the system may name addresses.
fn reason(error: &io::Error) -> String {
    use io::ErrorKind::*;
    match error.kind() {
        // Name lookups have no kind.
        kind if error.raw_os_error().is_some() => kind.to_string(),
        kind @ (ConnectionRefused | ConnectionReset | ConnectionAborted | TimedOut | UnexpectedEof
        | BrokenPipe | InvalidData | InvalidInput | PermissionDenied) => kind.to_string(),
        _ => "the host is not known".to_owned(),
    }
}
