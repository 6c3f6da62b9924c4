//! Server-sent events: the parser, and the stream of events of an answer.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use octollm_core::error::CallError;

use super::stream::BodyStream;

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

/// The largest line and the largest data of an event, in bytes.
const LARGEST: usize = 1 << 20;
/// Most bytes of the name and of the id of an event.
const LARGEST_NAME: usize = 1 << 10;

/// An event exceeds the limit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLarge;

/// The parser, fed with pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Parser {
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

impl Parser {
    /// Reads a piece, and appends the events that end in it.
    ///
    /// # Errors
    /// A line, or the data, the name or the id of an event, is too large.
    pub(super) fn feed(
        &mut self,
        mut piece: &[u8],
        events: &mut VecDeque<ServerEvent>,
    ) -> Result<(), TooLarge> {
        while !piece.is_empty() {
            if std::mem::take(&mut self.after_return) && piece[0] == b'\n' {
                piece = &piece[1..];
                continue;
            }
            let end = piece.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let (part, rest) = piece.split_at(end.unwrap_or(piece.len()));
            if self.line.len() + part.len() > LARGEST {
                return Err(TooLarge);
            }
            self.line.extend_from_slice(part);
            let Some(ending) = rest.first() else { break };
            self.after_return = *ending == b'\r';
            piece = &rest[1..];
            let line = std::mem::take(&mut self.line);
            self.line_ended(&line, events)?;
            // Its memory is used again.
            self.line = line;
            self.line.clear();
        }
        Ok(())
    }

    fn line_ended(&mut self, line: &[u8], events: &mut VecDeque<ServerEvent>) -> Result<(), TooLarge> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let line = if is_first { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        if line.is_empty() {
            events.extend(self.event_ended());
            return Ok(());
        }
        let line = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                let had_data = self.data.is_some();
                let data = self.data.get_or_insert_default();
                if data.len() + value.len() > LARGEST {
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
        Ok(())
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

/// The events of an answer. What comes after the last whole event is dropped with the end of the answer.
pub(super) struct Events {
    body: BodyStream,
    parser: Parser,
    ready: VecDeque<ServerEvent>,
    /// Follows the events that are ready.
    failed: bool,
}

impl Events {
    pub(super) fn new(body: BodyStream) -> Self {
        Self { body, parser: Parser::default(), ready: VecDeque::new(), failed: false }
    }
}

impl Stream for Events {
    type Item = Result<ServerEvent, CallError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(event) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if std::mem::take(&mut this.failed) {
                let error = this.body.fail(format!("an event is larger than {LARGEST} bytes"));
                return Poll::Ready(Some(Err(error)));
            }
            let piece: Option<Result<Bytes, CallError>> = ready!(Pin::new(&mut this.body).poll_next(cx));
            match piece {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(piece)) => this.failed = this.parser.feed(&piece, &mut this.ready).is_err(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fed(pieces: &[&[u8]]) -> Vec<ServerEvent> {
        let (mut parser, mut events) = (Parser::default(), VecDeque::new());
        pieces.iter().for_each(|piece| parser.feed(piece, &mut events).unwrap());
        events.into()
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
    fn a_line_and_an_event_have_a_limit() {
        let (mut parser, mut events) = (Parser::default(), VecDeque::new());
        let quarter = vec![b'x'; LARGEST / 4];
        (0..4).for_each(|_| parser.feed(&quarter, &mut events).unwrap());
        assert_eq!(parser.feed(b"x", &mut events), Err(TooLarge));
        let mut parser = Parser::default();
        let lines = |parser: &mut Parser, count| {
            (0..count).try_for_each(|_| {
                parser.feed(b"data:", &mut VecDeque::new())?;
                parser.feed(&quarter, &mut VecDeque::new())?;
                parser.feed(b"\n", &mut VecDeque::new())
            })
        };
        assert_eq!(lines(&mut parser, 3), Ok(()));
        assert_eq!(lines(&mut parser, 1), Err(TooLarge), "the line feeds between them count");
        assert!(events.is_empty());
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
