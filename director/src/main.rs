//! The garage-director process.
fn main() {}
