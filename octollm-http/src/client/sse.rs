//! Server-sent events: the parser, and the events of an answer of octollm.

use std::{future::poll_fn, pin::Pin, time::Duration};

use bytes::{Buf, Bytes};
use http::{HeaderMap, header::CONTENT_TYPE};
use http_body::Body;
use octollm_core::{
    error::{ErrorKind, Failure},
    json::read_output,
};
use serde::de::DeserializeOwned;

use super::{exchange::Received, pool::ExchangeError};

/// One event of a stream of server-sent events (`text/event-stream`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ServerEvent {
    /// Id of the last event that had one, this one included; empty if none had.
    pub id: String,
    /// Name of the event; `message` unless the service sets it.
    pub event: String,
    /// Its data: the lines, joined by line feeds. Many services mark the end by data of their own, such as `[DONE]`.
    pub data: String,
    /// Time after which the service asks to connect again if the stream breaks, if it has set one. The client does not connect
    /// again by itself.
    pub retry: Option<Duration>,
}

impl ServerEvent {
    /// Reads the data as JSON.
    ///
    /// # Errors
    /// `bad_response` if it is not JSON or has another shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        read_output(self.data.as_bytes()).map_err(|error| {
            Failure::new(ErrorKind::BadResponse, format!("the data of an event has another shape: {error}"))
        })
    }
}

/// The media type.
pub(super) const EVENTS: &str = "text/event-stream";
/// The largest line and the largest data of an event, in bytes, of services that are no arms.
pub(super) const LARGEST: usize = 1 << 20;
/// Most bytes of the name and of the id of an event.
pub(super) const LARGEST_NAME: usize = 1 << 10;

/// An event exceeds the limit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLarge;

/// The parser, fed with pieces of any size.
#[derive(Debug)]
pub(super) struct Parser {
    /// Most bytes of a line, and of the data of an event.
    largest: usize,
    /// The line that has not ended.
    line: Vec<u8>,
    /// A line has ended with a carriage return, to which a line feed would belong.
    after_return: bool,
    has_begun: bool,
    data: Option<String>,
    event: String,
    id: String,
    retry: Option<Duration>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new(LARGEST)
    }
}

impl Parser {
    /// A parser of events with at most so many bytes of data.
    pub(super) fn new(largest: usize) -> Self {
        let (line, data, event, id) = (Vec::new(), None, String::new(), String::new());
        Self { largest, line, after_return: false, has_begun: false, data, event, id, retry: None }
    }

    /// Reads from a piece until an event has ended, or the piece has. What is read is taken from the piece.
    ///
    /// # Errors
    /// A line, or the data, the name or the id of an event, is too large.
    pub(super) fn next(&mut self, piece: &mut Bytes) -> Result<Option<ServerEvent>, TooLarge> {
        while let Some(first) = piece.first() {
            if std::mem::take(&mut self.after_return) && *first == b'\n' {
                piece.advance(1);
                continue;
            }
            let end = piece.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let part = end.unwrap_or(piece.len());
            if self.line.len() + part > self.largest {
                return Err(TooLarge);
            }
            self.line.extend_from_slice(&piece[..part]);
            piece.advance(part);
            let Some(ending) = piece.first() else { break };
            self.after_return = *ending == b'\r';
            piece.advance(1);
            let mut line = std::mem::take(&mut self.line);
            let event = self.line_ended(&line)?;
            // Its memory is used again.
            line.clear();
            self.line = line;
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    fn line_ended(&mut self, line: &[u8]) -> Result<Option<ServerEvent>, TooLarge> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let line = if is_first { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        if line.is_empty() {
            return Ok(self.event_ended());
        }
        let line = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                let had_data = self.data.is_some();
                let data = self.data.get_or_insert_default();
                if data.len() + usize::from(had_data) + value.len() > self.largest {
                    return Err(TooLarge);
                }
                if had_data {
                    data.push('\n');
                }
                data.push_str(value);
            }
            // Each event repeats the last id.
            "event" | "id" if value.len() > LARGEST_NAME => return Err(TooLarge),
            "event" => value.clone_into(&mut self.event),
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.retry = value.parse().ok().map(Duration::from_millis).or(self.retry);
            }
            // A comment, or a field that nobody knows.
            _ => {}
        }
        Ok(None)
    }

    /// An event without data is none.
    fn event_ended(&mut self) -> Option<ServerEvent> {
        let mut event = std::mem::take(&mut self.event);
        let data = self.data.take()?;
        if event.is_empty() {
            event.push_str("message");
        }
        Some(ServerEvent { id: self.id.clone(), event, data, retry: self.retry })
    }
}

/// The events of an answer as they arrive.
pub(super) struct EventReader {
    body: Option<Received>,
    parser: Parser,
    /// What has arrived and is not read yet.
    piece: Bytes,
}

