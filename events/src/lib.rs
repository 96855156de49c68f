//! The contract that all parts of Garage share, and the event log.
//!
//! - [`id`], [`subject`], [`projection`]: identifiers, NATS subjects, Redis keys.
//! - [`event`]: the format of a message. [`player`], [`party`], [`session`], [`inventory`]: the events of each
//!   aggregate.
//!   [`player`], [`party`] and [`session`] also hold the deciders; the inventory worker decides in its own database.
//! - [`log`]: the traits to load aggregates and append decisions. [`jetstream`] implements them on NATS JetStream, and
//!   [`sim`] in memory, for tests. Both pass the same contract tests (`tests/contract`).
//! - [`reaction`]: loads a session, decides, and appends, until there is no conflict.
//! - [`dead_letter`]: a message that a worker could not handle.
//! - [`failure`]: why a match failed: codes for players, lines for operators.
//! - [`game`]: the contract with game servers. [`svc`]: requests between workers.
//! - [`queue`]: the configuration of the queues. [`queue_status`]: whether a queue is open or closed. [`rules`]: their
//!   rule sets. [`rate`]: rate limits.
//! - [`lease`]: which instance of a worker does a task that only one of them should do.
//! - [`presence`]: which players have an open WebSocket. [`block`]: which players an operator has blocked or kicked.
//! - [`toml_file`]: reads the files of operators. [`deadline`]: waiting for channels and child processes, with a limit.
//! - [`mod@env`]: clock and id source. [`crash`]: crash points for fault tests.

pub mod block;
pub mod crash;
pub mod dead_letter;
pub mod deadline;
pub mod env;
pub mod event;
pub mod failure;
pub mod game;
pub mod id;
pub mod inventory;
pub mod jetstream;
pub mod lease;
pub mod log;
pub mod party;
pub mod player;
pub mod presence;
pub mod projection;
pub mod queue;
pub mod queue_status;
pub mod rate;
pub mod reaction;
pub mod rules;
pub mod session;
pub mod sim;
pub mod subject;
pub mod svc;
pub mod toml_file;
