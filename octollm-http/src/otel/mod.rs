//! The export of traces to OpenTelemetry, over OTLP/HTTP.
//!
//! A program adds the layer of an [`Exporter`] to its subscriber. The spans of servers, arms, calls and tasks are exported, those that
//! the program makes itself, and the log lines within them. A trace goes on in other processes: the context of the exported span
//! is sent in `traceparent`, and that of the caller is its parent.
//!
//! ```no_run
//! use octollm_http::{Server, otel::Exporter};
//! use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};
//!
//! # async fn run(server: Server) -> Result<(), Box<dyn std::error::Error>> {
//! let exporter = Exporter::from_env("judge")?; // OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318
//! tracing_subscriber::registry().with(exporter.layer()).init(); // with further layers, such as that of a log
//! server.serve("127.0.0.1:8103").await?;
//! # Ok(()) } // here the exporter is dropped, and sends what is left
//! ```
//!
//! A call does not wait for the export. While the collector is away, at most `max_queue` spans are held, and further ones are
//! lost: they are counted as `octollm_spans_lost_total`, and a warning is logged at most once a minute.
// A module uses only what stands before it here.
mod parents;
mod conventions;
mod sending;

use std::{env, fmt, sync::Arc, time::Duration};

use octollm_core::error::ConfigError;
use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{Protocol, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider},
};
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{Layer, Registry, layer::SubscriberExt, registry::LookupSpan};

use self::sending::{Bounded, Client, Conventional, Queue};
use crate::client::ServiceUrl;

/// Exports spans for as long as it lives. When it is dropped, it sends those that wait.
#[must_use = "spans are exported for as long as the exporter lives"]
pub struct Exporter {
    /// `None` where the environment turns the export off.
    provider: Option<SdkTracerProvider>,
    queue: Arc<Queue>,
    flush_timeout: Duration,
}

impl Exporter {
    /// An exporter that is configured by the environment. The name of the service is that of `OTEL_SERVICE_NAME`, if that is set.
    ///
    /// It reads `OTEL_EXPORTER_OTLP_ENDPOINT` (default `http://localhost:4318`), `_HEADERS` and `_TIMEOUT`, the same with
    /// `_TRACES_`, `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_BSP_MAX_QUEUE_SIZE`,
    /// `OTEL_BSP_MAX_EXPORT_BATCH_SIZE` and `OTEL_BSP_SCHEDULE_DELAY`. With `OTEL_SDK_DISABLED=true` or `OTEL_TRACES_EXPORTER=none`
    /// nothing is exported.
    ///
    /// # Errors
    /// A variable is invalid, or the protocol is another than `http/protobuf`.
    pub fn from_env(service: impl Into<String>) -> Result<Self, ConfigError> {
        Self::builder(service).build()
    }

    /// Builds an exporter whose settings replace those of the environment.
    pub fn builder(service: impl Into<String>) -> ExporterBuilder {
        ExporterBuilder {
            service: service.into(),
            endpoint: None,
            sampled: None,
            max_queue: None,
            flush_timeout: Duration::from_secs(5),
        }
    }

    /// The layer that exports spans, and the log lines within them, from the level `info` on. Another filter can be set around it.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let provider = self.provider.as_ref()?;
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("octollm"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false);
        Some(layer.with_filter(LevelFilter::INFO))
    }

    /// Installs a subscriber for the whole program that exports spans and logs nothing.
    ///
    /// ```standalone_crate
    /// # use octollm_http::otel::Exporter;
    /// # fn main() -> Result<(), octollm_core::error::ConfigError> {
    /// let exporter = Exporter::builder("judge").endpoint("http://127.0.0.1:4318").build()?;
    /// exporter.install()?;
    /// assert!(exporter.install().is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The program has a subscriber already: add [`layer`](Self::layer) to that.
    pub fn install(&self) -> Result<(), ConfigError> {
        let subscriber = Registry::default().with(self.layer());
        tracing::subscriber::set_global_default(subscriber).map_err(|_| {
            ConfigError::new("otel", "cannot be installed, since there is a subscriber: add `layer()` to it")
        })
    }

    /// Sends the spans that have ended, and returns whether that succeeded. It blocks the thread, for at most 5 s.
    pub fn flush(&self) -> bool {
        self.provider.as_ref().is_none_or(|provider| provider.force_flush().is_ok())
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider {
            let ended = provider.shutdown_with_timeout(self.flush_timeout);
            self.queue.close(ended.err());
        }
    }
}

/// Builds an [`Exporter`]: see [`Exporter::builder`].
#[derive(Debug)]
#[must_use = "a builder does nothing until it builds"]
pub struct ExporterBuilder {
    service: String,
    endpoint: Option<String>,
    sampled: Option<f64>,
    max_queue: Option<usize>,
    flush_timeout: Duration,
}

