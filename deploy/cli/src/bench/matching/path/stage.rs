//! The servers and the matchmaker that are measured.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use async_nats::jetstream;
use futures::{StreamExt, stream};
use garage_events::{
    jetstream::{JetStreamLog, setup},
    queue::Queues,
    rules::Rules,
    subject::HISTORY,
};
use garage_stack::{
    process::{Launch, Process},
    servers::{Nats, Role},
    workers::binary,
};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::{
    events::{self, Matches, Writer},
    watch::Watch,
};
use crate::{progress::Progress, report::note};

/// Standing tickets that are appended at the same time.
const TICKETS_IN_PROGRESS: usize = 4_000;

/// How often to check whether the matchmaker still runs.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// How long a matchmaker may take from its start to its first match, with all standing tickets.
const START_LIMIT: Duration = Duration::from_secs(600);

/// Who makes the matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The writer alone: the benchmark itself. No matchmaker may run.
    Writer(Connections),
    Matchmaker,
}

/// How the writer alone reaches NATS. Each connection has a committer of its own, which has at most two commits in
/// flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connections {
    /// The same for tickets and matches, so that one commit has both.
    Shared,
    /// Like a gateway and a matchmaker.
    Separate,
}

impl Connections {
    pub(super) const ALL: [Self; 2] = [Self::Shared, Self::Separate];

    /// One word.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Separate => "separate",
        }
    }

    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Shared => "one connection for tickets and matches",
            Self::Separate => "separate connections for tickets and matches",
        }
    }
}

/// The servers, and a matchmaker that can be started and stopped. They end before the folder is removed.
#[derive(Debug)]
pub(super) struct Stage {
    matchmaker: Option<Process>,
    launch: Launch,
    /// Writes tickets.
    tickets: JetStreamLog,
    /// Writes matches in place of a matchmaker.
    matches: JetStreamLog,
    /// The rule set of the queue.
    rules: Arc<Rules>,
    /// Follows the log.
    reader: JetStreamLog,
    /// How many standing tickets are in the log.
    standing: u32,
    /// How often a matchmaker was started.
    starts: u32,
    _nats: Nats,
    _folder: TempDir,
}

impl Stage {
    /// Starts this number of NATS nodes, with an empty log.
    pub(super) async fn start(nodes: u8) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("garage-bench-").tempdir()?;
        let nats = Nats::start(folder.path(), nodes.into()).await?;
        let client = nats.connect(Role::Admin).await?;
        setup::init(client.clone(), nodes.into()).await?;
        // The history is a second copy of the log, on the same disk. Neither the matchmaker nor the writer reads it.
        jetstream::new(client).delete_stream(HISTORY).await?;
        let (launch, rules) = matchmaker(folder.path(), &nats)?;
        let open = async || anyhow::Ok(JetStreamLog::open(nats.connect(Role::Admin).await?).await?);
        Ok(Self {
            matchmaker: None,
            launch,
            tickets: open().await?,
            matches: open().await?,
            rules,
            reader: open().await?,
            standing: 0,
            starts: 0,
            _nats: nats,
            _folder: folder,
        })
    }

    pub(super) fn writer(&self, by: By) -> Writer {
        let log = match by {
            By::Matchmaker => None,
            By::Writer(Connections::Shared) => Some(&self.tickets),
            By::Writer(Connections::Separate) => Some(&self.matches),
        };
        let matches = log.map(|log| Matches { log: log.clone(), rules: Arc::clone(&self.rules) });
        Writer { tickets: self.tickets.clone(), matches }
    }

    /// Follows a load that is appended later.
    pub(super) async fn watch(&self, load: &str, pairs: u32) -> anyhow::Result<Watch> {
        Watch::start(&self.reader, load, pairs).await
    }

    /// Appends standing tickets until there are `count`. No matchmaker may run, because it would write snapshots
    /// meanwhile.
    pub(super) async fn add_standing(&mut self, count: u32) -> anyhow::Result<()> {
        let missing = count.saturating_sub(self.standing);
        note(format!("writing {missing} standing tickets …"));
        let (mut progress, mut done) = (Progress::new(true), 0);
        let queue = async |number: u32| {
            events::queue(&self.tickets, format!("standing-{number}"), events::standing_skill(number)).await
        };
        let mut queueing = stream::iter(self.standing..count).map(queue).buffer_unordered(TICKETS_IN_PROGRESS);
        while let Some(queued) = queueing.next().await {
            queued?;
            done += 1;
            progress.at(done, done, missing.into());
        }
        drop(queueing);
        self.standing = count;
        Ok(())
    }

    /// Starts a matchmaker, and waits until it has read the log and has made a match.
    pub(super) async fn start_matchmaker(&mut self) -> anyhow::Result<()> {
        self.matchmaker = Some(self.launch.clone().spawn()?);
        self.starts += 1;
        let load = format!("first-{}", self.starts);
        let mut watch = self.watch(&load, 1).await?;
        self.writer(By::Matchmaker).write(load.into(), 0, [events::pair_skill(0); 2]).await?;
        let first = async { timeout(START_LIMIT, watch.next()).await.context("no match within ten minutes")? };
        self.run(first).await.map(drop).context("the matchmaker does not make matches")
    }

    /// Stops the matchmaker, which writes a snapshot for its next start.
    pub(super) async fn stop_matchmaker(&mut self) {
        if let Some(mut process) = self.matchmaker.take() {
            process.stop().await;
        }
    }

    /// Does some work. If there is a matchmaker, an error says what it has logged, and the work fails when it stops.
    pub(super) async fn run<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let Some(process) = &mut self.matchmaker else { return work.await };
        let ended = async {
            loop {
                if let Some(status) = process.try_wait()? {
                    return anyhow::Ok(status);
                }
                sleep(CHECK_INTERVAL).await;
            }
        };
        let result = tokio::select! {
            result = work => result,
            status = ended => Err(anyhow!("the matchmaker has stopped: {}", status?)),
        };
        result.map_err(|error| anyhow!("{error:#}\nthe log of the matchmaker ends:\n{}", process.log_tail()))
    }
}

/// How to start a matchmaker, and the rule set of its queue.
fn matchmaker(folder: &Path, nats: &Nats) -> anyhow::Result<(Launch, Arc<Rules>)> {
    let queues = folder.join("queues.toml");
    fs::write(folder.join(events::RULE_SET_FILE), events::RULE_SET)?;
    fs::write(&queues, events::QUEUES)?;
    let rules = Queues::load(&queues)?.queues.values().next().context("a queues file without a queue")?.rules();
    let launch = Launch::new("matchmaker", binary("garage-matchmaker")?, folder.join("logs/matchmaker.log"))
        .env("GARAGE_NATS_URL", nats.url())
        .env("GARAGE_NATS_CREDENTIALS", nats.credentials(Role::Matchmaker))
        .env("GARAGE_QUEUES", queues);
    Ok((launch, rules))
}
