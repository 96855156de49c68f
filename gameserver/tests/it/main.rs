//! The game server on real sockets; only Garage's end of the reports is played by the test.
#![cfg(test)]

mod datagrams;
mod game;
mod process;
mod races;
mod refusals;
