//! What the log's events bring about: a server is started, or removed.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use garage_events::{
    env::Env,
    event::Event as _,
    game::{Config, Nats, Secrets},
    id::SessionId,
    log::Log,
    reaction::decide_session,
    session::{Command, Event, Open, Phase, PodFailed, PodRequested, PodScheduled, Rejection, State},
    subject::{Aggregate, Report, ReportKind, game_inbox},
};
use garage_worker::reactor::{Delivery, Failure};
use time::Duration;
use uuid::Uuid;

use crate::backend::{Backend, CreateError, Made, Name, Order, Placed, Unavailable};

impl From<Unavailable> for Failure {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error.0)
    }
}

/// What all games are told.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The key that connection tokens are verified with, SubjectPublicKeyInfo PEM.
    pub token_key: String,
    /// All such keys, by the `kid` that names them.
    pub token_keys: BTreeMap<String, String>,
    /// Where they report.
    pub nats_url: String,
    /// From the match to the hard end.
    pub session: Duration,
}

/// Has the games' secrets, which session parked.
pub trait Keys: Clone + Send + Sync + 'static {
    /// What is parked under a fingerprint.
    ///
    /// # Errors
    /// [`CreateError::Refused`] when it is lost: it is not there, or does not open.
    fn secrets(&self, fingerprint: &str) -> impl Future<Output = Result<Secrets, CreateError>> + Send;
}

/// What reactions work with.
#[derive(Debug, Clone)]
pub struct App<L, W, B, K> {
    /// The log.
    pub log: L,
    /// Time and ids.
    pub env: W,
    /// What runs game servers.
    pub backend: B,
    /// Where the games' keys are.
    pub keys: K,
    /// What all games are told.
    pub terms: Arc<Terms>,
}

