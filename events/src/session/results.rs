//! Which results a session accepts from its game server.

use std::collections::BTreeMap;

use super::Matched;
use crate::{
    game::{Placing, TeamPlacing},
    id::PlayerId,
};

/// Why results were rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadResults {
    #[error("the match has teams of several players, but the results name no teams")]
    NoTeams,
    #[error("teams do not name each team of the session exactly once")]
    Teams,
    /// The places of the teams are not a competition ranking.
    #[error("team {team} has place {place}, but {ahead} teams are ahead; equal places are ties, as in 1, 2, 2, 4")]
    TeamRanking { team: String, place: u32, ahead: usize },
    #[error("results do not name each player of the session exactly once")]
    Players,
    /// The places are not a competition ranking: each place must be 1 plus the number of players ahead.
    #[error("{player} has place {place}, but {ahead} players are ahead; equal places are ties, as in 1, 2, 2, 4")]
    Ranking { player: PlayerId, place: u32, ahead: u32 },
    #[error("team {behind} is behind team {absent}, of which nobody joined")]
    AbsentTeam { absent: String, behind: String },
    /// A player has a better place than one with a shorter time, or than one who finished or joined.
    #[error("{ahead} is placed ahead of {behind}, which contradicts their times")]
    Times { ahead: PlayerId, behind: PlayerId },
    #[error("{player} has a time but did not join")]
    Absent { player: PlayerId },
}

/// Checks the results of a match:
/// - each player of the session is named exactly once, in any order;
/// - each team of the session is named exactly once, or none if each player is a team. A match of one team is a
///   free-for-all if none is named;
/// - the places are a competition ranking, such as 1, 2, 2, 4. In a match of teams, that of the teams is one, and each
///   player may have the place of their team;
/// - finishers are ahead of players who did not finish, and a shorter time is a better place. Equal times allow any
///   places, because a game may not measure times, or measure them more exactly than in milliseconds;
/// - nobody who joined is behind a player who did not, and only players who joined have a time.
///
/// # Errors
/// [`BadResults`]: the first rule that the results break.
pub fn check(matched: &Matched, results: &[Placing], teams: &[TeamPlacing]) -> Result<(), BadResults> {
    check_teams(matched, teams)?;
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
    let with_players = with_players(matched, teams.to_vec());
    let has_place_of_team = |placing: &Placing| place(placing, &with_players) == placing.place;
    let has_joined = |team: &TeamPlacing| results.iter().any(|one| one.joined && team.players.contains(&one.player));
    for absent in with_players.iter().filter(|team| !has_joined(team)) {
        if let Some(behind) = with_players.iter().find(|team| team.place > absent.place && has_joined(team)) {
            return Err(BadResults::AbsentTeam { absent: absent.team.clone(), behind: behind.team.clone() });
        }
    }
    if !teams.is_empty() && results.iter().all(has_place_of_team) {
        return Ok(());
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

fn check_teams(matched: &Matched, teams: &[TeamPlacing]) -> Result<(), BadResults> {
    if teams.is_empty() {
        let alone = matched.teams.len() == 1 || matched.teams.iter().all(|team| team.players.len() <= 1);
        return if alone { Ok(()) } else { Err(BadResults::NoTeams) };
    }
    let mut named: Vec<&str> = teams.iter().map(|placing| placing.team.as_str()).collect();
    let mut of_session: Vec<&str> = matched.teams.iter().map(|team| team.name.as_str()).collect();
    named.sort_unstable();
    of_session.sort_unstable();
    if named != of_session {
        return Err(BadResults::Teams);
    }
    for TeamPlacing { team, place, .. } in teams {
        let ahead = teams.iter().filter(|other| other.place < *place).count();
        if usize::try_from(*place) != Ok(ahead + 1) {
            return Err(BadResults::TeamRanking { team: team.clone(), place: *place, ahead });
        }
    }
    Ok(())
}

/// The places of teams with the players of each team.
pub(super) fn with_players(matched: &Matched, mut teams: Vec<TeamPlacing>) -> Vec<TeamPlacing> {
    for placing in &mut teams {
        let team = matched.teams.iter().find(|team| team.name == placing.team);
        let players = team.into_iter().flat_map(|team| &team.players);
        placing.players = players.map(|member| member.player.clone()).collect();
    }
    teams
}

/// The place by which a player is paid: that of their team, if the teams have places.
pub fn place(placing: &Placing, teams: &[TeamPlacing]) -> u32 {
    let team = teams.iter().find(|team| team.players.contains(&placing.player));
    team.map_or(placing.place, |team| team.place)
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
