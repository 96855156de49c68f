//! REST and WebSocket for game clients.
