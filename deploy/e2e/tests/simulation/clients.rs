//! Players. They queue at a gateway, sometimes cancel, and otherwise wait for the events of their ticket.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use garage_events::{
    env::Env,
    id::{PlayerId, SessionId, TicketId},
    jetstream::storage::Storage,
    player::{CancelReason, Queued, State},
    session::{Command, NotAccepted},
    subject::Aggregate,
};
use garage_gateway::{AbsenceWait, Problem, QueueStatuses, commands};
use rand::RngExt;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    history,
    net::{Clock, Net},
    stage::{Process, Stage},
    workers::{Shared, call_gateway, queues},
};

/// The maximum number of times that a client sends the same request.
pub(crate) const TRIES: u32 = 6;

/// After this time, a request that has failed is not stored any more.
pub(crate) const LATEST: Duration = Duration::from_secs(60);

/// A successful answer that a client received. The log must agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The ticket exists.
    Queued(TicketId),
    /// The ticket has ended without a match.
    Cancelled(TicketId),
    /// The player has accepted the proposed match.
    Accepted(SessionId, PlayerId),
}

/// All clients.
#[derive(Clone)]
pub(crate) struct Clients {
    shared: Shared,
    /// Each gateway's process and clock.
    gateways: Arc<Vec<(Process, Clock)>>,
    queue_statuses: QueueStatuses,
    notices: Arc<Mutex<Vec<Notice>>>,
    busy: Arc<Mutex<u32>>,
}

impl Clients {
    /// Starts the gateways and the players.
    pub(crate) fn start(shared: &Shared) -> Self {
        let stage = &shared.stage;
        let gateways = Arc::new(Mutex::new(Vec::new()));
        for _ in 0..2 {
            let gateways = Arc::clone(&gateways);
            let clock = shared.clock();
            // A gateway only answers requests.
            stage.add_worker(move |process| {
                let mut gateways = gateways.lock().unwrap();
                if !gateways.iter().any(|(known, _)| *known == process) {
                    gateways.push((process, clock.clone()));
                }
            });
        }
        let gateways = Arc::new(gateways.lock().unwrap().clone());
        let queue_statuses = QueueStatuses::new(&queues(&stage.plan));
        let players = stage.plan.players;
        let busy = Arc::new(Mutex::new(players));
        let clients = Self { shared: shared.clone(), gateways, queue_statuses, notices: Arc::default(), busy };
        let mut number = 0;
        while number < players {
            let fits = stage.plan.match_size > 2 && number + 1 < players;
            let size = if fits && stage.draw(|rng| rng.random_range(0..100)) < stage.plan.groups { 2 } else { 1 };
            let (clients, numbers) = (clients.clone(), number..number + size);
            if size == 2 && stage.draw(|rng| rng.random_range(0..100)) < stage.plan.parties {
                stage.spawn(Process::Outside, clients.play_in_party(numbers));
            } else {
                stage.spawn(Process::Outside, clients.play(numbers));
            }
            number += size;
        }
        clients
    }

    pub(crate) fn are_done(&self) -> bool {
        *self.busy.lock().unwrap() == 0
    }

    pub(crate) fn notices(&self) -> Vec<Notice> {
        self.notices.lock().unwrap().clone()
    }

    pub(crate) fn stage(&self) -> &Stage {
        &self.shared.stage
    }

    pub(crate) fn net(&self) -> Net {
        self.shared.net.clone()
    }

    pub(crate) fn notice(&self, notice: Notice) {
        self.notices.lock().unwrap().push(notice);
    }

    /// Counts players who have played all their rounds.
    pub(crate) fn finish(&self, players: u32) {
        *self.busy.lock().unwrap() -= players;
    }

    /// Lets players play all rounds. Several players are a group.
    async fn play(self, numbers: Range<u32>) {
        let players: Vec<PlayerId> = numbers.clone().map(|number| format!("p{number}").parse().unwrap()).collect();
        for round in 1..=self.stage().plan.rounds {
            self.pause(8_000).await;
            // Derived from player and round, like a ticket from an idempotency key: a retry asks for the same ticket.
            let ticket = TicketId::new(Uuid::from_u64_pair(numbers.start.into(), round.into()));
            if self.queue(&players, numbers.start, ticket).await {
                if self.stage().draw(|rng| rng.random_range(0..100)) < self.stage().plan.cancels {
                    self.pause(12_000).await;
                    let player = self.stage().draw(|rng| rng.random_range(0..players.len()));
                    self.cancel(&players[player], ticket).await;
                }
            } else {
                // A request without an answer may still be stored.
                self.stage().sleep(LATEST).await;
            }
            for player in players.iter().filter(|player| self.has_ticket(player, ticket)) {
                self.until_ended(player, ticket).await;
            }
        }
        self.finish(numbers.end - numbers.start);
    }

    pub(crate) async fn pause(&self, most_ms: u64) {
        let millis = self.stage().draw(|rng| rng.random_range(0..most_ms));
        self.stage().sleep(Duration::from_millis(millis)).await;
    }

