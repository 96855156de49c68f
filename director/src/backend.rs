//! What runs game servers, as the director sees it.

use std::{fmt, future::Future, net::IpAddr, str::FromStr};

use garage_events::{
    game,
    id::{QueueName, Region, SessionId},
};
use time::OffsetDateTime;

/// Which instance: one attempt at one session. Its text, `game-<session>-<attempt>`, is the instance's name wherever
/// it runs, so that starting it twice is starting it once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// Whose server.
    pub session: SessionId,
    /// Which attempt, from 1.
    pub attempt: u32,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "game-{}-{}", self.session, self.attempt)
    }
}

/// A text that names no instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of an instance")]
pub struct NoName;

impl FromStr for Name {
    type Err = NoName;

    fn from_str(text: &str) -> Result<Self, NoName> {
        let (session, attempt) = text.strip_prefix("game-").and_then(|rest| rest.rsplit_once('-')).ok_or(NoName)?;
        let name = match (session.parse(), attempt.parse()) {
            (Ok(session), Ok(attempt)) => Self { session, attempt },
            _ => return Err(NoName),
        };
        // One spelling for each: `+1` and `01` parse as numbers too.
        if name.attempt > 0 && name.to_string() == text { Ok(name) } else { Err(NoName) }
    }
}

/// Where an instance was placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The instance's name there.
    pub pod: String,
    /// The machine.
    pub node: String,
    /// How clients reach that machine.
    pub public_ip: IpAddr,
}

/// A game server that is asked for.
#[derive(Debug, Clone)]
pub struct Order {
    /// The queue of its match.
    pub queue: QueueName,
    /// Where its match is to be played.
    pub region: Region,
    /// What it is told.
    pub config: game::Config,
}

impl Order {
    /// The name of the instance.
    pub fn name(&self) -> Name {
        name_of(&self.config)
    }
}

/// The name of the instance that a configuration is for.
pub fn name_of(config: &game::Config) -> Name {
    Name { session: config.session, attempt: config.attempt }
}

/// How far an instance has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// It has its place.
    Placed(Placed),
    /// It is made, and a machine is yet to be found for it. The list will tell of it.
    Waiting,
}

/// An instance that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Which.
    pub name: Name,
    /// When it was made, by the clock of the machine it is on.
    pub created: OffsetDateTime,
    /// What it does.
    pub state: State,
}

/// What an instance does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It was never started; whoever began to make it starts it, or the next delivery of the request.
    Claimed,
    /// It is made, and no machine has it yet.
    Waiting,
    /// It runs, or is being started.
    Running(Placed),
    /// It ran once and is over.
    Exited(Exit),
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// How, as far as anybody saw it.
    pub how: How,
    /// The last line that it wrote, or what is said of its end; without secrets.
    pub message: Option<String>,
}

impl Exit {
    /// Why, as one word.
    pub fn reason(&self) -> &'static str {
        match self.how {
            How::Code(_) | How::Unknown => "exited",
            How::Signal(_) => "killed",
            How::Failed(reason) => reason,
        }
    }

    /// Whether it may be no failure: nobody saw how it ended, or it ended as it does after its results were taken.
    pub fn doubtful(&self) -> bool {
        match self.how {
            How::Unknown | How::Code(0) => true,
            How::Code(_) | How::Signal(_) => false,
            // Whoever removes what is over may be quicker than the news of its results.
            How::Failed(reason) => reason == DELETED,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.how, &self.message) {
            (How::Failed(_), Some(message)) => f.write_str(message),
            (how, Some(message)) => write!(f, "{how}: {message}"),
            (how, None) => how.fmt(f),
        }
    }
}

/// The reason of an instance that somebody else removed.
pub const DELETED: &str = "deleted";

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody was there to see it.
    Unknown,
    /// It came to nothing, or was ended, by what runs it; why, as one word.
    Failed(&'static str),
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("exit code unknown"),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

/// What a backend says of its instances.
#[derive(Debug)]
pub struct Listed {
    /// Those that are known of.
    pub instances: Vec<Instance>,
    /// An error is of a part of the machines, or of all, whose instances are not known.
    pub whole: Result<(), Unavailable>,
}

impl From<Result<Vec<Instance>, Unavailable>> for Listed {
    fn from(listed: Result<Vec<Instance>, Unavailable>) -> Self {
        match listed {
            Ok(instances) => Self { instances, whole: Ok(()) },
            Err(error) => Self { instances: Vec::new(), whole: Err(error) },
        }
    }
}

/// The backend could not be asked; trying again later may help.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub struct Unavailable(#[from] pub anyhow::Error);

/// Why an instance was not started.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// It won't be, however often this attempt is tried.
    #[error("{reason}: {message}")]
    Refused {
        /// As one word.
        reason: &'static str,
        /// For a person; without secrets.
        message: String,
    },
    /// It ran once and is over. Whether it failed is for who looks after instances to judge.
    #[error("it ran once and is over")]
    Over,
    /// Trying again later may help.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Runs game servers. Clones are one backend. Instances live by themselves: they survive the director, and any
/// director finds them again.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Makes an instance, which starts as soon as a machine has it; nobody waits here for that. One that is there
    /// already is a success; one that ran and is over is not started again.
    fn create(&self, order: &Order) -> impl Future<Output = Result<Made, CreateError>> + Send;

    /// How far an instance has come that lives; what is wanting to its making that takes no configuration is done.
    fn find(&self, name: Name) -> impl Future<Output = Result<Option<Made>, Unavailable>> + Send;

    /// Every instance that is there, whoever started it.
    fn list(&self) -> impl Future<Output = Listed> + Send;

    /// Ends and removes an instance, with all that belongs to it; whether there was anything.
    fn delete(&self, name: Name) -> impl Future<Output = Result<bool, Unavailable>> + Send;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_again_and_has_one_spelling() {
        let session = "0198c5a0-7b1e-7c3d-8000-0123456789ab";
        let name = Name { session: session.parse().unwrap(), attempt: 12 };
        assert_eq!(name.to_string().parse(), Ok(name));
        for bad in ["", "game", "game-x-1", &format!("game-{session}"), &format!("game-{session}-0")] {
            assert_eq!(bad.parse::<Name>(), Err(NoName), "{bad}");
        }
        for bad in ["+1", "01", "1.gone", "-1"] {
            assert_eq!(format!("game-{session}-{bad}").parse::<Name>(), Err(NoName), "{bad}");
        }
    }

    #[test]
    fn an_end_is_told_in_a_word_and_a_sentence() {
        let exit = |how, message: Option<&str>| Exit { how, message: message.map(Into::into) };
        for (exit, reason, message, doubtful) in [
            (exit(How::Code(3), Some("no port")), "exited", "exit code 3: no port", false),
            (exit(How::Code(0), None), "exited", "exit code 0", true),
            (exit(How::Signal(9), None), "killed", "signal 9", false),
            (exit(How::Unknown, None), "exited", "exit code unknown", true),
            (exit(How::Failed("evicted"), Some("the node was low")), "evicted", "the node was low", false),
            (exit(How::Failed(DELETED), None), "deleted", "deleted", true),
        ] {
            assert_eq!((exit.reason(), exit.to_string().as_str(), exit.doubtful()), (reason, message, doubtful));
        }
    }
}
