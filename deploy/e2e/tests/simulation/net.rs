//! Garage's streams behind a network: the log, the reports and the timers. The request and the answer of each call take
//! time, and a request may be carried out although its caller has crashed.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::{Either, select};
use garage_events::{
    env::{Env, Simulated},
    event::Recorded,
    id::{PartyId, PlayerId, SessionId},
    inventory,
    jetstream::setup::DIRECTOR,
    log::{Append, AppendError, Decision, Load, Party, Player, ReadError, Reports, Session},
    sim::{Faults, SimLog},
    subject::{Report, SESSIONS, timer_due},
};
use rand::RngExt;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    consumer::Consumer,
    stage::{Process, Stage},
};

/// The clock of one machine. It differs from the true time by a fixed offset.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    pub(crate) env: Simulated,
    pub(crate) offset: time::Duration,
}

impl Env for Clock {
    fn now(&self) -> OffsetDateTime {
        self.env.now() + self.offset
    }

    fn id(&self) -> Uuid {
        self.env.id()
    }
}

/// When a report was stored, and with which sequence.
type Stored = (OffsetDateTime, u64);

/// The streams and their consumers.
#[derive(Clone)]
pub(crate) struct Net {
    pub(crate) stage: Stage,
    pub(crate) log: SimLog<Simulated>,
    pub(crate) session: Consumer,
    pub(crate) director: Consumer,
    pub(crate) reports: Consumer,
    pub(crate) timers: Consumer,
    /// The stored reports by subject. The stream keeps the last two of each.
    reported: Arc<Mutex<BTreeMap<String, Vec<Stored>>>>,
    /// When each session's timer fires.
    timers_at: Arc<Mutex<BTreeMap<SessionId, OffsetDateTime>>>,
    /// When the node that answers stale reads stopped leading.
    led_until: Arc<Mutex<OffsetDateTime>>,
}

impl Net {
    pub(crate) fn new(stage: &Stage) -> Self {
        let consumer = || Consumer::new(stage);
        let net = Self {
            stage: stage.clone(),
            log: SimLog::new(stage.env.clone()),
            session: consumer(),
            director: consumer(),
            reports: consumer(),
            timers: consumer(),
            reported: Arc::default(),
            timers_at: Arc::default(),
            led_until: Arc::new(Mutex::new(stage.now())),
        };
        net.deliver(&net.session, vec![SESSIONS.into()]);
        net.deliver(&net.director, DIRECTOR.filters());
        net.set_faults(false);
        stage.spawn(Process::Outside, net.clone().elections());
        net
    }

    /// Whether every message was handled.
    pub(crate) fn is_idle(&self) -> bool {
        self.consumers().iter().all(|consumer| consumer.is_idle())
    }

    pub(crate) fn consumers(&self) -> [&Consumer; 4] {
        [&self.session, &self.director, &self.reports, &self.timers]
    }

    /// Stops the log's faults.
    pub(crate) fn stop_faults(&self) {
        self.log.set_faults(Faults::default(), 0);
    }

    fn deliver(&self, consumer: &Consumer, filters: Vec<String>) {
        let (consumer, mut follow) = (consumer.clone(), self.log.follow(filters, 1));
        self.stage.spawn(Process::Outside, async move {
            loop {
                let message = follow.next().await;
                consumer.push(Some(message.seq), message.time, message.subject, message.body);
            }
        });
    }

    /// From time to time another node takes the lead. The former leader does not notice for a while, and answers stale
    /// reads.
    async fn elections(self) {
        loop {
            let (quiet, stale) = self.stage.draw(|rng| (rng.random_range(2_000..20_000), rng.random_range(200..3_000)));
            self.stage.sleep(Duration::from_millis(quiet)).await;
            if !self.stage.is_faulty() {
                return;
            }
            *self.led_until.lock().unwrap() = self.stage.now();
            self.set_faults(true);
            self.stage.sleep(Duration::from_millis(stale)).await;
            if !self.stage.is_faulty() {
                return;
            }
            self.set_faults(false);
        }
    }

