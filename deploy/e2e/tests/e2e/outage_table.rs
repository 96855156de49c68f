//! What players and operators see while a server is out: one row per outage. `make outages` walks all of them and prints
//! the table that `deploy/docs/outages.md` holds. Three tests check what players get in three rows of that page.

mod cell;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fmt, fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use garage_stack::bot::{Bot, Problem};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use self::cell::{Cell, Fault, Server, Target};
use crate::support::DEADLINE;

/// How long an outage lasts before its row is taken. Longer than the time-outs of requests.
const OUTAGE: Duration = Duration::from_secs(15);

/// Answers of the gateway take at most 10 s.
const MAX_ANSWER: Duration = Duration::from_secs(15);

/// The page with the table.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/outages.md");

/// A row of the table.
struct Row {
    outage: String,
    /// The answers to a player's requests.
    players: String,
    /// The lines of `/readyz` that show a problem, and which workers have them.
    readyz: String,
    dashboard: String,
    /// The warnings and errors that the workers log.
    logs: BTreeSet<String>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outage, players, readyz, dashboard, logs } = self;
        let logs: Vec<_> = logs.iter().map(String::as_str).collect();
        write!(f, "{outage} | {players} | {readyz} | {dashboard} | {}", logs.join("<br>"))
    }
}

/// Takes the rows of outages of one Garage.
struct Observer {
    target: Target,
    /// Counts the players: each request for a ticket is made by a new one.
    players: usize,
    /// For each log file, how much of it is older than the outage.
    read: BTreeMap<PathBuf, usize>,
}

impl Observer {
    fn new(target: Target) -> Self {
        Self { target, players: 0, read: BTreeMap::new() }
    }

    async fn begin(&mut self, cell: Cell) {
        self.read =
            self.logs().into_iter().map(|file| (file.clone(), fs::read(file).unwrap_or_default().len())).collect();
        self.target.begin(cell).await;
    }

    async fn row(&mut self, cell: Cell) -> Row {
        self.players += 1;
        let bot = self.target.garage.ranked(&format!("player-{}", self.players), 100_000).with_max_wait(MAX_ANSWER);
        let queue = json!({"queue": "ranked", "latencies": {"eu": 20}});
        let requests = [
            ("queue", Method::POST, "/v1/matchmaking/tickets", Some(queue)),
            ("state", Method::GET, "/v1/players/me", None),
            ("garage", Method::GET, "/v1/garage", None),
        ];
        let mut answers: Vec<(String, Vec<&str>)> = Vec::new();
        for (name, method, path, body) in requests {
            let answer = answer(&bot, method, path, body).await;
            match answers.iter_mut().find(|(other, _)| *other == answer) {
                Some((_, names)) => names.push(name),
                None => answers.push((answer, vec![name])),
            }
        }
        let players: Vec<_> = answers.iter().map(|(answer, names)| format!("{}: {answer}", names.join(", "))).collect();
        Row {
            outage: cell.to_string(),
            players: players.join("<br>"),
            readyz: self.changed_readyz().await,
            dashboard: self.dashboard().await,
            logs: self.logged(),
        }
    }

    /// Status and lines of each worker's `/readyz`.
    async fn readyz(&mut self) -> BTreeMap<String, (u16, BTreeSet<String>)> {
        let mut all = BTreeMap::new();
        for instance in self.target.garage.stack.all_instances() {
            let name = instance.worker.name().to_owned();
            let answer = get(&format!("http://{}/readyz", instance.admin)).await;
            let (status, text) = answer.unwrap_or((0, "no answer".into()));
            all.insert(name, (status, text.lines().map(stable).collect()));
        }
        all
    }

    async fn changed_readyz(&mut self) -> String {
        let mut workers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (worker, (status, lines)) in self.readyz().await {
            let new: Vec<_> = lines.into_iter().filter(|line| !is_healthy(line)).collect();
            if status != 200 || !new.is_empty() {
                workers.entry(format!("{status} {}", new.join("; "))).or_default().push(worker);
            }
        }
        let rows: Vec<_> =
            workers.into_iter().map(|(text, workers)| format!("{}: {text}", workers.join(", "))).collect();
        if rows.is_empty() { "200".into() } else { rows.join("<br>") }
    }

    async fn dashboard(&self) -> String {
        let answer = get(&format!("{}/data.json", self.target.garage.stack.ops())).await;
        let Some((_, text)) = answer else { return "no answer".into() };
        let data: Value = serde_json::from_str(&text).unwrap_or_default();
        let text = |field: &str| data.get(field).and_then(Value::as_str).map(stable);
        text("error").or_else(|| text("log")).unwrap_or_else(|| "live".into())
    }

    fn logs(&self) -> Vec<PathBuf> {
        let stack = &self.target.garage.stack;
        let of_worker = |file: &PathBuf| file.parent().is_some_and(|folder| folder.ends_with("logs"));
        stack.logs().into_iter().filter(of_worker).collect()
    }

