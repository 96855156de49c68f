//! The garage-inventory process.
fn main() {}
