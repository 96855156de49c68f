//! The rules of the game. No IO, no clock, no randomness: time passes only by [`race::Race::step`].

pub mod race;
