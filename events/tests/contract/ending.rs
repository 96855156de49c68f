//! Deadlines: what does not end by itself fails.

use std::{future::Future, time::Duration};

/// How long anything that is waited for may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// How long a case may take that kills or pauses servers: the outcome of a commit alone may take [`DEADLINE`].
const CASE: Duration = Duration::from_secs(90);

/// Runs a whole case.
pub(crate) async fn within<T>(case: impl Future<Output = T>) -> T {
    tokio::time::timeout(CASE, case).await.unwrap_or_else(|_| panic!("the case did not end within {CASE:?}"))
}

/// Waits for one thing.
pub(crate) async fn soon<T>(what: &str, wanted: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, wanted).await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

/// Looks again and again until there is something.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            // A request that was lost would otherwise hold up the look for as long as the client waits.
            if let Ok(Some(found)) = tokio::time::timeout(Duration::from_secs(2), look()).await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}
