//! Pools of waiting tickets for benchmarks. `garage bench matching` uses them too.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a benchmark stops if its own data is wrong"
)]

use std::sync::Arc;

use garage_rules::{
    Options, check,
    engine::{Bounds, Engine, Limits, Place, Waiting},
    rule_set::{RuleSet, Value},
    ticket::{PlayerRequest, Ticket},
};

/// The time of all cycles, in milliseconds. The tickets have waited for up to a minute.
pub(crate) const NOW_MS: i64 = 1_000_000_000;

/// Two players whose skills differ by at most 100, and by more when the older one has waited.
const DUEL: &str = r#"{
    "ruleLanguageVersion": "1.0",
    "playerAttributes": [{"name": "skill", "type": "number"}],
    "algorithm": {"strategy": "exhaustiveSearch", "expansionAgeSelection": "oldest"},
    "teams": [{"name": "player", "minPlayers": 1, "maxPlayers": 1, "quantity": 2}],
    "rules": [{"name": "Near", "type": "batchDistance", "batchAttribute": "skill", "maxDistance": 100}],
    "expansions": [{"target": "rules[Near].maxDistance", "steps": [
        {"waitTimeSeconds": 30, "value": 200}, {"waitTimeSeconds": 60, "value": 400}, {"waitTimeSeconds": 90, "value": 800}
    ]}]
}"#;

/// Two teams of five with about the same skill, in a region that all of them can use.
const FIVES: &str = r#"{
    "ruleLanguageVersion": "1.0",
    "playerAttributes": [{"name": "skill", "type": "number"}],
    "teams": [{"name": "red", "minPlayers": 5, "maxPlayers": 5}, {"name": "blue", "minPlayers": 5, "maxPlayers": 5}],
    "rules": [
        {"name": "Near", "type": "batchDistance", "batchAttribute": "skill", "maxDistance": 200},
        {"name": "Equal", "type": "distance", "maxDistance": 50,
            "measurements": ["avg(teams[red].players.attributes[skill])"],
            "referenceValue": "avg(teams[blue].players.attributes[skill])"},
        {"name": "Ping", "type": "latency", "maxLatency": 100}
    ],
    "expansions": [{"target": "rules[Equal].maxDistance", "steps": [{"waitTimeSeconds": 30, "value": 100}]}]
}"#;

/// Every type of rule, for two teams of two to four players.
const EVERYTHING: &str = r#"{
    "ruleLanguageVersion": "1.0",
    "playerAttributes": [
        {"name": "skill", "type": "number"}, {"name": "level", "type": "number"}, {"name": "map", "type": "string"},
        {"name": "modes", "type": "string_list"}, {"name": "roles", "type": "string_list"},
        {"name": "wins", "type": "string_number_map"}
    ],
    "teams": [{"name": "red", "minPlayers": 2, "maxPlayers": 4}, {"name": "blue", "minPlayers": 2, "maxPlayers": 4}],
    "rules": [
        {"name": "SameSize", "type": "comparison", "operation": "=", "measurements": ["count(teams[red].players)"],
            "referenceValue": "count(teams[blue].players)"},
        {"name": "SameMap", "type": "comparison", "operation": "=", "measurements": ["flatten(teams[*].players.attributes[map])"]},
        {"name": "Fair", "type": "distance", "maxDistance": 60, "measurements": ["avg(teams[*].players.attributes[skill])"],
            "referenceValue": "avg(flatten(teams[*].players.attributes[skill]))"},
        {"name": "SharedMode", "type": "collection", "operation": "intersection", "minCount": 1,
            "measurements": ["flatten(teams[*].players.attributes[modes])"]},
        {"name": "OneMedicAtMost", "type": "collection", "operation": "contains", "referenceValue": "medic", "maxCount": 1,
            "measurements": ["flatten(teams[red].players.attributes[roles])", "flatten(teams[blue].players.attributes[roles])"]},
        {"name": "Ping", "type": "latency", "maxLatency": 100, "maxDistance": 60, "distanceReference": "min"},
        {"name": "Beginners", "type": "comparison", "operation": "<=", "measurements": ["max(flatten(teams[*].players.attributes[level]))"],
            "referenceValue": 20},
        {"name": "Veterans", "type": "comparison", "operation": ">", "measurements": ["min(flatten(teams[*].players.attributes[level]))"],
            "referenceValue": 10},
        {"name": "Experience", "type": "compound", "statement": "or(Beginners, Veterans)"},
        {"name": "NearSkill", "type": "batchDistance", "batchAttribute": "skill", "maxDistance": 150},
        {"name": "ByWins", "type": "absoluteSort", "sortDirection": "descending", "sortAttribute": "wins", "mapKey": "maxValue"},
        {"name": "BySkill", "type": "distanceSort", "sortDirection": "ascending", "sortAttribute": "skill"}
    ],
    "expansions": [
        {"target": "rules[NearSkill].maxDistance", "steps": [{"waitTimeSeconds": 20, "value": 200}]},
        {"target": "rules[Fair].maxDistance", "steps": [{"waitTimeSeconds": 40, "value": 120}]}
    ]
}"#;

/// Makes the ticket with a number.
type Make = Box<dyn FnMut(&RuleSet, u64) -> Ticket>;

/// A rule set, and random tickets for it. The same seed makes the same tickets.
pub(crate) struct Scenario {
    pub(crate) rule_set: Arc<RuleSet>,
    make: Make,
    waiting: u64,
    next: u64,
}

