//! One thread that polls every future, in an order drawn from a seed, on a clock that jumps from one event to the next.
//! Whatever is drawn is drawn here, so that a seed is a run.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use garage_director::backend::Name;
use garage_events::env::{Env, Simulated};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use time::OffsetDateTime;
use tokio::sync::oneshot;

use crate::plan::Plan;

/// Whose a future is; what ends with its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Process {
    /// The servers, the network, the players: they do not crash.
    Outside,
    /// An instance of a worker, by its place among all.
    Worker(usize),
    /// A game server.
    Game(Name),
}

/// What happened to the processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mishaps {
    pub(crate) crashes: u64,
    pub(crate) pauses: u64,
}

/// Between two commits, in microseconds.
const COMMIT_US: u64 = 5_000;

/// Where all of it runs. Clones are one stage.
#[derive(Clone)]
pub(crate) struct Stage {
    state: Arc<Mutex<State>>,
    rung: Rung,
    pub(crate) env: Simulated,
    pub(crate) plan: Plan,
}

/// The futures that asked to be polled.
type Rung = Arc<Mutex<BTreeSet<u64>>>;

struct State {
    dice: StdRng,
    tasks: BTreeMap<u64, Task>,
    next: u64,
    alarms: BTreeMap<(OffsetDateTime, u64), Waker>,
    workers: Vec<Worker>,
    faulty: bool,
    mishaps: Mishaps,
    polls: u64,
}

struct Task {
    process: Process,
    /// Away while it is polled.
    future: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

#[derive(Clone)]
struct Worker {
    start: Arc<dyn Fn() + Send + Sync>,
    up: bool,
    paused_until: Option<OffsetDateTime>,
}

struct Bell {
    task: u64,
    rung: Rung,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rung.lock().unwrap().insert(self.task);
    }
}

