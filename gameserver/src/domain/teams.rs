//! The places of teams.

use garage_events::game::{Placing, Team, TeamPlacing};

/// The places of the teams by the mean place of their players. Empty if each player counts alone: each is a team, or
/// there is one team, which makes a free-for-all.
pub fn placings(teams: &[Team], results: &[Placing]) -> Vec<TeamPlacing> {
    if teams.len() <= 1 || teams.iter().all(|team| team.players.len() <= 1) {
        return Vec::new();
    }
    // The sum of the places and the number of players. Their quotients are compared without rounding.
    let score = |team: &Team| {
        let places = results.iter().filter(|placing| team.players.contains(&placing.player));
        let places = places.map(|placing| u64::from(placing.place));
        (places.sum::<u64>(), team.players.len().max(1) as u64)
    };
    let scores: Vec<_> = teams.iter().map(score).collect();
    let placings = teams.iter().zip(&scores).map(|(team, (sum, count))| {
        let ahead = scores.iter().filter(|(other, size)| other * count < sum * size).count();
        let place = u32::try_from(ahead).unwrap_or(u32::MAX).saturating_add(1);
        TeamPlacing { team: team.name.clone(), place, players: Vec::new() }
    });
    placings.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The places of teams, whose players have these places in the race.
    fn places(teams: &[&[u32]]) -> Vec<u32> {
        let player = |place: &u32| format!("p{place}").parse().unwrap();
        let team = |places: &&[u32]| Team { name: "t".into(), players: places.iter().map(player).collect() };
        let results = teams.iter().flat_map(|places| places.iter());
        let results =
            results.map(|place| Placing { player: player(place), place: *place, time_ms: Some(9), joined: true });
        let results: Vec<_> = results.collect();
        placings(&teams.iter().map(team).collect::<Vec<_>>(), &results).iter().map(|team| team.place).collect()
    }

    #[test]
    fn the_team_with_the_best_mean_place_wins() {
        for (teams, expected) in [
            (&[&[1, 4][..], &[2, 3]][..], vec![1, 1]),
            (&[&[1, 3], &[2, 4]], vec![1, 2]),
            // One against four: the mean counts, not the sum.
            (&[&[3], &[1, 2, 4, 5]], vec![1, 1]),
            (&[&[4], &[1, 2, 3, 5]], vec![2, 1]),
            (&[&[5, 6], &[1, 4], &[2, 3]], vec![3, 1, 1]),
        ] {
            assert_eq!(places(teams), expected, "{teams:?}");
        }
    }

    #[test]
    fn players_who_count_alone_have_no_places_of_teams() {
        assert_eq!(places(&[&[1], &[2]]), [0; 0]);
        assert_eq!(places(&[&[1, 2, 3]]), [0; 0], "a free-for-all");
    }
}
