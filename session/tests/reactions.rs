//! The session worker's reactions, with the simulated log and with test doubles for the other side effects.
#![cfg(test)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use futures::executor::block_on;
use garage_events::{
    env::{Env, Simulated},
    event::Event as _,
    failure::{self, NO_CAPACITY},
    game::{Car, Finished, Loadout, Placing, Ports, Ready, Secret, Stats},
    id::{PlayerId, SessionId, TicketId},
    log::{Append, Decision, Head, Load},
    player::{self, Ending, Queued},
    reaction::decide_session,
    session::{Command, Event, Limits, Matched, Member, PodFailed, PodScheduled, State, Team},
    sim::{Faults, SimLog},
    subject::{Aggregate, Report, ReportKind, timer_due},
};
use garage_session::{
    keys::GameKey,
    reaction::{App, Effects},
};
use garage_worker::reactor::{Delivery, Failure};
use time::{Duration, OffsetDateTime, macros::datetime};
use uuid::Uuid;

const BEGAN: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

/// Test doubles for the side effects. They record what the reactions did.
#[derive(Clone, Default)]
struct RecordingEffects(Arc<Mutex<Record>>);

#[derive(Default)]
struct Record {
    keys: u32,
    users: Vec<(SessionId, u32, OffsetDateTime)>,
    timer: Option<OffsetDateTime>,
    inventory_down: bool,
    redis_down: bool,
    /// Players who have left.
    absent: Vec<String>,
}

impl RecordingEffects {
    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.0.lock().unwrap()
    }
}

impl Effects for RecordingEffects {
    async fn loadouts(&self, players: Vec<PlayerId>) -> Result<Vec<Loadout>, Failure> {
        if self.record().inventory_down {
            return Err(Failure::Unavailable(anyhow::anyhow!("inventory is down")));
        }
        let car = || Car {
            id: "pebble".parse().unwrap(),
            model: "pebble.glb".into(),
            texture: "pebble.png".into(),
            stats: Stats { power_kw: 80.0, mass_kg: 900.0, grip: 1.0, drag_m2: 0.6 },
        };
        Ok(players.into_iter().map(|player| Loadout { player, car: car(), items: BTreeMap::new() }).collect())
    }

    async fn park(
        &self,
        session: SessionId,
        attempt: u32,
        ends_at: OffsetDateTime,
        _keep: std::time::Duration,
    ) -> Result<GameKey, Failure> {
        let mut record = self.record();
        if record.redis_down {
            return Err(Failure::Unavailable(anyhow::anyhow!("redis is down")));
        }
        record.keys += 1;
        let fingerprint = format!("key-{}", record.keys);
        record.users.push((session, attempt, ends_at));
        Ok(GameKey { public_key: "public".into(), fingerprint, private_key: Secret::new("private") })
    }

    async fn absent(&self, players: Vec<(PlayerId, OffsetDateTime)>) -> BTreeSet<PlayerId> {
        let record = self.record();
        let players = players.into_iter().map(|(player, _)| player);
        players.filter(|player| record.absent.contains(&player.to_string())).collect()
    }

    async fn set_timer(&self, _session: SessionId, at: Option<OffsetDateTime>) -> Result<(), Failure> {
        self.record().timer = at;
        Ok(())
    }
}

/// A session of two players, "anna" and "bert", who have just been matched.
struct Match {
    app: App<SimLog<Simulated>, Simulated, RecordingEffects>,
    session: SessionId,
}

