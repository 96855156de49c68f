mod any_commands;

use time::macros::datetime;
use uuid::Uuid;

use super::*;
use crate::{
    event::{Event as _, Recorded},
    id::{PartyId, SessionId},
    log::{Head, Player},
    player::{self, CancelReason, Cancelled, Ending, Queued},
};

const START: OffsetDateTime = datetime!(2026-01-05 12:00 UTC);

fn party() -> PartyId {
    PartyId::new(Uuid::from_u128(1))
}

fn other_party() -> PartyId {
    PartyId::new(Uuid::from_u128(2))
}

fn ticket(number: u128) -> TicketId {
    TicketId::new(Uuid::from_u128(number))
}

fn id(name: &str) -> PlayerId {
    name.parse().unwrap()
}

fn ids<const N: usize>(names: [&str; N]) -> Vec<PlayerId> {
    names.map(id).into()
}

/// A ticket request without a group and a party, as a gateway makes it for each member.
fn request(number: u128) -> Queued {
    Queued {
        ticket: ticket(number),
        queue: "ranked".parse().unwrap(),
        rank: 0,
        latencies: BTreeMap::new(),
        attributes: BTreeMap::new(),
        group: Vec::new(),
        waiting_since: START,
        expires_at: START + Duration::MINUTE,
        requeues: 0,
        absences: 0,
        party: None,
    }
}

/// A party and players, with the events that were decided so far.
#[derive(Clone, Default)]
struct Friends {
    party: State,
    players: BTreeMap<PlayerId, Player>,
    seq: u64,
    passed: Duration,
}

impl Friends {
    /// A party of these members, the first of whom leads. They joined by invitation.
    fn of<const N: usize>(members: [&str; N]) -> Self {
        let mut friends = Self::default();
        let [leader, others @ ..] = &members[..] else { return friends };
        friends.accept(Command::Create { by: id(leader) });
        for member in others {
            friends.invite(leader, member);
            friends.accept(join(member));
        }
        friends
    }

    fn now(&self) -> OffsetDateTime {
        START + self.passed
    }

    fn decide(&self, command: Command) -> Result<Decided, Rejection> {
        decide(party(), &self.party, &self.players, command, self.now())
    }

    fn try_command(&mut self, command: Command) -> Result<Event, Rejection> {
        let Decided { event, players } = self.decide(command)?;
        self.party = State::evolve(&event);
        for (player, event) in players {
            self.record(&player, event);
        }
        Ok(event)
    }

    #[track_caller]
    fn accept(&mut self, command: Command) -> Event {
        self.try_command(command).unwrap()
    }

    #[track_caller]
    fn refuse(&self, command: Command, rejection: Rejection) {
        assert_eq!(self.decide(command), Err(rejection));
    }

    fn record(&mut self, player: &PlayerId, event: player::Event) {
        self.seq += 1;
        let n = self.players.get(player).map_or(0, |player| player.head.n) + 1;
        let (time, id) = (self.now(), Uuid::from_u128(self.seq.into()));
        let last = Recorded { seq: self.seq, time, id, n, correlation: id, event };
        self.players.insert(player.clone(), Player::of(Some(last)));
    }

    /// Decides on a command of a single player.
    fn player(&mut self, name: &str, command: player::Command) {
        let event = player::decide(&self.state(name), command).unwrap();
        self.record(&id(name), event);
    }

    fn invite(&mut self, by: &str, player: &str) {
        self.accept(Command::Invite { by: id(by), player: id(player) });
    }

    fn ready(&mut self, player: &str) {
        self.accept(Command::SetReady { player: id(player), ready: Some(Readiness::default()) });
    }

    /// All members except for the leader are ready, and the leader queues.
    fn queue(&mut self, number: u128) -> Event {
        let others: Vec<_> = self.open().players().filter(|player| **player != self.open().leader).cloned().collect();
        others.iter().for_each(|player| self.ready(player.as_str()));
        let command = self.queueing(number);
        self.accept(command)
    }

