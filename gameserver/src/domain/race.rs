//! A drag race: cars on a straight road, from a standing start, simulated in fixed time steps.
//!
//! The engine's force is `power / speed`, limited by the grip of the tyres (`grip × weight`). Air resistance is
//! `½ ρ · drag area · speed²`. The same inputs at the same steps give exactly the same race.

use std::cmp::Ordering;

use garage_events::{
    game::{Placing, Stats},
    id::PlayerId,
};

/// Steps per second. The rate is fixed, so that the race does not depend on the load of the server.
pub const TICK_HZ: u32 = 60;

/// A quarter mile, in metres.
pub const QUARTER_MILE_M: f64 = 402.336;

/// Standard gravity, m/s².
const GRAVITY: f64 = 9.806_65;

/// Density of air at sea level and 15 °C (International Standard Atmosphere), kg/m³.
const AIR_DENSITY: f64 = 1.225;

/// The position of the accelerator pedal, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Throttle(f64);

impl Throttle {
    /// No acceleration.
    pub const NONE: Self = Self(0.0);

    /// Clamps a player's input to 0..=1. `None` if it is not finite.
    pub fn parse(sent: f32) -> Option<Self> {
        sent.is_finite().then(|| Self(f64::from(sent).clamp(0.0, 1.0)))
    }
}

/// Whether the simulation can handle a car: all stats are finite, drag is not negative, the others are positive.
pub fn drivable(stats: &Stats) -> bool {
    let positive = |x: f64| x.is_finite() && x > 0.0;
    positive(stats.power_kw)
        && positive(stats.mass_kg)
        && positive(stats.grip)
        && stats.drag_m2.is_finite()
        && stats.drag_m2 >= 0.0
}

/// One car on the road.
#[derive(Debug, Clone, PartialEq)]
pub struct Car {
    player: PlayerId,
    stats: Stats,
    throttle: Throttle,
    position_m: f64,
    speed_mps: f64,
    /// Time from the start to the finish line, in seconds. `None` until the car has crossed the line.
    finish_s: Option<f64>,
    /// Whether the player has ever connected.
    joined: bool,
}

impl Car {
    /// Distance from the start line, in metres.
    pub fn position_m(&self) -> f64 {
        self.position_m
    }

    /// Speed, in metres per second.
    pub fn speed_mps(&self) -> f64 {
        self.speed_mps
    }

    /// Time from the start to the finish line, in whole milliseconds, as in the results.
    fn time_ms(&self) -> Option<u64> {
        self.finish_s.map(|s| (s * 1000.0).round() as u64)
    }

    /// Acceleration at the given speed, in m/s².
    fn acceleration(&self, speed: f64) -> f64 {
        let power_w = self.stats.power_kw * 1000.0;
        let tyres = self.stats.grip * self.stats.mass_kg * GRAVITY;
        // Equal to min(power / speed, tyres), but without a division by zero.
        let engine = if tyres * speed > power_w { power_w / speed } else { tyres };
        let air = 0.5 * AIR_DENSITY * self.stats.drag_m2 * speed * speed;
        (engine * self.throttle.0 - air) / self.stats.mass_kg
    }

    /// Moves the car by one step that begins `elapsed_s` seconds after the start.
    fn step(&mut self, elapsed_s: f64, step_s: f64, length_m: f64) {
        // Heun's method: average the acceleration at both ends of the step. At 60 Hz the error over a quarter mile is
        // below a millisecond, so that the result does not depend on the step rate. Euler's method is several
        // milliseconds off.
        let first = self.acceleration(self.speed_mps);
        let guess = (self.speed_mps + first * step_s).max(0.0);
        let second = self.acceleration(guess);
        let speed = (self.speed_mps + 0.5 * (first + second) * step_s).max(0.0);
        let moved = 0.5 * (self.speed_mps + speed) * step_s;
        let position = self.position_m + moved;
        if self.finish_s.is_none() && position >= length_m && moved > 0.0 {
            let part = (length_m - self.position_m) / moved;
            self.finish_s = Some(elapsed_s + part * step_s);
        }
        self.position_m = position;
        self.speed_mps = speed;
    }
}

