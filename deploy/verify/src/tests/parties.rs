//! Parties: valid logs that the deciders write, and forged ones.

use std::collections::BTreeMap;

use futures::executor::block_on;
use garage_events::{
    env::{Env, Simulated},
    id::{PartyId, PlayerId},
    log::{Append, Decision, Head, Load, Player},
    party::{self, Command, Disbanded, Disbanding, LIFETIME, MemberJoined, Party, Proof, Readiness},
    player::{PartyChanged, Queued},
    reaction::decide_session,
    sim::{self, SimLog},
    subject::{ALL, Aggregate},
};
use time::Duration;

use super::*;

/// Players in parties, on the simulated log.
struct Friends {
    env: Simulated,
    log: SimLog<Simulated>,
}

fn party(number: u128) -> PartyId {
    PartyId::new(story::id(100 + number))
}

fn name(name: &str) -> PlayerId {
    name.parse().unwrap()
}

impl Friends {
    /// A party of anna and bert, number 1, which anna leads. It has three events: created, invited, joined.
    fn new() -> Self {
        let env = Simulated::at(story::BEGAN);
        let friends = Self { log: SimLog::new(env.clone()), env };
        friends.act(1, Command::Create { by: name("anna") });
        friends.joins(1, "bert");
        friends
    }

    /// The same party, waiting with ticket 1.
    fn waiting() -> Self {
        let friends = Self::new();
        friends.ready("bert");
        friends.queue(1);
        friends
    }

    fn player(&self, player: &PlayerId) -> Player {
        block_on(self.log.player(player)).unwrap()
    }

    fn open(&self, number: u128) -> (Party, Head) {
        let found = block_on(self.log.party(party(number))).unwrap();
        (found.state.open(self.env.now()).unwrap(), found.head)
    }

    /// Decides on a party and appends the decision.
    fn act(&self, number: u128, command: Command) {
        let id = party(number);
        let found = block_on(self.log.party(id)).unwrap();
        let names = ["anna", "bert", "cleo"].map(name);
        let players: BTreeMap<_, _> = names.map(|player| (player.clone(), self.player(&player))).into();
        let decided = party::decide(id, &found.state, &players, command, self.env.now()).unwrap();
        block_on(self.log.append(decided.decision(&self.env, (id, found.head), &players, None))).unwrap();
    }

    fn joins(&self, number: u128, player: &str) {
        let by = self.open(number).0.leader;
        self.act(number, Command::Invite { by, player: name(player) });
        self.act(number, Command::Join { player: name(player), proof: Proof::Invitation });
    }

    fn ready(&self, player: &str) {
        self.act(1, Command::SetReady { player: name(player), ready: Some(Readiness::default()) });
    }

    fn queue(&self, number: u128) {
        let party = self.open(1).0;
        let now = self.env.now();
        let queued = Queued { waiting_since: now, expires_at: now + Duration::MINUTE, ..queued(number) };
        let queued = party.players().map(|player| (player.clone(), queued.clone())).collect();
        self.act(1, Command::Queue { by: party.leader, queued });
    }

    /// Matches anna and bert, who wait with one ticket, in session 1.
    fn matched(&self) {
        let members = ["anna", "bert"].map(name);
        let teams = members.clone().map(|player| session::Member { player, ticket: ticket(1), rank: 0 });
        let teams = vec![session::Team { name: "red".into(), players: teams.into() }];
        let matched = session::Matched { teams, ..story::matched(&[]) };
        let mut decision = Decision::new(&self.env, story::id(1), None).change(
            &self.env,
            Aggregate::Session(session(1)),
            Head::default(),
            [session::Event::from(matched)],
        );
        for player in members {
            let found = self.player(&player);
            let (session, team) = (session(1), "red".into());
            let command = player::Command::Match { ticket: ticket(1), session, team, requeue: true };
            let event = player::decide(&found.state, command).unwrap();
            decision = decision.change(&self.env, Aggregate::Player(player), found.head, [event]);
        }
        block_on(self.log.append(decision)).unwrap();
    }

    fn fails(&self) {
        let fail = session::Command::Fail { reason: "exited".into() };
        block_on(decide_session(&self.log, &self.env, session(1), fail, None)).unwrap().unwrap();
    }

