//! The datagrams. All numbers are big-endian. `mac` is the first 16 bytes of HMAC-SHA256 over the preceding bytes.
//!
//! - from a client, 32 bytes: `udp_id u32 | counter u64 | throttle f32 | mac`;
//! - from the server, 21 + 9n bytes: `tick u32 | n u8 | n × (index u8, position f32, speed f32) | mac`. A snapshot of
//!   more than 100 cars takes several datagrams with the same tick.
//!
//! Both directions use the same key. An attacker still cannot reflect a datagram to its sender: 21 + 9n is never 32, so
//! that the length shows the direction.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{CarState, Key, Snapshot};

/// Length of a client's datagram, in bytes.
pub const INPUT_LEN: usize = 4 + 8 + 4 + MAC_LEN;

/// Maximum number of cars in a datagram. It fits any network path: QUIC assumes at least 1,200 bytes (RFC 9000 section
/// 14).
const CARS: u8 = 100;

/// Length of the longest datagram from the server, in bytes.
pub const SNAPSHOT_MAX: usize = 4 + 1 + 9 * CARS as usize + MAC_LEN;

const MAC_LEN: usize = 16;

/// A player's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Input {
    /// The `udp_id` from the welcome.
    pub id: u32,
    /// Starts at 1 and increases with each datagram.
    pub counter: u64,
    /// As sent by the client. Not range-checked yet.
    pub throttle: f32,
}

impl Input {
    /// Writes the datagram.
    pub fn seal(&self, key: &Key) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(INPUT_LEN);
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.counter.to_be_bytes());
        bytes.extend(self.throttle.to_be_bytes());
        seal(bytes, key)
    }

    /// The id in a datagram, not verified. The server uses it to find the key.
    pub fn claimed_id(datagram: &[u8]) -> Option<u32> {
        if datagram.len() != INPUT_LEN {
            return None;
        }
        datagram.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    /// Verifies and parses a datagram. `None` if it was not written with this key.
    pub fn open(datagram: &[u8], key: &Key) -> Option<Self> {
        let body = open(datagram, key)?;
        let (id, rest) = body.split_first_chunk()?;
        let (counter, rest) = rest.split_first_chunk()?;
        let (throttle, rest) = rest.split_first_chunk()?;
        rest.is_empty().then(|| Self {
            id: u32::from_be_bytes(*id),
            counter: u64::from_be_bytes(*counter),
            throttle: f32::from_be_bytes(*throttle),
        })
    }
}

impl Snapshot {
    /// Writes the datagrams.
    pub fn seal(&self, key: &Key) -> impl Iterator<Item = Vec<u8>> {
        self.cars.chunks(usize::from(CARS)).map(|cars| {
            let mut bytes = Vec::with_capacity(SNAPSHOT_MAX);
            bytes.extend(self.tick.to_be_bytes());
            bytes.push(u8::try_from(cars.len()).unwrap_or(CARS));
            for car in cars {
                bytes.push(car.index);
                bytes.extend(car.position.to_be_bytes());
                bytes.extend(car.speed.to_be_bytes());
            }
            seal(bytes, key)
        })
    }

    /// Verifies and parses a datagram, which may contain only some of the cars. `None` if it was not written with this
    /// key.
    pub fn open(datagram: &[u8], key: &Key) -> Option<Self> {
        let (tick, rest) = open(datagram, key)?.split_first_chunk()?;
        let (count, mut rest) = rest.split_first()?;
        let mut cars = Vec::with_capacity(usize::from(*count));
        for _ in 0..*count {
            let (index, after) = rest.split_first()?;
            let (position, after) = after.split_first_chunk()?;
            let (speed, after) = after.split_first_chunk()?;
            let (position, speed) = (f32::from_be_bytes(*position), f32::from_be_bytes(*speed));
            cars.push(CarState { index: *index, position, speed });
            rest = after;
        }
        rest.is_empty().then(|| Self { tick: u32::from_be_bytes(*tick), cars })
    }
}

