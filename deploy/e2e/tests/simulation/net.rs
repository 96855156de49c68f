//! Garage's streams beyond a network: the log, the reports, the timers. Each call takes its time on the way there and on
//! the way back, and may be carried out for somebody who is gone.

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
    id::{PlayerId, SessionId},
    inventory,
    log::{Append, AppendError, Decision, Load, Player, ReadError, Reports, Session},
    sim::{Faults, SimLog},
    subject::{Report, SESSIONS, sessions, timer_due},
};
use rand::RngExt;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    consumer::Consumer,
    stage::{Process, Stage},
};

/// The clock of one machine, which is never quite right.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    pub(crate) env: Simulated,
    pub(crate) ahead: time::Duration,
}

impl Env for Clock {
    fn now(&self) -> OffsetDateTime {
        self.env.now() + self.ahead
    }

    fn id(&self) -> Uuid {
        self.env.id()
    }
}

/// When a report was stored, and its sequence.
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
    /// By subject; the stream keeps two of each.
    reported: Arc<Mutex<BTreeMap<String, Vec<Stored>>>>,
    /// When each session's timer fires.
    set: Arc<Mutex<BTreeMap<SessionId, OffsetDateTime>>>,
    /// Up to when the node led that answers stale reads.
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
            set: Arc::default(),
            led_until: Arc::new(Mutex::new(stage.now())),
        };
        net.deliver(&net.session, vec![SESSIONS.into()]);
        net.deliver(&net.director, vec![sessions("pod-requested"), sessions("closed")]);
        net.set_faults(false);
        stage.spawn(Process::Outside, net.clone().elections());
        net
    }

    /// Whether all that happened was reacted to.
    pub(crate) fn is_idle(&self) -> bool {
        self.consumers().iter().all(|consumer| consumer.is_idle())
    }

    pub(crate) fn consumers(&self) -> [&Consumer; 4] {
        [&self.session, &self.director, &self.reports, &self.timers]
    }

    /// From now on the log does what it should.
    pub(crate) fn calm(&self) {
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

    /// From time to time another node leads, and the one that led until then does not know it for a while.
    async fn elections(self) {
        loop {
            let (quiet, stale) =
                self.stage.draw(|dice| (dice.random_range(2_000..20_000), dice.random_range(200..3_000)));
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
        self.log.set_faults(faults, self.stage.draw(|dice| dice.random()));
    }

    /// Stores what a game server says.
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

    /// Sets a session's timer, or takes it away.
    pub(crate) fn set_timer(&self, session: SessionId, at: Option<OffsetDateTime>) {
        let mut set = self.set.lock().unwrap();
        let Some(at) = at else {
            set.remove(&session);
            return;
        };
        set.insert(session, at);
        // To the second, and then when the server comes to it.
        let late = self.stage.draw(|dice| dice.random_range(0..5_000));
        let wait = Duration::try_from(at - self.stage.now()).unwrap_or_default() + Duration::from_millis(late);
        let net = self.clone();
        self.stage.spawn(Process::Outside, async move {
            net.stage.sleep(wait).await;
            let mut set = net.set.lock().unwrap();
            if set.get(&session) == Some(&at) {
                set.remove(&session);
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
        let max_wait = Duration::from_micros(self.stage.draw(|dice| dice.random_range(0..8_000)));
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
