//! Serving one connection: its protocol, its limits, and its shutdown.

use std::{
    convert::Infallible,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{
    body::Incoming,
    server::conn::{
        http1::{self, UpgradeableConnection},
        http2,
    },
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    arm::HealthState,
    body::HttpBody,
    limited::{Limited, Protocol, State, Times},
    routes::Arrival,
    service::HttpService,
    streams::{Stream, Streams},
};
use crate::{
    io::{Io, Peer},
    limits::ServerConfig,
    wire::{FieldTable, offer_token_field, read_token_field},
};

/// Serves connections.
pub(crate) struct Connections {
    service: HttpService,
    health: Arc<HealthState>,
    http1: http1::Builder,
    times: Times,
    /// Held by every connection of HTTP/2 and its streams, which are tasks of their own.
    open: mpsc::Sender<()>,
}

/// Interval of HTTP/2 pings, and the time limit on their answers.
const PING: Duration = Duration::from_secs(20);
const PONG: Duration = Duration::from_secs(10);
/// The most header fields that hyper reads by default, without an allocation.
const USUAL_HEADERS: usize = 100;
/// In a shutdown, the time to wait for a request that is already on its way.
const ON_ITS_WAY: Duration = Duration::from_millis(100);
/// In a shutdown, the time to wait for a handshake that is under way.
const OPENING: Duration = Duration::from_secs(1);
/// In a shutdown, the time to wait for the answer to the ping that follows GOAWAY, without streams.
const LAST_PONG: Duration = Duration::from_secs(1);

impl Connections {
    /// Serves connections whose last stream drops `open`.
    pub(crate) fn new(service: HttpService, health: Arc<HealthState>, open: mpsc::Sender<()>) -> Self {
        let config = service.config();
        let mut http1 = http1::Builder::new();
        // Checked below hyper, whose own time limit on heads holds for idle connections too.
        http1.header_read_timeout(None).max_header_size(config.max_head);
        if config.max_headers != USUAL_HEADERS {
            http1.max_headers(config.max_headers);
        }
        let times = Times::of(config);
        Self { service, health, http1, times, open }
    }

    fn http2(&self, streams: Streams) -> http2::Builder<Streams> {
        let ServerConfig { max_head, max_streams, stream_window, connection_window, .. } =
            *self.service.config();
        let mut http2 = http2::Builder::new(streams);
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(max_streams)
            .initial_stream_window_size(stream_window)
            .initial_connection_window_size(connection_window)
            .max_header_list_size(u32::try_from(max_head).unwrap_or(u32::MAX))
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG);
        http2
    }

    /// Serves one connection to its end. When `drain` is cancelled, running requests are answered and no more are accepted.
    pub(crate) async fn serve<I: Io>(
        &self,
        opening: impl Future<Output = std::io::Result<(I, Peer)>>,
        place: Option<OwnedSemaphorePermit>,
        drain: CancellationToken,
    ) {
        let begun = Instant::now();
        let (io, peer) = match opened(opening, begun + self.times.head, &drain).await {
            Some(Ok(opened)) => opened,
            Some(Err(error)) => return tracing::debug!(%error, "the connection could not be opened"),
            None => return tracing::debug!("the connection was not opened in time"),
        };
        let state = Arc::new(State::default());
        // The upgraded connection ends with this future, however that ends.
        let _end = state.end.clone().drop_guard();
        let mut io = Limited::new(io, self.times, begun, state.clone(), place);
        let protocol = {
            let mut known = pin!(io.protocol());
            tokio::select! {
                biased;
                protocol = known.as_mut() => protocol,
                () = drain.cancelled() => match timeout(ON_ITS_WAY, known).await {
                    Ok(protocol) => protocol,
                    Err(_) => return,
                },
            }
        };
        match protocol {
            Ok(Protocol::Http1) => self.serve_http1(io, peer, state, drain).await,
            // Boxed, so that a connection over HTTP/1.1 does not have its size.
            Ok(Protocol::Http2) => Box::pin(self.serve_http2(io, peer, &state, drain)).await,
            Err(error) => tracing::debug!(%error, "the connection ended without a request"),
        }
    }

    async fn serve_http1<I: Io>(
        &self,
        io: Limited<I>,
        peer: Peer,
        state: Arc<State>,
        drain: CancellationToken,
    ) {
        let (service, health, calls) = (self.service.clone(), self.health.clone(), state.clone());
        let answer = service_fn(move |request| {
            answer_http1(service.clone(), health.clone(), calls.clone(), peer.clone(), Box::new(request))
        });
        let connection = self.http1.serve_connection(TokioIo::new(io), answer).with_upgrades();
        finish(connection, UpgradeableConnection::graceful_shutdown, drain, ON_ITS_WAY).await;
        if state.is_upgraded() {
            state.gone().await;
        }
    }

    async fn serve_http2<I: Io>(&self, io: Limited<I>, peer: Peer, state: &State, drain: CancellationToken) {
        let service = self.service.clone();
        let fields = Arc::new(FieldTable::default());
        let answer = service_fn(move |request| {
            answer_http2(service.clone(), fields.clone(), peer.clone(), Box::new(request))
        });
        let streams = Streams::new(self.times.write, self.open.clone());
        let connection = self.http2(streams.clone()).serve_connection(TokioIo::new(io), answer);
        // GOAWAY names the last request that is accepted.
        let close = http2::Connection::graceful_shutdown;
        let mut finished = pin!(finish(connection, close, drain.clone(), Duration::ZERO));
        tokio::select! {
            () = &mut finished => return,
            () = streams.idle(self.times.idle) => drain.cancel(),
            // Without an answer to its ping hyper would wait for further requests.
            () = rest_after(&drain, &streams, state) => return,
        }
        // Nothing runs any more, and a caller that does not close its side must not hold the connection.
        let _ = timeout(self.times.idle, finished).await;
    }
}

