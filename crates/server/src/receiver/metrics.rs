//! What the receiver counts, in the text form that Prometheus reads.

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

type Label = [(&'static str, &'static str); 1];

/// The counters. Cheap to change from any thread.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    decisions: Family<Label, Counter>,
    uploads: Family<Label, Counter>,
    pub(crate) bytes: Counter,
    pub(crate) connections: Gauge,
    pub(crate) upload_seconds: Histogram,
    known: Gauge,
    age: Gauge<f64, std::sync::atomic::AtomicU64>,
    reads: Gauge,
    failures: Gauge,
    episodes: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("cutover_gate");
        let decisions = Family::default();
        registry.register("decisions", "Decisions over commits, by outcome", decisions.clone());
        let uploads = Family::default();
        registry.register("uploads", "Answered uploads, by status", uploads.clone());
        let bytes = Counter::default();
        registry.register_with_unit("received", "Bytes of bodies taken in", Unit::Bytes, bytes.clone());
        let connections = Gauge::default();
        registry.register("connections", "Open connections", connections.clone());
        let upload_seconds =
            Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0]);
        registry.register_with_unit(
            "upload_duration",
            "From the head of an admitted upload to its durable row",
            Unit::Seconds,
            upload_seconds.clone(),
        );
        let known = Gauge::default();
        registry.register("known_commits", "Accepted commits known", known.clone());
        let age = Gauge::default();
        registry.register_with_unit(
            "known_commits_age",
            "Age of the set of accepted commits",
            Unit::Seconds,
            age.clone(),
        );
        let reads = Gauge::default();
        registry.register("source_reads", "How often the accepted commits were read", reads.clone());
        let failures = Gauge::default();
        registry.register("source_failures", "How often reading them failed", failures.clone());
        let episodes = Gauge::default();
        registry.register("episodes", "Episodes in the index", episodes.clone());
        Self {
            registry,
            decisions,
            uploads,
            bytes,
            connections,
            upload_seconds,
            known,
            age,
            reads,
            failures,
            episodes,
        }
    }

    pub(crate) fn decision(&self, outcome: &'static str) {
        self.decisions.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(crate) fn upload(&self, status: &'static str) {
        self.uploads.get_or_create(&[("status", status)]).inc();
    }

    /// The page, with what is known at the moment.
    pub(crate) fn text(&self, status: &crate::gate::Status, episodes: usize) -> String {
        self.known.set(status.known.as_ref().map_or(0, |known| count(known.len())));
        self.age.set(status.age.map_or(-1.0, |age| age.as_secs_f64()));
        self.reads.set(i64::try_from(status.reads).unwrap_or(i64::MAX));
        self.failures.set(i64::try_from(status.failures).unwrap_or(i64::MAX));
        self.episodes.set(count(episodes));
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
