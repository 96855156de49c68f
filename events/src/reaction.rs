//! Deciding on a session against the log: load, decide, add what its players are told, append, and again on a conflict.

use futures::future::try_join_all;
use uuid::Uuid;

use crate::{
    id::SessionId,
    log::{AppendError, Decision, Log, Player, ReadError},
    player::{self, Address, Ending},
    session::{self, Command, Event, Rejection},
    subject::Aggregate,
    world::World,
};

/// How often a decision is made anew when its aggregates keep moving.
const TRIES: usize = 8;

/// Why nothing could be decided.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log did not take the decision.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Decides on a session and stores what was decided, together with what its players are told of it: PlayerMatched when
/// it opens, Released when it closes. `cause` is the event or report that this answers; by default the session's last.
///
/// The inner result is the domain's answer.
///
/// # Errors
/// [`Error`] when the log does not answer, or the session kept moving.
pub async fn decide_session<L: Log, W: World>(
    log: &L,
    world: &W,
    id: SessionId,
    command: Command,
    cause: Option<Uuid>,
) -> Result<Result<Vec<Event>, Rejection>, Error> {
    let mut last = None;
    for _ in 0..TRIES {
        let session = log.session(id).await?;
        let events = match session::decide(&session.state, command.clone()) {
            Ok(events) => events,
            Err(rejection) => return Ok(Err(rejection)),
        };
        let mut decision = Decision::new(world, id.uuid(), cause.or(session.cause())).change(
            world,
            Aggregate::Session(id),
            session.head,
            events.iter().cloned(),
        );
        if let Some(told) = events.iter().find_map(Told::of)
            && let Some(matched) = session.state.matched()
        {
            let players = try_join_all(
                matched.players().map(async |player| log.player(player).await.map(|found| (player.clone(), found))),
            );
            for (player, Player { state, head, .. }) in players.await? {
                match player::decide(&state, told.command(id)) {
                    Ok(event) => decision = decision.change(world, Aggregate::Player(player), head, [event]),
                    // Let go already, or forgotten by the log with his age.
                    Err(rejection) => {
                        tracing::warn!(session.id = %id, player.id = %player, %rejection, "player not told");
                    }
                }
            }
        }
        match log.append(decision).await {
            Ok(_) => return Ok(Ok(events)),
            Err(AppendError::Conflict(aggregate)) => last = Some(aggregate),
            Err(error) => return Err(error.into()),
        }
    }
    let moved = last.unwrap_or(Aggregate::Session(id));
    Err(AppendError::Conflict(moved).into())
}

/// What a session's players are told of an event of it.
enum Told {
    Address(Address),
    Ending(Ending),
}

impl Told {
    fn of(event: &Event) -> Option<Self> {
        match event {
            Event::Opened(opened) => Some(Self::Address(opened.address.clone())),
            Event::Closed(closed) => Some(Self::Ending(closed.why)),
            Event::Matched(_)
            | Event::PodRequested(_)
            | Event::PodScheduled(_)
            | Event::PodFailed(_)
            | Event::PodReady(_)
            | Event::Failed(_)
            | Event::Finished(_) => None,
        }
    }

    fn command(&self, session: SessionId) -> player::Command {
        match self {
            Self::Address(address) => player::Command::Open { session, address: address.clone() },
            Self::Ending(why) => player::Command::Release { session, why: *why },
        }
    }
}
