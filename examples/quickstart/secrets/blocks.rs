//! Private keys in PEM blocks.

use super::{Found, SecretKind};

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
/// How much of a key must follow the first line: that line alone is what every reader of keys has in its
/// source.
const LEAST: usize = 16;

/// Finds the blocks, each up to the end of its last line.
pub(super) fn find(text: &str) -> Vec<Found> {
    let starts = text.match_indices(BEGIN).map(|(start, _)| start);
    starts
        .filter_map(|start| Some(Found { kind: SecretKind::PrivateKey, start, end: end(text, start)? }))
        .collect()
}

/// The end of the private key that starts here.
fn end(text: &str, start: usize) -> Option<usize> {
    let (label, body) = text.get(start + BEGIN.len()..)?.split_once("-----")?;
    let private = label.ends_with("PRIVATE KEY") || label == "PGP PRIVATE KEY BLOCK";
    let words = label.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b' ');
    if !private || !words {
        return None;
    }
    let inner = body.split_once("-----").map_or(body, |(inner, _)| inner);
    let last_line = body.get(inner.len()..)?.strip_prefix(END).and_then(|rest| rest.find("-----"));
    let (inner, length) = match last_line {
        Some(label) => (inner, inner.len() + END.len() + label + "-----".len()),
        // A block that is cut off ends with what is of its alphabet.
        None => {
            let cut = inner.find(|next: char| !is_base64(next) && !is_between(next)).unwrap_or(inner.len());
            (inner.get(..cut)?, cut)
        }
    };
    let longest = inner.split(|next: char| !is_base64(next)).map(without_escape).max()?;
    (longest >= LEAST).then_some(text.len() - body.len() + length)
}

fn is_base64(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '+' | '/' | '=')
}

/// What stands between the lines of a key in a source.
fn is_between(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\\' | '"' | ',' | '#' | '*')
}

/// The length of a line, without the letter that a `\n` before it has left.
fn without_escape(line: &str) -> usize {
    line.trim_start_matches(['n', 'r']).len()
}

#[cfg(test)]
mod tests {
    use super::find;

    fn block(label: &str, body: &str) -> String {
        format!("-----{} {label}-----{body}-----{} {label}-----", "BEGIN", "END")
    }

    #[test]
    fn private_keys_are_found_whole() {
        for label in ["PRIVATE KEY", "RSA PRIVATE KEY", "OPENSSH PRIVATE KEY", "PGP PRIVATE KEY BLOCK"] {
            for body in [
                "\nMIIEvQIBADANBgkqhkiG9w0B\nAQEF==\n",
                "\\nMIIEvQIBADANBgkqhkiG9w0B\\n",
                "\\\n  MIIEvQIBADANBgkqhkiG\\\n",
            ] {
                let key = block(label, body);
                let text = format!("let key = \"{key}\";");
                let found = find(&text);
                assert_eq!(found.len(), 1, "{label} {body}");
                assert_eq!(&text[found[0].start..found[0].end], key);
            }
        }
    }

    #[test]
    fn other_blocks_are_none() {
        for label in ["PUBLIC KEY", "CERTIFICATE", "private KEY", "NO PRIVATE KEYS"] {
            assert!(find(&block(label, "\nMIIEvQIBADANBgkqhkiG9w0B\n")).is_empty(), "{label}");
        }
    }

    #[test]
    fn the_first_line_alone_is_none() {
        assert!(find(&block("PRIVATE KEY", "\n...\n")).is_empty());
        assert!(
            find(&format!("\"-----{} PRIVATE KEY-----\" => a_long_name_of_something()", "BEGIN")).is_empty()
        );
    }

    #[test]
    fn a_block_without_an_end_is_found() {
        let text = format!("-----{} PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\n; x", "BEGIN");
        assert_eq!(find(&text).first().map(|found| found.end), Some(text.len() - 3));
    }
}
