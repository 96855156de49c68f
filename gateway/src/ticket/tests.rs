use garage_events::{
    event::Recorded,
    game::Ports,
    id::PartyId,
    log::Head,
    player::{CancelReason, Cancelled, MatchDeclined, Matched, PlayerMatched, Released, Requeued, TimedOut},
};
use serde_json::json;
use time::{Duration, macros::datetime};
use uuid::Uuid;

use super::*;

const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

fn id(n: u128) -> TicketId {
    TicketId::new(Uuid::from_u128(n))
}

fn session() -> SessionId {
    SessionId::new(Uuid::from_u128(9))
}

fn queued(ticket: TicketId) -> Queued {
    Queued {
        ticket,
        queue: "ranked".parse().unwrap(),
        rank: 7,
        latencies: [("eu".parse().unwrap(), 20)].into(),
        attributes: Default::default(),
        group: Vec::new(),
        waiting_since: NOW,
        expires_at: NOW + Duration::minutes(2),
        requeues: 0,
        absences: 0,
        party: None,
    }
}

fn requeued(ticket: TicketId) -> Requeued {
    let queued = Queued { requeues: 1, ..queued(ticket) };
    Requeued { session: session(), reason: failure::Code::NoCapacity, queued }
}

fn after(event: impl Into<Event>) -> Player {
    let (event, seq, n) = (event.into(), 40, 3);
    Player {
        state: State::evolve(&event),
        head: Head { seq, n },
        last: Some(Recorded { seq, time: NOW, id: Uuid::nil(), n, correlation: Uuid::nil(), event }),
    }
}

fn histories() -> [(Player, Status); 9] {
    let (ticket, queue, session) = (id(1), "ranked".parse::<QueueName>().unwrap(), session());
    let address =
        Address { ip: [1, 2, 3, 4].into(), ports: Ports { tcp_port: 1, udp_port: 2 }, fingerprint: "f".into() };
    let cancelled = Cancelled { ticket, queue: queue.clone(), reason: CancelReason::Player, absences: 0, party: None };
    let timed_out = TimedOut { ticket, queue: queue.clone(), waited_ms: 1, considered: None, absences: 0, party: None };
    let matched = Matched {
        ticket,
        queue: queue.clone(),
        session,
        team: "1".into(),
        waiting_since: NOW,
        requeue: None,
        absences: 0,
        party: None,
    };
    let proposed = MatchProposed {
        session,
        team: "1".into(),
        accept_by: NOW + Duration::seconds(20),
        players: 2,
        may_requeue: true,
        queued: queued(ticket),
    };
    let reason = DeclineReason::Declined;
    let declined =
        MatchDeclined { ticket, queue: queue.clone(), session, reason, players: Vec::new(), absences: 1, party: None };
    [
        (after(queued(ticket)), Status::Waiting),
        (after(requeued(ticket)), Status::Waiting),
        (after(cancelled), Status::Ended),
        (after(timed_out), Status::Ended),
        (after(matched), Status::Matched),
        (after(PlayerMatched { ticket, queue, session, address, absences: 0, party: None }), Status::Playing),
        (
            after(Released { ticket, session, why: Ending::Failed, reason: None, absences: 0, party: None }),
            Status::Ended,
        ),
        (after(proposed), Status::Proposed),
        (after(declined), Status::Ended),
    ]
}

#[test]
fn a_repeated_request_returns_the_ticket_in_any_status() {
    for (player, status) in histories() {
        let Ok(Queueing::Have(ticket)) = queue(&player, id(1), NOW + Duration::HOUR, &AbsenceWait::default()) else {
            panic!("{player:?}");
        };
        assert_eq!((ticket.ticket, ticket.status, ticket.seq), (id(1), status, 40));
    }
}

#[test]
fn a_ticket_looks_the_same_after_its_player_has_joined_and_left_a_party() {
    let party = PartyId::new(Uuid::nil());
    let changeable = |status: &Status| !matches!(status, Status::Waiting | Status::Proposed);
    let ended = histories().into_iter().filter(|(_, status)| changeable(status));
    for (player, _) in ended {
        let joined = after(player::join_party(&player, party).unwrap());
        let left = after(player::leave_party(&joined, CancelReason::Player).unwrap());
        assert_eq!(
            [Ticket::latest(&joined), Ticket::latest(&left)],
            [Ticket::latest(&player), Ticket::latest(&player)]
        );
    }
    let joined = after(player::join_party(&Player::default(), party).unwrap());
    assert_eq!(Ticket::latest(&joined), None);
}

