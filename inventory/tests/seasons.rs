//! Plays 20 seasons of each mode. `cargo bench --package garage-inventory --bench seasons` plays 10,000, with the same limits.
#![cfg(test)]

#[path = "../benches/seasons/limits.rs"]
mod limits;
#[path = "../benches/seasons/season.rs"]
mod season;

#[test]
fn ratings_find_the_players_true_strengths() {
    for (mode, limits) in limits::MODES {
        let reports: Vec<_> =
            (0..20).map(|seed| season::play(seed, &mode, garage_inventory::domain::rating::rate)).collect();
        assert_eq!(limits::broken(&mode, &limits, &reports), [""; 0]);
    }
}
