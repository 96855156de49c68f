//! End-to-end and fault tests on `deploy/stack`: real servers, the workers' real binaries, and players that use only
//! REST and the WebSocket. The tests are in `tests/`. Build the binaries first: `cargo build --workspace`.