#[test]
fn a_new_ticket_needs_the_previous_one_to_have_ended() {
    assert_eq!(queue(&Player::default(), id(2), NOW, &AbsenceWait::default()), Ok(Queueing::Append));
    for (player, status) in histories() {
        let result = queue(&player, id(2), NOW, &AbsenceWait::default());
        match status {
            Status::Waiting => assert_eq!(result, Err(Rejection::Waiting { ticket: id(1) })),
            Status::Proposed | Status::Matched | Status::Playing => {
                assert_eq!(result, Err(Rejection::InSession { session: session() }));
            }
            Status::Ended => assert_eq!(result, Ok(Queueing::Append)),
        }
    }
}

#[test]
fn an_expired_ticket_is_timed_out_first() {
    let Ok(Queueing::First(event)) =
        queue(&after(queued(id(1))), id(2), NOW + Duration::minutes(2), &AbsenceWait::default())
    else {
        panic!("not timed out");
    };
    let queue = "ranked".parse().unwrap();
    assert_eq!(
        event,
        Event::TimedOut(TimedOut {
            ticket: id(1),
            queue,
            waited_ms: 120_000,
            considered: None,
            absences: 0,
            party: None
        })
    );
}

#[test]
fn a_ticket_can_be_cancelled_repeatedly_but_not_after_a_match() {
    let [waiting, requeued, cancelled, timed_out, matched, playing, released, proposed, declined] =
        histories().map(|(player, _)| player);
    for waiting in [&waiting, &requeued] {
        assert!(matches!(cancel(waiting, id(1), CancelReason::Player), Cancelling::Append(Event::Cancelled(_))));
    }
    for over in [&cancelled, &timed_out, &declined] {
        assert_eq!(cancel(over, id(1), CancelReason::Player), Cancelling::Done);
    }
    // A proposed match is declined instead, see `answers::withdraw`.
    for late in [&matched, &playing, &released, &proposed] {
        assert_eq!(cancel(late, id(1), CancelReason::Player), Cancelling::Matched(session()));
    }
    for foreign in [&waiting, &cancelled, &matched, &released, &Player::default()] {
        assert_eq!(cancel(foreign, id(2), CancelReason::Player), Cancelling::Unknown);
    }
}

#[test]
fn a_waiting_ticket_as_json() {
    let shown = serde_json::to_value(Ticket::latest(&after(queued(id(1)))).unwrap()).unwrap();
    let expected = json!({"ticket": id(1), "status": "waiting", "queue": "ranked",
        "waiting_since": "2026-01-02T03:04:05Z", "expires_at": "2026-01-02T03:06:05Z",
        "latencies": {"eu": 20}, "seq": 40});
    assert_eq!(shown, expected);
}

#[test]
fn a_player_as_json() {
    let me = |player: &Player| serde_json::to_value(Me::of("ann".parse().unwrap(), player)).unwrap();
    assert_eq!(me(&Player::default()), json!({"player": "ann", "status": "idle", "seq": 0}));
    let [waiting, _, cancelled, _, matched, ..] = histories().map(|(player, _)| player);
    assert_eq!(
        me(&waiting),
        json!({"player": "ann", "status": "waiting", "ticket": id(1), "queue": "ranked", "seq": 40})
    );
    assert_eq!(me(&cancelled), json!({"player": "ann", "status": "idle", "ticket": id(1), "seq": 40}));
    assert_eq!(me(&matched)["session"], json!(session()));
}

#[test]
fn a_ticket_shows_its_proposed_match_and_why_it_was_not_accepted() {
    let [.., (proposed, _), (declined, _)] = histories();
    let shown = json!(Ticket::latest(&proposed).unwrap());
    assert_eq!((&shown["status"], &shown["accept_by"]), (&json!("proposed"), &json!("2026-01-02T03:04:25Z")));
    let me = json!(Me::of("ann".parse().unwrap(), &proposed));
    assert_eq!(
        (&me["status"], &me["accept_by"], &me["session"]),
        (&json!("proposed"), &shown["accept_by"], &json!(session()))
    );
    let shown = json!(Ticket::latest(&declined).unwrap());
    assert_eq!((&shown["ended"], &shown["decline_reason"]), (&json!("not-accepted"), &json!("declined")));
}

#[test]
fn a_ticket_shows_why_its_match_failed() {
    let ticket = Ticket::latest(&after(requeued(id(1)))).unwrap();
    assert_eq!((ticket.status, ticket.session, ticket.ended), (Status::Waiting, None, None));
    assert_eq!((ticket.reason, ticket.waiting_since), (Some(failure::Code::NoCapacity), Some(NOW)));
    let reason = Some(failure::Code::ServerLost);
    let released =
        Released { ticket: id(1), session: session(), why: Ending::Failed, reason, absences: 0, party: None };
    let ticket = Ticket::latest(&after(released)).unwrap();
    assert_eq!((ticket.status, ticket.ended, ticket.reason), (Status::Ended, Some(End::Failed), reason));
    assert_eq!(json!(ticket)["reason"], "server_lost");
}
