//! One connection: its protocol, its limits, and its end.

mod bare;
mod calls;
mod io;
mod watch;

use std::{convert::Infallible, fmt, pin::pin, sync::Arc, time::Duration};

use http::{HeaderValue, Request, Response, header};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;

use self::{
    calls::Calls,
    io::{Protocol, Times, Watched},
};
use super::{body::ResponseBody, config::ServerConfig, fields::Arrival, service::Core, vitals::Vitals};

/// Serves connections, each by itself.
pub(crate) struct Connections {
    core: Arc<Core>,
    vitals: Arc<Vitals>,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    times: Arc<Times>,
}

/// How often an HTTP/2 caller is asked whether it is still there, and how long it has to answer.
const PING: Duration = Duration::from_secs(20);
const PONG: Duration = Duration::from_secs(10);
/// What hyper allows by itself, at no cost.
const USUAL_HEADERS: usize = 100;
/// When everything ends: how long to wait for a request that was sent before the caller could know.
const ON_ITS_WAY: Duration = Duration::from_millis(100);

impl Connections {
    pub(crate) fn new(core: Arc<Core>, vitals: Arc<Vitals>) -> Self {
        let ServerConfig { max_head, max_headers, max_streams, stream_window, connection_window, .. } =
            core.config;
        let mut http1 = http1::Builder::new();
        // The time limit on heads is kept below hyper, where it holds for the wait for the first byte as well.
        http1.header_read_timeout(None).max_header_size(max_head);
        if max_headers != USUAL_HEADERS {
            http1.max_headers(max_headers);
        }
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(max_streams)
            .initial_stream_window_size(stream_window)
            .initial_connection_window_size(connection_window)
            .max_header_list_size(u32::try_from(max_head).unwrap_or(u32::MAX))
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG);
        let times = Arc::new(Times::of(&core.config));
        Self { core, vitals, http1, http2, times }
    }

    /// Serves one connection to its end. When `drain` is cancelled, what runs is answered and nothing more is taken.
    pub(crate) async fn serve(&self, stream: TcpStream, drain: CancellationToken) {
        // Answers are small, and written whole.
        let _ = stream.set_nodelay(true);
        let calls = Arc::new(Calls::default());
        let mut stream = Watched::new(stream, self.times.clone(), calls.clone());
        let protocol = {
            let mut told = pin!(stream.protocol());
            tokio::select! {
                biased;
                protocol = told.as_mut() => protocol,
                () = drain.cancelled() => match timeout(ON_ITS_WAY, told).await {
                    Ok(protocol) => protocol,
                    Err(_) => return,
                },
            }
        };
        let io = TokioIo::new(stream);
        let core = self.core.clone();
        match protocol {
            Ok(Protocol::Http1) => {
                let vitals = self.vitals.clone();
                let answer = service_fn(move |request| {
                    answer_http1(core.clone(), vitals.clone(), calls.clone(), request)
                });
                finish(self.http1.serve_connection(io, answer), drain, ON_ITS_WAY).await;
            }
            Ok(Protocol::Http2) => {
                let answer = service_fn(move |request| answer_http2(core.clone(), request));
                // GOAWAY tells which requests are still taken.
                finish(self.http2.serve_connection(io, answer), drain, Duration::ZERO).await;
            }
            Err(error) => tracing::debug!(%error, "connection without a request"),
        }
    }
}

async fn finish<C>(connection: C, drain: CancellationToken, on_its_way: Duration)
where
    C: GracefulConnection,
    C::Error: fmt::Display,
{
    let mut connection = pin!(connection);
    let result = tokio::select! {
        biased;
        result = connection.as_mut() => result,
        () = drain.cancelled() => match timeout(on_its_way, connection.as_mut()).await {
            Ok(result) => result,
            Err(_) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        },
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection broke off");
    }
}

async fn answer_http1(
    core: Arc<Core>,
    vitals: Arc<Vitals>,
    calls: Arc<Calls>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let (number, _running) = calls.begin();
    let arrival = Arrival::Http1 { two_lengths: calls.is_refused(number) };
    let mut response = core.answer(request, arrival).await;
    // A connection that is closed under its caller may lose the next request: it is told beforehand.
    if vitals.is_draining() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

async fn answer_http2(
    core: Arc<Core>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    Ok(core.answer(request, Arrival::Http2).await)
}
