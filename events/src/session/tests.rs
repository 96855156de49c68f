use time::{Duration, OffsetDateTime, macros::datetime};
use uuid::Uuid;

use super::{results::BadResults, *};
use crate::{
    event::{Event as _, Recorded},
    failure::NO_CAPACITY,
    game::{self, Placing},
    id::{SessionId, TicketId},
    log::Session,
    player::{Address, Ending},
};

mod any;
mod attempts;
mod deadlines;
mod life;
mod proposals;
mod reports;
mod state;

/// When every session begins. Each further event of a history is one second later.
const START: OffsetDateTime = datetime!(2026-01-05 12:00 UTC);

/// Three attempts, 10 s until a server must be ready, 900 s until the hard end.
fn limits() -> Limits {
    Limits::default()
}

fn after(seconds: i64) -> OffsetDateTime {
    START + Duration::seconds(seconds)
}

fn team(name: &str, player: &str, ticket: u128) -> Team {
    let member =
        Member { player: player.parse().unwrap(), ticket: TicketId::new(Uuid::from_u128(ticket)), rank: 1_200 };
    Team { name: name.into(), players: vec![member] }
}

fn match_of_ann_and_bob() -> Matched {
    Matched {
        queue: "ranked".parse().unwrap(),
        region: "eu".parse().unwrap(),
        teams: vec![team("red", "ann", 1), team("blue", "bob", 2)],
        latencies: Default::default(),
        rules: "1".into(),
        pool_seq: 40,
        clock: START,
        seed: 0,
        skipped: Vec::new(),
        left_out: Vec::new(),
        search_steps: None,
    }
}

fn pod_requested(attempt: u32) -> PodRequested {
    PodRequested {
        attempt,
        region: "eu".parse().unwrap(),
        loadouts: Vec::new(),
        public_key: format!("key {attempt}"),
        fingerprint: format!("f{attempt}"),
        ends_at: None,
    }
}

fn pod_scheduled(attempt: u32) -> PodScheduled {
    PodScheduled { attempt, pod: format!("game-s-{attempt}"), node: "n1".into(), public_ip: [203, 0, 113, 7].into() }
}

fn pod_failed(attempt: u32) -> PodFailed {
    PodFailed { attempt, reason: "exited".into(), message: "exit status 1".into() }
}

fn address(attempt: u32) -> Address {
    let fingerprint = format!("f{attempt}");
    Address { ip: [203, 0, 113, 7].into(), ports: game::Ports { tcp_port: 31_000, udp_port: 31_001 }, fingerprint }
}

fn opening(attempt: u32) -> Opened {
    Opened { attempt, address: address(attempt) }
}

fn places(players: &[&str]) -> Vec<Placing> {
    let placing = |(place, player): (u32, &&str)| Placing {
        player: player.parse().unwrap(),
        place,
        time_ms: Some(12_000),
        joined: true,
    };
    (1..).zip(players).map(placing).collect()
}

// Events.

fn matched() -> Event {
    match_of_ann_and_bob().into()
}

fn requested(attempt: u32) -> Event {
    pod_requested(attempt).into()
}

fn scheduled(attempt: u32) -> Event {
    pod_scheduled(attempt).into()
}

fn failed_pod(attempt: u32) -> Event {
    pod_failed(attempt).into()
}

fn was_ready(attempt: u32) -> Event {
    PodReady { attempt, ports: game::Ports { tcp_port: 31_000, udp_port: 31_001 } }.into()
}

fn opened(attempt: u32) -> Event {
    opening(attempt).into()
}

fn finished(attempt: u32) -> Event {
    Finished { attempt, results: places(&["ann", "bob"]), teams: Vec::new() }.into()
}

fn failed(reason: &str) -> Event {
    Failed { reason: reason.into() }.into()
}

fn closed(why: Ending) -> Event {
    let results = if why == Ending::Finished { places(&["ann", "bob"]) } else { Vec::new() };
    Closed { why, results, teams: Vec::new() }.into()
}

// Commands.

fn create() -> Command {
    Command::Create(match_of_ann_and_bob())
}

fn request(attempt: u32) -> Command {
    Command::RequestPod(pod_requested(attempt))
}

fn schedule(attempt: u32) -> Command {
    Command::Schedule(pod_scheduled(attempt))
}

fn fail_pod(attempt: u32) -> Command {
    Command::FailPod(pod_failed(attempt))
}

fn ready(attempt: u32) -> Command {
    Command::Ready { attempt, report: game::Ready { ports: game::Ports { tcp_port: 31_000, udp_port: 31_001 } } }
}

fn open(attempt: u32) -> Command {
    Command::Open(opening(attempt))
}

fn finish(attempt: u32, players: &[&str]) -> Command {
    Command::Finish { attempt, report: game::Finished { results: places(players), teams: Vec::new() } }
}

fn fail(reason: &str) -> Command {
    Command::Fail { reason: reason.into() }
}

fn deadline(seconds: i64) -> Command {
    Command::Deadline { now: after(seconds), limits: limits() }
}

fn record(history: &mut Vec<Recorded<Event>>, event: Event) {
    let n = history.len() as u64 + 1;
    let time = history.last().map_or(START, |last| last.time + Duration::SECOND);
    history.push(Recorded { seq: 40 + n, time, id: Uuid::from_u128(n.into()), n, correlation: Uuid::nil(), event });
}

struct Given(Session);

fn given<const N: usize>(events: [Event; N]) -> Given {
    let mut history = Vec::new();
    events.into_iter().for_each(|event| record(&mut history, event));
    Given(Session::of(history))
}

impl Given {
    fn when(&self, command: Command) -> Outcome {
        Outcome(decide(&self.0.state, command))
    }

    fn open(&self) -> &Open {
        match &self.0.state {
            State::Open(open) => open,
            other => panic!("not open: {other:?}"),
        }
    }

    fn next(&self) -> Next {
        self.open().next(&limits())
    }

    /// The deadline of the current phase, in seconds since the session began.
    fn deadline_s(&self) -> i64 {
        (self.open().deadline(&limits()) - START).whole_seconds()
    }

    fn view(&self) -> Option<View> {
        View::of(SessionId::new(Uuid::from_u128(7)), &self.0.history)
    }
}

#[derive(Debug)]
struct Outcome(Result<Vec<Event>, Rejection>);

impl Outcome {
    #[track_caller]
    fn then<const N: usize>(self, events: [Event; N]) {
        assert_eq!(self.0, Ok(events.to_vec()));
    }

    #[track_caller]
    fn refused(self, rejection: Rejection) {
        assert_eq!(self.0, Err(rejection));
    }

    /// The events' types, or the rejection's name.
    fn name(&self) -> String {
        match &self.0 {
            Ok(events) => events.iter().map(|event| event.type_name()).collect::<Vec<_>>().join("+"),
            Err(Rejection::Stale { .. }) => "Stale".into(),
            Err(rejection) => format!("{rejection:?}"),
        }
    }
}
