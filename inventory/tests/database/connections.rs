//! Tests that a cancelled request leaves its database connection in a clean state.

use std::time::Duration;

use garage_inventory::mysql;
use garage_stack::proxy::Proxy;
use sqlx::{Connection, Executor, MySqlConnection};
use tokio::time::timeout;

use crate::support::{PASSWORD, empty, empty_database, server};

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_begin_leaves_no_open_transaction() {
    let (name, _) = empty_database().await;
    let proxy = Proxy::start(server().address).await.unwrap();
    let url = format!("mysql://{name}:{PASSWORD}@{}/{name}", proxy.address());
    let pool = mysql::pool(url.parse().unwrap(), 1, Duration::from_secs(10));
    let mut connection = pool.acquire().await.unwrap();
    let (id, _) = state(&mut connection).await;

    // The proxy delays both directions, so that the answer to BEGIN takes a second. The future is dropped before.
    proxy.delay(Duration::from_millis(500));
    assert!(timeout(Duration::from_millis(500), connection.begin()).await.is_err(), "BEGIN was not cancelled");
    drop(connection);

    assert_eq!(state(&mut pool.acquire().await.unwrap()).await, (id, false));
}

/// The connection's id, and whether it has an open transaction. A server refuses to change the characteristics of a
/// transaction that has begun.
async fn state(connection: &mut MySqlConnection) -> (u64, bool) {
    let id = sqlx::query_scalar("SELECT CONNECTION_ID()").fetch_one(&mut *connection).await.unwrap();
    (id, connection.execute("SET TRANSACTION READ WRITE").await.is_err())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_is_noticed() {
    let mut connection = empty().await.acquire().await.unwrap();
    assert!(!state(&mut connection).await.1);
    connection.execute("BEGIN").await.unwrap();
    assert!(state(&mut connection).await.1);
}
