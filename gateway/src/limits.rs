//! Limits for every client.

use std::time::Duration;

/// How long each step of a connection may take: the TLS handshake, receiving the head of a request, receiving its body,
/// answering it, and the client's reading of a part of the answer. Twice the time-out of a request to NATS or to another
/// worker (5 s).
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// How long open connections have to finish when the gateway stops. The runtime allows 30 s for the whole worker.
pub(crate) const GRACE: Duration = Duration::from_secs(15);

/// The maximum size of a request's head, in bytes. It is also the size of hyper's read buffer. The token takes at most
/// 4 KiB of it.
pub(crate) const MAX_HEAD: usize = 16 << 10;

/// The maximum size of a request's body, in bytes.
pub(crate) const MAX_BODY: usize = 16 << 10;