impl Match {
    fn new() -> Self {
        let env = Simulated::at(BEGAN);
        let log = SimLog::new(env.clone());
        let app = App { log, env: env.clone(), effects: RecordingEffects::default(), limits: Limits::default() };
        let session = SessionId::new(env.id());
        let mut teams = Vec::new();
        let mut decision = Decision::new(&env, session.uuid(), None);
        for (name, number) in [("anna", 1), ("bert", 2)] {
            let (player, ticket) = (name.parse::<PlayerId>().unwrap(), TicketId::new(Uuid::from_u128(number)));
            let queued = Queued {
                ticket,
                queue: "ranked".parse().unwrap(),
                rank: 0,
                latencies: BTreeMap::new(),
                attributes: BTreeMap::new(),
                group: Vec::new(),
                waiting_since: BEGAN,
                expires_at: BEGAN + Duration::MINUTE,
                requeues: 0,
                absences: 0,
                party: None,
            };
            let queue = Decision::new(&env, ticket.uuid(), None).change(
                &env,
                Aggregate::Player(player.clone()),
                Head::default(),
                [player::Event::from(queued)],
            );
            let seq = block_on(app.log.append(queue)).unwrap()[0];
            let state = block_on(app.log.player(&player)).unwrap().state;
            let command = player::Command::Match { ticket, session, team: name.into(), requeue: true };
            let matched = player::decide(&state, command).unwrap();
            decision = decision.change(&env, Aggregate::Player(player.clone()), Head { seq, n: 1 }, [matched]);
            teams.push(Team { name: name.into(), players: vec![Member { player, ticket, rank: 0 }] });
        }
        let matched = Matched {
            queue: "ranked".parse().unwrap(),
            region: "eu".parse().unwrap(),
            teams,
            latencies: Default::default(),
            rules: "test".into(),
            pool_seq: 2,
            clock: BEGAN,
            seed: 0,
            skipped: Vec::new(),
            left_out: Vec::new(),
            search_steps: None,
        };
        let decision = decision.change(&env, Aggregate::Session(session), Head::default(), [Event::from(matched)]);
        block_on(app.log.append(decision)).unwrap();
        Self { app, session }
    }

    fn delivery(&self, subject: String, body: impl Into<bytes::Bytes>) -> Delivery {
        Delivery { seq: 1, time: self.app.env.now(), subject, body: body.into(), delivered: 1 }
    }

    /// The delivery of the session's last event.
    fn last(&self) -> Delivery {
        let filter = Aggregate::Session(self.session).filter();
        let last = self.app.log.last_sequence(&filter).unwrap();
        let message = self.app.log.next(&filter, last).unwrap().unwrap();
        Delivery { seq: last, ..self.delivery(message.subject, message.body) }
    }

    /// Delivers the session's last event.
    fn deliver_last(&self) -> Result<(), Failure> {
        block_on(self.app.on_event(&self.last()))
    }

    /// Delivers the last event again and again, until the reactions append no more events.
    fn deliver_all(&self) {
        let mut before = 0;
        while before != self.types().len() {
            before = self.types().len();
            self.deliver_last().unwrap();
        }
    }

    fn append(&self, command: Command) {
        let done = block_on(decide_session(&self.app.log, &self.app.env, self.session, command, None)).unwrap();
        done.unwrap();
    }

    fn scheduled(&self, attempt: u32) {
        let public_ip = "203.0.113.7".parse().unwrap();
        self.append(Command::Schedule(PodScheduled { attempt, pod: "pod".into(), node: "node".into(), public_ip }));
    }

    fn reports(&self, attempt: u32, kind: ReportKind, body: impl serde::Serialize) -> Result<(), Failure> {
        let subject = Report { session: self.session, attempt, kind }.to_string();
        block_on(self.app.on_report(&self.delivery(subject, serde_json::to_vec(&body).unwrap())))
    }

    /// The last failure of an attempt.
    fn failed(&self) -> PodFailed {
        let history = block_on(self.app.log.session(self.session)).unwrap().history;
        let failed = history.into_iter().rev().find_map(|recorded| match recorded.event {
            Event::PodFailed(failed) => Some(failed),
            _ => None,
        });
        failed.unwrap()
    }

    fn ready(&self, attempt: u32) -> Result<(), Failure> {
        self.reports(attempt, ReportKind::Ready, Ready { ports: Ports { tcp_port: 1, udp_port: 2 } })
    }

