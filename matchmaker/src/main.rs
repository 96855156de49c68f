//! The garage-matchmaker process.
fn main() {}
