//! Polls every future in one thread, in an order drawn from a seed. The clock jumps from one event to the next. All
//! random numbers are drawn here, so that a seed determines the run.

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

/// The process that a future belongs to. When a process is killed, its futures are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Process {
    /// The NATS servers, the network and the players. They do not crash.
    Outside,
    /// An instance of a worker, by its index among all instances.
    Worker(usize),
    /// A game server.
    Game(Name),
}

/// How often worker processes crashed and paused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ProcessFaults {
    pub(crate) crashes: u64,
    pub(crate) pauses: u64,
}

/// The time between two commits, in microseconds.
const COMMIT_US: u64 = 5_000;

/// The scheduler of a run. Clones share one state.
#[derive(Clone)]
pub(crate) struct Stage {
    state: Arc<Mutex<State>>,
    woken: Woken,
    pub(crate) env: Simulated,
    pub(crate) plan: Plan,
}

/// The ids of the tasks that are ready to be polled.
type Woken = Arc<Mutex<BTreeSet<u64>>>;

struct State {
    rng: StdRng,
    tasks: BTreeMap<u64, Task>,
    next: u64,
    timers: BTreeMap<(OffsetDateTime, u64), Waker>,
    workers: Vec<Worker>,
    faulty: bool,
    process_faults: ProcessFaults,
    polls: u64,
}

struct Task {
    process: Process,
    /// `None` while it is polled.
    future: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

#[derive(Clone)]
struct Worker {
    start: Arc<dyn Fn() + Send + Sync>,
    up: bool,
    paused_until: Option<OffsetDateTime>,
}

struct TaskWaker {
    task: u64,
    woken: Woken,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.woken.lock().unwrap().insert(self.task);
    }
}

