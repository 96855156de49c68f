//! Reacts to the log's events: starts and removes game servers.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use garage_events::{
    env::Env,
    event::Event as _,
    game::{self, Config, Nats, Secrets},
    id::SessionId,
    log::Log,
    reaction::decide_session,
    session::{self, Command, Event, Limits, Open, Phase, PodFailed, PodRequested, PodScheduled, Rejection, State},
    subject::{Aggregate, Report, ReportKind, game_inbox},
};
use garage_worker::reactor::{Delivery, Failure};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::backend::{Backend, CreateError, Created, Name, Order, Placed, Unavailable};

impl From<Unavailable> for Failure {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error.0)
    }
}

/// The part of a game server's configuration that is the same for all game servers.
#[derive(Debug, Clone)]
pub struct GameSettings {
    /// The public key that verifies connection tokens: SubjectPublicKeyInfo in PEM.
    pub token_key: String,
    /// All public keys that verify connection tokens, by their `kid`. Two during a key rotation.
    pub token_keys: BTreeMap<String, String>,
    /// URLs of the NATS servers that game servers report to, separated by commas.
    pub nats_url: String,
}

/// The hard end of a session, as its request for a game server says. An older session worker did not write it; then it
/// is the default.
pub(crate) fn hard_end(open: &Open) -> OffsetDateTime {
    open.hard_end(&Limits::default())
}

/// Gives access to the game servers' secrets, which the session worker stores in Redis.
pub trait Keys: Clone + Send + Sync + 'static {
    /// Reads and opens the secrets that are stored under this fingerprint.
    ///
    /// # Errors
    /// [`CreateError::Refused`] when they are missing or cannot be opened.
    fn secrets(&self, fingerprint: &str) -> impl Future<Output = Result<Secrets, CreateError>> + Send;
}

/// Everything that a reaction uses. [`crate::watch`] shares it.
#[derive(Debug, Clone)]
pub struct App<L, W, B, K> {
    /// Sessions are read from it, and the director's decisions are appended to it.
    pub log: L,
    /// The clock and the source of ids.
    pub env: W,
    /// Runs the game servers.
    pub backend: B,
    /// The games' secrets.
    pub keys: K,
    /// Goes into the configuration of every game server.
    pub settings: Arc<GameSettings>,
}