impl Stage {
    pub(crate) fn new(env: Simulated, seed: u64) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let plan = Plan::draw(&mut dice);
        let state = State {
            dice,
            tasks: BTreeMap::new(),
            next: 0,
            alarms: BTreeMap::new(),
            workers: Vec::new(),
            faulty: true,
            mishaps: Mishaps::default(),
            polls: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), rung: Rung::default(), env, plan }
    }

    /// Adds an instance of a worker, and starts it; again whenever it has crashed.
    pub(crate) fn employ(&self, start: impl Fn(Process) + Send + Sync + 'static) {
        let place = self.state().workers.len();
        let start: Arc<dyn Fn() + Send + Sync> = Arc::new(move || start(Process::Worker(place)));
        self.state().workers.push(Worker { start: Arc::clone(&start), up: true, paused_until: None });
        start();
    }

    pub(crate) fn spawn(&self, process: Process, future: impl Future<Output = ()> + Send + 'static) {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.tasks.insert(id, Task { process, future: Some(Box::pin(future)) });
        self.rung.lock().unwrap().insert(id);
    }

    /// Whether there is somebody to answer.
    pub(crate) fn is_up(&self, process: Process) -> bool {
        match process {
            Process::Worker(place) => self.state().workers[place].up,
            Process::Outside | Process::Game(_) => true,
        }
    }

    /// Ends a process, in the midst of whatever it does.
    pub(crate) fn kill(&self, process: Process) {
        let gone: Vec<Task> =
            self.state().tasks.extract_if(.., |_, task| task.process == process).map(|(_, task)| task).collect();
        // Not under the lock: what is dropped may wake others.
        drop(gone);
    }

    /// Ends everything: each future holds the stage, and the stage holds each.
    pub(crate) fn clear(&self) {
        let (tasks, alarms) = {
            let mut state = self.state();
            state.workers.clear();
            (std::mem::take(&mut state.tasks), std::mem::take(&mut state.alarms))
        };
        drop((tasks, alarms));
    }

    pub(crate) fn now(&self) -> OffsetDateTime {
        self.env.now()
    }

    pub(crate) fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.state().dice)
    }

    /// Whether a fault hits that hits so many of a hundred; never once they have stopped.
    pub(crate) fn fault(&self, percent: u32) -> bool {
        let mut state = self.state();
        state.faulty && hit(&mut state.dice, percent, 100)
    }

    pub(crate) fn is_faulty(&self) -> bool {
        self.state().faulty
    }

    /// From now on nothing goes wrong any more.
    pub(crate) fn calm(&self) {
        let mut state = self.state();
        state.faulty = false;
        state.workers.iter_mut().for_each(|worker| worker.paused_until = None);
    }

    pub(crate) fn mishaps(&self) -> Mishaps {
        self.state().mishaps
    }

    /// How often a future was polled.
    pub(crate) fn polls(&self) -> u64 {
        self.state().polls
    }

    pub(crate) async fn sleep(&self, time: Duration) {
        let until = self.now() + time;
        poll_fn(|context| {
            if self.now() >= until {
                return Poll::Ready(());
            }
            self.wake_at(until, context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    pub(crate) fn wake_at(&self, at: OffsetDateTime, waker: Waker) {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.alarms.insert((at, id), waker);
    }

    /// Gives way to others: mostly for no time, sometimes for a while.
    pub(crate) async fn hop(&self) {
        let slow = self.fault(self.plan.slow_hops);
        let micros = self.draw(|dice| if slow { dice.random_range(0..400_000) } else { dice.random_range(0..2_000) });
        self.sleep(Duration::from_micros(micros)).await;
    }

    /// Waits for the next of the moments at which the log begins a commit, so that there are some with several decisions.
    pub(crate) async fn commit(&self) {
        let micros = u64::from(self.now().microsecond()) % COMMIT_US;
        self.sleep(Duration::from_micros(COMMIT_US - micros)).await;
    }

    /// Asks somebody beyond the network. Who asks may be gone before the request arrives, or before the answer does; the
    /// request is carried out all the same.
    pub(crate) async fn ask<T: Send + 'static>(&self, request: impl Future<Output = T> + Send + 'static) -> T {
        let (reply, answer) = oneshot::channel();
        let stage = self.clone();
        self.spawn(Process::Outside, async move {
            stage.hop().await;
            let done = request.await;
            stage.hop().await;
            let _ = reply.send(done);
        });
        answer.await.expect("what is outside answers")
    }

    /// Runs until a time.
    pub(crate) fn run_until(&self, end: OffsetDateTime) {
        loop {
            if let Some(task) = self.pick() {
                self.poll(task);
                continue;
            }
            let mut state = self.state();
            let Some(at) = state.alarms.keys().next().map(|(at, _)| *at).filter(|at| *at <= end) else { break };
            // All of this instant, so that they may come in any order.
            let due: Vec<_> = state.alarms.extract_if(..=(at, u64::MAX), |_, _| true).collect();
            drop(state);
            self.env.advance((at - self.now()).max(time::Duration::ZERO));
            due.into_iter().for_each(|(_, waker)| waker.wake());
        }
        self.env.advance((end - self.now()).max(time::Duration::ZERO));
    }

    /// One of the futures that asked to be polled.
    fn pick(&self) -> Option<u64> {
        let mut rung = self.rung.lock().unwrap();
        if rung.is_empty() {
            return None;
        }
        let place = self.state().dice.random_range(0..rung.len());
        let task = rung.iter().nth(place).copied()?;
        rung.remove(&task);
        Some(task)
    }

    fn poll(&self, id: u64) {
        let waker = Waker::from(Arc::new(Bell { task: id, rung: Arc::clone(&self.rung) }));
        let mut state = self.state();
        state.polls += 1;
        let Some(process) = state.tasks.get(&id).map(|task| task.process) else { return };
        if let Some(until) = state.paused(process).filter(|until| *until > self.env.now()) {
            drop(state);
            self.wake_at(until, waker);
            return;
        }
        let Some(mut future) = state.tasks.get_mut(&id).and_then(|task| task.future.take()) else { return };
        drop(state);
        let done = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let mut state = self.state();
        if done {
            state.tasks.remove(&id);
        } else if let Some(task) = state.tasks.get_mut(&id) {
            task.future = Some(future);
        }
        drop(state);
        if let Process::Worker(place) = process {
            self.mishap(place);
        }
    }

    /// A worker has come to a point where it waits for something: it may come no further.
    fn mishap(&self, place: usize) {
        let Plan { crashes, pauses, .. } = self.plan;
        let mut state = self.state();
        if !state.faulty || !state.workers[place].up {
            return;
        }
        if hit(&mut state.dice, crashes, 10_000) {
            state.mishaps.crashes += 1;
            state.workers[place].up = false;
            let down = Duration::from_millis(state.dice.random_range(0..8_000));
            drop(state);
            self.kill(Process::Worker(place));
            let stage = self.clone();
            self.spawn(Process::Outside, async move {
                stage.sleep(down).await;
                let start = {
                    let worker = &mut stage.state().workers[place];
                    (worker.up, worker.paused_until) = (true, None);
                    Arc::clone(&worker.start)
                };
                start();
            });
        } else if hit(&mut state.dice, pauses, 10_000) {
            state.mishaps.pauses += 1;
            let until = self.env.now() + Duration::from_millis(state.dice.random_range(0..15_000));
            state.workers[place].paused_until = Some(until);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn paused(&self, process: Process) -> Option<OffsetDateTime> {
        match process {
            Process::Worker(place) => self.workers[place].paused_until,
            Process::Outside | Process::Game(_) => None,
        }
    }
}

/// Whether it is one of so many in a whole.
fn hit(dice: &mut impl Rng, of: u32, whole: u32) -> bool {
    of > 0 && dice.random_range(0..whole) < of
}
