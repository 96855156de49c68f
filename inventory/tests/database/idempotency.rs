use garage_events::svc::IdempotencyKey;
use garage_inventory::{
    Error,
    mysql::{commands::execute, garage, idempotency},
};

use crate::{
    commands::{buy_car, buy_item, grant, sell_item},
    support::{assert_ledger_balances, at_once, count, player, pool},
};

fn key(text: &str) -> IdempotencyKey {
    text.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_concurrent_commands_with_one_key_are_executed_once() {
    let pool = pool().await;
    let anna = player("anna");
    let outcomes = at_once(64, |_| {
        let (pool, anna) = (pool.clone(), anna.clone());
        async move { execute(&pool, &anna, Some(&key("k")), &buy_item("tyres-street")).await }
    })
    .await;
    let answers: Vec<_> = outcomes.into_iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(answers[0].balance, 900);
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(garage::garage(&pool, &anna).await.unwrap(), answers[0]);
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM outbox").await, 1);
    assert_ledger_balances(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_returns_the_first_answer_even_after_other_changes() {
    let pool = pool().await;
    let anna = player("anna");
    let first = execute(&pool, &anna, Some(&key("k")), &buy_item("paint-midnight")).await.unwrap();
    execute(&pool, &anna, None, &sell_item("paint-midnight")).await.unwrap();
    assert_eq!(execute(&pool, &anna, Some(&key("k")), &buy_item("paint-midnight")).await.unwrap(), first);
    assert_eq!(garage::garage(&pool, &anna).await.unwrap().balance, 975);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_cannot_be_reused_for_another_command_of_the_same_player() {
    let pool = pool().await;
    let (anna, bert) = (player("anna"), player("bert"));
    execute(&pool, &anna, Some(&key("k")), &buy_item("paint-midnight")).await.unwrap();
    for other in [buy_item("paint-red"), sell_item("paint-midnight"), buy_car("ghost")] {
        let error = execute(&pool, &anna, Some(&key("k")), &other).await.unwrap_err();
        assert!(matches!(error, Error::KeyReused), "{error:?}");
    }
    for (player, name) in [(&bert, "k"), (&anna, "K"), (&anna, "k2")] {
        execute(&pool, player, Some(&key(name)), &buy_item("paint-red")).await.unwrap();
    }
    assert_ledger_balances(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_is_not_stored() {
    let pool = pool().await;
    let anna = player("anna");
    let error = execute(&pool, &anna, Some(&key("k")), &buy_car("magpie")).await.unwrap_err();
    assert!(matches!(error, Error::Rejected(_)), "{error:?}");
    grant(&pool, &anna, 1_000).await;
    assert_eq!(execute(&pool, &anna, Some(&key("k")), &buy_car("magpie")).await.unwrap().balance, 800);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_deleted_in_batches_after_24_hours() {
    let pool = pool().await;
    let anna = player("anna");
    for name in ["old", "young"] {
        execute(&pool, &anna, Some(&key(name)), &buy_item("paint-red")).await.unwrap();
    }
    let younger = "UPDATE idempotency SET created_at = CURRENT_TIMESTAMP(6) - INTERVAL 23 HOUR WHERE name = 'young'";
    let older = "UPDATE idempotency SET created_at = CURRENT_TIMESTAMP(6) - INTERVAL 25 HOUR WHERE name = 'old'";
    let more = "INSERT INTO idempotency (player, name, command, answer, created_at)
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600)
        SELECT 'anna', CONCAT('more-', i), '{}', '{}', CURRENT_TIMESTAMP(6) - INTERVAL 30 HOUR FROM n";
    for statement in [younger, older, more] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    assert_eq!(idempotency::delete_old(&pool).await.unwrap(), idempotency::BATCH);
    assert_eq!(idempotency::delete_old(&pool).await.unwrap(), 101);
    assert_eq!(idempotency::delete_old(&pool).await.unwrap(), 0);
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM idempotency WHERE name = 'young'").await, 1);
}
