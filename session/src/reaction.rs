//! Reactions to the events of a session, to reports of its game servers, and to its timer.
//!
//! Each reaction reads the session from the log, does the next step that the session needs, and sets the session's
//! timer. The step does not depend on the message that started the reaction. So a message may be delivered twice or
//! late. It may even be missing, as long as another message of the session is delivered.

use std::{collections::BTreeSet, future::Future, time::Duration};

use async_nats::jetstream::{Context, stream::LastRawMessageErrorKind};
use futures::future::try_join_all;
use garage_events::{
    env::Env,
    failure::MISBEHAVED,
    game::{self, Loadout},
    id::{PlayerId, SessionId},
    jetstream::timer,
    log::Log,
    presence,
    reaction::{self, decide_session, decide_session_with},
    session::{Command, Event, Limits, Next, Open, PodFailed, PodRequested, Rejection, State},
    subject::{self, Aggregate, Report, ReportKind},
    svc::{self, CallError, Loadouts},
};
use garage_worker::{
    operator::Mint,
    reactor::{Delivery, Failure},
    seal::SealKey,
};
use time::OffsetDateTime;
use tokio::time::timeout;

use crate::{
    keys::{GameKey, Pool},
    redis::Redis,
};

/// How long reads of the log can be outdated. A NATS server may still answer as the leader after another server was
/// elected. It steps down after ten seconds without contact to the other servers.
const MAX_READ_LAG: time::Duration = time::Duration::seconds(15);

/// The time-out for reading which players of a session have left.
const PRESENCE_TIMEOUT: Duration = Duration::from_secs(5);

