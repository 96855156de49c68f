//! Deciding on a session against the log: load, decide, add what its players are told, append, and again on a conflict.

use futures::future::try_join_all;
use uuid::Uuid;

use crate::{
    env::Env,
    id::SessionId,
    log::{AppendError, Behind, Decision, Log, Player, ReadError},
    player::{self, Address, Ending},
    session::{self, Command, Event, Rejection},
    subject::Aggregate,
};

/// How often a decision is made anew when its aggregates keep moving.
const TRIES: usize = 8;

/// Why nothing could be decided.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A player was read as he was before the match.
    #[error(transparent)]
    Behind(#[from] Behind),
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
/// [`Error`] when the log does not answer, or not with all that it has, or the session kept moving.
pub async fn decide_session<L: Log, W: Env>(
    log: &L,
    env: &W,
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
        let mut decision = Decision::new(env, id.uuid(), cause.or(session.cause())).change(
            env,
            Aggregate::Session(id),
            session.head,
            events.iter().cloned(),
        );
        if let Some(notice) = events.iter().find_map(Notice::of)
            && let Some(matched) = session.state.matched()
        {
            let began = session.history.first().map(|first| first.seq).unwrap_or_default();
            let players = try_join_all(
                matched.players().map(async |player| log.player(player).await.map(|found| (player.clone(), found))),
            );
            for (player, Player { state, head, .. }) in players.await? {
                match player::decide(&state, notice.command(id)) {
                    Ok(event) => decision = decision.change(env, Aggregate::Player(player), head, [event]),
                    // He came into the session in the commit that it began with, and as long as the log has that it has
                    // an event of him that is no older: he was read at a node that led until lately.
                    Err(_) if head.seq < began => return Err(Behind { read: head.seq, known: began }.into()),
                    // Let go already.
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
enum Notice {
    Address(Address),
    Ending(Ending),
}

impl Notice {
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

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use time::{OffsetDateTime, macros::datetime};

    use super::*;
    use crate::{
        env::Simulated,
        event::Recorded,
        id::{PlayerId, TicketId},
        inventory,
        log::{Append, Head, Load, Session},
        player::{Queued, Released, State},
        session::{Matched, Member, Team},
        sim::SimLog,
    };

    const BEGAN: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    /// A log of which one player is read as he was.
    #[derive(Clone)]
    struct Lagging {
        log: SimLog<Simulated>,
        player: (PlayerId, Player),
    }

    impl Load for Lagging {
        async fn player(&self, id: &PlayerId) -> Result<Player, ReadError> {
            let (lagging, was) = &self.player;
            if lagging == id { Ok(was.clone()) } else { self.log.player(id).await }
        }

        async fn session(&self, id: SessionId) -> Result<Session, ReadError> {
            self.log.session(id).await
        }

        async fn inventory(&self, id: &PlayerId) -> Result<Option<Recorded<inventory::Event>>, ReadError> {
            self.log.inventory(id).await
        }
    }

    impl Append for Lagging {
        async fn append(&self, decision: Decision) -> Result<Vec<u64>, AppendError> {
            self.log.append(decision).await
        }
    }

    /// A session of anna and bert, who have just been matched; and anna as she was before.
    fn matched(env: &Simulated, log: &SimLog<Simulated>) -> (SessionId, Player) {
        let session = SessionId::new(env.id());
        let mut decision = Decision::new(env, session.uuid(), None);
        let mut teams = Vec::new();
        let mut before = Vec::new();
        let mut events = Vec::new();
        for name in ["anna", "bert"] {
            let (player, ticket) = (name.parse::<PlayerId>().unwrap(), TicketId::new(env.id()));
            let queued = Queued {
                ticket,
                queue: "ranked".parse().unwrap(),
                rank: 0,
                latencies: Default::default(),
                attributes: Default::default(),
                waiting_since: BEGAN,
                expires_at: BEGAN + time::Duration::MINUTE,
            };
            let aggregate = Aggregate::Player(player.clone());
            let queue = Decision::new(env, ticket.uuid(), None);
            let queue = queue.change(env, aggregate.clone(), Head::default(), [player::Event::from(queued)]);
            block_on(log.append(queue)).unwrap();
            let was = block_on(log.player(&player)).unwrap();
            let command = player::Command::Match { ticket, session, team: name.into() };
            events.push((aggregate, was.head, player::decide(&was.state, command).unwrap()));
            before.push(was);
            teams.push(Team { name: name.into(), players: vec![Member { player, ticket, rank: 0 }] });
        }
        let matched = Matched {
            queue: "ranked".parse().unwrap(),
            region: "eu".parse().unwrap(),
            teams,
            rules: "test".into(),
            pool_seq: 2,
            clock: BEGAN,
        };
        decision = decision.change(env, Aggregate::Session(session), Head::default(), [Event::from(matched)]);
        for (aggregate, head, event) in events {
            decision = decision.change(env, aggregate, head, [event]);
        }
        block_on(log.append(decision)).unwrap();
        (session, before.remove(0))
    }

    fn state(log: &impl Load, name: &str) -> State {
        block_on(log.player(&name.parse().unwrap())).unwrap().state
    }

    #[test]
    fn no_player_is_left_out_because_he_was_read_as_he_was_before_the_match() {
        let env = Simulated::at(BEGAN);
        let log = SimLog::new(env.clone());
        let (session, anna) = matched(&env, &log);
        let fail = || Command::Fail { reason: "no-server".into() };
        // As she waited still, and as if nobody had heard of her.
        for was in [anna, Player::default()] {
            let lagging = Lagging { log: log.clone(), player: ("anna".parse().unwrap(), was) };
            let outcome = block_on(decide_session(&lagging, &env, session, fail(), None));
            assert!(matches!(outcome, Err(Error::Behind(_))), "{outcome:?}");
            assert!(matches!(state(&log, "bert"), State::Matched(_)), "nothing is stored");
        }
        block_on(decide_session(&log, &env, session, fail(), None)).unwrap().unwrap();
        for name in ["anna", "bert"] {
            assert!(matches!(state(&log, name), State::Idle { .. }), "{name}");
        }
    }

    #[test]
    fn who_was_let_go_already_does_not_keep_the_session_open() {
        let env = Simulated::at(BEGAN);
        let log = SimLog::new(env.clone());
        let (session, _) = matched(&env, &log);
        let anna = block_on(log.player(&"anna".parse().unwrap())).unwrap();
        let released = Released { ticket: anna.state.ticket().unwrap(), session, why: Ending::Failed };
        let decision = Decision::new(&env, session.uuid(), None);
        let aggregate = Aggregate::Player("anna".parse().unwrap());
        let decision = decision.change(&env, aggregate, anna.head, [player::Event::from(released)]);
        block_on(log.append(decision)).unwrap();
        let fail = Command::Fail { reason: "no-server".into() };
        block_on(decide_session(&log, &env, session, fail, None)).unwrap().unwrap();
        assert!(matches!(state(&log, "bert"), State::Idle { .. }));
        assert!(matches!(block_on(log.session(session)).unwrap().state, session::State::Closed(_)));
    }
}
