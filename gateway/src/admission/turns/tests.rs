use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use proptest::prelude::*;
use tokio::{
    sync::oneshot,
    task::{JoinHandle, yield_now},
    time::timeout,
};

use garage_worker::turns::MAX_WAITING;

use super::*;

impl<T> Turns<T> {
    fn is_empty(&self) -> bool {
        self.turns.is_empty() && lock(&self.runs).is_empty()
    }
}

/// A time-out that no step of a test reaches, unless the test fails.
const LIMIT: Duration = Duration::from_secs(20);

/// Clients, and the commands that they have begun. Each command runs until the test ends it, and answers with the
/// number of the request that began it.
struct Stage {
    turns: Arc<Turns<usize>>,
    /// The commands that have begun, in this order. `None` once they have ended.
    begun: Arc<Mutex<Vec<Begun>>>,
    requests: usize,
}

/// The number of a command that has begun, and what ends it.
type Begun = (usize, Option<oneshot::Sender<()>>);

type Request = JoinHandle<Result<usize, Problem>>;

impl Stage {
    fn new() -> Self {
        let turns = Arc::new(Turns::new(Limit::of_class("tickets-waiting")));
        Self { turns, begun: Arc::default(), requests: 0 }
    }

    /// Sends a request, and waits until it has arrived.
    async fn request(&mut self, player: &str, keyed: Option<Keyed>) -> Request {
        let number = self.requests;
        self.requests += 1;
        let (turns, begun, player) = (Arc::clone(&self.turns), Arc::clone(&self.begun), player.parse().unwrap());
        let command = async move {
            let (end, ended) = oneshot::channel();
            begun.lock().unwrap().push((number, Some(end)));
            let _ = ended.await;
            number
        };
        let request = tokio::spawn(async move { turns.run(&player, keyed, command).await });
        settle().await;
        request
    }

    /// The numbers of the commands that have begun, in this order.
    fn begun(&self) -> Vec<usize> {
        self.begun.lock().unwrap().iter().map(|(number, _)| *number).collect()
    }

    /// The commands that have begun and not ended.
    fn running(&self) -> Vec<usize> {
        self.begun.lock().unwrap().iter().filter(|(_, end)| end.is_some()).map(|(number, _)| *number).collect()
    }

    async fn end(&self, command: usize) {
        let end = self.begun.lock().unwrap().iter_mut().find(|(number, _)| *number == command).unwrap().1.take();
        end.unwrap().send(()).unwrap();
        settle().await;
    }

    fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}

/// Lets all tasks run until each of them waits. They share one thread, and each needs few steps.
async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

/// A command with this key and body.
fn keyed(key: &str, body: &'static str) -> Option<Keyed> {
    let (key, sender) = (key.parse().unwrap(), "ann".parse().unwrap());
    Some(Keyed { key, sender, method: Method::POST, path: "/v1/garage/cars".into(), body: body.into() })
}

