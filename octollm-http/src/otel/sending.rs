//! The way of spans from where they end to the collector: a queue with a limit, and the requests.

use std::{
    fmt,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use octollm_core::{
    __private::{Counter, Counters},
    deadline::Deadline,
    error::ConfigError,
};
use opentelemetry::Context;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor},
};
use tokio::{
    runtime::{Builder, Runtime},
    time::Instant,
};

use super::conventions;
use crate::client::{ExchangeLimits, Exchanger, Requests};

static EXPORTED: LazyLock<Counter> = LazyLock::new(|| {
    let help = "Spans that a collector has received.";
    Counters::new("octollm_spans_exported_total", help, &[]).with(&[])
});
static LOST: LazyLock<Counter> = LazyLock::new(|| {
    let help = "Spans that no collector has received: the queue was full, or the export has failed.";
    Counters::new("octollm_spans_lost_total", help, &[]).with(&[])
});

/// How often a loss is logged.
const PAUSE: Duration = Duration::from_secs(60);

/// The spans that wait, and those that were lost.
#[derive(Debug)]
pub(super) struct Queue {
    limit: usize,
    waiting: AtomicUsize,
    /// Lost since the last line of the log.
    lost: AtomicUsize,
    logged: Mutex<Option<Instant>>,
    /// Why the last request failed, of which the SDK says nothing.
    reason: Mutex<Option<String>>,
}

impl Queue {
    pub(super) fn new(limit: usize) -> Self {
        let (waiting, lost) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { limit, waiting, lost, logged: Mutex::new(None), reason: Mutex::new(None) }
    }

    /// Takes a place for a span. Where there is none the span is lost.
    fn enter(&self) -> bool {
        if self.waiting.fetch_add(1, Ordering::AcqRel) < self.limit {
            return true;
        }
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        self.lose(1);
        false
    }

    fn leave(&self, spans: usize) {
        self.waiting.fetch_sub(spans, Ordering::AcqRel);
    }

    fn lose(&self, spans: usize) {
        self.lost.fetch_add(spans, Ordering::AcqRel);
        LOST.add(spans as u64);
    }

    /// Logs what was lost since the last time, unless that was a moment ago.
    fn report(&self, error: Option<&OTelSdkError>) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|logged| logged.elapsed() >= PAUSE) && self.log(error) {
            *logged = Some(Instant::now());
        }
    }

    fn log(&self, error: Option<&OTelSdkError>) -> bool {
        let spans = self.lost.swap(0, Ordering::AcqRel);
        if spans > 0 {
            let error = error.map(tracing::field::display);
            let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner).take();
            tracing::warn!(spans, error, reason, "spans were lost on the way to the collector");
        }
        spans > 0
    }

    /// The end of the export: what still waits is lost.
    pub(super) fn close(&self, error: Option<OTelSdkError>) {
        self.lose(self.waiting.swap(0, Ordering::AcqRel));
        self.log(error.as_ref());
    }
}

/// Admits spans to the batches, up to the limit of the queue. It never waits.
#[derive(Debug)]
pub(super) struct Bounded {
    batches: BatchSpanProcessor,
    queue: Arc<Queue>,
}

impl Bounded {
    pub(super) fn new(batches: BatchSpanProcessor, queue: Arc<Queue>) -> Self {
        Self { batches, queue }
    }
}

impl SpanProcessor for Bounded {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.queue.enter() {
            self.batches.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Exports spans under the names of the semantic conventions.
#[derive(Debug)]
pub(super) struct Conventional {
    exporter: opentelemetry_otlp::SpanExporter,
    queue: Arc<Queue>,
}

impl Conventional {
    pub(super) fn new(exporter: opentelemetry_otlp::SpanExporter, queue: Arc<Queue>) -> Self {
        Self { exporter, queue }
    }
}

impl SpanExporter for Conventional {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.queue.leave(batch.len());
        let batch: Vec<_> = batch.into_iter().filter_map(conventions::exported).collect();
        let spans = batch.len();
        if spans == 0 {
            return Ok(());
        }
        let sent = self.exporter.export(batch).await;
        match &sent {
            Ok(()) => EXPORTED.add(spans as u64),
            Err(_) => self.queue.lose(spans),
        }
        self.queue.report(sent.as_ref().err());
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Sends the requests, over the connections that the clients of arms use too.
pub(super) struct Client {
    exchanger: Exchanger,
    /// The thread of the batches has none. It is made at the first request.
    runtime: Mutex<Option<Runtime>>,
    name: Arc<str>,
    timeout: Duration,
    queue: Arc<Queue>,
}

impl Client {
    /// # Errors
    /// The limits of the client are out of range.
    pub(super) fn new(timeout: Duration, queue: Arc<Queue>) -> Result<Self, ConfigError> {
        let exchanger = Requests::default().build()?;
        Ok(Self { exchanger, runtime: Mutex::new(None), name: "otlp".into(), timeout, queue })
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        let runtime = match &mut *runtime {
            Some(runtime) => runtime,
            none => none.insert(Builder::new_current_thread().enable_all().build()?),
        };
        let limits = ExchangeLimits { deadline: Some(Deadline::after(self.timeout)), work: self.timeout };
        Ok(runtime.block_on(self.exchanger.send_plain(request, &self.name, limits))?)
    }
}

#[async_trait]
impl HttpClient for Client {
    // Called on the thread of the batches, which has nothing else to do.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        self.send(request).inspect_err(|error| {
            let reason = match error.source() {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            };
            *self.queue.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let runtime = self.runtime.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = runtime.take() {
            // A runtime that is dropped within another one panics.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
