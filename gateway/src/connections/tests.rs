use futures::FutureExt;
use serde_json::{Map, json};
use time::OffsetDateTime;

use super::*;

const LIMITS: Limits = Limits { total: 4, per_address: 2, per_player: 2 };

fn connections() -> Connections {
    Connections::new(LIMITS, false)
}

fn ip(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

fn open(connections: &Connections, last: u8) -> Result<(Claim, Eviction), Refusal> {
    connections.open(Some(ip(last)), Instant::now())
}

fn identity(player: &str) -> Identity {
    let expires_at = OffsetDateTime::UNIX_EPOCH;
    Identity { player: player.parse().unwrap(), sub: player.into(), rank: None, expires_at, claims: Map::new() }
}

/// Which of these connections must end.
fn ended(opened: &mut Vec<(Claim, Eviction)>) -> Vec<bool> {
    opened.drain(..).map(|(_, eviction)| eviction.wait().now_or_never().is_some()).collect()
}

#[test]
fn at_the_limit_of_an_address_its_oldest_connection_ends_for_the_new_one() {
    let connections = connections();
    let mut opened: Vec<_> = [2, 1, 1].map(|last| open(&connections, last).unwrap()).into();
    opened.push(open(&connections, 1).unwrap());
    assert_eq!(ended(&mut opened), [false, true, false, false]);
}

#[test]
fn a_connection_counts_for_the_address_that_its_proxy_names() {
    let connections = connections();
    let mut opened: Vec<_> = (0..3).map(|_| connections.open(None, Instant::now()).unwrap()).collect();
    opened.iter().for_each(|(claim, _)| claim.locate(ip(1)).unwrap());
    assert_eq!(ended(&mut opened), [true, false, false]);
}

#[test]
fn an_authenticated_connection_counts_for_its_player_and_no_longer_for_its_address() {
    let connections = connections();
    let opened = [open(&connections, 1).unwrap(), open(&connections, 1).unwrap()];
    for (claim, _) in &opened {
        assert!(!claim.is_authenticated());
        claim.authenticate(&identity("ann")).unwrap();
        assert!(claim.is_authenticated());
    }
    let third = open(&connections, 1).unwrap();
    assert_eq!(third.0.authenticate(&identity("ann")), Err(Refusal::Player));
    assert!(!third.0.is_authenticated());
    third.0.authenticate(&identity("bob")).unwrap();
    drop(opened);
    let again = open(&connections, 1).unwrap();
    again.0.authenticate(&identity("ann")).unwrap();
}

#[test]
fn the_studios_backend_has_no_limit_per_player() {
    let connections = connections();
    let backend = Identity { claims: Map::from_iter([("scope".into(), json!(token::GROUPS))]), ..identity("backend") };
    let opened: Vec<_> = (1..=4).map(|last| open(&connections, last).unwrap()).collect();
    assert!(opened.iter().all(|(claim, _)| claim.authenticate(&backend).is_ok()));
}

#[test]
fn when_the_gateway_is_full_the_oldest_connection_without_a_token_ends() {
    let connections = connections();
    let mut opened: Vec<_> = (1..=4).map(|last| open(&connections, last).unwrap()).collect();
    opened[0].0.authenticate(&identity("ann")).unwrap();
    let fifth = [open(&connections, 5).unwrap()];
    let evicted: Vec<_> = opened.drain(..).map(|(claim, eviction)| (claim, eviction.wait().now_or_never())).collect();
    let ended: Vec<_> = evicted.iter().map(|(_, ended)| ended.is_some()).collect();
    assert_eq!(ended, [false, true, false, false]);
    // The slot of the ended connection is not freed twice.
    drop(evicted);
    let more: Vec<_> = (6..=8).map(|last| open(&connections, last).unwrap()).collect();
    for (index, (claim, _)) in fifth.iter().chain(&more).enumerate() {
        claim.authenticate(&identity(&format!("player-{index}"))).unwrap();
    }
    assert_eq!(open(&connections, 9).err(), Some(Refusal::Full));
}

#[test]
fn a_forwarded_request_counts_for_its_address_or_its_player_but_takes_no_slot() {
    let connections = Connections::new(Limits { total: 1, ..LIMITS }, true);
    let requests = [connections.request(), connections.request(), connections.request()];
    requests[0].locate(ip(1)).unwrap();
    requests[1].locate(ip(1)).unwrap();
    assert_eq!(requests[2].locate(ip(1)), Err(Refusal::Address));
    requests[2].authenticate(&identity("ann")).unwrap();
    assert!(connections.open(None, Instant::now()).is_ok());
}

#[test]
fn addresses_of_one_ipv6_network_count_as_one() {
    let of = |text: &str| network(text.parse().unwrap());
    assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
    assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
}

#[test]
fn the_gateway_warns_once_an_hour_that_most_connections_share_an_address() {
    let connections = Connections::new(Limits { total: 1_000, per_address: 1_000, ..LIMITS }, false);
    let start = Instant::now();
    let warned = || *lock(&connections.0.sharing.as_ref().unwrap().warned);
    let mut opened: Vec<_> = (0..MANY - 1).map(|_| connections.open(Some(ip(1)), start).unwrap()).collect();
    assert_eq!(warned(), None, "few connections");
    opened.push(connections.open(Some(ip(1)), start).unwrap());
    assert_eq!(warned(), Some(start));
    opened.push(connections.open(Some(ip(1)), start + WARNING_INTERVAL / 2).unwrap());
    assert_eq!(warned(), Some(start), "within the interval");
    let later = start + WARNING_INTERVAL;
    opened.extend((0..2 * MANY).map(|last| connections.open(Some([10, 0, 0, last as u8].into()), later).unwrap()));
    opened.push(connections.open(Some(ip(1)), later).unwrap());
    assert_eq!(warned(), Some(start), "no longer most of the connections");
    opened.drain(MANY..);
    opened.push(connections.open(Some(ip(1)), later).unwrap());
    assert_eq!(warned(), Some(later));
}