    fn queueing(&self, number: u128) -> Command {
        let queued = self.open().players().map(|player| (player.clone(), request(number))).collect();
        Command::Queue { by: self.open().leader, queued }
    }

    fn open(&self) -> Party {
        self.party.open(self.now()).unwrap()
    }

    fn state(&self, name: &str) -> player::State {
        self.players.get(&id(name)).map(|player| player.state.clone()).unwrap_or_default()
    }

    fn last(&self, name: &str) -> player::Event {
        self.players[&id(name)].last.clone().unwrap().event
    }

    fn members(&self) -> Vec<PlayerId> {
        self.open().players().cloned().collect()
    }
}

fn join(player: &str) -> Command {
    Command::Join { player: id(player), proof: Proof::Invitation }
}

fn join_with(player: &str, sha256: &str) -> Command {
    Command::Join { player: id(player), proof: Proof::Code(sha256.into()) }
}

fn leave(player: &str) -> Command {
    Command::Leave { player: id(player) }
}

fn away(player: &str) -> Command {
    Command::Away { player: id(player) }
}

fn back(player: &str) -> Command {
    Command::Return { player: id(player) }
}

fn why_cancelled(event: player::Event) -> (CancelReason, Option<PartyId>) {
    let player::Event::Cancelled(Cancelled { reason, party, .. }) = event else { panic!("{event:?}") };
    (reason, party)
}

#[test]
fn the_creator_is_the_only_member_and_leads() {
    let friends = Friends::of(["ann"]);
    assert_eq!((friends.members(), friends.open().leader), (ids(["ann"]), id("ann")));
    assert_eq!(friends.state("ann").party(), Some(party()));
    friends.refuse(Command::Create { by: id("bob") }, Rejection::Exists);
}

#[test]
fn an_invited_player_can_join_for_an_hour_and_no_other_player_can() {
    let mut friends = Friends::of(["ann"]);
    friends.invite("ann", "bob");
    friends.refuse(join("cy"), Rejection::NotInvited);
    friends.passed += INVITATION_LIFETIME - Duration::SECOND;
    assert!(friends.decide(join("bob")).is_ok());
    friends.passed += Duration::SECOND;
    friends.refuse(join("bob"), Rejection::NotInvited);
}

#[test]
fn the_newest_code_admits_any_player_for_an_hour() {
    let mut friends = Friends::of(["ann"]);
    for sha256 in ["first", "second"] {
        friends.accept(Command::ChangeCode { by: id("ann"), sha256: sha256.into() });
    }
    friends.refuse(join_with("bob", "first"), Rejection::NotInvited);
    friends.passed += CODE_LIFETIME - Duration::SECOND;
    assert!(friends.decide(join_with("bob", "second")).is_ok());
    friends.passed += Duration::SECOND;
    friends.refuse(join_with("bob", "second"), Rejection::NotInvited);
}

#[test]
fn an_invitation_is_used_up_by_joining() {
    let mut friends = Friends::of(["ann", "bob"]);
    friends.accept(leave("bob"));
    friends.refuse(join("bob"), Rejection::NotInvited);
}

#[test]
fn a_party_has_at_most_twenty_open_invitations_and_an_expired_one_does_not_count() {
    let mut friends = Friends::of(["ann"]);
    let invite = |number: usize| Command::Invite { by: id("ann"), player: id(&format!("p{number}")) };
    (0..MAX_INVITATIONS).for_each(|number| drop(friends.accept(invite(number))));
    friends.refuse(invite(MAX_INVITATIONS), Rejection::TooManyInvitations);
    friends.passed += INVITATION_LIFETIME / 2;
    friends.accept(invite(0));
    friends.passed += INVITATION_LIFETIME / 2;
    friends.accept(invite(MAX_INVITATIONS));
    let invited = friends.open().invited;
    assert_eq!(invited.keys().cloned().collect::<Vec<_>>(), ids(["p0", &format!("p{MAX_INVITATIONS}")]));
}

