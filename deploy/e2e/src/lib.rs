//! End-to-end and fault tests over deploy/stack: real servers, the workers' real binaries, and players who know REST and
//! the WebSocket only. They are in `tests/e2e`; the binaries must have been built before (`cargo build --workspace`).
