//! The interface between the director and the systems that run game servers: [`Backend`] and its types.

use std::{fmt, future::Future, net::IpAddr, str::FromStr};

use garage_events::{
    failure::NO_CAPACITY,
    game::{self, EXIT_NO_PORT},
    id::{QueueName, Region, SessionId},
};
use time::OffsetDateTime;

/// Identifies an instance: one attempt to start a game server for a session. Every backend uses its text form,
/// `game-<session>-<attempt>`, as the name of the folder or pod, so a repeated create request finds the same instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// The session that the server belongs to.
    pub session: SessionId,
    /// Counts from 1.
    pub attempt: u32,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "game-{}-{}", self.session, self.attempt)
    }
}

/// The text is not the name of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of an instance")]
pub struct InvalidName;

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (session, attempt) =
            text.strip_prefix("game-").and_then(|rest| rest.rsplit_once('-')).ok_or(InvalidName)?;
        let name = match (session.parse(), attempt.parse()) {
            (Ok(session), Ok(attempt)) => Self { session, attempt },
            _ => return Err(InvalidName),
        };
        // Each name has exactly one spelling, but `+1` and `01` parse as numbers too.
        if name.attempt > 0 && name.to_string() == text { Ok(name) } else { Err(InvalidName) }
    }
}

/// Where an instance runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The name of the pod. For a process, the name of the instance.
    pub pod: String,
    /// The node or machine that runs the instance.
    pub node: String,
    /// The address by which clients reach the node.
    pub public_ip: IpAddr,
}

/// A request to start a game server.
#[derive(Debug, Clone)]
pub struct Order {
    /// The queue of the match.
    pub queue: QueueName,
    /// The region to start the server in.
    pub region: Region,
    /// The content of the game server's configuration file, including the game's private key.
    pub config: game::Config,
}

impl Order {
    /// The name of the instance to start.
    pub fn name(&self) -> Name {
        name_of(&self.config)
    }
}

/// The name of the instance that a configuration belongs to.
pub fn name_of(config: &game::Config) -> Name {
    Name { session: config.session, attempt: config.attempt }
}

/// A created instance that has not exited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// It is assigned to a node.
    Placed(Placed),
    /// No node is assigned yet. Once one is, [`Backend::list`] reports it.
    Waiting,
}

/// An instance that a backend has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The instance's name.
    pub name: Name,
    /// When it was created, by the clock of the machine or the cluster that it is on.
    pub created: OffsetDateTime,
    /// What it is doing now.
    pub state: State,
}

/// What an instance is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// A director has begun to create it, but has not started it yet. The same director starts it, or a redelivery of
    /// the request leads to the start.
    Claimed,
    /// It is created, and waits for a node, or the address of its node is not known yet.
    Waiting,
    /// It runs, or is being started.
    Running(Placed),
    /// It has exited. It is never started again.
    Exited(Exit),
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// How the process or pod ended, as far as the backend knows.
    pub kind: ExitKind,
    /// The last line of the process's output, or the cluster's message about the end. It contains no secrets.
    pub message: Option<String>,
}

impl Exit {
    /// The reason as a single word, for `PodFailed` and metrics.
    pub fn reason(&self) -> &'static str {
        match self.kind {
            ExitKind::Code(code) if code == i32::from(EXIT_NO_PORT) => NO_CAPACITY,
            ExitKind::Code(_) | ExitKind::Unknown => "exited",
            ExitKind::Signal(_) => "killed",
            ExitKind::Failed(reason) => reason,
        }
    }

    /// Whether the server may have finished its work. This is so if nobody saw how it ended, if it exited with code 0,
    /// or if its pod was deleted.
    pub fn inconclusive(&self) -> bool {
        match self.kind {
            ExitKind::Unknown | ExitKind::Code(0) => true,
            ExitKind::Code(_) | ExitKind::Signal(_) => false,
            // A finished pod may be deleted before this director learns of its results.
            ExitKind::Failed(reason) => reason == DELETED,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.kind, &self.message) {
            (ExitKind::Failed(_), Some(message)) => f.write_str(message),
            (kind, Some(message)) => write!(f, "{kind}: {message}"),
            (kind, None) => kind.fmt(f),
        }
    }
}

/// The exit reason of an instance that something other than Garage removed.
pub const DELETED: &str = "deleted";

