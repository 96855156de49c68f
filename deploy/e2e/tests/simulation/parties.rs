//! Pairs of players who form a party, queue with it, and sometimes leave, disband it or disconnect at any time.

use std::{collections::BTreeMap, ops::Range};

use garage_events::{
    env::Env,
    id::{PartyId, PlayerId, TicketId},
    log::{Append, AppendError, Load, ReadError},
    party::{Command, Proof, Readiness, decide},
    player::State,
    subject::Aggregate,
};
use rand::RngExt;
use uuid::Uuid;

use crate::{
    clients::{Clients, LATEST, Notice, TRIES, queued},
    history,
    net::{Clock, Net},
    workers::call_gateway,
};

/// How often a gateway decides again after a conflict.
const DECISIONS: u32 = 5;

impl Clients {
    /// Lets two players play all rounds, each round in a new party.
    pub(crate) async fn play_in_party(self, numbers: Range<u32>) {
        let [leader, other] = [numbers.start, numbers.start + 1].map(|number| format!("p{number}").parse().unwrap());
        for round in 1..=self.stage().plan.rounds {
            self.pause(8_000).await;
            let id = PartyId::new(Uuid::from_u64_pair(u64::from(numbers.start) + (1 << 32), round.into()));
            let ticket = TicketId::new(Uuid::from_u64_pair(numbers.start.into(), round.into()));
            self.form(id, &leader, &other).await;
            let request = queued(ticket, numbers.start, self.stage().now());
            let both = [&leader, &other].map(|player| (player.clone(), request.clone())).into();
            if self.ask(id, &leader, Command::Queue { by: leader.clone(), queued: both }).await == Some(true) {
                self.notice(Notice::Queued(ticket));
            }
            if let Some(command) = self.any_change(&leader, &other) {
                self.pause(12_000).await;
                self.ask(id, &leader, command).await;
            }
            if !self.has_ticket(&leader, ticket) {
                // A request without an answer may still be stored.
                self.stage().sleep(LATEST).await;
            }
            for player in [&leader, &other].into_iter().filter(|player| self.has_ticket(player, ticket)) {
                self.until_ended(player, ticket).await;
            }
            for player in [&leader, &other] {
                while self.party_of(player).is_some() {
                    self.ask(id, player, Command::Leave { player: player.clone() }).await;
                }
            }
        }
        self.finish(2);
    }

    /// Forms a party whose other member is ready. Any of the requests may fail; then the party does not queue.
    async fn form(&self, id: PartyId, leader: &PlayerId, other: &PlayerId) {
        self.ask(id, leader, Command::Create { by: leader.clone() }).await;
        self.ask(id, leader, Command::Invite { by: leader.clone(), player: other.clone() }).await;
        self.ask(id, other, Command::Join { player: other.clone(), proof: Proof::Invitation }).await;
        let ready = Some(Readiness::default());
        self.ask(id, other, Command::SetReady { player: other.clone(), ready }).await;
    }

    /// What happens to the party while it waits or plays, if anything.
    fn any_change(&self, leader: &PlayerId, other: &PlayerId) -> Option<Command> {
        Some(match self.stage().draw(|rng| rng.random_range(0..8)) {
            0 => Command::Leave { player: leader.clone() },
            1 => Command::Leave { player: other.clone() },
            2 => Command::Kick { by: leader.clone(), player: other.clone() },
            3 => Command::Disband { by: leader.clone() },
            4 => Command::Away { player: leader.clone() },
            5 => Command::Away { player: other.clone() },
            _ => return None,
        })
    }

    /// The party of a player according to the log.
    fn party_of(&self, player: &PlayerId) -> Option<PartyId> {
        let messages = self.net().log.messages(&Aggregate::Player(player.clone()).filter());
        State::evolve(&history::decode(messages.last()?).expect("an event").event).party()
    }

    /// Sends a command to gateways until one answers. Returns whether it was accepted; `None` without an answer.
    async fn ask(&self, id: PartyId, by: &PlayerId, command: Command) -> Option<bool> {
        for _ in 0..TRIES {
            let (gateway, clock) = self.gateway();
            let (net, by, command) = (self.net(), by.clone(), command.clone());
            let run = async move { act(&net, &clock, id, &by, command).await.ok() };
            if let Some(Some(accepted)) = call_gateway(self.stage(), gateway, run).await {
                return Some(accepted);
            }
            self.pause(2_000).await;
        }
        None
    }
}

/// Decides on a party and appends the decision, as a gateway does. Returns whether the command was accepted.
async fn act(net: &Net, clock: &Clock, id: PartyId, by: &PlayerId, command: Command) -> Result<bool, NoAnswer> {
    for _ in 0..DECISIONS {
        let party = net.party(id).await?;
        let members = party.state.open(clock.now());
        let mut players = BTreeMap::new();
        for player in members.iter().flat_map(|party| party.players()).chain([by]) {
            players.insert(player.clone(), net.player(player).await?);
        }
        let Ok(decided) = decide(id, &party.state, &players, command.clone(), clock.now()) else { return Ok(false) };
        match net.append(decided.decision(clock, (id, party.head), &players, None)).await {
            Ok(_) => return Ok(true),
            Err(AppendError::Conflict(_)) => {}
            Err(_) => return Err(NoAnswer),
        }
    }
    Err(NoAnswer)
}

/// The gateway cannot say whether the command was accepted.
struct NoAnswer;

impl From<ReadError> for NoAnswer {
    fn from(_: ReadError) -> Self {
        Self
    }
}
