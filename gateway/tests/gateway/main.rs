//! The gateway on a real nats-server, through its own port.
#![cfg(test)]

mod bad_input;
mod contract;
mod described;
#[path = "../../../events/tests/asyncapi/document.rs"]
mod document;
mod faults;
mod limits;
mod presence;
mod queues;
mod services;
mod sockets;
mod support;
mod tickets;
mod tls;
