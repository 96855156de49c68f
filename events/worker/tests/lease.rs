//! One instance at a time holds a lease, and never two.
#![cfg(test)]

use std::time::Duration;

use async_nats::jetstream::{self, Context, stream::Stream};
use garage_events::{
    jetstream::setup,
    lease::{self, Tenure},
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

const DEADLINE: Duration = Duration::from_secs(30);
const NAME: &str = "matchmaker.ranked";

/// A server with the bucket.
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

    /// Whether the entry is there, and has come to a revision.
    async fn has_come_to(&self, revision: u64) -> bool {
        let last = self.bucket.get_last_raw_message_by_subject(&lease::subject(NAME)).await;
        last.is_ok_and(|entry| entry.sequence >= revision)
    }

    /// The entry's revision, and who holds it.
    async fn entry(&self) -> (u64, Option<String>) {
        let message = self.bucket.get_last_raw_message_by_subject(&lease::subject(NAME)).await.unwrap();
        (message.sequence, serde_json::from_slice::<Tenure>(&message.payload).unwrap().holder)
    }
}

/// One that keeps the lease.
struct Instance {
    leases: Leases,
    keeping: JoinHandle<anyhow::Result<()>>,
}

impl Instance {
    fn watching(context: Context) -> Self {
        let (leases, keeping) = keep(context, vec![NAME.into()], Health::default());
        Self { leases, keeping: tokio::spawn(keeping) }
    }

    fn start(context: Context) -> Self {
        let instance = Self::watching(context);
        instance.leases.compete();
        instance
    }

    fn holds(&self) -> bool {
        self.leases.holds(NAME)
    }

    async fn until_it_holds(&mut self) {
        let held = async {
            while !self.holds() {
                self.leases.changed().await;
            }
        };
        timeout(DEADLINE, held).await.expect("it holds the lease in time");
    }

    /// Ends in good order.
    async fn end(self) {
        drop(self.leases);
        timeout(DEADLINE, self.keeping).await.unwrap().unwrap().unwrap();
    }
}

/// Waits until something is so, and sees to it all the time that the lease is not held twice.
async fn until(what: &str, instances: [&Instance; 2], look: impl AsyncFn() -> bool) {
    let looking = async {
        while !look().await {
            assert!(!instances.iter().all(|one| one.holds()), "two hold the lease");
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, looking).await.expect(what);
}

#[tokio::test]
async fn one_holds_it_and_gives_it_back_at_its_end() {
    let fixture = Fixture::start().await;
    let mut one = Instance::start(fixture.context().await);
    one.until_it_holds().await;
    let mut other = Instance::start(fixture.context().await);
    let (first, holder) = fixture.entry().await;
    until("it is renewed", [&one, &other], async || fixture.has_come_to(first + 6).await).await;
    assert_eq!(fixture.entry().await.1, holder, "another took it from who renews it");
    assert!(!other.holds());

    one.end().await;
    other.until_it_holds().await;
    let (_, successor) = fixture.entry().await;
    assert!(successor.is_some() && successor != holder);
    other.end().await;
    assert_eq!(fixture.entry().await.1, None);
}

#[tokio::test]
async fn who_is_not_ready_takes_nothing() {
    let fixture = Fixture::start().await;
    let mut watching = Instance::watching(fixture.context().await);
    let mut one = Instance::start(fixture.context().await);
    one.until_it_holds().await;
    one.end().await;
    let other = Instance::start(fixture.context().await);
    until("the other takes it", [&watching, &other], async || other.holds()).await;
    other.end().await;
    assert!(!watching.holds());
    watching.leases.compete();
    watching.until_it_holds().await;
}

#[tokio::test]
async fn what_a_killed_instance_held_is_taken_over() {
    let fixture = Fixture::start().await;
    let mut one = Instance::start(fixture.context().await);
    let mut other = Instance::watching(fixture.context().await);
    one.until_it_holds().await;
    other.leases.compete();
    one.keeping.abort();
    other.until_it_holds().await;
}

#[tokio::test]
async fn who_is_cut_off_stops_believing_before_another_takes_it_and_is_told_when_he_is_back() {
    let fixture = Fixture::start().await;
    let proxy = Proxy::start(fixture.nats.url().trim_start_matches("nats://").parse().unwrap()).await.unwrap();
    let client =
        fixture.nats.options(Role::Matchmaker).unwrap().connect(format!("nats://{}", proxy.address())).await.unwrap();
    let mut one = Instance::start(jetstream::new(client));
    one.until_it_holds().await;
    let other = Instance::start(fixture.context().await);
    let (_, holder) = fixture.entry().await;
    proxy.cut();
    until("the other takes it", [&one, &other], async || other.holds()).await;
    proxy.mend();
    // What was sent into the cut arrives now, and changes nothing.
    let (first, successor) = fixture.entry().await;
    assert_ne!(successor, holder);
    until("it is renewed", [&one, &other], async || fixture.has_come_to(first + 6).await).await;
    assert_eq!(fixture.entry().await.1, successor);
    other.end().await;
    one.until_it_holds().await;
}

#[tokio::test]
async fn an_entry_that_somebody_removed_is_written_again() {
    let fixture = Fixture::start().await;
    let mut one = Instance::start(fixture.context().await);
    one.until_it_holds().await;
    let other = Instance::start(fixture.context().await);
    let (before, _) = fixture.entry().await;
    fixture.bucket.purge().await.unwrap();
    let renewed = async || fixture.has_come_to(before + 6).await && (one.holds() || other.holds());
    until("it is taken and renewed", [&one, &other], renewed).await;
}

#[tokio::test]
async fn a_server_that_starts_again_finds_one_holder() {
    let mut fixture = Fixture::start().await;
    let mut one = Instance::start(fixture.context().await);
    one.until_it_holds().await;
    let other = Instance::start(fixture.context().await);
    let (before, _) = fixture.entry().await;
    fixture.nats.node(0).unwrap().restart().await.unwrap();
    let renewed = async || fixture.has_come_to(before + 6).await && (one.holds() || other.holds());
    until("it is taken and renewed", [&one, &other], renewed).await;
}