fn mac(body: &[u8], key: &Key) -> Hmac<Sha256> {
    // HMAC pads a short key with zeros to the block length (RFC 2104). Padding it here, to an array of that length,
    // makes the constructor infallible.
    let mut block = [0; 64];
    for (to, from) in block.iter_mut().zip(key.0) {
        *to = from;
    }
    let mut mac = Hmac::new(&block.into());
    mac.update(body);
    mac
}

fn seal(mut body: Vec<u8>, key: &Key) -> Vec<u8> {
    let tag = mac(&body, key).finalize().into_bytes();
    body.extend(tag.iter().take(MAC_LEN));
    body
}

fn open<'a>(datagram: &'a [u8], key: &Key) -> Option<&'a [u8]> {
    let (body, tag) = datagram.split_last_chunk::<MAC_LEN>()?;
    // This comparison takes constant time.
    mac(body, key).verify_truncated_left(tag).ok()?;
    Some(body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_mac_matches_rfc_4231() {
        // Test case 1: a key of 20 bytes 0x0b. The trailing zeros do not change the MAC.
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        let sealed = seal(b"Hi There".to_vec(), &Key::new(key));
        let expected = [0xb0, 0x34, 0x4c, 0x61, 0xd8, 0xdb, 0x38, 0x53, 0x5c, 0xa8, 0xaf, 0xce, 0xaf, 0x0b, 0xf1, 0x2b];
        assert_eq!(sealed[8..], expected);
    }

    proptest! {
        #[test]
        fn an_input_survives_a_round_trip_and_any_changed_bit_is_detected(
            id: u32, counter: u64, throttle in -1.0f32..2.0, bit in 0..INPUT_LEN * 8, secret: [u8; 32],
        ) {
            let key = Key::new(secret);
            let input = Input { id, counter, throttle };
            let mut bytes = input.seal(&key);
            prop_assert_eq!(bytes.len(), INPUT_LEN);
            prop_assert_eq!(Input::claimed_id(&bytes), Some(id));
            prop_assert_eq!(Input::open(&bytes, &key), Some(input));
            prop_assert_eq!(Snapshot::open(&bytes, &key), None);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Input::open(&bytes, &key), None);
        }

        #[test]
        fn a_snapshot_survives_a_round_trip_in_datagrams_of_at_most_1200_bytes(tick: u32, count in 1u8..=255) {
            let key = Key::new([1; 32]);
            let cars = (0..count).map(|index| CarState { index, position: 1.0, speed: f32::from(index) }).collect();
            let snapshot = Snapshot { tick, cars };
            let mut opened = Vec::new();
            for bytes in snapshot.seal(&key) {
                prop_assert!(bytes.len() <= SNAPSHOT_MAX && SNAPSHOT_MAX <= 1_200);
                prop_assert_eq!(Input::open(&bytes, &key), None);
                let part = Snapshot::open(&bytes, &key).unwrap();
                prop_assert_eq!(part.tick, tick);
                opened.extend(part.cars);
            }
            prop_assert_eq!(opened, snapshot.cars);
        }

    }

    #[test]
    fn any_bytes_are_no_datagram_except_one_that_was_written_with_the_key() {
        let (key, other) = (Key::new([2; 32]), Key::new([3; 32]));
        let input = Input { id: 7, counter: u64::MAX, throttle: f32::NAN }.seal(&key);
        let cars = vec![CarState { index: 0, position: 1.0, speed: 2.0 }; 3];
        let snapshots: Vec<_> = Snapshot { tick: 9, cars }.seal(&key).collect();
        let written = [std::slice::from_ref(&input), &snapshots].concat();
        garage_fuzz::feed(&written, |bytes| {
            let is_open = Input::open(bytes, &key).is_some() || Snapshot::open(bytes, &key).is_some();
            assert_eq!(is_open, written.iter().any(|one| one == bytes));
            assert!(Input::open(bytes, &other).is_none() && Snapshot::open(bytes, &other).is_none());
            assert_eq!(Input::claimed_id(bytes).is_some(), bytes.len() == INPUT_LEN);
            is_open
        });
    }
}
