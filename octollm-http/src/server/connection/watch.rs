//! Follows the messages of an HTTP/1 connection by their raw bytes.

use std::io::BufRead;

/// Knows where in a message a connection is, and which head says its length in two ways.
///
/// hyper drops the `Content-Length` of a request that has a `Transfer-Encoding` as well, before a service can see it;
/// such a request has two ends, depending on who reads it, and must be refused. What is no HTTP/1 is hyper's to judge:
/// this then sees nothing any more.
#[derive(Debug)]
pub(crate) struct Watch {
    stage: Stage,
    /// The part of a line whose end has not come yet.
    line: Vec<u8>,
    heads: u64,
    two_lengths: Option<u64>,
    max_target: usize,
    long_target: bool,
}

/// Where in a message a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Before the first byte of the first head.
    New,
    /// Between two messages.
    Idle,
    Head,
    Body,
    /// Not HTTP/1.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Expects a request line.
    Start,
    Fields {
        length: Option<u64>,
        chunked: bool,
    },
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    /// `open`: what comes belongs to a line that has begun already.
    Trailers {
        open: bool,
    },
    Unknown,
}

/// A line longer than any limit on heads.
const MAX_LINE: usize = 1 << 20;

impl Watch {
    /// `max_target`: a request line of more bytes has a target that is too long.
    pub(crate) fn new(max_target: usize) -> Self {
        let (stage, line) = (Stage::Start, Vec::new());
        Self { stage, line, heads: 0, two_lengths: None, max_target, long_target: false }
    }

    /// Takes in what was read from the connection.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = match self.stage {
                Stage::Unknown => return,
                Stage::Body(left) => self.take_data(left, bytes, Stage::Body, Stage::Start),
                Stage::ChunkData(left) => self.take_data(left, bytes, Stage::ChunkData, Stage::ChunkEnd),
                _ => self.take_line(bytes),
            };
        }
    }

    /// It is not HTTP/1 that is spoken.
    pub(crate) fn give_up(&mut self) {
        (self.stage, self.line) = (Stage::Unknown, Vec::new());
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.stage {
            Stage::Start if !self.line.is_empty() => Phase::Head,
            Stage::Start if self.heads == 0 => Phase::New,
            Stage::Start => Phase::Idle,
            Stage::Fields { .. } => Phase::Head,
            Stage::Unknown => Phase::Unknown,
            _ => Phase::Body,
        }
    }

    /// The how-manieth head it was, from 1, that had both a length and a transfer coding.
    pub(crate) fn two_lengths(&self) -> Option<u64> {
        self.two_lengths
    }

    /// Whether the target of the last request was too long, as far as it has come.
    pub(crate) fn long_target(&self) -> bool {
        self.long_target || (self.stage == Stage::Start && self.line.len() > self.max_target)
    }

    fn take_data<'b>(&mut self, left: u64, bytes: &'b [u8], same: fn(u64) -> Stage, next: Stage) -> &'b [u8] {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let left = left - taken as u64;
        self.stage = if left == 0 { next } else { same(left) };
        &bytes[taken..]
    }

    /// Takes up to the end of a line; returns what is behind it.
    fn take_line<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let mut rest = bytes;
        // The standard library's way to find a byte fast; it cannot fail on a slice.
        let taken = rest.skip_until(b'\n').unwrap_or(bytes.len());
        let part = &bytes[..taken];
        if part.last() != Some(&b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() > MAX_LINE {
                self.give_up();
            }
        } else if self.line.is_empty() {
            self.end_line(part);
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(part);
            self.end_line(&line);
        }
        rest
    }

    fn end_line(&mut self, line: &[u8]) {
        let says_no_length = !matches!(line, [b'c' | b'C' | b't' | b'T' | b'\r' | b'\n', ..]);
        if says_no_length && matches!(self.stage, Stage::Fields { .. }) {
            return;
        }
        let crlf = line.ends_with(b"\r\n");
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        self.stage = match self.stage {
            // Empty lines before a request are passed over (RFC 9112 §2.2).
            Stage::Start if line.is_empty() => Stage::Start,
            Stage::Start => {
                self.long_target = line.len() > self.max_target;
                Stage::Fields { length: None, chunked: false }
            }
            Stage::Fields { length, chunked } if line.is_empty() => self.end_head(length, chunked),
            Stage::Fields { length, chunked } => match field(line) {
                Some(Field::Length(told)) => Stage::Fields { length: Some(told), chunked },
                Some(Field::Coding) => Stage::Fields { length, chunked: true },
                None => self.stage,
            },
            Stage::ChunkSize => match chunk_size(line) {
                Some(0) => Stage::Trailers { open: false },
                Some(size) => Stage::ChunkData(size),
                None => Stage::Unknown,
            },
            Stage::ChunkEnd if line.is_empty() => Stage::ChunkSize,
            Stage::ChunkEnd => Stage::Unknown,
            Stage::Trailers { open: false } if crlf && line.is_empty() => Stage::Start,
            // To hyper a bare line feed is part of a trailer: what follows must not be taken for another message.
            Stage::Trailers { .. } => Stage::Trailers { open: !crlf },
            other => other,
        };
    }

    fn end_head(&mut self, length: Option<u64>, chunked: bool) -> Stage {
        self.heads += 1;
        if chunked && length.is_some() && self.two_lengths.is_none() {
            self.two_lengths = Some(self.heads);
        }
        match length {
            _ if chunked => Stage::ChunkSize,
            None | Some(0) => Stage::Start,
            Some(length) => Stage::Body(length),
        }
    }
}