#[test]
fn a_member_cannot_be_invited_and_joining_again_changes_nothing() {
    let friends = Friends::of(["ann", "bob"]);
    friends.refuse(Command::Invite { by: id("ann"), player: id("bob") }, Rejection::AlreadyMember);
    friends.refuse(join("bob"), Rejection::NoChange);
}

#[test]
fn an_invitation_is_renewed_after_ten_minutes_and_not_before() {
    let mut friends = Friends::of(["ann"]);
    let invite = || Command::Invite { by: id("ann"), player: id("bob") };
    friends.accept(invite());
    friends.passed += Duration::minutes(10) - Duration::SECOND;
    friends.refuse(invite(), Rejection::NoChange);
    friends.passed += Duration::SECOND;
    friends.accept(invite());
    assert_eq!(friends.open().invited[&id("bob")].expires_at, friends.now() + INVITATION_LIFETIME);
}

#[test]
fn a_removed_member_cannot_join_again_with_the_code() {
    let mut friends = Friends::of(["ann", "bob", "cy"]);
    friends.accept(Command::ChangeCode { by: id("ann"), sha256: "c0de".into() });
    friends.accept(leave("cy"));
    friends.accept(join_with("cy", "c0de"));
    friends.accept(Command::Kick { by: id("ann"), player: id("bob") });
    friends.refuse(join_with("bob", "c0de"), Rejection::NotInvited);
}

#[test]
fn a_full_party_admits_nobody() {
    let mut friends = Friends::of(["p0"]);
    for number in 1..=MAX_MEMBERS {
        friends.invite("p0", &format!("p{number}"));
    }
    (1..MAX_MEMBERS).for_each(|number| drop(friends.accept(join(&format!("p{number}")))));
    friends.refuse(join(&format!("p{MAX_MEMBERS}")), Rejection::Full);
}

#[test]
fn a_player_who_waits_can_neither_create_a_party_nor_join_one() {
    let mut friends = Friends::of(["ann"]);
    friends.invite("ann", "bob");
    friends.player("bob", player::Command::Queue(request(7)));
    let waiting =
        || Rejection::Player { player: id("bob"), rejection: player::Rejection::Waiting { ticket: ticket(7) } };
    friends.refuse(join("bob"), waiting());
    let new = Friends { party: State::New, ..friends };
    new.refuse(Command::Create { by: id("bob") }, waiting());
}

#[test]
fn a_player_of_another_party_can_join_only_once_that_party_is_forgotten() {
    let mut friends = Friends::of(["ann"]);
    friends.invite("ann", "bob");
    let other = player::join_party(&Player::default(), other_party()).unwrap();
    friends.record(&id("bob"), other);
    let rejection = player::Rejection::InParty { party: other_party() };
    friends.refuse(join("bob"), Rejection::Player { player: id("bob"), rejection });
    let bob = friends.players.remove(&id("bob")).unwrap();
    friends.players.insert(id("bob"), bob.without_party());
    friends.accept(join("bob"));
    assert_eq!(friends.state("bob").party(), Some(party()));
}

#[test]
fn nobody_can_join_while_the_party_waits() {
    let mut friends = Friends::of(["ann", "bob"]);
    friends.invite("ann", "cy");
    friends.queue(7);
    friends.refuse(join("cy"), Rejection::PartyWaits { ticket: ticket(7) });
    friends.refuse(friends.queueing(8), Rejection::PartyWaits { ticket: ticket(7) });
}

#[test]
fn all_members_queue_with_one_ticket_and_are_not_ready_afterwards() {
    let mut friends = Friends::of(["ann", "bob"]);
    friends.passed += Duration::HOUR;
    let event = friends.queue(7);
    let Party { members, renewed_at, ticket: last, .. } = event.party().clone();
    assert!(members.iter().all(|member| member.ready.is_none()));
    assert_eq!((renewed_at, last), (friends.now(), Some(ticket(7))));
    for name in ["ann", "bob"] {
        let group = ids(["ann", "bob"]);
        let expected = Queued { group, party: Some(party()), ..request(7) };
        assert_eq!(friends.state(name), player::State::Waiting(expected), "{name}");
    }
}

