//! Tests the game server on real sockets. Except in `process`, the test itself receives the reports.
#![cfg(test)]

mod datagrams;
mod game;
mod process;
mod races;
mod refusals;