    fn finished(&self, attempt: u32) -> Result<(), Failure> {
        let placing =
            |player: &str, place| Placing { player: player.parse().unwrap(), place, time_ms: Some(9), joined: true };
        let results = vec![placing("bert", 1), placing("anna", 2)];
        self.reports(attempt, ReportKind::Finished, Finished { results, teams: Vec::new() })
    }

    fn timer_fires(&self) {
        let at = self.app.effects.record().timer.expect("a timer is set");
        self.app.env.advance(at - self.app.env.now());
        block_on(self.app.on_timer(&self.delivery(timer_due(self.session), ""))).unwrap();
    }

    /// Fires the timer of a pause between two attempts.
    fn pause_ends(&self) {
        assert!(self.app.effects.record().timer < Some(BEGAN + Limits::default().session), "no pause");
        self.timer_fires();
    }

    /// The types of the session's events so far.
    fn types(&self) -> Vec<&'static str> {
        let session = block_on(self.app.log.session(self.session)).unwrap();
        session.history.iter().map(|recorded| recorded.event.type_name()).collect()
    }

    fn player(&self, name: &str) -> player::State {
        block_on(self.app.log.player(&name.parse().unwrap())).unwrap().state
    }
}

#[test]
fn a_match_leads_to_a_request_for_a_game_server_with_loadouts_and_a_key() {
    let game = Match::new();
    game.deliver_last().unwrap();
    let session = block_on(game.app.log.session(game.session)).unwrap();
    let Event::PodRequested(requested) = &session.history[1].event else { panic!("{:?}", game.types()) };
    let players: Vec<_> = requested.loadouts.iter().map(|loadout| loadout.player.as_str()).collect();
    assert_eq!((players, requested.attempt, requested.fingerprint.as_str()), (vec!["anna", "bert"], 1, "key-1"));
    assert_eq!(game.app.effects.record().timer, Some(BEGAN + Limits::default().ready));
}

#[test]
fn an_event_that_is_delivered_twice_has_one_effect() {
    let game = Match::new();
    game.deliver_last().unwrap();
    game.deliver_last().unwrap();
    game.deliver_last().unwrap();
    assert_eq!(game.types(), ["Matched", "PodRequested"]);
    assert_eq!(game.app.effects.record().keys, 1);
}

#[test]
fn players_get_the_address_when_the_server_is_placed_and_ready_in_any_order() {
    for scheduled_first in [true, false] {
        let game = Match::new();
        game.deliver_last().unwrap();
        if scheduled_first {
            game.scheduled(1);
            game.ready(1).unwrap();
        } else {
            game.ready(1).unwrap();
            game.deliver_all();
            assert!(matches!(game.player("anna"), player::State::Matched(_)), "no address before the server is placed");
            game.scheduled(1);
        }
        game.deliver_all();
        assert_eq!(game.types().last(), Some(&"Opened"));
        for name in ["anna", "bert"] {
            let player::State::Playing(playing) = game.player(name) else { panic!("{name} does not play") };
            assert_eq!(playing.address.ip.to_string(), "203.0.113.7");
            assert_eq!((playing.address.ports.tcp_port, playing.address.fingerprint.as_str()), (1, "key-1"));
        }
    }
}

#[test]
fn results_close_the_session_and_release_the_players() {
    let game = Match::new();
    game.deliver_last().unwrap();
    game.scheduled(1);
    game.ready(1).unwrap();
    game.deliver_all();
    game.finished(1).unwrap();
    assert!(game.types().ends_with(&["Finished", "Closed"]));
    assert!(matches!(game.player("anna"), player::State::Idle { .. }));
    game.deliver_last().unwrap();
    assert_eq!(game.app.effects.record().timer, None, "the timer is cancelled");
    // A game server repeats its report until it is acknowledged.
    let before = game.types();
    game.finished(1).unwrap();
    assert_eq!(game.types(), before);
}

