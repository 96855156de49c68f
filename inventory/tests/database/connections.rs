//! Connections that a request leaves behind when nobody waits for it any more.

use std::time::Duration;

use garage_inventory::mysql;
use garage_stack::proxy::Proxy;
use sqlx::{Connection, MySqlExecutor};
use tokio::time::timeout;

use crate::support::{PASSWORD, empty_database, server};

#[tokio::test(flavor = "multi_thread")]
async fn who_is_dropped_while_he_begins_leaves_no_transaction_behind() {
    let (name, _) = empty_database().await;
    let proxy = Proxy::start(([127, 0, 0, 1], server().port).into()).await.unwrap();
    let url = format!("mysql://{name}:{PASSWORD}@{}/{name}", proxy.address());
    let pool = mysql::pool(url.parse().unwrap(), 1, Duration::from_secs(10));
    let mut connection = pool.acquire().await.unwrap();
    let (its, _) = look(&mut *connection).await;

    // The answer to BEGIN comes after a second, and he is gone by then.
    proxy.delay(Duration::from_millis(500));
    assert!(timeout(Duration::from_millis(500), connection.begin()).await.is_err(), "he was to be dropped");
    drop(connection);

    assert_eq!(look(&pool).await, (its, false));
}

/// A connection's id, and whether it has a transaction open.
async fn look(connection: impl MySqlExecutor<'_>) -> (u64, bool) {
    sqlx::query_as("SELECT CONNECTION_ID(), @@in_transaction").fetch_one(connection).await.unwrap()
}