impl<L: Log, W: Env, B: Backend, K: Keys> App<L, W, B, K> {
    /// Handles an event that the consumer `director` delivered.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn on_event(&self, delivery: &Delivery) -> Result<(), Failure> {
        let Some(Aggregate::Session(session)) = Aggregate::of(&delivery.subject) else {
            return Err(Failure::Poison(anyhow::anyhow!("{} is not the subject of a session", delivery.subject)));
        };
        let recorded = delivery.event::<Event>()?;
        match recorded.event {
            Event::PodRequested(requested) => {
                self.on_pod_requested(session, recorded.seq, recorded.id, requested).await
            }
            // The attempt is over, whatever its server still does. A server that misbehaved would go on, and after
            // `Opened` its players with it.
            Event::PodFailed(failed) => {
                self.backend.delete(Name { session, attempt: failed.attempt }).await?;
                Ok(())
            }
            Event::Closed(_) => self.on_closed(session, recorded.seq).await,
            event @ (Event::Proposed(_)
            | Event::Accepted(_)
            | Event::ProposalEnded(_)
            | Event::Matched(_)
            | Event::PodScheduled(_)
            | Event::PodReady(_)
            | Event::Opened(_)
            | Event::Failed(_)
            | Event::Finished(_)) => {
                tracing::debug!(session.id = %session, event.type = event.type_name(), "event ignored by the director");
                Ok(())
            }
        }
    }

    async fn on_pod_requested(
        &self,
        session: SessionId,
        seq: u64,
        cause: Uuid,
        requested: PodRequested,
    ) -> Result<(), Failure> {
        let name = Name { session, attempt: requested.attempt };
        let state = self.log.session(session).await?.read_up_to(seq)?.state;
        if state.current_attempt() != Some(name.attempt) {
            self.backend.delete(name).await?;
            return Ok(());
        }
        let State::Open(open @ Open { phase: Phase::Starting(_), .. }) = state else {
            // The session has opened: this is an old delivery, and there is nothing left to do.
            return Ok(());
        };
        match self.create(name, &open, requested).await {
            Ok(Created::Placed(placed)) => self.append_scheduled(name, Some(cause), placed).await?,
            // The watch notices when the instance is placed. Meanwhile the session may have ended.
            Ok(Created::Waiting) => self.remove_unwanted(name).await?,
            Err(CreateError::Refused { reason, message }) => {
                metrics::counter!("garage_instances_failed_total", "reason" => reason).increment(1);
                self.fail(name, reason, message, Some(cause)).await?;
            }
            Err(CreateError::Over) => {
                // This may not be a failure: the match may have finished since the session was read, and the results
                // may be on their way.
                tracing::info!(session.id = %session, pod.name = %name, "instance has exited; the watch will handle it");
            }
            Err(CreateError::Unavailable(error)) => return Err(error.into()),
        }
        // Last, because a removal may take seconds, and this attempt must not wait for it.
        for attempt in 1..name.attempt {
            self.backend.delete(Name { session, attempt }).await?;
        }
        Ok(())
    }

    async fn create(&self, name: Name, open: &Open, requested: PodRequested) -> Result<Created, CreateError> {
        let Secrets { private_key, credentials } = match self.keys.secrets(&requested.fingerprint).await {
            Ok(secrets) => secrets,
            // An instance that exists already does not need its key again, and Redis may not have it any more.
            Err(error) => return self.backend.find(name).await?.ok_or(error),
        };
        let report = |kind| Report { session: name.session, attempt: name.attempt, kind }.to_string();
        let config = Config {
            session: name.session,
            attempt: name.attempt,
            players: requested.loadouts,
            teams: open.matched.teams.iter().map(team).collect(),
            private_key,
            token_key: self.settings.token_key.clone(),
            token_keys: self.settings.token_keys.clone(),
            nats: Nats {
                url: self.settings.nats_url.clone(),
                credentials,
                inbox: game_inbox(name.session, name.attempt),
            },
            ready: report(ReportKind::Ready),
            finished: report(ReportKind::Finished),
            ends_at: hard_end(open),
        };
        let order = Order { queue: open.matched.queue.clone(), region: requested.region, config };
        let created = self.backend.create(&order).await?;
        metrics::counter!("garage_instances_created_total").increment(1);
        Ok(created)
    }

    /// Appends the placement of an instance, unless the session already has it. Returns false when the read is too old
    /// to decide.
    ///
    /// # Errors
    /// [`Failure`]
    pub(crate) async fn record_placement(&self, name: Name, placed: &Placed) -> Result<bool, Failure> {
        let session = self.log.session(name.session).await?;
        if session.state.last_attempt() < name.attempt {
            // The NATS node that answered has not seen the request for this attempt. If there is no request at all, the
            // instance is an orphan.
            return Ok(false);
        }
        let State::Open(Open { phase: Phase::Starting(starting), .. }) = &session.state else { return Ok(true) };
        if starting.attempt == name.attempt && starting.scheduled.is_none() {
            let cause = session.history.iter().find_map(|recorded| match &recorded.event {
                Event::PodRequested(requested) if requested.attempt == name.attempt => Some(recorded.id),
                _ => None,
            });
            self.append_scheduled(name, cause, placed.clone()).await?;
        }
        Ok(true)
    }

    async fn append_scheduled(&self, name: Name, cause: Option<Uuid>, placed: Placed) -> Result<(), Failure> {
        let Placed { pod, node, public_ip } = placed;
        let command = Command::Schedule(PodScheduled { attempt: name.attempt, pod, node, public_ip });
        match decide_session(&self.log, &self.env, name.session, command, cause).await? {
            Ok(_) => {
                tracing::info!(session.id = %name.session, pod.name = %name, "instance placed");
                Ok(())
            }
            Err(rejection) => self.on_rejection(name, &rejection).await,
        }
    }

    /// Appends that an attempt failed, and removes the rest of its instance.
    ///
    /// # Errors
    /// [`Failure`]
    pub(crate) async fn fail(
        &self,
        name: Name,
        reason: &str,
        message: String,
        cause: Option<Uuid>,
    ) -> Result<(), Failure> {
        tracing::warn!(session.id = %name.session, pod.name = %name, reason, message, "instance failed");
        let command = Command::FailPod(PodFailed::new(name.attempt, reason, &message));
        match decide_session(&self.log, &self.env, name.session, command, cause).await? {
            Ok(_) => Ok(self.backend.delete(name).await.map(drop)?),
            Err(rejection) => self.on_rejection(name, &rejection).await,
        }
    }

    /// Handles a rejected command about an instance. Removes the instance if it is not the session's current attempt.
    async fn on_rejection(&self, name: Name, rejection: &Rejection) -> Result<(), Failure> {
        tracing::debug!(session.id = %name.session, pod.name = %name, %rejection, "command rejected by the session");
        // `Rejection::NoChange` has two possible causes: the attempt is scheduled already, or it has failed since.
        self.remove_unwanted(name).await
    }

    /// Reads the session again, at the leader, after the instance was created. Removes the instance if it is not the
    /// current attempt.
    async fn remove_unwanted(&self, name: Name) -> Result<(), Failure> {
        let state = self.log.session(name.session).await?.state;
        if state.last_attempt() < name.attempt {
            return Err(Failure::Retry(Rejection::UnknownAttempt.into()));
        }
        if state.current_attempt() != Some(name.attempt) {
            tracing::info!(session.id = %name.session, pod.name = %name, "instance is not needed any more");
            self.backend.delete(name).await?;
        }
        Ok(())
    }

    /// Removes the instances of all attempts that the session ever requested.
    async fn on_closed(&self, session: SessionId, seq: u64) -> Result<(), Failure> {
        for recorded in self.log.session(session).await?.read_up_to(seq)?.history {
            if let Event::PodRequested(PodRequested { attempt, .. }) = recorded.event {
                self.backend.delete(Name { session, attempt }).await?;
            }
        }
        Ok(())
    }
}

