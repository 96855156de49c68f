//! Logs that the deciders write, on the simulated log.

use futures::executor::block_on;
use garage_events::{
    env::{Env, Simulated},
    game::{self, Placing},
    id::{PlayerId, SessionId},
    log::{Append, Decision, Head, Load},
    player::{self, CancelReason},
    reaction::decide_session,
    session::{Command, Event, Limits, Next, PodFailed, State},
    sim::{self, SimLog},
    subject::{ALL, Aggregate},
};
use time::Duration;

use super::{
    super::checker::End,
    story::{self, BEGAN, Story},
};

/// A simulated Garage in which players queue, play and leave.
struct Played {
    env: Simulated,
    log: SimLog<Simulated>,
    sessions: u128,
}

impl Played {
    fn new() -> Self {
        let env = Simulated::at(BEGAN);
        Self { log: SimLog::new(env.clone()), env, sessions: 0 }
    }

    /// Decides on a player's command and appends the event.
    fn player(&self, name: &str, command: player::Command) {
        let id: PlayerId = name.parse().unwrap();
        let found = block_on(self.log.player(&id)).unwrap();
        let event = player::decide(&found.state, command).unwrap();
        let decision = Decision::new(&self.env, story::id(1), None);
        let decision = decision.change(&self.env, Aggregate::Player(id), found.head, [event]);
        block_on(self.log.append(decision)).unwrap();
    }

    fn queue(&self, name: &str, number: u128) {
        let now = self.env.now();
        let queued = player::Queued { waiting_since: now, expires_at: now + Duration::MINUTE, ..story::queued(number) };
        self.player(name, player::Command::Queue(queued));
    }

    /// Queues two players and matches them.
    fn matched(&mut self, players: [(&str, u128); 2]) -> SessionId {
        for (name, number) in players {
            self.queue(name, number);
        }
        self.sessions += 1;
        let session = story::session(self.sessions);
        let matched = Event::from(story::matched(&players));
        let mut decision = Decision::new(&self.env, session.uuid(), None).change(
            &self.env,
            Aggregate::Session(session),
            Head::default(),
            [matched],
        );
        for (name, number) in players {
            let id: PlayerId = name.parse().unwrap();
            let found = block_on(self.log.player(&id)).unwrap();
            let command =
                player::Command::Match { ticket: story::ticket(number), session, team: name.into(), requeue: true };
            let event = player::decide(&found.state, command).unwrap();
            decision = decision.change(&self.env, Aggregate::Player(id), found.head, [event]);
        }
        block_on(self.log.append(decision)).unwrap();
        session
    }

    fn session(&self, id: SessionId, command: Command) {
        self.env.advance(Duration::MILLISECOND);
        block_on(decide_session(&self.log, &self.env, id, command, None)).unwrap().unwrap();
    }

    fn served(&self, id: SessionId, attempt: u32) {
        self.session(id, Command::RequestPod(story::requested(attempt)));
        self.session(id, Command::Schedule(story::scheduled(attempt)));
    }

    fn opens(&self, id: SessionId, attempt: u32) {
        let report = game::Ready { ports: game::Ports { tcp_port: 1, udp_port: 2 } };
        self.session(id, Command::Ready { attempt, report });
        let State::Open(open) = block_on(self.log.session(id)).unwrap().state else { panic!("it is open") };
        let Next::Open(opened) = open.next(&Limits::default()) else { panic!("it is ready") };
        self.session(id, Command::Open(opened));
    }

    fn finish(&self, id: SessionId, attempt: u32, results: Vec<Placing>) {
        self.session(id, Command::Finish { attempt, report: game::Finished { results, teams: Vec::new() } });
    }

    fn deadline(&self, id: SessionId) {
        self.session(id, Command::Deadline { now: self.env.now(), limits: Limits::default() });
    }

    /// The log as JetStream would store it.
    fn story(&self) -> Story {
        let mut story = Story::default();
        story.messages = sim::batches(&self.log.messages(ALL)).collect();
        story
    }
}

#[test]
fn a_log_that_the_deciders_write_is_valid() {
    let mut played = Played::new();
    // One ticket is cancelled, one times out.
    played.queue("cleo", 10);
    played.player("cleo", player::Command::Cancel { ticket: story::ticket(10), reason: CancelReason::Disconnected });
    played.queue("cleo", 11);
    played.env.advance(Duration::MINUTE + Duration::microseconds(1_234));
    played.player(
        "cleo",
        player::Command::TimeOut { ticket: story::ticket(11), now: played.env.now(), considered: None },
    );

    // A match whose first server fails and whose second server plays it.
    let first = played.matched([("anna", 1), ("bert", 2)]);
    played.served(first, 1);
    let failed = PodFailed { attempt: 1, reason: "exited".into(), message: "exit code 1".into() };
    played.session(first, Command::FailPod(failed));
    played.served(first, 2);
    played.opens(first, 2);
    played.finish(first, 2, vec![story::placing("bert", 1), story::placing("anna", 2)]);

    // A match whose servers are never ready.
    let second = played.matched([("anna", 3), ("bert", 4)]);
    for attempt in 1..=3 {
        played.served(second, attempt);
        played.env.advance(Limits::default().ready);
        played.deadline(second);
    }
    played.session(second, Command::Fail { reason: "not-ready".into() });
    // Both players wait again. One cancels, and the other one times out.
    played.player("anna", player::Command::Cancel { ticket: story::ticket(3), reason: CancelReason::Player });
    played.env.advance(Duration::MINUTE);
    played
        .player("bert", player::Command::TimeOut { ticket: story::ticket(4), now: played.env.now(), considered: None });

    // A match that reaches its hard end, and one whose server dies after its report.
    let third = played.matched([("anna", 5), ("bert", 6)]);
    played.served(third, 1);
    played.opens(third, 1);
    played.env.advance(Limits::default().session);
    played.deadline(third);
    let fourth = played.matched([("anna", 7), ("cleo", 8)]);
    played.served(fourth, 1);
    played.opens(fourth, 1);
    let failed = PodFailed { attempt: 1, reason: "exited".into(), message: "exit code 1".into() };
    played.session(fourth, Command::FailPod(failed));
    played.finish(fourth, 1, vec![story::placing("cleo", 1), story::placing("anna", 2)]);

    let (found, summary) = played.story().check(End::Open);
    assert_eq!(found, []);
    // The players of the two finished matches are not paid yet.
    assert_eq!((summary.players, summary.sessions, summary.tickets, summary.open), (3, 4, 10, 4));
}
