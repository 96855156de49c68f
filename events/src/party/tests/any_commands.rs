//! Any commands, in any order, leave a party and its players in agreement.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const NAMES: [&str; 5] = ["ann", "bob", "cy", "dan", "eve"];

fn any_player() -> impl Strategy<Value = PlayerId> {
    prop::sample::select(&NAMES[..]).prop_map(id)
}

/// Commands of few players, so that many of them are accepted.
fn any_command() -> impl Strategy<Value = Command> {
    let queued = || NAMES.map(|name| (id(name), request(7))).into();
    prop_oneof![
        2 => any_player().prop_map(|by| Command::Create { by }),
        4 => (any_player(), any_player()).prop_map(|(by, player)| Command::Invite { by, player }),
        6 => any_player().prop_map(|player| Command::Join { player, proof: Proof::Invitation }),
        2 => any_player().prop_map(|player| Command::Join { player, proof: Proof::Code("code".into()) }),
        1 => any_player().prop_map(|player| Command::Leave { player }),
        1 => (any_player(), any_player()).prop_map(|(by, player)| Command::Kick { by, player }),
        1 => any_player().prop_map(|by| Command::Disband { by }),
        2 => (any_player(), any_player()).prop_map(|(by, to)| Command::HandOver { by, to }),
        2 => any_player().prop_map(|by| Command::ChangeCode { by, sha256: "code".into() }),
        6 => any_player().prop_map(|player| Command::SetReady { player, ready: Some(Readiness::default()) }),
        1 => any_player().prop_map(|player| Command::SetReady { player, ready: None }),
        4 => any_player().prop_map(move |by| Command::Queue { by, queued: queued() }),
        2 => any_player().prop_map(|player| Command::Away { player }),
        2 => any_player().prop_map(|player| Command::Return { player }),
    ]
}

/// A step: a command of the party, a player who cancels a ticket, or time that passes.
#[derive(Debug, Clone)]
enum Step {
    Party(Command),
    Cancel(PlayerId),
    Pass(Duration),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => any_command().prop_map(Step::Party),
        1 => any_player().prop_map(Step::Cancel),
        1 => (0..200i64).prop_map(|minutes| Step::Pass(Duration::minutes(minutes))),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_party_and_its_players_agree(steps in prop::collection::vec(any_step(), 0..120)) {
        let mut friends = Friends::default();
        let mut ended = false;
        for step in steps {
            match step {
                Step::Party(command) => {
                    let accepted = friends.try_command(command).is_ok();
                    prop_assert!(!(accepted && ended), "a party that has ended accepts nothing");
                }
                Step::Cancel(player) => {
                    let command = player::Command::Cancel { ticket: ticket(7), reason: CancelReason::Player };
                    if let Ok(event) = player::decide(&friends.state(player.as_str()), command) {
                        friends.record(&player, event);
                    }
                }
                Step::Pass(time) => friends.passed += time,
            }
            let open = friends.party.open(friends.now());
            ended = ended || (open.is_none() && friends.party != State::New);
            // A party that is over in time leaves its members as they are.
            let State::Open(party) = &friends.party else {
                prop_assert!(NAMES.iter().all(|name| friends.state(name).party().is_none()));
                continue;
            };
            let members: BTreeSet<_> = party.players().collect();
            prop_assert_eq!(members.len(), party.members.len());
            prop_assert!((1..=MAX_MEMBERS).contains(&members.len()) && members.contains(&party.leader));
            prop_assert!(party.invited.len() <= MAX_INVITATIONS);
            prop_assert!(party.members.iter().all(|member| !(member.away && member.ready.is_some())));
            if party.members.iter().any(|member| !member.away) {
                prop_assert!(party.member(&party.leader).is_some_and(|leader| !leader.away));
            }
            for name in NAMES {
                let is_member = members.contains(&id(name));
                prop_assert_eq!(friends.state(name).party(), is_member.then(self::party), "{}", name);
            }
        }
    }
}
