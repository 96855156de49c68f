//! The writer alone, which is the limit. It is measured in several ways, because the fastest depends on the machine.

use super::{
    Options,
    burst::Burst,
    results::Repeated,
    stage::{By, Connections, Stage},
    steady::{Load, Steady},
};
use crate::bench::sample::median;

/// Numbers of pairs that are written at the same time in a burst.
const PAIRS_IN_PROGRESS: [usize; 4] = [250, 500, 1_000, 2_000];

/// The results of the writer alone in each way.
#[derive(Debug)]
pub(super) struct Limits {
    bursts: Vec<(Connections, Burst, Vec<f64>)>,
    load: Load,
    steady: Vec<(Connections, Vec<Steady>)>,
}

/// The results in the fastest way.
#[derive(Debug, Default)]
pub(super) struct Limit {
    pub(super) results: Repeated,
    /// Describes the way of the bursts.
    pub(super) burst_way: String,
    /// Describes the way of the steady load.
    pub(super) steady_way: String,
}

impl Limits {
    /// Without results.
    pub(super) fn new(options: &Options) -> Self {
        let burst = |in_progress| Burst { pairs: options.pairs, in_progress };
        let bursts = |connections| PAIRS_IN_PROGRESS.map(|in_progress| (connections, burst(in_progress), Vec::new()));
        Self {
            bursts: Connections::ALL.into_iter().flat_map(bursts).collect(),
            load: options.load(),
            steady: Connections::ALL.map(|connections| (connections, Vec::new())).into(),
        }
    }

    /// Measures each way once. No matchmaker may run.
    pub(super) async fn measure(&mut self, stage: &mut Stage, run: u8) -> anyhow::Result<()> {
        for (connections, burst, rates) in &mut self.bursts {
            let name = format!("alone-{}-{}-{run}", connections.name(), burst.in_progress);
            rates.push(burst.measure(stage, By::Writer(*connections), &name).await?);
        }
        for (connections, measured) in &mut self.steady {
            let name = format!("alone-{}-steady-{run}", connections.name());
            measured.push(self.load.measure(stage, By::Writer(*connections), &name).await?);
        }
        Ok(())
    }

    /// The way with the highest rate, and the way with the lowest median latency.
    pub(super) fn best(self) -> Limit {
        let mut limit = Limit::default();
        let fastest = self.bursts.into_iter().max_by(|(.., a), (.., b)| median(a).total_cmp(&median(b)));
        if let Some((connections, burst, rates)) = fastest {
            limit.burst_way = format!("{} pairs in progress, {}", burst.in_progress, connections.describe());
            limit.results.bursts = rates;
        }
        let latency = |measured: &[Steady]| median(&measured.iter().map(Steady::p50).collect::<Vec<_>>());
        let soonest = self.steady.into_iter().min_by(|(_, a), (_, b)| latency(a).total_cmp(&latency(b)));
        if let Some((connections, measured)) = soonest {
            limit.steady_way = connections.describe().into();
            limit.results.steady = measured;
        }
        limit
    }
}
