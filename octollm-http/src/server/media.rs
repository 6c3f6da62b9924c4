//! Media types and codings: what a caller sends, and what it takes.

use http::HeaderValue;

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(crate) const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// Whether a content type is `application/json` or `application/…+json`, in UTF-8.
pub(crate) fn is_json(value: &str) -> bool {
    let mut parts = value.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
    let Some(subtype) = essence.strip_prefix("application/") else { return false };
    let named = subtype == "json" || subtype.strip_suffix("+json").is_some_and(|name| !name.is_empty());
    named
        && parts.all(|parameter| match parameter.split_once('=') {
            Some((name, value)) if name.eq_ignore_ascii_case("charset") => {
                value.trim_matches('"').eq_ignore_ascii_case("utf-8")
            }
            _ => true,
        })
}

/// What a caller says of `application/json` in its `Accept` fields, taken together.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Accepts {
    /// The most specific range that fits decides (RFC 9110 §12.5.1).
    best: Option<(u8, bool)>,
    told: bool,
}

impl Accepts {
    pub(crate) fn add(&mut self, value: &HeaderValue) {
        self.told = true;
        for range in value.to_str().unwrap_or_default().split(',') {
            if let Some(found) = range_for_json(range)
                && self.best.is_none_or(|best| found.0 > best.0)
            {
                self.best = Some(found);
            }
        }
    }

    /// Whether it takes `application/json`.
    pub(crate) fn json(self) -> bool {
        !self.told || self.best.is_some_and(|(_, taken)| taken)
    }
}

/// How specific the range is, if it covers `application/json`, and whether it lets it through.
fn range_for_json(range: &str) -> Option<(u8, bool)> {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next()?;
    let specific = ["*/*", "application/*", "application/json"]
        .iter()
        .position(|known| media.eq_ignore_ascii_case(known))
        .and_then(|position| u8::try_from(position).ok())?;
    let weight = parts.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.eq_ignore_ascii_case("q").then(|| value.parse::<f32>().unwrap_or(0.0))
    });
    Some((specific, weight.is_none_or(|weight| weight > 0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_by_any_of_its_names() {
        for value in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/json;charset=\"utf-8\"",
            "application/cloudevents+json",
            "application/json; profile=x",
        ] {
            assert!(is_json(value), "{value}");
        }
        for value in [
            "text/plain",
            "application/json; charset=latin1",
            "application/+json",
            "application/x-www-form-urlencoded",
            "json",
            "",
        ] {
            assert!(!is_json(value), "{value}");
        }
    }

    #[test]
    fn the_most_specific_range_decides() {
        let takes = |values: &[&'static str]| {
            let mut accepts = Accepts::default();
            values.iter().for_each(|value| accepts.add(&HeaderValue::from_static(value)));
            accepts.json()
        };
        for values in [
            &[][..],
            &["*/*"],
            &["text/html, Application/JSON;q=0.1"],
            &["text/html", "application/*"],
            &["application/json, */*;q=0"],
        ] {
            assert!(takes(values), "{values:?}");
        }
        for values in [
            &["text/html"][..],
            &["*/*, application/json;q=0"],
            &["*/*", "application/json;q=0"],
            &["application/json;q=0", "*/*"],
            &["application/json;q=0.000"],
            &[""],
            &["text/*"],
        ] {
            assert!(!takes(values), "{values:?}");
        }
    }
}
