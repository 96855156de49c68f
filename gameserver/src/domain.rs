//! The rules of the game. No IO, no clock, no randomness: time advances only in [`race::Race::step`].

pub mod race;
pub mod teams;
