//! Time limits as people write them.

/// The milliseconds of `500ms`, `10s`, `2m` or `1h`.
pub(crate) fn millis(text: &str) -> Result<u64, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    if digits.is_empty() || factor == 0 {
        return Err(format!(
            "`{text}` is not a time limit: it takes a whole number and `ms`, `s`, `m` or `h`, such as `10s`"
        ));
    }
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)) {
        Some(0) => Err("a time limit of nothing would end every call before it began".into()),
        Some(millis) => Ok(millis),
        None => Err(format!("`{text}` is too long a time")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_whole_numbers_with_a_unit() {
        for (text, expected) in
            [("500ms", 500), ("10s", 10_000), ("2m", 120_000), ("1h", 3_600_000), ("007s", 7_000)]
        {
            assert_eq!(millis(text), Ok(expected));
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "10",
            "s",
            "0s",
            "0ms",
            "1.5s",
            "-1s",
            "+1s",
            "10 s",
            "10S",
            "1d",
            "1m30s",
            "99999999999999999h",
        ] {
            assert!(millis(text).is_err(), "{text}");
        }
    }
}
