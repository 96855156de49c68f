//! The baseline of matching: how long the matcher that rule sets replaced takes to look for matches among waiting
//! players of whom no two can be matched.
//!
//! ```sh
//! cargo bench --workspace --bench baseline
//! ```

mod first_come;
mod waiting;

use divan::Bencher;

/// Numbers of waiting players.
const PLAYERS: [u32; 3] = [1_000, 10_000, 100_000];

/// More matches than there can be.
const NO_LIMIT: usize = usize::MAX;

fn main() {
    divan::main();
}

/// See the module.
#[divan::bench(args = PLAYERS)]
#[expect(clippy::expect_used, reason = "a benchmark cannot return an error")]
fn first_come(bencher: Bencher<'_, '_>, players: u32) {
    let queue = first_come::Queue::of_two().expect("a valid queue");
    let waiting = waiting::players(players).expect("valid players");
    bencher.bench(|| first_come::propose(&queue, waiting.iter(), NO_LIMIT).len());
}
