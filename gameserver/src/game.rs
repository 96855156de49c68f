//! One game, from the first player to the last result: gathers, counts down, runs the race. The one task that touches
//! its state; connections and datagrams reach it as messages.

use std::{future::Future, net::SocketAddr, pin::Pin, time::Duration};

use futures::future::{Fuse, FusedFuture};
use garage_events::{
    game::{Loadout, Placing},
    id::SessionId,
};
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until},
};

use crate::{
    domain::race::{Race, TICK_HZ, Throttle},
    player_slot::PlayerSlot,
    socket::{Event, Outgoing},
    wire::{
        CarState, FromServer, Snapshot, Welcome, close,
        datagram::{INPUT_LEN, Input},
    },
};

/// Between the last player's arrival and the start, so that nobody starts while he still reads.
const COUNTDOWN: Duration = Duration::from_secs(1);

/// Every third step, which is 20 a second: enough to draw a straight road smoothly, and 18 KB/s for 100 players each.
const SNAPSHOT_EVERY: u32 = 3;

/// A game and those who take part.
pub(crate) struct Game {
    session: SessionId,
    loadouts: Vec<Loadout>,
    slots: Vec<PlayerSlot>,
    race: Race,
    distance_m: f64,
    join_timeout: Duration,
    phase: Phase,
}

enum Phase {
    /// Players come; until the deadline, once there is one.
    Gathering(Option<Instant>),
    /// All are there, or nobody waits any longer.
    Countdown(Instant),
    /// Time passes.
    Racing(Interval),
    /// Nothing moves any more.
    Over,
}

impl Game {
    pub(crate) fn new(session: SessionId, loadouts: Vec<Loadout>, options: &crate::Options) -> Self {
        let cars = loadouts.iter().map(|loadout| (loadout.player.clone(), loadout.car.stats));
        let race = Race::new(cars, options.distance_m, options.race_timeout.as_secs_f64());
        let mut slots = Vec::with_capacity(loadouts.len());
        for loadout in &loadouts {
            let slot = PlayerSlot::new(loadout.player.clone(), &slots);
            slots.push(slot);
        }
        Self {
            session,
            loadouts,
            slots,
            race,
            distance_m: options.distance_m,
            join_timeout: options.join_timeout,
            phase: Phase::Gathering(None),
        }
    }

    /// Plays it to its end. `ready` resolves when Garage knows where the server is: before, no player can be expected.
    pub(crate) async fn play<F: Future<Output = ()>>(
        mut self,
        mut events: mpsc::Receiver<Event>,
        udp: UdpSocket,
        mut ready: Pin<&mut Fuse<F>>,
    ) -> Vec<Placing> {
        // One byte more than a datagram of ours, so that a longer one is seen to be longer.
        let mut buffer = [0; INPUT_LEN + 1];
        while !matches!(self.phase, Phase::Over) {
            tokio::select! {
                () = due(&mut self.phase) => self.advance(&udp),
                Some(event) = events.recv() => self.hear(event),
                received = udp.recv_from(&mut buffer) => match received {
                    Ok((length, from)) => self.hear_datagram(buffer.get(..length).unwrap_or_default(), from),
                    Err(error) => tracing::debug!(%error, "datagram not received"),
                },
                () = ready.as_mut(), if !ready.is_terminated() => {
                    if matches!(self.phase, Phase::Gathering(None)) {
                        self.phase = Phase::Gathering(Some(Instant::now() + self.join_timeout));
                    }
                }
            }
        }
        let results = self.race.placings();
        let result = Outgoing::text(&FromServer::Result { results: results.clone() });
        for slot in &mut self.slots {
            slot.send(result.clone());
            slot.send(Outgoing::Close(close::DONE, "the race is over"));
        }
        results
    }

