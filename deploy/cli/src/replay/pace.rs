//! When each event of a replay is due.

use std::{str::FromStr, time::Duration};

use time::OffsetDateTime;

/// The speed of a replay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Speed {
    /// As fast as the target accepts events.
    Full,
    /// This many times the recorded speed.
    Times(f64),
}

impl FromStr for Speed {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "full" => Ok(Self::Full),
            "recorded" => Ok(Self::Times(1.0)),
            _ => match text.parse::<f64>() {
                Ok(times) if times.is_finite() && times > 0.0 => Ok(Self::Times(times)),
                _ => Err("neither `full` nor `recorded` nor a factor, such as 10 or 0.5"),
            },
        }
    }
}

/// Calculates when each event is due, from the stream's timestamps.
#[derive(Debug)]
pub(crate) struct Pace {
    speed: Speed,
    first: Option<OffsetDateTime>,
}

impl Pace {
    pub(crate) fn new(speed: Speed) -> Self {
        Self { speed, first: None }
    }

    /// How long after the replay's first event the event with this timestamp is due. Counting from the first event, and
    /// not from the previous one, keeps delays from adding up.
    pub(crate) fn due(&mut self, time: OffsetDateTime) -> Duration {
        let first = *self.first.get_or_insert(time);
        match self.speed {
            Speed::Full => Duration::ZERO,
            Speed::Times(times) => {
                let seconds = (time - first).as_seconds_f64().max(0.0) / times;
                Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dues(speed: &str, millis: &[i64]) -> Vec<u128> {
        let mut pace = Pace::new(speed.parse().unwrap());
        let at = |millis: &i64| OffsetDateTime::UNIX_EPOCH + time::Duration::milliseconds(1_000_000 + millis);
        millis.iter().map(|millis| pace.due(at(millis)).as_millis()).collect()
    }

    #[test]
    fn at_full_speed_everything_is_due_at_once() {
        assert_eq!(dues("full", &[0, 100, 5_000]), [0, 0, 0]);
    }

    #[test]
    fn at_recorded_speed_the_pauses_are_the_same_as_in_the_log() {
        assert_eq!(dues("recorded", &[0, 100, 100, 5_000]), [0, 100, 100, 5_000]);
    }

    #[test]
    fn a_factor_shortens_or_lengthens_every_pause() {
        assert_eq!(dues("10", &[0, 100, 5_000]), [0, 10, 500]);
        assert_eq!(dues("0.5", &[0, 100, 5_000]), [0, 200, 10_000]);
    }

    #[test]
    fn a_timestamp_before_the_first_is_due_at_once_and_a_huge_pause_is_capped() {
        assert_eq!(dues("recorded", &[0, -100, 50]), [0, 0, 50]);
        assert_eq!(dues("1e-300", &[0, 1_000]), [0, Duration::MAX.as_millis()]);
    }

    #[test]
    fn a_speed_is_a_word_or_a_positive_number() {
        for bad in ["", "0", "-1", "inf", "NaN", "fast"] {
            assert!(bad.parse::<Speed>().is_err(), "{bad}");
        }
    }
}