impl EventReader {
    /// The events of a body, each with at most so many bytes of data.
    pub(super) fn new(body: Received, largest: usize) -> Self {
        // Besides the data, its last line has the name of the field.
        let parser = Parser::new(largest.saturating_add(LARGEST_NAME));
        Self { body: Some(body), parser, piece: Bytes::new() }
    }

    /// Returns the next event, or `None` at the end of the answer.
    ///
    /// # Errors
    /// The answer breaks off, or an event is too large. It has ended then.
    ///
    /// # Cancel safety
    /// Dropping the future loses no event.
    pub(super) async fn next(&mut self) -> Option<Result<ServerEvent, ExchangeError>> {
        loop {
            match self.parser.next(&mut self.piece) {
                Ok(Some(event)) => return Some(Ok(event)),
                Ok(None) => {}
                Err(TooLarge) => {
                    self.body = None;
                    let words = "an event is larger than an answer may be";
                    return Some(Err(ExchangeError::new(ErrorKind::BadResponse, words)));
                }
            }
            self.piece = match self.body.as_mut()? {
                Received::Whole(whole) => {
                    let whole = std::mem::take(whole);
                    self.body = None;
                    whole
                }
                Received::Streaming(body) => match poll_fn(|cx| Pin::new(&mut **body).poll_frame(cx)).await {
                    // Trailers are no data.
                    Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                    Some(Err(error)) => {
                        self.body = None;
                        return Some(Err(error));
                    }
                    None => {
                        self.body = None;
                        return None;
                    }
                },
            };
        }
    }
}