/// The side effects of reactions, apart from appends.
pub trait Effects: Clone + Send + Sync + 'static {
    /// Requests the players' loadouts from the inventory worker.
    fn loadouts(&self, players: Vec<PlayerId>) -> impl Future<Output = Result<Vec<Loadout>, Failure>> + Send;

    /// Takes a new key, makes a NATS user for the game server, and stores the secrets of both in Redis for the
    /// director. `ends_at` is the latest end of the session. `keep` is how long the secrets are stored.
    fn park(
        &self,
        session: SessionId,
        attempt: u32,
        ends_at: OffsetDateTime,
        keep: Duration,
    ) -> impl Future<Output = Result<GameKey, Failure>> + Send;

    /// Those of the players who have left since the given time: their WebSocket dropped, and they did not reconnect.
    fn absent(&self, players: Vec<(PlayerId, OffsetDateTime)>) -> impl Future<Output = BTreeSet<PlayerId>> + Send;

    /// Sets the session's timer; `None` cancels it.
    fn set_timer(
        &self,
        session: SessionId,
        at: Option<OffsetDateTime>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// The real side effects.
#[derive(Debug, Clone)]
pub struct Live {
    /// For requests to the inventory worker.
    pub client: async_nats::Client,
    pub keys: Pool,
    /// Signs the game servers' NATS users.
    pub mint: Mint,
    /// Encrypts the secrets.
    pub seal: SealKey,
    /// Stores the encrypted secrets.
    pub redis: Redis,
    /// For timers.
    pub context: Context,
}

impl Effects for Live {
    async fn loadouts(&self, players: Vec<PlayerId>) -> Result<Vec<Loadout>, Failure> {
        svc::call(&self.client, &Loadouts { players }).await.map_err(|error| match error {
            CallError::Refused { code: 503, .. } | CallError::Unavailable { .. } => Failure::Unavailable(error.into()),
            CallError::Refused { .. } | CallError::Malformed { .. } => Failure::Retry(error.into()),
        })
    }

    async fn park(
        &self,
        session: SessionId,
        attempt: u32,
        ends_at: OffsetDateTime,
        keep: Duration,
    ) -> Result<GameKey, Failure> {
        let retry = |error: anyhow::Error| Failure::Retry(error.context("cannot prepare the secrets of a game server"));
        let key = self.keys.take().await.map_err(Failure::Unavailable)?;
        let credentials = self.mint.game(session, attempt, ends_at).map_err(|error| retry(error.into()))?;
        let secrets = game::Secrets { private_key: key.private_key.clone(), credentials };
        let secrets = serde_json::to_vec(&secrets).map_err(|error| retry(error.into()))?;
        let sealed = self.seal.seal(&secrets, &key.fingerprint).map_err(|error| retry(error.into()))?;
        let parked = self.redis.park(&key.fingerprint, &sealed, keep).await;
        parked.map_err(|error| Failure::Unavailable(error.into()))?;
        Ok(key)
    }

    async fn absent(&self, players: Vec<(PlayerId, OffsetDateTime)>) -> BTreeSet<PlayerId> {
        let found = timeout(PRESENCE_TIMEOUT, left(&self.context, players)).await;
        found.map_err(anyhow::Error::from).flatten().unwrap_or_else(|error| {
            // The players wait again. If one does not come back, the ticket times out.
            tracing::warn!("cannot read which players have left: {error:#}");
            BTreeSet::new()
        })
    }

    async fn set_timer(&self, session: SessionId, at: Option<OffsetDateTime>) -> Result<(), Failure> {
        match at {
            Some(at) => timer::set(&self.context, session, at).await?,
            None => timer::cancel(&self.context, session).await?,
        }
        Ok(())
    }
}

/// Those of the players who have left since the given time, according to the presence bucket. A player who had no socket
/// then does not need one.
async fn left(context: &Context, players: Vec<(PlayerId, OffsetDateTime)>) -> anyhow::Result<BTreeSet<PlayerId>> {
    let bucket = context.get_stream_no_info(presence::STREAM).await?;
    let reads = players.into_iter().map(async |(player, since)| {
        let key = presence::Key::Player(player.clone()).to_string();
        match bucket.get_last_raw_message_by_subject(&key).await {
            Ok(message) => {
                let connection: presence::Connection = serde_json::from_slice(&message.payload)?;
                anyhow::Ok(connection.left.is_some_and(|at| at >= since).then_some(player))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    });
    Ok(try_join_all(reads).await?.into_iter().flatten().collect())
}

/// The reactions, with everything that they need.
#[derive(Debug, Clone)]
pub struct App<L, W, E> {
    pub log: L,
    pub env: W,
    pub effects: E,
    /// The number of attempts, and the time-outs of the phases.
    pub limits: Limits,
}

impl<L: Log, W: Env, E: Effects> App<L, W, E> {
    /// Reacts to an event of a session.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn on_event(&self, delivery: &Delivery) -> Result<(), Failure> {
        let Some(Aggregate::Session(session)) = Aggregate::of(&delivery.subject) else {
            return Err(Failure::Poison(anyhow::anyhow!("{} is not the subject of a session", delivery.subject)));
        };
        // Decode the event, so that an event that this build does not know ends in an error.
        let recorded = delivery.event::<Event>()?;
        // No step follows from it: the timer of the proposal is set, and the last acceptance comes with `Matched`.
        if let Event::Accepted(_) = recorded.event {
            return Ok(());
        }
        self.advance(session, recorded.seq, delivery.time).await
    }

    /// Handles a game server's report. A report that can never be accepted becomes a dead letter, and fails its attempt:
    /// the director then ends the server.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn on_report(&self, delivery: &Delivery) -> Result<(), Failure> {
        let report: Report = delivery.subject.parse().map_err(|error| unreadable(anyhow::Error::from(error)))?;
        match self.accept(delivery, report).await {
            Err(Failure::Poison(error)) => {
                self.fail(delivery, report, &error).await?;
                Err(Failure::Poison(error))
            }
            outcome => outcome,
        }
    }

    /// Appends what the report says.
    async fn accept(&self, delivery: &Delivery, report: Report) -> Result<(), Failure> {
        let Report { session, attempt, kind } = report;
        let command = match kind {
            ReportKind::Ready => {
                serde_json::from_slice::<game::Ready>(&delivery.body).map(|report| Command::Ready { attempt, report })
            }
            ReportKind::Finished => serde_json::from_slice::<game::Finished>(&delivery.body)
                .map(|report| Command::Finish { attempt, report }),
        };
        let command = command.map_err(|error| unreadable(error.into()))?;
        match decide_session(&self.log, &self.env, session, command, None).await? {
            Ok(_) => Ok(()),
            Err(rejection @ Rejection::TooEarly) => Err(Failure::Retry(rejection.into())),
            Err(rejection @ Rejection::UnknownAttempt) if self.is_fresh(delivery) => {
                Err(Failure::Retry(rejection.into()))
            }
            Err(rejection @ Rejection::BadResults(_)) => Err(Failure::Poison(rejection.into())),
            Err(rejection) => {
                tracing::info!(session.id = %session, attempt, ?kind, %rejection, "report ignored");
                Ok(())
            }
        }
    }

    /// Whether the attempt of a report may be in the log although the read did not return it. An older report with an
    /// unknown attempt is not genuine. It is ignored and does not become a dead letter, because many such reports would
    /// fill the stream of dead letters.
    fn is_fresh(&self, report: &Delivery) -> bool {
        self.env.now() - report.time < MAX_READ_LAG
    }

    /// Marks an attempt as failed because its server misbehaved, unless the attempt has ended already.
    async fn fail(&self, delivery: &Delivery, report: Report, error: &anyhow::Error) -> Result<(), Failure> {
        let Report { session, attempt, .. } = report;
        let failed = PodFailed::new(attempt, MISBEHAVED, &format!("{error:#}"));
        match decide_session(&self.log, &self.env, session, Command::FailPod(failed), None).await? {
            Ok(_) => {}
            Err(rejection @ Rejection::UnknownAttempt) if self.is_fresh(delivery) => {
                return Err(Failure::Retry(rejection.into()));
            }
            Err(rejection) => {
                tracing::info!(session.id = %session, attempt, %rejection, "ignoring a bad report of an attempt that has ended");
            }
        }
        Ok(())
    }

    /// Handles a session whose timer fired.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn on_timer(&self, delivery: &Delivery) -> Result<(), Failure> {
        let session =
            subject::timer_session(&delivery.subject).map_err(|error| Failure::Poison(anyhow::Error::from(error)))?;
        let command = Command::Deadline { now: delivery.time, limits: self.limits };
        if let Ok(events) = self.decide(session, command).await? {
            let types: Vec<_> = events.iter().map(garage_events::event::Event::type_name).collect();
            tracing::info!(session.id = %session, ?types, "deadline passed");
        }
        // The timer may have fired for an earlier phase, or too early. But its session exists, so the log has its first
        // event.
        self.advance(session, 1, delivery.time).await
    }

    /// Does the next steps of a session until it waits, and sets its timer. `seen` is the sequence of an event of the
    /// session that must be in the log. `now` is when the message was stored that led here: pauses are measured by the
    /// clock of NATS, which also fires the timer.
    async fn advance(&self, id: SessionId, mut seen: u64, now: OffsetDateTime) -> Result<(), Failure> {
        loop {
            let session = self.log.session(id).await?.read_up_to(seen)?;
            seen = session.head.seq;
            let open = match &session.state {
                State::Open(open) => open,
                State::Proposed(proposal) => {
                    return self.effects.set_timer(id, Some(proposal.proposed.accept_by)).await;
                }
                State::New | State::Closed(_) => return self.effects.set_timer(id, None).await,
            };
            let deadline = Some(open.deadline(&self.limits));
            let command = match open.next(&self.limits) {
                Next::Wait => return self.effects.set_timer(id, deadline).await,
                Next::RequestPod { not_before: Some(at), .. } if now < at => {
                    return self.effects.set_timer(id, deadline.map(|end| end.min(at))).await;
                }
                Next::RequestPod { attempt, .. } => {
                    // Set the timer before the request. If the inventory worker or Redis is down for longer than the
                    // session may last, the timer ends the session.
                    self.effects.set_timer(id, deadline).await?;
                    Command::RequestPod(self.request(id, open, attempt).await?)
                }
                Next::Open(opened) => Command::Open(opened),
                Next::End(command) => command,
            };
            // The command is rejected if another instance was faster. The next read returns the events of that
            // instance.
            if let Err(rejection) = self.decide(id, command).await? {
                tracing::debug!(session.id = %id, %rejection, "another instance was faster");
            }
        }
    }

    /// Decides on a command that may fail the session.
    pub(crate) async fn decide(
        &self,
        id: SessionId,
        command: Command,
    ) -> Result<Result<Vec<Event>, Rejection>, reaction::Error> {
        let absent = |players| self.effects.absent(players);
        decide_session_with(&self.log, &self.env, id, command, None, absent).await
    }

    async fn request(&self, id: SessionId, open: &Open, attempt: u32) -> Result<PodRequested, Failure> {
        let matched = &open.matched;
        let loadouts = self.effects.loadouts(matched.players().cloned().collect()).await?;
        let keep = Duration::try_from(self.limits.ready).unwrap_or_default() + PARK_MARGIN;
        let ends_at = open.hard_end(&self.limits);
        let key = self.effects.park(id, attempt, ends_at, keep).await?;
        Ok(PodRequested {
            attempt,
            region: matched.region.clone(),
            loadouts,
            public_key: key.public_key,
            fingerprint: key.fingerprint,
            ends_at: Some(ends_at),
        })
    }
}

fn unreadable(error: anyhow::Error) -> Failure {
    Failure::Poison(error.context("cannot read a report"))
}

/// Added to the time-out for the game server's start, to get the time for which the secrets are stored. The director
/// may be restarted in this time.
const PARK_MARGIN: Duration = Duration::from_secs(60);
