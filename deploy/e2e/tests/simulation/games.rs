//! What runs game servers, and the servers: most play their game, some do what servers should not.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use garage_director::backend::{
    Backend, CreateError, Exit, How, Instance, Listed, Made, Name, Order, Placed, State, Unavailable,
};
use garage_events::{
    env::Env,
    game::{Config, Finished, Placing, Ready},
    id::SessionId,
    log::Session,
    player::Ending,
    session::{Open, Phase, State as Course},
    subject::Aggregate,
};
use rand::RngExt;
use serde::Serialize;
use time::OffsetDateTime;

use crate::{
    history::{self, End},
    net::Net,
    stage::{Process, Stage},
};

/// The instances, on a machine of their own. Clones are one.
#[derive(Clone)]
pub(crate) struct Games {
    stage: Stage,
    net: Net,
    state: Arc<Mutex<Instances>>,
}

#[derive(Default)]
struct Instances {
    there: BTreeMap<Name, Instance>,
    started: u64,
    wrongs: Vec<String>,
    /// Servers of present attempts whose results were acknowledged: when, and whether the session ran.
    played: BTreeMap<Name, (OffsetDateTime, bool)>,
}

/// What becomes of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behavior {
    Plays,
    DiesBeforeReady,
    NeverReady,
    ReadyTooLate,
    DiesWhileRacing,
    DiesAfterItsResults,
    NeverFinishes,
    ReportsRubbish,
    ReportsOthers,
}

/// How long results may lie there before they are judged, whatever goes wrong meanwhile.
const JUDGED: time::Duration = time::Duration::seconds(40);

/// What may be the matter with one.
pub(crate) const BAD: [Behavior; 8] = [
    Behavior::DiesBeforeReady,
    Behavior::NeverReady,
    Behavior::ReadyTooLate,
    Behavior::DiesWhileRacing,
    Behavior::DiesAfterItsResults,
    Behavior::NeverFinishes,
    Behavior::ReportsRubbish,
    Behavior::ReportsOthers,
];

impl Games {
    pub(crate) fn new(stage: &Stage, net: &Net) -> Self {
        let games = Self { stage: stage.clone(), net: net.clone(), state: Arc::default() };
        if stage.plan.sweeps {
            // Of a session that no log knows.
            let name = Name { session: SessionId::new(stage.env.id()), attempt: 1 };
            let orphan = Instance { name, created: stage.now(), state: State::Running(Self::placed(name)) };
            games.state().there.insert(name, orphan);
        }
        games
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state().there.is_empty()
    }

    /// How many were started in all.
    pub(crate) fn started(&self) -> u64 {
        self.state().started
    }

    /// What was done to instances that never should be, when sessions have ended so.
    pub(crate) fn wrongs(&self, ends: &BTreeMap<SessionId, End>) -> Vec<String> {
        let state = self.state();
        let lost = state.played.iter().filter(|(name, (when, ran))| {
            ends.get(&name.session).filter(|end| end.attempt == name.attempt).is_some_and(|end| match end.why {
                Ending::Failed => *ran,
                Ending::Abandoned => end.at - *when > JUDGED,
                Ending::Finished => false,
            })
        });
        let lost = lost.map(|(name, _)| format!("{name}: its results were acknowledged, and do not count"));
        state.wrongs.iter().cloned().chain(lost).collect()
    }

    fn state(&self) -> MutexGuard<'_, Instances> {
        self.state.lock().unwrap()
    }

    async fn asked(&self) -> Result<(), Unavailable> {
        self.stage.hop().await;
        match self.stage.fault(self.stage.plan.down) {
            true => Err(anyhow::anyhow!("the backend is down").into()),
            false => Ok(()),
        }
    }

    /// Takes the claim up, whether it is there still or not; whether the instance is to be started.
    fn take(&self, claimed: Instance) -> Result<bool, CreateError> {
        let mut state = self.state();
        let instance = state.there.entry(claimed.name).or_insert(claimed);
        if matches!(instance.state, State::Exited(_)) {
            return Err(CreateError::Over);
        }
        let running = State::Running(Self::placed(instance.name));
        Ok(std::mem::replace(&mut instance.state, running) == State::Claimed)
    }

    fn placed(name: Name) -> Placed {
        Placed { pod: name.to_string(), node: "here".into(), public_ip: [203, 0, 113, 7].into() }
    }

    fn start(&self, name: Name, config: &Config) {
        let stage = &self.stage;
        let bad = stage.fault(stage.plan.bad_games);
        let behavior = stage.plan.one_behavior.unwrap_or_else(|| stage.draw(|dice| dice.random_range(0..BAD.len())));
        let behavior = if bad { BAD[behavior] } else { Behavior::Plays };
        let game = Game { games: self.clone(), name, config: config.clone() };
        self.state().started += 1;
        stage.spawn(Process::Game(game.name), game.run(behavior));
    }

    /// A session as it is, whatever is read of it.
    fn course(&self, session: SessionId) -> Course {
        let messages = self.net.log.messages(&Aggregate::Session(session).filter());
        let events = messages.iter().map(|message| history::decode(message).expect("an event"));
        Session::of(events.collect()).state
    }

    /// Whether its session asks for an instance.
    fn wanted(&self, name: Name) -> bool {
        self.course(name.session).present_attempt() == Some(name.attempt)
    }

    /// Notes that the results of an instance were acknowledged.
    fn played(&self, name: Name) {
        let course = self.course(name.session);
        if course.present_attempt() == Some(name.attempt) {
            let runs = matches!(course, Course::Open(Open { phase: Phase::Running(_), .. }));
            self.state().played.insert(name, (self.stage.now(), runs));
        }
    }
}

