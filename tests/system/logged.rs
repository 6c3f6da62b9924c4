//! What was logged, as a subscriber receives it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{
    Layer, Registry,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

type Fields = BTreeMap<String, String>;

/// One event.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) target: String,
    pub(crate) level: Level,
    pub(crate) message: String,
    /// Fields of the event.
    pub(crate) own: Fields,
    /// Those of the event and of all spans around it; of two with one name the inner one.
    pub(crate) all: Fields,
    /// Names of the spans around it, from the outermost.
    pub(crate) spans: Vec<&'static str>,
}

/// Everything that is logged on this thread for as long as it lives.
pub(crate) struct Log {
    lines: Lines,
    _guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<Line>>>);

impl Log {
    pub(crate) fn start() -> Self {
        let lines = Lines::default();
        let subscriber = Registry::default().with(lines.clone());
        Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// The same, on a thread whose spans are exported too.
    #[cfg(feature = "otel")]
    pub(crate) fn beside(exporter: &octollm::otel::Exporter) -> Self {
        let lines = Lines::default();
        let subscriber = Registry::default().with(lines.clone()).with(exporter.layer());
        Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    pub(crate) fn lines(&self) -> Vec<Line> {
        self.lines.0.lock().unwrap().clone()
    }

    pub(crate) fn of(&self, target: &str) -> Vec<Line> {
        self.lines().into_iter().filter(|line| line.target == target).collect()
    }

    /// The lines with this message.
    pub(crate) fn said(&self, message: &str) -> Vec<Line> {
        self.lines().into_iter().filter(|line| line.message == message).collect()
    }
}

struct Reads<'a>(&'a mut Fields);

impl Visit for Reads<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, cx: Context<'_, S>) {
        let mut fields = Fields::new();
        attributes.record(&mut Reads(&mut fields));
        cx.span(id).unwrap().extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, cx: Context<'_, S>) {
        let span = cx.span(id).unwrap();
        let mut extensions = span.extensions_mut();
        values.record(&mut Reads(extensions.get_mut().unwrap()));
    }

    fn on_event(&self, event: &Event<'_>, cx: Context<'_, S>) {
        let (mut own, mut all, mut spans) = (Fields::new(), Fields::new(), Vec::new());
        event.record(&mut Reads(&mut own));
        for span in cx.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            spans.push(span.name());
            all.extend(span.extensions().get::<Fields>().unwrap().clone());
        }
        let message = own.remove("message").unwrap_or_default();
        all.extend(own.clone());
        let (target, level) = (event.metadata().target().to_owned(), *event.metadata().level());
        self.0.lock().unwrap().push(Line { target, level, message, own, all, spans });
    }
}
