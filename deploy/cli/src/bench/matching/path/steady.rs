//! How long a match takes when pairs arrive at a steady rate.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures::future::try_join;
use tokio::{task::JoinSet, time::sleep_until};

use super::{
    events::{Writer, pair_skill},
    stage::{By, Stage},
    watch::{Watch, within_limit},
};
use crate::report::percentile;

/// If the load generator is later than this, the results are doubtful. Its timer has a resolution of 1 ms.
const MAX_LATE_MS: f64 = 10.0;

/// Pairs that arrive at a steady rate, however long their matches take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Pairs per second.
    pub(super) rate: u32,
    pub(super) seconds: u32,
}

/// The result of a measurement. All times are in milliseconds, in ascending order.
#[derive(Debug)]
pub(super) struct Steady {
    /// From the time when both tickets of a pair are stored until both matched players are received.
    latencies: Vec<f64>,
    /// How late the load generator began to append a pair.
    late: Vec<f64>,
}

impl Steady {
    fn new(mut latencies: Vec<f64>, mut late: Vec<f64>) -> Self {
        latencies.sort_by(f64::total_cmp);
        late.sort_by(f64::total_cmp);
        Self { latencies, late }
    }

    /// The median latency.
    pub(super) fn p50(&self) -> f64 {
        percentile(&self.latencies, 0.5).unwrap_or(f64::NAN)
    }

    /// The 99th percentile of the latencies.
    pub(super) fn p99(&self) -> f64 {
        percentile(&self.latencies, 0.99).unwrap_or(f64::NAN)
    }

    /// The 99th percentile of the load generator's delays.
    pub(super) fn late_p99(&self) -> f64 {
        percentile(&self.late, 0.99).unwrap_or(f64::NAN)
    }

    /// A warning if the load generator did not keep up with its rate.
    pub(super) fn behind(&self, name: &str) -> Option<String> {
        let most = self.late.last().copied().unwrap_or_default();
        (self.late_p99() > MAX_LATE_MS).then(|| {
            format!("The load generator fell behind, by up to {most:.0} ms, so the load was not steady: {name}")
        })
    }
}

impl Load {
    /// Measures the latency of each pair. `name` must be new.
    pub(super) async fn measure(self, stage: &mut Stage, by: By, name: &str) -> anyhow::Result<Steady> {
        let watch = stage.watch(name, self.pairs()).await?;
        let writing = self.write(stage.writer(by), name.into());
        let ((stored, late), received) = stage.run(try_join(writing, matches(watch))).await?;
        let millis = |took: Duration| took.as_secs_f64() * 1_000.0;
        // A match may arrive before the answer to the second ticket.
        let latencies = stored.into_iter().zip(received).map(|(stored, received)| {
            let (stored, received) = stored.zip(received).context("a pair was not matched")?;
            anyhow::Ok(millis(received.saturating_duration_since(stored)))
        });
        Ok(Steady::new(latencies.collect::<anyhow::Result<_>>()?, late.into_iter().map(millis).collect()))
    }

    fn pairs(self) -> u32 {
        self.rate * self.seconds
    }

    /// When a pair arrives, after the start.
    fn due(self, pair: u32) -> Duration {
        Duration::from_nanos(1_000_000_000 * u64::from(pair) / u64::from(self.rate))
    }

    /// Appends each pair at its time, without waiting for the pairs before. Returns when both tickets of each pair were
    /// stored, and how late each pair was.
    async fn write(self, writer: Writer, load: Arc<str>) -> anyhow::Result<(Vec<Option<Instant>>, Vec<Duration>)> {
        let began = Instant::now();
        let (mut writing, mut late) = (JoinSet::new(), Vec::new());
        let mut stored = vec![None; usize::try_from(self.pairs())?];
        for pair in 0..self.pairs() {
            let due = began + self.due(pair);
            sleep_until(due.into()).await;
            late.push(due.elapsed());
            let (writer, load) = (writer.clone(), Arc::clone(&load));
            writing.spawn(async move { anyhow::Ok((pair, writer.write(load, pair, [pair_skill(pair); 2]).await?)) });
            while let Some(written) = writing.try_join_next() {
                note(&mut stored, written??)?;
            }
        }
        while let Some(written) = writing.join_next().await {
            note(&mut stored, written??)?;
        }
        Ok((stored, late))
    }
}

fn note(times: &mut [Option<Instant>], (pair, at): (u32, Instant)) -> anyhow::Result<()> {
    *times.get_mut(usize::try_from(pair)?).context("there is no such pair")? = Some(at);
    Ok(())
}

/// When the matches of a load were received. A task of its own reads the log, so that another core can do it.
async fn matches(mut watch: Watch) -> anyhow::Result<Vec<Option<Instant>>> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut received = vec![None; watch.pairs()];
        while let Some(complete) = within_limit(watch.next()).await? {
            if let Some(at) = received.get_mut(complete.pair) {
                *at = Some(complete.received);
            }
        }
        anyhow::Ok(received)
    });
    tasks.join_next().await.context("no task")??
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_arrive_evenly() {
        let load = Load { rate: 500, seconds: 20 };
        assert_eq!(load.pairs(), 10_000);
        assert_eq!([0, 1, 500, 9_999].map(|pair| load.due(pair).as_millis()), [0, 2, 1_000, 19_998]);
    }

    #[test]
    fn a_load_generator_that_falls_behind_is_reported() {
        let punctual = Steady::new(vec![2.0, 1.0, 3.0], vec![0.5, 1.0]);
        assert_eq!((punctual.p50(), punctual.p99(), punctual.behind("")), (2.0, 3.0, None));
        let late = Steady::new(vec![1.0], vec![0.5, 80.0, 90.0]);
        assert!(late.behind("a matchmaker").unwrap().contains("by up to 90 ms"));
    }
}
