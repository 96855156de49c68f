//! Tests of the gateway with a real NATS server, through the gateway's port.
#![cfg(test)]

mod api_page;
mod bad_input;
mod contract;
mod described;
#[path = "../../../events/tests/asyncapi/document.rs"]
mod document;
mod faults;
mod groups;
mod limits;
mod log_full;
mod presence;
mod queues;
mod regions;
mod services;
mod sockets;
mod support;
mod tickets;
mod tls;