impl Scenario {
    /// 1v1 by distance. The first `waiting` tickets cannot be matched with each other. Each further ticket can be matched
    /// with one of them.
    pub(crate) fn duel(waiting: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        Self::new(DUEL, waiting, move |rule_set, number| {
            let skill = match number < waiting {
                true => number * 1_000,
                false => random.u64(0..waiting) * 1_000 + 50,
            };
            let attributes = [("skill", Value::Number(skill as f64))];
            ticket(rule_set, number, vec![player(number, 0, &attributes, &[("eu", 20.0), ("us", 90.0)])])
        })
    }

    /// 5v5 in groups of one to five. About `waiting` of the tickets cannot be matched.
    pub(crate) fn fives(waiting: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(2);
        Self::new(FIVES, waiting, move |rule_set, number| {
            // Most players come alone.
            let size = [1, 1, 1, 1, 1, 1, 2, 2, 3, 4, 5][random.usize(0..11)];
            let skill = random.u64(0..waiting * 40);
            let latencies = latencies(&mut random);
            let player = |index| {
                let skill = (skill + random.u64(0..100)) as f64;
                player(number, index, &[("skill", Value::Number(skill))], &latencies)
            };
            ticket(rule_set, number, (0..size).map(player).collect())
        })
    }

    /// Every type of rule. About `waiting` of the tickets cannot be matched.
    pub(crate) fn everything(waiting: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(3);
        Self::new(EVERYTHING, waiting, move |rule_set, number| {
            let size = [1, 1, 1, 1, 2, 2, 3, 4][random.usize(0..8)];
            let skill = random.u64(0..waiting * 5);
            let text = |value: &str| Value::Text(value.into());
            let map = text(["dust", "ice", "sand"][random.usize(0..3)]);
            let modes = ["duel", "race", "capture", "siege"];
            let modes = (0..2).map(|_| modes[random.usize(0..4)].to_owned()).collect();
            let modes = Value::TextList(modes);
            let latencies = latencies(&mut random);
            let player = |index| {
                let attributes = [
                    ("skill", Value::Number((skill + random.u64(0..100)) as f64)),
                    ("level", Value::Number(random.u64(0..30) as f64)),
                    ("map", map.clone()),
                    ("modes", modes.clone()),
                    ("roles", Value::TextList(vec![["medic", "scout", "tank"][random.usize(0..3)].into()])),
                    (
                        "wins",
                        Value::NumberMap([("duel", 3.0), ("race", 5.0)].map(|(key, wins)| (key.into(), wins)).into()),
                    ),
                ];
                player(number, index, &attributes, &latencies)
            };
            ticket(rule_set, number, (0..size).map(player).collect())
        })
    }

    fn new(text: &str, waiting: u64, make: impl FnMut(&RuleSet, u64) -> Ticket + 'static) -> Self {
        let checked = check(text, Options::default());
        let rule_set = checked.rule_set.unwrap_or_else(|| panic!("{:#?}", checked.diagnostics));
        Self { rule_set: Arc::new(rule_set), make: Box::new(make), waiting, next: 0 }
    }

    /// The next tickets.
    pub(crate) fn tickets(&mut self, count: usize) -> Vec<Waiting<u64>> {
        let one = |_| {
            let number = self.next;
            self.next += 1;
            let ticket = (self.make)(&self.rule_set, number);
            let place = Place { since_ms: ticket.since_ms, number };
            Waiting { key: number, place, expires_ms: NOW_MS + 3_600_000, ticket }
        };
        (0..count).map(one).collect()
    }

    /// An engine with the scenario's number of tickets, which it cannot match.
    pub(crate) fn waiting(&mut self) -> Engine<u64> {
        let count = usize::try_from(self.waiting).expect("the tickets fit into memory");
        let mut engine = Engine::new(Arc::clone(&self.rule_set), Bounds::default());
        engine.fill(NOW_MS, self.tickets(count));
        loop {
            while engine.is_due() {
                cycle(&mut engine);
            }
            let missing = count - engine.len();
            if missing == 0 {
                return engine;
            }
            self.tickets(missing).into_iter().for_each(|ticket| engine.insert(ticket));
        }
    }
}

/// Makes a whole cycle. Returns the number of matches.
pub(crate) fn cycle(engine: &mut Engine<u64>) -> usize {
    engine.begin(NOW_MS, 0);
    engine.run(Limits::NONE).matches.len()
}

/// Two of six regions, one of them near.
fn latencies(random: &mut fastrand::Rng) -> [(&'static str, f64); 2] {
    let regions = ["ap", "br", "eu", "in", "us", "za"];
    let near = random.usize(0..6);
    let far = (near + 1 + random.usize(0..5)) % 6;
    [(regions[near], random.u32(10..60).into()), (regions[far], random.u32(60..140).into())]
}

fn player(ticket: u64, index: u64, attributes: &[(&str, Value)], latencies: &[(&str, f64)]) -> PlayerRequest {
    PlayerRequest {
        id: format!("player-{ticket}-{index}").into(),
        attributes: attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        latencies: latencies.iter().map(|(name, value)| (*name, *value)).collect(),
    }
}

fn ticket(rule_set: &RuleSet, number: u64, players: Vec<PlayerRequest>) -> Ticket {
    // Up to 20 s old, so that no age matters during a benchmark.
    let since_ms = NOW_MS - 20_000 + i64::try_from(number % 19_000).unwrap_or_default();
    rule_set.ticket(players, since_ms).expect("the ticket fits the rule set")
}