impl ExporterBuilder {
    /// Sets the URL of the collector, below which `/v1/traces` is.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = Some(url.into());
        self
    }

    /// Sets the share of traces that are exported, from 0 to 1 (default 1), where the caller has not decided it for its trace.
    pub fn sampled(mut self, share: f64) -> Self {
        self.sampled = Some(share);
        self
    }

    /// Sets how many spans may wait for the export, from 1 to 1 000 000 (default 2 048).
    pub fn max_queue(mut self, spans: usize) -> Self {
        self.max_queue = Some(spans);
        self
    }

    /// Sets how long the drop of the exporter may wait for the collector, at most 5 min (default 5 s).
    pub fn flush_timeout(mut self, time: Duration) -> Self {
        self.flush_timeout = time;
        self
    }

    /// Builds the exporter, and starts its thread.
    ///
    /// # Errors
    /// A setting or a variable of the environment is invalid.
    pub fn build(self) -> Result<Exporter, ConfigError> {
        parents::connect();
        let max_queue = self.queue_limit()?;
        if self.flush_timeout > Duration::from_secs(300) {
            return Err(ConfigError::new("flush_timeout", "is above 5 min"));
        }
        let queue = Arc::new(Queue::new(max_queue));
        let flush_timeout = self.flush_timeout;
        let provider = if is_disabled() { None } else { Some(self.provider(max_queue, &queue)?) };
        Ok(Exporter { provider, queue, flush_timeout })
    }

    fn queue_limit(&self) -> Result<usize, ConfigError> {
        const NAME: &str = "OTEL_BSP_MAX_QUEUE_SIZE";
        let (setting, spans) = match (self.max_queue, variable(NAME)) {
            (Some(spans), _) => ("max_queue", Some(spans)),
            (None, Some(text)) => (NAME, text.parse().ok()),
            (None, None) => (NAME, Some(2_048)),
        };
        spans
            .filter(|spans| (1..=1_000_000).contains(spans))
            .ok_or_else(|| ConfigError::new(setting, "is no number from 1 to 1000000"))
    }

    fn provider(self, max_queue: usize, queue: &Arc<Queue>) -> Result<SdkTracerProvider, ConfigError> {
        let exporter = Conventional::new(self.exporter(queue)?, queue.clone());
        // It never holds more than the queue admits.
        let batches = BatchConfigBuilder::default().with_max_queue_size(max_queue).build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource(self.service))
            .with_span_processor(Bounded::new(processor, queue.clone()));
        let provider = match self.sampled {
            Some(share) if (0.0..=1.0).contains(&share) => {
                provider.with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))))
            }
            Some(_) => return Err(ConfigError::new("sampled", "is no share from 0 to 1")),
            None => {
                check_sampler()?;
                provider
            }
        };
        Ok(provider.build())
    }

    fn exporter(&self, queue: &Arc<Queue>) -> Result<SpanExporter, ConfigError> {
        const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
        let timeout = timeout()?;
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client::new(timeout, queue.clone())?)
            .with_protocol(Protocol::HttpBinary)
            .with_retry_policy(RetryPolicy::recommended())
            .with_timeout(timeout);
        match &self.endpoint {
            Some(url) => {
                check_url("endpoint", url)?;
                exporter = exporter.with_endpoint(format!("{}/v1/traces", url.trim_end_matches('/')));
            }
            None => {
                for name in ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"] {
                    variable(name).map_or(Ok(()), |url| check_url(name, &url))?;
                }
            }
        }
        for name in PROTOCOLS {
            if variable(name).is_some_and(|protocol| protocol != "http/protobuf") {
                return Err(ConfigError::new(name, "is not http/protobuf, which is what octollm sends"));
            }
        }
        exporter.build().map_err(|error| ConfigError::new("otel", error.to_string()))
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").field("exports", &self.provider.is_some()).finish_non_exhaustive()
    }
}

/// The value of a variable. An empty one is as good as none.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn is_disabled() -> bool {
    let is = |name: &str, value: &str| variable(name).is_some_and(|set| set.eq_ignore_ascii_case(value));
    is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none")
}

fn check_url(setting: &'static str, url: &str) -> Result<(), ConfigError> {
    ServiceUrl::parse(url).map(drop).map_err(|problem| ConfigError::new(setting, problem))
}

/// The time for one export.
fn timeout() -> Result<Duration, ConfigError> {
    for name in ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"] {
        if let Some(text) = variable(name) {
            let milliseconds = text.parse().ok().filter(|time| (1..=300_000).contains(time));
            return milliseconds
                .map(Duration::from_millis)
                .ok_or_else(|| ConfigError::new(name, "is no number of milliseconds from 1 to 300000"));
        }
    }
    Ok(Duration::from_secs(10))
}

/// Refuses a sampler that the SDK would replace by another one.
fn check_sampler() -> Result<(), ConfigError> {
    let (name, argument) = ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG");
    match variable(name).as_deref() {
        None | Some("always_on" | "always_off" | "parentbased_always_on" | "parentbased_always_off") => {
            Ok(())
        }
        Some("traceidratio" | "parentbased_traceidratio") => {
            let share: Option<f64> = variable(argument).map_or(Some(1.0), |text| text.parse().ok());
            let is_share = share.is_some_and(|share| (0.0..=1.0).contains(&share));
            if is_share { Ok(()) } else { Err(ConfigError::new(argument, "is no share from 0 to 1")) }
        }
        Some(_) => Err(ConfigError::new(name, "is no sampler that is supported")),
    }
}

fn resource(service: String) -> Resource {
    let attributes = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let is_named = variable("OTEL_SERVICE_NAME").is_some()
        || attributes.split(',').any(|pair| pair.trim_start().starts_with("service.name="));
    let resource = Resource::builder();
    if is_named {
        return resource.build();
    }
    resource.with_attribute(KeyValue::new("service.name", service)).build()
}
