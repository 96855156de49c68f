//! Limits for the requests of one account: how often it may send them, and how many of its commands may wait. `support`
//! checks each response against the description.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use garage_events::svc::{Call, Command, Execute, Garage};
use garage_gateway::token::{GROUPS, sign_service_token};
use garage_worker::service::{Refusal, Service};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    task::yield_now,
    time::{sleep, timeout},
};
use tokio_tungstenite::tungstenite::Error;

use crate::support::{App, DEADLINE, Request, TICKETS, key, read, token};

const CONNECT_TOKEN: &str = "/v1/sessions/0198c5a0-7b1e-7c3d-8000-0123456789ab/connect-token";

async fn start(flags: &[&str]) -> App {
    // Other limits are for connections, of which these tests need many.
    let connections = ["--max-connections-per-player=1000", "--max-unauthenticated-per-address=1000"];
    App::start_with(|_| flags.iter().chain(&connections).map(|flag| (*flag).to_owned()).collect()).await
}

/// The status, the value of `Retry-After`, and the body.
async fn send(request: Request) -> (u16, Option<u64>, Value) {
    let response = request.send().await.unwrap();
    let wait = response.headers().get("retry-after").map(|value| value.to_str().unwrap().parse().unwrap());
    let (status, body) = read(response).await;
    (status, wait, body)
}

