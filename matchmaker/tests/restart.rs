//! A restarted matchmaker has the same pool as one that has read the whole log, whatever happened to its snapshot.
#![cfg(test)]

use std::{
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context as Waker, Poll},
    time::Duration,
};

use async_nats::jetstream::{self, Context};
use clap::Parser;
use futures::future::try_join_all;
use garage_events::{
    env::{Env, System},
    event::Recorded,
    id::{PlayerId, TicketId},
    jetstream::{JetStreamLog, follow::Follow, setup},
    log::{Append, Decision, Head, Load},
    player::{self, CancelReason, Queued, State},
    subject::{Aggregate, PLAYERS, SNAPSHOT_BUCKET, SNAPSHOTS, STREAM, snapshot_pieces},
};
use garage_matchmaker::{
    Config,
    domain::{
        Pool,
        snapshot::{self, Log},
    },
    snapshots,
};
use garage_stack::servers::{Nats, Role};
use garage_worker::Shutdown;
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::timeout,
};

const DEADLINE: Duration = Duration::from_secs(120);

/// Name of the snapshot's object.
const NAME: &str = "matchmaker";

/// A log. Tests start and stop matchmakers on it.
struct Fixture {
    log: JetStreamLog,
    /// A connection with only the rights of the matchmaker.
    context: Context,
    args: Vec<String>,
    _nats: Nats,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let nats = Nats::start(folder.path(), 1).await?;
        setup::init(nats.connect(Role::Admin).await?, 1).await?;
        let log = JetStreamLog::open(nats.connect(Role::Admin).await?).await?;
        let context = jetstream::new(nats.connect(Role::Matchmaker).await?);
        let queues = garage_stack::workers::write_default_queues(folder.path())?;
        let args = vec![
            "matchmaker".into(),
            format!("--nats-url={}", nats.url()),
            format!("--nats-credentials={}", nats.credentials(Role::Matchmaker).display()),
            format!("--queues={}", queues.display()),
        ];
        Ok(Self { log, context, args, _nats: nats, _folder: folder })
    }

    /// Runs a matchmaker until the condition holds, and then shuts it down cleanly.
    async fn run_until(&self, what: &str, condition: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let shutdown = Shutdown::new();
        let running = tokio::spawn(garage_matchmaker::run(Config::try_parse_from(&self.args)?, shutdown.clone()));
        let waiting = async {
            while !condition().await? {
                anyhow::ensure!(!running.is_finished(), "the matchmaker has ended");
                tokio::task::yield_now().await;
            }
            Ok(())
        };
        timeout(DEADLINE, waiting).await.unwrap_or_else(|_| anyhow::bail!("not in time: {what}"))?;
        shutdown.cancel();
        timeout(DEADLINE, running).await??
    }

    /// Runs a matchmaker until it leads. On shutdown it writes a snapshot.
    async fn run_once(&self) -> anyhow::Result<()> {
        let entry = garage_events::lease::subject("matchmaker.ranked");
        let bucket = self.context.get_stream(garage_events::lease::STREAM).await?;
        let revision = async || bucket.get_last_raw_message_by_subject(&entry).await.map_or(0, |last| last.sequence);
        let (before, taken) = (revision().await, AtomicU64::new(0));
        self.run_until("it leads", async || {
            let now = revision().await;
            // It acquires the lease when its pool is up to date. The first renewal shows that it has noticed that it
            // leads.
            match taken.load(Ordering::Relaxed) {
                0 if now > before => taken.store(now, Ordering::Relaxed),
                0 => {}
                taken => return Ok(now > taken),
            }
            Ok(false)
        })
        .await
    }

    async fn append(&self, player: &PlayerId, head: Head, event: player::Event) -> anyhow::Result<()> {
        let decision = Decision::new(&System, System.id(), None);
        self.log.append(decision.change(&System, Aggregate::Player(player.clone()), head, [event])).await?;
        Ok(())
    }

    /// Queues one player per number. The ranks of two numbers are too far apart for a match, so only players with the
    /// same number are matched.
    async fn queue(&self, prefix: &str, numbers: std::ops::Range<i32>) -> anyhow::Result<()> {
        try_join_all(numbers.map(async |number| {
            let player: PlayerId = format!("{prefix}{number}").parse()?;
            let now = System.now();
            let queued = Queued {
                ticket: TicketId::new(System.id()),
                queue: "ranked".parse()?,
                rank: number * 10_000,
                latencies: [("eu".parse()?, 20)].into(),
                attributes: [].into(),
                group: Vec::new(),
                waiting_since: now,
                expires_at: now + time::Duration::minutes(2),
                requeues: 0,
                absences: 0,
                party: None,
            };
            self.append(&player, self.log.player(&player).await?.head, queued.into()).await
        }))
        .await?;
        Ok(())
    }

    async fn cancel(&self, prefix: &str, numbers: std::ops::Range<i32>) -> anyhow::Result<()> {
        for number in numbers {
            let player: PlayerId = format!("{prefix}{number}").parse()?;
            let found = self.log.player(&player).await?;
            let State::Waiting(Queued { ticket, .. }) = found.state else { anyhow::bail!("{player} does not wait") };
            let command = player::Command::Cancel { ticket, reason: CancelReason::Player };
            self.append(&player, found.head, player::decide(&found.state, command)?).await?;
        }
        Ok(())
    }

    async fn identity(&self) -> anyhow::Result<Log> {
        let (created, state) = self.log.identity().await?;
        Ok(Log { created, first: state.first_sequence, last: state.last_sequence })
    }

    async fn restored(&self) -> anyhow::Result<Pool> {
        Ok(snapshots::restore(&self.context, self.identity().await?).await)
    }

    /// Folds the events after the pool's last one, up to the end of the log.
    async fn fold(&self, mut pool: Pool) -> anyhow::Result<Pool> {
        let end = self.log.last_sequence(PLAYERS).await?;
        let mut follow = Follow::new(self.log.context().clone(), STREAM, vec![PLAYERS.into()], pool.seq() + 1);
        while pool.seq() < end {
            let message = timeout(DEADLINE, follow.next()).await?;
            let Some(Aggregate::Player(player)) = Aggregate::of(&message.subject) else {
                anyhow::bail!("{} is not the subject of a player", message.subject)
            };
            let Recorded { seq, n, event, .. } =
                Recorded::<player::Event>::decode(message.seq, message.time, &message.body)?;
            pool.fold(&player, Head { seq, n }, &event);
        }
        Ok(pool)
    }

    /// Writes a snapshot of the current log.
    async fn write(&self) -> anyhow::Result<Pool> {
        let pool = self.fold(Pool::default()).await?;
        let bytes = snapshot::encode(self.identity().await?.created, pool.seq(), &pool.folded())?;
        snapshots::write(&self.context, bytes).await?;
        Ok(pool)
    }

    /// Checks the snapshot of a matchmaker that stopped while events were appended. The snapshot may lack the last
    /// events of the log, but must agree with the log up to its own end.
    async fn check_last(&self) -> anyhow::Result<()> {
        let restored = self.restored().await?;
        assert!(restored.seq() > 0);
        assert_eq!(self.fold(restored).await?, self.fold(Pool::default()).await?);
        Ok(())
    }

    async fn has_matched(&self, players: &[String]) -> anyhow::Result<bool> {
        let states = try_join_all(players.iter().map(async |name| {
            let player: PlayerId = name.parse()?;
            anyhow::Ok(self.log.player(&player).await?.state)
        }));
        Ok(states.await?.iter().all(|state| matches!(state, State::Matched(_))))
    }
}

