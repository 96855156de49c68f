//! Tests of Garage as a whole, as players see it, also while its parts fail.
//!
//! Each test starts its own Garage; at most two run at a time. [`support::history`] checks the events that players
//! receive, and the rules of the log.
#![cfg(test)]

mod acceptance;
mod backup;
mod chaos;
mod crash_points;
mod crashes;
#[path = "../shared/decisions.rs"]
mod decisions;
mod demo;
mod described;
mod foreign;
mod game_servers;
mod instances;
mod kube;
mod long_names;
mod matches;
mod metrics;
mod operator;
mod ops;
mod outage_table;
mod outages;
mod projectors;
mod queues;
mod ratings;
mod redelivery;
mod redis;
mod rolling;
mod rotation;
mod routes;
mod secrets;
mod store;
mod supervisor;
mod support;
mod teams;
mod tickets;
mod verify;
mod versions;
