//! Reads replies in RESP3 from a buffer, without a copy of their texts.
//!
//! The reader decides when to read on.

use bytes::{Buf, Bytes, BytesMut};

/// A reply of a server.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Reply {
    Text(Bytes),
    Error(String),
    Number(i64),
    /// The names and values of a map follow one another.
    List(Vec<Reply>),
    Push(Vec<Reply>),
    /// Null, and types that are of no use here.
    Other,
}

/// Bytes that are no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server sent bytes that are not RESP3")]
pub(super) struct Malformed;

/// Lists within lists that are read.
const DEPTH: u8 = 8;

impl Reply {
    /// Takes the first reply from a buffer. Returns `None` where it is not complete.
    pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Self>, Malformed> {
        let Some(end) = end_of(buffer, 0, DEPTH)? else { return Ok(None) };
        if buffer[0] == b':' {
            let number = number(&buffer[1..end - 2])?;
            buffer.advance(end);
            return Ok(Some(Self::Number(number)));
        }
        read(&buffer.split_to(end).freeze(), &mut 0).map(Some)
    }

    pub(super) fn as_text(&self) -> Option<&[u8]> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value of a name in a map.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        let Self::List(items) = self else { return None };
        let found = items.chunks_exact(2).find(|pair| pair[0].as_text() == Some(name.as_bytes()))?;
        found.get(1)
    }
}

/// The place after the line that begins at `from`, and the line without its end.
fn line(bytes: &[u8], from: usize) -> Result<Option<(usize, &[u8])>, Malformed> {
    let rest = bytes.get(from..).unwrap_or_default();
    let Some(end) = rest.iter().position(|byte| *byte == b'\r') else { return Ok(None) };
    match rest.get(end + 1) {
        Some(b'\n') => Ok(Some((from + end + 2, &rest[..end]))),
        Some(_) => Err(Malformed),
        None => Ok(None),
    }
}

fn number(line: &[u8]) -> Result<i64, Malformed> {
    let (is_negative, digits) = match line {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() {
        return Err(Malformed);
    }
    let mut number = 0_i64;
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10).ok_or(Malformed)?;
        let digit = if is_negative { -i64::from(digit) } else { i64::from(digit) };
        number = number.checked_mul(10).and_then(|number| number.checked_add(digit)).ok_or(Malformed)?;
    }
    Ok(number)
}

/// The length of a text or a list. One that is null has none.
fn length(line: &[u8]) -> Result<Option<usize>, Malformed> {
    match number(line)? {
        -1 => Ok(None),
        length => usize::try_from(length).map(Some).map_err(|_| Malformed),
    }
}

/// The place after the reply that begins at `from`, or `None` where it is not complete.
fn end_of(bytes: &[u8], from: usize, depth: u8) -> Result<Option<usize>, Malformed> {
    let Some(kind) = bytes.get(from) else { return Ok(None) };
    let Some((next, line)) = line(bytes, from + 1)? else { return Ok(None) };
    match kind {
        b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => Ok(Some(next)),
        b'$' | b'!' | b'=' => {
            let Some(length) = length(line)? else { return Ok(Some(next)) };
            let end = next.checked_add(length).and_then(|end| end.checked_add(2)).ok_or(Malformed)?;
            Ok(Some(end).filter(|end| *end <= bytes.len()))
        }
        b'*' | b'~' | b'>' | b'%' | b'|' => {
            let Some(depth) = depth.checked_sub(1) else { return Err(Malformed) };
            let count = length(line)?.unwrap_or(0);
            // Attributes stand before the reply that they describe.
            let more = usize::from(*kind == b'|');
            let pairs = matches!(kind, b'%' | b'|');
            let count = if pairs { count.checked_mul(2) } else { Some(count) };
            let mut end = next;
            for _ in 0..count.and_then(|count| count.checked_add(more)).ok_or(Malformed)? {
                match end_of(bytes, end, depth)? {
                    Some(next) => end = next,
                    None => return Ok(None),
                }
            }
            Ok(Some(end))
        }
        _ => Err(Malformed),
    }
}

/// Reads a reply that is complete, and goes to its end.
fn read(bytes: &Bytes, at: &mut usize) -> Result<Reply, Malformed> {
    let kind = *bytes.get(*at).ok_or(Malformed)?;
    let (next, line) = line(bytes, *at + 1)?.ok_or(Malformed)?;
    *at = next;
    Ok(match kind {
        b'+' => Reply::Text(bytes.slice_ref(line)),
        b'-' => Reply::Error(String::from_utf8_lossy(line).into_owned()),
        b':' => Reply::Number(number(line)?),
        b'$' | b'!' | b'=' => {
            let Some(length) = length(line)? else { return Ok(Reply::Other) };
            let text = next..next + length;
            *at = text.end + 2;
            match kind {
                b'!' => Reply::Error(String::from_utf8_lossy(&bytes[text]).into_owned()),
                // `txt:` is before the text.
                b'=' => Reply::Text(bytes.slice(text.end.min(text.start + 4)..text.end)),
                _ => Reply::Text(bytes.slice(text)),
            }
        }
        b'*' | b'~' | b'>' | b'%' | b'|' => {
            let count = length(line)?.unwrap_or(0) * if matches!(kind, b'%' | b'|') { 2 } else { 1 };
            let mut items = Vec::with_capacity(count.min(64));
            for _ in 0..count {
                items.push(read(bytes, at)?);
            }
            match kind {
                b'>' => Reply::Push(items),
                b'|' => read(bytes, at)?,
                _ => Reply::List(items),
            }
        }
        _ => Reply::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &'static str) -> Reply {
        Reply::Text(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn replies_are_read_however_they_are_cut() {
        let sent = b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$4\r\n\r\n\0x\r\n%1\r\n+role\r\n$6\r\nmaster\r\n-ERR no\r\n:-7\r\n:-9223372036854775808\r\n$-1\r\n_\r\n";
        let expected = [
            Reply::Push(vec![text("message"), text("a"), text("\r\n\0x")]),
            Reply::List(vec![text("role"), text("master")]),
            Reply::Error("ERR no".to_owned()),
            Reply::Number(-7),
            Reply::Number(i64::MIN),
            Reply::Other,
            Reply::Other,
        ];
        for cut in 1..sent.len() {
            let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
            for part in sent.chunks(cut) {
                buffer.extend_from_slice(part);
                while let Some(reply) = Reply::take(&mut buffer).unwrap() {
                    found.push(reply);
                }
            }
            assert_eq!(found, expected, "cut each {cut} bytes");
        }
        assert_eq!(expected[1].get("role"), Some(&text("master")));
        assert_eq!(expected[1].get("mode"), None);
    }

    #[test]
    fn other_bytes_are_malformed() {
        for bytes in [
            "HTTP/1.1 400\r\n",
            "$x\r\n",
            ":1.5\r\n",
            ":\r\n",
            ":-\r\n",
            ":9223372036854775808\r\n",
            "*-2\r\n",
            "!-2\r\n",
            "+a\rb",
        ] {
            let mut buffer = BytesMut::from(bytes);
            let mut taken = Reply::take(&mut buffer);
            if taken == Ok(None) {
                buffer.extend_from_slice(b"x\r\n");
                taken = Reply::take(&mut buffer);
            }
            assert_eq!(taken, Err(Malformed), "{bytes:?}");
        }
        let mut deep = BytesMut::from("*1\r\n".repeat(100).as_bytes());
        assert_eq!(Reply::take(&mut deep), Err(Malformed));
    }
}