    /// Appends events that no decider writes: one of a party, and some of players.
    fn forge<const N: usize>(&self, of_party: Option<(u128, party::Event)>, players: [(&str, player::Event); N]) {
        let mut decision = Decision::new(&self.env, story::id(1), None);
        if let Some((number, event)) = of_party {
            let head = block_on(self.log.party(party(number))).unwrap().head;
            decision = decision.change(&self.env, Aggregate::Party(party(number)), head, [event]);
        }
        for (player, event) in players {
            let head = self.player(&name(player)).head;
            decision = decision.change(&self.env, Aggregate::Player(name(player)), head, [event]);
        }
        block_on(self.log.append(decision)).unwrap();
    }

    fn story(&self) -> Story {
        let mut story = Story::default();
        story.messages = sim::batches(&self.log.messages(ALL)).collect();
        story
    }

    #[track_caller]
    fn is_valid(&self) {
        assert_eq!(self.story().check(End::Open).0, []);
    }

    /// Asserts that the log violates this rule, about this player, and that the description contains this text.
    #[track_caller]
    fn violates(&self, player: Option<&str>, text: &str) {
        let found = self.story().check(End::Open).0;
        let is_it = |one: &Violation| {
            one.rule == Rule::Party && one.player.as_ref().map(PlayerId::as_str) == player && one.what.contains(text)
        };
        assert!(found.iter().any(is_it), "{found:#?}");
    }
}

/// The event by which a player joins or leaves a party, although nothing else happens.
fn moves(friends: &Friends, player: &str, to: Option<u128>) -> player::Event {
    let found = friends.player(&name(player)).without_party();
    let event = player::join_party(&found, party(0)).unwrap();
    let player::Event::PartyChanged(changed) = event else { panic!("{event:?}") };
    PartyChanged { party: to.map(party), ..changed }.into()
}

#[test]
fn a_party_that_queues_plays_and_parts_is_valid() {
    let friends = Friends::waiting();
    friends.matched();
    friends.fails();
    assert!(matches!(friends.player(&name("bert")).state, player::State::Waiting(_)), "the party waits again");
    friends.act(1, Command::Away { player: name("bert") });
    friends.act(1, Command::Return { player: name("bert") });
    friends.joins(1, "cleo");
    friends.act(1, Command::HandOver { by: name("anna"), to: name("cleo") });
    friends.act(1, Command::Kick { by: name("cleo"), player: name("bert") });
    friends.act(2, Command::Create { by: name("bert") });
    friends.act(2, Command::Leave { player: name("bert") });
    friends.joins(1, "bert");
    friends.act(1, Command::Disband { by: name("cleo") });
    friends.is_valid();
}

#[test]
fn a_party_is_not_requeued_after_a_member_has_left() {
    let friends = Friends::waiting();
    friends.matched();
    friends.act(1, Command::Leave { player: name("bert") });
    friends.fails();
    for player in ["anna", "bert"] {
        assert!(matches!(friends.player(&name(player)).state, player::State::Idle { .. }), "{player}");
    }
    friends.is_valid();
}

#[test]
fn a_player_leaves_a_party_without_its_event_only_if_its_time_is_over() {
    for (passed, is_valid) in [(LIFETIME - Duration::SECOND, false), (LIFETIME, true)] {
        let friends = Friends::new();
        friends.env.advance(passed);
        let anna = friends.player(&name("anna")).without_party();
        friends.forge(None, [("anna", player::join_party(&anna, party(2)).unwrap())]);
        if is_valid {
            friends.violates(Some("anna"), "joins party");
        } else {
            friends.violates(Some("anna"), "which still has them as a member");
        }
    }
    let friends = Friends::new();
    friends.env.advance(LIFETIME);
    let players = [("anna", friends.player(&name("anna")).without_party())];
    let players: BTreeMap<_, _> = players.map(|(player, found)| (name(player), found)).into();
    let create = Command::Create { by: name("anna") };
    let decided = party::decide(party(2), &party::State::New, &players, create, friends.env.now()).unwrap();
    block_on(friends.log.append(decided.decision(&friends.env, (party(2), Head::default()), &players, None))).unwrap();
    friends.is_valid();
}

#[test]
fn a_player_who_joins_without_an_event_of_the_party_is_found() {
    let friends = Friends::new();
    friends.forge(None, [("cleo", moves(&friends, "cleo", Some(1)))]);
    friends.violates(Some("cleo"), "without an event of the party");
}

#[test]
fn a_player_who_leaves_without_an_event_of_the_party_is_found() {
    let friends = Friends::new();
    friends.forge(None, [("bert", moves(&friends, "bert", None))]);
    friends.violates(Some("bert"), "still has them as a member");
    friends.violates(Some("bert"), "own events say otherwise");
}

