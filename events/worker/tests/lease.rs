//! At most one instance holds a lease at any time.
#![cfg(test)]

use std::time::Duration;

use async_nats::jetstream::{self, Context, stream::Stream};
use garage_events::{
    crash::Point,
    jetstream::setup,
    lease::{self, LeaseEntry},
};
use garage_stack::{
    proxy::Proxy,
    servers::{Nats, Role},
};
use garage_worker::{
    Health,
    lease::{Leases, keep},
};
use tokio::{task::JoinHandle, time::timeout};

const DEADLINE: Duration = Duration::from_secs(120);
const NAME: &str = "matchmaker.ranked";

/// A NATS server with the bucket of leases.
struct Fixture {
    nats: Nats,
    bucket: Stream,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nats = Nats::start(folder.path(), 1).await.unwrap();
        let admin = nats.connect(Role::Admin).await.unwrap();
        setup::init(admin.clone(), 1).await.unwrap();
        let bucket = jetstream::new(admin).get_stream(lease::STREAM).await.unwrap();
        Self { nats, bucket, _folder: folder }
    }

    async fn context(&self) -> Context {
        jetstream::new(self.nats.connect(Role::Matchmaker).await.unwrap())
    }

    /// Whether the entry exists and has at least this revision.
    async fn has_reached(&self, revision: u64) -> bool {
        let last = self.bucket.get_last_raw_message_by_subject(&lease::subject(NAME)).await;
        last.is_ok_and(|entry| entry.sequence >= revision)
    }

    /// The entry's revision, and the holder.
    async fn entry(&self) -> (u64, Option<String>) {
        let message = self.bucket.get_last_raw_message_by_subject(&lease::subject(NAME)).await.unwrap();
        (message.sequence, serde_json::from_slice::<LeaseEntry>(&message.payload).unwrap().holder)
    }
}

/// An instance that may hold the lease.
struct Instance {
    leases: Leases,
    health: Health,
    keeping: JoinHandle<anyhow::Result<()>>,
}

impl Instance {
    /// Starts an instance that only observes the lease.
    fn observing(context: Context) -> Self {
        let health = Health::default();
        let (leases, keeping) = keep(context, vec![NAME.into()], Point::LeaseKept, health.clone());
        Self { leases, health, keeping: tokio::spawn(keeping) }
    }

    /// Starts an instance that competes for the lease.
    fn start(context: Context) -> Self {
        let instance = Self::observing(context);
        instance.leases.compete();
        instance
    }

    fn holds(&self) -> bool {
        self.leases.holds(NAME)
    }

    /// Whether it has read from the entry that another instance holds the lease.
    fn sees_another_holder(&self) -> bool {
        let (_, text) = self.health.report();
        text.lines().any(|line| line.contains("held by ") && !line.ends_with("held by this instance"))
    }

    async fn until_it_holds(&mut self) {
        let held = async {
            while !self.holds() {
                self.leases.changed().await;
            }
        };
        timeout(DEADLINE, held).await.expect("it holds the lease in time");
    }

    /// Shuts down cleanly, which releases the lease.
    async fn end(self) {
        drop(self.leases);
        timeout(DEADLINE, self.keeping).await.unwrap().unwrap().unwrap();
    }
}

/// Waits until the condition holds, and checks all the time that not both instances hold the lease.
async fn until(what: &str, instances: [&Instance; 2], condition: impl AsyncFn() -> bool) {
    let waiting = async {
        while !condition().await {
            assert!(!instances.iter().all(|one| one.holds()), "both instances hold the lease");
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, waiting).await.expect(what);
}

#[tokio::test]
async fn one_instance_holds_the_lease_and_releases_it_on_shutdown() {
    let fixture = Fixture::start().await;
    let mut one = Instance::start(fixture.context().await);
    one.until_it_holds().await;
    let mut other = Instance::start(fixture.context().await);
    let (first, holder) = fixture.entry().await;
    until("the lease is renewed", [&one, &other], async || fixture.has_reached(first + 6).await).await;
    assert_eq!(fixture.entry().await.1, holder, "another instance took a lease that is renewed");
    assert!(!other.holds());

    one.end().await;
    other.until_it_holds().await;
    let (_, successor) = fixture.entry().await;
    assert!(successor.is_some() && successor != holder);
    other.end().await;
    assert_eq!(fixture.entry().await.1, None);
}

#[tokio::test]
async fn an_instance_that_is_not_ready_does_not_acquire_the_lease() {
    let fixture = Fixture::start().await;
    let mut observing = Instance::observing(fixture.context().await);
    let mut one = Instance::start(fixture.context().await);
    one.until_it_holds().await;
    one.end().await;
    let other = Instance::start(fixture.context().await);
    until("the other acquires the lease", [&observing, &other], async || other.holds()).await;
    other.end().await;
    assert!(!observing.holds());
    observing.leases.compete();
    observing.until_it_holds().await;
}

#[tokio::test]
async fn another_instance_takes_over_the_lease_of_a_killed_instance() {
    let fixture = Fixture::start().await;
    let mut one = Instance::start(fixture.context().await);
    let mut other = Instance::observing(fixture.context().await);
    one.until_it_holds().await;
    other.leases.compete();
    one.keeping.abort();
    other.until_it_holds().await;
}

#[tokio::test]
async fn a_disconnected_holder_considers_the_lease_lost_before_another_instance_takes_it_over() {
    let fixture = Fixture::start().await;
    let proxy = Proxy::start(fixture.nats.url().trim_start_matches("nats://").parse().unwrap()).await.unwrap();
    let client =
        fixture.nats.options(Role::Matchmaker).unwrap().connect(format!("nats://{}", proxy.address())).await.unwrap();
    let mut one = Instance::start(jetstream::new(client));
    one.until_it_holds().await;
    let other = Instance::start(fixture.context().await);
    let (_, holder) = fixture.entry().await;
    proxy.cut();
    until("the other takes the lease over", [&one, &other], async || other.holds()).await;
    proxy.mend();
    // Renewals that were sent during the cut arrive now. They must have no effect.
    let (first, successor) = fixture.entry().await;
    assert_ne!(successor, holder);
    until("the lease is renewed", [&one, &other], async || fixture.has_reached(first + 6).await).await;
    assert_eq!(fixture.entry().await.1, successor);
    other.end().await;
    one.until_it_holds().await;
}

#[tokio::test]
async fn a_deleted_entry_is_written_again() {
    let fixture = Fixture::start().await;
    let mut one = Instance::start(fixture.context().await);
    one.until_it_holds().await;
    let other = Instance::start(fixture.context().await);
    // An instance that starts after the purge takes the missing entry for one that never existed.
    until("the other knows the holder", [&one, &other], async || other.sees_another_holder()).await;
    let (before, _) = fixture.entry().await;
    fixture.bucket.purge().await.unwrap();
    let renewed = async || fixture.has_reached(before + 6).await && (one.holds() || other.holds());
    until("the lease is held and renewed", [&one, &other], renewed).await;
}

#[tokio::test]
async fn after_a_server_restart_one_instance_holds_the_lease() {
    let mut fixture = Fixture::start().await;
    let mut one = Instance::start(fixture.context().await);
    one.until_it_holds().await;
    let other = Instance::start(fixture.context().await);
    let (before, _) = fixture.entry().await;
    fixture.nats.node(0).unwrap().restart().await.unwrap();
    let renewed = async || fixture.has_reached(before + 6).await && (one.holds() || other.holds());
    until("the lease is held and renewed", [&one, &other], renewed).await;
}
