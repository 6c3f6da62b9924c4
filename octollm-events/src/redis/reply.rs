//! Reads replies in RESP3 from a buffer, without a copy of their texts.
//!
//! The driver hands what a server pushes to a queue without a limit. Here the reader decides when to read on.

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
        let mut bytes = buffer.split_to(end).freeze();
        read(&mut bytes).map(Some)
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
fn line(bytes: &[u8], from: usize) -> Option<(usize, &[u8])> {
    let rest = bytes.get(from..)?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    Some((from + end + 2, &rest[..end]))
}

fn number(line: &[u8]) -> Result<i64, Malformed> {
    std::str::from_utf8(line).ok().and_then(|text| text.parse().ok()).ok_or(Malformed)
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
    let Some((next, line)) = line(bytes, from + 1) else { return Ok(None) };
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

/// Reads a reply that is complete.
fn read(bytes: &mut Bytes) -> Result<Reply, Malformed> {
    let (next, _) = line(bytes, 1).ok_or(Malformed)?;
    let head = bytes.split_to(next);
    let (kind, rest) = (head[0], head.slice(1..next - 2));
    Ok(match kind {
        b'+' => Reply::Text(rest),
        b'-' => Reply::Error(String::from_utf8_lossy(&rest).into_owned()),
        b':' => Reply::Number(number(&rest)?),
        b'$' | b'!' | b'=' => {
            let Some(length) = length(&rest)? else { return Ok(Reply::Other) };
            let text = bytes.split_to(length);
            bytes.advance(2);
            match kind {
                b'!' => Reply::Error(String::from_utf8_lossy(&text).into_owned()),
                // `txt:` is before the text.
                b'=' => Reply::Text(text.slice(4.min(text.len())..)),
                _ => Reply::Text(text),
            }
        }
        b'*' | b'~' | b'>' | b'%' | b'|' => {
            let count = length(&rest)?.unwrap_or(0) * if matches!(kind, b'%' | b'|') { 2 } else { 1 };
            let mut items = Vec::with_capacity(count.min(64));
            for _ in 0..count {
                items.push(read(bytes)?);
            }
            match kind {
                b'>' => Reply::Push(items),
                b'|' => read(bytes)?,
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
        let sent = b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$4\r\n\r\n\0x\r\n%1\r\n+role\r\n$6\r\nmaster\r\n-ERR no\r\n:-7\r\n$-1\r\n_\r\n";
        let expected = [
            Reply::Push(vec![text("message"), text("a"), text("\r\n\0x")]),
            Reply::List(vec![text("role"), text("master")]),
            Reply::Error("ERR no".to_owned()),
            Reply::Number(-7),
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
        for bytes in ["HTTP/1.1 400\r\n", "$x\r\n", ":1.5\r\n", "*-2\r\n", "!-2\r\n"] {
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
