//! Reads the log like a gateway, and notices when both players of a pair are matched.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use garage_events::{
    jetstream::{
        JetStreamLog,
        follow::{Follow, Message},
        written::Written,
    },
    subject::{Aggregate, PLAYERS, STREAM},
};
use time::OffsetDateTime;
use tokio::time::timeout;

use super::events::SIDES;

/// The type of the event of a matched player.
const MATCHED: &str = "Matched";

/// How long to wait for the next match. A matchmaker with a million tickets may take minutes for a cycle.
const MATCH_LIMIT: Duration = Duration::from_secs(300);

/// Follows the players of a load. The players of its pairs are named `<load>-<pair>-a` and `<load>-<pair>-b`.
#[derive(Debug)]
pub(super) struct Watch {
    follow: Follow,
    load: String,
    /// How many players of each pair are matched.
    matched: Vec<u8>,
    /// Pairs that are not matched yet.
    left: u32,
}

/// Both players of a pair are matched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Complete {
    pub(super) pair: usize,
    /// When this process received the event of the second player.
    pub(super) received: Instant,
    /// When the server stored it.
    pub(super) stored: OffsetDateTime,
}

impl Watch {
    /// Follows a load that is appended later.
    pub(super) async fn start(log: &JetStreamLog, load: &str, pairs: u32) -> anyhow::Result<Self> {
        let from = log.state().await?.last_sequence + 1;
        let mut follow = Follow::new(log.context().clone(), STREAM, vec![PLAYERS.into()], from);
        follow.connect().await.map_err(anyhow::Error::from_boxed).context("cannot follow the log")?;
        Ok(Self { follow, load: format!("{load}-"), matched: vec![0; usize::try_from(pairs)?], left: pairs })
    }

    /// The number of pairs.
    pub(super) fn pairs(&self) -> usize {
        self.matched.len()
    }

    /// Waits until another pair is matched. Returns `None` if all pairs are.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Complete>> {
        while self.left > 0 {
            let message = self.follow.next().await;
            let received = Instant::now();
            let Some(pair) = matched_pair(&self.load, &message) else { continue };
            let matched = self.matched.get_mut(pair).with_context(|| format!("there is no pair {pair}"))?;
            *matched += 1;
            ensure!(usize::from(*matched) <= SIDES.len(), "the players of pair {pair} are matched twice");
            if usize::from(*matched) == SIDES.len() {
                self.left -= 1;
                return Ok(Some(Complete { pair, received, stored: message.time }));
            }
        }
        Ok(None)
    }
}

/// Waits for the next match, with a limit: if nobody makes matches, the benchmark must end.
pub(super) async fn within_limit<T>(next: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    timeout(MATCH_LIMIT, next).await.with_context(|| format!("no match for {} s", MATCH_LIMIT.as_secs()))?
}

/// The pair of the player, if the message says that a player of this load is matched. `load` ends with `-`.
fn matched_pair(load: &str, message: &Message) -> Option<usize> {
    let Some(Aggregate::Player(player)) = Aggregate::of(&message.subject) else { return None };
    let (pair, _) = player.as_str().strip_prefix(load)?.split_once('-')?;
    let written = Written::of(message.headers.as_ref());
    written.type_name.filter(|name| *name == MATCHED).and_then(|_| pair.parse().ok())
}

#[cfg(test)]
mod tests {
    use async_nats::HeaderMap;
    use garage_events::event::{Event, TYPE_HEADER};

    use super::{super::events::player, *};

    #[test]
    fn only_matches_of_the_load_count() {
        assert!(garage_events::player::Event::TYPES.contains(&MATCHED));
        let of = |player: &str, type_name: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(TYPE_HEADER, type_name);
            let subject = Aggregate::Player(player.parse().unwrap()).filter();
            let (headers, time) = (Some(headers), OffsetDateTime::UNIX_EPOCH);
            matched_pair("burst-1-", &Message { seq: 1, time, subject, headers, body: Default::default(), pending: 0 })
        };
        assert_eq!(of(&player("burst-1", 17, 'b'), MATCHED), Some(17));
        assert_eq!(of(&player("burst-1", 17, 'b'), "Queued"), None);
        assert_eq!(of(&player("burst-1-of-5", 17, 'b'), MATCHED), None);
        assert_eq!(of(&player("burst-2", 17, 'b'), MATCHED), None);
    }
}
