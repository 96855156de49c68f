//! The backend that runs game servers, and the servers: most play their game, some misbehave.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use garage_director::backend::{
    Backend, CreateError, Created, Exit, ExitKind, Instance, Listing, Name, Order, Placed, State, Unavailable,
};
use garage_events::{
    env::Env,
    event::Recorded,
    failure::NO_CAPACITY,
    game::{Config, Finished, Placing, Ports, Ready, Team, TeamPlacing},
    id::SessionId,
    log::Session,
    player::Ending,
    session::{Event, Open, Phase, State as SessionState},
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

/// All game server instances, outside the workers' processes. Clones share one state.
#[derive(Clone)]
pub(crate) struct Games {
    stage: Stage,
    net: Net,
    state: Arc<Mutex<Instances>>,
}

#[derive(Default)]
struct Instances {
    listed: BTreeMap<Name, Instance>,
    started: u64,
    violations: Vec<String>,
    /// The instances that a director had claimed and not started when it was killed.
    unfinished: BTreeSet<Name>,
    /// When each server's results were acknowledged during its attempt, and whether the session was running then.
    played: BTreeMap<Name, (OffsetDateTime, bool)>,
}

/// How a server behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behavior {
    Plays,
    DiesBeforeReady,
    NeverReady,
    ReadyTooLate,
    DiesWhileRacing,
    DiesAfterItsResults,
    NeverFinishes,
    ReportsNonsense,
    OmitsPlayer,
}

/// The longest time from the acknowledgement of results to the session's reaction, under any faults.
const REACTION_TIME: time::Duration = time::Duration::seconds(40);

/// All ways to misbehave.
pub(crate) const MISBEHAVIORS: [Behavior; 8] = [
    Behavior::DiesBeforeReady,
    Behavior::NeverReady,
    Behavior::ReadyTooLate,
    Behavior::DiesWhileRacing,
    Behavior::DiesAfterItsResults,
    Behavior::NeverFinishes,
    Behavior::ReportsNonsense,
    Behavior::OmitsPlayer,
];

impl Games {
    pub(crate) fn new(stage: &Stage, net: &Net) -> Self {
        let games = Self { stage: stage.clone(), net: net.clone(), state: Arc::default() };
        if stage.plan.sweeps {
            // An orphan: its session is not in the log.
            let name = Name { session: SessionId::new(stage.env.id()), attempt: 1 };
            let orphan = Instance { name, created: stage.now(), state: State::Running(Self::placed(name)) };
            games.state().listed.insert(name, orphan);
        }
        games
    }

    /// Whether every instance is removed that this run can remove; see [`Plan::sweeps`](crate::plan::Plan::sweeps).
    pub(crate) fn are_removed(&self) -> bool {
        self.listed().iter().all(|instance| !self.stage.plan.sweeps && self.needs_sweep(instance))
    }

    /// The number of instances that were not removed.
    pub(crate) fn left(&self) -> usize {
        self.state().listed.len()
    }

    /// Whether a director claimed the instance after its session had closed, and was killed before it started the game
    /// server. Nothing follows: the request and the close may be acknowledged, and there is no server that could exit.
    fn needs_sweep(&self, instance: &Instance) -> bool {
        let closed_before = |at| self.closed(instance.name.session).is_some_and(|closed| closed <= at);
        instance.state == State::Claimed
            && self.state().unfinished.contains(&instance.name)
            && closed_before(instance.created)
    }

    fn listed(&self) -> Vec<Instance> {
        self.state().listed.values().cloned().collect()
    }

    /// The number of game servers started so far.
    pub(crate) fn started(&self) -> u64 {
        self.state().started
    }

    /// The violations of the rules for instances. `ends` contains how each session ended.
    pub(crate) fn violations(&self, ends: &BTreeMap<SessionId, End>) -> Vec<String> {
        let state = self.state();
        let lost = state.played.iter().filter(|(name, (when, was_running))| {
            ends.get(&name.session).filter(|end| end.attempt == name.attempt).is_some_and(|end| match end.why {
                Ending::Failed => *was_running,
                Ending::Abandoned => end.at - *when > REACTION_TIME,
                Ending::Finished | Ending::NotAccepted => false,
            })
        });
        let lost =
            lost.map(|(name, _)| format!("{name}: its results were acknowledged, but the session does not have them"));
        state.violations.iter().cloned().chain(lost).collect()
    }

