//! A durable consumer that instances share, with the server's behavior, and the reactors that read from it.

use std::{
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Poll, Waker},
    time::Duration,
};

use futures::future::select;
use garage_events::jetstream::setup::ACK_WAIT;
use garage_worker::reactor::{Delivery, Failure, NextStep};
use rand::RngExt;
use time::OffsetDateTime;

use crate::stage::{Process, Stage};

/// How often a reactor reports progress on a message, as the real one does.
const PROGRESS: Duration = Duration::from_secs(2);

/// How many due messages the server may deliver in any order.
const WINDOW: usize = 3;

#[derive(Clone)]
pub(crate) struct Consumer {
    stage: Stage,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The messages that are not acknowledged yet, by sequence.
    pending: BTreeMap<u64, Message>,
    waiting: Vec<Waker>,
    last: u64,
    redelivered: u64,
    dead: Vec<String>,
}

struct Message {
    delivery: Delivery,
    /// When it is delivered, for the first time or again.
    due: OffsetDateTime,
}

impl Consumer {
    pub(crate) fn new(stage: &Stage) -> Self {
        Self { stage: stage.clone(), state: Arc::default() }
    }

    /// Stores a message and returns its sequence. `seq` is given if the message already has one in another stream.
    pub(crate) fn push(&self, seq: Option<u64>, time: OffsetDateTime, subject: String, body: bytes::Bytes) -> u64 {
        let mut state = self.state();
        let seq = seq.unwrap_or(state.last + 1);
        state.last = seq;
        let delivery = Delivery { seq, time, subject, body, delivered: 0 };
        state.pending.insert(seq, Message { delivery, due: time });
        state.waiting.drain(..).for_each(Waker::wake);
        seq
    }

    /// Removes a message that its stream has discarded.
    pub(crate) fn forget(&self, seq: u64) {
        self.state().pending.remove(&seq);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.state().pending.is_empty()
    }

    /// The number of redeliveries.
    pub(crate) fn redelivered(&self) -> u64 {
        self.state().redelivered
    }

    /// Subject and error of each dead letter.
    pub(crate) fn dead(&self) -> Vec<String> {
        self.state().dead.clone()
    }

    /// Starts reactors in a process. They handle up to `concurrency` messages at a time.
    pub(crate) fn react<F, R>(&self, process: Process, concurrency: usize, handler: F)
    where
        F: Fn(Delivery) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Result<(), Failure>> + Send,
    {
        for _ in 0..concurrency {
            let (consumer, handler) = (self.clone(), handler.clone());
            self.stage.spawn(process, async move {
                loop {
                    let delivery = consumer.next().await;
                    consumer.stage.hop().await;
                    let seq = delivery.seq;
                    let progress = async {
                        loop {
                            consumer.stage.sleep(PROGRESS).await;
                            consumer.postpone(seq, ACK_WAIT);
                        }
                    };
                    select(pin!(consumer.handle(delivery, &handler)), pin!(progress)).await;
                }
            });
        }
    }

    /// Handles one delivery like the real reactor.
    async fn handle<F, R>(&self, delivery: Delivery, handler: &F)
    where
        F: Fn(Delivery) -> R,
        R: Future<Output = Result<(), Failure>>,
    {
        let seq = delivery.seq;
        // The real reactor counts failed deliveries per instance, so it stores a dead letter no sooner than this one.
        let failed_deliveries = u32::try_from(delivery.delivered - 1).unwrap();
        let mut tries = 0;
        loop {
            let Err(failure) = handler(delivery.clone()).await else {
                return self.send_ack(move |consumer| drop(consumer.state().pending.remove(&seq)));
            };
            tries += 1;
            match failure.next_step(failed_deliveries, tries) {
                NextStep::Hold(pause) => self.stage.sleep(pause).await,
                NextStep::Return(pause) => return self.send_ack(move |consumer| consumer.postpone(seq, pause)),
                NextStep::DeadLetter => {
                    let dead_letter = format!("{}: {failure}", delivery.subject);
                    let store = move |consumer: &Self| {
                        let mut state = consumer.state();
                        if state.pending.remove(&seq).is_some() {
                            state.dead.push(dead_letter);
                        }
                    };
                    return self.send_ack(store);
                }
            }
        }
    }

    /// Sends an acknowledgement of any kind to the server. It may be lost.
    fn send_ack(&self, effect: impl FnOnce(&Self) + Send + 'static) {
        let consumer = self.clone();
        self.stage.spawn(Process::Outside, async move {
            consumer.stage.hop().await;
            if !consumer.stage.fault(consumer.stage.plan.lost_acks) {
                effect(&consumer);
            }
        });
    }

    /// Redelivers a message after this pause, unless it is acknowledged before then.
    fn postpone(&self, seq: u64, pause: Duration) {
        let due = self.stage.now() + pause;
        if let Some(message) = self.state().pending.get_mut(&seq) {
            message.due = due;
        }
    }

    /// The next delivery.
    async fn next(&self) -> Delivery {
        poll_fn(|context| {
            let now = self.stage.now();
            let mut state = self.state();
            let due: Vec<u64> = state
                .pending
                .iter()
                .filter(|(_, message)| message.due <= now)
                .map(|(seq, _)| *seq)
                .take(WINDOW)
                .collect();
            if due.is_empty() {
                state.waiting.push(context.waker().clone());
                if let Some(next) = state.pending.values().map(|message| message.due).min() {
                    self.stage.wake_at(next, context.waker().clone());
                }
                return Poll::Pending;
            }
            let redelivery =
                if self.stage.fault(self.stage.plan.duplicates) { Duration::from_millis(20) } else { ACK_WAIT };
            let seq = due[self.stage.draw(|rng| rng.random_range(0..due.len()))];
            let message = state.pending.get_mut(&seq).expect("the message is pending");
            message.due = now + redelivery;
            message.delivery.delivered += 1;
            let delivery = message.delivery.clone();
            state.redelivered += u64::from(delivery.delivered > 1);
            Poll::Ready(delivery)
        })
        .await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}
