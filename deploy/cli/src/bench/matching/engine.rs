//! The matching engine in memory, on one thread.

use std::{hint::black_box, time::Instant};

use anyhow::{Context, ensure};
use garage_events::{id::QueueName, log::Head, player, rules::Rules};
use garage_matchmaker::domain::{Bounds, Matcher, Pool};
use garage_rules::engine::{Engine, Limits};

use super::{
    baseline,
    figures::Figures,
    pools::{NOW_MS, Scenario, cycle},
    waiting,
};
use crate::{
    bench::sample::{median, memory_kib},
    report::{note, table},
};

/// Measurements, of which the median counts.
const RUNS: usize = 5;

/// New tickets in one cycle.
const NEW: usize = 1_000;

/// Players for which the memory is measured.
const MEMORY_PLAYERS: u32 = 1_000_000;

/// A scenario with this number of waiting tickets.
type Start = fn(u64) -> Scenario;

pub(super) fn run(figures: &mut Figures) -> anyhow::Result<()> {
    // First, because memory that is freed later would be used again.
    note(format!("filling a pool with {MEMORY_PLAYERS} players …"));
    let bytes = bytes_per_ticket(MEMORY_PLAYERS)?;
    figures.set("engine.bytes_per_ticket", bytes);
    let mut rows = vec![row("memory per waiting player, pool and index", MEMORY_PLAYERS, &format!("{bytes:.0} bytes"))];
    for waiting in [1_000, 10_000, 100_000, 1_000_000] {
        note(format!("1v1 with {waiting} waiting tickets …"));
        let baseline = baseline::seconds(waiting)?;
        let scratch = from_scratch(waiting)?;
        let Batches { idle, batch } = batches(Scenario::duel, waiting)?;
        let key = |name| format!("engine.1v1.{waiting}.{name}_s");
        figures.set(key("idle"), idle);
        figures.set(key("batch1000"), batch);
        figures.set(key("cycle"), scratch);
        figures.set(key("baseline"), baseline);
        rows.push(row("1v1, no changes", waiting, &ms(idle)));
        rows.push(row("1v1, 1,000 new tickets", waiting, &ms(batch)));
        rows.push(row(
            "1v1, from scratch",
            waiting,
            &format!("{}; {:.2} of the baseline", ms(scratch), scratch / baseline),
        ));
        rows.push(row("baseline: the first-come matcher", waiting, &ms(baseline)));
    }
    let more: [(&str, &str, Start, &[u32]); 2] = [
        ("5v5", "5v5 with groups", Scenario::fives, &[1_000, 10_000, 100_000]),
        ("all", "every type of rule", Scenario::everything, &[1_000, 10_000]),
    ];
    for (key, name, start, sizes) in more {
        for waiting in sizes {
            note(format!("{name} with {waiting} waiting tickets …"));
            let Batches { idle, batch } = batches(start, *waiting)?;
            figures.set(format!("engine.{key}.{waiting}.idle_s"), idle);
            figures.set(format!("engine.{key}.{waiting}.batch1000_s"), batch);
            rows.push(row(&format!("{name}, 1,000 new tickets"), *waiting, &ms(batch)));
        }
    }
    table(&["one thread; median of five", "waiting tickets", ""], &rows);
    Ok(())
}

fn row(name: &str, waiting: u32, value: &str) -> Vec<String> {
    vec![name.into(), waiting.to_string(), value.into()]
}

fn ms(seconds: f64) -> String {
    format!("{:.3} ms", seconds * 1_000.0)
}

/// Seconds of a cycle.
struct Batches {
    /// With no changes.
    idle: f64,
    /// With new tickets.
    batch: f64,
}

fn batches(start: Start, waiting: u32) -> anyhow::Result<Batches> {
    let (mut idle, mut batch) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let mut scenario = start(waiting.into());
        let mut engine = scenario.waiting();
        let began = Instant::now();
        let none = black_box(cycle(&mut engine));
        idle.push(began.elapsed().as_secs_f64());
        ensure!(none == 0, "a cycle with no changes made {none} matches");
        let tickets = scenario.tickets(NEW);
        let began = Instant::now();
        tickets.into_iter().for_each(|ticket| engine.insert(ticket));
        let matches = black_box(cycle(&mut engine));
        batch.push(began.elapsed().as_secs_f64());
        ensure!(matches > 0, "{NEW} new tickets made no match");
    }
    Ok(Batches { idle: median(&idle), batch: median(&batch) })
}

/// Seconds until an empty engine has all tickets and has found out that none can be matched.
fn from_scratch(waiting: u32) -> anyhow::Result<f64> {
    let mut took = Vec::new();
    for _ in 0..RUNS {
        let mut scenario = Scenario::duel(waiting.into());
        let tickets = scenario.tickets(usize::try_from(waiting)?);
        let began = Instant::now();
        let mut engine = Engine::new(scenario.rule_set.clone(), Bounds::default());
        engine.fill(NOW_MS, tickets);
        let matches = black_box(cycle(&mut engine));
        took.push(began.elapsed().as_secs_f64());
        ensure!(matches == 0, "{matches} matches of tickets that cannot be matched");
    }
    Ok(median(&took))
}

/// The resident memory of a pool and its matcher, for each of their players.
fn bytes_per_ticket(players: u32) -> anyhow::Result<f64> {
    let rules = Rules::built_in(2, 200, 3_600).map_err(anyhow::Error::msg)?;
    let queue: QueueName = "ranked".parse()?;
    let before = memory_kib(std::process::id())?;
    let mut pool = Pool::default();
    let mut last = None;
    for number in 0..players {
        let waiting = waiting::player(number)?;
        last = Some(waiting.queued.waiting_since);
        pool.fold(&waiting.player, Head { seq: waiting.head.seq, n: 1 }, &player::Event::from(waiting.queued));
    }
    let mut matcher = Matcher::new(rules.into(), Bounds::default());
    matcher.begin(&mut pool, &queue, 0, last.context("no players")?);
    let found = matcher.run(&pool, Limits::NONE);
    ensure!(found.proposals.is_empty(), "players who cannot be matched were matched");
    let after = memory_kib(std::process::id())?;
    let kib = u32::try_from(after.saturating_sub(before))?;
    drop((pool, matcher));
    Ok(f64::from(kib) * 1_024.0 / f64::from(players))
}