#[tokio::test]
async fn each_kind_of_request_has_a_limit_of_its_own_and_a_429_names_it() {
    let classes = ["tickets", "garage", "reads", "connect-tokens", "groups", "parties", "party-joins"];
    let flags = classes.map(|class| format!("--limit-{class}=2/0.001"));
    let app = start(&flags.each_ref().map(String::as_str)).await;
    let service = sign_service_token(&key(), "ann", GROUPS, DEADLINE).unwrap().expose().to_owned();
    let request = |class: &str, player: &str| match class {
        "tickets" => app.request(player, Method::POST, TICKETS).json(&json!({})),
        "garage" => app.request(player, Method::POST, "/v1/garage/cars").json(&json!({})),
        "reads" => app.request(player, Method::GET, "/v1/regions"),
        "connect-tokens" => app.request(player, Method::POST, CONNECT_TOKEN),
        "parties" => app.request(player, Method::POST, "/v1/party/leave"),
        "party-joins" => app.request(player, Method::POST, "/v1/parties/join").json(&json!({"code": "K7Q2MX9D4R"})),
        _ => app.anonymous(Method::POST, "/v1/matchmaking/groups").bearer_auth(service.clone()).json(&json!({})),
    };
    for class in classes {
        for _ in 0..2 {
            assert_ne!(send(request(class, "ann")).await.0, 429, "{class}");
        }
        let (status, wait, problem) = send(request(class, "ann")).await;
        assert_eq!(
            (status, &problem["type"], &problem["limit"]),
            (429, &json!("/problems/too-many-requests"), &json!(class))
        );
        // The next token comes back 1,000 s after the first one was taken.
        let wait = wait.unwrap();
        assert!((800..=1_000).contains(&wait), "{wait}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(class) && detail.ends_with(&format!("try again in {wait} s")), "{detail}");
        if class != "groups" {
            assert_ne!(send(request(class, "bob")).await.0, 429, "{class}: another player");
        }
    }
    // The limit of reads is reached, but these need no token.
    assert_eq!(send(app.anonymous(Method::GET, "/v1/ping")).await.0, 204);
    assert_eq!(app.anonymous(Method::GET, "/openapi.json").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_request_without_a_valid_token_takes_nothing_from_the_player() {
    let app = start(&["--limit-reads=1/0.001"]).await;
    for _ in 0..3 {
        assert_eq!(send(app.anonymous(Method::GET, "/v1/regions").bearer_auth("x".into())).await.0, 401);
    }
    assert_eq!(app.get("ann", "/v1/regions").await.0, 200);
}

#[tokio::test]
async fn a_handshake_beyond_the_limit_gets_a_429_and_another_player_connects() {
    let app = start(&["--limit-sockets=1/0.001"]).await;
    let _socket = app.socket("ann", None).await;
    let authorization = format!("Bearer {}", token("ann"));
    let Err(Error::Http(refused)) = app.try_socket("", &[("Authorization", &authorization)]).await else {
        panic!("the handshake is accepted")
    };
    assert_eq!(
        (refused.status(), &refused.headers()["content-type"]),
        (429.try_into().unwrap(), &"application/problem+json".parse().unwrap())
    );
    app.socket("bob", None).await;
}

#[tokio::test]
async fn a_queue_can_have_a_lower_limit_for_tickets() {
    let app = App::start_with(|folder| {
        let path = folder.path().join("queues.toml");
        let queues = fs::read_to_string(&path).unwrap();
        fs::write(path, queues.replace("[queues.ranked]\n", "[queues.ranked]\nticket_limit = \"1/0.001\"\n")).unwrap();
        Vec::new()
    })
    .await;
    let (status, ticket) = app.queue("ann", None).await;
    assert_eq!(status, 201);
    let (status, problem) = app.queue("ann", None).await;
    assert_eq!((status, &problem["limit"]), (429, &json!("queue:ranked")));
    assert_eq!(app.cancel("ann", ticket["ticket"].as_str().unwrap()).await.0, 204, "only requests for tickets count");
    let open = json!({"queue": "open", "latencies": {"eu": 20}});
    assert_eq!(send(app.request("ann", Method::POST, TICKETS).json(&open)).await.0, 201, "another queue");
    assert_eq!(app.queue("bob", None).await.0, 201, "another player");
}

#[tokio::test]
async fn a_request_after_the_seconds_in_retry_after_is_admitted() {
    let app = start(&["--limit-reads=1/1"]).await;
    let ask = async || send(app.request("ann", Method::GET, "/v1/regions")).await;
    let refused = async {
        loop {
            if let (429, wait, _) = ask().await {
                return wait.unwrap();
            }
        }
    };
    let wait = timeout(DEADLINE, refused).await.unwrap();
    assert_eq!(wait, 1);
    // Only a wait can show that `Retry-After` is right.
    sleep(Duration::from_secs(wait)).await;
    assert_eq!(ask().await.0, 200);
}

#[tokio::test]
async fn a_refused_command_reaches_neither_the_log_nor_another_worker() {
    let app = start(&["--limit-tickets=1/0.001", "--limit-garage=1/0.001"]).await;
    let store = Store::start(&app).await;
    store.open();
    assert_eq!(app.queue("ann", None).await.0, 201);
    assert_eq!(app.queue("ann", None).await.0, 429);
    assert_eq!(app.last().await, 1);
    assert_eq!(buy(&app, "gt", None).await.0, 201);
    assert_eq!(buy(&app, "van", None).await.0, 429);
    assert_eq!(store.executed.load(Ordering::Relaxed), 1);
}

/// A test double of inventory. It sells each car once, and keeps its answers by idempotency key. It carries out
/// commands only while it is open.
#[derive(Clone)]
struct Store {
    opened: Arc<Semaphore>,
    executed: Arc<AtomicUsize>,
    /// How many commands it carries out now, and at most.
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    sold: Arc<Mutex<Sold>>,
}

#[derive(Default)]
struct Sold {
    cars: Vec<String>,
    /// The balance in the answer of each idempotency key.
    answers: HashMap<String, u64>,
}

impl Store {
    async fn start(app: &App) -> Self {
        let store = Self {
            opened: Arc::new(Semaphore::new(0)),
            executed: Arc::default(),
            now: Arc::default(),
            most: Arc::default(),
            sold: Arc::default(),
        };
        let service = Service::start(&app.client, "double", "a double").await.unwrap();
        let double = store.clone();
        let handler = move |call| {
            let double = double.clone();
            async move { double.execute(call).await }
        };
        tokio::spawn(service.serve(64, app.shutdown.clone(), handler).await.unwrap());
        // An answered request proves that the server knows the subscription.
        let refused = app.client.request(Execute::SUBJECT, "no request".into()).await.unwrap();
        assert!(refused.headers.is_some(), "the double answers with an error");
        store
    }

    /// Lets it carry out all commands from now on.
    fn open(&self) {
        self.opened.add_permits(1_000);
    }

    async fn execute(&self, Execute { player, key, command }: Execute) -> Result<Garage, Refusal> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let _inside = self.opened.acquire().await.unwrap();
        // Lets other commands in, if the gateway sends them at the same time.
        for _ in 0..200 {
            yield_now().await;
        }
        self.now.fetch_sub(1, Ordering::SeqCst);
        self.executed.fetch_add(1, Ordering::SeqCst);
        let Command::BuyCar { car } = command else { panic!("{command:?}") };
        let mut sold = self.sold.lock().unwrap();
        let stored = key.as_ref().and_then(|key| sold.answers.get(key.as_str()).copied());
        let balance = match stored {
            Some(balance) => balance,
            None if sold.cars.contains(&car.to_string()) => return Err(Refusal::new(409, "the player owns that car")),
            None => {
                sold.cars.push(car.to_string());
                sold.cars.len() as u64
            }
        };
        if let Some(key) = key {
            sold.answers.insert(key.as_str().into(), balance);
        }
        Ok(Garage { player, balance, active_car: car, cars: Vec::new(), items: BTreeMap::new() })
    }
}

/// Ann buys a car.
async fn buy(app: &App, car: &str, key: Option<&str>) -> (u16, Value) {
    let mut request = app.request("ann", Method::POST, "/v1/garage/cars").json(&json!({ "car": car }));
    if let Some(key) = key {
        request = request.header("Idempotency-Key", key);
    }
    let (status, _, body) = send(request).await;
    (status, body)
}

#[tokio::test]
async fn twenty_purchases_of_one_car_at_the_same_time_buy_it_once_and_the_others_get_a_409() {
    let app = App::start().await;
    let store = Store::start(&app).await;
    store.open();
    let mut statuses: Vec<_> = join_all((0..20).map(|_| buy(&app, "gt", None))).await;
    statuses.sort_by_key(|(status, _)| *status);
    let statuses: Vec<_> = statuses.into_iter().map(|(status, _)| status).collect();
    assert_eq!((statuses[0], &statuses[1..]), (201, &[409; 19][..]));
    assert_eq!(store.most.load(Ordering::SeqCst), 1, "they are carried out one after the other");
}

#[tokio::test]
async fn one_command_of_a_player_runs_thirty_two_wait_and_the_next_gets_a_429() {
    let app = start(&["--limit-garage=off"]).await;
    let store = Store::start(&app).await;
    let cars: Vec<_> = (0..34).map(|number| format!("car-{number}")).collect();
    let mut bought: FuturesUnordered<_> = cars.iter().map(|car| buy(&app, car, None)).collect();
    // While the store is closed, only a refusal is an answer.
    let (status, problem) = timeout(DEADLINE, bought.next()).await.unwrap().unwrap();
    assert_eq!((status, &problem["limit"]), (429, &json!("garage-waiting")));
    store.open();
    let others: Vec<_> = bought.map(|(status, _)| status).collect().await;
    assert_eq!(others, [201; 33]);
    assert_eq!(store.most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn repeated_requests_with_one_key_share_one_run_and_get_the_same_answer() {
    let app = start(&["--limit-garage=off"]).await;
    let store = Store::start(&app).await;
    let mut bought = Box::pin(join_all((0..60).map(|_| buy(&app, "gt", Some("k")))));
    // Time for the requests to arrive. Without a shared run, 27 of them are one too many for the queue.
    assert!(timeout(Duration::from_millis(500), &mut bought).await.is_err());
    store.open();
    let answers = timeout(DEADLINE, bought).await.unwrap();
    assert_eq!((answers[0].0, &answers[0].1["balance"]), (201, &json!(1)));
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(buy(&app, "van", Some("k")).await.0, 201, "another command reaches inventory, which decides on its key");
}

#[tokio::test]
async fn requests_for_a_ticket_at_the_same_time_store_one_event() {
    let app = App::start().await;
    let (keyed, others) = tokio::join!(
        join_all((0..20).map(|_| app.queue("ann", Some("k")))),
        join_all((0..20).map(|_| app.queue("bob", None))),
    );
    assert!(keyed.iter().all(|answer| answer.0 == 201 && *answer == keyed[0]), "{keyed:?}");
    let mut statuses: Vec<_> = others.iter().map(|(status, _)| *status).collect();
    statuses.sort_unstable();
    assert_eq!((statuses[0], &statuses[1..]), (201, &[409; 19][..]));
    assert_eq!(app.last().await, 2);
}

#[tokio::test]
async fn a_repeated_request_for_a_group_shares_its_run() {
    let app = App::start().await;
    let service = sign_service_token(&key(), "backend", GROUPS, DEADLINE).unwrap().expose().to_owned();
    let member = |player: &str| json!({"player": player, "rank": 1, "latencies": {"eu": 20}});
    let group = json!({"queue": "ranked", "players": [member("ann")]});
    let answers = join_all((0..60).map(|_| {
        let request = app.anonymous(Method::POST, "/v1/matchmaking/groups").bearer_auth(service.clone());
        send(request.header("Idempotency-Key", "k").json(&group))
    }));
    let answers = answers.await;
    assert!(answers.iter().all(|answer| answer.0 == 201 && *answer == answers[0]), "{answers:?}");
    assert_eq!(app.last().await, 1);
}

#[tokio::test]
async fn a_player_who_floods_the_gateway_gets_429_and_another_is_served() {
    let app = start(&[]).await;
    let flood = join_all((0..400).map(|_| app.queue("ann", None)));
    let (flooded, bob) = tokio::join!(flood, app.queue("bob", None));
    assert_eq!(bob.0, 201);
    let refused: Vec<_> = flooded.iter().filter(|(status, _)| *status == 429).map(|(_, body)| &body["limit"]).collect();
    assert!(refused.contains(&&json!("tickets")), "{refused:?}");
    assert_eq!(flooded.iter().filter(|(status, _)| *status == 201).count(), 1);
    assert_eq!(app.last().await, 2);
}