/// A race that has started.
#[derive(Debug, Clone, PartialEq)]
pub struct Race {
    cars: Vec<Car>,
    length_m: f64,
    step_s: f64,
    ticks: u32,
    limit: u32,
}

impl Race {
    /// Creates a race with the cars at the start line. Cars that have not crossed the finish line `limit_s` seconds
    /// after the start do not finish.
    pub fn new(cars: impl IntoIterator<Item = (PlayerId, Stats)>, length_m: f64, limit_s: f64) -> Self {
        Self::at_rate(cars, length_m, limit_s, TICK_HZ)
    }

    fn at_rate(cars: impl IntoIterator<Item = (PlayerId, Stats)>, length_m: f64, limit_s: f64, hz: u32) -> Self {
        let cars = cars.into_iter().map(|(player, stats)| Car {
            player,
            stats,
            throttle: Throttle::NONE,
            position_m: 0.0,
            speed_mps: 0.0,
            finish_s: None,
            joined: false,
        });
        Self {
            cars: cars.collect(),
            length_m,
            step_s: 1.0 / f64::from(hz),
            ticks: 0,
            // The cast saturates for a limit that is too large.
            limit: (limit_s * f64::from(hz)).ceil() as u32,
        }
    }

    /// The cars, in the order passed to [`Race::new`].
    pub fn cars(&self) -> &[Car] {
        &self.cars
    }

    /// Number of steps since the start.
    pub fn ticks(&self) -> u32 {
        self.ticks
    }

    /// Records that the player of a car has connected. Ignores an index without a car.
    pub fn join(&mut self, index: usize) {
        if let Some(car) = self.cars.get_mut(index) {
            car.joined = true;
        }
    }

    /// Sets the throttle of a car. Ignores an index without a car.
    pub fn set_throttle(&mut self, index: usize, throttle: Throttle) {
        if let Some(car) = self.cars.get_mut(index) {
            car.throttle = throttle;
        }
    }

    /// Advances the race by one time step.
    pub fn step(&mut self) {
        // Computed from the count, not as a running sum, so that rounding errors do not add up.
        let elapsed_s = f64::from(self.ticks) * self.step_s;
        for car in &mut self.cars {
            car.step(elapsed_s, self.step_s, self.length_m);
        }
        self.ticks = self.ticks.saturating_add(1);
    }

    /// Whether all players who joined have finished, or the time limit is reached. So a player who never joins holds
    /// nobody up.
    pub fn is_over(&self) -> bool {
        self.ticks >= self.limit || self.cars.iter().all(|car| car.finish_s.is_some() || !car.joined)
    }

    /// All players in order of place: first the finishers, by time in milliseconds; then the other players who joined,
    /// by distance; then the players who did not join. Equal players are tied: the places are 1, 2, 2, 4.
    pub fn placings(&self) -> Vec<Placing> {
        let mut order: Vec<&Car> = self.cars.iter().collect();
        order.sort_by(|a, b| compare(a, b).then_with(|| a.player.cmp(&b.player)));
        let mut placings: Vec<Placing> = Vec::with_capacity(order.len());
        for (number, car) in (1..).zip(&order) {
            let tied = placings.last().zip(order.get(placings.len().wrapping_sub(1)));
            let tied = tied.filter(|(_, ahead)| compare(ahead, car).is_eq()).map(|(placing, _)| placing.place);
            placings.push(Placing {
                player: car.player.clone(),
                place: tied.unwrap_or(number),
                time_ms: car.time_ms(),
                joined: car.joined,
            });
        }
        placings
    }
}

/// Which of two cars is placed first. The distance counts only if neither finished.
fn compare(a: &Car, b: &Car) -> Ordering {
    match (a.time_ms(), b.time_ms()) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => b.joined.cmp(&a.joined).then_with(|| b.position_m.total_cmp(&a.position_m)),
    }
}

#[cfg(test)]
mod tests;