impl Stage {
    pub(crate) fn new(env: Simulated, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let plan = Plan::draw(&mut rng);
        let state = State {
            rng,
            tasks: BTreeMap::new(),
            next: 0,
            timers: BTreeMap::new(),
            workers: Vec::new(),
            faulty: true,
            process_faults: ProcessFaults::default(),
            polls: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), woken: Woken::default(), env, plan }
    }

    /// Adds an instance of a worker and starts it. It is started again whenever it has crashed.
    pub(crate) fn add_worker(&self, start: impl Fn(Process) + Send + Sync + 'static) {
        let index = self.state().workers.len();
        let start: Arc<dyn Fn() + Send + Sync> = Arc::new(move || start(Process::Worker(index)));
        self.state().workers.push(Worker { start: Arc::clone(&start), up: true, paused_until: None });
        start();
    }

    pub(crate) fn spawn(&self, process: Process, future: impl Future<Output = ()> + Send + 'static) {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.tasks.insert(id, Task { process, future: Some(Box::pin(future)) });
        self.woken.lock().unwrap().insert(id);
    }

    /// Whether the process runs and can answer.
    pub(crate) fn is_up(&self, process: Process) -> bool {
        match process {
            Process::Worker(index) => self.state().workers[index].up,
            Process::Outside | Process::Game(_) => true,
        }
    }

    /// Kills a process at its current await points.
    pub(crate) fn kill(&self, process: Process) {
        let dropped: Vec<Task> =
            self.state().tasks.extract_if(.., |_, task| task.process == process).map(|(_, task)| task).collect();
        // Drop the tasks without the lock: dropping may wake other tasks.
        drop(dropped);
    }

    /// Drops all tasks. Futures hold the stage and the stage holds the futures, so nothing would be freed otherwise.
    pub(crate) fn clear(&self) {
        let (tasks, timers) = {
            let mut state = self.state();
            state.workers.clear();
            (std::mem::take(&mut state.tasks), std::mem::take(&mut state.timers))
        };
        drop((tasks, timers));
    }

    pub(crate) fn now(&self) -> OffsetDateTime {
        self.env.now()
    }

    pub(crate) fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.state().rng)
    }

    /// Draws whether a fault occurs, with this probability in percent. After the faults have stopped, always false.
    pub(crate) fn fault(&self, percent: u32) -> bool {
        let mut state = self.state();
        state.faulty && chance(&mut state.rng, percent, 100)
    }

    pub(crate) fn is_faulty(&self) -> bool {
        self.state().faulty
    }

    /// Stops all faults.
    pub(crate) fn stop_faults(&self) {
        let mut state = self.state();
        state.faulty = false;
        state.workers.iter_mut().for_each(|worker| worker.paused_until = None);
    }

    pub(crate) fn process_faults(&self) -> ProcessFaults {
        self.state().process_faults
    }

    /// How often futures were polled.
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
        state.timers.insert((at, id), waker);
    }

    /// Waits as long as a message takes on the network: up to 2 ms, or up to 400 ms on a slow hop.
    pub(crate) async fn hop(&self) {
        let slow = self.fault(self.plan.slow_hops);
        let micros = self.draw(|rng| if slow { rng.random_range(0..400_000) } else { rng.random_range(0..2_000) });
        self.sleep(Duration::from_micros(micros)).await;
    }

    /// Waits for the log's next commit. Commits start at fixed times, so that some of them hold several decisions.
    pub(crate) async fn commit(&self) {
        let micros = u64::from(self.now().microsecond()) % COMMIT_US;
        self.sleep(Duration::from_micros(COMMIT_US - micros)).await;
    }

    /// Sends a request over the network and waits for the answer. The caller may crash before the request or the
    /// answer arrives; the request is carried out nevertheless.
    pub(crate) async fn ask<T: Send + 'static>(&self, request: impl Future<Output = T> + Send + 'static) -> T {
        let (reply, answer) = oneshot::channel();
        let stage = self.clone();
        self.spawn(Process::Outside, async move {
            stage.hop().await;
            let done = request.await;
            stage.hop().await;
            let _ = reply.send(done);
        });
        answer.await.expect("processes outside always answer")
    }

    /// Runs all tasks until this time.
    pub(crate) fn run_until(&self, end: OffsetDateTime) {
        loop {
            if let Some(task) = self.pick() {
                self.poll(task);
                continue;
            }
            let mut state = self.state();
            let Some(at) = state.timers.keys().next().map(|(at, _)| *at).filter(|at| *at <= end) else { break };
            // Wake every task that is due now, so that they run in any order.
            let due: Vec<_> = state.timers.extract_if(..=(at, u64::MAX), |_, _| true).collect();
            drop(state);
            self.env.advance((at - self.now()).max(time::Duration::ZERO));
            due.into_iter().for_each(|(_, waker)| waker.wake());
        }
        self.env.advance((end - self.now()).max(time::Duration::ZERO));
    }

    /// Draws one of the tasks that are ready to be polled.
    fn pick(&self) -> Option<u64> {
        let mut woken = self.woken.lock().unwrap();
        if woken.is_empty() {
            return None;
        }
        let index = self.state().rng.random_range(0..woken.len());
        let task = woken.iter().nth(index).copied()?;
        woken.remove(&task);
        Some(task)
    }

    fn poll(&self, id: u64) {
        let waker = Waker::from(Arc::new(TaskWaker { task: id, woken: Arc::clone(&self.woken) }));
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
        if let Process::Worker(index) = process {
            self.maybe_interrupt(index);
        }
    }

    /// Perhaps crashes or pauses a worker that waits for something.
    fn maybe_interrupt(&self, index: usize) {
        let Plan { crashes, pauses, .. } = self.plan;
        let mut state = self.state();
        if !state.faulty || !state.workers[index].up {
            return;
        }
        if chance(&mut state.rng, crashes, 10_000) {
            state.process_faults.crashes += 1;
            state.workers[index].up = false;
            let down = Duration::from_millis(state.rng.random_range(0..8_000));
            drop(state);
            self.kill(Process::Worker(index));
            let stage = self.clone();
            self.spawn(Process::Outside, async move {
                stage.sleep(down).await;
                let start = {
                    let worker = &mut stage.state().workers[index];
                    (worker.up, worker.paused_until) = (true, None);
                    Arc::clone(&worker.start)
                };
                start();
            });
        } else if chance(&mut state.rng, pauses, 10_000) {
            state.process_faults.pauses += 1;
            let until = self.env.now() + Duration::from_millis(state.rng.random_range(0..15_000));
            state.workers[index].paused_until = Some(until);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn paused(&self, process: Process) -> Option<OffsetDateTime> {
        match process {
            Process::Worker(index) => self.workers[index].paused_until,
            Process::Outside | Process::Game(_) => None,
        }
    }
}

/// Draws `true` with the probability `of / whole`.
fn chance(rng: &mut impl Rng, of: u32, whole: u32) -> bool {
    of > 0 && rng.random_range(0..whole) < of
}