#[test]
fn results_that_arrive_before_the_opening_are_retried() {
    let game = Match::new();
    game.deliver_last().unwrap();
    game.scheduled(1);
    assert!(matches!(game.finished(1), Err(Failure::Retry(_))));
    game.ready(1).unwrap();
    game.deliver_all();
    game.finished(1).unwrap();
    assert_eq!(game.types().last(), Some(&"Closed"));
}

#[test]
fn a_server_that_does_not_report_in_time_is_replaced_and_its_late_report_ignored() {
    let game = Match::new();
    game.deliver_last().unwrap();
    game.timer_fires();
    assert_eq!(game.types(), ["Matched", "PodRequested", "PodFailed", "PodRequested"]);
    game.ready(1).unwrap();
    assert_eq!(game.types().len(), 4);
    game.scheduled(2);
    game.ready(2).unwrap();
    game.deliver_all();
    assert_eq!(game.types().last(), Some(&"Opened"));
    assert_eq!(game.app.effects.record().keys, 2, "each attempt has its own key");
}

#[test]
fn the_next_attempt_begins_when_the_pause_is_over_however_often_the_failure_is_delivered() {
    let game = Match::new();
    game.deliver_last().unwrap();
    game.append(Command::FailPod(PodFailed::new(1, "exited", "exit code 3")));
    for _ in 0..3 {
        game.deliver_last().unwrap();
    }
    assert_eq!(game.types(), ["Matched", "PodRequested", "PodFailed"]);
    assert_eq!(game.app.effects.record().timer, Some(BEGAN + Duration::SECOND));
    game.pause_ends();
    assert_eq!(game.types(), ["Matched", "PodRequested", "PodFailed", "PodRequested"]);
    assert_eq!(game.app.effects.record().keys, 2);
}

#[test]
fn a_failed_match_requeues_its_players_but_not_those_who_have_left() {
    let game = Match::new();
    game.deliver_last().unwrap();
    game.app.effects.record().absent = vec!["bert".into()];
    let State::Open(open) = block_on(game.app.log.session(game.session)).unwrap().state else { panic!("not open") };
    for attempt in 1..=3 {
        game.append(Command::FailPod(PodFailed::new(attempt, "exited", "exit code 3")));
        game.deliver_all();
        if attempt < 3 {
            game.pause_ends();
        }
    }
    let player::State::Waiting(anna) = game.player("anna") else { panic!("anna does not wait") };
    assert_eq!((anna.waiting_since, anna.expires_at), (open.began, BEGAN + Duration::MINUTE));
    let bert = block_on(game.app.log.player(&"bert".parse().unwrap())).unwrap().last.unwrap().event;
    let player::Event::Released(bert) = bert else { panic!("{bert:?}") };
    assert_eq!(bert.reason, Some(failure::Code::ServerFailed));
}

#[test]
fn a_match_with_a_player_who_has_left_is_not_opened_and_the_others_wait_again() {
    let game = Match::new();
    game.deliver_last().unwrap();
    game.scheduled(1);
    game.ready(1).unwrap();
    game.app.effects.record().absent = vec!["bert".into()];
    game.deliver_all();
    assert_eq!(game.types()[2..], ["PodScheduled", "PodReady", "Failed", "Closed"]);
    assert!(matches!(game.player("anna"), player::State::Waiting(_)));
    let bert = block_on(game.app.log.player(&"bert".parse().unwrap())).unwrap().last.unwrap().event;
    let player::Event::Released(bert) = bert else { panic!("{bert:?}") };
    assert_eq!(bert.reason, Some(failure::Code::PlayerLeft));
}

#[test]
fn a_session_waits_for_room_until_its_ready_deadline() {
    let game = Match::new();
    game.deliver_last().unwrap();
    let mut attempts = 0;
    while !game.types().contains(&"Closed") {
        attempts += 1;
        game.append(Command::FailPod(PodFailed::new(attempts, NO_CAPACITY, "exceeded quota: games")));
        game.deliver_all();
        if !game.types().contains(&"Closed") {
            game.pause_ends();
        }
    }
    assert_eq!(game.app.env.now(), BEGAN + Limits::default().ready);
    // At 0, 1, 3, 7 and 10 seconds.
    assert_eq!(attempts, 5);
}

