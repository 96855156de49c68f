//! Hostile game servers, and the only dead letters that may exist after a test.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Mutex, PoisonError},
};

use async_nats::jetstream::Context;
use garage_events::{
    dead_letter::DeadLetter,
    env::{Env, System},
    id::SessionId,
    subject::{DEAD, Report},
};
use garage_stack::{hostile::HostileServer, servers::Nats};

/// The attempts whose NATS user a test uses to flood NATS.
#[derive(Debug, Default)]
pub(crate) struct Hostile(Mutex<HashSet<(SessionId, u32)>>);

impl Hostile {
    /// A hostile process with the NATS user of this attempt's game server.
    pub(crate) fn server(&self, nats: &Nats, session: SessionId, attempt: u32) -> HostileServer {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((session, attempt));
        HostileServer::new(nats, session, attempt, System.now() + time::Duration::MINUTE).unwrap()
    }

    /// Asserts that every dead letter belongs to a hostile attempt, and that no attempt has two.
    pub(crate) async fn assert_no_other_dead_letters(&self, jetstream: &Context) {
        let stream = jetstream.get_stream(DEAD).await.unwrap();
        let state = &stream.cached_info().state;
        let mut found = BTreeSet::new();
        for seq in state.first_sequence..=state.last_sequence {
            let Ok(message) = stream.get_raw_message(seq).await else { continue };
            let dead_letter: DeadLetter = serde_json::from_slice(&message.payload).unwrap();
            let attempt = dead_letter.subject.parse().map(|report: Report| (report.session, report.attempt));
            let hostile = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let expected = attempt.is_ok_and(|attempt| hostile.contains(&attempt) && found.insert(attempt));
            assert!(expected, "dead letter: {dead_letter:?}");
        }
    }
}
