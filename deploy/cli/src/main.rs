//! The garage process.
fn main() {}