impl<L: Log, W: Env, B: Backend, K: Keys> App<L, W, B, K> {
    /// Reacts to an event of the consumer `director`.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn on_event(&self, delivery: &Delivery) -> Result<(), Failure> {
        let Some(Aggregate::Session(session)) = Aggregate::of(&delivery.subject) else {
            return Err(Failure::Poison(anyhow::anyhow!("{} is no session's subject", delivery.subject)));
        };
        let recorded = delivery.event::<Event>()?;
        match recorded.event {
            Event::PodRequested(requested) => self.requested(session, recorded.seq, recorded.id, requested).await,
            Event::Closed(_) => self.closed(session, recorded.seq).await,
            event @ (Event::Matched(_)
            | Event::PodScheduled(_)
            | Event::PodFailed(_)
            | Event::PodReady(_)
            | Event::Opened(_)
            | Event::Failed(_)
            | Event::Finished(_)) => {
                tracing::debug!(session.id = %session, event.type = event.type_name(), "not the director's matter");
                Ok(())
            }
        }
    }

    async fn requested(
        &self,
        session: SessionId,
        seq: u64,
        cause: Uuid,
        requested: PodRequested,
    ) -> Result<(), Failure> {
        let name = Name { session, attempt: requested.attempt };
        let state = self.log.session(session).await?.reaching(seq)?.state;
        if state.present_attempt() != Some(name.attempt) {
            self.backend.delete(name).await?;
            return Ok(());
        }
        let State::Open(open @ Open { phase: Phase::Starting(_), .. }) = state else {
            // The players know its address already: an old delivery, and nothing to do.
            return Ok(());
        };
        if name.attempt > 1 {
            for attempt in 1..name.attempt {
                self.backend.delete(Name { session, attempt }).await?;
            }
        }
        match self.make(name, &open, requested).await {
            Ok(Made::Placed(placed)) => self.scheduled(name, Some(cause), placed).await,
            // The watch sees when it has been. Its session may be over since it was read.
            Ok(Made::Waiting) => self.remove_unwanted(name).await,
            Err(CreateError::Refused { reason, message }) => {
                metrics::counter!("garage_instances_failed_total", "reason" => reason).increment(1);
                self.fail(name, reason, message, Some(cause)).await
            }
            Err(CreateError::Over) => {
                // Since the session was read it may have been played to its end by it, and its results be on their way.
                tracing::info!(session.id = %session, pod.name = %name, "instance is over; its end is judged elsewhere");
                Ok(())
            }
            Err(CreateError::Unavailable(error)) => Err(error.into()),
        }
    }

    async fn make(&self, name: Name, open: &Open, requested: PodRequested) -> Result<Made, CreateError> {
        let Secrets { private_key, credentials } = match self.keys.secrets(&requested.fingerprint).await {
            Ok(secrets) => secrets,
            // One that is made needs its key no more, which may be gone from Redis by now.
            Err(error) => return self.backend.find(name).await?.ok_or(error),
        };
        let report = |kind| Report { session: name.session, attempt: name.attempt, kind }.to_string();
        let config = Config {
            session: name.session,
            attempt: name.attempt,
            players: requested.loadouts,
            private_key,
            token_key: self.terms.token_key.clone(),
            token_keys: self.terms.token_keys.clone(),
            nats: Nats { url: self.terms.nats_url.clone(), credentials, inbox: game_inbox(name.session, name.attempt) },
            ready: report(ReportKind::Ready),
            finished: report(ReportKind::Finished),
            ends_at: open.began + self.terms.session,
        };
        let order = Order { queue: open.matched.queue.clone(), region: requested.region, config };
        let made = self.backend.create(&order).await?;
        metrics::counter!("garage_instances_created_total").increment(1);
        Ok(made)
    }

    /// Notes where an instance is placed, if its attempt waits for that. False when that cannot be said yet.
    ///
    /// # Errors
    /// [`Failure`]
    pub(crate) async fn placed(&self, name: Name, placed: &Placed) -> Result<bool, Failure> {
        let session = self.log.session(name.session).await?;
        if session.state.last_attempt() < name.attempt {
            // Who answered has not seen it asked for. If nobody ever did, it is an orphan.
            return Ok(false);
        }
        let State::Open(Open { phase: Phase::Starting(starting), .. }) = &session.state else { return Ok(true) };
        if starting.attempt == name.attempt && starting.scheduled.is_none() {
            let cause = session.history.iter().find_map(|recorded| match &recorded.event {
                Event::PodRequested(requested) if requested.attempt == name.attempt => Some(recorded.id),
                _ => None,
            });
            self.scheduled(name, cause, placed.clone()).await?;
        }
        Ok(true)
    }

    async fn scheduled(&self, name: Name, cause: Option<Uuid>, placed: Placed) -> Result<(), Failure> {
        let Placed { pod, node, public_ip } = placed;
        let command = Command::Schedule(PodScheduled { attempt: name.attempt, pod, node, public_ip });
        match decide_session(&self.log, &self.env, name.session, command, cause).await? {
            Ok(_) => {
                tracing::info!(session.id = %name.session, pod.name = %name, "instance placed");
                Ok(())
            }
            Err(rejection) => self.rejected(name, &rejection).await,
        }
    }

    /// Notes that an attempt failed, and removes what is left of it.
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
        let command = Command::FailPod(PodFailed { attempt: name.attempt, reason: reason.into(), message });
        match decide_session(&self.log, &self.env, name.session, command, cause).await? {
            Ok(_) => Ok(self.backend.delete(name).await.map(drop)?),
            Err(rejection) => self.rejected(name, &rejection).await,
        }
    }

    /// The session wants no news of an instance: what is no longer its present attempt is removed.
    async fn rejected(&self, name: Name, rejection: &Rejection) -> Result<(), Failure> {
        tracing::debug!(session.id = %name.session, pod.name = %name, %rejection, "instance is no news");
        // Moot may mean either: scheduled before, or failed since.
        self.remove_unwanted(name).await
    }

    /// Reads the session at the leader again, after the instance was made, and removes what is no longer its present
    /// attempt.
    async fn remove_unwanted(&self, name: Name) -> Result<(), Failure> {
        let state = self.log.session(name.session).await?.state;
        if state.last_attempt() < name.attempt {
            return Err(Failure::Retry(Rejection::Unasked.into()));
        }
        if state.present_attempt() != Some(name.attempt) {
            tracing::info!(session.id = %name.session, pod.name = %name, "instance came too late");
            self.backend.delete(name).await?;
        }
        Ok(())
    }

    /// Removes every instance that was ever asked for.
    async fn closed(&self, session: SessionId, seq: u64) -> Result<(), Failure> {
        for recorded in self.log.session(session).await?.reaching(seq)?.history {
            if let Event::PodRequested(PodRequested { attempt, .. }) = recorded.event {
                self.backend.delete(Name { session, attempt }).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
    use crate::backend::Listed;

    /// Has one instance, which is over.
    #[derive(Clone)]
    struct Over;

    impl Backend for Over {
        async fn create(&self, _: &Order) -> Result<Made, CreateError> {
            Err(CreateError::Over)
        }

        async fn find(&self, _: Name) -> Result<Option<Made>, Unavailable> {
            Ok(None)
        }

        async fn list(&self) -> Listed {
            Ok(Vec::new()).into()
        }

        async fn delete(&self, name: Name) -> Result<bool, Unavailable> {
            panic!("{name} is removed before its end is judged");
        }
    }

    #[derive(Clone)]
    struct There;

    impl Keys for There {
        async fn secrets(&self, _: &str) -> Result<Secrets, CreateError> {
            Ok(Secrets { private_key: Secret::new("private"), credentials: Secret::new("user") })
        }
    }

    #[test]
    fn a_request_that_comes_again_when_its_server_is_over_does_not_say_that_it_failed() {
        let env = Simulated::at(datetime!(2026-01-01 00:00 UTC));
        let log = SimLog::new(env.clone());
        let session = SessionId::new(env.id());
        let member = Member { player: "anna".parse().unwrap(), ticket: TicketId::new(env.id()), rank: 0 };
        let matched = Matched {
            queue: "ranked".parse().unwrap(),
            region: "eu".parse().unwrap(),
            teams: vec![Team { name: "1".into(), players: vec![member] }],
            rules: "test".into(),
            pool_seq: 0,
            clock: env.now(),
        };
        let requested = PodRequested {
            attempt: 1,
            region: "eu".parse().unwrap(),
            loadouts: Vec::<Loadout>::new(),
            public_key: "public".into(),
            fingerprint: "f00d".into(),
        };
        let events = [Event::from(matched), requested.into()];
        let decision = Decision::new(&env, session.uuid(), None);
        let decision = decision.change(&env, Aggregate::Session(session), Head::default(), events);
        block_on(log.append(decision)).unwrap();

        let terms = Terms {
            token_key: String::new(),
            token_keys: BTreeMap::new(),
            nats_url: String::new(),
            session: Duration::MINUTE,
        };
        let app = App { log: log.clone(), env, backend: Over, keys: There, terms: Arc::new(terms) };
        let message = log.messages(&Aggregate::Session(session).filter()).pop().unwrap();
        let delivery = Delivery {
            seq: message.seq,
            time: message.time,
            subject: message.subject,
            body: message.body,
            delivered: 2,
        };
        block_on(app.on_event(&delivery)).unwrap();
        let history = block_on(log.session(session)).unwrap().history;
        let types: Vec<_> = history.iter().map(|recorded| recorded.event.type_name()).collect();
        assert_eq!(types, ["Matched", "PodRequested"]);
    }
}
