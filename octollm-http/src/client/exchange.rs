//! One HTTP exchange: sending a request over the pool, through the layers of a user, and reading its answer.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, Request, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    response::Parts,
};
use http_body::Body;
use octollm_core::{
    budget::Usage,
    contract::ContractRef,
    deadline::Deadline,
    error::{ConfigError, ErrorKind, Failure},
};
use serde::de::IgnoredAny;
use tower::{BoxError, Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};

use super::{
    foreign,
    pool::{
        Download, ExchangeError, ExchangeLimits, Exchanging, Pool, Protocol, ServerHints, Upload, too_large,
    },
};
use crate::{
    io::{ClientTls, Connector, Tcp},
    limits::ClientConfig,
    wire::{self, BodyBuffer},
};

/// The purpose of an HTTP request, among its extensions in a
/// [`request_layer`](super::ArmsBuilder::request_layer).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Target {
    /// Id of the arm, `orchestrator`, or the name of a [`RestClient`](crate::RestClient).
    pub arm: Arc<str>,
    /// URL of the arm, orchestrator or service.
    pub endpoint: Arc<str>,
    /// Contract that is called; `None` for a request that is no call, such as one for a card.
    pub contract: Option<ContractRef>,
    /// Whether the request may run twice, by the caller's own contract.
    pub idempotent: bool,
    /// Deadline of the caller.
    pub deadline: Option<Deadline>,
    /// Time that the server may work before it answers.
    pub work: Duration,
}

/// The service around which a [`request_layer`](super::ArmsBuilder::request_layer) is added.
pub(super) type Exchange = BoxCloneSyncService<Request<Bytes>, Response<Bytes>, BoxError>;

/// How requests are sent: limits, connections, and layers from the innermost to the outermost.
#[derive(Default)]
pub(crate) struct Requests {
    pub(crate) config: ClientConfig,
    pub(super) connector: Option<Arc<dyn Connector>>,
    pub(super) tls: ClientTls,
    pub(super) protocol: Protocol,
    layers: Vec<Wrap>,
}

type Wrap = Box<dyn FnOnce(Exchange) -> Exchange + Send + Sync>;

impl Requests {
    /// Adds a layer around the others.
    pub(super) fn layer<L>(&mut self, layer: L)
    where
        L: Layer<Exchange> + Send + Sync + 'static,
        L::Service: Service<Request<Bytes>, Response = Response<Bytes>> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request<Bytes>>>::Error: Into<BoxError>,
        <L::Service as Service<Request<Bytes>>>::Future: Send + 'static,
    {
        self.layers.push(Box::new(move |inner| {
            BoxCloneSyncService::new(layer.layer(inner).map_err(Into::<BoxError>::into))
        }));
    }

    /// Builds the exchanger.
    pub(crate) fn build(self) -> Result<Exchanger, ConfigError> {
        self.config.check()?;
        let connector = self.connector.unwrap_or_else(|| Arc::new(Tcp));
        let pool = Pool::new(self.config, connector, self.tls, self.protocol, 1);
        let mut layers = self.layers.into_iter();
        let layered =
            layers.next().map(|first| layers.fold(first(innermost(pool.clone())), |inner, wrap| wrap(inner)));
        Ok(Exchanger { pool, layered })
    }
}

/// Declares the setters of a builder with a field `requests`.
macro_rules! request_setters {
    ($Builder:ident) => {
        impl $Builder {
            /// Sets the connector that opens connections, in place of TCP.
            pub fn connector(mut self, connector: impl crate::io::Connector) -> Self {
                self.requests.connector = Some(std::sync::Arc::new(connector));
                self
            }

            /// Sets the versions of HTTP that the client speaks. Default [`Protocol::Auto`](crate::client::Protocol::Auto).
            pub fn protocol(mut self, protocol: crate::client::Protocol) -> Self {
                self.requests.protocol = protocol;
                self
            }

            /// Sets the configuration of TLS for `https` URLs: trusted roots, a certificate of the client. By default the roots
            /// of the system are trusted, which are read with the first such connection of the process. ALPN is set by
            /// [`protocol`](Self::protocol).
            #[cfg(feature = "tls")]
            pub fn tls(
                mut self,
                config: impl Into<std::sync::Arc<crate::io::rustls::ClientConfig>>,
            ) -> Self {
                self.requests.tls = crate::io::ClientTls::new(config.into());
                self
            }

            /// Adds a tower layer around each HTTP request and its answer, for example to add a header. Requests for cards pass
            /// it too. The layer added last is the outermost.
            ///
            /// Each request has a [`Target`](crate::client::Target) among its extensions. Bodies are whole in both directions, so that a
            /// layer can always send a request again. If a layer returns a [`Failure`](octollm_core::error::Failure) as its
            /// error, the call fails with it. Any other error becomes the source of the call's error.
            pub fn request_layer<L>(mut self, layer: L) -> Self
            where
                L: tower::Layer<Exchange> + Send + Sync + 'static,
                L::Service: tower::Service<http::Request<Bytes>, Response = http::Response<Bytes>>
                    + Clone
                    + Send
                    + Sync
                    + 'static,
                <L::Service as tower::Service<http::Request<Bytes>>>::Error: Into<tower::BoxError>,
                <L::Service as tower::Service<http::Request<Bytes>>>::Future: Send + 'static,
            {
                self.requests.layer(layer);
                self
            }

            fn config_mut(&mut self) -> &mut crate::limits::ClientConfig {
                &mut self.requests.config
            }
        }

        crate::limits::client_limits!(limits_setters $Builder);
    };
}
pub(super) use request_setters;

