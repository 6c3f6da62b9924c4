//! Making connections.

use std::time::Duration;

use http::uri::Authority;
use octollm_core::error::ErrorKind;
use tokio::net::TcpStream;

use crate::client::exchange_error::ExchangeError;

/// Connects to the first address of a host that answers.
///
/// # Errors
/// [`ErrorKind::Unreachable`]: nothing was sent.
pub(super) async fn connect(origin: &Authority, limit: Duration) -> Result<TcpStream, ExchangeError> {
    let host = origin.host().trim_start_matches('[').trim_end_matches(']');
    let address = (host, origin.port_u16().unwrap_or(80));
    match tokio::time::timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(socket)) => {
            // Small requests must not wait for the acknowledgement of the last one. What cannot be set still works.
            let _ = socket.set_nodelay(true);
            Ok(socket)
        }
        Ok(Err(error)) => {
            Err(ExchangeError::new(ErrorKind::Unreachable, format!("no connection: {}", reason(&error)))
                .with_source(error))
        }
        Err(_) => Err(ExchangeError::new(ErrorKind::Unreachable, format!("no connection within {limit:?}"))),
    }
}

/// The kind alone: the system's own text may name addresses. What is no answer of the system comes from the name
/// lookup.
fn reason(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(_) => error.kind().to_string(),
        None => "the host is not known".to_owned(),
    }
}
