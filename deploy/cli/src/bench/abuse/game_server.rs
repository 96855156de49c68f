//! `garage bench abuse --game-server`: how much a game server that floods NATS delays the reports of other game
//! servers.

use std::{
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use async_nats::jetstream;
use futures::TryStreamExt;
use garage_events::{
    deadline::receive,
    env::{Env, System},
    game::{self, MAX_REPORT, Ports, Ready},
    id::SessionId,
    jetstream::setup::{self, SESSION_REPORTS},
    subject::{DEAD, REPORTS, Report, ReportKind, game_inbox, reports_of},
};
use garage_gameserver::report::{NatsReporter, Reporter};
use garage_stack::{
    hostile::{HostileServer, Sent},
    servers::{Nats, Role},
};
use garage_worker::{
    Health, Shutdown,
    reactor::{Delivery, Failure, react},
};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, yield_now},
    time::{sleep, timeout},
};

use crate::bench::{
    interruptible,
    sample::{HEADINGS, Latencies},
};
use crate::report::{say, table};

/// The size of the messages that NATS does not accept from a game server.
const TOO_LARGE: usize = 60 << 10;

/// How long a report may take. Without a bound on hostile servers, some take longer.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Pause between two measured game servers, and between two tries of a report.
const PAUSE: Duration = Duration::from_millis(50);

/// How many reports the session worker handles at the same time.
const REACTIONS: usize = 64;

/// Measures the reports of other game servers, without a flood and during two floods.
pub(super) async fn run(seconds: u64, nats_nodes: u8, shutdown: Shutdown) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("garage-bench-").tempdir()?;
    let time = Duration::from_secs(seconds);
    let mut stage = Stage::start(folder.path(), nats_nodes.into()).await?;
    let result = interruptible(&shutdown, measure(&mut stage, folder.path(), time, nats_nodes)).await;
    stage.stop().await;
    result
}

async fn measure(stage: &mut Stage, folder: &Path, time: Duration, nats_nodes: u8) -> anyhow::Result<()> {
    say("measuring the disk …");
    let disk = fsyncs(folder, time).await?;
    say("measuring reports without a flood …");
    let quiet = stage.reports(time).await?;
    let mut rows = vec![disk.row("write and fsync 600 bytes, this disk (limit)", None)];
    rows.extend(quiet.rows("no flood", &disk));
    let mut floods = Vec::new();
    for (name, size) in [("60 KiB", TOO_LARGE), ("the largest reports", MAX_REPORT)] {
        say(format!("measuring reports during a flood of {name} …"));
        let (reports, flood) = stage.reports_under_flood(size, time).await?;
        rows.extend(reports.rows(&format!("flood of {name}"), &disk));
        floods.push(flood.line(name, time));
    }
    say(format!("\n{nats_nodes} NATS node(s), every write synced; one game server floods its two subjects"));
    table(&HEADINGS, &rows);
    say("");
    floods.into_iter().for_each(say);
    Ok(())
}

/// The latencies of one measurement.
#[derive(Debug, Default)]
struct Reports {
    /// From the connection until the first report is stored.
    first: Latencies,
    /// From the publication of the second report until it is stored.
    stored: Latencies,
    /// From its publication until the session worker has it.
    received: Latencies,
}

impl Reports {
    fn rows(&self, when: &str, limit: &Latencies) -> [Vec<String>; 3] {
        [
            self.first.row(&format!("connect → ready stored, {when}"), Some(limit)),
            self.stored.row(&format!("publish → finished stored, {when}"), Some(limit)),
            self.received.row(&format!("publish → session worker has finished, {when}"), Some(limit)),
        ]
    }
}

/// What a flood achieved.
#[derive(Debug)]
struct Flooded {
    sent: Sent,
    /// Messages that NATS stored.
    stored: usize,
    dead_letters: u64,
}

impl Flooded {
    fn line(&self, name: &str, time: Duration) -> String {
        let Self { sent, stored, dead_letters } = self;
        let bytes = u32::try_from(sent.bytes >> 10).map_or(f64::INFINITY, f64::from) / 1_024.0;
        format!(
            "flood of {name}: wrote {:.0} MiB/s on {} connections; stored messages: {stored}, dead letters: {dead_letters}",
            bytes / time.as_secs_f64(),
            sent.connections
        )
    }
}

/// NATS with Garage's streams, and the part of a session worker that receives reports.
struct Stage {
    nats: Nats,
    context: jetstream::Context,
    received: mpsc::Receiver<String>,
    shutdown: Shutdown,
    reacting: JoinHandle<anyhow::Result<()>>,
}