    fn set_faults(&self, election: bool) {
        let plan = self.stage.plan;
        let led_until = self.log.messages(garage_events::subject::ALL).last().map_or(0, |last| last.seq);
        let faults = Faults {
            lost_answers: plan.lost_answers,
            lost_appends: plan.lost_appends,
            lost_reads: plan.lost_reads,
            stale_reads: if election { plan.stale_reads } else { 0 },
            led_until,
            unnamed_conflicts: plan.unnamed_conflicts,
            late_messages: plan.late_messages,
        };
        self.log.set_faults(faults, self.stage.draw(|rng| rng.random()));
    }

    /// Stores a game server's report.
    pub(crate) fn report(&self, subject: &str, body: Vec<u8>) {
        let now = self.stage.now();
        let seq = self.reports.push(None, now, subject.into(), body.into());
        let mut reported = self.reported.lock().unwrap();
        let kept = reported.entry(subject.into()).or_default();
        kept.push((now, seq));
        if kept.len() > 2 {
            self.reports.forget(kept.remove(0).1);
        }
    }

    /// Sets a session's timer, or removes it.
    pub(crate) fn set_timer(&self, session: SessionId, at: Option<OffsetDateTime>) {
        let mut timers_at = self.timers_at.lock().unwrap();
        let Some(at) = at else {
            timers_at.remove(&session);
            return;
        };
        timers_at.insert(session, at);
        // The server's schedules are precise to the second, and fire some time later.
        let late = self.stage.draw(|rng| rng.random_range(0..5_000));
        let wait = Duration::try_from(at - self.stage.now()).unwrap_or_default() + Duration::from_millis(late);
        let net = self.clone();
        self.stage.spawn(Process::Outside, async move {
            net.stage.sleep(wait).await;
            let mut timers_at = net.timers_at.lock().unwrap();
            if timers_at.get(&session) == Some(&at) {
                timers_at.remove(&session);
                net.timers.push(None, net.stage.now(), timer_due(session), bytes::Bytes::new());
            }
        });
    }
}

impl Load for Net {
    async fn player(&self, id: &PlayerId) -> Result<Player, ReadError> {
        let (log, id) = (self.log.clone(), id.clone());
        self.stage.ask(async move { log.player(&id).await }).await
    }

    async fn party(&self, id: PartyId) -> Result<Party, ReadError> {
        let log = self.log.clone();
        self.stage.ask(async move { log.party(id).await }).await
    }

    async fn session(&self, id: SessionId) -> Result<Session, ReadError> {
        let log = self.log.clone();
        self.stage.ask(async move { log.session(id).await }).await
    }

    async fn inventory(&self, id: &PlayerId) -> Result<Option<Recorded<inventory::Event>>, ReadError> {
        let (log, id) = (self.log.clone(), id.clone());
        self.stage.ask(async move { log.inventory(&id).await }).await
    }
}

impl Append for Net {
    async fn append(&self, decision: Decision) -> Result<Vec<u64>, AppendError> {
        let log = self.log.clone();
        let stage = self.stage.clone();
        let append = self.stage.ask(async move {
            stage.commit().await;
            log.append(decision).await
        });
        if !self.stage.fault(self.stage.plan.late_appends) {
            return append.await;
        }
        let max_wait = Duration::from_micros(self.stage.draw(|rng| rng.random_range(0..8_000)));
        match select(pin!(append), pin!(self.stage.sleep(max_wait))).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => Err(AppendError::Unavailable("no answer in time".into())),
        }
    }
}

impl Reports for Net {
    async fn reported(&self, report: Report) -> Result<bool, ReadError> {
        let net = self.clone();
        let ask = async move {
            let plan = net.stage.plan;
            if net.stage.fault(plan.lost_reads) {
                return Err(ReadError::Unavailable("the read was lost".into()));
            }
            let led_until = *net.led_until.lock().unwrap();
            let election = net.stage.now() - led_until < time::Duration::seconds(3);
            let stale = election && net.stage.fault(plan.stale_reads);
            let reported = net.reported.lock().unwrap();
            let kept = reported.get(&report.to_string()).and_then(|kept| kept.first());
            Ok(kept.is_some_and(|(time, _)| !stale || *time <= led_until))
        };
        self.stage.ask(ask).await
    }
}
