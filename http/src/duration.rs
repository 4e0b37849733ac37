//! Durations as the v1 dialect writes them: `1m30s`, `250ms`, `1.5h`.

use std::time::Duration;

/// The longest duration taken: what fits into an `i64` of nanoseconds, as other clients of the dialect hold it.
const MAX_NANOSECONDS: u128 = i64::MAX as u128;

/// Reads `10s`, `1m30s`, `1.5h`, `100ms`, `0`; `None` for anything else, negative ones too.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        total = total.checked_add(scaled(number, unit_nanoseconds(unit)?)?)?;
        if total > MAX_NANOSECONDS {
            return None;
        }
        rest = tail;
    }
    from_nanoseconds(u64::try_from(total).ok()?)
}

/// A count of nanoseconds, unless it is beyond what the dialect can hold.
pub(crate) fn from_nanoseconds(count: u64) -> Option<Duration> {
    (u128::from(count) <= MAX_NANOSECONDS).then(|| Duration::from_nanos(count))
}

/// Writes it the way the dialect does: `10s`, `1m0s`, `1h0m30s`, `250ms`, `0s`.
pub(crate) fn format(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        let nanoseconds = duration.subsec_nanos();
        return match nanoseconds {
            0 => "0s".to_owned(),
            1..1_000 => format!("{nanoseconds}ns"),
            1_000..1_000_000 => format!("{}µs", fraction(u64::from(nanoseconds / 1_000), nanoseconds % 1_000, 3)),
            _ => format!("{}ms", fraction(u64::from(nanoseconds / 1_000_000), nanoseconds % 1_000_000, 6)),
        };
    }
    let seconds = duration.as_secs();
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    let rest = fraction(seconds % 60, duration.subsec_nanos(), 9);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

fn fraction(whole: u64, part: u32, digits: usize) -> String {
    if part == 0 {
        return whole.to_string();
    }
    let text = format!("{whole}.{part:0digits$}");
    text.trim_end_matches('0').to_owned()
}

fn unit_nanoseconds(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// `number` times `unit`, cut to whole nanoseconds.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && part.is_empty()) || part.contains('.') {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()?.into() };
    // 18 digits keep part * unit within u128; further ones are below a nanosecond.
    let part: String = part.chars().take(18).collect();
    let scale = 10_u128.checked_pow(u32::try_from(part.len()).ok()?)?;
    let part: u128 = if part.is_empty() { 0 } else { part.parse().ok()? };
    whole.checked_mul(unit)?.checked_add(part.checked_mul(unit)? / scale)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_dialect_is_read_and_written() {
        let table = [
            ("10s", 10_000, "10s"),
            ("1m30s", 90_000, "1m30s"),
            ("1m", 60_000, "1m0s"),
            ("1.5h", 5_400_000, "1h30m0s"),
            ("250ms", 250, "250ms"),
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("1s500ms", 1_500, "1.5s"),
            (".5s", 500, "500ms"),
        ];
        for (text, milliseconds, written) in table {
            let read = parse(text).unwrap_or_else(|| panic!("{text} was refused"));
            assert_eq!(read, Duration::from_millis(milliseconds), "{text}");
            assert_eq!(format(read), written, "{text}");
        }
        for bad in ["", "10", "s", "-1s", "1x", "1.2.3s", ".s", "999999999h", "1 s", "ten"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn reading_any_text_does_not_panic(text in "[0-9.hmsunµ+ -]{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_reads_back(nanoseconds in 0..i64::MAX as u64) {
            let duration = Duration::from_nanos(nanoseconds);
            prop_assert_eq!(parse(&format(duration)), Some(duration));
        }
    }
}