#[test]
fn a_second_attempt_has_its_own_user_that_expires_with_the_session() {
    let game = Match::new();
    game.deliver_last().unwrap();
    game.app.env.advance(Duration::seconds(5));
    game.timer_fires();
    let hard_end = BEGAN + Limits::default().session;
    assert_eq!(game.app.effects.record().users, [(game.session, 1, hard_end), (game.session, 2, hard_end)]);
}

#[test]
fn the_session_fails_after_the_last_attempt_and_its_players_wait_again() {
    let game = Match::new();
    game.deliver_last().unwrap();
    for attempt in 1..=3 {
        let message = "exit code 3".into();
        game.append(Command::FailPod(PodFailed { attempt, reason: "exited".into(), message }));
        game.deliver_all();
        if attempt < 3 {
            game.pause_ends();
        }
    }
    assert!(game.types().ends_with(&["PodFailed", "Failed", "Closed"]), "{:?}", game.types());
    assert!(matches!(game.player("bert"), player::State::Waiting(_)));
}

#[test]
fn a_server_that_dies_during_the_match_ends_the_session() {
    let game = Match::new();
    game.deliver_last().unwrap();
    game.scheduled(1);
    game.ready(1).unwrap();
    game.deliver_all();
    game.append(Command::FailPod(PodFailed { attempt: 1, reason: "killed".into(), message: "signal 9".into() }));
    game.deliver_all();
    assert!(game.types().ends_with(&["PodFailed", "Failed", "Closed"]));
    assert!(matches!(game.player("anna"), player::State::Idle { .. }));
}

#[test]
fn a_match_that_does_not_finish_is_abandoned_at_the_session_time_out() {
    let game = Match::new();
    game.deliver_last().unwrap();
    game.scheduled(1);
    game.ready(1).unwrap();
    game.deliver_all();
    game.timer_fires();
    let session = block_on(game.app.log.session(game.session)).unwrap();
    let State::Closed(past) = session.state else { panic!("{:?}", game.types()) };
    assert_eq!(past.closed.why, Ending::Abandoned);
    assert_eq!(game.app.env.now(), BEGAN + Limits::default().session);
}

#[test]
fn an_outage_of_inventory_or_redis_delays_the_request_and_uses_no_attempt() {
    let game = Match::new();
    game.app.effects.record().inventory_down = true;
    assert!(matches!(game.deliver_last(), Err(Failure::Unavailable(_))));
    game.app.effects.record().inventory_down = false;
    game.app.effects.record().redis_down = true;
    assert!(matches!(game.deliver_last(), Err(Failure::Unavailable(_))));
    assert_eq!(game.types(), ["Matched"]);
    game.app.effects.record().redis_down = false;
    game.deliver_last().unwrap();
    assert_eq!(game.types(), ["Matched", "PodRequested"]);
}

#[test]
fn a_session_that_waits_during_an_outage_still_times_out() {
    let game = Match::new();
    game.app.effects.record().inventory_down = true;
    assert!(matches!(game.deliver_last(), Err(Failure::Unavailable(_))));
    game.timer_fires();
    assert!(game.types().ends_with(&["Failed", "Closed"]), "{:?}", game.types());
    assert!(matches!(game.player("anna"), player::State::Idle { .. }));
    assert_eq!(game.app.env.now(), BEGAN + Limits::default().session);
}

