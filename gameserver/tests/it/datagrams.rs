//! Only authentic and new datagrams move a player's car.

use std::{collections::BTreeSet, time::Duration};

use garage_events::{
    game::Config,
    queue::MAX_PLAYERS,
    session::size::{self, MAX_LOADOUT},
};
use garage_gameserver::{
    Options,
    client::{self, Connection},
    wire::{
        CarState, FromServer, Key, Snapshot,
        datagram::{Input, SNAPSHOT_MAX},
    },
};
use tokio::net::UdpSocket;

use crate::game::{Game, long, soon};

/// Waits for the next snapshot that arrives by WebSocket.
async fn by_websocket(connection: &mut Connection) -> Snapshot {
    loop {
        if let FromServer::Snapshot(snapshot) = soon(client::receive(connection)).await.unwrap() {
            return snapshot;
        }
    }
}

/// Waits for the next snapshot that arrives by datagram, and verifies it.
async fn by_datagram(socket: &UdpSocket, key: &Key) -> Snapshot {
    let mut buffer = [0; SNAPSHOT_MAX];
    let length = soon(socket.recv(&mut buffer)).await.unwrap();
    Snapshot::open(&buffer[..length], key).expect("an authentic snapshot")
}

async fn socket(game: &Game) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect((game.server.address.ip(), game.server.udp_port)).await.unwrap();
    socket
}

#[tokio::test]
async fn forged_datagrams_are_ignored() {
    let game = Game::start(&["anna"], long()).await;
    let (mut anna, welcome) = game.join("anna").await;
    let socket = socket(&game).await;
    let full = Input { id: welcome.udp_id, counter: 1, throttle: 1.0 };
    let good = full.seal(&welcome.udp_key);
    let mut tampered = good.clone();
    tampered[15] ^= 1;
    let mut longer = good.clone();
    longer.push(0);
    let forged = [
        Vec::new(),
        vec![0; 4],
        vec![0; 32],
        vec![0xff; 1400],
        good[..31].to_vec(),
        longer,
        tampered,
        full.seal(&Key::new([0; 32])),
        Input { id: welcome.udp_id.wrapping_add(1), ..full }.seal(&welcome.udp_key),
        Input { counter: 0, ..full }.seal(&welcome.udp_key),
    ];
    // The race runs. Snapshots arrive by WebSocket, so the server has accepted no UDP address of Anna's.
    by_websocket(&mut anna).await;
    for _ in 0..3 {
        for datagram in &forged {
            socket.send(datagram).await.unwrap();
        }
        for _ in 0..3 {
            assert_eq!(by_websocket(&mut anna).await.cars, [CarState { index: 0, position: 0.0, speed: 0.0 }]);
        }
    }
    // The valid datagram moves her car, and snapshots arrive by datagram from then on.
    socket.send(&good).await.unwrap();
    while by_datagram(&socket, &welcome.udp_key).await.cars[0].speed == 0.0 {}
}

#[tokio::test]
async fn in_the_largest_match_the_datagrams_of_a_snapshot_contain_all_cars() {
    let names: Vec<_> = (0..MAX_PLAYERS).map(|number| format!("p{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    // All loadouts are as large as they can be. The welcome contains them.
    let largest = |config: &mut Config| {
        for loadout in &mut config.players {
            loadout.car.model = "m".repeat(MAX_LOADOUT - size::of_loadout(loadout));
        }
    };
    let short = Options { join_timeout: Duration::from_millis(100), ..long() };
    let game = Game::start_with(&names, short, 0, largest).await;
    let (mut connection, welcome) = game.join("p199").await;
    assert_eq!(welcome.players.len(), 200);
    assert_eq!(by_websocket(&mut connection).await.cars.len(), 200);

    let socket = socket(&game).await;
    socket.send(&Input { id: welcome.udp_id, counter: 1, throttle: 1.0 }.seal(&welcome.udp_key)).await.unwrap();
    let mut seen = BTreeSet::new();
    while seen.len() < 200 {
        seen.extend(by_datagram(&socket, &welcome.udp_key).await.cars.iter().map(|car| car.index));
    }
}

#[tokio::test]
async fn replayed_datagrams_are_ignored() {
    let game = Game::start(&["anna"], long()).await;
    let (mut anna, welcome) = game.join("anna").await;
    let socket = socket(&game).await;
    let seal = |counter, throttle| Input { id: welcome.udp_id, counter, throttle }.seal(&welcome.udp_key);
    let speed = async || by_datagram(&socket, &welcome.udp_key).await.cars[0].speed;
    by_websocket(&mut anna).await;

    let full = seal(1, 1.0);
    socket.send(&full).await.unwrap();
    while speed().await < 5.0 {}
    socket.send(&seal(2, 0.0)).await.unwrap();
    // Wait until the zero throttle takes effect and the air slows the car down.
    let mut last = speed().await;
    loop {
        let now = speed().await;
        if now < last {
            break;
        }
        last = now;
    }
    // An authentic datagram with NaN is ignored too.
    socket.send(&seal(3, f32::NAN)).await.unwrap();
    for _ in 0..8 {
        socket.send(&full).await.unwrap();
        let now = speed().await;
        assert!(now <= last, "{now} after {last}");
        last = now;
    }
    // A datagram with a new counter is accepted.
    socket.send(&seal(4, 1.0)).await.unwrap();
    while speed().await <= last {}
}
