//! Garage's deciders and reactions in one thread, on the simulated log and a simulated clock: two instances of each
//! worker but inventory, whose truth is MySQL, with conflicts, stale reads, duplicates, delays, and crashes between any
//! two effects. A seed is a run; the same seed is the same run.
//!
//! `SEEDS=n` runs so many, `SEED=n` the one, and shows its log when it fails.
#![cfg(test)]

mod clients;
mod consumer;
mod games;
mod history;
mod net;
mod plan;
mod stage;
mod workers;

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use garage_events::{
    env::Simulated,
    event::Envelope,
    sim::Message,
    subject::{ALL, Aggregate},
};
use time::{Duration, OffsetDateTime, macros::datetime};

use crate::{
    clients::{Clients, Notice},
    history::Tally,
    stage::{Process, Stage},
    workers::{Leads, Shared, elect},
};

const BEGAN: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

/// How many seeds run unless somebody says otherwise.
const SEEDS: u64 = 2_000;

/// How long it may take until all is over, once nothing goes wrong any more: players' remaining tickets, each with its
/// time-out and its session's hard end, and then the sweep of what nobody asks for.
const SETTLED: Duration = Duration::minutes(15);

/// How often futures may be polled until then. Some ten thousand times are usual; whoever does more runs in circles.
const POLLS: u64 = 1_000_000;

/// A run, and what is wrong with it.
struct Run {
    log: Vec<Message>,
    counts: BTreeMap<String, u64>,
    wrong: Option<String>,
}

fn run(seed: u64) -> Run {
    let env = Simulated::at(BEGAN);
    let stage = Stage::new(env, seed);
    let shared = Shared::new(&stage);
    let leads = <[Leads; 2]>::default();
    for lead in &leads {
        shared.employ_matchmaker(lead);
        shared.employ_session();
        shared.employ_director();
    }
    stage.spawn(Process::Outside, elect(stage.clone(), leads));
    let clients = Clients::start(&shared);

    let trouble = BEGAN + Duration::seconds(i64::try_from(stage.plan.trouble_s).unwrap());
    stage.run_until(trouble);
    stage.calm();
    shared.net.calm();
    let is_over = || clients.are_done() && shared.net.is_idle() && shared.games.is_empty();
    while !is_over() && stage.now() < trouble + SETTLED && stage.polls() < POLLS {
        stage.run_until(stage.now() + Duration::SECOND);
    }
    // What is still under way arrives.
    stage.run_until(stage.now() + Duration::seconds(10));

    let log = shared.net.log.messages(ALL);
    let settled = if is_over() { Ok(()) } else { Err(unsettled(&shared, &clients)) };
    let judged = settled.and_then(|()| judge(&log, &shared, &clients));
    let mishaps = stage.mishaps();
    let redelivered: u64 = shared.net.consumers().iter().map(|consumer| consumer.redelivered()).sum();
    let mut counts = BTreeMap::from(
        [
            ("crashes", mishaps.crashes),
            ("pauses", mishaps.pauses),
            ("redeliveries", redelivered),
            ("game servers", shared.games.started()),
            ("events", log.len() as u64),
        ]
        .map(|(what, count)| (what.to_owned(), count)),
    );
    let wrong = match judged {
        Ok(tally) => {
            counts.extend(tally.events.into_iter().map(|(name, count)| (name.to_owned(), count)));
            for end in tally.ends.values() {
                *counts.entry(format!("{:?} in the end", end.why)).or_default() += 1;
            }
            None
        }
        Err(wrong) => Some(wrong),
    };
    // The futures hold the stage, which holds them.
    stage.clear();
    Run { log, counts, wrong }
}

fn unsettled(shared: &Shared, clients: &Clients) -> String {
    let idle: Vec<_> = shared.net.consumers().iter().map(|consumer| consumer.is_idle()).collect();
    let (done, gone) = (clients.are_done(), shared.games.is_empty());
    format!("did not settle: clients done {done}, instances gone {gone}, consumers idle {idle:?}")
}

