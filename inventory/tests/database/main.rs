//! Tests on a real MariaDB, one server for this binary and a database for each test, and on a real nats-server where
//! the log has a part.

#![cfg(test)]

mod activation;
mod catalogue;
mod commands;
mod connections;
mod first_sight;
mod idempotency;
mod ledger_audit;
mod loadouts;
mod nats;
mod publishing;
mod ratings;
mod rewards;
mod schema;
mod support;
mod worker;
