//! Waiting for a channel or for a child process, with a limit.
//!
//! A wait without a limit can stop a worker for good: it occupies a reaction, or it holds a lock. So clippy forbids the
//! methods that wait for however long it takes (`.clippy.toml`). This is the only module that may call them, and each
//! function takes the [`Limit`] of its wait.

#![expect(clippy::disallowed_methods, reason = "each function of this module limits the wait")]

use std::{
    future::Future,
    io,
    process::{Child, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    process,
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How often [`exit_blocking`] checks the child process.
const POLL: Duration = Duration::from_millis(5);

/// What ends a wait at the latest.
#[derive(Debug, Clone, Copy)]
pub enum Limit<'a> {
    /// The end of this duration.
    Duration(Duration),
    /// The shutdown of the task. Only for an idle loop: a task that has nothing else to do until a message arrives.
    Shutdown(&'a CancellationToken),
}

impl From<Duration> for Limit<'_> {
    fn from(duration: Duration) -> Self {
        Self::Duration(duration)
    }
}

impl<'a> From<&'a CancellationToken> for Limit<'a> {
    fn from(shutdown: &'a CancellationToken) -> Self {
        Self::Shutdown(shutdown)
    }
}

/// Why a wait ended without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    #[error("the sender has ended")]
    Closed,
    #[error("nothing has arrived in time")]
    TimedOut,
    #[error("shutting down")]
    Shutdown,
}

/// The receiving half of a channel of messages.
pub trait Receiver {
    type Message;

    /// The next message, or `None` when all senders have ended.
    fn next(&mut self) -> impl Future<Output = Option<Self::Message>> + Send;
}

impl<T: Send> Receiver for mpsc::Receiver<T> {
    type Message = T;

    fn next(&mut self) -> impl Future<Output = Option<T>> + Send {
        self.recv()
    }
}

impl<T: Send> Receiver for mpsc::UnboundedReceiver<T> {
    type Message = T;

    fn next(&mut self) -> impl Future<Output = Option<T>> + Send {
        self.recv()
    }
}

/// Receives the next message. A message that has arrived counts, even if the limit is reached. Dropping the future
/// loses no message.
///
/// # Errors
/// When all senders have ended, or the limit is reached first.
pub async fn receive<R: Receiver>(receiver: &mut R, limit: impl Into<Limit<'_>>) -> Result<R::Message, Ended> {
    within(receiver.next(), limit.into()).await?.ok_or(Ended::Closed)
}

/// Waits until a watched value has changed since it was last seen.
///
/// # Errors
/// When the sender has ended, or the limit is reached first.
pub async fn changed<T>(receiver: &mut watch::Receiver<T>, limit: impl Into<Limit<'_>>) -> Result<(), Ended> {
    within(receiver.changed(), limit.into()).await?.or(Err(Ended::Closed))
}

async fn within<T>(wait: impl Future<Output = T>, limit: Limit<'_>) -> Result<T, Ended> {
    let reached = async {
        match limit {
            Limit::Duration(duration) => {
                sleep(duration).await;
                Ended::TimedOut
            }
            Limit::Shutdown(shutdown) => {
                shutdown.cancelled().await;
                Ended::Shutdown
            }
        }
    };
    tokio::select! {
        biased;
        result = wait => Ok(result),
        ended = reached => Err(ended),
    }
}

/// Waits until the child process has ended.
///
/// # Errors
/// With [`io::ErrorKind::TimedOut`] if it still runs after this time, and when its status cannot be read.
pub async fn exit(child: &mut process::Child, limit: Duration) -> io::Result<ExitStatus> {
    let id = child.id();
    timeout(limit, child.wait()).await.unwrap_or_else(|_| Err(still_runs(id, limit)))
}

/// Like [`exit`], but blocks the thread.
///
/// # Errors
/// As for [`exit`].
pub fn exit_blocking(child: &mut Child, limit: Duration) -> io::Result<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            return Err(still_runs(Some(child.id()), limit));
        }
        thread::sleep(POLL);
    }
}

fn still_runs(id: Option<u32>, limit: Duration) -> io::Error {
    let id = id.map_or_else(String::new, |id| format!(" {id}"));
    io::Error::new(io::ErrorKind::TimedOut, format!("process{id} has not ended within {} s", limit.as_secs_f32()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const SHORT: Duration = Duration::from_millis(5);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_has_arrived_is_received_even_at_the_limit() {
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let (sender, mut receiver) = mpsc::channel(2);
        sender.send(1).await.unwrap();
        sender.send(2).await.unwrap();
        assert_eq!(receive(&mut receiver, &shutdown).await, Ok(1));
        assert_eq!(receive(&mut receiver, Duration::ZERO).await, Ok(2));
    }

    #[tokio::test]
    async fn a_wait_ends_with_its_limit_or_its_channel() {
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let (sender, mut receiver) = mpsc::unbounded_channel::<u8>();
        assert_eq!(receive(&mut receiver, &shutdown).await, Err(Ended::Shutdown));
        assert_eq!(receive(&mut receiver, SHORT).await, Err(Ended::TimedOut));
        drop(sender);
        assert_eq!(receive(&mut receiver, LONG).await, Err(Ended::Closed));

        let (sender, mut receiver) = watch::channel(0);
        assert_eq!(changed(&mut receiver, &shutdown).await, Err(Ended::Shutdown));
        assert_eq!(changed(&mut receiver, SHORT).await, Err(Ended::TimedOut));
        sender.send_replace(1);
        assert_eq!(changed(&mut receiver, LONG).await, Ok(()));
        drop(sender);
        assert_eq!(changed(&mut receiver, LONG).await, Err(Ended::Closed));
    }

    #[tokio::test]
    async fn a_wait_for_a_process_that_does_not_end_fails() {
        let mut command = Command::new("sleep");
        command.arg("600");
        let mut child = command.spawn().unwrap();
        let error = exit_blocking(&mut child, SHORT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        child.kill().unwrap();
        assert!(!exit_blocking(&mut child, LONG).unwrap().success());

        let mut child = process::Command::from(command).kill_on_drop(true).spawn().unwrap();
        assert_eq!(exit(&mut child, SHORT).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        child.start_kill().unwrap();
        assert!(!exit(&mut child, LONG).await.unwrap().success());
    }
}
