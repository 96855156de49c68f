//! The garage-gateway process.
fn main() {}
