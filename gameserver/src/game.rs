//! One game: waits for the players, counts down, runs the race, sends the results. A single task owns its state.
//! Connections send it messages; it reads datagrams itself.

use std::{future::Future, net::SocketAddr, pin::Pin, time::Duration};

use futures::future::{Fuse, FusedFuture};
use garage_events::{
    deadline::receive,
    game::{Loadout, Placing},
    id::SessionId,
};
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::race::{Race, TICK_HZ, Throttle},
    player_slot::PlayerSlot,
    socket::{Event, Outgoing},
    wire::{
        CarState, FromServer, Snapshot, Welcome, close,
        datagram::{INPUT_LEN, Input},
    },
};

/// Time between the arrival of the last player and the start, so that their client can process the welcome first.
const COUNTDOWN: Duration = Duration::from_secs(1);

/// Steps between two snapshots. Every third step is 20 per second: enough for smooth graphics, and with 200 players
/// about 37 KB/s to each.
const SNAPSHOT_INTERVAL: u32 = 3;

/// A game and its players.
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
    /// Waits for players until the deadline. There is no deadline until the ready report is acknowledged.
    Gathering(Option<Instant>),
    /// Waits for the start, at this time.
    Countdown(Instant),
    /// The race runs; the interval triggers its steps.
    Racing(Interval),
    /// The race has ended, or no player came.
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

    /// Runs the game to its end and returns the results. `ready` resolves when Garage has acknowledged the ready
    /// report. Players cannot know the server's address before. Once `stop` is cancelled, no events are handled.
    pub(crate) async fn play<F: Future<Output = ()>>(
        mut self,
        mut events: mpsc::Receiver<Event>,
        udp: UdpSocket,
        mut ready: Pin<&mut Fuse<F>>,
        stop: &CancellationToken,
    ) -> Vec<Placing> {
        // One byte longer than an input datagram, so that a longer datagram is recognised and not cut to a valid
        // length.
        let mut buffer = [0; INPUT_LEN + 1];
        while !matches!(self.phase, Phase::Over) {
            tokio::select! {
                () = wait_for_timer(&mut self.phase) => self.advance(&udp),
                Ok(event) = receive(&mut events, stop) => self.handle_event(event),
                received = udp.recv_from(&mut buffer) => match received {
                    Ok((length, from)) => self.handle_datagram(buffer.get(..length).unwrap_or_default(), from),
                    Err(error) => tracing::debug!(%error, "cannot receive datagram"),
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

    /// Handles the phase's timer: the deadline of the phase, or the next step of the race.
    fn advance(&mut self, udp: &UdpSocket) {
        match &self.phase {
            Phase::Gathering(_) => {
                let connected = self.slots.iter().filter(|slot| slot.is_connected()).count();
                if connected == 0 {
                    tracing::info!("no player joined in time, ending the game");
                    self.phase = Phase::Over;
                } else {
                    tracing::info!(connected, expected = self.slots.len(), "starting without the missing players");
                    self.phase = Phase::Countdown(Instant::now() + COUNTDOWN);
                }
            }
            Phase::Countdown(_) => {
                tracing::info!("race started");
                let mut ticks = interval(Duration::from_secs(1) / TICK_HZ);
                // Catch up on late steps, so that race time keeps up with real time.
                ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
                self.phase = Phase::Racing(ticks);
                self.broadcast(&FromServer::Start);
            }
            Phase::Racing(_) => {
                self.race.step();
                if self.race.is_over() {
                    tracing::info!(race.ticks = self.race.ticks(), "race over");
                    self.phase = Phase::Over;
                } else if self.race.ticks().is_multiple_of(SNAPSHOT_INTERVAL) {
                    self.send_snapshot(udp);
                }
            }
            Phase::Over => {}
        }
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Joined { connection, player, out } => {
                let started = matches!(self.phase, Phase::Racing(_));
                let (session, players) = (self.session, self.loadouts.clone());
                let unused_id = PlayerSlot::unused_id(&self.slots);
                let Some(slot) = self.slots.get_mut(player) else { return };
                let (udp_key, udp_id) = slot.connect(connection, out, unused_id);
                self.race.join(player);
                let distance_m = self.distance_m;
                let welcome = Welcome { session, udp_key, udp_id, players, tick_hz: TICK_HZ, distance_m };
                slot.send(Outgoing::text(&FromServer::Welcome(welcome)));
                if started {
                    slot.send(Outgoing::text(&FromServer::Start));
                }
                tracing::info!(player.id = %slot.player(), connection, "player joined");
                if matches!(self.phase, Phase::Gathering(_)) && self.slots.iter().all(PlayerSlot::is_connected) {
                    self.phase = Phase::Countdown(Instant::now() + COUNTDOWN);
                }
            }
            Event::Input { connection, player, throttle } => {
                // Ignore late input from a connection that has been replaced.
                if self.slots.get(player).is_some_and(|slot| slot.is_connected_by(connection)) {
                    self.race.set_throttle(player, throttle);
                }
            }
            Event::Left { connection, player } => {
                if let Some(slot) = self.slots.get_mut(player)
                    && slot.disconnect(connection)
                {
                    tracing::info!(player.id = %slot.player(), connection, "player left");
                }
            }
        }
    }

    /// Applies an input datagram. Silently ignores datagrams that are malformed, forged or replayed, and inputs that
    /// are not finite.
    fn handle_datagram(&mut self, datagram: &[u8], from: SocketAddr) {
        let Some(id) = Input::claimed_id(datagram) else { return };
        let found = self.slots.iter_mut().enumerate().find(|(_, slot)| slot.udp_id() == id);
        if let Some((index, slot)) = found
            && let Some(input) = slot.open(datagram, from, Instant::now())
            && let Some(throttle) = Throttle::parse(input.throttle)
        {
            self.race.set_throttle(index, throttle);
        }
    }

    /// Sends the state of all cars to all players, by datagram where the server knows an address, else by WebSocket.
    fn send_snapshot(&mut self, udp: &UdpSocket) {
        let cars = (0..=u8::MAX).zip(self.race.cars()).map(|(index, car)| CarState {
            index,
            position: car.position_m() as f32,
            speed: car.speed_mps() as f32,
        });
        let snapshot = Snapshot { tick: self.race.ticks(), cars: cars.collect() };
        // The frame is the same for all players, so serialise it at most once.
        let mut frame = None;
        let now = Instant::now();
        for slot in &mut self.slots {
            if let Some((address, key)) = slot.datagram_target(now) {
                for datagram in snapshot.seal(key) {
                    // If the send buffer is full, this snapshot is lost. The next one follows soon.
                    let _ = udp.try_send_to(&datagram, address);
                }
            } else if slot.is_connected() {
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

/// Waits for the phase's timer.
async fn wait_for_timer(phase: &mut Phase) {
    match phase {
        Phase::Gathering(None) => std::future::pending().await,
        Phase::Gathering(Some(at)) | Phase::Countdown(at) => sleep_until(*at).await,
        Phase::Racing(ticks) => {
            ticks.tick().await;
        }
        Phase::Over => {}
    }
}
