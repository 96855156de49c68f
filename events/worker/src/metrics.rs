//! The metrics of a worker, as `/metrics` shows them.
//!
//! Each worker declares its metrics once, with a description, and creates those whose labels are known at the start. A
//! counter that appears only with its first event hides that event from Prometheus' `increase`.

use std::sync::OnceLock;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// A label and the values that it can have. They are few, and none of them comes from a player.
pub type Label = (&'static str, &'static [&'static str]);

/// A metric and what it measures.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    /// `None` if the values of a label are known only later. The code that knows them creates the metric.
    labels: Option<&'static [Label]>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter,
    /// Not created at the start: there is no value yet.
    Gauge,
    Histogram,
}

impl Metric {
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Counter, labels: Some(&[]) }
    }

    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Gauge, labels: None }
    }

    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Histogram, labels: Some(&[]) }
    }

    /// The values that its labels can have.
    #[must_use]
    pub const fn with(self, labels: &'static [Label]) -> Self {
        Self { labels: Some(labels), ..self }
    }

    /// Its labels are known only later.
    #[must_use]
    pub const fn with_later_labels(self) -> Self {
        Self { labels: None, ..self }
    }

    fn register(&self) {
        match self.kind {
            Kind::Counter => metrics::describe_counter!(self.name, self.help),
            Kind::Gauge => metrics::describe_gauge!(self.name, self.help),
            Kind::Histogram => metrics::describe_histogram!(self.name, self.help),
        }
        for labels in self.labels.map(combinations).unwrap_or_default() {
            match self.kind {
                Kind::Counter => metrics::counter!(self.name, &labels).increment(0),
                Kind::Gauge => {}
                Kind::Histogram => drop(metrics::histogram!(self.name, &labels)),
            }
        }
    }
}

/// All combinations of the labels' values.
fn combinations(labels: &[Label]) -> Vec<Vec<(&'static str, &'static str)>> {
    labels.iter().fold(vec![Vec::new()], |combinations, (label, values)| {
        let extended = combinations.iter().flat_map(|combination| {
            values.iter().map(move |value| combination.iter().copied().chain([(*label, *value)]).collect())
        });
        extended.collect()
    })
}

/// Describes the metrics, and creates those whose labels are known.
pub fn register(metrics: &[Metric]) {
    metrics.iter().for_each(Metric::register);
}

/// The metrics of every worker.
pub(crate) const COMMON: [Metric; 11] = [
    Metric::gauge("garage_log_trouble", "1 if the log is full or stores nothing, otherwise 0"),
    Metric::gauge("garage_worker_ready", "1 if /readyz answers 200, otherwise 0"),
    Metric::counter("garage_reactions_total", "tries to handle a message").with_later_labels(),
    Metric::histogram("garage_reaction_seconds", "time from the delivery of a message to its acknowledgement")
        .with_later_labels(),
    Metric::counter("garage_consumers_made_again_total", "consumers that had stopped, and were created again")
        .with_later_labels(),
    Metric::counter("garage_readers_created_total", "consumers created to read a stream in order").with_later_labels(),
    Metric::counter("garage_readers_silent_total", "reads of a stream that NATS had stopped serving")
        .with_later_labels(),
    Metric::histogram("garage_append_seconds", "time from a decision to its outcome")
        .with(&[("outcome", &["stored", "conflict", "unavailable", "full", "busy", "refused"])]),
    Metric::gauge("garage_append_waiting", "decisions that wait for their outcome"),
    Metric::counter("garage_requests_refused_total", "requests of other workers refused because too many wait")
        .with(&[("reason", &["full", "late", "player"])]),
    Metric::gauge("garage_lease_held", "1 on the instance that leads, 0 on the others"),
];

/// Upper bounds in seconds for work inside Garage: from one message to NATS up to the longest time-out of a request.
const WORK: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Upper bounds in seconds for what a player waits for: from a process that starts at once up to the time-out of a
/// ticket or of the last attempt.
const WAITS: [f64; 14] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 90.0, 120.0, 180.0];

/// The histograms with the bounds [`WAITS`]. The others have the bounds [`WORK`].
const WAITED_FOR: [&str; 3] =
    ["garage_queue_wait_seconds", "garage_session_step_seconds", "garage_session_start_seconds"];

/// The recorder of the process. In tests several workers share a process and so the recorder. Someone must call
/// [`PrometheusHandle::run_upkeep`] from time to time: until then, it keeps each measurement.
pub(crate) fn recorder() -> anyhow::Result<PrometheusHandle> {
    static RECORDER: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();
    let handle = RECORDER.get_or_init(|| install().map_err(|error| error.to_string()));
    handle.clone().map_err(|error| anyhow::anyhow!("cannot install the metrics recorder: {error}"))
}

fn install() -> Result<PrometheusHandle, BuildError> {
    builder()?.install_recorder()
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    let builder = PrometheusBuilder::new().set_buckets(&WORK)?;
    let waits =
        |builder: PrometheusBuilder, name: &str| builder.set_buckets_for_metric(Matcher::Full(name.into()), &WAITS);
    WAITED_FOR.into_iter().try_fold(builder, waits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_created_for_all_values_of_its_labels() {
        assert_eq!(combinations(&[]), [[]]);
        let labels: [Label; 2] = [("consumer", &["a", "b"]), ("outcome", &["done"])];
        let expected = ["a", "b"].map(|consumer| [("consumer", consumer), ("outcome", "done")]);
        assert_eq!(combinations(&labels), expected);
    }

    #[test]
    fn metrics_appear_before_their_first_event_with_the_buckets_of_their_kind() {
        let recorder = builder().unwrap().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            register(&[
                Metric::counter("a_total", "an a"),
                Metric::histogram("garage_append_seconds", "an append").with(&[("outcome", &["stored"])]),
                Metric::histogram("garage_queue_wait_seconds", "a wait"),
            ]);
        });
        let text = handle.render();
        for line in [
            "# HELP a_total an a",
            "a_total 0",
            r#"garage_append_seconds_bucket{outcome="stored",le="0.001"} 0"#,
            r#"garage_append_seconds_count{outcome="stored"} 0"#,
            r#"garage_queue_wait_seconds_bucket{le="180"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
