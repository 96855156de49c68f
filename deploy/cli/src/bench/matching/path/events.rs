//! The events that are measured: tickets, and matches of two of them.

use std::{sync::Arc, time::Instant};

use futures::future::try_join;
use garage_events::{
    env::{Env, System},
    id::SessionId,
    jetstream::JetStreamLog,
    log::{Append, Decision, Head},
    player,
    rules::Rules,
    session::{self, Matched},
    subject::Aggregate,
};
use garage_matchmaker::domain::{Proposal, WaitingPlayer, matches::Team};
use garage_rules::rule_set::Value;

use crate::bench;

/// The queues file. It names [`RULE_SET_FILE`].
pub(super) const QUEUES: &str = r#"
[queues.ranked]
rule_set = "pairs.json"
attributes = { skill = "client" }
timeout_s = 3600
regions = { eu = 120, us = 120 }
"#;

/// The name of the file with [`RULE_SET`].
pub(super) const RULE_SET_FILE: &str = "pairs.json";

/// Matches two players whose skills differ by at most 50, however long they wait.
pub(super) const RULE_SET: &str = r#"{
  "name": "pairs",
  "ruleLanguageVersion": "1.0",
  "playerAttributes": [{ "name": "skill", "type": "number" }],
  "teams": [
    { "name": "red", "minPlayers": 1, "maxPlayers": 1 },
    { "name": "blue", "minPlayers": 1, "maxPlayers": 1 }
  ],
  "rules": [{ "name": "Skill", "type": "batchDistance", "batchAttribute": "skill", "maxDistance": 50 }]
}
"#;

/// Any two players with skills from 0 to this can be matched.
pub(super) const MAX_DISTANCE: u32 = 50;

/// The distance between the skills of two players or pairs that cannot be matched.
const FAR: f64 = 1_000.0;

/// The skill of a standing ticket, far from all others.
pub(super) fn standing_skill(number: u32) -> f64 {
    FAR * (10.0 + f64::from(number))
}

/// The skill of both players of a pair that can only be matched with each other.
pub(super) fn pair_skill(number: u32) -> f64 {
    -FAR * (1.0 + f64::from(number))
}

/// The two players of a pair.
pub(super) const SIDES: [char; 2] = ['a', 'b'];

/// The name of a player of a pair.
pub(super) fn player(load: &str, pair: u32, side: char) -> String {
    format!("{load}-{pair}-{side}")
}

/// Writes pairs of tickets, and their matches if it writes alone.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    pub(super) tickets: JetStreamLog,
    /// Absent if a matchmaker makes the matches.
    pub(super) matches: Option<Matches>,
}

/// Writes matches by a rule set.
#[derive(Debug, Clone)]
pub(super) struct Matches {
    pub(super) log: JetStreamLog,
    pub(super) rules: Arc<Rules>,
}

impl Writer {
    /// Stores the tickets of both players of a pair, which are new. If it writes alone, it also stores their match.
    /// Returns when both tickets were stored.
    pub(super) async fn write(self, load: Arc<str>, pair: u32, skills: [f64; 2]) -> anyhow::Result<Instant> {
        let ([a, b], [skill_a, skill_b]) = (SIDES.map(|side| player(&load, pair, side)), skills);
        let (a, b) = try_join(queue(&self.tickets, a, skill_a), queue(&self.tickets, b, skill_b)).await?;
        let stored = Instant::now();
        if let Some(Matches { log, rules }) = &self.matches {
            match_pair(log, rules, [a, b]).await?;
        }
        Ok(stored)
    }
}

/// Stores the ticket of a new player.
pub(super) async fn queue(log: &JetStreamLog, player: String, skill: f64) -> anyhow::Result<WaitingPlayer> {
    let player: garage_events::id::PlayerId = player.parse()?;
    let queued = bench::queued([("skill".into(), Value::Number(skill))].into())?;
    let aggregate = Aggregate::Player(player.clone());
    let event = player::Event::from(queued.clone());
    let decision = Decision::new(&System, queued.ticket.uuid(), None);
    let stored = log.append(decision.change(&System, aggregate, Head::default(), [event])).await?;
    let seq = stored.first().copied().unwrap_or_default();
    Ok(WaitingPlayer { player, head: Head { seq, n: 1 }, queued })
}

/// Stores the match of two players, as a matchmaker does: the session's event, and one for each player.
async fn match_pair(log: &JetStreamLog, rules: &Rules, pair: [WaitingPlayer; 2]) -> anyhow::Result<()> {
    let id = SessionId::new(System.id());
    let pool_seq = pair.iter().map(|entry| entry.head.seq).max().unwrap_or_default();
    let names = ["red", "blue"];
    let teams = names.into_iter().zip(pair).map(|(name, entry)| Team { name: name.into(), players: vec![entry] });
    let latencies = [("eu".parse()?, vec![20; 2]), ("us".parse()?, vec![90; 2])].into();
    let proposal = Proposal { region: "eu".parse()?, teams: teams.collect(), latencies };
    let matched = Matched {
        queue: "ranked".parse()?,
        region: proposal.region.clone(),
        teams: proposal.recorded_teams(),
        latencies: proposal.latencies.clone(),
        rules: rules.id.to_string(),
        pool_seq,
        clock: System.now(),
        seed: u32::MAX,
        skipped: Vec::new(),
        left_out: Vec::new(),
        search_steps: None,
    };
    let event = session::Event::from(matched);
    let mut decision = Decision::new(&System, id.uuid(), None);
    decision = decision.change(&System, Aggregate::Session(id), Head::default(), [event]);
    for team in proposal.teams {
        for WaitingPlayer { player, head, queued } in team.players {
            let (ticket, team) = (queued.ticket, team.name.clone());
            let command = player::Command::Match { ticket, session: id, team, requeue: true };
            let event = player::decide(&player::State::Waiting(queued), command)?;
            decision = decision.change(&System, Aggregate::Player(player), head, [event]);
        }
    }
    log.append(decision).await?;
    Ok(())
}
