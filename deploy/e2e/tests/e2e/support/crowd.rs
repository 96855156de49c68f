//! Bots that keep arriving at random times. They race, reconnect, cancel or disappear.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use garage_gameserver::client::{self, Driving};
use garage_stack::bot::{Bot, EventStream, Frame, Ticket};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Garage,
    history::{Event, assert_notified},
    players_runtime,
};

/// More players than arrive in a second.
const MAX_PER_SECOND: usize = 20;

/// How long a player waits for an answer, or for a ticket to end. No fault lasts half as long.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// What a player does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behavior {
    /// Queues and races, twice.
    Plays,
    /// Like `Plays`, but the socket breaks again and again.
    Reconnects,
    /// Queues and cancels.
    Cancels,
    /// Queues and disconnects for good.
    Vanishes,
    /// Is queued with a mate by the studio's backend, and plays. Sometimes one of them cancels.
    Grouped,
}

/// What a player experienced.
struct Player {
    name: String,
    frames: Vec<Frame>,
    /// Whether the player listened from before the first ticket to the end of the last one.
    listened_throughout: bool,
    /// How each ticket ended.
    ends: Vec<String>,
    /// Why the player's ticket did not end.
    failure: Option<String>,
}

/// Whether some players come in groups of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Groups {
    None,
    Some,
}

/// All players of a run.
pub(crate) struct Players(Vec<Player>);

impl fmt::Display for Players {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
        for end in self.0.iter().flat_map(|player| &player.ends) {
            *ends.entry(end).or_default() += 1;
        }
        let served = self.0.iter().filter(|player| player.failure.is_none()).count();
        writeln!(f, "{served} players served; their tickets:")?;
        ends.into_iter().try_for_each(|(end, count)| writeln!(f, "  {count:>6}  {end}"))
    }
}

impl Players {
    /// Asserts that every player was served and received the events that the log has.
    pub(crate) fn assert_served(&self, seed: u64, events: &[Event]) {
        for player in &self.0 {
            assert!(player.failure.is_none(), "seed {seed}: {} was not served: {:?}", player.name, player.failure);
            if player.listened_throughout {
                assert_notified(events, &player.name, &player.frames);
            }
        }
    }
}

/// Players that keep arriving.
pub(crate) struct Crowd {
    closed: Arc<AtomicBool>,
    tasks: JoinSet<Vec<Player>>,
}

impl Crowd {
    /// Starts players for about this time, `at_once` of them at a time. With `groups`, some of them come in pairs.
    pub(crate) fn start(garage: &Garage, seed: u64, time: Duration, at_once: usize, groups: Groups) -> Self {
        let gateways = garage.stack.gateways();
        let most = MAX_PER_SECOND * usize::try_from(time.as_secs() + 10).unwrap();
        let connected = |bot: Bot, number: usize| {
            let own = [number, number + 1].map(|number| &gateways[number % gateways.len()]);
            bot.with_gateways(&own).with_max_wait(MAX_WAIT)
        };
        let bot = |name: &str, number: usize| connected(garage.bot(&format!("{name}-{number}")), number);
        let mated =
            |number| (groups == Groups::Some).then(|| (bot("mate", number), connected(garage.backend(), number)));
        let bots: Arc<[_]> = (0..most).map(|number| (bot("player", number), mated(number))).collect();
        let (closed, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for _ in 0..at_once {
            let (closed, next, bots) = (Arc::clone(&closed), Arc::clone(&next), Arc::clone(&bots));
            let visits = async move {
                let mut players = Vec::new();
                while !closed.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some((bot, mate)) = bots.get(number) else { break };
                    let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(1 << 32).wrapping_add(number as u64));
                    let behavior = Behavior::draw(&mut rng);
                    match mate {
                        Some((mate, backend)) if behavior == Behavior::Grouped => {
                            players.extend(visit_together(bot, mate, backend, rng).await);
                        }
                        _ => players.push(visit(bot, behavior, rng, &closed).await),
                    }
                }
                players
            };
            tasks.spawn_on(visits, players_runtime());
        }
        Self { closed, tasks }
    }

    /// Starts no more players, and waits until all have finished.
    pub(crate) async fn finish(self) -> Players {
        self.closed.store(true, Ordering::Relaxed);
        Players(self.tasks.join_all().await.into_iter().flatten().collect())
    }
}

impl Behavior {
    fn draw(rng: &mut StdRng) -> Self {
        match rng.random_range(0..10) {
            0..4 => Self::Plays,
            4..6 => Self::Grouped,
            6 => Self::Cancels,
            7 => Self::Vanishes,
            _ => Self::Reconnects,
        }
    }
}

impl Player {
    fn new(bot: &Bot, listened_throughout: bool) -> Self {
        let name = bot.player.clone();
        Self { name, frames: Vec::new(), listened_throughout, ends: Vec::new(), failure: None }
    }
}

