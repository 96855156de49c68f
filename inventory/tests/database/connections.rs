//! Tests that a cancelled request leaves its database connection in a clean state.

use std::time::Duration;

use garage_inventory::mysql;
use garage_stack::proxy::Proxy;
use sqlx::{Connection, MySqlExecutor};
use tokio::time::timeout;

use crate::support::{PASSWORD, empty_database, server};

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_begin_leaves_no_open_transaction() {
    let (name, _) = empty_database().await;
    let proxy = Proxy::start(([127, 0, 0, 1], server().port).into()).await.unwrap();
    let url = format!("mysql://{name}:{PASSWORD}@{}/{name}", proxy.address());
    let pool = mysql::pool(url.parse().unwrap(), 1, Duration::from_secs(10));
    let mut connection = pool.acquire().await.unwrap();
    let (id, _) = state(&mut *connection).await;

    // The proxy delays both directions, so that the answer to BEGIN takes a second. The future is dropped before.
    proxy.delay(Duration::from_millis(500));
    assert!(timeout(Duration::from_millis(500), connection.begin()).await.is_err(), "BEGIN was not cancelled");
    drop(connection);

    assert_eq!(state(&pool).await, (id, false));
}

/// The connection's id, and whether it has an open transaction.
async fn state(connection: impl MySqlExecutor<'_>) -> (u64, bool) {
    sqlx::query_as("SELECT CONNECTION_ID(), @@in_transaction").fetch_one(connection).await.unwrap()
}
