use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use garage_events::{
    env::System,
    event::Recorded,
    game::Placing,
    id::{PartyId, PlayerId, SessionId},
    inventory::{self, CarActivated, Event, RewardGranted},
    jetstream::JetStreamLog,
    log::{Append, AppendError, Decision, Head, Load, Log, Party, Player, ReadError, Session},
    subject::Aggregate,
    svc::Command,
};
use garage_inventory::{
    mysql::{
        self,
        commands::execute,
        outbox::{self, Cursor},
    },
    outbox::{PublishError, publish},
    pay,
};
use sqlx::MySqlPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    nats::{Nats, history},
    support::{count, empty_database, player, pool, until},
};

/// A round of a publisher that starts with the first player.
async fn round<L: Log>(pool: &MySqlPool, log: &L) -> Result<usize, PublishError> {
    garage_inventory::outbox::round(pool, log, &mut Cursor::default()).await
}

const OUTBOX_ROWS: &str = "SELECT COUNT(*) FROM outbox";

async fn win(pool: &MySqlPool, session: u128, winner: &PlayerId) {
    let first = Placing { player: winner.clone(), place: 1, time_ms: Some(9_000), joined: true };
    // The opponent did not join, so that only the winner gets an event.
    let second = Placing { player: player("absent"), place: 2, time_ms: None, joined: false };
    pay(pool, SessionId::new(Uuid::from_u128(session)), &[first, second], &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_players_events_are_published_in_the_order_they_were_decided() {
    let (pool, nats) = (pool().await, Nats::start().await);
    let log = nats.log().await;
    let anna = player("anna");
    win(&pool, 1, &anna).await;
    sqlx::query("INSERT INTO owned_cars (player, car) VALUES ('anna', 'vixen')").execute(&pool).await.unwrap();
    execute(&pool, &anna, None, &Command::Activate { car: "vixen".parse().unwrap() }).await.unwrap();
    let rows = crate::support::outbox(&pool).await;
    assert_eq!(rows.len(), 2);

    assert_eq!(round(&pool, &log).await.unwrap(), 1, "a round publishes one event per player");
    assert_eq!(round(&pool, &log).await.unwrap(), 1);
    assert_eq!(round(&pool, &log).await.unwrap(), 0);
    assert_eq!(count(&pool, OUTBOX_ROWS).await, 0);

    let history = history(&log, &anna).await;
    let session = SessionId::new(Uuid::from_u128(1));
    let events: Vec<_> = history.iter().map(|recorded| recorded.event.clone()).collect();
    assert_eq!(
        events,
        [
            Event::from(RewardGranted { session, place: 1, amount: 100, balance: 1_100 }),
            Event::from(CarActivated { car: "vixen".parse().unwrap() })
        ]
    );
    assert!(history.iter().map(|recorded| recorded.id).eq(rows.iter().map(|row| row.id)));
    assert!(history.iter().map(|recorded| recorded.n).eq([1, 2]));
    assert_eq!(history[0].correlation, session.uuid());
}

/// A log that injects one fault into a publisher: lost outcomes, refusals, or a concurrent publisher.
#[derive(Clone)]
struct Faulty {
    log: JetStreamLog,
    pool: MySqlPool,
    fault: Fault,
    injected: Arc<AtomicBool>,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// The event is stored, but the publisher gets an error, as if it had died before it deleted the row.
    OutcomeLost,
    /// Another publisher appends and deletes the row after this one has read the aggregate's last event.
    OvertakenAfterRead,
    /// Another publisher appends and deletes this row and the next one before this one reads the aggregate's last
    /// event.
    OvertakenTwiceBeforeRead,
    /// Another publisher appends and deletes the row after this one has checked that it still exists.
    OvertakenBeforeAppend,
    /// The log refuses the event.
    Refused,
}

impl Faulty {
    fn new(log: &JetStreamLog, pool: &MySqlPool, fault: Fault) -> Self {
        Self { log: log.clone(), pool: pool.clone(), fault, injected: Arc::default() }
    }

    /// Whether to inject this fault now. True once.
    fn inject(&self, fault: Fault) -> bool {
        self.fault == fault && !self.injected.swap(true, Ordering::SeqCst)
    }

    /// Appends and deletes the oldest row, like another publisher.
    async fn overtake(&self) {
        let row = outbox::due(&self.pool, &mut Cursor::default(), 1).await.unwrap().remove(0).unwrap();
        let last = self.log.inventory(&row.player).await.unwrap();
        let head = last.map(|last| Head { seq: last.seq, n: last.n }).unwrap_or_default();
        let aggregate = Aggregate::Inventory(row.player.clone());
        let decision =
            Decision::new(&System, row.correlation, None).change_with_id(row.event_id, aggregate, head, &row.event);
        self.log.append(decision).await.unwrap();
        outbox::delete(&self.pool, &[row.id]).await.unwrap();
    }
}

impl Load for Faulty {
    async fn player(&self, id: &PlayerId) -> Result<Player, ReadError> {
        self.log.player(id).await
    }

    async fn party(&self, id: PartyId) -> Result<Party, ReadError> {
        self.log.party(id).await
    }

    async fn session(&self, id: SessionId) -> Result<Session, ReadError> {
        self.log.session(id).await
    }

    async fn inventory(&self, id: &PlayerId) -> Result<Option<Recorded<inventory::Event>>, ReadError> {
        if self.inject(Fault::OvertakenTwiceBeforeRead) {
            self.overtake().await;
            self.overtake().await;
        }
        let last = self.log.inventory(id).await;
        if self.inject(Fault::OvertakenAfterRead) {
            self.overtake().await;
        }
        last
    }
}

impl Append for Faulty {
    async fn append(&self, decision: Decision) -> Result<Vec<u64>, AppendError> {
        if self.inject(Fault::OvertakenBeforeAppend) {
            self.overtake().await;
        }
        if self.inject(Fault::Refused) {
            return Err(AppendError::Refused("too large".into()));
        }
        let stored = self.log.append(decision).await;
        if self.inject(Fault::OutcomeLost) {
            return Err(AppendError::Unavailable("cut".into()));
        }
        stored
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_published_exactly_once_despite_faults() {
    let nats = Nats::start().await;
    let log = nats.log().await;
    for (name, fault) in [
        ("lost", Fault::OutcomeLost),
        ("read", Fault::OvertakenAfterRead),
        ("append", Fault::OvertakenBeforeAppend),
        ("twice", Fault::OvertakenTwiceBeforeRead),
    ] {
        let pool = pool().await;
        let winner = player(name);
        win(&pool, 1, &winner).await;
        win(&pool, 2, &winner).await;
        let faulty = Faulty::new(&log, &pool, fault);
        let first = round(&pool, &faulty).await;
        assert!(faulty.injected.load(Ordering::SeqCst), "{name}");
        assert_eq!(first.is_err(), fault == Fault::OutcomeLost, "{name}: {first:?}");
        while round(&pool, &faulty).await.unwrap() > 0 {}
        let balances: Vec<_> = history(&log, &winner).await.iter().map(balance).collect();
        assert_eq!(balances, [1_100, 1_200], "{name}");
        assert_eq!(count(&pool, OUTBOX_ROWS).await, 0, "{name}");
    }
}

fn balance(recorded: &Recorded<Event>) -> u64 {
    match &recorded.event {
        Event::RewardGranted(granted) => granted.balance,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_publishers_publish_each_event_once_and_in_order() {
    let (pool, nats) = (pool().await, Nats::start().await);
    let stop = CancellationToken::new();
    let mut publishers = Vec::new();
    for _ in 0..3 {
        publishers.push(tokio::spawn(publish(pool.clone(), nats.log().await, stop.clone())));
    }
    let players = ["anna", "bert", "carl", "dora"].map(player);
    for session in 0..12 {
        for winner in &players {
            win(&pool, session, winner).await;
        }
    }
    until("the outbox is empty", async || count(&pool, OUTBOX_ROWS).await == 0).await;
    stop.cancel();
    for publisher in publishers {
        publisher.await.unwrap();
    }
    let log = nats.log().await;
    for winner in &players {
        let balances: Vec<u64> = history(&log, winner).await.iter().map(balance).collect();
        let expected: Vec<u64> = (1..=12).map(|wins| 1_000 + 100 * wins).collect();
        assert_eq!(balances, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_publisher_at_a_time_holds_the_lease() {
    let pool = pool().await;
    let lease = outbox::lease(&pool).await.unwrap().unwrap();
    assert!(outbox::lease(&pool).await.unwrap().is_none());
    drop(lease);
    until("the lease is free again", async || outbox::lease(&pool).await.unwrap().is_some()).await;
}

/// Player and reason of each held row.
async fn held(pool: &MySqlPool) -> Vec<(String, String)> {
    let held = "SELECT player, held_why FROM outbox WHERE held_until > CURRENT_TIMESTAMP(6) ORDER BY id";
    sqlx::query_as(held).fetch_all(pool).await.unwrap()
}

/// Ends the hold of all rows, as if its time had passed.
async fn release(pool: &MySqlPool) {
    let release = "UPDATE outbox SET held_until = CURRENT_TIMESTAMP(6) WHERE held_until IS NOT NULL";
    sqlx::query(release).execute(pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_decoded_delays_only_its_player() {
    let (pool, nats) = (pool().await, Nats::start().await);
    let log = nats.log().await;
    let (anna, bert) = (player("anna"), player("bert"));
    for session in 1..=2 {
        win(&pool, session, &bert).await;
    }
    win(&pool, 1, &anna).await;
    let renamed = "UPDATE outbox SET event_type = ? WHERE player = 'bert' ORDER BY id LIMIT 1";
    sqlx::query(renamed).bind("FutureEvent").execute(&pool).await.unwrap();

    assert_eq!(round(&pool, &log).await.unwrap(), 1);
    assert_eq!(history(&log, &anna).await.len(), 1);
    let [(name, reason)] = held(&pool).await.try_into().unwrap();
    assert!(name == "bert" && reason.contains("FutureEvent"), "{name}: {reason}");
    assert_eq!(outbox::held(&pool).await.unwrap(), 1.0);
    // The player's later row waits too.
    assert_eq!(round(&pool, &log).await.unwrap(), 0);
    assert!(history(&log, &bert).await.is_empty());

    // The next attempt fails as well. The one after it succeeds, as if a newer build had made it.
    release(&pool).await;
    assert_eq!(round(&pool, &log).await.unwrap(), 0);
    assert_eq!(held(&pool).await.len(), 1);
    sqlx::query(renamed).bind("RewardGranted").execute(&pool).await.unwrap();
    release(&pool).await;
    while round(&pool, &log).await.unwrap() > 0 {}
    let balances: Vec<_> = history(&log, &bert).await.iter().map(balance).collect();
    assert_eq!(balances, [1_100, 1_200]);
    assert_eq!(outbox::held(&pool).await.unwrap(), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_player_with_an_unreadable_history_and_many_rows_delays_nobody_else() {
    let (pool, nats) = (pool().await, Nats::start().await);
    let log = nats.log().await;
    let (anna, bert) = (player("anna"), player("bert"));
    let subject = format!("{}reward-granted", Aggregate::Inventory(bert.clone()).filter().trim_end_matches('>'));
    log.context().publish(subject, "not an event".into()).await.unwrap().await.unwrap();
    // More rows than a round has.
    for session in 1..=260 {
        win(&pool, session, &bert).await;
    }
    win(&pool, 1, &anna).await;
    assert_eq!(round(&pool, &log).await.unwrap(), 1);
    assert_eq!(history(&log, &anna).await.len(), 1);
    let [(name, reason)] = held(&pool).await.try_into().unwrap();
    assert!(name == "bert" && reason.contains("message 1 of the log"), "{name}: {reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unpublishable_rows_of_more_players_than_a_round_has_delay_others_by_one_round() {
    let (pool, nats) = (pool().await, Nats::start().await);
    let log = nats.log().await;
    let placings: Vec<_> = (0..260)
        .map(|number| Placing { player: player(&format!("bad-{number}")), place: 1, time_ms: None, joined: true })
        .collect();
    pay(&pool, SessionId::new(Uuid::from_u128(1)), &placings, &[]).await.unwrap();
    sqlx::query("UPDATE outbox SET version = 99").execute(&pool).await.unwrap();
    let zoe = player("zoe");
    win(&pool, 1, &zoe).await;
    let mut cursor = Cursor::default();
    let mut next = async || garage_inventory::outbox::round(&pool, &log, &mut cursor).await.unwrap();
    assert_eq!(next().await, 0, "the unpublishable rows fill the first round");
    assert_eq!(next().await, 1);
    assert_eq!(history(&log, &zoe).await.len(), 1);
    assert_eq!(held(&pool).await.len(), 260);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_the_log_refuses_is_held_and_retried() {
    let (pool, nats) = (pool().await, Nats::start().await);
    let log = nats.log().await;
    let bert = player("bert");
    for session in 1..=2 {
        win(&pool, session, &bert).await;
    }
    let faulty = Faulty::new(&log, &pool, Fault::Refused);
    assert_eq!(round(&pool, &faulty).await.unwrap(), 0);
    let [(name, reason)] = held(&pool).await.try_into().unwrap();
    assert!(name == "bert" && reason.contains("too large"), "{name}: {reason}");
    assert_eq!(round(&pool, &faulty).await.unwrap(), 0);
    release(&pool).await;
    while round(&pool, &faulty).await.unwrap() > 0 {}
    let balances: Vec<_> = history(&log, &bert).await.iter().map(balance).collect();
    assert_eq!(balances, [1_100, 1_200]);
}

/// Doubles a player's rows in the outbox.
async fn double(pool: &MySqlPool, player: &PlayerId) {
    let columns = "player, event_type, version, data, correlation, decided_ms";
    let copy = format!(
        "INSERT INTO outbox ({columns}, event)
         SELECT {columns}, UNHEX(REPLACE(UUID(), '-', '')) FROM outbox WHERE player = ?"
    );
    sqlx::query(sqlx::AssertSqlSafe(copy)).bind(player.as_str()).execute(pool).await.unwrap();
}

/// The players whose rows are due, and how many rows and index entries the server has read to find them.
async fn due(pool: &MySqlPool) -> (Vec<PlayerId>, u64) {
    let read = async || {
        let counters: Vec<(String, String)> =
            sqlx::query_as("SHOW SESSION STATUS LIKE 'Handler_read%'").fetch_all(pool).await.unwrap();
        counters.iter().map(|(_, read)| read.parse::<u64>().unwrap()).sum::<u64>()
    };
    let before = read().await;
    let due = outbox::due(pool, &mut Cursor::default(), 256).await.unwrap();
    let players = due.into_iter().map(|row| row.unwrap().player).collect();
    (players, read().await - before)
}

#[tokio::test(flavor = "multi_thread")]
async fn finding_due_rows_reads_no_more_rows_if_a_player_has_more_of_them() {
    let (_, options) = empty_database().await;
    // The counters belong to a connection, so the pool has one.
    let pool = mysql::pool(options, 1, Duration::from_secs(10));
    mysql::migrate(&pool).await.unwrap();
    let [held, busy, last] = ["a-held", "b-busy", "z-last"].map(player);
    for winner in [&held, &busy, &last] {
        win(&pool, 1, winner).await;
    }
    for _ in 0..9 {
        double(&pool, &held).await;
        double(&pool, &busy).await;
    }
    let oldest: i64 = sqlx::query_scalar("SELECT CAST(MIN(id) AS SIGNED) FROM outbox WHERE player = 'a-held'")
        .fetch_one(&pool)
        .await
        .unwrap();
    outbox::hold(&pool, oldest, "for this test").await.unwrap();
    let expected = vec![busy.clone(), last];
    let (players, with_512) = due(&pool).await;
    assert_eq!(players, expected, "the player whose oldest row is held is left out");
    for _ in 0..3 {
        double(&pool, &held).await;
        double(&pool, &busy).await;
    }
    let (players, with_4096) = due(&pool).await;
    assert_eq!(players, expected);
    assert!(with_4096 <= with_512 + 16, "{with_512} rows read at first, {with_4096} with eight times as many");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_goes_through_all_players_and_starts_again() {
    let pool = pool().await;
    let players = ["anna", "bert", "carl", "dora", "emil"].map(player);
    for winner in &players {
        win(&pool, 1, winner).await;
        win(&pool, 2, winner).await;
    }
    let mut cursor = Cursor::default();
    for part in [&players[..2], &players[2..4], &players[4..], &players[..2]] {
        let due = outbox::due(&pool, &mut cursor, 2).await.unwrap();
        let found: Vec<_> = due.into_iter().map(|row| row.unwrap().player).collect();
        assert_eq!(found, part);
        assert_eq!(cursor.is_at_start(), part.len() == 1);
    }
}
