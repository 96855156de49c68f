//! The codes with which anybody can join a party: 10 characters of Crockford's base32. Pure.
//!
//! A code is a secret of the party's members. The log and this gateway's memory hold only its SHA-256.

use garage_events::game::hex;
use sha2::{Digest, Sha256};

/// The digits of Crockford's base32. It has no I, L, O and U, which people confuse with other characters.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// The number of characters, of 5 bits each.
const LENGTH: u32 = 10;

/// The code that the lowest 50 bits of a random number make.
///
/// 50 bits are enough: by default, a player may try 10 codes at once and then one in 6 s, and a code is valid for an hour.
/// So 1,000 players who guess for an hour find a given code with a probability of less than 1 in a billion.
pub(crate) fn encode(random: u64) -> String {
    let digits = (0..LENGTH).rev().map(|place| {
        let digit = usize::try_from((random >> (5 * place)) & 31).unwrap_or_default();
        // Always within the digits.
        char::from(DIGITS.get(digit).copied().unwrap_or_default())
    });
    digits.collect()
}

/// The SHA-256 of a code, in lower-case hex.
pub(crate) fn sha256(code: &str) -> String {
    hex(&Sha256::digest(code))
}

/// The code that a player has typed: in upper case, without spaces and hyphens, and with I, L and O as the digits that
/// they look like. `None` if it cannot be a code.
pub(crate) fn typed(text: &str) -> Option<String> {
    let kept = text.chars().filter(|character| !matches!(character, ' ' | '-'));
    let digits = kept.map(|character| match character.to_ascii_uppercase() {
        'I' | 'L' => Some('1'),
        'O' => Some('0'),
        digit => DIGITS.contains(&u8::try_from(digit).ok()?).then_some(digit),
    });
    // One more than a code has is enough to see that the text is too long.
    let code = digits.take(LENGTH as usize + 1).collect::<Option<String>>()?;
    (code.len() == LENGTH as usize).then_some(code)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_code_is_read_as_people_type_it() {
        for (text, code) in [
            ("0123456789", Some("0123456789")),
            ("abcde-fghjk", Some("ABCDEFGHJK")),
            ("OLIL0 12345", Some("0111012345")),
            ("012345678", None),
            ("01234567890", None),
            ("U123456789", None),
            ("é123456789", None),
            ("", None),
        ] {
            assert_eq!(typed(text).as_deref(), code, "{text}");
        }
    }

    #[test]
    fn the_hash_of_a_code_is_its_sha_256() {
        // The test vector of FIPS 180-2, appendix B.1.
        assert_eq!(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    proptest! {
        #[test]
        fn every_number_of_50_bits_has_a_code_of_its_own(one in 0..1_u64 << 50, other in 0..1_u64 << 50) {
            let code = encode(one);
            prop_assert_eq!(code.len(), 10);
            prop_assert_eq!(typed(&code), Some(code.clone()));
            prop_assert_eq!(code == encode(other), one == other);
        }
    }

    #[test]
    fn any_bytes_are_a_code_or_none() {
        garage_fuzz::feed(&["ABCDE-FGHJK", "0123456789", "ol il0 12345"], |bytes| {
            let code = typed(&String::from_utf8_lossy(bytes));
            code.iter().for_each(|code| assert_eq!(typed(code).as_ref(), Some(code)));
            code.is_some()
        });
    }
}