#[test]
fn a_member_without_an_event_of_their_own_is_found() {
    let friends = Friends::new();
    let mut state = friends.open(1).0;
    let joined_at = friends.env.now();
    state.members.push(party::Member { player: name("cleo"), joined_at, ready: None, away: false });
    friends.forge(Some((1, MemberJoined { player: name("cleo"), state }.into())), []);
    friends.violates(None, "cleo joins the party without an event of their own");
}

#[test]
fn a_player_in_two_parties_is_found() {
    let friends = Friends::new();
    friends.act(2, Command::Create { by: name("cleo") });
    let mut state = friends.open(2).0;
    let joined_at = friends.env.now();
    state.members.push(party::Member { player: name("bert"), joined_at, ready: None, away: false });
    let joined = MemberJoined { player: name("bert"), state };
    friends.forge(Some((2, joined.into())), [("bert", moves(&friends, "bert", Some(2)))]);
    friends.violates(Some("bert"), "still has them as a member");
}

#[test]
fn members_that_change_in_another_way_than_the_event_says_are_found() {
    let friends = Friends::new();
    let mut state = friends.open(1).0;
    state.members.pop();
    let invited = party::Invited { player: name("cleo"), state };
    friends.forge(Some((1, invited.into())), []);
    friends.violates(None, "changes the members in another way than it says");
}

#[test]
fn a_leader_who_is_not_a_member_is_found() {
    let friends = Friends::new();
    let state = Party { leader: name("cleo"), ..friends.open(1).0 };
    friends.forge(Some((1, party::LeaderChanged { state }.into())), []);
    friends.violates(None, "the leader is not a member");
}

#[test]
fn an_event_after_the_end_of_a_party_is_found() {
    let friends = Friends::new();
    let (state, _) = friends.open(1);
    friends.act(1, Command::Disband { by: name("anna") });
    let again = Disbanded { why: Disbanding::Disbanded, state };
    friends.forge(Some((1, again.into())), []);
    friends.violates(None, "after the end of the party");
}

#[test]
fn a_party_that_is_queued_without_a_member_is_found() {
    let friends = Friends::new();
    let state = Party { ticket: Some(ticket(1)), ..friends.open(1).0 };
    let event = party::PartyQueued { queue: story::queue(), state };
    let own = Queued { party: Some(party(1)), group: ["anna", "bert"].map(name).into(), ..queued(1) };
    friends.forge(Some((1, event.into())), [("anna", own.into())]);
    friends.violates(None, "queued without bert");
}

#[test]
fn a_member_who_is_queued_without_the_party_is_found() {
    let friends = Friends::new();
    let own = Queued { party: Some(party(1)), ..queued(1) };
    friends.forge(None, [("anna", own.into())]);
    friends.violates(Some("anna"), "queued without the party");
}

#[test]
fn a_ticket_that_is_requeued_without_one_of_its_players_is_found() {
    let friends = Friends::waiting();
    friends.matched();
    friends.fails();
    let mut story = friends.story();
    // The event of bert names another ticket.
    let last = story.messages.last().unwrap().seq;
    story.edit(last, |body| body["data"]["ticket"] = ticket(9).to_string().into());
    let found = of_rule(&story, Rule::Party);
    assert!(found.iter().any(|one| one.what.contains("is requeued without bert")), "{found:#?}");
}

#[test]
fn a_party_change_of_a_player_who_waits_is_found() {
    let friends = Friends::waiting();
    let changed = PartyChanged { party: None, past: None };
    friends.forge(None, [("bert", changed.into())]);
    let found = of_rule(&friends.story(), Rule::Decided);
    assert!(found.iter().any(|one| one.what.contains("the player waits")), "{found:#?}");
}

#[test]
fn a_party_change_that_loses_the_rest_of_the_state_is_found() {
    let friends = Friends::waiting();
    friends.act(1, Command::Leave { player: name("bert") });
    let cancelled = friends.player(&name("bert")).last.unwrap().event;
    assert!(matches!(cancelled, player::Event::Cancelled(_)), "{cancelled:?}");
    friends.forge(None, [("bert", PartyChanged { party: None, past: None }.into())]);
    let found = of_rule(&friends.story(), Rule::Decided);
    assert!(found.iter().any(|one| one.what.contains("different data")), "{found:#?}");
}

#[test]
fn a_log_without_the_beginning_of_a_party_is_valid() {
    let friends = Friends::waiting();
    friends.act(1, Command::Leave { player: name("bert") });
    let story = friends.story();
    for forgotten in 1..story.messages.len() {
        assert_eq!(of_rule(&story.forgetting(forgotten), Rule::Party), [], "without {forgotten} messages");
    }
}
