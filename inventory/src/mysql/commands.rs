//! Executes players' commands. Each command is one transaction: it reads what the player owns, applies the rule, and
//! writes the changes, the ledger entry, the outbox events and the answer under the idempotency key.

use std::collections::BTreeSet;

use garage_events::{
    crash::Point,
    event::Event as _,
    id::PlayerId,
    inventory::Event,
    svc::{Command, Garage, IdempotencyKey},
};
use sqlx::{MySqlConnection, MySqlPool};

use super::{
    catalogue, commit,
    garage::{no_active_car, read_garage},
    idempotency, ledger, lock, outbox,
    players::introduce,
    retrying,
};
use crate::{
    domain::store::{self, Outcome},
    error::Error,
};

/// Executes a player's command and returns what the player owns afterwards. With an idempotency key the command is
/// executed once, and a repeat returns the first answer. Rejections are not stored: a repeat is decided again.
///
/// # Errors
/// [`Error::Rejected`] or [`Error::KeyReused`]; for the others see [`Error`].
pub async fn execute(
    pool: &MySqlPool,
    player: &PlayerId,
    key: Option<&IdempotencyKey>,
    command: &Command,
) -> Result<Garage, Error> {
    introduce(pool, &BTreeSet::from([player])).await?;
    retrying(|| execute_once(pool, player, key, command)).await
}

async fn execute_once(
    pool: &MySqlPool,
    player: &PlayerId,
    key: Option<&IdempotencyKey>,
    command: &Command,
) -> Result<Garage, Error> {
    let mut transaction = pool.begin().await?;
    lock(&mut transaction, [player]).await?;
    if let Some(key) = key
        && let Some(answer) = idempotency::find(&mut transaction, player, key, command).await?
    {
        return Ok(answer);
    }
    let before = read_garage(&mut transaction, player).await?.ok_or_else(|| no_active_car(player))?;
    let events = decide(&mut transaction, &before, command).await??;
    let after = if events.is_empty() {
        before
    } else {
        for event in &events {
            write(&mut transaction, player, event).await?;
        }
        let events: Vec<_> = events.into_iter().map(|event| (player, event)).collect();
        outbox::put(&mut transaction, None, &events).await?;
        read_garage(&mut transaction, player).await?.ok_or_else(|| no_active_car(player))?
    };
    if let Some(key) = key {
        idempotency::store(&mut transaction, player, key, command, &after).await?;
    }
    commit(Point::CommandExecuted, transaction).await?;
    Ok(after)
}

async fn decide(connection: &mut MySqlConnection, garage: &Garage, command: &Command) -> Result<Outcome, Error> {
    Ok(match command {
        Command::BuyCar { car } => store::buy_car(garage, car, catalogue::car(connection, car).await?),
        Command::SellCar { car } => store::sell_car(garage, car, catalogue::car(connection, car).await?),
        Command::BuyItem { item } => store::buy_item(garage, item, catalogue::item(connection, item).await?),
        Command::SellItem { item } => store::sell_item(garage, item, catalogue::item(connection, item).await?),
        Command::Mount { car, slot, item } => {
            let slots = catalogue::slots(connection, car).await?;
            store::mount(garage, (car, slot), item, &slots, catalogue::fits(connection, item).await?)
        }
        Command::Unmount { car, slot } => store::unmount(garage, car, slot, &catalogue::slots(connection, car).await?),
        Command::Activate { car } => store::activate(garage, car),
    })
}

/// Applies an event to the tables.
async fn write(connection: &mut MySqlConnection, player: &PlayerId, event: &Event) -> Result<(), Error> {
    let id = player.as_str();
    let query = match event {
        Event::CarPurchased(bought) => {
            ledger::debit(connection, player, event.token(), bought.car.as_str(), bought.price, bought.balance).await?;
            sqlx::query("INSERT INTO owned_cars (player, car) VALUES (?, ?)").bind(id).bind(bought.car.as_str())
        }
        Event::CarSold(sold) => {
            ledger::credit(connection, player, event.token(), sold.car.as_str(), sold.price, sold.balance).await?;
            sqlx::query("DELETE FROM owned_cars WHERE player = ? AND car = ?").bind(id).bind(sold.car.as_str())
        }
        Event::ItemPurchased(bought) => {
            ledger::debit(connection, player, event.token(), bought.item.as_str(), bought.price, bought.balance)
                .await?;
            let insert = "INSERT INTO owned_items (player, item, quantity) VALUES (?, ?, 1)
                 ON DUPLICATE KEY UPDATE quantity = quantity + 1";
            sqlx::query(insert).bind(id).bind(bought.item.as_str())
        }
        Event::ItemSold(sold) => {
            let item = sold.item.as_str();
            ledger::credit(connection, player, event.token(), item, sold.price, sold.balance).await?;
            // A row with quantity 0 must not exist. Exactly one of these two statements matches a row.
            let last = "DELETE FROM owned_items WHERE player = ? AND item = ? AND quantity = 1";
            sqlx::query(last).bind(id).bind(item).execute(&mut *connection).await?;
            let one = "UPDATE owned_items SET quantity = quantity - 1 WHERE player = ? AND item = ? AND quantity > 1";
            sqlx::query(one).bind(id).bind(item)
        }
        Event::ItemMounted(mounted) => {
            sqlx::query("INSERT INTO mounted_items (player, car, slot, item) VALUES (?, ?, ?, ?)")
                .bind(id)
                .bind(mounted.car.as_str())
                .bind(mounted.slot.as_str())
                .bind(mounted.item.as_str())
        }
        Event::ItemUnmounted(unmounted) => {
            sqlx::query("DELETE FROM mounted_items WHERE player = ? AND car = ? AND slot = ?")
                .bind(id)
                .bind(unmounted.car.as_str())
                .bind(unmounted.slot.as_str())
        }
        Event::CarActivated(activated) => {
            sqlx::query("UPDATE active_cars SET car = ? WHERE player = ?").bind(activated.car.as_str()).bind(id)
        }
        // No command causes these. `rewards` writes them, for all players of a session in one transaction.
        Event::RatingChanged(_) | Event::RewardGranted(_) => return Ok(()),
    };
    query.execute(connection).await?;
    Ok(())
}
