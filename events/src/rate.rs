//! Rate limits: how often something may happen. The flags of the gateway and the queues file write them in the same
//! form.

use std::{num::NonZeroU32, str::FromStr, time::Duration};

use serde::Deserialize;

/// The maximum number of tokens in a bucket.
const MAX_BURST: u32 = 1_000_000;

/// The maximum number of tokens that return per second.
const MAX_PER_SECOND: f64 = 1_000_000.0;

/// How long an empty bucket may take to become full again. A bucket is stored until it is full, so this limits how many
/// buckets are stored.
const MAX_FILL: Duration = Duration::from_secs(3_600);

/// A rate limit: a token bucket, or no limit.
///
/// Its text is `BURST/PER_SECOND`: `40/1` admits 40 at once and then one per second, and `10/0.2` admits 10 at once and
/// then one in five seconds. `off` and `0` mean no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub enum RateLimit {
    /// No limit.
    #[default]
    Off,
    /// Each request takes a token. A full bucket has `burst` tokens, 1 to 1,000,000. One token returns after each
    /// `refill`.
    Bucket { burst: NonZeroU32, refill: Duration },
}

/// How much of a wrong text an error contains, in characters.
const MAX_SHOWN: usize = 64;

/// Why a text is not a rate limit. Contains the beginning of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRateLimit {
    #[error(
        "{0:?} is not a rate limit; write BURST/PER_SECOND, such as 40/1 for 40 at once and then one per second, or off"
    )]
    Malformed(String),
    #[error(
        "{0:?} is not a rate limit: BURST divided by PER_SECOND is more than {max}; lower BURST or raise PER_SECOND",
        max = MAX_FILL.as_secs()
    )]
    Slow(String),
}

impl FromStr for RateLimit {
    type Err = InvalidRateLimit;

    fn from_str(text: &str) -> Result<Self, InvalidRateLimit> {
        if matches!(text, "off" | "0") {
            return Ok(Self::Off);
        }
        let shown = || text.chars().take(MAX_SHOWN).collect();
        // The parsers of numbers accept more than digits and a point.
        let plain = text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'/'));
        let parts = text.split_once('/').filter(|_| plain);
        let parts =
            parts.and_then(|(burst, rate)| Some((burst.parse::<NonZeroU32>().ok()?, rate.parse::<f64>().ok()?)));
        let in_range =
            |(burst, rate): &(NonZeroU32, f64)| burst.get() <= MAX_BURST && *rate > 0.0 && *rate <= MAX_PER_SECOND;
        let (burst, rate) = parts.filter(in_range).ok_or_else(|| InvalidRateLimit::Malformed(shown()))?;
        if f64::from(burst.get()) / rate > MAX_FILL.as_secs_f64() {
            return Err(InvalidRateLimit::Slow(shown()));
        }
        Ok(Self::Bucket { burst, refill: Duration::from_secs_f64(1.0 / rate) })
    }
}

impl TryFrom<String> for RateLimit {
    type Error = InvalidRateLimit;

    fn try_from(text: String) -> Result<Self, InvalidRateLimit> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_limit_is_a_burst_and_a_rate_per_second() {
        for (text, burst, millis) in [("40/1", 40, 1_000), ("10/0.2", 10, 5_000), ("1/1000", 1, 1), ("7/2.5", 7, 400)] {
            let burst = NonZeroU32::new(burst).unwrap();
            let refill = Duration::from_millis(millis);
            assert_eq!(text.parse(), Ok(RateLimit::Bucket { burst, refill }), "{text}");
        }
        for off in ["off", "0"] {
            assert_eq!(off.parse(), Ok(RateLimit::Off));
        }
    }

    #[test]
    fn any_other_text_is_refused_and_named() {
        let malformed = ["", "40", "/1", "40/", "0/1", "40/0", "-1/1", "+1/1", "1e3/1", "40/inf", "4.5/1", "40/1/s"];
        for bad in malformed.into_iter().chain(["1000001/1000", "1/1000001", "Off", " 40/1"]) {
            let error = bad.parse::<RateLimit>().unwrap_err();
            assert_eq!(error, InvalidRateLimit::Malformed(bad.into()));
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
        let long = "7".repeat(100_000).parse::<RateLimit>();
        assert_eq!(long, Err(InvalidRateLimit::Malformed("7".repeat(MAX_SHOWN))), "only its beginning");
        assert_eq!("3601/1".parse::<RateLimit>(), Err(InvalidRateLimit::Slow("3601/1".into())));
        assert!("3600/1".parse::<RateLimit>().is_ok());
    }

    #[test]
    fn any_bytes_are_a_rate_limit_within_its_bounds_or_a_short_error() {
        garage_fuzz::feed(&["40/1", "1000000/1000000", "10/0.2", "off"], |bytes| {
            match String::from_utf8_lossy(bytes).parse::<RateLimit>() {
                Ok(RateLimit::Off) => true,
                Ok(RateLimit::Bucket { burst, refill }) => {
                    assert!(burst.get() <= MAX_BURST && refill >= Duration::from_micros(1));
                    // The rate is a fraction, so the product can differ by a rounding error of each token.
                    assert!(refill * burst.get() <= MAX_FILL + Duration::from_nanos(burst.get().into()));
                    true
                }
                Err(error) => {
                    assert!(error.to_string().len() <= 1_000);
                    false
                }
            }
        });
    }
}
