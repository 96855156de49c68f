use garage_inventory::mysql::{self, SchemaError};

use crate::support::{at_once, count, empty, player, pool};

#[tokio::test(flavor = "multi_thread")]
async fn migrating_again_changes_nothing() {
    let pool = pool().await;
    let known = player("anna");
    mysql::garage::garage(&pool, &known).await.unwrap();
    mysql::migrate(&pool).await.unwrap();
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM cars").await, 8);
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM players").await, 1);
    mysql::check_schema(&pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn migrating_at_once_is_safe() {
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
async fn an_empty_database_is_refused_with_what_to_do() {
    let pool = empty().await;
    let error = mysql::check_schema(&pool).await.unwrap_err();
    assert!(matches!(error, SchemaError::Outdated { lacking: 1 }), "{error:?}");
    assert!(error.to_string().contains("garage init"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_one_migration_behind_is_refused() {
    let pool = pool().await;
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = 2").execute(&pool).await.unwrap();
    let error = mysql::check_schema(&pool).await.unwrap_err();
    assert!(matches!(error, SchemaError::Outdated { lacking: 2 }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_broke_off_is_told() {
    let pool = pool().await;
    sqlx::query("UPDATE _sqlx_migrations SET success = FALSE WHERE version = 2").execute(&pool).await.unwrap();
    let error = mysql::check_schema(&pool).await.unwrap_err();
    assert!(matches!(error, SchemaError::Dirty { version: 2 }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balance_below_zero_is_refused_by_the_database() {
    let pool = pool().await;
    mysql::garage::garage(&pool, &player("anna")).await.unwrap();
    let error = sqlx::query("UPDATE wallets SET balance = -1").execute(&pool).await.unwrap_err();
    assert!(error.to_string().contains("wallets_balance_not_negative"), "{error}");
}