impl Stage {
    async fn start(folder: &Path, nodes: usize) -> anyhow::Result<Self> {
        let nats = Nats::start(folder, nodes).await?;
        let admin = nats.connect(Role::Admin).await?;
        setup::init(admin.clone(), nodes).await?;
        let (sender, received) = mpsc::channel(REACTIONS);
        let shutdown = Shutdown::new();
        let handler = move |delivery: Delivery| {
            let sender = sender.clone();
            async move {
                check(&delivery).map_err(Failure::Poison)?;
                // This fails only at the end of the benchmark.
                sender.send(delivery.subject).await.map_err(|error| Failure::Unavailable(error.into()))
            }
        };
        let worker = jetstream::new(nats.connect(Role::Session).await?);
        let reacting = react(worker, SESSION_REPORTS, REACTIONS, Health::default(), shutdown.clone(), handler);
        let reacting = tokio::spawn(reacting);
        Ok(Self { nats, context: jetstream::new(admin), received, shutdown, reacting })
    }

    /// Measures the reports of one game server after another.
    async fn reports(&mut self, time: Duration) -> anyhow::Result<Reports> {
        let mut reports = Reports::default();
        let began = Instant::now();
        while began.elapsed() < time {
            ensure!(!self.reacting.is_finished(), "the reaction to reports has ended");
            self.report(&mut reports).await?;
            sleep(PAUSE).await;
        }
        Ok(reports)
    }

    async fn report(&mut self, reports: &mut Reports) -> anyhow::Result<()> {
        let session = SessionId::new(System.id());
        let credentials = self.nats.game(session, 1, System.now() + time::Duration::HOUR)?;
        let access = game::Nats { url: self.nats.url(), credentials, inbox: game_inbox(session, 1) };
        let reporter = NatsReporter::new(access)?;
        let subject = |kind| Report { session, attempt: 1, kind }.to_string();
        let began = Instant::now();
        let ready = Ready { ports: Ports { tcp_port: 1, udp_port: 2 } };
        publish(&reporter, &subject(ReportKind::Ready), &serde_json::to_vec(&ready)?).await?;
        reports.first.add(began.elapsed());
        self.received(&subject(ReportKind::Ready)).await?;
        let began = Instant::now();
        publish(&reporter, &subject(ReportKind::Finished), br#"{"results":[]}"#).await?;
        reports.stored.add(began.elapsed());
        self.received(&subject(ReportKind::Finished)).await?;
        reports.received.add(began.elapsed());
        Ok(())
    }

    /// Waits until the session worker has a report.
    async fn received(&mut self, subject: &str) -> anyhow::Result<()> {
        while receive(&mut self.received, MAX_WAIT).await.context("the session worker did not get a report")? != subject
        {
        }
        Ok(())
    }

    async fn reports_under_flood(&mut self, size: usize, time: Duration) -> anyhow::Result<(Reports, Flooded)> {
        let session = SessionId::new(System.id());
        let server = HostileServer::new(&self.nats, session, 1, System.now() + time::Duration::HOUR)?;
        let dead_before = self.dead_letters().await?;
        let stop = Shutdown::new();
        let flooding = tokio::spawn({
            let (server, flood, stop) = (server.clone(), server.reports(size), stop.clone());
            async move { server.run(&flood, stop).await }
        });
        let reports = self.reports(time).await;
        stop.cancel();
        let sent = flooding.await?;
        let stream = self.context.get_stream_no_info(REPORTS).await?;
        let subjects = stream.info_with_subjects(reports_of(session)).await?;
        let counts: Vec<_> = subjects.try_collect().await?;
        let stored = counts.into_iter().map(|(_, count)| count).sum();
        let dead_letters = self.dead_letters().await? - dead_before;
        Ok((reports?, Flooded { sent, stored, dead_letters }))
    }

    /// Stops the reaction while NATS still runs.
    async fn stop(self) {
        self.shutdown.cancel();
        // It ends within a second. Its errors have been logged.
        let _ = timeout(MAX_WAIT, self.reacting).await;
    }

    async fn dead_letters(&self) -> anyhow::Result<u64> {
        Ok(self.context.get_stream(DEAD).await?.cached_info().state.messages)
    }
}

/// Whether the session worker could read the report.
fn check(delivery: &Delivery) -> anyhow::Result<()> {
    match delivery.subject.parse::<Report>()?.kind {
        ReportKind::Ready => drop(serde_json::from_slice::<Ready>(&delivery.body)?),
        ReportKind::Finished => drop(serde_json::from_slice::<game::Finished>(&delivery.body)?),
    }
    Ok(())
}

/// Publishes a report until it is stored, like a game server.
async fn publish(reporter: &NatsReporter, subject: &str, body: &[u8]) -> anyhow::Result<()> {
    let stored = async {
        while reporter.publish(subject, body.to_vec()).await.is_err() {
            sleep(PAUSE).await;
        }
    };
    timeout(MAX_WAIT, stored).await.with_context(|| format!("{subject} was not stored within {MAX_WAIT:?}"))
}

/// How long synced writes take on the disk alone.
async fn fsyncs(folder: &Path, time: Duration) -> anyhow::Result<Latencies> {
    let mut file = std::fs::File::create(folder.join("fsync"))?;
    let mut latencies = Latencies::default();
    let began = Instant::now();
    while began.elapsed() < time {
        let before = Instant::now();
        file.write_all(&[0; 600])?;
        file.sync_data()?;
        latencies.add(before.elapsed());
        // Lets Ctrl-C through.
        yield_now().await;
    }
    Ok(latencies)
}
