//! Limits for every client.

use std::{num::NonZeroU32, time::Duration};

/// How long each step of a connection may take: the TLS handshake, receiving the head of a request, receiving its body,
/// answering it, and the client's reading of a part of the answer. Twice the time-out of a request to NATS or to another
/// worker (5 s).
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// How long open connections have to finish when the gateway stops. The runtime allows 30 s for the whole worker.
pub(crate) const GRACE: Duration = Duration::from_secs(15);

/// The maximum size of a request's head, in bytes. It is also the size of hyper's read buffer. The token takes at most
/// 8 KiB of it.
pub(crate) const MAX_HEAD: usize = 16 << 10;

/// The maximum size of a request's body, in bytes.
pub(crate) const MAX_BODY: usize = 16 << 10;

/// How long a client with too many waiting commands should wait. Usually, the commands have ended by then.
pub(crate) const RETRY_WAITING: Duration = Duration::from_secs(1);

/// How long the gateway holds an answer back that refuses a request because of a limit. A client that does not wait as it
/// should then sends at most one request per second on each of its connections.
pub(crate) const LIMITED_DELAY: Duration = Duration::from_secs(1);

/// How many requests that no other limit counts, such as those without a valid token, are answered at once on one
/// connection, and how many per second after that. Further ones wait. A client sends a few of them, for example to measure
/// its latency.
pub(crate) const UNCOUNTED_BURST: NonZeroU32 = NonZeroU32::new(200).unwrap();
pub(crate) const UNCOUNTED_PER_SECOND: NonZeroU32 = NonZeroU32::new(50).unwrap();

/// How many messages a client can send at once on a socket, and how many per second after that. A client answers a ping
/// every 5 s, and sends a token now and then.
pub(crate) const MESSAGES_BURST: NonZeroU32 = NonZeroU32::new(100).unwrap();
pub(crate) const MESSAGES_PER_SECOND: NonZeroU32 = NonZeroU32::new(10).unwrap();