/// The pool as a service. It is always ready: the wait for a connection is part of the call, where it has a time limit.
fn innermost(pool: Pool) -> Exchange {
    BoxCloneSyncService::new(service_fn(move |mut request: Request<Bytes>| {
        let pool = pool.clone();
        async move {
            let Some(Target { arm, deadline, work, .. }) = request.extensions_mut().remove() else {
                let failure = Failure::new(ErrorKind::Internal, "a layer has removed the target");
                return Err(failure.before_execution().into());
            };
            let hints = request.extensions_mut().remove::<ServerHints>().unwrap_or_default();
            let limits = ExchangeLimits { deadline, work, hints, begun: None };
            #[cfg(feature = "ws")]
            if let Some(upgrading) = request.extensions_mut().remove::<Upgrading>() {
                return upgrading.exchange(&pool, request, limits).await.map_err(BoxError::from);
            }
            if let Some(streaming) = request.extensions_mut().remove::<Streaming>() {
                return streaming.exchange(&pool, request, &arm, limits).await.map_err(BoxError::from);
            }
            pool.exchange(request, &arm, limits).await.map_err(BoxError::from)
        }
    }))
}

/// The pool, and the layers around it if there are any. Without layers nothing is boxed.
#[derive(Clone)]
pub(crate) struct Exchanger {
    pool: Pool,
    layered: Option<Exchange>,
}

impl Exchanger {
    /// The largest answer, in bytes.
    pub(super) fn max_answer(&self) -> usize {
        self.pool.max_answer()
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The same connections, without the layers of the user.
    pub(super) fn without_layers(&self) -> Self {
        Self { pool: self.pool.clone(), layered: None }
    }

    /// Sends a request that is for no arm, and that passes no layers.
    #[cfg(feature = "otel")]
    pub(crate) async fn send_plain(
        &self,
        request: Request<Bytes>,
        name: &Arc<str>,
        limits: ExchangeLimits,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let target = || Target {
            arm: Arc::clone(name),
            endpoint: Arc::clone(name),
            contract: None,
            idempotent: true,
            deadline: limits.deadline,
            work: limits.work,
        };
        self.send(request, name, limits, target).await
    }

    /// Sends a request, in place of whose body another one may stream, and returns its answer as it arrives. The layers of a user see
    /// the request with an empty body where that streams, and the answer with an empty body.
    ///
    /// # Cancel safety
    /// That of [`send`](Self::send).
    pub(super) async fn send_streamed(
        &self,
        mut request: Request<Bytes>,
        upload: Option<Upload>,
        arm: &Arc<str>,
        limits: ExchangeLimits,
        target: impl FnOnce() -> Target,
    ) -> Result<Response<Received>, ExchangeError> {
        let Some(service) = &self.layered else {
            let (head, whole) = request.into_parts();
            let request = Request::from_parts(head, upload.unwrap_or_else(|| whole.into()));
            return Ok(self
                .pool
                .exchange_streamed(request, arm, limits)
                .await?
                .map(|body| Received::Streaming(Box::new(body))));
        };
        let streaming =
            Streaming(Arc::new(Mutex::new(Streams { uploads: upload.is_some(), upload, download: None })));
        request.extensions_mut().insert(streaming.clone());
        let answer = through(service, request, limits, target()).await?;
        let download = streaming.streams().download.take();
        Ok(answer
            .map(|whole| download.map_or(Received::Whole(whole), |body| Received::Streaming(Box::new(body)))))
    }

    /// Sends a request for an upgrade, and returns its answer, with the connection where that is 101. The layers of a user see both.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    #[cfg(feature = "ws")]
    pub(super) async fn upgrade(
        &self,
        mut request: Request<Bytes>,
        limits: ExchangeLimits,
        target: Target,
    ) -> Result<(Response<Bytes>, Option<hyper::upgrade::Upgraded>), ExchangeError> {
        let Some(service) = &self.layered else {
            let upgrade = self.pool.upgrade(request, &limits, foreign::MOST_READ);
            return Deadline::run_until(limits.deadline, upgrade)
                .await
                .unwrap_or_else(|| Err(Failure::of(ErrorKind::DeadlineExceeded).into()));
        };
        let upgrading = Upgrading::default();
        request.extensions_mut().insert(upgrading.clone());
        let answer = through(service, request, limits, target).await?;
        let io = upgrading.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok((answer, io))
    }

    /// Sends a request and reads its answer, until its deadline.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection, which the server sees.
    pub(crate) fn send<'a>(
        &'a self,
        request: Request<Bytes>,
        arm: &'a Arc<str>,
        limits: ExchangeLimits,
        target: impl FnOnce() -> Target,
    ) -> Exchanging<'a> {
        match &self.layered {
            None => self.pool.exchange(request, arm, limits),
            Some(service) => Box::pin(through(service, request, limits, target())),
        }
    }
}

