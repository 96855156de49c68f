//! Tests on a real MariaDB: one server for this binary, a database for each test.

#![cfg(test)]

mod activation;
mod catalogue;
mod first_sight;
mod loadouts;
mod rewards;
mod schema;
mod support;