#[test]
fn the_party_of_one_member_queues_without_a_group() {
    let mut friends = Friends::of(["ann"]);
    friends.queue(7);
    assert_eq!(friends.state("ann"), player::State::Waiting(Queued { party: Some(party()), ..request(7) }));
}

#[test]
fn the_party_queues_only_when_the_other_members_are_ready_and_present() {
    let mut friends = Friends::of(["ann", "bob", "cy"]);
    friends.refuse(friends.queueing(7), Rejection::NotReady { players: ids(["bob", "cy"]) });
    friends.ready("bob");
    friends.ready("cy");
    friends.accept(away("bob"));
    friends.refuse(friends.queueing(7), Rejection::NotReady { players: ids(["bob"]) });
    let ready = Some(Readiness::default());
    friends.refuse(Command::SetReady { player: id("bob"), ready }, Rejection::Away { player: id("bob") });
    friends.accept(back("bob"));
    friends.refuse(friends.queueing(7), Rejection::NotReady { players: ids(["bob"]) });
    friends.ready("bob");
    let Command::Queue { by, mut queued } = friends.queueing(7) else { unreachable!() };
    queued.remove(&id("cy"));
    friends.refuse(Command::Queue { by, queued }, Rejection::NotReady { players: ids(["cy"]) });
    friends.accept(friends.queueing(7));
}

#[test]
fn a_party_with_a_member_in_a_match_does_not_queue() {
    let mut friends = Friends::of(["ann", "bob"]);
    friends.queue(7);
    let session = SessionId::new(Uuid::from_u128(9));
    let matched = || player::Command::Match { ticket: ticket(7), session, team: "red".into(), requeue: false };
    friends.player("ann", matched());
    friends.player("bob", matched());
    friends.player("ann", player::Command::Release { session, why: Ending::Finished, reason: None, joined: None });
    friends.ready("bob");
    let rejection = player::Rejection::InSession { session };
    friends.refuse(friends.queueing(8), Rejection::Player { player: id("bob"), rejection });
}

#[test]
fn only_the_leader_may_change_the_party_for_others() {
    let friends = Friends::of(["ann", "bob", "cy"]);
    let by = || id("bob");
    let queued = BTreeMap::new();
    for command in [
        Command::Kick { by: by(), player: id("cy") },
        Command::Disband { by: by() },
        Command::HandOver { by: by(), to: id("cy") },
        Command::ChangeCode { by: by(), sha256: "x".into() },
        Command::Queue { by: by(), queued },
    ] {
        friends.refuse(command, Rejection::NotLeader);
    }
}

#[test]
fn a_player_who_is_not_a_member_can_do_nothing() {
    let friends = Friends::of(["ann", "bob"]);
    let cy = || id("cy");
    for command in [
        Command::Invite { by: cy(), player: id("dan") },
        Command::Leave { player: cy() },
        Command::Kick { by: cy(), player: id("bob") },
        Command::Kick { by: id("ann"), player: cy() },
        Command::Disband { by: cy() },
        Command::HandOver { by: cy(), to: id("bob") },
        Command::HandOver { by: id("ann"), to: cy() },
        Command::ChangeCode { by: cy(), sha256: "x".into() },
        Command::SetReady { player: cy(), ready: None },
        Command::Queue { by: cy(), queued: BTreeMap::new() },
        away("cy"),
        back("cy"),
    ] {
        friends.refuse(command, Rejection::NotMember { player: cy() });
    }
}

#[test]
fn a_member_who_leaves_is_in_no_party() {
    let mut friends = Friends::of(["ann", "bob"]);
    friends.accept(leave("bob"));
    assert_eq!((friends.members(), friends.state("bob").party()), (ids(["ann"]), None));
    assert_eq!(friends.last("bob").type_name(), "PartyChanged");
}

