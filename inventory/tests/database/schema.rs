use garage_inventory::mysql::{self, SchemaError};

use crate::support::{at_once, count, empty, player, pool};

#[tokio::test(flavor = "multi_thread")]
async fn migrating_again_changes_nothing() {
    let pool = pool().await;
    mysql::garage::garage(&pool, &player("anna")).await.unwrap();
    mysql::migrate(&pool).await.unwrap();
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM cars").await, 8);
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM players").await, 1);
    mysql::check_schema(&pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_migrations_succeed() {
    let pool = empty().await;
    let outcomes = at_once(4, |_| {
        let pool = pool.clone();
        async move { mysql::migrate(&pool).await }
    })
    .await;
    for outcome in outcomes {
        outcome.unwrap();
    }
    mysql::check_schema(&pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_database_is_rejected_with_advice() {
    let pool = empty().await;
    let error = mysql::check_schema(&pool).await.unwrap_err();
    assert!(matches!(error, SchemaError::Outdated { missing: 1 }), "{error:?}");
    assert!(error.to_string().contains("garage init"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_without_a_migration_is_rejected() {
    let pool = pool().await;
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = 2").execute(&pool).await.unwrap();
    let error = mysql::check_schema(&pool).await.unwrap_err();
    assert!(matches!(error, SchemaError::Outdated { missing: 2 }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_migration_is_reported() {
    let pool = pool().await;
    sqlx::query("UPDATE _sqlx_migrations SET success = FALSE WHERE version = 2").execute(&pool).await.unwrap();
    let error = mysql::check_schema(&pool).await.unwrap_err();
    assert!(matches!(error, SchemaError::Dirty { version: 2 }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_refuses_a_negative_balance() {
    let pool = pool().await;
    mysql::garage::garage(&pool, &player("anna")).await.unwrap();
    let error = sqlx::query("UPDATE wallets SET balance = -1").execute(&pool).await.unwrap_err();
    assert!(error.to_string().contains("wallets_balance_not_negative"), "{error}");
}