/// A team as its game server sees it.
fn team(team: &session::Team) -> game::Team {
    let players = team.players.iter().map(|member| member.player.clone());
    game::Team { name: team.name.clone(), players: players.collect() }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::executor::block_on;
    use garage_events::{
        env::Simulated,
        game::{Loadout, Secret},
        id::TicketId,
        log::{Append, Decision, Head, Load},
        session::{Matched, Member, Team},
        sim::SimLog,
    };
    use time::macros::datetime;

    use super::*;
    use crate::backend::Listing;

    /// A backend with one instance, which has exited.
    #[derive(Clone)]
    struct ExitedInstance;

    impl Backend for ExitedInstance {
        async fn create(&self, _: &Order) -> Result<Created, CreateError> {
            Err(CreateError::Over)
        }

        async fn find(&self, _: Name) -> Result<Option<Created>, Unavailable> {
            Ok(None)
        }

        async fn list(&self) -> Listing {
            Ok(Vec::new()).into()
        }

        async fn delete(&self, name: Name) -> Result<bool, Unavailable> {
            panic!("{name} is removed before its exit is handled");
        }
    }

    #[derive(Clone)]
    struct FixedKeys;

    impl Keys for FixedKeys {
        async fn secrets(&self, _: &str) -> Result<Secrets, CreateError> {
            Ok(Secrets { private_key: Secret::new("private"), credentials: Secret::new("user") })
        }
    }

    /// A director, and a session with these events after `Matched`.
    fn director<B: Backend>(
        backend: B,
        events: impl IntoIterator<Item = Event>,
    ) -> (App<SimLog<Simulated>, Simulated, B, FixedKeys>, SessionId) {
        let env = Simulated::at(datetime!(2026-01-01 00:00 UTC));
        let log = SimLog::new(env.clone());
        let session = SessionId::new(env.id());
        let member = Member { player: "anna".parse().unwrap(), ticket: TicketId::new(env.id()), rank: 0 };
        let matched = Matched {
            queue: "ranked".parse().unwrap(),
            region: "eu".parse().unwrap(),
            teams: vec![Team { name: "1".into(), players: vec![member] }],
            latencies: Default::default(),
            rules: "test".into(),
            pool_seq: 0,
            clock: env.now(),
            seed: 0,
            skipped: Vec::new(),
            left_out: Vec::new(),
            search_steps: None,
        };
        let events = [Event::from(matched)].into_iter().chain(events);
        let decision = Decision::new(&env, session.uuid(), None);
        let decision = decision.change(&env, Aggregate::Session(session), Head::default(), events);
        block_on(log.append(decision)).unwrap();
        let settings = GameSettings { token_key: String::new(), token_keys: BTreeMap::new(), nats_url: String::new() };
        (App { log, env, backend, keys: FixedKeys, settings: Arc::new(settings) }, session)
    }

    fn requested(attempt: u32) -> Event {
        PodRequested {
            attempt,
            region: "eu".parse().unwrap(),
            loadouts: Vec::<Loadout>::new(),
            public_key: "public".into(),
            fingerprint: "f00d".into(),
            ends_at: None,
        }
        .into()
    }

    /// Delivers the last event of the session a second time.
    fn redeliver<B: Backend>(app: &App<SimLog<Simulated>, Simulated, B, FixedKeys>, session: SessionId) {
        let message = app.log.messages(&Aggregate::Session(session).filter()).pop().unwrap();
        let delivery = Delivery {
            seq: message.seq,
            time: message.time,
            subject: message.subject,
            body: message.body,
            delivered: 2,
        };
        block_on(app.on_event(&delivery)).unwrap();
    }

    #[test]
    fn a_redelivered_request_does_not_fail_the_attempt_when_its_server_has_exited() {
        let (app, session) = director(ExitedInstance, [requested(1)]);
        redeliver(&app, session);
        let history = block_on(app.log.session(session)).unwrap().history;
        let types: Vec<_> = history.iter().map(|recorded| recorded.event.type_name()).collect();
        assert_eq!(types, ["Matched", "PodRequested"]);
    }

    /// A backend that records its calls.
    #[derive(Clone, Default)]
    struct RecordingBackend(Arc<Mutex<Vec<String>>>);

    impl Backend for RecordingBackend {
        async fn create(&self, order: &Order) -> Result<Created, CreateError> {
            self.0.lock().unwrap().push(format!("create {}", order.name().attempt));
            Ok(Created::Waiting)
        }

        async fn find(&self, _: Name) -> Result<Option<Created>, Unavailable> {
            Ok(None)
        }

        async fn list(&self) -> Listing {
            Ok(Vec::new()).into()
        }

        async fn delete(&self, name: Name) -> Result<bool, Unavailable> {
            self.0.lock().unwrap().push(format!("delete {}", name.attempt));
            Ok(true)
        }
    }

    #[test]
    fn an_attempt_does_not_wait_for_the_removal_of_the_earlier_ones() {
        let backend = RecordingBackend::default();
        let failed = |attempt| Event::from(PodFailed::new(attempt, "exited", "exit code 7"));
        let events = [requested(1), failed(1), requested(2), failed(2), requested(3)];
        let (app, session) = director(backend.clone(), events);
        redeliver(&app, session);
        assert_eq!(*backend.0.lock().unwrap(), ["create 3", "delete 1", "delete 2"]);
    }
}
