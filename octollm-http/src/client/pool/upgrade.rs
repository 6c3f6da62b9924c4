//! A connection that is handed over to another protocol.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{client::conn::http1, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use octollm_core::error::ErrorKind;
use tokio::time::Instant;

use super::{
    ExchangeError, ExchangeLimits, Phase, Pool, addressed,
    connect::{Versions, connect},
    connection::{MAX_HEAD, add_host},
};

impl Pool {
    /// Sends a request for an upgrade over a connection of its own, which is not among those of the pool. Returns the answer, and the
    /// connection where the answer is 101.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub(crate) async fn upgrade(
        &self,
        request: Request<Bytes>,
        limits: &ExchangeLimits,
        most: usize,
    ) -> Result<(Response<Bytes>, Option<Upgraded>), ExchangeError> {
        let (origin, mut request) = addressed(Box::new(request.map(Into::into)), limits)?;
        add_host(&mut request, &origin)?;
        let until = Instant::now() + self.0.config.connect_timeout;
        let (io, _, _) = connect(&self.0, &origin, Versions::Http1, until).await?;
        let failed = |words: &str, error: hyper::Error| {
            ExchangeError::new(ErrorKind::ConnectionLost, words).caused_by(error)
        };
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(io)).await.map_err(
                |error| failed("no connection", error).in_phase(Phase::Connect).before_execution(),
            )?;
        // It ends with the sender, or passes the connection on.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "the connection was lost");
            }
        });
        let answer = sender.send_request(request.map(|_| Full::<Bytes>::default())).await;
        let mut answer =
            answer.map_err(|error| failed("the connection was lost before an answer came", error))?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgraded = hyper::upgrade::on(&mut answer).await;
            let upgraded = upgraded.map_err(|error| failed("the connection was not passed on", error))?;
            return Ok((answer.map(|_| Bytes::new()), Some(upgraded)));
        }
        let (head, body) = answer.into_parts();
        // Of an answer that breaks off, or is too large, the status counts.
        let body = Limited::new(body, most).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        Ok((Response::from_parts(head, body), None))
    }
}
