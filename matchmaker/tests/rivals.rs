//! Two matchmakers both believe that they lead. No player may ever be in two matches.
#![cfg(test)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use futures::future::try_join_all;
use garage_events::{
    env::{Env, System},
    event::{Event, Recorded},
    id::{PlayerId, QueueName, SessionId, TicketId},
    jetstream::{JetStreamLog, follow::Follow, setup},
    log::{Append, AppendError, Decision, Load},
    player::{self, CancelReason, Queued},
    queue::Queues,
    session,
    subject::{ALL, Aggregate, STREAM},
};
use garage_matchmaker::{Config, app::Matchmaker, lead::Lead};
use garage_stack::servers::{Nats, Role};
use garage_worker::{Runtime, Shutdown};
use time::OffsetDateTime;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(120);

/// Always leads, like an instance that was paused and does not know that another instance took over.
struct Always {
    /// Receives a permit when the pool is up to date.
    ready: Arc<Semaphore>,
}

impl Lead for Always {
    fn compete(&self) {
        self.ready.add_permits(1);
    }

    fn leads(&self, _: &QueueName) -> bool {
        true
    }

    async fn changed(&mut self) {
        std::future::pending::<()>().await;
    }
}

/// The system's clock and id source. It counts the ids: a matchmaker that takes ids has made decisions.
#[derive(Clone, Default)]
struct CountingEnv(Arc<AtomicUsize>);

impl Env for CountingEnv {
    fn now(&self) -> OffsetDateTime {
        System.now()
    }

    fn id(&self) -> Uuid {
        self.0.fetch_add(1, Ordering::Relaxed);
        System.id()
    }
}

/// Like `garage_matchmaker::run`, but without leases.
async fn run(env: CountingEnv, config: Config, ready: Arc<Semaphore>, shutdown: Shutdown) -> anyhow::Result<()> {
    let queues = Queues::load(&config.queues)?;
    let mut runtime = Runtime::start("matchmaker", &config.worker, shutdown.clone()).await?;
    let log = runtime.open_log().await?;
    let matchmaker = Matchmaker::new(log, env, queues, Always { ready }, runtime.health.clone(), mpsc::channel(1).1);
    runtime.spawn("matching", matchmaker.run(shutdown));
    runtime.wait().await
}

/// A log with two matchmakers.
struct Rivals {
    log: JetStreamLog,
    envs: [CountingEnv; 2],
    shutdown: Shutdown,
    running: JoinSet<anyhow::Result<()>>,
    _nats: Nats,
    _folder: tempfile::TempDir,
}