/// Lets two players play one match as a group.
async fn visit_together(bot: &Bot, mate: &Bot, backend: &Bot, mut rng: StdRng) -> [Player; 2] {
    let mut players = [bot, mate].map(|bot| Player::new(bot, true));
    let streams = futures::try_join!(bot.event_stream(), mate.event_stream());
    let (mut own, mut mates) = match streams {
        Ok(streams) => streams,
        Err(error) => {
            players[0].failure = Some(error.to_string());
            return players;
        }
    };
    let member = |bot: &Bot| json!({"player": bot.player, "rank": 0, "latencies": {"eu": 20}});
    let request = json!({"queue": "ranked", "players": [member(bot), member(mate)]});
    let key = format!("{:032x}", rand::random::<u128>());
    let queued = backend.command::<Ticket>(Method::POST, "/v1/matchmaking/groups", Some(request), &key).await;
    let ends = async {
        let ticket = queued.map_err(|problem| format!("queueing a group: {problem:?}"))?;
        if rng.random_range(0..4) == 0 {
            // At a random time, so that it sometimes races with the match.
            sleep(Duration::from_millis(rng.random_range(0..1_000))).await;
            // This fails if the players are already matched.
            let _ = mate.cancel(&ticket).await;
        }
        let mut mates_rng = StdRng::seed_from_u64(rng.random());
        let own = until_ended(bot, &mut own, Behavior::Grouped, &mut rng);
        let mates = until_ended(mate, &mut mates, Behavior::Grouped, &mut mates_rng);
        futures::try_join!(own, mates)
    };
    match timeout(MAX_WAIT, ends).await {
        Ok(Ok((own, mates))) => {
            players[0].ends.push(own);
            players[1].ends.push(mates);
        }
        Ok(Err(what)) => players[0].failure = Some(what),
        Err(_) => players[0].failure = Some("the ticket of a group did not end".into()),
    }
    (players[0].frames, players[1].frames) = tokio::join!(own.close(), mates.close());
    players
}

async fn visit(bot: &Bot, behavior: Behavior, mut rng: StdRng, closed: &AtomicBool) -> Player {
    let mut player = Player::new(bot, behavior != Behavior::Vanishes);
    let mut event_stream = match bot.event_stream().await {
        Ok(event_stream) => event_stream,
        Err(error) => {
            player.failure = Some(error.to_string());
            return player;
        }
    };
    let plays = matches!(behavior, Behavior::Plays | Behavior::Reconnects | Behavior::Grouped);
    let rounds = if plays { 2 } else { 1 };
    for number in 0..rounds {
        if number > 0 && closed.load(Ordering::Relaxed) {
            break;
        }
        match timeout(MAX_WAIT, round(bot, &mut event_stream, behavior, &mut rng)).await {
            Ok(Ok(end)) => player.ends.push(end),
            Ok(Err(what)) => player.failure = Some(what),
            Err(_) => {
                player.failure = Some(format!("the ticket did not end; received {:?}", types(event_stream.frames())));
            }
        }
        if player.failure.is_some() {
            break;
        }
    }
    player.frames = event_stream.close().await;
    player
}

fn types(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| &*frame.type_name).collect()
}

/// Queues the player. Returns how the ticket ended.
async fn round(
    bot: &Bot,
    event_stream: &mut EventStream,
    behavior: Behavior,
    rng: &mut StdRng,
) -> Result<String, String> {
    let ticket = bot.queue("ranked").await.map_err(|problem| format!("queueing: {problem:?}"))?;
    let pause = Duration::from_millis(rng.random_range(0..1_000));
    match behavior {
        Behavior::Vanishes => {
            sleep(pause).await;
            return Ok("vanished".into());
        }
        Behavior::Cancels => {
            sleep(pause).await;
            // This fails if the player is already matched.
            let _ = bot.cancel(&ticket).await;
        }
        Behavior::Plays | Behavior::Reconnects | Behavior::Grouped => {}
    }
    until_ended(bot, event_stream, behavior, rng).await
}

/// Waits until the player's ticket has ended. Returns how.
async fn until_ended(
    bot: &Bot,
    event_stream: &mut EventStream,
    behavior: Behavior,
    rng: &mut StdRng,
) -> Result<String, String> {
    loop {
        let frame = if behavior == Behavior::Reconnects {
            let Ok(frame) = timeout(Duration::from_millis(rng.random_range(0..1_500)), event_stream.next()).await
            else {
                event_stream.hang_up();
                continue;
            };
            frame
        } else {
            event_stream.next().await
        };
        let frame = frame.map_err(|error| error.to_string())?;
        match &*frame.type_name {
            "PlayerMatched" => {
                let bot = bot.clone();
                // The event stream reports how the match ends, whatever the game server does.
                tokio::spawn(async move { race(&bot, &frame).await });
            }
            "Released" => return Ok(format!("released, {}", frame.data["why"].as_str().unwrap_or_default())),
            "Cancelled" => return Ok(format!("cancelled, {}", frame.data["reason"].as_str().unwrap_or_default())),
            "TimedOut" => return Ok("timed out".into()),
            _ => {}
        }
    }
}

#[derive(Deserialize)]
struct Address {
    session: String,
    #[serde(flatten)]
    at: garage_events::player::Address,
}

async fn race(bot: &Bot, notice: &Frame) {
    let Ok(Address { session, at }) = serde_json::from_value(notice.data.clone()) else { return };
    if let Ok((server, token)) = bot.admission(&session, &at).await {
        let _ = client::drive(&server, &token, Driving::default()).await;
    }
}
