//! Pods that went away while nobody watched: the log says that they were placed, and no cluster has them.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use garage_events::{
    env::{Env, System},
    event::Recorded,
    id::SessionId,
    jetstream::{follow::Message, reader::Reader},
    log::ReadError,
    session::Event,
    subject::{Aggregate, sessions},
};
use garage_worker::Shutdown;

use super::KubeBackend;
use crate::backend::{Backend, Instance, Name, State};

/// Between two comparisons of the log with the clusters.
const LOOK: Duration = Duration::from_secs(5);

/// The placed instances of open sessions, as the log has them.
struct PlacedInstances {
    reader: Reader,
    /// How long a session lives at the most: what began before is over.
    session: time::Duration,
    /// The next sequence to be read.
    next: Option<u64>,
    attempts: HashMap<SessionId, u32>,
}

impl PlacedInstances {
    /// Reads on to the log's present end.
    async fn read(&mut self) -> Result<(), ReadError> {
        let next = match self.next {
            Some(next) => next,
            None => self.reader.since(System.now() - self.session).await?,
        };
        let last = self.reader.bounds().await?.last;
        let mut range = self.reader.range(vec![sessions("*")], next, last);
        // One that is cut off in its midst is read again: what it comes to is the same.
        while let Some(message) = range.next().await? {
            self.fold(&message);
        }
        self.next = Some(next.max(last + 1));
        Ok(())
    }

    fn fold(&mut self, message: &Message) {
        let Some(Aggregate::Session(session)) = Aggregate::of(&message.subject) else { return };
        // What this build cannot read is not about a pod that it made.
        let Ok(recorded) = Recorded::<Event>::decode(message.seq, message.time, &message.body) else { return };
        match recorded.event {
            Event::PodScheduled(placed) => drop(self.attempts.insert(session, placed.attempt)),
            Event::PodFailed(_) | Event::Closed(_) => drop(self.attempts.remove(&session)),
            Event::Matched(_)
            | Event::PodRequested(_)
            | Event::PodReady(_)
            | Event::Opened(_)
            | Event::Failed(_)
            | Event::Finished(_) => {}
        }
    }
}

/// Compares the log with the clusters until `shutdown`, while this instance leads. What fails is tried again.
pub(crate) async fn watch(
    backend: KubeBackend,
    reader: Reader,
    session: time::Duration,
    leads: impl Fn() -> bool,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let mut placed = PlacedInstances { reader, session, next: None, attempts: HashMap::new() };
    let mut down = false;
    loop {
        if leads() {
            let looked = look(&backend, &mut placed).await;
            if let (Err(error), false) = (&looked, down) {
                tracing::warn!("the log cannot be compared with the cluster; trying again: {error:#}");
            }
            down = looked.is_err();
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Of one that is claimed the secret alone is there.
pub(super) fn has_pod(instance: &Instance) -> bool {
    instance.state != State::Claimed
}

async fn look(backend: &KubeBackend, placed: &mut PlacedInstances) -> anyhow::Result<()> {
    placed.read().await?;
    let listed = backend.listed().await;
    listed.whole?;
    let there: HashSet<_> = listed.instances.iter().filter(|instance| has_pod(instance)).map(|one| one.name).collect();
    let mut missing = HashSet::new();
    for (session, attempt) in &placed.attempts {
        let name = Name { session: *session, attempt: *attempt };
        // A watch may lag; who is asked for the pod by name does not.
        if !there.contains(&name) && backend.find(name).await?.is_none() {
            missing.insert(name);
        }
    }
    backend.miss(missing);
    Ok(())
}