impl Rivals {
    async fn start(nodes: usize) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let nats = Nats::start(folder.path(), nodes).await?;
        setup::init(nats.connect(Role::Admin).await?, nodes).await?;
        let log = JetStreamLog::open(nats.connect(Role::Admin).await?).await?;
        let queues = garage_stack::workers::write_default_queues(folder.path())?;
        let credentials = nats.credentials(Role::Matchmaker);
        let shutdown = Shutdown::new();
        let ready = Arc::new(Semaphore::new(0));
        let mut running = JoinSet::new();
        let envs = <[CountingEnv; 2]>::default();
        for env in &envs {
            let config = Config::try_parse_from([
                "matchmaker",
                "--nats-url",
                &nats.url(),
                "--nats-credentials",
                &credentials.display().to_string(),
                "--queues",
                &queues.display().to_string(),
            ])?;
            running.spawn(run(env.clone(), config, Arc::clone(&ready), shutdown.clone()));
        }
        let _both =
            timeout(DEADLINE, ready.acquire_many(2)).await.context("the matchmakers are not ready in time")??;
        Ok(Self { log, envs, shutdown, running, _nats: nats, _folder: folder })
    }

    async fn queue(&self, number: u32) -> anyhow::Result<(PlayerId, TicketId)> {
        let (player, ticket) = (format!("p{number}").parse::<PlayerId>()?, TicketId::new(System.id()));
        let now = System.now();
        let queued = Queued {
            ticket,
            queue: "ranked".parse()?,
            // Many players per rank band, so that there are many possible matches.
            rank: i32::try_from(number % 400)?,
            latencies: [("eu".parse()?, 20)].into(),
            attributes: [].into(),
            group: Vec::new(),
            waiting_since: now,
            expires_at: now + time::Duration::minutes(2),
            requeues: 0,
            absences: 0,
            party: None,
        };
        let head = self.log.player(&player).await?.head;
        let decision = Decision::new(&System, ticket.uuid(), None).change(
            &System,
            Aggregate::Player(player.clone()),
            head,
            [player::Event::from(queued)],
        );
        self.log.append(decision).await?;
        Ok((player, ticket))
    }

    /// Cancels a ticket like the gateway. Returns whether the cancellation came before a match.
    async fn cancel(&self, player: &PlayerId, ticket: TicketId) -> anyhow::Result<bool> {
        loop {
            let found = self.log.player(player).await?;
            let command = player::Command::Cancel { ticket, reason: CancelReason::Player };
            let Ok(event) = player::decide(&found.state, command) else { return Ok(false) };
            let decision = Decision::new(&System, ticket.uuid(), None).change(
                &System,
                Aggregate::Player(player.clone()),
                found.head,
                [event],
            );
            match self.log.append(decision).await {
                Ok(_) => return Ok(true),
                Err(AppendError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads the log until each player is matched or cancelled.
    async fn outcomes(&self, players: usize) -> anyhow::Result<Outcomes> {
        let mut outcomes = Outcomes::default();
        let mut follow = Follow::new(self.log.context().clone(), STREAM, vec![ALL.into()], 1);
        let all = async {
            while outcomes.decided.len() < players {
                let message = follow.next().await;
                match Aggregate::of(&message.subject).context("unknown subject")? {
                    Aggregate::Player(player) => {
                        let recorded = Recorded::<player::Event>::decode(message.seq, message.time, &message.body)?;
                        if !matches!(recorded.event, player::Event::Queued(_)) {
                            outcomes.decided.insert(player.clone());
                        }
                        outcomes.players.entry(player).or_default().push(recorded.event);
                    }
                    Aggregate::Session(session) => {
                        let recorded = Recorded::<session::Event>::decode(message.seq, message.time, &message.body)?;
                        let session::Event::Matched(matched) = recorded.event else { continue };
                        let members = matched.players().cloned().collect();
                        let first = outcomes.sessions.insert(session, members).is_none();
                        anyhow::ensure!(first, "session {session} was matched twice");
                    }
                    other @ (Aggregate::Inventory(_) | Aggregate::Party(_)) => {
                        anyhow::bail!("unexpected event of {other}")
                    }
                }
            }
            Ok(())
        };
        let read = timeout(DEADLINE, all).await;
        read.with_context(|| format!("only {} of {players} players have an outcome", outcomes.decided.len()))??;
        Ok(outcomes)
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        while let Some(ended) = self.running.join_next().await {
            ended??;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Outcomes {
    players: BTreeMap<PlayerId, Vec<player::Event>>,
    sessions: BTreeMap<SessionId, BTreeSet<PlayerId>>,
    decided: BTreeSet<PlayerId>,
}

impl Outcomes {
    /// Checks that each player was queued once and has one outcome, and that the events of sessions and players agree.
    fn check(&self) -> anyhow::Result<()> {
        let mut matches: BTreeMap<SessionId, BTreeSet<PlayerId>> = BTreeMap::new();
        for (player, events) in &self.players {
            let types: Vec<_> = events.iter().map(Event::type_name).collect();
            match &events[..] {
                [player::Event::Queued(_), player::Event::Matched(matched)] => {
                    matches.entry(matched.session).or_default().insert(player.clone());
                }
                [player::Event::Queued(_), player::Event::Cancelled(_)] => {}
                _ => anyhow::bail!("player {player} has unexpected events: {types:?}"),
            }
        }
        anyhow::ensure!(matches == self.sessions, "the events of sessions and players disagree");
        anyhow::ensure!(self.sessions.values().all(|members| members.len() == 2), "a session without two players");
        Ok(())
    }
}

async fn match_a_thousand_players(nodes: usize) -> anyhow::Result<()> {
    let rivals = Rivals::start(nodes).await?;
    // Queue a few at a time. Otherwise one matchmaker would match all of them in one cycle.
    for first in (0..1_000).step_by(20) {
        try_join_all((first..first + 20).map(|number| rivals.queue(number))).await?;
    }
    let outcomes = rivals.outcomes(1_000).await?;
    outcomes.check()?;
    assert_eq!(outcomes.sessions.len(), 500);
    let decided = rivals.envs.each_ref().map(|env| env.0.load(Ordering::Relaxed));
    assert!(decided.iter().all(|ids| *ids > 0), "one matchmaker made no decisions: {decided:?}");
    rivals.stop().await
}

async fn race_cancellations_and_matches(nodes: usize) -> anyhow::Result<()> {
    const PLAYERS: u32 = 200;
    let rivals = Rivals::start(nodes).await?;
    let (mut cancels, mut queued) = (BTreeMap::new(), 0);
    // Every second player cancels while the matchmakers work. The delay before that is longer in each round. Repeat
    // until some cancellations were in time and some were too late.
    for within in (0..).map(|round| Duration::from_millis(1 << round)) {
        let players = try_join_all((queued..queued + PLAYERS).map(async |number| {
            let (player, ticket) = rivals.queue(number).await?;
            if number % 2 > 0 {
                return anyhow::Ok((player, ticket, None));
            }
            sleep(within * (number - queued) / PLAYERS).await;
            let cancelled = rivals.cancel(&player, ticket).await?;
            Ok((player, ticket, Some(cancelled)))
        }))
        .await?;
        queued += PLAYERS;
        let outcomes: BTreeSet<bool> = players.iter().filter_map(|(_, _, cancelled)| *cancelled).collect();
        // Cancel the players who still wait, so that each has an outcome.
        let ends = try_join_all(players.into_iter().map(async |(player, ticket, cancelled)| {
            let cancelled = cancelled == Some(true) || rivals.cancel(&player, ticket).await?;
            anyhow::Ok((player, cancelled))
        }));
        cancels.extend(ends.await?);
        if outcomes.len() == 2 {
            break;
        }
    }
    let outcomes = rivals.outcomes(cancels.len()).await?;
    outcomes.check()?;
    for (player, cancelled) in cancels {
        let last = outcomes.players[&player].last().map(Event::type_name);
        let expected = if cancelled { "Cancelled" } else { "Matched" };
        assert_eq!(last, Some(expected), "the log disagrees with the answer to player {player}");
    }
    rivals.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_matchmakers_match_a_thousand_players_once_each_on_one_node() -> anyhow::Result<()> {
    match_a_thousand_players(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_matchmakers_match_a_thousand_players_once_each_on_three_nodes() -> anyhow::Result<()> {
    match_a_thousand_players(3).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_that_races_a_match_has_one_outcome_on_one_node() -> anyhow::Result<()> {
    race_cancellations_and_matches(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_that_races_a_match_has_one_outcome_on_three_nodes() -> anyhow::Result<()> {
    race_cancellations_and_matches(3).await
}
