//! `garage bench log`: commits per second, compared with the disk's sync rate.

use std::time::{Duration, Instant};

use futures::{StreamExt, future::try_join_all, stream::FuturesUnordered};
use garage_events::{
    env::{Env, System},
    id::PlayerId,
    jetstream::{JetStreamLog, setup},
    log::{Append, Decision, Head},
    subject::Aggregate,
};
use garage_stack::servers::{Nats, Role};

use super::queued;
use crate::report::{say, table};

/// Measures commits per second of the log, with and without group commit, and the disk's own fsync rate.
#[derive(Debug, clap::Args)]
pub(crate) struct Log {
    /// Seconds for each measurement.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Number of NATS nodes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    nats_nodes: u8,
}

impl Log {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let folder = tempfile::Builder::new().prefix("garage-bench-").tempdir()?;
        let nats = Nats::start(folder.path(), self.nats_nodes.into()).await?;
        setup::init(nats.connect(Role::Admin).await?, self.nats_nodes.into()).await?;
        let time = Duration::from_secs(self.seconds);
        let fsyncs = fsyncs(folder.path(), time)?;
        let row = |name: String, rate: f64| vec![name, format!("{rate:.0}"), format!("{:.1}", rate / fsyncs)];
        let mut rows = vec![row("fsync of 600 bytes, this disk".into(), fsyncs)];
        // Each waiting decision has its own connection and committer, so nothing is grouped.
        for waiting in [1, 16, 256] {
            let mut logs = Vec::new();
            for _ in 0..waiting {
                logs.push(JetStreamLog::open(nats.connect(Role::Admin).await?).await?);
            }
            let rates = try_join_all(logs.iter().map(|log| commits(log, 1, time))).await?;
            rows.push(row(format!("decisions, {waiting} waiting, each committed alone"), rates.iter().sum()));
        }
        let log = JetStreamLog::open(nats.connect(Role::Admin).await?).await?;
        for waiting in [16, 256, 2_048] {
            let rate = commits(&log, waiting, time).await?;
            rows.push(row(format!("decisions, {waiting} waiting, group commit"), rate));
        }
        say(format!("{} NATS node(s), every write synced; a decision has two events of two players", self.nats_nodes));
        table(&["", "per second", "per fsync"], &rows);
        Ok(())
    }
}

/// Synced writes per second of the disk alone.
fn fsyncs(folder: &std::path::Path, time: Duration) -> anyhow::Result<f64> {
    use std::io::Write;
    let mut file = std::fs::File::create(folder.join("fsync"))?;
    let began = Instant::now();
    let mut count = 0_u32;
    while began.elapsed() < time {
        file.write_all(&[0; 600])?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

/// Decisions per second while `waiting` decisions are in progress. Each has one event for each of two new players.
async fn commits(log: &JetStreamLog, waiting: usize, time: Duration) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut in_flight = FuturesUnordered::new();
    let mut count = 0_u32;
    while began.elapsed() < time {
        while in_flight.len() < waiting {
            in_flight.push(log.append(decision()?));
        }
        if let Some(stored) = in_flight.next().await {
            stored?;
            count += 1;
        }
    }
    let rate = f64::from(count) / began.elapsed().as_secs_f64();
    while in_flight.next().await.is_some() {}
    Ok(rate)
}

fn decision() -> anyhow::Result<Decision> {
    let env = System;
    let mut decision = Decision::new(&env, env.id(), None);
    for _ in 0..2 {
        let player: PlayerId = PlayerId::from_foreign(&env.id().to_string())?;
        decision = decision.change(
            &env,
            Aggregate::Player(player),
            Head::default(),
            [garage_events::player::Event::from(queued([].into())?)],
        );
    }
    Ok(decision)
}