#[test]
fn a_waiting_member_who_leaves_cancels_the_ticket_of_all() {
    for (command, reason) in [
        (leave("bob"), CancelReason::Player),
        (Command::Kick { by: id("ann"), player: id("bob") }, CancelReason::Party),
    ] {
        let mut friends = Friends::of(["ann", "bob", "cy"]);
        friends.queue(7);
        friends.accept(command);
        assert_eq!(why_cancelled(friends.last("bob")), (reason, None));
        for other in ["ann", "cy"] {
            assert_eq!(why_cancelled(friends.last(other)), (CancelReason::Party, Some(party())), "{other}");
        }
    }
}

#[test]
fn while_a_match_is_proposed_no_member_leaves_and_the_party_does_not_end() {
    let mut friends = Friends::of(["ann", "bob"]);
    friends.queue(7);
    let session = SessionId::new(Uuid::from_u128(9));
    for name in ["ann", "bob"] {
        let (team, accept_by) = ("red".into(), START + Duration::MINUTE);
        let (ticket, players, may_requeue) = (ticket(7), 4, true);
        friends.player(name, player::Command::Propose { ticket, session, team, accept_by, players, may_requeue });
    }
    let of = |name: &str| Rejection::Player { player: id(name), rejection: player::Rejection::InSession { session } };
    friends.refuse(leave("bob"), of("bob"));
    friends.refuse(Command::Kick { by: id("ann"), player: id("bob") }, of("bob"));
    friends.refuse(Command::Disband { by: id("ann") }, of("ann"));
    assert!(friends.decide(away("bob")).is_ok(), "a member can still lose the connection");
    for name in ["ann", "bob"] {
        let (reason, players) = (player::DeclineReason::Party, Vec::new());
        friends.player(name, player::Command::Decline { session, reason, players });
        assert_eq!(friends.state(name).party(), Some(party()), "{name}");
    }
    friends.accept(leave("bob"));
    assert_eq!((friends.members(), friends.state("bob").party()), (ids(["ann"]), None));
}

#[test]
fn a_member_who_leaves_during_a_match_stays_in_the_match() {
    let mut friends = Friends::of(["ann", "bob"]);
    friends.queue(7);
    let session = SessionId::new(Uuid::from_u128(9));
    for name in ["ann", "bob"] {
        let command = player::Command::Match { ticket: ticket(7), session, team: "red".into(), requeue: true };
        friends.player(name, command);
    }
    let before = friends.state("bob");
    friends.accept(leave("bob"));
    assert_eq!(friends.state("bob"), before.with_party(None));
    let failed = || player::Command::Requeue { session, reason: crate::failure::Code::ServerFailed, now: START };
    let not_requeued = player::Rejection::NotRequeued { ticket: ticket(7) };
    assert_eq!(player::decide(&friends.state("bob"), failed()), Err(not_requeued));
    assert!(
        player::decide(&friends.state("ann"), failed()).is_ok(),
        "the session worker decides on the ticket as a whole"
    );
}

#[test]
fn the_longest_standing_member_who_is_not_away_succeeds_the_leader() {
    let mut friends = Friends::of(["ann", "bob", "cy"]);
    friends.accept(away("bob"));
    friends.accept(leave("ann"));
    assert_eq!(friends.open().leader, id("cy"));
    friends.accept(leave("cy"));
    assert_eq!(friends.open().leader, id("bob"), "if all are away, the longest-standing member leads");
}

#[test]
fn the_leader_can_make_another_member_the_leader_unless_they_are_away() {
    let mut friends = Friends::of(["ann", "bob", "cy"]);
    let hand_over = |to: &str| Command::HandOver { by: id("ann"), to: id(to) };
    friends.refuse(hand_over("ann"), Rejection::NoChange);
    friends.accept(away("cy"));
    friends.refuse(hand_over("cy"), Rejection::Away { player: id("cy") });
    friends.accept(hand_over("bob"));
    assert_eq!(friends.open().leader, id("bob"));
    friends.refuse(hand_over("bob"), Rejection::NotLeader);
}

#[test]
fn the_party_ends_when_the_last_member_leaves() {
    let mut friends = Friends::of(["ann", "bob"]);
    friends.accept(leave("bob"));
    let Event::Disbanded(disbanded) = friends.accept(leave("ann")) else { panic!("the party is open") };
    assert_eq!(disbanded.why, Disbanding::Empty);
    assert_eq!((friends.party.clone(), friends.state("ann").party()), (State::Ended, None));
}