/// How an instance's process or pod ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// Nobody observed the end, for example because another director was its parent process.
    Unknown,
    /// The cluster could not start it, or ended it. The reason is a single word.
    Failed(&'static str),
}

impl fmt::Display for ExitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("exit code unknown"),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

/// The answer of [`Backend::list`].
#[derive(Debug)]
pub struct Listing {
    /// The instances that the backend knows of.
    pub instances: Vec<Instance>,
    /// An error if some clusters did not answer. `instances` then lacks the instances of these clusters.
    pub complete: Result<(), Unavailable>,
    /// An error about single instances: their address could not be found, so `instances` lists them as waiting. It does
    /// not affect other instances.
    pub unplaced: Option<Unavailable>,
}

impl From<Result<Vec<Instance>, Unavailable>> for Listing {
    fn from(listed: Result<Vec<Instance>, Unavailable>) -> Self {
        match listed {
            Ok(instances) => Self { instances, complete: Ok(()), unplaced: None },
            Err(error) => Self { instances: Vec::new(), complete: Err(error), unplaced: None },
        }
    }
}

/// The backend did not answer. A later retry may succeed.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub struct Unavailable(#[from] pub anyhow::Error);

/// Why an instance was not started.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A retry cannot succeed: the attempt has failed.
    #[error("{reason}: {message}")]
    Refused {
        /// A single word.
        reason: &'static str,
        /// For people. It contains no secrets.
        message: String,
    },
    /// The instance has already run and exited. [`crate::watch`] decides whether that was a failure.
    #[error("the instance has already exited")]
    Over,
    /// A later retry may succeed.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Runs game servers. Clones share one backend. Instances outlive the director that started them, and every director
/// finds them again.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Creates an instance. It starts once a node is assigned; this call does not wait for that. An instance that
    /// exists already counts as success. An instance that has exited is not started again.
    fn create(&self, order: &Order) -> impl Future<Output = Result<Created, CreateError>> + Send;

    /// Looks up an instance that has not exited. Also completes a half-finished creation, as far as that needs no
    /// configuration.
    fn find(&self, name: Name) -> impl Future<Output = Result<Option<Created>, Unavailable>> + Send;

    /// Lists every instance, no matter which director started it.
    fn list(&self) -> impl Future<Output = Listing> + Send;

    /// Ends an instance and removes everything that belongs to it. Returns whether there was anything to remove.
    fn delete(&self, name: Name) -> impl Future<Output = Result<bool, Unavailable>> + Send;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_parses_from_its_text_and_has_only_one_spelling() {
        let session = "0198c5a0-7b1e-7c3d-8000-0123456789ab";
        let name = Name { session: session.parse().unwrap(), attempt: 12 };
        assert_eq!(name.to_string().parse(), Ok(name));
        for bad in ["", "game", "game-x-1", &format!("game-{session}"), &format!("game-{session}-0")] {
            assert_eq!(bad.parse::<Name>(), Err(InvalidName), "{bad}");
        }
        for bad in ["+1", "01", "1.gone", "-1"] {
            assert_eq!(format!("game-{session}-{bad}").parse::<Name>(), Err(InvalidName), "{bad}");
        }
    }

    #[test]
    fn an_exit_has_a_one_word_reason_and_a_message() {
        let exit = |kind, message: Option<&str>| Exit { kind, message: message.map(Into::into) };
        for (exit, reason, message, inconclusive) in [
            (exit(ExitKind::Code(3), Some("no port")), "exited", "exit code 3: no port", false),
            (exit(ExitKind::Code(75), Some("no port")), "no-capacity", "exit code 75: no port", false),
            (exit(ExitKind::Code(0), None), "exited", "exit code 0", true),
            (exit(ExitKind::Signal(9), None), "killed", "signal 9", false),
            (exit(ExitKind::Unknown, None), "exited", "exit code unknown", true),
            (exit(ExitKind::Failed("evicted"), Some("the node was low")), "evicted", "the node was low", false),
            (exit(ExitKind::Failed(DELETED), None), "deleted", "deleted", true),
        ] {
            assert_eq!(
                (exit.reason(), exit.to_string().as_str(), exit.inconclusive()),
                (reason, message, inconclusive)
            );
        }
    }
}