    /// What the clock brings.
    fn advance(&mut self, udp: &UdpSocket) {
        match &self.phase {
            Phase::Gathering(_) => {
                let present = self.slots.iter().filter(|slot| slot.is_linked()).count();
                if present == 0 {
                    tracing::info!("nobody came");
                    self.phase = Phase::Over;
                } else {
                    tracing::info!(present, expected = self.slots.len(), "not everybody came, starting");
                    self.phase = Phase::Countdown(Instant::now() + COUNTDOWN);
                }
            }
            Phase::Countdown(_) => {
                tracing::info!("race started");
                let mut ticks = interval(Duration::from_secs(1) / TICK_HZ);
                // Late steps are made up for, so that race time and real time stay together.
                ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
                self.phase = Phase::Racing(ticks);
                self.broadcast(&FromServer::Start);
            }
            Phase::Racing(_) => {
                self.race.step();
                if self.race.is_over() {
                    tracing::info!(race.ticks = self.race.ticks(), "race over");
                    self.phase = Phase::Over;
                } else if self.race.ticks().is_multiple_of(SNAPSHOT_EVERY) {
                    self.show(udp);
                }
            }
            Phase::Over => {}
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Joined { connection, player, out } => {
                let started = matches!(self.phase, Phase::Racing(_));
                let (session, players) = (self.session, self.loadouts.clone());
                let fresh_id = PlayerSlot::fresh_id(&self.slots);
                let Some(slot) = self.slots.get_mut(player) else { return };
                let (udp_key, udp_id) = slot.link(connection, out, fresh_id);
                let distance_m = self.distance_m;
                let welcome = Welcome { session, udp_key, udp_id, players, tick_hz: TICK_HZ, distance_m };
                slot.send(Outgoing::text(&FromServer::Welcome(welcome)));
                if started {
                    slot.send(Outgoing::text(&FromServer::Start));
                }
                tracing::info!(player.id = %slot.player(), connection, "player joined");
                if matches!(self.phase, Phase::Gathering(_)) && self.slots.iter().all(PlayerSlot::is_linked) {
                    self.phase = Phase::Countdown(Instant::now() + COUNTDOWN);
                }
            }
            Event::Input { connection, player, throttle } => {
                // A connection that was replaced may still have frames under way.
                if self.slots.get(player).is_some_and(|slot| slot.is_linked_by(connection)) {
                    self.race.set_throttle(player, throttle);
                }
            }
            Event::Left { connection, player } => {
                if let Some(slot) = self.slots.get_mut(player)
                    && slot.unlink(connection)
                {
                    tracing::info!(player.id = %slot.player(), connection, "player left");
                }
            }
        }
    }

    /// A datagram that is malformed, forged, replayed or no number moves nothing, and is not answered.
    fn hear_datagram(&mut self, datagram: &[u8], from: SocketAddr) {
        let Some(id) = Input::claimed_id(datagram) else { return };
        let found = self.slots.iter_mut().enumerate().find(|(_, slot)| slot.udp_id() == id);
        if let Some((index, slot)) = found
            && let Some(input) = slot.admit(datagram, from, Instant::now())
            && let Some(throttle) = Throttle::parse(input.throttle)
        {
            self.race.set_throttle(index, throttle);
        }
    }

    /// Tells everybody where the cars are.
    fn show(&mut self, udp: &UdpSocket) {
        let cars = (0..=u8::MAX).zip(self.race.cars()).map(|(index, car)| CarState {
            index,
            position: car.position_m() as f32,
            speed: car.speed_mps() as f32,
        });
        let snapshot = Snapshot { tick: self.race.ticks(), cars: cars.collect() };
        // The same for all, so it is written at most once.
        let mut frame = None;
        let now = Instant::now();
        for slot in &mut self.slots {
            if let Some((address, key)) = slot.datagrams(now) {
                // What the system does not take at once is lost, as datagrams may be; the next one is near.
                let _ = udp.try_send_to(&snapshot.seal(key), address);
            } else if slot.is_linked() {
                let frame = frame.get_or_insert_with(|| Outgoing::text(&FromServer::Snapshot(snapshot.clone())));
                slot.send(frame.clone());
            }
        }
    }

    fn broadcast(&mut self, message: &FromServer) {
        let frame = Outgoing::text(message);
        for slot in &mut self.slots {
            slot.send(frame.clone());
        }
    }
}

/// When the clock has something for this phase.
async fn due(phase: &mut Phase) {
    match phase {
        Phase::Gathering(None) => std::future::pending().await,
        Phase::Gathering(Some(at)) | Phase::Countdown(at) => sleep_until(*at).await,
        Phase::Racing(ticks) => {
            ticks.tick().await;
        }
        Phase::Over => {}
    }
}