fn names(prefixes: &[&str], numbers: std::ops::Range<i32>) -> Vec<String> {
    numbers.flat_map(|number| prefixes.iter().map(move |prefix| format!("{prefix}{number}"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_a_snapshot_equals_one_without() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    fixture.queue("a", 0..40).await?;
    fixture.cancel("a", 0..5).await?;
    fixture.run_once().await?;
    let restored = fixture.restored().await?;
    assert_eq!(restored, fixture.fold(Pool::default()).await?);
    assert_eq!(restored.folded().len(), 35);

    // Later events are read from the log.
    fixture.cancel("a", 5..10).await?;
    fixture.queue("a", 0..3).await?;
    fixture.queue("b", 100..110).await?;
    let tail = fixture.fold(fixture.restored().await?).await?;
    assert_eq!(tail, fixture.fold(Pool::default()).await?);
    assert_eq!(tail.folded().len(), 43);

    // Players who wait according to the snapshot are matched with new players.
    fixture.queue("c", 10..40).await?;
    fixture.run_until("all are matched", async || fixture.has_matched(&names(&["a", "c"], 10..40)).await).await?;
    fixture.check_last().await
}

/// A reader that returns some data and then blocks forever. A writer that uses it stops in the middle of a snapshot.
struct Endless(bool);

impl AsyncRead for Endless {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Waker<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Pending;
        }
        buffer.put_slice(b"{\"format\":1");
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn if_the_writer_is_killed_the_previous_snapshot_remains() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    fixture.queue("a", 0..10).await?;
    let first = fixture.write().await?;
    let stream = async || anyhow::Ok(fixture.context.get_stream(SNAPSHOTS).await?.cached_info().state.messages);
    let messages = stream().await?;

    let writing = tokio::spawn({
        let context = fixture.context.clone();
        async move {
            let store = context.get_object_store(SNAPSHOT_BUCKET).await?;
            store.put(NAME, &mut Endless(false)).await?;
            anyhow::Ok(())
        }
    });
    timeout(DEADLINE, async {
        while stream().await? == messages {}
        anyhow::Ok(())
    })
    .await??;
    writing.abort();
    assert_eq!(fixture.restored().await?, first);

    // The next snapshot replaces it.
    fixture.queue("a", 10..20).await?;
    let second = fixture.write().await?;
    assert_ne!(second, first);
    assert_eq!(fixture.restored().await?, second);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_snapshots_are_deleted() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    // Longer than a chunk. What is in it does not matter.
    let bytes = vec![0; 500_000];
    for _ in 0..5 {
        snapshots::write(&fixture.context, bytes.clone()).await?;
    }
    let info = fixture.context.get_object_store(SNAPSHOT_BUCKET).await?.info(NAME).await?;
    let messages = fixture.context.get_stream(SNAPSHOTS).await?.cached_info().state.messages;
    assert!(info.chunks > 1, "the snapshot is too small for this test");
    assert_eq!(messages, u64::try_from(info.chunks)? + 1, "the chunks and the metadata of one snapshot");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_snapshot_is_ignored() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    fixture.queue("a", 0..4).await?;
    let pool = fixture.fold(Pool::default()).await?;
    let log = fixture.identity().await?;
    let good = snapshot::encode(log.created, pool.seq(), &pool.folded())?;
    let foreign = snapshot::encode(log.created - Duration::from_secs(1), pool.seq(), &pool.folded())?;
    let ahead = snapshot::encode(log.created, pool.seq() + 1, &pool.folded())?;
    let older = br#"{"format":2}"#.to_vec();
    let half = good[..good.len() - 20].to_vec();
    for (what, bytes) in
        [("foreign", foreign), ("ahead", ahead), ("older", older), ("half", half), ("empty", Vec::new())]
    {
        snapshots::write(&fixture.context, bytes).await?;
        assert_eq!(fixture.restored().await?, Pool::default(), "{what}");
    }
    snapshots::write(&fixture.context, good).await?;
    assert_eq!(fixture.restored().await?, pool);

    // A missing chunk, and a modified one.
    let info = fixture.context.get_object_store(SNAPSHOT_BUCKET).await?.info(NAME).await?;
    let stream = fixture.log.context().get_stream(SNAPSHOTS).await?;
    let chunk = stream.get_last_raw_message_by_subject(&snapshot_pieces(&info.nuid)).await?;
    stream.purge().filter(snapshot_pieces(&info.nuid)).await?;
    assert_eq!(fixture.restored().await?, Pool::default(), "missing");
    let modified = [&*chunk.payload, b" "].concat();
    fixture.context.publish(snapshot_pieces(&info.nuid), modified.into()).await?.await?;
    assert_eq!(fixture.restored().await?, Pool::default(), "modified");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_matchmaker_with_a_foreign_snapshot_matches_players_from_the_log() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let created = fixture.identity().await?.created - Duration::from_secs(3_600);
    // A matchmaker that used this snapshot would start after the waiting players and miss them.
    snapshots::write(&fixture.context, snapshot::encode(created, 1_000, &[])?).await?;
    fixture.queue("a", 0..5).await?;
    fixture.queue("b", 0..5).await?;
    fixture.run_until("all are matched", async || fixture.has_matched(&names(&["a", "b"], 0..5)).await).await?;
    fixture.check_last().await
}
