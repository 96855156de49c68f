//! The whole path of matching: from the tickets in the log to the matches in the log, with a matchmaker process and
//! real nats-servers that sync each write to disk.
//!
//! The limit is the writer alone: it knows the pairs, and only stores the same events.

mod burst;
mod events;
mod limit;
mod results;
mod stage;
mod steady;
mod watch;

use self::{
    burst::Burst,
    limit::Limits,
    results::{Repeated, Results},
    stage::{By, Stage},
    steady::Load,
};
use super::figures::Figures;
use crate::report::note;

/// Pairs of tickets that are appended at the same time if a matchmaker makes the matches. The log accepts about as many
/// tickets at a time; more would wait.
const PAIRS_QUEUED: usize = 2_000;

/// With more standing tickets than this, only the latency on one NATS node is measured.
const MAX_STANDING_FOR_ALL: u32 = 100_000;

/// The load of [`run`].
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Pairs of players that are queued as fast as possible.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pairs: u32,
    /// Pairs of players that are queued per second, to measure the latency.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Seconds of each measurement of the latency.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Numbers of standing tickets (tickets that wait and cannot be matched), in the same queue. With more than
    /// 100,000, only the latency on one NATS node is measured.
    #[arg(
        long,
        value_delimiter = ',',
        default_values_t = [100_000, 1_000_000],
        value_parser = clap::value_parser!(u32).range(1..=2_000_000)
    )]
    standing: Vec<u32>,
    /// How often each measurement is repeated. The median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=99))]
    runs: u8,
}

/// Measures the path with this number of NATS nodes, prints the results and adds the figures.
pub(super) async fn run(options: &Options, nodes: u8, figures: &mut Figures) -> anyhow::Result<()> {
    let mut stage = Stage::start(nodes).await?;
    let burst = Burst { pairs: options.pairs, in_progress: PAIRS_QUEUED };
    let load = options.load();
    let (mut limits, mut path) = (Limits::new(options), Repeated::default());
    // The writer alone and the matchmaker take turns, so that a change of the machine's load affects both.
    for run in 1..=options.runs {
        let at = format!("{nodes} NATS node(s), run {run} of {}", options.runs);
        note(format!("{at}: the writer alone …"));
        limits.measure(&mut stage, run).await?;
        note(format!("{at}: a matchmaker …"));
        stage.start_matchmaker().await?;
        path.bursts.push(burst.measure(&mut stage, By::Matchmaker, &format!("burst-{run}")).await?);
        path.steady.push(load.measure(&mut stage, By::Matchmaker, &format!("steady-{run}")).await?);
        stage.stop_matchmaker().await;
    }
    let mut standing = Vec::new();
    for count in options.standing(nodes) {
        stage.add_standing(count).await?;
        note(format!("{nodes} NATS node(s): a matchmaker with {count} standing tickets …"));
        stage.start_matchmaker().await?;
        let mut repeated = Repeated::default();
        for run in 1..=options.runs {
            if count <= MAX_STANDING_FOR_ALL {
                let name = format!("burst-{run}-of-{count}");
                repeated.bursts.push(burst.measure(&mut stage, By::Matchmaker, &name).await?);
            }
            let name = format!("steady-{run}-of-{count}");
            repeated.steady.push(load.measure(&mut stage, By::Matchmaker, &name).await?);
        }
        stage.stop_matchmaker().await;
        standing.push((count, repeated));
    }
    let results = Results { nodes, limit: limits.best(), path, standing };
    results.print(options);
    results.record(figures);
    Ok(())
}

impl Options {
    fn load(&self) -> Load {
        Load { rate: self.rate, seconds: self.seconds }
    }

    /// The numbers of standing tickets to measure, in ascending order.
    fn standing(&self, nodes: u8) -> Vec<u32> {
        let mut counts: Vec<_> =
            self.standing.iter().copied().filter(|count| nodes == 1 || *count <= MAX_STANDING_FOR_ALL).collect();
        counts.sort_unstable();
        counts.dedup();
        counts
    }
}