/// The output of opening a connection: until `limit`, and once `drain` is cancelled only for as long as a handshake takes.
async fn opened<T>(opening: impl Future<Output = T>, limit: Instant, drain: &CancellationToken) -> Option<T> {
    let mut opening = pin!(timeout_at(limit, opening));
    tokio::select! {
        biased;
        opened = opening.as_mut() => opened.ok(),
        () = drain.cancelled() => timeout(OPENING, opening).await.ok()?.ok(),
    }
}

/// Waits until no stream has been open for a moment, and everything is written, after `drain` was cancelled.
async fn rest_after(drain: &CancellationToken, streams: &Streams, state: &State) {
    drain.cancelled().await;
    loop {
        streams.idle(LAST_PONG).await;
        if !state.is_writing() {
            return;
        }
    }
}

async fn finish<C>(
    connection: C,
    close: impl FnOnce(Pin<&mut C>),
    drain: CancellationToken,
    on_its_way: Duration,
) where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = pin!(connection);
    let result = tokio::select! {
        biased;
        result = connection.as_mut() => result,
        () = drain.cancelled() => match timeout(on_its_way, connection.as_mut()).await {
            Ok(result) => result,
            Err(_) => {
                close(connection.as_mut());
                connection.await
            }
        },
    };
    if let Err(error) = result {
        tracing::debug!(%error, "the connection was lost");
    }
}

async fn answer_http1(
    service: HttpService,
    health: Arc<HealthState>,
    state: Arc<State>,
    peer: Peer,
    request: Box<Request<Incoming>>,
) -> Result<Response<HttpBody>, Infallible> {
    let running = state.begin();
    let tunnel = request.method() == Method::CONNECT;
    let mut response = service.answer(request, Arrival::Http1, peer).await;
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS || (tunnel && status.is_success()) {
        state.upgrade();
    } else if health.is_draining()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE)
    {
        // A caller could lose its next request when the connection closes, so that this answer announces it. After these two
        // statuses the rest of the body is not read.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.body_mut().sent_by_http1(running);
    Ok(response)
}

async fn answer_http2(
    service: HttpService,
    fields: Arc<FieldTable>,
    peer: Peer,
    mut request: Box<Request<Incoming>>,
) -> Result<Response<HttpBody>, Infallible> {
    read_token_field(request.headers_mut());
    let mut response = service.answer(request, Arrival::Http2, peer).await;
    if fields.spare(response.headers_mut()) {
        offer_token_field(response.headers_mut());
    }
    if let Some(stream) = Stream::current() {
        response.body_mut().sent_by_http2(stream);
    }
    Ok(response)
}