/// Sends a request through the layers of a user, until its deadline.
async fn through(
    service: &Exchange,
    mut request: Request<Bytes>,
    limits: ExchangeLimits,
    target: Target,
) -> Result<Response<Bytes>, ExchangeError> {
    request.extensions_mut().insert(target);
    // A layer may set another authorization.
    request.extensions_mut().insert(ServerHints { has_issued_token: false, ..limits.hints });
    match Deadline::run_until(limits.deadline, service.clone().oneshot(request)).await {
        Some(answer) => answer.map_err(Into::into),
        None => Err(Failure::of(ErrorKind::DeadlineExceeded).into()),
    }
}

/// The body of a request, and where that of its answer is put, if these do not pass the layers of a user because they stream. They are
/// among the extensions of the request, and for the layers both bodies are empty.
#[derive(Clone)]
struct Streaming(Arc<Mutex<Streams>>);

struct Streams {
    upload: Option<Upload>,
    /// Whether the body of the request streams, so that it can be sent once.
    uploads: bool,
    download: Option<Download>,
}

impl Streaming {
    async fn exchange(
        self,
        pool: &Pool,
        request: Request<Bytes>,
        arm: &Arc<str>,
        limits: ExchangeLimits,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let (upload, uploads) = {
            let mut streams = self.streams();
            (streams.upload.take(), streams.uploads)
        };
        if uploads && upload.is_none() {
            let words = "a layer has sent a request again whose body streams";
            return Err(ExchangeError::new(ErrorKind::Internal, words));
        }
        let (head, whole) = request.into_parts();
        let request = Request::from_parts(head, upload.unwrap_or_else(|| whole.into()));
        let (head, body) = pool.exchange_streamed(request, arm, limits).await?.into_parts();
        self.streams().download = Some(body);
        Ok(Response::from_parts(head, Bytes::new()))
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the connection of an upgrade is put, among the extensions of its request.
#[cfg(feature = "ws")]
#[derive(Clone, Default)]
struct Upgrading(Arc<Mutex<Option<hyper::upgrade::Upgraded>>>);

#[cfg(feature = "ws")]
impl Upgrading {
    async fn exchange(
        self,
        pool: &Pool,
        request: Request<Bytes>,
        limits: ExchangeLimits,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let (answer, io) = pool.upgrade(request, &limits, foreign::MOST_READ).await?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = io;
        Ok(answer)
    }
}

/// The body of an answer.
pub(super) enum Received {
    Streaming(Box<Download>),
    /// That of an answer by a layer of the user.
    Whole(Bytes),
}

impl Received {
    /// The bytes of a body that was read.
    pub(super) fn into_whole(self) -> Bytes {
        match self {
            Self::Whole(whole) => whole,
            Self::Streaming(_) => Bytes::new(),
        }
    }
}

/// Reads a body until it has ended, has failed, or is larger than `most`.
pub(super) async fn read(mut download: Download, most: usize) -> (Bytes, Result<(), ExchangeError>) {
    let mut read = BodyBuffer::default();
    let ended = loop {
        match poll_fn(|cx| Pin::new(&mut download).poll_frame(cx)).await {
            None => break Ok(()),
            Some(Err(error)) => break Err(error),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    read.push(data);
                }
            }
        }
        if read.len() > most {
            break Err(too_large(most));
        }
    };
    (read.into_bytes(), ended)
}