    fn state(&self) -> MutexGuard<'_, Instances> {
        self.state.lock().unwrap()
    }

    async fn call(&self) -> Result<(), Unavailable> {
        self.stage.hop().await;
        match self.stage.fault(self.stage.plan.down) {
            true => Err(anyhow::anyhow!("the backend is down").into()),
            false => Ok(()),
        }
    }

    /// Marks a claimed instance as running, and lists it again if it was removed. Returns whether the caller must start
    /// the game server.
    fn take_claim(&self, claimed: Instance) -> Result<bool, CreateError> {
        let mut state = self.state();
        let instance = state.listed.entry(claimed.name).or_insert(claimed);
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
        let behavior =
            stage.plan.same_behavior.unwrap_or_else(|| stage.draw(|rng| rng.random_range(0..MISBEHAVIORS.len())));
        let behavior = if bad { MISBEHAVIORS[behavior] } else { Behavior::Plays };
        let game = Game { games: self.clone(), name, config: config.clone() };
        self.state().started += 1;
        stage.spawn(Process::Game(game.name), game.run(behavior));
    }

    /// A session's true state, without stale reads.
    fn session_state(&self, session: SessionId) -> SessionState {
        Session::of(self.history(session)).state
    }

    /// When the session closed. `None` while it is open.
    fn closed(&self, session: SessionId) -> Option<OffsetDateTime> {
        let closed = |recorded: &Recorded<Event>| matches!(recorded.event, Event::Closed(_)).then_some(recorded.time);
        self.history(session).iter().find_map(closed)
    }

    fn history(&self, session: SessionId) -> Vec<Recorded<Event>> {
        let messages = self.net.log.messages(&Aggregate::Session(session).filter());
        messages.iter().map(|message| history::decode(message).expect("an event")).collect()
    }

    /// Whether the instance belongs to its session's current attempt.
    fn is_requested(&self, name: Name) -> bool {
        self.session_state(name.session).current_attempt() == Some(name.attempt)
    }

    /// Notes that an instance's results were acknowledged.
    fn note_results(&self, name: Name) {
        let state = self.session_state(name.session);
        if state.current_attempt() == Some(name.attempt) {
            let running = matches!(state, SessionState::Open(Open { phase: Phase::Running(_), .. }));
            self.state().played.insert(name, (self.stage.now(), running));
        }
    }
}

impl Backend for Games {
    async fn create(&self, order: &Order) -> Result<Created, CreateError> {
        self.call().await?;
        let name = order.name();
        if self.stage.fault(self.stage.plan.down / 4) {
            let reason = self.stage.draw(|rng| rng.random_range(0..2));
            let reason = ["not-started", NO_CAPACITY][reason];
            return Err(CreateError::Refused { reason, message: "no room".into() });
        }
        if self.stage.fault(self.stage.plan.slow_starts) {
            let millis = self.stage.draw(|rng| rng.random_range(0..60_000));
            self.stage.sleep(Duration::from_millis(millis)).await;
        }
        let claimed = Instance { name, created: self.stage.now(), state: State::Claimed };
        self.state().listed.entry(name).or_insert(claimed.clone());
        let mut claim = Claim { games: self, name, unfinished: true };
        // A director that is killed here leaves the instance claimed.
        self.stage.hop().await;
        claim.unfinished = false;
        if self.take_claim(claimed)? {
            self.start(name, &order.config);
        }
        self.stage.hop().await;
        let waits = self.stage.fault(self.stage.plan.slow_starts);
        Ok(if waits { Created::Waiting } else { Created::Placed(Self::placed(name)) })
    }

    async fn find(&self, name: Name) -> Result<Option<Created>, Unavailable> {
        self.call().await?;
        let running =
            self.state().listed.get(&name).is_some_and(|instance| matches!(instance.state, State::Running(_)));
        Ok(running.then(|| Created::Placed(Self::placed(name))))
    }

