//! A match that its players must accept.

use super::*;

fn proposal(number: u128, into: u128) -> MatchProposed {
    MatchProposed {
        session: session(into),
        team: "red".into(),
        accept_by: after(80),
        players: 4,
        may_requeue: true,
        queued: Queued { absences: 1, ..ticket_request(number) },
    }
}

fn declined(reason: DeclineReason, absences: u32) -> Event {
    let (ticket, queue, session) = (ticket(1), ranked(), session(7));
    MatchDeclined { ticket, queue, session, reason, players: Vec::new(), absences, party: None }.into()
}

fn decline(reason: DeclineReason) -> Command {
    Command::Decline { session: session(7), reason, players: Vec::new() }
}

fn waiting() -> Given {
    given([Queued { absences: 1, ..ticket_request(1) }.into()])
}

fn proposed() -> Given {
    given([proposal(1, 7).into()])
}

#[test]
fn a_waiting_player_is_put_into_a_proposed_match_with_the_whole_ticket() {
    let MatchProposed { session, team, accept_by, players, may_requeue, .. } = proposal(1, 7);
    let command = Command::Propose { ticket: ticket(1), session, team, accept_by, players, may_requeue };
    waiting().when(command.clone()).then(proposal(1, 7).into());
    proposed().when(command).refused(Rejection::NotWaiting { ticket: ticket(1) });
}

#[test]
fn an_accepted_match_is_the_one_that_the_ticket_would_have_got_without_a_proposal() {
    let Ok(matched) = waiting().when(join(1, 7)).0 else { panic!("not matched") };
    proposed().when(Command::Confirm { session: session(7) }).then(matched);
    let no_requeue = MatchProposed { may_requeue: false, ..proposal(1, 7) };
    let Ok(Event::Matched(matched)) = given([no_requeue.into()]).when(Command::Confirm { session: session(7) }).0
    else {
        panic!("not matched")
    };
    assert_eq!(matched.requeue, None);
}

#[test]
fn only_the_player_who_did_not_accept_has_missed_a_match() {
    for reason in [DeclineReason::Declined, DeclineReason::Disconnected, DeclineReason::Unanswered] {
        proposed().when(decline(reason)).then(declined(reason, 2));
    }
    proposed().when(decline(DeclineReason::Party)).then(declined(DeclineReason::Party, 1));
}

#[test]
fn a_declined_ticket_names_the_decliners_if_the_command_does() {
    let players = vec!["bob".parse().unwrap()];
    let command = Command::Decline { session: session(7), reason: DeclineReason::Party, players: players.clone() };
    let Event::MatchDeclined(expected) = declined(DeclineReason::Party, 1) else { unreachable!() };
    proposed().when(command).then(MatchDeclined { players, ..expected }.into());
}

#[test]
fn a_ticket_waits_again_as_before_if_others_did_not_accept_even_if_its_queue_does_not_requeue_failed_matches() {
    let proposals = [
        proposal(1, 7),
        MatchProposed { may_requeue: false, ..proposal(1, 7) },
        MatchProposed { queued: Queued { requeues: MAX_REQUEUES, ..ticket_request(1) }, ..proposal(1, 7) },
    ];
    for proposal in proposals {
        // Long after the ticket has expired. The matchmaker times it out then.
        let command = Command::Requeue { session: session(7), reason: failure::Code::NotAccepted, now: after(500) };
        let queued = proposal.queued.clone();
        let expected = Requeued { session: session(7), reason: failure::Code::NotAccepted, queued };
        given([proposal.into()]).when(command).then(expected.into());
    }
}

#[test]
fn a_player_in_a_proposed_match_can_neither_queue_nor_cancel_nor_time_out_nor_get_an_address() {
    proposed().when(queue(2)).refused(Rejection::InSession { session: session(7) });
    proposed().when(cancel(1)).refused(Rejection::NotWaiting { ticket: ticket(1) });
    proposed().when(time_out(1, 500)).refused(Rejection::NotWaiting { ticket: ticket(1) });
    proposed().when(join(1, 8)).refused(Rejection::NotWaiting { ticket: ticket(1) });
    proposed().when(open(7)).refused(Rejection::NotInSession { session: session(7) });
}

#[test]
fn only_a_player_in_that_proposed_match_can_confirm_or_decline() {
    let decline_of =
        |number| Command::Decline { session: session(number), reason: DeclineReason::Declined, players: Vec::new() };
    for given in [given([]), waiting(), given([matched(1, 7)]), given([player_matched(1, 7)]), given([released(1, 7)])]
    {
        for command in [Command::Confirm { session: session(7) }, decline_of(7)] {
            given.when(command).refused(Rejection::NotInSession { session: session(7) });
        }
    }
    for command in [Command::Confirm { session: session(8) }, decline_of(8), requeue(8, 60), release(8)] {
        proposed().when(command).refused(Rejection::NotInSession { session: session(8) });
    }
}

#[test]
fn a_player_can_queue_again_after_a_declined_match_and_keeps_the_number_of_missed_matches() {
    let again = given([declined(DeclineReason::Declined, 2)]);
    again.when(queue(2)).then(Queued { absences: 2, ..ticket_request(2) }.into());
}