/// Reads the body of an answer to its end.
pub(super) async fn whole(
    answer: Response<Received>,
    max: usize,
) -> Result<Response<Received>, ExchangeError> {
    let (head, body) = answer.into_parts();
    let body = match body {
        Received::Streaming(download) => {
            let (whole, ended) = read(*download, max).await;
            ended?;
            Received::Whole(whole)
        }
        whole => whole,
    };
    Ok(Response::from_parts(head, body))
}

/// Reads the output or the failure, and the usage. Usage that is not reported, or cannot be read whole, is unmetered; for work
/// that has not run it is zero.
///
/// `reads` decides whether an answer without a body is an output.
pub(super) fn read_answer(
    response: Response<Bytes>,
    reads: impl FnOnce(&[u8]) -> Result<(), serde_json::Error>,
) -> (Result<Bytes, Failure>, Usage) {
    let reported = wire::read_usage(response.headers());
    match (output(response, reads), reported) {
        (Ok(_), Some((usage, false))) => {
            let failure = Failure::new(ErrorKind::BadResponse, "the usage in the answer cannot be read");
            (Err(failure), usage.plus(Usage::UNMETERED))
        }
        (read, Some((usage, true))) => (read, usage),
        (read, Some((usage, false))) => (read, usage.plus(Usage::UNMETERED)),
        (Err(failure), None) if !failure.may_have_executed => (Err(failure), Usage::ZERO),
        (read, None) => (read, Usage::UNMETERED),
    }
}

/// The `reads` of an answer that always has a body.
pub(super) fn never_nothing(_: &[u8]) -> Result<(), serde_json::Error> {
    Err(serde::de::Error::custom("an answer is due"))
}

/// The failure for an output that the caller cannot decode.
pub(super) fn unreadable(error: &serde_json::Error) -> Failure {
    Failure::new(ErrorKind::BadResponse, format!("the output has another shape: {error}"))
}

fn output(
    response: Response<Bytes>,
    reads: impl FnOnce(&[u8]) -> Result<(), serde_json::Error>,
) -> Result<Bytes, Failure> {
    let (head, body) = response.into_parts();
    if !head.status.is_success() {
        return Err(foreign::failure(head.status, &head.headers, &body, SystemTime::now()));
    }
    let bad = |message: String| Err(Failure::new(ErrorKind::BadResponse, message));
    if body.is_empty() && has_no_content(&head) {
        return match reads(NOTHING) {
            Ok(()) => Ok(Bytes::from_static(NOTHING)),
            Err(_) => bad(format!("answered {} where an output is due", head.status.as_u16())),
        };
    }
    // No coding was requested. Decoding one could make the answer larger than the limit.
    if is_coded(&head.headers) {
        return bad(CODED.into());
    }
    // JSON under another name is an output too, once it was parsed.
    let is_declared = head.headers.get(CONTENT_TYPE).is_some_and(wire::is_json);
    if !is_declared && serde_json::from_slice::<IgnoredAny>(&body).is_err() {
        return bad(format!("answered {} with what is not JSON", head.status.as_u16()));
    }
    Ok(body)
}

/// The problem of an answer that [is coded](is_coded).
pub(super) const CODED: &str = "the answer is in a content coding that was not asked for";

/// Whether the body of an answer is in a content coding, such as gzip.
pub(super) fn is_coded(head: &HeaderMap) -> bool {
    head.get_all(CONTENT_ENCODING).iter().any(|codings| {
        let Ok(codings) = codings.to_str() else { return true };
        let mut codings = codings.split(',').map(str::trim);
        codings.any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity"))
    })
}

/// The output `()`.
const NOTHING: &[u8] = b"null";