#[test]
fn a_leader_who_disbands_a_waiting_party_cancels_the_ticket_and_frees_all_members() {
    let mut friends = Friends::of(["ann", "bob"]);
    friends.queue(7);
    friends.accept(Command::Disband { by: id("ann") });
    assert_eq!(why_cancelled(friends.last("ann")), (CancelReason::Player, None));
    assert_eq!(why_cancelled(friends.last("bob")), (CancelReason::Party, None));
    friends.refuse(join("cy"), Rejection::Ended);
}

#[test]
fn a_member_who_disconnects_while_waiting_is_away_and_cancels_the_ticket_of_all() {
    let mut friends = Friends::of(["ann", "bob"]);
    friends.queue(7);
    friends.accept(away("ann"));
    assert_eq!(why_cancelled(friends.last("ann")), (CancelReason::Disconnected, Some(party())));
    assert_eq!(why_cancelled(friends.last("bob")), (CancelReason::Party, Some(party())));
    assert_eq!(friends.open().leader, id("bob"));
    friends.refuse(away("ann"), Rejection::NoChange);
}

#[test]
fn a_player_who_joins_leads_if_all_others_are_away() {
    let mut friends = Friends::of(["ann", "bob"]);
    friends.invite("ann", "cy");
    friends.accept(away("ann"));
    friends.accept(away("bob"));
    friends.accept(join("cy"));
    assert_eq!(friends.open().leader, id("cy"));
}

#[test]
fn a_member_who_returns_leads_only_if_the_leader_is_away() {
    let mut friends = Friends::of(["ann", "bob"]);
    friends.refuse(back("bob"), Rejection::NoChange);
    friends.accept(away("bob"));
    friends.accept(back("bob"));
    assert_eq!(friends.open().leader, id("ann"));
    friends.accept(away("bob"));
    friends.accept(away("ann"));
    friends.accept(back("bob"));
    assert_eq!(friends.open().leader, id("bob"));
}

#[test]
fn a_repeated_readiness_changes_nothing() {
    let mut friends = Friends::of(["ann", "bob"]);
    let ready = |ready| Command::SetReady { player: id("bob"), ready };
    friends.refuse(ready(None), Rejection::NoChange);
    friends.accept(ready(Some(Readiness::default())));
    friends.refuse(ready(Some(Readiness::default())), Rejection::NoChange);
    friends.accept(ready(Some(Readiness { rank: Some(1), ..Readiness::default() })));
    friends.accept(ready(None));
}

#[test]
fn a_party_ends_eight_hours_after_it_was_created_or_last_queued() {
    let mut friends = Friends::of(["ann"]);
    friends.passed += LIFETIME - Duration::SECOND;
    friends.queue(7);
    friends.player("ann", player::Command::Cancel { ticket: ticket(7), reason: CancelReason::Player });
    friends.passed += LIFETIME - Duration::SECOND;
    assert!(friends.decide(leave("ann")).is_ok());
    friends.passed += Duration::SECOND;
    assert_eq!(friends.party.open(friends.now()), None);
    friends.refuse(leave("ann"), Rejection::Ended);
}

#[test]
fn the_head_of_each_player_and_of_the_party_is_in_the_decision() {
    let mut friends = Friends::of(["ann", "bob"]);
    friends.queue(7);
    let decided = friends.decide(leave("bob")).unwrap();
    let env = crate::env::Simulated::at(START);
    let decision = decided.decision(&env, (party(), Head { seq: 90, n: 5 }), &friends.players, None);
    let heads: Vec<_> = decision.changes.iter().map(|change| (change.aggregate.to_string(), change.head)).collect();
    let head = |name: &str| (format!("player {name}"), friends.players[&id(name)].head);
    assert_eq!(heads, [(format!("party {}", party()), Head { seq: 90, n: 5 }), head("ann"), head("bob")]);
}
