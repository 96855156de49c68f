//! Matches waiting players by rank and latency.
