//! Which results a session accepts from its game server.

use std::collections::BTreeMap;

use super::Matched;
use crate::{game::Placing, id::PlayerId};

/// Why results were rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadResults {
    #[error("results do not name each player of the session exactly once")]
    Players,
    /// The places are not a competition ranking: each place must be 1 plus the number of players ahead.
    #[error("{player} has place {place}, but {ahead} players are ahead; equal places are ties, as in 1, 2, 2, 4")]
    Ranking { player: PlayerId, place: u32, ahead: u32 },
    /// A player has a better place than one with a shorter time, or than one who finished or joined.
    #[error("{ahead} is placed ahead of {behind}, which contradicts their times")]
    Times { ahead: PlayerId, behind: PlayerId },
    #[error("{player} has a time but did not join")]
    Absent { player: PlayerId },
}

/// Checks the results of a match:
/// - each player of the session is named exactly once, in any order;
/// - the places are a competition ranking, such as 1, 2, 2, 4;
/// - finishers are ahead of players who did not finish, and a shorter time is a better place. Equal times allow any
///   places, because a game may not measure times, or measure them more exactly than in milliseconds;
/// - nobody who joined is behind a player who did not, and only players who joined have a time.
///
/// # Errors
/// [`BadResults`]: the first rule that the results break.
pub fn check(matched: &Matched, results: &[Placing]) -> Result<(), BadResults> {
    let mut named: BTreeMap<&PlayerId, u32> = matched.players().map(|player| (player, 0)).collect();
    for placing in results {
        *named.get_mut(&placing.player).ok_or(BadResults::Players)? += 1;
    }
    if named.values().any(|times| *times != 1) {
        return Err(BadResults::Players);
    }
    if let Some(Placing { player, .. }) = results.iter().find(|placing| !placing.joined && placing.time_ms.is_some()) {
        return Err(BadResults::Absent { player: player.clone() });
    }
    let mut ranked: Vec<&Placing> = results.iter().collect();
    ranked.sort_by_key(|placing| (placing.place, merit(placing)));
    let mut ahead = 0;
    for group in ranked.chunk_by(|one, next| one.place == next.place) {
        for Placing { player, place, .. } in group {
            if *place != ahead + 1 {
                return Err(BadResults::Ranking { player: player.clone(), place: *place, ahead });
            }
        }
        ahead += u32::try_from(group.len()).unwrap_or(u32::MAX);
    }
    for (one, next) in ranked.iter().zip(ranked.iter().skip(1)) {
        let tied = one.place == next.place;
        let fits = match (merit(one), merit(next)) {
            // A game may place those who did not finish at one shared last place, with those who did not join.
            (Merit::Unfinished, Merit::Absent) => true,
            (one, next) if tied => one == next,
            (one, next) => one <= next,
        };
        if !fits {
            return Err(BadResults::Times { ahead: one.player.clone(), behind: next.player.clone() });
        }
    }
    Ok(())
}

/// What a player achieved, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Merit {
    /// Finished, after this many milliseconds.
    Finished(u64),
    Unfinished,
    Absent,
}

fn merit(placing: &Placing) -> Merit {
    match (placing.joined, placing.time_ms) {
        (true, Some(time_ms)) => Merit::Finished(time_ms),
        (true, None) => Merit::Unfinished,
        (false, _) => Merit::Absent,
    }
}
