use std::{io, path::PathBuf, process::ExitStatus};

/// The result type of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a server could not be started or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program of a server was not found.
    #[error("{program} is not installed (looked in {looked}); install it with `{install}`")]
    Missing {
        /// Name and, if it matters, version of the program.
        program: String,
        /// Where it was expected.
        looked: String,
        /// The command that installs it.
        install: &'static str,
    },
    /// An environment variable selects a database that is not supported.
    #[error("{variable} is `{value}`; set it to mariadb or mysql")]
    UnknownDatabase {
        /// Name of the variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// Another program bound the port after it was reserved. Start the server again with other ports.
    #[error("the port of {name} is already in use; its log {} ends:\n{tail}", log.display())]
    PortTaken {
        /// Name of the process.
        name: String,
        /// Path of its log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// Another stack uses the folder. Two sets of servers would corrupt the data.
    #[error("a Garage is already running in {}; stop it, or use another folder", root.display())]
    FolderInUse {
        /// The folder of the other stack.
        root: PathBuf,
    },
    /// The process ended unexpectedly.
    #[error("{name} ended with {status}; its log {} ends:\n{tail}", log.display())]
    Ended {
        /// Name of the process.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// Path of its log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// The process did not reach the expected state in time.
    #[error("{name} did not {what} within {seconds} s; its log {} ends:\n{tail}", log.display())]
    TimedOut {
        /// Name of the process.
        name: String,
        /// The expected state or action, for example `answer`.
        what: &'static str,
        /// The time-out.
        seconds: u64,
        /// Path of its log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// The process was stopped or killed, and not restarted.
    #[error("{name} is not running")]
    NotRunning {
        /// Name of the process.
        name: String,
    },
    /// The cluster has fewer nodes.
    #[error("there is no node {0}")]
    NoSuchNode(usize),
    /// The cluster was not started by [`start_cuttable`](crate::servers::Nats::start_cuttable).
    #[error("the routes of this cluster do not run through proxies")]
    NotCuttable,
    /// A NATS client could not connect.
    #[error("could not connect to NATS as {user}")]
    Connect {
        /// Name of the user.
        user: &'static str,
        /// The error of the client.
        #[source]
        source: async_nats::ConnectError,
    },
    /// The queues file of the caller cannot be read, or is not valid.
    #[error(transparent)]
    Queues(#[from] garage_events::queue::QueueError),
    /// The keys or credentials of NATS could not be created.
    #[error(transparent)]
    NatsKeys(#[from] garage_nats::Error),
    /// Any other failure without a source error.
    #[error("could not {action}: {reason}")]
    Other {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// An operation of the operating system failed.
    #[error("could not {action}")]
    Io {
        /// What was attempted.
        action: String,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`. `action` completes the sentence "could not …".
    pub(crate) fn other<E: std::fmt::Display>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |reason| Self::Other { action, reason: reason.to_string() }
    }

    /// For `map_err`. `action` completes the sentence "could not …".
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}