    pub(crate) fn gateway(&self) -> (Process, Clock) {
        self.gateways[self.stage().draw(|rng| rng.random_range(0..self.gateways.len()))].clone()
    }

    /// Queues players. Returns whether there is a ticket.
    async fn queue(&self, players: &[PlayerId], number: u32, ticket: TicketId) -> bool {
        for _ in 0..TRIES {
            let (gateway, clock) = self.gateway();
            let (net, queue_statuses, players) =
                (self.shared.net.clone(), self.queue_statuses.clone(), players.to_vec());
            let command = async move {
                let group = if players.len() > 1 { players.clone() } else { Vec::new() };
                let queued = Queued { group, ..queued(ticket, number, clock.now()) };
                let (name, ticket) = (queued.queue.clone(), queued.ticket);
                let (storage, absence_wait) = (Storage::default(), AbsenceWait::default());
                let open = (&queue_statuses, &storage, &absence_wait);
                match &players[..] {
                    [player] => commands::queue(&net, &clock, open, player, (&name, ticket), async { Ok(queued) })
                        .await
                        .map(drop),
                    players => {
                        let queued = async { Ok(vec![queued; players.len()]) };
                        commands::queue_group(&net, &clock, open, (&name, ticket), players, queued).await.map(drop)
                    }
                }
            };
            match call_gateway(self.stage(), gateway, command).await {
                Some(Ok(())) => {
                    self.notice(Notice::Queued(ticket));
                    return true;
                }
                Some(Err(problem)) if problem.is_clients() => return false,
                Some(Err(_)) | None => self.pause(2_000).await,
            }
        }
        false
    }

    async fn cancel(&self, player: &PlayerId, ticket: TicketId) {
        for _ in 0..TRIES {
            let (gateway, clock) = self.gateway();
            let (net, player) = (self.shared.net.clone(), player.clone());
            let command = async move { commands::cancel(&net, &clock, &player, ticket, CancelReason::Player).await };
            match call_gateway::<Result<(), Problem>>(self.stage(), gateway, command).await {
                Some(Ok(())) => return self.notice(Notice::Cancelled(ticket)),
                Some(Err(problem)) if problem.is_clients() => return,
                Some(Err(_)) | None => self.pause(2_000).await,
            }
        }
    }

    pub(crate) fn has_ticket(&self, player: &PlayerId, ticket: TicketId) -> bool {
        let messages = self.shared.net.log.messages(&Aggregate::Player(player.clone()).filter());
        let mut events = messages.iter().map(|message| history::decode(message).expect("an event").event);
        events.any(|event| State::evolve(&event).ticket() == Some(ticket))
    }

    /// Answers a proposed match, perhaps too late.
    async fn answer(self, player: PlayerId, session: SessionId) {
        self.pause(9_000).await;
        let declines = self.stage().draw(|rng| rng.random_range(0..100)) < self.stage().plan.declines;
        for _ in 0..TRIES {
            let (process, app) = self.shared.session_worker();
            let by = player.clone();
            let command = async move {
                let command = match declines {
                    true => Command::Decline { player: by, why: NotAccepted::Declined },
                    false => Command::Accept { player: by, now: app.env.now() },
                };
                app.answer(session, command).await
            };
            match call_gateway(self.stage(), process, command).await {
                Some(Ok(())) if declines => return,
                Some(Ok(())) => return self.notices.lock().unwrap().push(Notice::Accepted(session, player)),
                Some(Err(refusal)) if refusal.code < 500 => return,
                Some(Err(_)) | None => self.pause(2_000).await,
            }
        }
    }

    /// Waits until a ticket has ended. Answers the matches that are proposed before.
    pub(crate) async fn until_ended(&self, player: &PlayerId, ticket: TicketId) {
        let mut follow = self.shared.net.log.follow(vec![Aggregate::Player(player.clone()).filter()], 1);
        loop {
            let message = follow.next().await;
            let event = history::decode(&message).expect("an event").event;
            match State::evolve(&event) {
                State::Idle { ticket: Some(ended), .. } if ended == ticket => return,
                State::Proposed(proposed) if proposed.queued.ticket == ticket => {
                    let answering = self.clone().answer(player.clone(), proposed.session);
                    self.stage().spawn(Process::Outside, answering);
                }
                _ => {}
            }
        }
    }
}

/// The request of a player with this number.
pub(crate) fn queued(ticket: TicketId, number: u32, now: OffsetDateTime) -> Queued {
    Queued {
        ticket,
        queue: "ranked".parse().unwrap(),
        // One player has a rank that matches no other player.
        rank: if number == 7 { 5_000 } else { 10 },
        latencies: [("eu".parse().unwrap(), 20)].into(),
        attributes: [].into(),
        group: Vec::new(),
        waiting_since: now,
        expires_at: now + time::Duration::seconds(30),
        requeues: 0,
        absences: 0,
        party: None,
    }
}
