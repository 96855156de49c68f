//! The sessions that were read last.
//!
//! When a match opens, each of its players asks for a connection token, and perhaps for the session. A history can be
//! long: the request for a game server of 200 players takes up to 832 KiB. So a history is read again only if the
//! session has a newer event. The stream's leader says so, so that nobody gets an older state than with a read of their
//! own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use garage_events::{
    id::SessionId,
    log::{Load, ReadError},
    session::{State, View},
};

/// How many sessions are kept. The largest ones, of 200 players, take about 200 KiB each.
const MAX_SESSIONS: usize = 128;

/// A session, without its events.
#[derive(Debug)]
pub struct Recent {
    /// The sequence of the last event.
    seq: u64,
    pub state: State,
    /// `None` if the log no longer has the first event.
    pub view: Option<View>,
}

/// The sessions that were read last. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Sessions(Arc<Mutex<HashMap<SessionId, Slot>>>);

/// Locked while the session is read, so that simultaneous requests share one read.
type Slot = Arc<tokio::sync::Mutex<Option<Arc<Recent>>>>;

impl Sessions {
    /// Returns a session with all events up to `last` at least. `last` is the sequence of its last event, read at the
    /// stream's leader after the request arrived; 0 if there is none, then the session is new.
    ///
    /// # Errors
    /// [`ReadError`]
    pub async fn read(&self, log: &impl Load, id: SessionId, last: u64) -> Result<Option<Arc<Recent>>, ReadError> {
        if last == 0 {
            return Ok(None);
        }
        let slot = self.slot(id);
        let mut slot = slot.lock().await;
        if let Some(recent) = slot.as_ref().filter(|recent| recent.seq >= last) {
            return Ok(Some(Arc::clone(recent)));
        }
        let session = log.session(id).await?.read_up_to(last);
        let session = session.map_err(|error| ReadError::Unavailable(error.to_string()))?;
        let view = View::of(id, &session.history);
        let recent = Arc::new(Recent { seq: session.head.seq, state: session.state, view });
        *slot = Some(Arc::clone(&recent));
        Ok(Some(recent))
    }

    fn slot(&self, id: SessionId) -> Slot {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= MAX_SESSIONS && !sessions.contains_key(&id) {
            // Simpler than to find the oldest one. Each of them is read once more if somebody asks for it again.
            sessions.clear();
        }
        Arc::clone(sessions.entry(id).or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;
    use garage_events::{
        env::{Env, Simulated},
        event::Recorded,
        id::{PartyId, PlayerId},
        inventory,
        log::{Append, Decision, Party, Player, Session},
        player::Ending,
        session::{Closed, Event, Matched},
        sim::SimLog,
        subject::Aggregate,
    };
    use time::{OffsetDateTime, macros::datetime};

    use super::*;

    const THEN: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    /// A log that counts how often a session is read.
    #[derive(Clone)]
    struct Counted {
        env: Simulated,
        log: SimLog<Simulated>,
        reads: Arc<AtomicUsize>,
    }

    impl Counted {
        fn new() -> Self {
            let env = Simulated::at(THEN);
            Self { env: env.clone(), log: SimLog::new(env), reads: Arc::default() }
        }

        /// Appends an event to a session. Returns its sequence.
        async fn append(&self, id: SessionId, event: impl Into<Event>) -> u64 {
            let head = self.log.session(id).await.unwrap().head;
            let decision = Decision::new(&self.env, id.uuid(), None);
            let decision = decision.change(&self.env, Aggregate::Session(id), head, [event.into()]);
            self.log.append(decision).await.unwrap()[0]
        }

        /// Begins a session. Returns its id and the sequence of its last event.
        async fn begin(&self) -> (SessionId, u64) {
            let id = SessionId::new(self.env.id());
            let matched = Matched {
                queue: "ranked".parse().unwrap(),
                region: "eu".parse().unwrap(),
                teams: Vec::new(),
                latencies: Default::default(),
                rules: "1".into(),
                pool_seq: 1,
                clock: THEN,
                seed: 0,
                skipped: Vec::new(),
                left_out: Vec::new(),
                search_steps: None,
            };
            (id, self.append(id, matched).await)
        }

        fn reads(&self) -> usize {
            self.reads.load(Ordering::Relaxed)
        }
    }

    impl Load for Counted {
        async fn player(&self, id: &PlayerId) -> Result<Player, ReadError> {
            self.log.player(id).await
        }

        async fn party(&self, id: PartyId) -> Result<Party, ReadError> {
            self.log.party(id).await
        }

        async fn session(&self, id: SessionId) -> Result<Session, ReadError> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            self.log.session(id).await
        }

        async fn inventory(&self, id: &PlayerId) -> Result<Option<Recorded<inventory::Event>>, ReadError> {
            self.log.inventory(id).await
        }
    }

    #[tokio::test]
    async fn simultaneous_requests_for_a_session_share_one_read() {
        let (log, sessions) = (Counted::new(), Sessions::default());
        let (id, last) = log.begin().await;
        for read in join_all((0..200).map(|_| sessions.read(&log, id, last))).await {
            assert_eq!(read.unwrap().unwrap().view.as_ref().unwrap().session, id);
        }
        assert_eq!(log.reads(), 1);
    }

    #[tokio::test]
    async fn a_session_with_a_newer_event_is_read_again() {
        let (log, sessions) = (Counted::new(), Sessions::default());
        let (id, last) = log.begin().await;
        let read = sessions.read(&log, id, last).await.unwrap().unwrap();
        assert!(matches!(read.state, State::Open(_)));

        let closed = Closed { why: Ending::Failed, results: Vec::new(), teams: Vec::new() };
        let newer = log.append(id, closed).await;
        let read = sessions.read(&log, id, newer).await.unwrap().unwrap();
        assert!(matches!(read.state, State::Closed(_)));
        // A slower request may still know only the event before.
        let read = sessions.read(&log, id, last).await.unwrap().unwrap();
        assert!(matches!(read.state, State::Closed(_)));
        assert_eq!(log.reads(), 2);
    }

    #[tokio::test]
    async fn a_read_that_misses_the_last_event_is_an_error_and_is_not_kept() {
        let (log, sessions) = (Counted::new(), Sessions::default());
        let (id, last) = log.begin().await;
        let stale = sessions.read(&log, id, last + 1).await;
        assert!(matches!(stale, Err(ReadError::Unavailable(_))), "{stale:?}");
        assert!(sessions.read(&log, id, last).await.unwrap().is_some());
        assert_eq!(log.reads(), 2);
    }

    #[tokio::test]
    async fn a_session_without_events_is_neither_read_nor_kept() {
        let (log, sessions) = (Counted::new(), Sessions::default());
        let id = SessionId::new(log.env.id());
        assert!(sessions.read(&log, id, 0).await.unwrap().is_none());
        assert_eq!((log.reads(), sessions.0.lock().unwrap().len()), (0, 0));
    }

    #[tokio::test]
    async fn only_so_many_sessions_are_kept() {
        let (log, sessions) = (Counted::new(), Sessions::default());
        for _ in 0..3 * MAX_SESSIONS {
            let (id, last) = log.begin().await;
            sessions.read(&log, id, last).await.unwrap();
            assert!(sessions.0.lock().unwrap().len() <= MAX_SESSIONS);
        }
    }
}
