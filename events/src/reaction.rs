//! Decides on a session: load, decide, add the events of its players, append. It starts again after a conflict.

use futures::future::try_join_all;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    env::Env,
    id::SessionId,
    log::{AppendError, Decision, Log, Player, ReadError, Session, StaleRead},
    player::{self, Address, Ending},
    session::{self, Command, Event, Rejection},
    subject::Aggregate,
};

/// The maximum number of tries if the append keeps failing with a conflict.
const MAX_TRIES: usize = 8;

/// Why a decision could not be made or stored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A read returned a player's state from before the match.
    #[error(transparent)]
    StaleRead(#[from] StaleRead),
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Decides on a session and appends the decision, together with the events of its players: `PlayerMatched` when the
/// session opens, and `Released` when it closes.
///
/// `cause` is the id of the event or report that led to the command. Without one, it is the session's last event.
///
/// The inner result is the answer of [`session::decide()`]: the events that were stored, or the rejection.
///
/// # Errors
/// [`Error`] if the log does not answer, if a read is stale, or if every try ends with a conflict.
pub async fn decide_session<L: Log, W: Env>(
    log: &L,
    env: &W,
    id: SessionId,
    command: Command,
    cause: Option<Uuid>,
) -> Result<Result<Vec<Event>, Rejection>, Error> {
    let mut last = None;
    for _ in 0..MAX_TRIES {
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
                    // The player joined in the commit that began the session. So while the log still has that commit,
                    // it also has an event of the player that is at least as new. This read is stale.
                    Err(_) if head.seq < began => return Err(StaleRead { read: head.seq, known: began }.into()),
                    // The player is no longer in this session: they were released already.
                    Err(rejection) => {
                        tracing::warn!(
                            session.id = %id,
                            player.id = %player,
                            %rejection,
                            "player not notified: no longer in the session"
                        );
                    }
                }
            }
        }
        match log.append(decision).await {
            Ok(_) => {
                measure(&session, &events, env.now());
                return Ok(Ok(events));
            }
            Err(AppendError::Conflict(aggregate)) => last = Some(aggregate),
            Err(error) => return Err(error.into()),
        }
    }
    let moved = last.unwrap_or(Aggregate::Session(id));
    Err(AppendError::Conflict(moved).into())
}

/// Measures the steps up to the moment when the players have the address. The time of a step is the time since the
/// event before, so the times of all steps add up to the whole time.
fn measure(session: &Session, events: &[Event], now: OffsetDateTime) {
    let (Some(first), Some(last)) = (session.history.first(), session.history.last()) else { return };
    // The stream's clock and the clock of this process may differ.
    let since = |time: OffsetDateTime| (now - time).as_seconds_f64().max(0.0);
    for event in events {
        let step = match event {
            Event::PodRequested(_) => "requested",
            Event::PodScheduled(_) => "scheduled",
            Event::PodReady(_) => "ready",
            Event::Opened(_) => {
                metrics::histogram!("garage_session_start_seconds").record(since(first.time));
                "opened"
            }
            Event::Matched(_) | Event::PodFailed(_) | Event::Failed(_) | Event::Finished(_) | Event::Closed(_) => {
                continue;
            }
        };
        metrics::histogram!("garage_session_step_seconds", "step" => step).record(since(last.time));
    }
}

/// A change that an event of a session makes to the players of the session.
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
    use time::macros::datetime;

    use super::*;
    use crate::{
        env::Simulated,
        event::Recorded,
        id::{PlayerId, TicketId},
        inventory,
        log::{Append, Head, Load},
        player::{Queued, Released, State},
        session::{Matched, Member, Team},
        sim::SimLog,
    };

    const BEGAN: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    /// A log that returns an old state for one player.
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

    /// Matches anna and bert in a new session. Also returns anna's state before the match.
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
    fn a_stale_read_of_a_player_does_not_exclude_the_player_from_the_decision() {
        let env = Simulated::at(BEGAN);
        let log = SimLog::new(env.clone());
        let (session, anna) = matched(&env, &log);
        let fail = || Command::Fail { reason: "no-server".into() };
        // The read returns anna still waiting, or no event of her at all.
        for was in [anna, Player::default()] {
            let lagging = Lagging { log: log.clone(), player: ("anna".parse().unwrap(), was) };
            let outcome = block_on(decide_session(&lagging, &env, session, fail(), None));
            assert!(matches!(outcome, Err(Error::StaleRead(_))), "{outcome:?}");
            assert!(matches!(state(&log, "bert"), State::Matched(_)), "nothing is stored");
        }
        block_on(decide_session(&log, &env, session, fail(), None)).unwrap().unwrap();
        for name in ["anna", "bert"] {
            assert!(matches!(state(&log, name), State::Idle { .. }), "{name}");
        }
    }

    #[test]
    fn a_session_closes_even_if_a_player_was_released_before() {
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
