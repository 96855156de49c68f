//! Players who come, race, give up, vanish and return, each at his own moments.

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
use garage_stack::bot::{Bot, EventStream, Frame};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Deserialize;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Garage,
    history::{Event, assert_notified},
};

/// More than come in a second.
const A_SECOND: usize = 20;

/// How long a player waits for an answer, or for the end of what he began. No fault lasts half as long.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// What a player has in mind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// Queues and races, twice.
    Plays,
    /// The same, and his connection breaks again and again.
    Restless,
    /// Queues, and thinks better of it.
    GivesUp,
    /// Queues, and is seen no more.
    Vanishes,
}

/// What became of a player.
struct Player {
    name: String,
    frames: Vec<Frame>,
    /// Whether he listened from before his first ticket to the end of his last.
    heard_all: bool,
    /// How often each kind of end.
    ends: Vec<String>,
    /// What he waited for in vain.
    lost: Option<String>,
}

/// All who were there.
pub(crate) struct Players(Vec<Player>);

impl fmt::Display for Players {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
        for end in self.0.iter().flat_map(|player| &player.ends) {
            *ends.entry(end).or_default() += 1;
        }
        let served = self.0.iter().filter(|player| player.lost.is_none()).count();
        writeln!(f, "{served} players served; their tickets:")?;
        ends.into_iter().try_for_each(|(end, count)| writeln!(f, "  {count:>6}  {end}"))
    }
}

impl Players {
    /// Checks that each was served, and heard what the log has of him.
    pub(crate) fn assert_served(&self, seed: u64, events: &[Event]) {
        for player in &self.0 {
            assert!(player.lost.is_none(), "seed {seed}: {} was not served: {:?}", player.name, player.lost);
            if player.heard_all {
                assert_notified(events, &player.name, &player.frames);
            }
        }
    }
}

/// Players who keep coming.
pub(crate) struct Crowd {
    full: Arc<AtomicBool>,
    here: JoinSet<Vec<Player>>,
}

impl Crowd {
    /// Lets them come for about so long, so many at a time.
    pub(crate) fn come(garage: &Garage, seed: u64, time: Duration, at_once: usize) -> Self {
        let gateways = garage.stack.gateways();
        let most = A_SECOND * usize::try_from(time.as_secs() + 10).unwrap();
        let bot = |number: usize| {
            let his = [number, number + 1].map(|number| &gateways[number % gateways.len()]);
            garage.bot(&format!("player-{number}")).with_gateways(&his).with_max_wait(MAX_WAIT)
        };
        let bots: Arc<[Bot]> = (0..most).map(bot).collect();
        let (full, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut here = JoinSet::new();
        for _ in 0..at_once {
            let (full, next, bots) = (Arc::clone(&full), Arc::clone(&next), Arc::clone(&bots));
            here.spawn(async move {
                let mut players = Vec::new();
                while !full.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(bot) = bots.get(number) else { break };
                    let random = StdRng::seed_from_u64(seed.wrapping_mul(1 << 32).wrapping_add(number as u64));
                    players.push(visit(bot, random, &full).await);
                }
                players
            });
        }
        Self { full, here }
    }

    /// Lets nobody in any more, and waits until all have gone.
    pub(crate) async fn leave(self) -> Players {
        self.full.store(true, Ordering::Relaxed);
        Players(self.here.join_all().await.into_iter().flatten().collect())
    }
}

async fn visit(bot: &Bot, mut random: StdRng, full: &AtomicBool) -> Player {
    let mood = match random.random_range(0..10) {
        0..6 => Mood::Plays,
        6 => Mood::GivesUp,
        7 => Mood::Vanishes,
        _ => Mood::Restless,
    };
    let mut player = Player {
        name: bot.player.clone(),
        frames: Vec::new(),
        heard_all: mood != Mood::Vanishes,
        ends: Vec::new(),
        lost: None,
    };
    let mut event_stream = match bot.event_stream().await {
        Ok(event_stream) => event_stream,
        Err(error) => {
            player.lost = Some(error.to_string());
            return player;
        }
    };
    let rounds = if mood == Mood::Plays || mood == Mood::Restless { 2 } else { 1 };
    for number in 0..rounds {
        if number > 0 && full.load(Ordering::Relaxed) {
            break;
        }
        match timeout(MAX_WAIT, round(bot, &mut event_stream, mood, &mut random)).await {
            Ok(Ok(end)) => player.ends.push(end),
            Ok(Err(what)) => player.lost = Some(what),
            Err(_) => {
                player.lost = Some(format!("his ticket did not end; he heard {:?}", types(event_stream.frames())))
            }
        }
        if player.lost.is_some() {
            break;
        }
    }
    player.frames = event_stream.close().await;
    player
}

fn types(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| &*frame.type_name).collect()
}

/// Queues, and what comes of it.
async fn round(bot: &Bot, event_stream: &mut EventStream, mood: Mood, random: &mut StdRng) -> Result<String, String> {
    let ticket = bot.queue("ranked").await.map_err(|problem| format!("queueing: {problem:?}"))?;
    let pause = Duration::from_millis(random.random_range(0..1_000));
    match mood {
        Mood::Vanishes => {
            sleep(pause).await;
            return Ok("vanished".into());
        }
        Mood::GivesUp => {
            sleep(pause).await;
            // If he is matched by now, it is too late.
            let _ = bot.cancel(&ticket).await;
        }
        Mood::Plays | Mood::Restless => {}
    }
    loop {
        let frame = if mood == Mood::Restless {
            let Ok(frame) = timeout(Duration::from_millis(random.random_range(0..1_500)), event_stream.next()).await
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
                // He hears by his event_stream how it ends, whatever the game server says, if it says anything.
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
