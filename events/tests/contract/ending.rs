//! Deadlines for tests: a wait that takes too long fails.

use std::{future::Future, time::Duration};

/// The maximum duration of a single wait.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// The maximum duration of a whole case. In cases that kill or pause servers, one commit alone may take [`DEADLINE`].
const CASE: Duration = Duration::from_secs(90);

/// Runs a case, and panics if it takes too long.
pub(crate) async fn within<T>(case: impl Future<Output = T>) -> T {
    tokio::time::timeout(CASE, case).await.unwrap_or_else(|_| panic!("the case did not end within {CASE:?}"))
}

/// Waits for a future, and panics if it takes too long.
pub(crate) async fn soon<T>(what: &str, wanted: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, wanted).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// Polls until there is a result, and panics if it takes too long.
pub(crate) async fn until<T>(what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            // Without this time-out, a lost request would block the poll until the client times out.
            if let Ok(Some(found)) = tokio::time::timeout(Duration::from_secs(2), poll()).await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}
