//! The contract of Garage and its log.
//!
//! - [`id`], [`subject`], [`projection`]: names, and how subjects and Redis keys are made of them.
//! - [`event`]: the message; [`player`], [`session`], [`inventory`]: the events and the deciders.
//! - [`log`]: load, decide, append, as traits; [`jetstream`]: the log on NATS JetStream; [`sim`]: the log in memory,
//!   for tests, under the same contract.
//! - [`dead_letter`]: a message that a worker gave up.
//! - [`game`]: the contract with game servers; [`svc`]: requests between workers.
//! - [`queue`]: the queues, as configured; [`queue_status`]: whether one is closed; [`lease`]: who matches one.
//! - [`env`]: time and ids; [`crash`]: where a process can be made to die.

pub mod crash;
pub mod dead_letter;
pub mod env;
pub mod event;
pub mod game;
pub mod id;
pub mod inventory;
pub mod jetstream;
pub mod lease;
pub mod log;
pub mod player;
pub mod presence;
pub mod projection;
pub mod queue;
pub mod queue_status;
pub mod reaction;
pub mod session;
pub mod sim;
pub mod subject;
pub mod svc;
