//! HTTP/2 by hand: frames as bytes.

use std::net::SocketAddr;

use crate::{
    frame::{Broken, ensure},
    lines::Line,
};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
/// Of DATA and HEADERS.
pub(crate) const END_STREAM: u8 = 1;
/// Of SETTINGS and PING.
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `GET /health` in HPACK (RFC 7541) without compression: `:method`, `:scheme`, `:path`, `:authority x`.
pub(crate) const GET: &[u8] = b"\x82\x86\x04\x07/health\x01\x01x";

/// The head of a `POST` of JSON.
pub(crate) fn post(path: &str) -> Vec<u8> {
    let length = u8::try_from(path.len()).unwrap_or(u8::MAX);
    [b"\x83\x86\x04", &[length][..], path.as_bytes(), b"\x01\x01x\x0f\x10\x10application/json"].concat()
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

/// The parameters of a SETTINGS frame.
pub(crate) fn settings(parameters: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = parameters
        .iter()
        .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    frame(SETTINGS, 0, 0, &payload)
}

/// A frame that was read.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// Takes the next whole frame off the bytes.
pub(crate) fn taken(bytes: &mut Vec<u8>) -> Option<Frame> {
    let [a, b, c, kind, flags, s0, s1, s2, s3, ..] = *bytes.as_slice() else { return None };
    let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
    let payload = bytes.get(9..9 + length)?.to_vec();
    bytes.drain(..9 + length);
    Some(Frame { kind, flags, stream: u32::from_be_bytes([s0, s1, s2, s3]), payload })
}

/// A connection that has sent its preface and these settings.
pub(crate) async fn connect(address: SocketAddr, parameters: &[(u16, u32)]) -> Result<Line, Broken> {
    let mut line = Line::connect(address).await?;
    line.send([PREFACE, &settings(parameters)].concat()).await?;
    Ok(line)
}

/// What became of a flood.
#[derive(Debug)]
pub(crate) struct Flooded {
    /// How many of its parts were sent.
    pub(crate) sent: u32,
    /// Whether the server said that it takes no more, or closed the connection.
    pub(crate) refused: bool,
}

/// Sends the parts until there are no more or the server has had enough, and reads nothing before.
pub(crate) async fn flood(
    mut line: Line,
    count: u32,
    mut part: impl FnMut(u32) -> Vec<u8>,
) -> Result<Flooded, Broken> {
    for sent in 0..count {
        if line.send(part(sent)).await.is_err() {
            return Ok(Flooded { sent, refused: true });
        }
    }
    // What answers the last of them comes after all else.
    let asked = line.send(frame(PING, 0, 0, b"the last")).await;
    let refused = asked.is_err() || until_pong(&mut line, b"the last").await? == Pong::Closed;
    Ok(Flooded { sent: count, refused })
}

#[derive(Debug, PartialEq)]
pub(crate) enum Pong {
    Answered,
    Closed,
}

/// Reads until the server has answered this ping, or closed the connection.
pub(crate) async fn until_pong(line: &mut Line, payload: &[u8; 8]) -> Result<Pong, Broken> {
    loop {
        while let Some(frame) = taken(line.bytes()) {
            ensure!(frame.payload.len() <= 16_384, "a frame of {} bytes", frame.payload.len());
            match frame.kind {
                PING if frame.flags & ACK > 0 && frame.payload == payload => return Ok(Pong::Answered),
                GOAWAY => return Ok(Pong::Closed),
                _ => {}
            }
        }
        if line.more().await? == 0 {
            return Ok(Pong::Closed);
        }
    }
}