    /// The messages of the warnings and errors since the outage began, with the worker.
    fn logged(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for file in self.logs() {
            let worker = file.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            let worker = worker.trim_end_matches(|c: char| c == '-' || c.is_ascii_digit());
            let text = fs::read(&file).unwrap_or_default();
            let text = text.get(self.read.get(&file).copied().unwrap_or(0)..).unwrap_or_default();
            for line in String::from_utf8_lossy(text).lines() {
                let Ok(entry) = serde_json::from_str::<Value>(line) else { continue };
                let field = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
                if matches!(field("level"), "WARN" | "ERROR") {
                    // What follows the first colon is the cause, which differs from line to line.
                    let message = field("message").split(':').next().unwrap_or_default();
                    found.insert(format!("{worker}: {}", stable(message)));
                }
            }
        }
        found
    }
}

/// The status of an answer, and what it tells the player.
async fn answer(bot: &Bot, method: Method, path: &str, body: Option<Value>) -> String {
    match bot.ask::<Value>(method, path, body).await {
        Ok(_) => "as usual".into(),
        Err(Problem { status, .. }) if status.as_u16() == 599 => "no answer".into(),
        Err(Problem { status, body, .. }) => {
            let detail = body.get("detail").and_then(Value::as_str).unwrap_or_default();
            format!("{} “{}”", status.as_u16(), stable(detail))
        }
    }
}

async fn get(url: &str) -> Option<(u16, String)> {
    let answer = reqwest::Client::new().get(url).timeout(MAX_ANSWER).send().await.ok()?;
    Some((answer.status().as_u16(), answer.text().await.ok()?))
}

/// Whether a line of `/readyz` is the same without an outage.
fn is_healthy(line: &str) -> bool {
    line.ends_with(": ok") || line.ends_with("held by this instance")
}

/// The text without what differs between two outages of the same kind: numbers, times and addresses.
fn stable(text: impl AsRef<str>) -> String {
    let mut stable = String::new();
    for word in text.as_ref().split(' ') {
        let number = word.chars().any(|c| c.is_ascii_digit()) && word.len() > 3;
        stable += if number { "…" } else { word };
        stable.push(' ');
    }
    stable.trim_end().replace('|', "/")
}

/// What players get during an outage, according to the page.
fn documented(cell: Cell) -> String {
    let page = fs::read_to_string(PAGE).unwrap();
    let mut rows = page.lines().map(|line| line.split(" | "));
    let row = rows.find_map(|mut row| (row.next() == Some(&cell.to_string())).then(|| row.next()).flatten());
    row.unwrap_or_else(|| panic!("{PAGE} has no row for {cell}; run `make outages`")).to_owned()
}

/// Takes rows until players get what is expected. [`until`] does not fit: a row can take longer than a poll of it may.
async fn until_players_get(observer: &mut Observer, cell: Cell, expected: &str) {
    let begin = Instant::now();
    loop {
        let players = observer.row(cell).await.players;
        if players == expected {
            return;
        }
        assert!(begin.elapsed() < DEADLINE, "{cell}: players get “{players}”, not “{expected}”");
    }
}

/// Checks that players get what the page says during an outage, and that everything works again afterwards.
async fn assert_documented(cell: Cell) {
    let usual = "queue, state, garage: as usual";
    let mut observer = Observer::new(Target::start().await);
    // NATS takes the size of an empty log, zero, for no limit. So there must be an event before the log can be full.
    until_players_get(&mut observer, cell, usual).await;
    observer.begin(cell).await;
    until_players_get(&mut observer, cell, &documented(cell)).await;
    observer.target.end(cell).await;
    until_players_get(&mut observer, cell, usual).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_nats_looks_as_documented() {
    assert_documented(Cell(Server::Nats, Fault::Stopped)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_log_looks_as_documented() {
    assert_documented(Cell(Server::Nats, Fault::Full)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mysql_that_does_not_accept_the_password_looks_as_documented() {
    assert_documented(Cell(Server::MySql, Fault::WrongCredentials)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "walks 18 outages, which takes 8 minutes; `make outages` runs it"]
async fn table() {
    let only = env::var("GARAGE_OUTAGE").unwrap_or_default();
    println!("Outage | Players get | `/readyz` | Dashboard | Workers log\n---|---|---|---|---");
    let (on_cluster, others): (Vec<_>, Vec<_>) = Cell::ALL
        .into_iter()
        .filter(|cell| cell.to_string().contains(&only))
        .partition(|cell| cell.0 == Server::Kubernetes);
    for cells in [others, on_cluster].into_iter().filter(|cells| !cells.is_empty()) {
        let target = match cells.first() {
            Some(Cell(Server::Kubernetes, _)) => Target::start_on_a_cluster().await,
            _ => Target::start().await,
        };
        let mut observer = Observer::new(target);
        for cell in cells {
            observer.begin(cell).await;
            // Requests during the outage, so that its effects show.
            observer.row(cell).await;
            sleep(OUTAGE).await;
            println!("{}", observer.row(cell).await);
            observer.target.end(cell).await;
        }
    }
}
