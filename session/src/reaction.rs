//! What a session's events, its servers' reports and its deadlines bring about.
//!
//! Each reaction reads the session anew, does what it needs next, and sets its timer. Nothing depends on which message
//! brought it here, so that a message may come twice, late, or not at all as long as another does.

use std::{future::Future, time::Duration};

use async_nats::jetstream::Context;
use garage_events::{
    env::Env,
    game::{self, Loadout},
    id::{PlayerId, SessionId},
    jetstream::timer,
    log::Log,
    reaction::decide_session,
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

use crate::{
    keys::{GameKey, Pool},
    redis::Redis,
};

/// How long a server of the log may answer without knowing that another leads: NATS has it step down when it has not
/// heard from the others for ten seconds.
const LAG: time::Duration = time::Duration::seconds(15);

/// What reactions do besides appending.
pub trait Effects: Clone + Send + Sync + 'static {
    /// Asks what the players bring.
    fn loadouts(&self, players: Vec<PlayerId>) -> impl Future<Output = Result<Vec<Loadout>, Failure>> + Send;

    /// Takes a new key and makes a NATS user for an attempt at a session that ends hard at `ends_at`, and parks both
    /// where the director finds them.
    fn park(
        &self,
        session: SessionId,
        attempt: u32,
        ends_at: OffsetDateTime,
        keep: Duration,
    ) -> impl Future<Output = Result<GameKey, Failure>> + Send;

    /// Sets the session's timer, or takes it away.
    fn set_timer(
        &self,
        session: SessionId,
        at: Option<OffsetDateTime>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// The effects on the real world.
#[derive(Debug, Clone)]
pub struct Live {
    /// To ask inventory.
    pub client: async_nats::Client,
    /// Keys made ahead.
    pub keys: Pool,
    /// Who makes games' users.
    pub mint: Mint,
    /// What is parked is sealed with it.
    pub seal: SealKey,
    /// Where it is parked.
    pub redis: Redis,
    /// Where timers are set.
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
        let retry = |error: anyhow::Error| Failure::Retry(error.context("cannot seal a game's secrets"));
        let key = self.keys.take().await.map_err(Failure::Unavailable)?;
        let credentials = self.mint.game(session, attempt, ends_at).map_err(|error| retry(error.into()))?;
        let secrets = game::Secrets { private_key: key.private_key.clone(), credentials };
        let secrets = serde_json::to_vec(&secrets).map_err(|error| retry(error.into()))?;
        let sealed = self.seal.seal(&secrets, &key.fingerprint).map_err(|error| retry(error.into()))?;
        let parked = self.redis.park(&key.fingerprint, &sealed, keep).await;
        parked.map_err(|error| Failure::Unavailable(error.into()))?;
        Ok(key)
    }

    async fn set_timer(&self, session: SessionId, at: Option<OffsetDateTime>) -> Result<(), Failure> {
        match at {
            Some(at) => timer::set(&self.context, session, at).await?,
            None => timer::cancel(&self.context, session).await?,
        }
        Ok(())
    }
}

/// The reactions.
#[derive(Debug, Clone)]
pub struct App<L, W, E> {
    /// Where sessions are.
    pub log: L,
    /// Time and ids.
    pub env: W,
    /// All else.
    pub effects: E,
    /// How long the phases may take.
    pub limits: Limits,
}

impl<L: Log, W: Env, E: Effects> App<L, W, E> {
    /// Reacts to an event of a session.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn on_event(&self, delivery: &Delivery) -> Result<(), Failure> {
        let Some(Aggregate::Session(session)) = Aggregate::of(&delivery.subject) else {
            return Err(Failure::Poison(anyhow::anyhow!("{} is no session's subject", delivery.subject)));
        };
        // Read for the sake of stopping at what this build does not know.
        let seen = delivery.event::<Event>()?.seq;
        self.advance(session, seen).await
    }

    /// Judges a game server's report.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn on_report(&self, delivery: &Delivery) -> Result<(), Failure> {
        let poison = |error: anyhow::Error| Failure::Poison(error.context("report cannot be read"));
        let Report { session, attempt, kind } =
            delivery.subject.parse().map_err(|error| poison(anyhow::Error::from(error)))?;
        let command = match kind {
            ReportKind::Ready => {
                serde_json::from_slice::<game::Ready>(&delivery.body).map(|report| Command::Ready { attempt, report })
            }
            ReportKind::Finished => serde_json::from_slice::<game::Finished>(&delivery.body)
                .map(|report| Command::Finish { attempt, report }),
        };
        let command = match command {
            Ok(command) => command,
            Err(error) => {
                self.fail(delivery, session, attempt, &error).await?;
                return Err(poison(error.into()));
            }
        };
        match decide_session(&self.log, &self.env, session, command, None).await? {
            Ok(_) => {}
            Err(rejection @ Rejection::Early) => return Err(Failure::Retry(rejection.into())),
            Err(rejection @ Rejection::Unasked) if self.is_fresh(delivery) => {
                return Err(Failure::Retry(rejection.into()));
            }
            Err(rejection @ Rejection::BadResults) => {
                self.fail(delivery, session, attempt, &rejection).await?;
                return Err(Failure::Poison(rejection.into()));
            }
            Err(rejection) => tracing::info!(session.id = %session, attempt, ?kind, %rejection, "report left alone"),
        }
        Ok(())
    }

    /// Whether what a report speaks of may be in the log although it was read without. Later the report is somebody's
    /// invention: it is not kept, as enough of them would leave the real ones no room.
    fn is_fresh(&self, report: &Delivery) -> bool {
        self.env.now() - report.time < LAG
    }

    /// A server whose report cannot be used has failed: there will be no other.
    async fn fail(
        &self,
        delivery: &Delivery,
        session: SessionId,
        attempt: u32,
        report: &impl std::fmt::Display,
    ) -> Result<(), Failure> {
        let failed = PodFailed { attempt, reason: "bad-report".into(), message: report.to_string() };
        match decide_session(&self.log, &self.env, session, Command::FailPod(failed), None).await? {
            Ok(_) => {}
            Err(rejection @ Rejection::Unasked) if self.is_fresh(delivery) => {
                return Err(Failure::Retry(rejection.into()));
            }
            Err(rejection) => {
                tracing::info!(session.id = %session, attempt, %rejection, "bad report of an attempt that is over");
            }
        }
        Ok(())
    }

    /// Looks at a session whose timer fired.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn on_timer(&self, delivery: &Delivery) -> Result<(), Failure> {
        let session =
            subject::timer_session(&delivery.subject).map_err(|error| Failure::Poison(anyhow::Error::from(error)))?;
        let command = Command::Deadline { now: delivery.time, limits: self.limits };
        if let Ok(events) = decide_session(&self.log, &self.env, session, command, None).await? {
            let types: Vec<_> = events.iter().map(garage_events::event::Event::type_name).collect();
            tracing::info!(session.id = %session, ?types, "deadline passed");
        }
        // It may have fired for a phase that is over, or before its time; but it was set for a session that is there.
        self.advance(session, 1).await
    }

    /// Does what a session needs next until it waits, and sets its timer. `seen` is an event of it that is known.
    async fn advance(&self, id: SessionId, mut seen: u64) -> Result<(), Failure> {
        loop {
            let session = self.log.session(id).await?.reaching(seen)?;
            seen = session.head.seq;
            let open = match &session.state {
                State::Open(open) => open,
                State::New | State::Closed(_) => return self.effects.set_timer(id, None).await,
            };
            let deadline = Some(open.deadline(&self.limits));
            let command = match open.next(&self.limits) {
                Next::Wait => return self.effects.set_timer(id, deadline).await,
                Next::RequestPod { attempt } => {
                    // First: what a request needs may be down beyond the hard end, or refuse for good.
                    self.effects.set_timer(id, deadline).await?;
                    Command::RequestPod(self.request(id, open, attempt).await?)
                }
                Next::Open(opened) => Command::Open(opened),
                Next::End(command) => command,
            };
            // Rejected when another instance was quicker; reading again shows what it did.
            if let Err(rejection) = decide_session(&self.log, &self.env, id, command, None).await? {
                tracing::debug!(session.id = %id, %rejection, "somebody else was quicker");
            }
        }
    }

    async fn request(&self, id: SessionId, open: &Open, attempt: u32) -> Result<PodRequested, Failure> {
        let matched = &open.matched;
        let loadouts = self.effects.loadouts(matched.players().cloned().collect()).await?;
        let keep = Duration::try_from(self.limits.ready).unwrap_or_default() + PARK_MARGIN;
        let key = self.effects.park(id, attempt, open.began + self.limits.session, keep).await?;
        Ok(PodRequested {
            attempt,
            region: matched.region.clone(),
            loadouts,
            public_key: key.public_key,
            fingerprint: key.fingerprint,
        })
    }
}

/// How long what is parked outlives the time in which its server must be ready: a director may be restarted meanwhile.
const PARK_MARGIN: Duration = Duration::from_secs(60);