fn judge(log: &[Message], shared: &Shared, clients: &Clients) -> Result<Tally, String> {
    let tally = history::judge(log)?;
    if let Some(wrong) = shared.games.wrongs(&tally.ends).into_iter().next() {
        return Err(wrong);
    }
    for notice in clients.notices() {
        let (ticket, one_of): (_, &[&str]) = match notice {
            Notice::Queued(ticket) => (ticket, &["Queued"]),
            Notice::Cancelled(ticket) => (ticket, &["Cancelled", "TimedOut"]),
        };
        let happened = tally.tickets.get(&ticket);
        if !happened.is_some_and(|events| one_of.iter().any(|event| events.contains(event))) {
            return Err(format!("a client was told {notice:?}, and the log says {happened:?}"));
        }
    }
    let net = &shared.net;
    let mut dead = [&net.session, &net.director, &net.timers].into_iter().flat_map(|consumer| consumer.dead());
    if let Some(dead_letter) = dead.next() {
        return Err(format!("given up: {dead_letter}"));
    }
    Ok(tally)
}

/// A run, or why there is none: a panic is a wrong like any other.
fn attempt(seed: u64) -> Run {
    catch_unwind(AssertUnwindSafe(|| run(seed))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or(panic.downcast_ref::<&str>().map(ToString::to_string));
        Run { log: Vec::new(), counts: BTreeMap::new(), wrong: Some(format!("panicked: {}", text.unwrap_or_default())) }
    })
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

fn show(log: &[Message]) {
    for message in log {
        let envelope = Envelope::from_slice(&message.body).unwrap();
        let (at, whose) = (message.time - BEGAN, Aggregate::of(&message.subject).unwrap());
        println!(
            "{:5} {:9.3} c{} {whose} {} {}",
            message.seq,
            at.as_seconds_f64(),
            message.commit,
            envelope.type_name,
            envelope.data
        );
    }
}

#[test]
fn whatever_goes_wrong_every_match_ends_and_nobody_is_in_two() {
    if let Some(seed) = number("SEED") {
        let Run { log, wrong, counts } = attempt(seed);
        println!("seed {seed}: {counts:?}");
        if let Some(wrong) = wrong {
            show(&log);
            panic!("seed {seed}: {wrong}");
        }
        return;
    }
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(1);
    let total: Mutex<BTreeMap<String, u64>> = Mutex::default();
    let wrongs: Mutex<Vec<(u64, String)>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > seeds {
                        break;
                    }
                    let Run { counts, wrong, .. } = attempt(seed);
                    let mut total = total.lock().unwrap();
                    counts.into_iter().for_each(|(what, count)| *total.entry(what).or_default() += count);
                    wrongs.lock().unwrap().extend(wrong.map(|wrong| (seed, wrong)));
                }
            });
        }
    });
    let (total, mut wrongs) = (total.into_inner().unwrap(), wrongs.into_inner().unwrap());
    let mut counted: Vec<_> = total.iter().collect();
    counted.sort_by_key(|(_, count)| Reverse(**count));
    let counted: Vec<_> = counted.iter().map(|(what, count)| format!("{count} {what}")).collect();
    println!("{seeds} seeds, {}", counted.join(", "));
    wrongs.sort();
    let shown: Vec<_> = wrongs.iter().take(20).map(|(seed, wrong)| format!("SEED={seed}: {wrong}")).collect();
    assert!(
        wrongs.is_empty(),
        "{} of {seeds} seeds went wrong; replay one with its SEED:\n{}",
        wrongs.len(),
        shown.join("\n")
    );
    if seeds >= SEEDS {
        // What never happened was not shown to be right.
        let all = [
            "crashes",
            "pauses",
            "redeliveries",
            "Cancelled",
            "TimedOut",
            "PodFailed",
            "Opened",
            "Finished",
            "Failed",
            "Abandoned in the end",
        ];
        let missing: Vec<_> = all.into_iter().filter(|what| !total.contains_key(*what)).collect();
        assert!(missing.is_empty(), "in {seeds} seeds there was never any of {missing:?}");
    }
}

#[test]
fn a_seed_brings_the_same_log_again_and_another_seed_another() {
    for seed in 1..=20 {
        let log = run(seed).log;
        assert!(!log.is_empty());
        assert_eq!(run(seed).log, log, "seed {seed}");
        assert_ne!(run(seed + 1_000_000).log, log, "seed {seed}");
    }
}
