//! Datagrams, all numbers big-endian, each ending in the first 16 bytes of HMAC-SHA256 over what precedes:
//!
//! - from a client, 32 bytes: `udp_id u32 | counter u64 | throttle f32 | mac`;
//! - from the server, 21 + 9n bytes: `tick u32 | n u8 | n × (index u8, position f32, speed f32) | mac`.
//!
//! Both ways use one key. A datagram thrown back at its sender is still none of his: no n makes 32 of 21 + 9n.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{CarState, Key, Snapshot};

/// Bytes of a client's datagram.
pub const INPUT_LEN: usize = 4 + 8 + 4 + MAC_LEN;

/// Bytes of the longest datagram from a server.
pub const SNAPSHOT_MAX: usize = 4 + 1 + 9 * 255 + MAC_LEN;

const MAC_LEN: usize = 16;

/// A player's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Input {
    /// Whose it is, as the welcome said.
    pub id: u32,
    /// Greater in each datagram than in the one before; from 1.
    pub counter: u64,
    /// How far the pedal is down. Authentic, and still to be checked.
    pub throttle: f32,
}

impl Input {
    /// The datagram.
    pub fn seal(&self, key: &Key) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(INPUT_LEN);
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.counter.to_be_bytes());
        bytes.extend(self.throttle.to_be_bytes());
        seal(bytes, key)
    }

    /// Whose a datagram claims to be, so that his key can be found.
    pub fn claimed_id(datagram: &[u8]) -> Option<u32> {
        if datagram.len() != INPUT_LEN {
            return None;
        }
        datagram.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    /// Reads a datagram; `None` when it was not made with this key.
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
    /// The datagram. Cars past the 255th, which the count could not say, are left out.
    pub fn seal(&self, key: &Key) -> Vec<u8> {
        let count = u8::try_from(self.cars.len()).unwrap_or(u8::MAX);
        let mut bytes = Vec::with_capacity(5 + 9 * usize::from(count) + MAC_LEN);
        bytes.extend(self.tick.to_be_bytes());
        bytes.push(count);
        for car in self.cars.iter().take(usize::from(count)) {
            bytes.push(car.index);
            bytes.extend(car.position.to_be_bytes());
            bytes.extend(car.speed.to_be_bytes());
        }
        seal(bytes, key)
    }

    /// Reads a datagram; `None` when it was not made with this key.
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
    // A key shorter than the hash's block is filled up with zeros (RFC 2104); done here, where lengths are types, it
    // cannot fail.
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
    // Compares in constant time.
    mac(body, key).verify_truncated_left(tag).ok()?;
    Some(body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_mac_is_that_of_rfc_4231() {
        // Test case 1: key of 20 bytes 0b, here with zeros after, which mean the same.
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        let sealed = seal(b"Hi There".to_vec(), &Key::new(key));
        let expected = [0xb0, 0x34, 0x4c, 0x61, 0xd8, 0xdb, 0x38, 0x53, 0x5c, 0xa8, 0xaf, 0xce, 0xaf, 0x0b, 0xf1, 0x2b];
        assert_eq!(sealed[8..], expected);
    }

    proptest! {
        #[test]
        fn datagrams_come_back_and_no_bit_may_change(
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
        fn snapshots_come_back(tick: u32, count in 0u8..=255) {
            let key = Key::new([1; 32]);
            let cars = (0..count).map(|index| CarState { index, position: 1.0, speed: f32::from(index) }).collect();
            let snapshot = Snapshot { tick, cars };
            let bytes = snapshot.seal(&key);
            prop_assert!(bytes.len() <= SNAPSHOT_MAX);
            prop_assert_eq!(Snapshot::open(&bytes, &key), Some(snapshot));
            prop_assert_eq!(Input::open(&bytes, &key), None);
        }

        #[test]
        fn noise_is_no_datagram(noise: Vec<u8>) {
            let key = Key::new([2; 32]);
            prop_assert_eq!(Input::open(&noise, &key), None);
            prop_assert_eq!(Snapshot::open(&noise, &key), None);
        }
    }
}
