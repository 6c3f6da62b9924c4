//! Counters, durations and gauges, as the crates of this workspace use them.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::error::ErrorKind;

/// Bounds of durations, in seconds: from a cached answer to the slowest model.
const SECONDS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

/// A family of counters. Its metrics count nothing if the name is taken by a metric of another form.
#[derive(Debug)]
pub struct Counters(Option<IntCounterVec>);

/// A family of histograms of durations.
#[derive(Debug)]
pub struct Durations(Option<HistogramVec>);

/// One counter. Counting is one atomic operation.
#[derive(Debug, Clone, Default)]
pub struct Counter(Option<IntCounter>);

/// One histogram of durations.
#[derive(Debug, Clone, Default)]
pub struct Spent(Option<Histogram>);

/// Registers a family, unless the name is taken.
fn registered<C: Collector + Clone + 'static>(family: prometheus::Result<C>) -> Option<C> {
    let family = family.and_then(|family| prometheus::register(Box::new(family.clone())).map(|()| family));
    family.map_err(|error| tracing::error!(%error, "metrics are not counted")).ok()
}

impl Counters {
    /// Registers a family of counters.
    pub fn new(name: &str, help: &str, labels: &[&str]) -> Self {
        Self(registered(IntCounterVec::new(Opts::new(name, help), labels)))
    }

    /// The counter with these values of the labels.
    pub fn with(&self, values: &[&str]) -> Counter {
        Counter(self.0.as_ref().and_then(|family| family.get_metric_with_label_values(values).ok()))
    }
}

impl Durations {
    /// Registers a family of histograms.
    pub fn new(name: &str, help: &str, labels: &[&str]) -> Self {
        let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
        Self(registered(HistogramVec::new(options, labels)))
    }

    /// The histogram with these values of the labels.
    pub fn with(&self, values: &[&str]) -> Spent {
        Spent(self.0.as_ref().and_then(|family| family.get_metric_with_label_values(values).ok()))
    }
}

impl Counter {
    /// Counts one more.
    pub fn count(&self) {
        self.add(1);
    }

    /// Counts this many more.
    pub fn add(&self, many: u64) {
        if let Some(counter) = &self.0 {
            counter.inc_by(many);
        }
    }
}

impl Spent {
    /// Counts a duration.
    pub fn count(&self, time: Duration) {
        if let Some(histogram) = &self.0 {
            histogram.observe(time.as_secs_f64());
        }
    }
}

/// The outcome of work: `ok`, or the code of an error.
pub fn outcome<T>(result: Result<T, ErrorKind>) -> &'static str {
    result.map_or_else(ErrorKind::code, |_| "ok")
}

/// Gauges that are read from their sources whenever the page is written, so that they cost nothing in between.
pub struct Gauges<S: ?Sized>(Arc<Sources<S>>);

struct Sources<S: ?Sized> {
    families: Vec<IntGaugeVec>,
    sources: Mutex<Vec<Weak<S>>>,
    /// Held while the sources are read: one page at a time.
    reading: Mutex<()>,
    read: fn(&S, &[IntGaugeVec]),
}

impl<S: Send + Sync + ?Sized + 'static> Gauges<S> {
    /// Registers gauges, each by its name, help and labels. `read` adds the values of one source.
    pub fn new(gauges: &[(&str, &str, &[&str])], read: fn(&S, &[IntGaugeVec])) -> Self {
        let family =
            |(name, help, labels): &(&str, &str, &[&str])| IntGaugeVec::new(Opts::new(*name, *help), labels);
        let families = gauges.iter().flat_map(family).collect();
        let (sources, reading) = (Mutex::default(), Mutex::default());
        let gauges = Self(Arc::new(Sources { families, sources, reading, read }));
        let collector = Box::new(Self(gauges.0.clone()));
        if let Err(error) = prometheus::register(collector) {
            tracing::error!(%error, "gauges are not read");
        }
        gauges
    }

    /// Adds a source, until it is dropped.
    pub fn add(&self, source: &Arc<S>) {
        let mut sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.len() == sources.capacity() {
            sources.retain(|source| source.strong_count() > 0);
        }
        sources.push(Arc::downgrade(source));
    }
}

impl<S: Send + Sync + ?Sized + 'static> Collector for Gauges<S> {
    fn desc(&self) -> Vec<&Desc> {
        self.0.families.iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Sources { families, reading, read, .. } = &*self.0;
        let _turn = reading.lock().unwrap_or_else(PoisonError::into_inner);
        // Read without the lock on the sources, since the last reference to one may be dropped here.
        let sources: Vec<_> = {
            let sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
            sources.iter().filter_map(Weak::upgrade).collect()
        };
        families.iter().for_each(IntGaugeVec::reset);
        for source in sources {
            read(&source, families);
        }
        families.iter().flat_map(Collector::collect).collect()
    }
}

impl<S: ?Sized> fmt::Debug for Gauges<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gauges").finish_non_exhaustive()
    }
}
