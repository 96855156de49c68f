//! Notifies the players of a proposed match: how many of them have accepted it.
//!
//! Progress is a frame and not an event of each player: the log holds one `Accepted` for each acceptance, and each
//! gateway forwards it to those players of the match who have a socket there. Events of the players would need a
//! message for each acceptance and each player. The cost is that a client that connects later does not receive earlier
//! frames.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
};

use garage_events::{
    env::{Env, System},
    event::Recorded,
    id::{PlayerId, SessionId},
    jetstream::{
        JetStreamLog,
        follow::{Follow, Message},
        reader::Reader,
    },
    queue::MAX_ACCEPTANCE_S,
    session::Event,
    subject::{self, Aggregate},
};
use garage_worker::{Shutdown, Stopped, keep_trying};
use time::{Duration, OffsetDateTime};

use crate::{frame::Frame, hub::Hub};

/// How long a proposal is kept: its longest time, and a minute for a session worker that is late.
const KEPT: Duration = Duration::seconds(MAX_ACCEPTANCE_S as i64 + 60);

/// The open proposals, with their players.
#[derive(Debug, Default)]
struct Proposals {
    players: HashMap<SessionId, Vec<PlayerId>>,
    /// When each of them began, oldest first.
    began: VecDeque<(OffsetDateTime, SessionId)>,
}

impl Proposals {
    /// Takes the next message. For an acceptance, returns the frame and the players who get it.
    fn see(&mut self, message: &Message) -> Option<(Vec<PlayerId>, Frame)> {
        let Some(Aggregate::Session(session)) = Aggregate::of(&message.subject) else { return None };
        // A newer build may write what this one cannot read.
        let recorded = Recorded::<Event>::decode(message.seq, message.time, &message.body).ok()?;
        match recorded.event {
            Event::Proposed(proposed) => {
                self.forget_before(message.time - KEPT);
                self.players.insert(session, proposed.matched.players().cloned().collect());
                self.began.push_back((message.time, session));
                None
            }
            Event::Accepted(accepted) => {
                let is_last = accepted.accepted >= accepted.of;
                let players = match is_last {
                    true => self.players.remove(&session)?,
                    false => self.players.get(&session)?.clone(),
                };
                Some((players, Frame::progress(session, &accepted)))
            }
            _ => None,
        }
    }

    fn forget_before(&mut self, time: OffsetDateTime) {
        while let Some((_, session)) = self.began.front().filter(|(began, _)| *began < time) {
            self.players.remove(session);
            self.began.pop_front();
        }
    }
}

/// Starts to read proposals, including those that are open now. The returned task sends frames until `shutdown`.
///
/// # Errors
/// [`Stopped`], if `shutdown` comes before the first read.
pub(crate) async fn follow(
    hub: Hub,
    log: JetStreamLog,
    shutdown: Shutdown,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
    let beginning = keep_trying("the log", || async {
        let reader = Reader::open(log.context().client(), subject::STREAM).await?;
        let from = reader.since(System.now() - KEPT).await?;
        let filters = ["proposed", "accepted"].map(subject::sessions).to_vec();
        let mut follow = Follow::new(log.context().clone(), subject::STREAM, filters, from);
        follow.connect().await.map_err(anyhow::Error::from_boxed)?;
        anyhow::Ok(follow)
    });
    let mut follow = shutdown.run_until_cancelled(beginning).await.ok_or(Stopped)?;
    Ok(async move {
        shutdown.run_until_cancelled(forward(&hub, &mut follow)).await;
        Ok(())
    })
}

async fn forward(hub: &Hub, follow: &mut Follow) {
    let mut proposals = Proposals::default();
    loop {
        if let Some((players, frame)) = proposals.see(&follow.next().await) {
            hub.send(&players, &frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use garage_events::session::{Accepted, Matched, Member, Proposed, Team};
    use uuid::Uuid;

    use super::*;

    fn message(seconds: i64, number: u128, event: &Event) -> Message {
        use garage_events::event::Event as _;
        let session = SessionId::new(Uuid::from_u128(number));
        let body = serde_json::json!({
            "id": Uuid::nil(), "n": 1, "type": event.type_name(), "v": 1, "at": "2026-01-01T00:00:00Z",
            "correlation": Uuid::nil(), "cause": null, "data": event.data().unwrap(),
        });
        Message {
            seq: 1,
            time: OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds),
            subject: format!("garage.session.{session}.{}", event.token()),
            body: body.to_string().into(),
            headers: None,
            pending: 0,
        }
    }

    fn proposed() -> Event {
        let member = |name: &str| Member {
            player: name.parse().unwrap(),
            ticket: garage_events::id::TicketId::new(Uuid::nil()),
            rank: 0,
        };
        let matched = Matched {
            queue: "ranked".parse().unwrap(),
            region: "eu".parse().unwrap(),
            teams: vec![Team { name: "1".into(), players: vec![member("ann"), member("bob")] }],
            latencies: Default::default(),
            rules: "1".into(),
            pool_seq: 1,
            clock: OffsetDateTime::UNIX_EPOCH,
            seed: 0,
            skipped: Vec::new(),
            left_out: Vec::new(),
            search_steps: None,
        };
        Proposed { accept_by: OffsetDateTime::UNIX_EPOCH, names_decliner: false, matched }.into()
    }

    fn accepted(accepted: u32) -> Event {
        Accepted { player: "ann".parse().unwrap(), accepted, of: 2 }.into()
    }

    #[test]
    fn each_acceptance_is_announced_to_all_players_of_its_match() {
        let mut proposals = Proposals::default();
        assert!(proposals.see(&message(0, 1, &proposed())).is_none());
        let (players, frame) = proposals.see(&message(1, 1, &accepted(1))).unwrap();
        assert_eq!(players.iter().map(PlayerId::as_str).collect::<Vec<_>>(), ["ann", "bob"]);
        let session = SessionId::new(Uuid::from_u128(1));
        let expected = serde_json::json!({
            "type": "match-progress", "data": { "session": session, "accepted": 1, "of": 2 },
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&frame.text).unwrap(), expected);
        assert_eq!(frame.seq, None);
        assert!(proposals.see(&message(1, 2, &accepted(1))).is_none(), "nothing is known about this match");
        assert!(proposals.see(&message(2, 1, &accepted(2))).is_some());
        assert!(proposals.players.is_empty(), "the last acceptance ends the proposal");
    }

    #[test]
    fn a_proposal_that_ended_otherwise_is_forgotten_after_its_longest_time() {
        let mut proposals = Proposals::default();
        proposals.see(&message(0, 1, &proposed()));
        proposals.see(&message(KEPT.whole_seconds(), 2, &proposed()));
        assert_eq!(proposals.players.len(), 2);
        proposals.see(&message(KEPT.whole_seconds() + 1, 3, &proposed()));
        assert_eq!((proposals.players.len(), proposals.began.len()), (2, 2));
    }
}