#[test]
fn no_message_is_acknowledged_after_a_stale_read() {
    let game = Match::new();
    let (matched, stale) = (game.last(), Faults { stale_reads: 100, ..Faults::default() });
    let retried = |result: Result<(), Failure>| assert!(matches!(result, Err(Failure::Retry(_))), "{result:?}");
    game.app.log.set_faults(stale, 1);
    retried(block_on(game.app.on_event(&matched)));
    retried(block_on(game.app.on_timer(&game.delivery(timer_due(game.session), ""))));
    game.app.log.set_faults(Faults::default(), 0);
    game.deliver_last().unwrap();
    let timer = game.app.effects.record().timer;
    assert!(timer.is_some());

    // The game server was requested, but a stale read does not return the request.
    game.app.log.set_faults(stale, 1);
    retried(game.ready(1));
    retried(game.finished(1));
    retried(game.reports(1, ReportKind::Ready, "no report"));
    game.app.log.set_faults(Faults::default(), 0);
    assert_eq!(game.types(), ["Matched", "PodRequested"]);
    assert_eq!(game.app.effects.record().timer, timer, "the timer is unchanged");
}

#[test]
fn a_report_of_an_unknown_attempt_is_retried_only_as_long_as_a_read_may_lag() {
    let game = Match::new();
    game.deliver_last().unwrap();
    let unknown = Report { session: SessionId::new(Uuid::from_u128(7)), attempt: 1, kind: ReportKind::Ready };
    let later = Report { session: game.session, attempt: 2, kind: ReportKind::Finished };
    for (report, body) in [(unknown, r#"{"tcp_port":1,"udp_port":2}"#), (later, r#"{"results":[]}"#)] {
        let delivery = game.delivery(report.to_string(), body);
        let early = block_on(game.app.on_report(&delivery));
        assert!(matches!(early, Err(Failure::Retry(_))), "{early:?}");
        game.app.env.advance(Duration::seconds(20));
        block_on(game.app.on_report(&delivery)).unwrap();
    }
    assert_eq!(game.types(), ["Matched", "PodRequested"]);
}

#[test]
fn messages_that_cannot_be_read_become_dead_letters_and_change_nothing() {
    let game = Match::new();
    game.deliver_last().unwrap();
    let before = game.types();
    let rubbish = [
        block_on(game.app.on_report(&game.delivery("report.x.1.ready".into(), "{}"))),
        block_on(game.app.on_timer(&game.delivery("timer.due.x".into(), ""))),
        block_on(game.app.on_event(&game.delivery("garage.player.anna".into(), "{}"))),
    ];
    for result in rubbish {
        assert!(matches!(result, Err(Failure::Poison(_))), "{result:?}");
    }
    assert_eq!(game.types(), before);
}

#[test]
fn a_server_with_a_bad_report_has_misbehaved_and_its_attempt_fails() {
    let poison = |result| assert!(matches!(result, Err(Failure::Poison(_))), "{result:?}");
    let game = Match::new();
    game.deliver_last().unwrap();
    // The error quotes the report, and must not bring all of it into the log.
    let port = format!("\n{}", "x".repeat(60_000));
    poison(game.reports(1, ReportKind::Ready, serde_json::json!({ "tcp_port": port, "udp_port": 1 })));
    let failed = game.failed();
    assert_eq!((failed.attempt, &*failed.reason), (1, "misbehaved"));
    assert!(failed.message.chars().count() <= 200 && !failed.message.contains('\n'), "{}", failed.message);
    game.deliver_all();
    game.pause_ends();
    assert_eq!(game.types(), ["Matched", "PodRequested", "PodFailed", "PodRequested"]);
    // A bad report of the first attempt does not affect the second one.
    poison(game.reports(1, ReportKind::Ready, "no report"));
    assert_eq!(game.types().len(), 4);
    game.scheduled(2);
    game.ready(2).unwrap();
    game.deliver_all();
    let stranger = Placing { player: "carl".parse().unwrap(), place: 1, time_ms: None, joined: true };
    poison(game.reports(2, ReportKind::Finished, Finished { results: vec![stranger], teams: Vec::new() }));
    assert_eq!((game.failed().attempt, &*game.failed().reason), (2, "misbehaved"));
    game.deliver_all();
    assert!(game.types().ends_with(&["Opened", "PodFailed", "Failed", "Closed"]), "{:?}", game.types());
    assert!(matches!(game.player("anna"), player::State::Idle { .. }));
}
