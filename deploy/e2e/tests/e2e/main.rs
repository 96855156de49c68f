//! Garage as a whole, seen by players, and with its parts failing under it.
//!
//! Each test has a Garage of its own; two of them live at a time. What the players must be told, and what the log may
//! hold at all, is in [`support::history`].
#![cfg(test)]

mod backup;
mod chaos;
mod crash_points;
mod crashes;
mod demo;
mod described;
mod foreign;
mod game_servers;
mod instances;
mod kube;
mod matches;
mod operator;
mod ops;
mod outages;
mod queues;
mod ratings;
mod redelivery;
mod redis;
mod rolling;
mod rotation;
mod routes;
mod secrets;
mod store;
mod support;
mod tickets;
mod verify;
mod versions;
