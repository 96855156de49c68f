//! Quantities of resources, such as `250m` or `64Mi`.

/// Whether one quantity is larger than another. A text that is not a quantity is larger than nothing.
pub(crate) fn exceeds(left: &str, right: &str) -> bool {
    value(left).zip(value(right)).is_some_and(|(left, right)| left > right)
}

fn value(text: &str) -> Option<f64> {
    let suffix = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = text.strip_suffix(suffix)?.parse().ok()?;
    let factor = match suffix {
        "" => 1.0,
        "m" => return Some(number / 1_000.0),
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1_024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        _ => return None,
    };
    Some(number * factor)
}
