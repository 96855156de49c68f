//! The garage-session process.
fn main() {}
