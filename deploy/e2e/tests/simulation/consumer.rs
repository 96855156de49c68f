//! A durable consumer that instances share, as the server keeps it, and the reactors that read it.

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
use garage_worker::reactor::{Delivery, Failure, Then};
use rand::RngExt;
use time::OffsetDateTime;

use crate::stage::{Process, Stage};

/// How often a reactor says that it is still at it, as the real one does.
const PROGRESS: Duration = Duration::from_secs(2);

/// Messages of which the server may bring any first.
const WINDOW: usize = 3;

#[derive(Clone)]
pub(crate) struct Consumer {
    stage: Stage,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// What is not acknowledged yet, by sequence.
    left: BTreeMap<u64, Message>,
    waiting: Vec<Waker>,
    last: u64,
    redelivered: u64,
    dead: Vec<String>,
}

struct Message {
    delivery: Delivery,
    /// When it comes, again or for the first time.
    due: OffsetDateTime,
}

impl Consumer {
    pub(crate) fn new(stage: &Stage) -> Self {
        Self { stage: stage.clone(), state: Arc::default() }
    }

    /// A message is stored; tells its sequence. Those of another stream come with theirs.
    pub(crate) fn push(&self, seq: Option<u64>, time: OffsetDateTime, subject: String, body: bytes::Bytes) -> u64 {
        let mut state = self.state();
        let seq = seq.unwrap_or(state.last + 1);
        state.last = seq;
        let delivery = Delivery { seq, time, subject, body, delivered: 0 };
        state.left.insert(seq, Message { delivery, due: time });
        state.waiting.drain(..).for_each(Waker::wake);
        seq
    }

    /// The stream has forgotten a message.
    pub(crate) fn forget(&self, seq: u64) {
        self.state().left.remove(&seq);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.state().left.is_empty()
    }

    /// How many deliveries were not the first of their message.
    pub(crate) fn redelivered(&self) -> u64 {
        self.state().redelivered
    }

    /// Subject and error of each message that was given up.
    pub(crate) fn dead(&self) -> Vec<String> {
        self.state().dead.clone()
    }

    /// Has a process react, to so many messages at a time.
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
                            consumer.put_off(seq, ACK_WAIT);
                        }
                    };
                    select(pin!(consumer.handle(delivery, &handler)), pin!(progress)).await;
                }
            });
        }
    }

    /// What one delivery gets, as of the real reactor.
    async fn handle<F, R>(&self, delivery: Delivery, handler: &F)
    where
        F: Fn(Delivery) -> R,
        R: Future<Output = Result<(), Failure>>,
    {
        let seq = delivery.seq;
        // The real one counts in each instance: none of them gives up sooner than this.
        let failed_deliveries = u32::try_from(delivery.delivered - 1).unwrap();
        let mut tries = 0;
        loop {
            let Err(failure) = handler(delivery.clone()).await else {
                return self.answer(move |consumer| drop(consumer.state().left.remove(&seq)));
            };
            tries += 1;
            match failure.then(failed_deliveries, tries) {
                Then::Hold(pause) => self.stage.sleep(pause).await,
                Then::Return(pause) => return self.answer(move |consumer| consumer.put_off(seq, pause)),
                Then::DeadLetter => {
                    let dead_letter = format!("{}: {failure}", delivery.subject);
                    let store = move |consumer: &Self| {
                        let mut state = consumer.state();
                        if state.left.remove(&seq).is_some() {
                            state.dead.push(dead_letter);
                        }
                    };
                    return self.answer(store);
                }
            }
        }
    }

    /// Sends an answer, which may be lost.
    fn answer(&self, effect: impl FnOnce(&Self) + Send + 'static) {
        let consumer = self.clone();
        self.stage.spawn(Process::Outside, async move {
            consumer.stage.hop().await;
            if !consumer.stage.fault(consumer.stage.plan.lost_acks) {
                effect(&consumer);
            }
        });
    }

    /// A message comes again so much later than now, should it not be acknowledged until then.
    fn put_off(&self, seq: u64, pause: Duration) {
        let due = self.stage.now() + pause;
        if let Some(message) = self.state().left.get_mut(&seq) {
            message.due = due;
        }
    }

    /// The next delivery.
    async fn next(&self) -> Delivery {
        poll_fn(|context| {
            let now = self.stage.now();
            let mut state = self.state();
            let due: Vec<u64> =
                state.left.iter().filter(|(_, message)| message.due <= now).map(|(seq, _)| *seq).take(WINDOW).collect();
            if due.is_empty() {
                state.waiting.push(context.waker().clone());
                if let Some(next) = state.left.values().map(|message| message.due).min() {
                    self.stage.wake_at(next, context.waker().clone());
                }
                return Poll::Pending;
            }
            let again = if self.stage.fault(self.stage.plan.duplicates) { Duration::from_millis(20) } else { ACK_WAIT };
            let seq = due[self.stage.draw(|dice| dice.random_range(0..due.len()))];
            let message = state.left.get_mut(&seq).expect("it is due");
            message.due = now + again;
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
