//! Tests against a real database server (see `support`) and, where they need the log, a real nats-server. Each test has
//! its own database.

#![cfg(test)]

mod activation;
mod catalogue;
mod commands;
mod connections;
mod idempotency;
mod ledger_audit;
mod loadouts;
mod nats;
mod new_players;
mod publishing;
mod ratings;
mod rewards;
mod schema;
mod support;
mod worker;