    async fn list(&self) -> Listing {
        if let Err(error) = self.call().await {
            return Err(error).into();
        }
        let listed = self.state().listed.values().cloned().collect();
        self.stage.hop().await;
        Ok(listed).into()
    }

    async fn delete(&self, name: Name) -> Result<bool, Unavailable> {
        self.call().await?;
        let removed = self.state().listed.remove(&name);
        let listed = removed.is_some();
        if removed.is_some_and(|instance| matches!(instance.state, State::Running(_))) && self.is_requested(name) {
            self.state().violations.push(format!("{name} was removed although its session's current attempt needs it"));
        }
        self.stage.kill(Process::Game(name));
        self.stage.hop().await;
        Ok(listed)
    }
}

/// An instance that a director is about to start. A director that is killed drops it unfinished.
struct Claim<'a> {
    games: &'a Games,
    name: Name,
    unfinished: bool,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.unfinished {
            self.games.state().unfinished.insert(self.name);
        }
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
        let (boot, race) = self.games.stage.draw(|rng| (rng.random_range(50..3_000), rng.random_range(500..20_000)));
        let ready = Ready { ports: Ports { tcp_port: 4_000, udp_port: 4_001 } };
        self.sleep(boot).await;
        match behavior {
            Behavior::DiesBeforeReady => return self.exit(self.abnormal_exit()),
            Behavior::NeverReady => return self.run_to_hard_end().await,
            Behavior::ReadyTooLate => self.sleep(13_000).await,
            Behavior::ReportsNonsense => {
                self.report(&self.config.ready, &"not a report").await;
                return self.run_to_hard_end().await;
            }
            Behavior::Plays
            | Behavior::DiesWhileRacing
            | Behavior::DiesAfterItsResults
            | Behavior::NeverFinishes
            | Behavior::OmitsPlayer => {}
        }
        self.report(&self.config.ready, &ready).await;
        self.sleep(race).await;
        let players = self.config.players.iter().map(|loadout| loadout.player.clone());
        let mut results: Vec<Placing> = players
            .zip(1..)
            .map(|(player, place)| Placing { player, place, time_ms: Some(9_000), joined: true })
            .collect();
        match behavior {
            Behavior::DiesWhileRacing => return self.exit(self.abnormal_exit()),
            Behavior::NeverFinishes => return self.run_to_hard_end().await,
            Behavior::OmitsPlayer => drop(results.pop()),
            _ => {}
        }
        let team = |(team, place): (&Team, u32)| TeamPlacing { team: team.name.clone(), place, players: Vec::new() };
        let teams = self.config.teams.iter().zip(1..).map(team).collect();
        self.report(&self.config.finished, &Finished { results, teams }).await;
        let kind = if behavior == Behavior::DiesAfterItsResults { self.abnormal_exit() } else { ExitKind::Code(0) };
        // The director looks once for the results of a killed server, and a stale read may not show them yet.
        if behavior != Behavior::OmitsPlayer && !matches!(kind, ExitKind::Signal(_)) {
            self.games.note_results(self.name);
        }
        self.exit(kind);
    }

    async fn sleep(&self, millis: u64) {
        self.games.stage.sleep(Duration::from_millis(millis)).await;
    }

    async fn run_to_hard_end(&self) {
        let left = Duration::try_from(self.config.ends_at - self.games.stage.now()).unwrap_or_default();
        self.games.stage.sleep(left).await;
        self.exit(ExitKind::Code(1));
    }

    /// Sends a report until it is acknowledged.
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
            self.sleep(1_000).await;
        }
    }

    fn abnormal_exit(&self) -> ExitKind {
        let seen = self.games.stage.draw(|rng| rng.random_range(0..2) == 0);
        if seen { ExitKind::Signal(9) } else { ExitKind::Unknown }
    }

    fn exit(&self, kind: ExitKind) {
        if let Some(instance) = self.games.state().listed.get_mut(&self.name) {
            instance.state = State::Exited(Exit { kind, message: None });
        }
    }
}