enum Field {
    Length(u64),
    Coding,
}

/// The fields that say where a body ends. A length that is no number, a name with space behind it and lengths that differ
/// are refused by hyper.
fn field(line: &[u8]) -> Option<Field> {
    const LENGTH: &[u8] = b"content-length";
    const CODING: &[u8] = b"transfer-encoding";
    let is =
        |name: &[u8]| line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name);
    match line.first()? | 0x20 {
        b'c' if is(LENGTH) => {
            let text = std::str::from_utf8(&line[LENGTH.len() + 1..]).unwrap_or_default();
            Some(Field::Length(text.trim().parse().unwrap_or(0)))
        }
        b't' if is(CODING) => Some(Field::Coding),
        _ => None,
    }
}

/// What stands behind the digits may be any bytes.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| b"; \t".contains(byte)).next()?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: &[u8] = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12\n\n5";
    const CHUNKED: &[u8] =
        b"\r\nPOST /a HTTP/1.1\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\n\n\n\n\n\n\r\n0\r\nTrailer: x\r\n\r\n";
    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    const BOTH: &[u8] =
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nHOST: x\r\ncontent-LENGTH: 3\r\n\r\n0\r\n\r\n";

    fn messages() -> impl Strategy<Value = Vec<&'static [u8]>> {
        prop::collection::vec(prop_oneof![Just(PLAIN), Just(CHUNKED), Just(GET)], 0..6)
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_messages_are_the_same(
            messages in messages(),
            both in any::<bool>(),
            cuts in prop::collection::vec(1_usize..40, 1..40),
        ) {
            let mut bytes = messages.concat();
            if both {
                bytes.extend_from_slice(BOTH);
            }
            let mut watch = Watch::new(100);
            let mut rest = &bytes[..];
            for cut in cuts.into_iter().cycle() {
                let (part, behind) = rest.split_at(cut.min(rest.len()));
                watch.take(part);
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            let heads = messages.len() as u64 + u64::from(both);
            prop_assert_eq!(watch.heads, heads);
            prop_assert_eq!(watch.two_lengths(), both.then_some(heads));
            prop_assert_eq!(watch.phase(), if heads == 0 { Phase::New } else { Phase::Idle });
        }

        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            Watch::new(10).take(&bytes);
        }
    }

    #[test]
    fn odd_chunks_end_where_hyper_ends_them() {
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (chunks, rest) in [
            (&b"1;x=\xff\r\na\r\n0\r\n"[..], &b"\r\n"[..]),
            (b"0;\xff\r\n", b"\r\n"),
            (b"0\r\nA: b\n\r\nPOST / HTTP/1.1\r\nContent-Length: 9\r\n", b"\r\n"),
            (b"0\r\n\n\r\n", b"\r\n"),
        ] {
            let mut watch = Watch::new(100);
            watch.take(head.as_bytes());
            watch.take(chunks);
            assert_eq!((watch.phase(), watch.heads), (Phase::Body, 1), "{chunks:?}");
            watch.take(rest);
            assert_eq!(watch.phase(), Phase::Idle, "{chunks:?}");
            watch.take(BOTH);
            assert_eq!(watch.two_lengths(), Some(2), "{chunks:?}");
        }
    }

    #[test]
    fn the_phases_of_a_message() {
        let mut watch = Watch::new(100);
        for (bytes, phase) in [
            (&b""[..], Phase::New),
            (b"POST", Phase::Head),
            (b" / HTTP/1.1\r\n", Phase::Head),
            (b"content-length: 3\r\n\r\n", Phase::Body),
            (b"123", Phase::Idle),
        ] {
            watch.take(bytes);
            assert_eq!(watch.phase(), phase, "{bytes:?}");
        }
    }

    #[test]
    fn a_long_target_is_seen_before_its_end() {
        let mut watch = Watch::new(8);
        watch.take(b"GET /123");
        assert!(!watch.long_target());
        watch.take(b"4");
        assert!(watch.long_target());
    }
}
