//! The open parties, as sockets and join codes need them. One ordered read of the log keeps them up to date, and sends
//! each change to the sockets of this gateway.
//!
//! This is only for frames, and to find the party of a code. Every decision on a party loads it from the log.
//!
//! A member's socket misses no change: the socket is registered in the hub first, and then receives the current state.
//! Both this and each change are sent under one lock.

mod index;

use std::{
    future::Future,
    slice,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use garage_events::{
    deadline::changed,
    env::{Env, System},
    event::Recorded,
    id::{PartyId, PlayerId},
    jetstream::{
        JetStreamLog,
        follow::{Follow, Message},
    },
    party::{Disbanding, Event, Leaving},
    subject::{self, Aggregate},
};
use garage_worker::{Health, Shutdown, Stopped, keep_trying, lag};
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use self::index::Index;
use crate::{
    commands,
    frame::Frame,
    hub::Hub,
    party::{View, name},
    problem::Problem,
};

/// How often the parties whose time is over are removed.
const REMOVE_EVERY: Duration = Duration::from_secs(60);

/// How long a request with an unknown code waits until this gateway has read all changes. Usually it has read them
/// already.
const CATCH_UP: Duration = Duration::from_secs(5);

/// How many invitations a socket receives when it opens. Any number of players can invite one player, and their frames
/// must not fill the socket's queue.
const MAX_GREETED: usize = 50;

/// The delay before a member's return is recorded again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The open parties. Clones share them.
#[derive(Clone)]
pub(crate) struct Parties(Arc<Inner>);

struct Inner {
    index: Mutex<Index>,
    /// The sequence of the last event that was read.
    position: watch::Sender<u64>,
    hub: Hub,
    log: JetStreamLog,
    shutdown: Shutdown,
}

impl Parties {
    pub(crate) fn new(hub: Hub, log: JetStreamLog, shutdown: Shutdown) -> Self {
        let (index, position) = (Mutex::default(), watch::Sender::new(0));
        Self(Arc::new(Inner { index, position, hub, log, shutdown }))
    }

    /// Call this when a player's socket is registered in the hub. Sends the player's party and invitations to it. If the
    /// player was away, they are back.
    pub(crate) fn greet(&self, player: &PlayerId) {
        let now = System.now();
        let index = self.index();
        if let Some((id, party)) = index.of(player, now) {
            self.send(player, &Frame::notice("party", &View::of(id, party, now)));
            if party.member(player).is_some_and(|member| member.away) {
                self.bring_back(player.clone());
            }
        }
        for (id, by, expires_at) in index.invitations(player, now).take(MAX_GREETED) {
            self.send(player, &invitation(id, by, expires_at));
        }
    }

    /// The party whose code has this SHA-256. If this gateway knows none, it first reads what other gateways have
    /// appended until now.
    ///
    /// # Errors
    /// A 503 if the log does not answer, or if this gateway lags behind it.
    pub(crate) async fn of_code(&self, sha256: &str) -> Result<Option<PartyId>, Problem> {
        let find = || self.index().of_code(sha256, System.now());
        if let Some(id) = find() {
            return Ok(Some(id));
        }
        let last = self.0.log.last_sequence(subject::PARTIES).await?;
        let (mut position, deadline) = (self.0.position.subscribe(), Instant::now() + CATCH_UP);
        while *position.borrow_and_update() < last {
            changed(&mut position, deadline.saturating_duration_since(Instant::now())).await.map_err(|_late| {
                Problem::unavailable("the gateway has not read all changes of parties yet; try again")
            })?;
        }
        Ok(find())
    }

    /// Takes an event of a party, and sends it to the players whom it concerns.
    fn take(&self, message: &Message) {
        if let Some(Aggregate::Party(id)) = Aggregate::of(&message.subject) {
            match Recorded::<Event>::decode(message.seq, message.time, &message.body) {
                Ok(recorded) => self.apply(id, &recorded.event),
                Err(error) => {
                    metrics::counter!("garage_gateway_skipped_total").increment(1);
                    tracing::warn!(%error, event.seq = message.seq, "cannot decode an event of a party; skipping it");
                }
            }
        }
        // After the change, so that a request which waits for the position finds it.
        self.0.position.send_replace(message.seq);
    }

    fn apply(&self, id: PartyId, event: &Event) {
        let now = System.now();
        let mut index = self.index();
        let before = index.set(id, event, now);
        match event {
            Event::MemberLeft(left) => {
                let why = match left.why {
                    Leaving::Left => "left",
                    Leaving::Kicked => "kicked",
                };
                self.send(&left.player, &left_party(id, why));
            }
            Event::Disbanded(disbanded) => {
                let why = match disbanded.why {
                    Disbanding::Disbanded => "disbanded",
                    Disbanding::Empty => "left",
                };
                disbanded.state.players().for_each(|player| self.send(player, &left_party(id, why)));
            }
            Event::Invited(invited) => {
                if let Some(invitation) = invited.state.invited.get(&invited.player) {
                    self.send(&invited.player, &self::invitation(id, &invitation.by, invitation.expires_at));
                }
            }
            Event::Created(_)
            | Event::MemberJoined(_)
            | Event::LeaderChanged(_)
            | Event::ReadyChanged(_)
            | Event::CodeChanged(_)
            | Event::PartyQueued(_)
            | Event::MemberAway(_)
            | Event::MemberReturned(_) => {}
        }
        let Some(party) = index.get(id) else { return };
        let frame = Frame::notice("party", &View::of(id, party, now));
        for member in &party.members {
            self.send(&member.player, &frame);
            let was_away = before.as_ref().and_then(|before| before.member(&member.player)).is_some_and(|was| was.away);
            if member.away && !was_away && self.0.hub.is_connected(&member.player) {
                self.bring_back(member.player.clone());
            }
        }
    }

    /// Records that a member who was away has a socket again, until this succeeds or the socket ends.
    fn bring_back(&self, player: PlayerId) {
        let parties = self.clone();
        let returning = async move {
            while parties.0.hub.is_connected(&player) {
                match commands::party::returned(&parties.0.log, &System, &player).await {
                    Ok(()) => return,
                    Err(problem) => {
                        tracing::warn!(player.id = %player, ?problem, "cannot record a member's return; retrying");
                    }
                }
                sleep(RETRY_DELAY).await;
            }
        };
        let shutdown = self.0.shutdown.clone();
        tokio::spawn(async move { shutdown.run_until_cancelled(returning).await });
    }

    /// Removes the parties whose time is over, and notifies their members.
    fn remove_expired(&self) {
        let mut index = self.index();
        for (id, party) in index.take_expired(System.now()) {
            party.players().for_each(|player| self.send(player, &left_party(id, "expired")));
        }
    }

    fn send(&self, player: &PlayerId, frame: &Frame) {
        self.0.hub.send(slice::from_ref(player), frame);
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // A panic under the lock can at worst leave a party out of date until its next event.
        self.0.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn invitation(id: PartyId, by: &PlayerId, expires_at: OffsetDateTime) -> Frame {
    let expires_at = expires_at.format(&Rfc3339).unwrap_or_default();
    Frame::notice("party-invitation", &json!({ "party": id, "from": name(by), "expires_at": expires_at }))
}

fn left_party(id: PartyId, why: &str) -> Frame {
    Frame::notice("party-left", &json!({ "party": id, "why": why }))
}

/// Reads the last event of each party. The returned task reads new events until `shutdown`.
///
/// # Errors
/// [`Stopped`], if `shutdown` comes before the first read.
pub(crate) async fn follow(
    parties: Parties,
    health: Health,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
    let shutdown = parties.0.shutdown.clone();
    let log = parties.0.log.clone();
    let beginning = keep_trying("the parties", || async {
        let mut follow = Follow::latest(log.context().clone(), subject::STREAM, vec![subject::PARTIES.to_owned()]);
        follow.connect().await.map_err(anyhow::Error::from_boxed)?;
        anyhow::Ok(follow)
    });
    let mut follow = shutdown.run_until_cancelled(beginning).await.ok_or(Stopped)?;
    health.up("parties");
    Ok(async move {
        let mut remove = interval(REMOVE_EVERY);
        remove.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let taking = async {
            loop {
                tokio::select! {
                    message = follow.next() => parties.take(&message),
                    _ = remove.tick() => parties.remove_expired(),
                }
            }
        };
        let position = || *parties.0.position.borrow();
        let following = async {
            tokio::select! {
                () = taking => {}
                never = lag::watch("parties", &log, subject::PARTIES, position, &health) => never,
            }
        };
        shutdown.run_until_cancelled(following).await;
        Ok(())
    })
}