/// Whether an answer has no body on purpose: by its status, or because it succeeded with a length of 0 and no content type, as
/// frameworks answer for a handler without output. Without the length the answer could be incomplete.
fn has_no_content(head: &Parts) -> bool {
    match head.status {
        StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT => true,
        StatusCode::OK | StatusCode::CREATED => {
            let fields = &head.headers;
            !fields.contains_key(CONTENT_TYPE)
                && fields.get(CONTENT_LENGTH).is_some_and(|length| length == "0")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn what_is_json_by_name_or_by_look_is_an_output() {
        let answered = |media_type: &str, body: &'static str| {
            let response = Response::builder().header(CONTENT_TYPE, media_type);
            read_answer(response.body(Bytes::from(body)).unwrap(), |_| Ok(()))
                .0
                .map_err(|failure| failure.kind)
        };
        for media_type in
            ["application/json", "application/JSON; charset=utf-8", "application/x+json", "text/plain"]
        {
            assert_eq!(answered(media_type, "{}").unwrap(), "{}", "{media_type}");
        }
        assert_eq!(answered("text/html", "<html>"), Err(ErrorKind::BadResponse));
        assert_eq!(answered("text/plain", ""), Err(ErrorKind::BadResponse));
        let packed =
            Response::builder().header(CONTENT_TYPE, "application/json").header(CONTENT_ENCODING, "gzip");
        assert_eq!(
            read_answer(packed.body(Bytes::new()).unwrap(), |_| Ok(())).0.unwrap_err().kind,
            ErrorKind::BadResponse
        );
    }

    #[test]
    fn a_content_coding_is_any_but_identity() {
        for (values, coded) in [
            (&[][..], false),
            (&["identity"], false),
            (&["Identity, identity"], false),
            (&[""], false),
            (&["gzip"], true),
            (&["identity, br"], true),
            (&["identity", "gzip"], true),
        ] {
            let head =
                values.iter().map(|value| (CONTENT_ENCODING, HeaderValue::from_static(value))).collect();
            assert_eq!(is_coded(&head), coded, "{values:?}");
        }
    }

    #[test]
    fn an_answer_without_a_body_is_the_output_that_is_nothing() {
        let answer = |status: u16| Response::builder().status(status).body(Bytes::new()).unwrap();
        let unit = |output: &[u8]| serde_json::from_slice::<()>(output);
        let number = |output: &[u8]| serde_json::from_slice::<u32>(output).map(drop);
        for status in [204, 205] {
            assert_eq!(read_answer(answer(status), unit).0.unwrap(), "null");
            assert_eq!(read_answer(answer(status), number).0.unwrap_err().kind, ErrorKind::BadResponse);
        }
        // With a length the answer is whole; a type promises content, and what is only accepted is not done.
        for (status, fields, is_nothing) in [
            (200, &[("content-length", "0")][..], true),
            (201, &[("content-length", "0")], true),
            (204, &[("content-encoding", "gzip")], true),
            (200, &[], false),
            (200, &[("content-length", "0"), ("content-type", "application/json")], false),
            (202, &[("content-length", "0")], false),
        ] {
            let mut response = answer(status);
            response.headers_mut().extend(
                fields
                    .iter()
                    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))),
            );
            assert_eq!(
                read_answer(response, unit).0.is_ok_and(|output| output == "null"),
                is_nothing,
                "{status} {fields:?}"
            );
        }
    }

    #[test]
    fn a_usage_that_cannot_be_read_is_a_bad_response_and_what_can_be_is_counted() {
        let answered = |usage: &str| {
            let response = Response::builder().header(CONTENT_TYPE, "application/json");
            let response = response.header(wire::names::USAGE, usage).body(Bytes::from("{}")).unwrap();
            read_answer(response, |_| Ok(()))
        };
        assert_eq!(answered("tokens=10.0").1, Usage::tokens(10));
        let (output, usage) = answered("tokens=7;cost_usd=abc");
        let seven = Usage::tokens(7).plus(Usage::UNMETERED);
        assert_eq!((output.unwrap_err().kind, usage), (ErrorKind::BadResponse, seven));
        assert_eq!(answered("tokens=-5").1, Usage::UNMETERED);
    }

    #[test]
    fn work_whose_usage_is_not_reported_is_unmetered_unless_it_has_not_run() {
        for (status, usage) in [
            (200, Usage::UNMETERED),
            (500, Usage::UNMETERED),
            (302, Usage::UNMETERED),
            (422, Usage::ZERO),
            (503, Usage::UNMETERED),
        ] {
            let response = Response::builder().status(status).header(CONTENT_TYPE, "application/json");
            let response = response.body(Bytes::from("{}")).unwrap();
            assert_eq!(read_answer(response, |_| Ok(())).1, usage, "{status}");
        }
    }
}
