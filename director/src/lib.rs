//! Owns game server instances: starts, finds again, and removes them.
