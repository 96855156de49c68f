//! Finds lost pods: the log says that they are placed, but no cluster has them. They disappeared while no director was
//! watching.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures::{StreamExt, stream};
use garage_events::{
    env::{Env, System},
    event::Recorded,
    id::SessionId,
    jetstream::{follow::Message, reader::Reader},
    log::ReadError,
    session::{Event, Limits},
    subject::{Aggregate, sessions},
};
use garage_worker::Shutdown;

use super::KubeBackend;
use crate::backend::{Backend, Instance, Name, State};

/// Time between two comparisons of the log with the clusters.
const INTERVAL: Duration = Duration::from_secs(5);

/// Pods looked up at the same time.
const CONCURRENCY: usize = 16;

/// The instances of open sessions that are placed according to the log.
struct PlacedInstances {
    reader: Reader,
    /// The next sequence to read. `None` before the first read.
    next: Option<u64>,
    /// The placed attempt of each session.
    attempts: HashMap<SessionId, u32>,
}

impl PlacedInstances {
    /// Reads the log up to its current end.
    async fn read(&mut self) -> Result<(), ReadError> {
        let next = match self.next {
            Some(next) => next,
            // Older sessions are over.
            None => self.reader.since(System.now() - Limits::MAX_SESSION).await?,
        };
        let last = self.reader.bounds().await?.last;
        let mut range = self.reader.range(vec![sessions("*")], next, last);
        // After an interruption the whole range is read again. Folding an event twice gives the same result.
        while let Some(message) = range.next().await? {
            self.fold(&message);
        }
        self.next = Some(next.max(last + 1));
        Ok(())
    }

    fn fold(&mut self, message: &Message) {
        let Some(Aggregate::Session(session)) = Aggregate::of(&message.subject) else { return };
        // Events that this build cannot decode are not about its own pods.
        let Ok(recorded) = Recorded::<Event>::decode(message.seq, message.time, &message.body) else { return };
        match recorded.event {
            Event::PodScheduled(placed) => drop(self.attempts.insert(session, placed.attempt)),
            Event::PodFailed(_) | Event::Closed(_) => drop(self.attempts.remove(&session)),
            Event::Proposed(_)
            | Event::Accepted(_)
            | Event::ProposalEnded(_)
            | Event::Matched(_)
            | Event::PodRequested(_)
            | Event::PodReady(_)
            | Event::Opened(_)
            | Event::Failed(_)
            | Event::Finished(_) => {}
        }
    }
}

/// Compares the log with the clusters until `shutdown`, while this director leads. Failed comparisons are retried.
pub(crate) async fn watch(
    backend: KubeBackend,
    reader: Reader,
    leads: impl Fn() -> bool,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let mut placed = PlacedInstances { reader, next: None, attempts: HashMap::new() };
    let mut down = false;
    loop {
        if leads() {
            let compared = compare(&backend, &mut placed).await;
            if let (Err(error), false) = (&compared, down) {
                tracing::warn!("cannot compare the log with the clusters; retrying: {error:#}");
            }
            down = compared.is_err();
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// Whether the instance has a pod. A claimed instance has only its secret.
pub(super) fn has_pod(instance: &Instance) -> bool {
    instance.state != State::Claimed
}

async fn compare(backend: &KubeBackend, placed: &mut PlacedInstances) -> anyhow::Result<()> {
    placed.read().await?;
    let listed = backend.list_existing().await;
    listed.complete?;
    let existing: HashSet<_> =
        listed.instances.iter().filter(|instance| has_pod(instance)).map(|one| one.name).collect();
    let placed = placed.attempts.iter().map(|(session, attempt)| Name { session: *session, attempt: *attempt });
    let missing: Vec<_> = placed.filter(|name| !existing.contains(name)).collect();
    // The watch may lag behind, so ask the API server for each pod by name.
    let found = stream::iter(missing).map(async |name| (name, backend.find(name).await));
    let found: Vec<_> = found.buffer_unordered(CONCURRENCY).collect().await;
    let (mut lost, mut first) = (HashSet::new(), Ok(()));
    for (name, found) in found {
        match found {
            Ok(Some(_)) => {}
            Ok(None) => drop(lost.insert(name)),
            Err(error) => {
                // Without an answer about this pod, it stays what it was.
                lost.extend(backend.is_lost(name).then_some(name));
                first = first.and(Err(error.0));
            }
        }
    }
    backend.set_lost_pods(lost);
    first
}
