//! Money and durations as people write them. In policy and log money is micro-units, here it is decimal: 0.50 is 500,000. Never
//! a float on the way.

const MICROS: u64 = 1_000_000;

/// Reads a decimal amount with at most six places, exactly.
pub(crate) fn micros(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no amount: write it like 0.50, with six decimals at most");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 6 {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let fraction: u64 = format!("{fraction:0<6}").parse().map_err(|_| wrong())?;
    whole.checked_mul(MICROS).and_then(|w| w.checked_add(fraction)).ok_or_else(wrong)
}

/// Writes an amount: two decimals, or as many as it needs.
pub(crate) fn decimal(micros: u64) -> String {
    let fraction = format!("{:06}", micros % MICROS);
    let (cents, rest) = fraction.split_at(2);
    format!("{}.{cents}{}", micros / MICROS, rest.trim_end_matches('0'))
}

/// Reads a duration such as `15m`, `90s` or `2h`; ms.
pub(crate) fn duration_ms(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no duration: write it like 90s, 15m or 2h");
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(at);
    let unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|ms| *ms > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_written_exactly() {
        for (text, expected) in [("0.50", 500_000), ("2.5", 2_500_000), ("7", 7_000_000), ("0.000001", 1)] {
            assert_eq!(micros(text), Ok(expected));
        }
        for wrong in ["", ".5", "1.0000001", "-1", "1e3", "1,5", "99999999999999999999"] {
            assert!(micros(wrong).is_err(), "{wrong:?}");
        }
        for (amount, text) in [(500_000, "0.50"), (1, "0.000001"), (2_512_300, "2.5123"), (7_000_000, "7.00")]
        {
            assert_eq!(decimal(amount), text);
            assert_eq!(micros(text), Ok(amount));
        }
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration_ms("15m"), Ok(900_000));
        assert_eq!((duration_ms("90s"), duration_ms("2h")), (Ok(90_000), Ok(7_200_000)));
        for wrong in ["", "15", "m", "1.5h", "0s", "1w", "99999999999999999999s"] {
            assert!(duration_ms(wrong).is_err(), "{wrong:?}");
        }
    }
}
