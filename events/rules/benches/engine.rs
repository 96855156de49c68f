//! Cycles of the engine. The waiting tickets cannot be matched with each other.
//!
//! ```sh
//! cargo bench --workspace --bench engine
//! ```

use divan::Bencher;

#[path = "pools.rs"]
mod pools;

use pools::{Scenario, cycle};

fn main() {
    divan::main();
}

#[divan::bench(args = [1_000, 10_000, 100_000])]
fn no_changes(bencher: Bencher<'_, '_>, waiting: u64) {
    let mut engine = Scenario::duel(waiting).waiting();
    bencher.bench_local(|| cycle(&mut engine));
}

#[divan::bench(args = [1_000, 10_000, 100_000], sample_count = 5, sample_size = 1)]
fn duel_1000_new_tickets(bencher: Bencher<'_, '_>, waiting: u64) {
    new_tickets(bencher, || Scenario::duel(waiting));
}

#[divan::bench(args = [1_000, 10_000, 100_000], sample_count = 5, sample_size = 1)]
fn fives_1000_new_tickets(bencher: Bencher<'_, '_>, waiting: u64) {
    new_tickets(bencher, || Scenario::fives(waiting));
}

#[divan::bench(args = [1_000, 10_000], sample_count = 5, sample_size = 1)]
fn everything_1000_new_tickets(bencher: Bencher<'_, '_>, waiting: u64) {
    new_tickets(bencher, || Scenario::everything(waiting));
}

fn new_tickets(bencher: Bencher<'_, '_>, scenario: impl Fn() -> Scenario) {
    let input = || {
        let mut scenario = scenario();
        (scenario.waiting(), scenario.tickets(1_000))
    };
    bencher.with_inputs(input).bench_local_values(|(mut engine, tickets)| {
        tickets.into_iter().for_each(|ticket| engine.insert(ticket));
        cycle(&mut engine);
        // It is dropped after the measurement.
        engine
    });
}