/// Whether an answer is a stream of events.
pub(super) fn is_events(head: &HeaderMap) -> bool {
    let media_type = head.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = media_type.and_then(|value| value.split(';').next()).unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case(EVENTS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fed(pieces: &[&[u8]]) -> Vec<ServerEvent> {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for piece in pieces {
            let mut piece = Bytes::copy_from_slice(piece);
            while let Some(event) = parser.next(&mut piece).unwrap() {
                events.push(event);
            }
            assert!(piece.is_empty());
        }
        events
    }

    /// Whether the parser refuses a text.
    fn is_refused(parser: &mut Parser, text: &[u8]) -> bool {
        let mut piece = Bytes::copy_from_slice(text);
        loop {
            match parser.next(&mut piece) {
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(TooLarge) => return true,
            }
        }
    }

    fn event(id: &str, event: &str, data: &str) -> ServerEvent {
        ServerEvent { id: id.into(), event: event.into(), data: data.into(), retry: None }
    }

    #[test]
    fn reads_events_as_the_standard_says() {
        for (text, expected) in [
            ("data: a\n\n", vec![event("", "message", "a")]),
            ("data:a\r\rdata:b\r\n\r\n", vec![event("", "message", "a"), event("", "message", "b")]),
            ("\u{feff}data: a\n\n", vec![event("", "message", "a")]),
            ("data: a\ndata:  b\ndata\n\n", vec![event("", "message", "a\n b\n")]),
            (": keep-alive\n\nevent: x\n\ndata: a\n\n", vec![event("", "message", "a")]),
            (
                "id: 1\nevent: x\ndata: a\n\ndata: b\n\nid\ndata: c\n\n",
                vec![event("1", "x", "a"), event("1", "message", "b"), event("", "message", "c")],
            ),
            ("id: a\0b\ndata: [DONE]\n\n", vec![event("", "message", "[DONE]")]),
            ("data\n\n", vec![event("", "message", "")]),
            ("data: cut", vec![]),
            ("data: cut\n", vec![]),
            ("other: x\ndata: a: b\n\n", vec![event("", "message", "a: b")]),
        ] {
            assert_eq!(fed(&[text.as_bytes()]), expected, "{text:?}");
        }
        let retried = fed(&[b"retry: 1500\nretry: soon\ndata: a\n\n"]);
        assert_eq!(retried[0].retry, Some(Duration::from_millis(1500)));
        assert_eq!(fed(&[b"data: \xff\n\n"])[0].data, "\u{fffd}");
    }

    #[test]
    fn one_event_is_read_at_a_time() {
        let mut parser = Parser::default();
        let mut piece = Bytes::from("data: a\n\n".repeat(2000));
        let whole = piece.len();
        for read in 1..=2000 {
            assert_eq!(parser.next(&mut piece).unwrap().unwrap().data, "a");
            assert_eq!(piece.len(), whole - 9 * read);
        }
        assert_eq!(parser.next(&mut piece), Ok(None));
    }

    #[test]
    fn a_line_and_an_event_have_a_limit() {
        let mut parser = Parser::default();
        let quarter = vec![b'x'; LARGEST / 4];
        assert!((0..4).all(|_| !is_refused(&mut parser, &quarter)));
        assert!(is_refused(&mut parser, b"x"));
        let line = [b"data:", &quarter[..], b"\n"].concat();
        let mut parser = Parser::default();
        assert!((0..3).all(|_| !is_refused(&mut parser, &line)));
        assert!(is_refused(&mut parser, &line), "the line feeds between them count");
        // Each byte that is not UTF-8 becomes three.
        let wide = [b"data:", &vec![0xff; LARGEST / 2][..], b"\n"].concat();
        assert!(is_refused(&mut Parser::default(), &wide));
    }

    #[test]
    fn the_name_and_the_id_of_an_event_have_a_limit() {
        for field in ["event", "id"] {
            let text = |size: usize| format!("{field}: {}\ndata: a\n\n", "x".repeat(size));
            let event = fed(&[text(LARGEST_NAME).as_bytes()]).remove(0);
            assert_eq!(event.event.len().max(event.id.len()), LARGEST_NAME);
            assert!(is_refused(&mut Parser::default(), text(LARGEST_NAME + 1).as_bytes()), "{field}");
        }
        // An id with NUL is ignored, and one before it stays.
        let events = fed(&[b"id: 1\nid: 2\0\ndata: a\n\nid: 3\n\ndata: b\n\n"]);
        assert_eq!(events, [event("1", "message", "a"), event("3", "message", "b")]);
    }

    #[test]
    fn what_the_standard_says_of_splits_and_ends() {
        for (pieces, expected) in [
            // A byte order mark is read once, at the beginning alone.
            (&["\u{feff}", "data: a\n\n"][..], vec![event("", "message", "a")]),
            (&["\u{feff}\u{feff}data: a\n\ndata: b\n\n"], vec![event("", "message", "b")]),
            (&["data: a\n\n\u{feff}data: b\n\n"], vec![event("", "message", "a")]),
            // CR LF is one end of a line, however it arrives.
            (&["data: a\r", "\n", "data: b\r", "\n\r", "\n"], vec![event("", "message", "a\nb")]),
            (
                &["data: a\r\n", "\r", "data: b\n", "\n"],
                vec![event("", "message", "a"), event("", "message", "b")],
            ),
            (&["data: a\n\r\n"], vec![event("", "message", "a")]),
            // A comment is no data, and may be all of a keep-alive.
            (&[":\n\n:data: a\n\n:\r\r"], vec![]),
            // Data that is empty is data.
            (&["data\n\ndata\ndata\n\ndata:"], vec![event("", "message", ""), event("", "message", "\n")]),
            // Of an event that has not ended nothing is returned.
            (&["data: a\n\ndata: b\n"], vec![event("", "message", "a")]),
            (&["data: a\n\ndata: b\r"], vec![event("", "message", "a")]),
            // Names of fields are exact, and one space is removed.
            (&["Data: a\n data: b\ndata : c\ndata:  d\n\n"], vec![event("", "message", " d")]),
        ] {
            let pieces: Vec<_> = pieces.iter().map(|piece| piece.as_bytes()).collect();
            assert_eq!(fed(&pieces), expected, "{pieces:?}");
        }
        // It holds from its line on, and stays where a later one is no number.
        let retries = fed(&[
            b"retry: 10\n\ndata: a\n\nretry: -1\nretry: 1.5\nretry:\ndata: b\n\nretry: 0\ndata: c\n\n",
        ]);
        let retries: Vec<_> = retries.iter().map(|event| event.retry.unwrap().as_millis()).collect();
        assert_eq!(retries, [10, 10, 0]);
    }

    /// The standard, read over the whole text.
    fn naive(text: &[u8]) -> Vec<ServerEvent> {
        let text = String::from_utf8_lossy(text);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let whole_lines = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        let (mut events, mut last_id) = (Vec::new(), String::new());
        let (mut data, mut name) = (Vec::new(), String::new());
        if !text.contains('\n') {
            return events;
        }
        for line in whole_lines.split('\n') {
            if line.is_empty() {
                if !data.is_empty() {
                    let event = if name.is_empty() { "message" } else { &name };
                    events.push(super::tests::event(&last_id, event, &data.join("\n")));
                }
                (data, name) = (Vec::new(), String::new());
                continue;
            }
            let (field, value) = match line.find(':') {
                Some(at) => (&line[..at], line[at + 1..].strip_prefix(' ').unwrap_or(&line[at + 1..])),
                None => (line, ""),
            };
            match field {
                "data" => data.push(value.to_owned()),
                "event" => value.clone_into(&mut name),
                "id" => value.clone_into(&mut last_id),
                _ => {}
            }
        }
        events
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_are_the_same_as_the_whole(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "data", "data:", "data: ", "event:", "event: x", "id:", "id: 7", ":", " ", "a", "é", "\u{feff}", "\n",
                    "\r", "\r\n", "\n\n", "\r\r", "data: b\n\n", "[DONE]",
                ]),
                0..40,
            ),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let text = parts.concat().into_bytes();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|ends| &text[ends[0]..ends[1]]).collect();
            prop_assert_eq!(fed(&pieces), naive(&text));
            let bytes: Vec<_> = text.chunks(1).collect();
            prop_assert_eq!(fed(&bytes), naive(&text));
        }
    }
}
