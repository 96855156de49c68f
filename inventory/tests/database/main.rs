//! Tests against a real MariaDB and, where they need the log, a real nats-server. All tests share one MariaDB server;
//! each test has its own database.

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
