//! Tests of the gateway with a real NATS server, through the gateway's port.
#![cfg(test)]

mod acceptance;
mod api_page;
mod bad_input;
mod blocks;
mod connections;
mod contract;
mod cors;
mod described;
#[path = "../../../events/tests/asyncapi/document.rs"]
mod document;
mod faults;
mod groups;
mod identity;
mod limits;
mod log_full;
mod parties;
mod party_races;
mod party_sockets;
mod presence;
mod provider;
mod proxies;
mod queues;
mod rate_limits;
mod regions;
mod services;
mod sockets;
mod support;
mod tickets;
mod tls;
mod token_expiry;
