//! Durations as people write them: `10s`, `500ms`, `1m30s`, `1.5h`.

use std::time::Duration;

/// Units and their nanoseconds; longer names first where one begins another.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// Reads a duration; `None` when it is none. A bare number has no unit and is refused, except `0`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() || total.is_zero() && rest.len() == text.len() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = rest.get(..end)?;
        let nanos = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        rest = rest.get(end..)?;
        total = total.checked_add(Duration::try_from_secs_f64(number * nanos as f64 / 1e9).ok()?)?;
    }
    Some(total)
}

/// Writes a duration in the largest unit that holds it without a rest, so that reading it gives it back.
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let whole = UNITS.iter().rev().find(|(_, unit)| nanos != 0 && nanos.is_multiple_of(u128::from(*unit)));
    whole.map_or_else(|| "0s".to_owned(), |(name, unit)| format!("{}{name}", nanos / u128::from(*unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes() {
        let cases = [("10s", 10_000), ("500ms", 500), ("1m30s", 90_000), ("1.5h", 5_400_000), ("2d", 172_800_000)];
        for (text, millis) in cases {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse_duration(text), Some(duration), "{text}");
            assert_eq!(parse_duration(&format_duration(duration)), Some(duration), "{text}");
        }
        assert_eq!(parse_duration("0"), Some(Duration::ZERO));
        assert_eq!(parse_duration(&format_duration(Duration::ZERO)), Some(Duration::ZERO));
        for bad in ["", "10", "s", "10 s", "10x", "-1s", "1..5s", "ten", "1e9s", "99999999999999999999999d", "10sm"] {
            assert_eq!(parse_duration(bad), None, "{bad:?}");
        }
    }
}
