//! This crate has no code. Only its dependencies matter: see Cargo.toml.
