use std::{io, path::PathBuf, process::ExitStatus};

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a server could not be started or spoken to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing to run.
    #[error("{program} is not installed (looked in {looked}); install it with deploy/local/install.sh")]
    Missing {
        /// The program.
        program: String,
        /// Where it was expected.
        looked: String,
    },
    /// Somebody else bound the port between our choice and the server's start: start again with other ports.
    #[error("{name} found its port taken; its log {} ends:\n{tail}", log.display())]
    PortTaken {
        /// The process.
        name: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// Two sets of servers on the same data would spoil it.
    #[error("a Garage runs in {} already; stop it, or use another folder", root.display())]
    Taken {
        /// Its folder.
        root: PathBuf,
    },
    /// It ended by itself.
    #[error("{name} ended with {status}; its log {} ends:\n{tail}", log.display())]
    Ended {
        /// The process.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// It runs, and does not get where it should within the deadline.
    #[error("{name} did not {what} within {seconds} s; its log {} ends:\n{tail}", log.display())]
    Late {
        /// The process.
        name: String,
        /// What was waited for.
        what: &'static str,
        /// The deadline.
        seconds: u64,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// The process was ended by us and not restarted.
    #[error("{name} is not running")]
    NotRunning {
        /// The process.
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
        /// The user.
        user: &'static str,
        /// The client's reason.
        #[source]
        source: async_nats::ConnectError,
    },
    /// Something else did not work out.
    #[error("could not {action}: {reason}")]
    Other {
        /// What was attempted.
        action: &'static str,
        /// Why not.
        reason: String,
    },
    /// The system refused.
    #[error("could not {action}")]
    Io {
        /// What was attempted.
        action: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: names what was attempted.
    pub(crate) fn other<E: std::fmt::Display>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |reason| Self::Other { action, reason: reason.to_string() }
    }

    /// For `map_err`: names what was attempted.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}
