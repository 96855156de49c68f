//! Quantities of resources, such as `250m` or `64Mi`.

/// The value of a quantity in billionths, so that all are integers. `None` if the text is not a quantity, or is out of
/// range. Smaller fractions are cut off.
pub(super) fn billionths(text: &str) -> Option<i128> {
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let suffix = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number = text.strip_suffix(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    // The value is digits * factor / 10^places.
    let places = i32::try_from(fraction.len()).ok()?;
    let (factor, exponent) = match suffix {
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1_i128 << 50, 0),
        "Ei" => (1_i128 << 60, 0),
        _ => (1, suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let exponent: i32 = 9_i32.checked_sub(places)?.checked_add(exponent)?;
    let scale = 10_i128.checked_pow(exponent.unsigned_abs())?;
    let value = digits.checked_mul(factor)?;
    let value = if exponent < 0 { value.checked_div(scale)? } else { value.checked_mul(scale)? };
    value.checked_mul(sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_of_every_form_are_read() {
        for (text, expected) in [
            ("2", 2_000_000_000),
            ("250m", 250_000_000),
            ("0.7", 700_000_000),
            ("700.5m", 700_500_000),
            (".5", 500_000_000),
            ("1.5Ki", 1_536_000_000_000),
            ("1k", 1_000_000_000_000),
            ("1e3", 1_000_000_000_000),
            ("1E-3", 1_000_000),
            ("3n", 3),
            ("-1", -1_000_000_000),
            ("+1", 1_000_000_000),
            ("64Mi", 67_108_864_000_000_000),
        ] {
            assert_eq!(billionths(text), Some(expected), "{text}");
        }
        for bad in ["", ".", "2 cores", "1.2.3", "Mi", "1KB", "0x10", "1e", "1e99", "--1"] {
            assert_eq!(billionths(bad), None, "{bad:?}");
        }
    }
}