impl Backend for Games {
    async fn create(&self, order: &Order) -> Result<Made, CreateError> {
        self.asked().await?;
        let name = order.name();
        if self.stage.fault(self.stage.plan.down / 4) {
            return Err(CreateError::Refused { reason: "not-started", message: "no room".into() });
        }
        if self.stage.fault(self.stage.plan.slow_starts) {
            let millis = self.stage.draw(|dice| dice.random_range(0..60_000));
            self.stage.sleep(Duration::from_millis(millis)).await;
        }
        let claimed = Instance { name, created: self.stage.now(), state: State::Claimed };
        self.state().there.entry(name).or_insert(claimed.clone());
        // Whoever is killed here leaves it claimed.
        self.stage.hop().await;
        if self.take(claimed)? {
            self.start(name, &order.config);
        }
        self.stage.hop().await;
        let waits = self.stage.fault(self.stage.plan.slow_starts);
        Ok(if waits { Made::Waiting } else { Made::Placed(Self::placed(name)) })
    }

    async fn find(&self, name: Name) -> Result<Option<Made>, Unavailable> {
        self.asked().await?;
        let runs = self.state().there.get(&name).is_some_and(|instance| matches!(instance.state, State::Running(_)));
        Ok(runs.then(|| Made::Placed(Self::placed(name))))
    }

    async fn list(&self) -> Listed {
        if let Err(error) = self.asked().await {
            return Err(error).into();
        }
        let listed = self.state().there.values().cloned().collect();
        self.stage.hop().await;
        Ok(listed).into()
    }

    async fn delete(&self, name: Name) -> Result<bool, Unavailable> {
        self.asked().await?;
        let removed = self.state().there.remove(&name);
        let there = removed.is_some();
        if removed.is_some_and(|instance| matches!(instance.state, State::Running(_))) && self.wanted(name) {
            self.state().wrongs.push(format!("{name} was removed while its session asked for it"));
        }
        self.stage.kill(Process::Game(name));
        self.stage.hop().await;
        Ok(there)
    }
}

/// A game server.
struct Game {
    games: Games,
    name: Name,
    config: Config,
}

impl Game {
    async fn run(self, behavior: Behavior) {
        let (boot, race) = self.games.stage.draw(|dice| (dice.random_range(50..3_000), dice.random_range(500..20_000)));
        let ready = Ready { tcp_port: 4_000, udp_port: 4_001 };
        self.passes(boot).await;
        match behavior {
            Behavior::DiesBeforeReady => return self.over(self.death()),
            Behavior::NeverReady => return self.runs_to_its_end().await,
            Behavior::ReadyTooLate => self.passes(13_000).await,
            Behavior::ReportsRubbish => {
                self.report(&self.config.ready, &"no report").await;
                return self.runs_to_its_end().await;
            }
            Behavior::Plays
            | Behavior::DiesWhileRacing
            | Behavior::DiesAfterItsResults
            | Behavior::NeverFinishes
            | Behavior::ReportsOthers => {}
        }
        self.report(&self.config.ready, &ready).await;
        self.passes(race).await;
        let players = self.config.players.iter().map(|loadout| loadout.player.clone());
        let mut results: Vec<Placing> =
            players.zip(1..).map(|(player, place)| Placing { player, place, time_ms: Some(9_000) }).collect();
        match behavior {
            Behavior::DiesWhileRacing => return self.over(self.death()),
            Behavior::NeverFinishes => return self.runs_to_its_end().await,
            Behavior::ReportsOthers => drop(results.pop()),
            _ => {}
        }
        self.report(&self.config.finished, &Finished { results }).await;
        let how = if behavior == Behavior::DiesAfterItsResults { self.death() } else { How::Code(0) };
        // Of one that was killed the director asks once, and whoever answers may not have heard of its results.
        if behavior != Behavior::ReportsOthers && !matches!(how, How::Signal(_)) {
            self.games.played(self.name);
        }
        self.over(how);
    }

    async fn passes(&self, millis: u64) {
        self.games.stage.sleep(Duration::from_millis(millis)).await;
    }

    async fn runs_to_its_end(&self) {
        let left = Duration::try_from(self.config.ends_at - self.games.stage.now()).unwrap_or_default();
        self.games.stage.sleep(left).await;
        self.over(How::Code(1));
    }

    /// Repeats itself until it is acknowledged.
    async fn report(&self, subject: &str, report: &impl Serialize) {
        let stage = &self.games.stage;
        let body = serde_json::to_vec(report).unwrap();
        loop {
            stage.hop().await;
            let lost = stage.fault(stage.plan.lost_reports);
            if !lost {
                self.games.net.report(subject, body.clone());
            }
            if !lost && !stage.fault(stage.plan.lost_reports) {
                return;
            }
            self.passes(1_000).await;
        }
    }

    fn death(&self) -> How {
        let seen = self.games.stage.draw(|dice| dice.random_range(0..2) == 0);
        if seen { How::Signal(9) } else { How::Unknown }
    }

    fn over(&self, how: How) {
        if let Some(instance) = self.games.state().there.get_mut(&self.name) {
            instance.state = State::Exited(Exit { how, message: None });
        }
    }
}
