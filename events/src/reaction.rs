//! Decides on a session: load, decide, add the events of its players, append. It starts again after a conflict.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{Future, ready},
};

use futures::future::try_join_all;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    env::Env,
    failure,
    id::{PlayerId, SessionId},
    log::{AppendError, Decision, Log, Player, ReadError, Session, StaleRead},
    player::{self, Address, DeclineReason, Ending},
    session::{self, Command, Event, Matched, ProposalEnded, Rejection},
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

/// Decides on a session and appends the decision, together with the events of its players: `Matched` when all players
/// have accepted the match, `PlayerMatched` when the session opens, and `Released`, `Requeued` or `MatchDeclined` when it
/// closes.
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
    decide_session_with(log, env, id, command, cause, |_| ready(BTreeSet::new())).await
}

/// Like [`decide_session`]. If the session opens, fails or is not accepted, `absent` gets the players who do not have the
/// address yet, each with the time since when they wait, and returns those who have left since then. A session whose
/// players have left fails instead of being opened. The players who have left are released and not requeued, and so are
/// their groups. The same is true of players who are no longer in the party of their ticket.
///
/// # Errors
/// The same as [`decide_session`].
pub async fn decide_session_with<L: Log, W: Env, A: Future<Output = BTreeSet<PlayerId>>>(
    log: &L,
    env: &W,
    id: SessionId,
    mut command: Command,
    cause: Option<Uuid>,
    absent: impl Fn(Vec<(PlayerId, OffsetDateTime)>) -> A,
) -> Result<Result<Vec<Event>, Rejection>, Error> {
    let (mut last, mut withdrawn) = (None, false);
    for _ in 0..MAX_TRIES {
        let session = log.session(id).await?;
        if withdrawn && session.state.is_opened() {
            // Another worker has opened the session in the meantime, so the players have the address.
            return Ok(Err(Rejection::NoChange));
        }
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
        if let Some(notice) = Notice::of(&events, &session.state)
            && let Some(matched) = session.state.matched()
        {
            let began = session.history.iter().rev().find(|recorded| joins(&recorded.event));
            let began = began.map(|joined| joined.seq).unwrap_or_default();
            let players = try_join_all(
                matched.players().map(async |player| log.player(player).await.map(|found| (player.clone(), found))),
            );
            let players = players.await?;
            let left = match notice {
                Notice::Address(_) | Notice::Failed(..) | Notice::NotAccepted(_) => {
                    let waiting = players.iter().filter_map(|(player, found)| match &found.state {
                        player::State::Matched(matched) => Some((player.clone(), matched.waiting_since)),
                        player::State::Proposed(proposed) => Some((player.clone(), proposed.queued.waiting_since)),
                        _ => None,
                    });
                    absent(waiting.collect()).await
                }
                Notice::Accepted | Notice::Finished(_) => BTreeSet::new(),
            };
            if matches!(notice, Notice::Address(_)) && !left.is_empty() {
                command = Command::Fail { reason: failure::PLAYER_LEFT.into() };
                withdrawn = true;
                continue;
            }
            // A group waits again only with all of its players, and a party only with all members of the ticket.
            let stays = |(player, found): &(PlayerId, Player)| {
                let joined = match &found.state {
                    player::State::Matched(own) => own.is_in_party_of_ticket().then_some(own.session),
                    player::State::Proposed(own) => Some(own.session),
                    _ => None,
                };
                !left.contains(player) && joined == Some(id)
            };
            let staying: BTreeSet<_> = players.iter().filter(|one| stays(one)).map(|(player, _)| player).collect();
            let members = matched.teams.iter().flat_map(|team| &team.players);
            let gone = members.filter(|member| !staying.contains(&member.player));
            let incomplete: BTreeSet<_> = gone.map(|member| member.ticket).collect();
            let now = env.now();
            for (player, Player { state, head, .. }) in players {
                let may_wait = state.ticket().is_some_and(|ticket| !incomplete.contains(&ticket));
                match notice.decide(&player, &state, id, may_wait.then_some(now)) {
                    Ok(event) => decision = decision.change(env, Aggregate::Player(player), head, [event]),
                    // The player has an event in the commit that began the session, and in the commit that made the
                    // match. So while the log still has that commit, it also has an event of the player that is at
                    // least as new. This read is stale.
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

/// Whether every player of the session has an event in the commit of this event, after it.
fn joins(event: &Event) -> bool {
    matches!(event, Event::Proposed(_) | Event::Matched(_))
}

/// Counts how proposals end. Measures the steps from the match up to the moment when the players have the address. The
/// time of a step is the time since the event before, so the times of all steps add up to the whole time.
fn measure(session: &Session, events: &[Event], now: OffsetDateTime) {
    let mut history = session.history.iter();
    let made = history.rfind(|recorded| joins(&recorded.event));
    let (Some(first), Some(last)) = (made, session.history.last()) else { return };
    let outcome =
        |outcome: &'static str| metrics::counter!("garage_proposals_total", "outcome" => outcome).increment(1);
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
            // An append of this function makes a match only when all players have accepted it.
            Event::Matched(_) => {
                outcome("accepted");
                continue;
            }
            Event::ProposalEnded(ended) => {
                outcome(ended.why.label());
                continue;
            }
            Event::Proposed(_)
            | Event::Accepted(_)
            | Event::PodFailed(_)
            | Event::Failed(_)
            | Event::Finished(_)
            | Event::Closed(_) => continue,
        };
        metrics::histogram!("garage_session_step_seconds", "step" => step).record(since(last.time));
    }
}

/// A change that an event of a session makes to the players of the session.
enum Notice {
    /// All players have accepted the match.
    Accepted,
    /// The players whose tickets end, because they or other players of the same ticket did not accept: why, and the names
    /// of those players, if the queue names them.
    NotAccepted(BTreeMap<PlayerId, (DeclineReason, Vec<PlayerId>)>),
    Address(Address),
    /// The players who joined the match.
    Finished(BTreeSet<PlayerId>),
    Failed(Ending, failure::Code),
}

impl Notice {
    /// The notice of a decision's events, in the state before them.
    fn of(events: &[Event], state: &session::State) -> Option<Self> {
        match events {
            [Event::Accepted(_), Event::Matched(_)] => Some(Self::Accepted),
            [Event::ProposalEnded(ended), Event::Closed(_)] => match state {
                session::State::Proposed(proposal) => {
                    let proposed = &proposal.proposed;
                    Some(Self::NotAccepted(declined(&proposed.matched, ended, proposed.names_decliner)))
                }
                session::State::New | session::State::Open(_) | session::State::Closed(_) => None,
            },
            [Event::Opened(opened)] => Some(Self::Address(opened.address.clone())),
            [Event::Finished(finished), Event::Closed(_)] => {
                let joined = finished.results.iter().filter(|placing| placing.joined);
                Some(Self::Finished(joined.map(|placing| placing.player.clone()).collect()))
            }
            [Event::Failed(failed), Event::Closed(closed)] => {
                Some(Self::Failed(closed.why, failure::Code::of(&failed.reason, state.is_opened())))
            }
            _ => None,
        }
    }

    /// The event that notifies a player. After a failure, the player waits again if they can. `now` is the current time;
    /// `None` if the player must not wait again.
    fn decide(
        &self,
        player: &PlayerId,
        state: &player::State,
        session: SessionId,
        now: Option<OffsetDateTime>,
    ) -> Result<player::Event, player::Rejection> {
        let release =
            |why, reason, joined| player::decide(state, player::Command::Release { session, why, reason, joined });
        let requeue = |reason| {
            let requeue = now.map(|now| player::decide(state, player::Command::Requeue { session, reason, now }));
            requeue.and_then(Result::ok)
        };
        match self {
            Self::Accepted => player::decide(state, player::Command::Confirm { session }),
            Self::NotAccepted(declined) => match declined.get(player) {
                Some((reason, players)) => {
                    let (reason, players) = (*reason, players.clone());
                    player::decide(state, player::Command::Decline { session, reason, players })
                }
                // A player of the ticket has left since they accepted.
                None => requeue(failure::Code::NotAccepted)
                    .map_or_else(|| release(Ending::NotAccepted, Some(failure::Code::PlayerLeft), None), Ok),
            },
            Self::Address(address) => {
                player::decide(state, player::Command::Open { session, address: address.clone() })
            }
            Self::Finished(joined) => release(Ending::Finished, None, Some(joined.contains(player))),
            Self::Failed(why, reason) => requeue(*reason).map_or_else(|| release(*why, Some(*reason), None), Ok),
        }
    }
}

/// See [`Notice::NotAccepted`].
fn declined(
    matched: &Matched,
    ended: &ProposalEnded,
    names_decliner: bool,
) -> BTreeMap<PlayerId, (DeclineReason, Vec<PlayerId>)> {
    let members = || matched.teams.iter().flat_map(|team| &team.players);
    let mut decliners: BTreeMap<_, Vec<PlayerId>> = BTreeMap::new();
    for member in members().filter(|member| ended.players.contains(&member.player)) {
        decliners.entry(member.ticket).or_default().push(member.player.clone());
    }
    let declined = members().filter_map(|member| {
        let decliners = decliners.get(&member.ticket)?;
        let why = match decliners.contains(&member.player) {
            true => (ended.why.into(), Vec::new()),
            false if names_decliner => (DeclineReason::Party, decliners.clone()),
            false => (DeclineReason::Party, Vec::new()),
        };
        Some((member.player.clone(), why))
    });
    declined.collect()
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use time::macros::datetime;

    use super::*;
    use crate::{
        env::Simulated,
        event::Recorded,
        game,
        id::{PartyId, TicketId},
        inventory,
        log::{Append, Head, Load, Party},
        player::{Queued, Released, State},
        session::{Limits, Matched, Member, Next, PodRequested, PodScheduled, Team},
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

        async fn party(&self, id: PartyId) -> Result<Party, ReadError> {
            self.log.party(id).await
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
        match_of(env, log, None)
    }

    /// A match of anna and bert. With a ticket, they are a group; without, only anna may be requeued.
    fn match_of(env: &Simulated, log: &SimLog<Simulated>, group: Option<TicketId>) -> (SessionId, Player) {
        let session = SessionId::new(env.id());
        let mut decision = Decision::new(env, session.uuid(), None);
        let mut teams = Vec::new();
        let mut before = Vec::new();
        let mut events = Vec::new();
        for name in ["anna", "bert"] {
            let player = name.parse::<PlayerId>().unwrap();
            let ticket = group.unwrap_or_else(|| TicketId::new(env.id()));
            let members = group.iter().flat_map(|_| ["anna", "bert"]).map(|name| name.parse().unwrap());
            let queued = Queued {
                ticket,
                queue: "ranked".parse().unwrap(),
                rank: 0,
                latencies: Default::default(),
                attributes: Default::default(),
                group: members.collect(),
                waiting_since: BEGAN,
                expires_at: BEGAN + time::Duration::MINUTE,
                requeues: 0,
                absences: 0,
                party: None,
            };
            let aggregate = Aggregate::Player(player.clone());
            let queue = Decision::new(env, ticket.uuid(), None);
            let queue = queue.change(env, aggregate.clone(), Head::default(), [player::Event::from(queued)]);
            block_on(log.append(queue)).unwrap();
            let was = block_on(log.player(&player)).unwrap();
            let requeue = group.is_some() || name == "anna";
            let command = player::Command::Match { ticket, session, team: name.into(), requeue };
            events.push((aggregate, was.head, player::decide(&was.state, command).unwrap()));
            before.push(was);
            teams.push(Team { name: name.into(), players: vec![Member { player, ticket, rank: 0 }] });
        }
        let matched = Matched {
            queue: "ranked".parse().unwrap(),
            region: "eu".parse().unwrap(),
            teams,
            latencies: Default::default(),
            rules: "test".into(),
            pool_seq: 2,
            clock: BEGAN,
            seed: 0,
            skipped: Vec::new(),
            left_out: Vec::new(),
            search_steps: None,
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
            assert!(!matches!(state(&log, name), State::Matched(_)), "{name}");
        }
    }

    #[test]
    fn a_failed_session_requeues_the_players_who_may_wait_again_and_releases_the_others() {
        let env = Simulated::at(BEGAN);
        let log = SimLog::new(env.clone());
        let (session, anna) = matched(&env, &log);
        env.advance(time::Duration::seconds(20));
        let fail = Command::Fail { reason: failure::NO_CAPACITY.into() };
        block_on(decide_session(&log, &env, session, fail, None)).unwrap().unwrap();
        let State::Waiting(before) = anna.state else { panic!("anna did not wait") };
        assert_eq!(state(&log, "anna"), State::Waiting(Queued { requeues: 1, ..before }));
        let bert = block_on(log.player(&"bert".parse().unwrap())).unwrap().last.unwrap().event;
        let player::Event::Released(released) = bert else { panic!("{bert:?}") };
        assert_eq!((released.why, released.reason), (Ending::Failed, Some(failure::Code::NoCapacity)));
    }

    #[test]
    fn a_player_who_has_left_is_released() {
        let env = Simulated::at(BEGAN);
        let log = SimLog::new(env.clone());
        let (session, _) = matched(&env, &log);
        let fail = Command::Fail { reason: "exited".into() };
        let absent = |players: Vec<(PlayerId, OffsetDateTime)>| {
            assert_eq!(players.len(), 2);
            ready(players.into_iter().map(|(player, _)| player).filter(|player| player.as_str() == "anna").collect())
        };
        block_on(decide_session_with(&log, &env, session, fail, None, absent)).unwrap().unwrap();
        assert!(matches!(state(&log, "anna"), State::Idle { .. }));
    }

    #[test]
    fn a_group_waits_again_only_if_none_of_its_players_has_left() {
        for (gone, waits) in [(None, true), (Some("anna"), false), (Some("bert"), false)] {
            let env = Simulated::at(BEGAN);
            let log = SimLog::new(env.clone());
            let (session, _) = match_of(&env, &log, Some(TicketId::new(env.id())));
            let fail = Command::Fail { reason: "exited".into() };
            let absent = |_| ready(gone.into_iter().map(|name| name.parse().unwrap()).collect());
            block_on(decide_session_with(&log, &env, session, fail, None, absent)).unwrap().unwrap();
            for name in ["anna", "bert"] {
                assert_eq!(matches!(state(&log, name), State::Waiting(_)), waits, "{name}, without {gone:?}");
            }
        }
    }

    #[test]
    fn a_group_does_not_wait_again_after_one_of_its_players_has_joined_a_party() {
        let env = Simulated::at(BEGAN);
        let log = SimLog::new(env.clone());
        let (session, _) = match_of(&env, &log, Some(TicketId::new(env.id())));
        let anna = "anna".parse::<PlayerId>().unwrap();
        let found = block_on(log.player(&anna)).unwrap();
        let joined = player::join_party(&found, PartyId::new(env.id())).unwrap();
        let decision = Decision::new(&env, env.id(), None);
        let decision = decision.change(&env, Aggregate::Player(anna), found.head, [joined]);
        block_on(log.append(decision)).unwrap();
        let fail = Command::Fail { reason: "exited".into() };
        block_on(decide_session(&log, &env, session, fail, None)).unwrap().unwrap();
        for name in ["anna", "bert"] {
            assert!(matches!(state(&log, name), State::Idle { .. }), "{name}");
        }
    }

    #[test]
    fn a_player_who_leaves_while_another_worker_opens_the_session_does_not_end_it() {
        let env = Simulated::at(BEGAN);
        let log = SimLog::new(env.clone());
        let (session, _) = matched(&env, &log);
        let attempt = 1;
        let requested = PodRequested {
            attempt,
            region: "eu".parse().unwrap(),
            loadouts: Vec::new(),
            public_key: "key".into(),
            fingerprint: "f1".into(),
            ends_at: None,
        };
        let public_ip = [203, 0, 113, 7].into();
        let scheduled = PodScheduled { attempt, pod: "game-s-1".into(), node: "n1".into(), public_ip };
        let report = game::Ready { ports: game::Ports { tcp_port: 31_000, udp_port: 31_001 } };
        let steps = [Command::RequestPod(requested), Command::Schedule(scheduled), Command::Ready { attempt, report }];
        for step in steps {
            block_on(decide_session(&log, &env, session, step, None)).unwrap().unwrap();
        }
        let state = block_on(log.session(session)).unwrap().state;
        let session::State::Open(open) = state else { panic!("{state:?}") };
        let Next::Open(opened) = open.next(&Limits::default()) else { panic!("{open:?}") };

        let open = Command::Open(opened);
        let absent = async |players: Vec<(PlayerId, OffsetDateTime)>| {
            decide_session(&log, &env, session, open.clone(), None).await.unwrap().unwrap();
            players.into_iter().map(|(player, _)| player).collect()
        };
        let outcome = block_on(decide_session_with(&log, &env, session, open.clone(), None, absent)).unwrap();
        assert_eq!(outcome, Err(Rejection::NoChange));
        assert!(block_on(log.session(session)).unwrap().state.is_opened());
    }

    #[test]
    fn a_player_whose_ticket_is_about_to_expire_is_released() {
        let env = Simulated::at(BEGAN);
        let log = SimLog::new(env.clone());
        let (session, _) = matched(&env, &log);
        env.advance(time::Duration::seconds(56));
        let fail = Command::Fail { reason: "exited".into() };
        block_on(decide_session(&log, &env, session, fail, None)).unwrap().unwrap();
        assert!(matches!(state(&log, "anna"), State::Idle { .. }));
    }

    #[test]
    fn a_session_closes_even_if_a_player_was_released_before() {
        let env = Simulated::at(BEGAN);
        let log = SimLog::new(env.clone());
        let (session, _) = matched(&env, &log);
        let anna = block_on(log.player(&"anna".parse().unwrap())).unwrap();
        let released = Released {
            ticket: anna.state.ticket().unwrap(),
            session,
            why: Ending::Failed,
            reason: None,
            absences: 0,
            party: None,
        };
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