async fn answer(request: Request) -> usize {
    timeout(LIMIT, request).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn a_players_commands_run_one_after_the_other_in_the_order_of_their_arrival() {
    let mut stage = Stage::new();
    let first = stage.request("ann", None).await;
    let second = stage.request("ann", None).await;
    let third = stage.request("ann", None).await;
    let other = stage.request("bob", None).await;
    assert_eq!(stage.begun(), [0, 3], "another player does not wait");
    stage.end(0).await;
    stage.end(1).await;
    assert_eq!(stage.begun(), [0, 3, 1, 2]);
    stage.end(2).await;
    stage.end(3).await;
    let answers = [answer(first).await, answer(second).await, answer(third).await, answer(other).await];
    assert_eq!(answers, [0, 1, 2, 3]);
    assert!(stage.is_empty(), "a player without a command takes no memory");
}

#[tokio::test]
async fn thirty_two_commands_wait_and_the_next_one_gets_a_429() {
    let mut stage = Stage::new();
    let mut requests = VecDeque::new();
    for _ in 0..=MAX_WAITING {
        requests.push_back(stage.request("ann", None).await);
    }
    let refused = stage.request("ann", None).await;
    let refused = timeout(LIMIT, refused).await.unwrap().unwrap().unwrap_err();
    assert_eq!(refused.status(), 429);
    assert!(refused.detail().contains("`tickets-waiting`"), "{}", refused.detail());
    stage.end(0).await;
    assert_eq!(answer(requests.pop_front().unwrap()).await, 0);
    let next = stage.request("ann", None).await;
    assert!(!next.is_finished(), "there is room again");
}

#[tokio::test]
async fn equal_commands_with_one_key_share_a_run_and_others_do_not() {
    let mut stage = Stage::new();
    let first = stage.request("ann", keyed("k", "gt")).await;
    let same = stage.request("ann", keyed("k", "gt")).await;
    let other_body = stage.request("ann", keyed("k", "van")).await;
    let other_key = stage.request("ann", keyed("l", "gt")).await;
    let other_player = stage.request("bob", keyed("k", "gt")).await;
    // Equal to a command that waits.
    let same_body = stage.request("ann", keyed("k", "van")).await;
    for command in [0, 2, 3, 4] {
        stage.end(command).await;
    }
    let mut answers = Vec::new();
    for request in [first, same, other_body, other_key, other_player, same_body] {
        answers.push(answer(request).await);
    }
    assert_eq!(answers, [0, 0, 2, 3, 4, 2]);
    let later = stage.request("ann", keyed("k", "gt")).await;
    assert_eq!(stage.running(), [6], "a command that has ended is not shared");
    stage.end(6).await;
    assert_eq!(answer(later).await, 6);
    assert!(stage.is_empty());
}

#[tokio::test]
async fn a_waiting_command_whose_client_disconnects_does_not_run_and_makes_room() {
    let mut stage = Stage::new();
    let _running = stage.request("ann", None).await;
    let gone = stage.request("ann", keyed("k", "gt")).await;
    let last = stage.request("ann", None).await;
    gone.abort();
    settle().await;
    stage.end(0).await;
    assert_eq!(stage.begun(), [0, 2]);
    stage.end(2).await;
    assert_eq!(answer(last).await, 2);
    assert!(stage.is_empty());
}

#[tokio::test]
async fn if_the_first_of_several_clients_disconnects_the_others_get_the_answer() {
    let mut stage = Stage::new();
    let running = stage.request("ann", None).await;
    let first = stage.request("ann", keyed("k", "gt")).await;
    let second = stage.request("ann", keyed("k", "gt")).await;
    let third = stage.request("ann", keyed("k", "gt")).await;
    // While the command waits, and while it runs.
    first.abort();
    settle().await;
    stage.end(0).await;
    assert_eq!((answer(running).await, stage.running()), (0, vec![1]));
    second.abort();
    settle().await;
    stage.end(1).await;
    assert_eq!(answer(third).await, 1);
}

#[tokio::test]
async fn a_running_command_whose_client_disconnects_ends_before_the_next_begins_and_a_repetition_shares_it() {
    let mut stage = Stage::new();
    let gone = stage.request("ann", keyed("k", "gt")).await;
    let next = stage.request("ann", None).await;
    gone.abort();
    let repeated = stage.request("ann", keyed("k", "gt")).await;
    assert_eq!(stage.begun(), [0]);
    stage.end(0).await;
    assert_eq!((answer(repeated).await, stage.running()), (0, vec![1]));
    stage.end(1).await;
    assert_eq!(answer(next).await, 1);
    assert!(stage.is_empty());
}

#[tokio::test]
async fn a_command_that_panics_is_a_503_and_the_next_one_runs() {
    let turns: Turns<usize> = Turns::new(Limit::of_class("tickets-waiting"));
    let ann: PlayerId = "ann".parse().unwrap();
    let panics = async { panic!("a test") };
    let (panicked, next) = tokio::join!(turns.run(&ann, None, panics), turns.run(&ann, None, async { 7 }));
    assert_eq!((panicked.unwrap_err().status().as_u16(), next.unwrap()), (503, 7));
    assert!(turns.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_command_that_takes_too_long_is_a_503_and_the_next_one_runs() {
    let turns: Turns<usize> = Turns::new(Limit::of_class("tickets-waiting"));
    let ann: PlayerId = "ann".parse().unwrap();
    let (slow, next) = tokio::join!(turns.run(&ann, None, std::future::pending()), turns.run(&ann, None, async { 7 }));
    assert_eq!((slow.unwrap_err().status().as_u16(), next.unwrap()), (503, 7));
}

/// The player and the key of a request.
type Asked = (u8, Option<u8>);

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A request of a player, with one of two keys or without.
    Request(u8, Option<u8>),
    /// The client of one of the requests disconnects.
    Disconnect(prop::sample::Index),
    /// One of the running commands ends.
    End(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2_u8, prop::option::of(0..2_u8)).prop_map(|(player, key)| Step::Request(player, key)),
        2 => any::<prop::sample::Index>().prop_map(Step::Disconnect),
        3 => any::<prop::sample::Index>().prop_map(Step::End),
    ]
}

proptest! {
    #[test]
    fn one_command_of_a_player_runs_at_a_time_in_order_and_each_client_gets_an_answer(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(play(steps));
    }
}

async fn play(steps: Vec<Step>) {
    let mut stage = Stage::new();
    // Each request, with the client's task until it disconnects.
    let mut sent: BTreeMap<usize, (Asked, Option<Request>)> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Request(player, key) => {
                let same = key.and_then(|key| keyed(&format!("k{key}"), "gt"));
                let number = stage.requests;
                let request = stage.request(&format!("player-{player}"), same).await;
                sent.insert(number, ((player, key), Some(request)));
            }
            Step::Disconnect(which) => {
                let mut connected: Vec<_> = sent.values_mut().filter(|(_, request)| request.is_some()).collect();
                if !connected.is_empty() {
                    let index = which.index(connected.len());
                    connected[index].1.take().unwrap().abort();
                    settle().await;
                }
            }
            Step::End(which) => {
                let running = stage.running();
                if !running.is_empty() {
                    stage.end(running[which.index(running.len())]).await;
                }
            }
        }
        for player in 0..2 {
            let of_player = |numbers: Vec<usize>| {
                numbers.into_iter().filter(|number| sent[number].0.0 == player).collect::<Vec<_>>()
            };
            assert!(of_player(stage.running()).len() <= 1, "two commands of a player run");
            assert!(of_player(stage.begun()).is_sorted(), "commands of a player run out of order");
        }
    }
    while let Some(command) = stage.running().first() {
        stage.end(*command).await;
    }
    let asked: BTreeMap<_, _> = sent.iter().map(|(number, (what, _))| (*number, *what)).collect();
    for (number, (_, request)) in sent {
        let Some(request) = request else { continue };
        let answer = answer(request).await;
        let is_shared = answer < number && asked[&number].1.is_some() && asked[&answer] == asked[&number];
        assert!(answer == number || is_shared, "request {number} got the answer of {answer}");
    }
    assert!(stage.is_empty(), "commands are left");
}
