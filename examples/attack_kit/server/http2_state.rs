//! Callers of HTTP/2 that take no answers, and that break its rules.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{at_once, echo};
use crate::{
    frame::{Arena, Attack, Broken, Outcome, counted, ensure},
    http2::{
        self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, GOAWAY, HEADERS, PING, PREFACE,
        PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, connect, frame, settings, taken,
    },
    lines::Line,
    process::Figures,
};

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack::new("server", "http2-answers-not-taken", |arena| Box::pin(not_taken(arena)))
            .settings(&[("write_ms", 600)])
            // 400 answers of 1 MB wait, as each has a place until its limit.
            .memory(512, 96),
        Attack::new("server", "http2-broken-frames", |arena| Box::pin(broken_frames(arena))),
        Attack::new("server", "http2-too-many-streams", |arena| Box::pin(too_many_streams(arena))),
        Attack::new("server", "http2-disconnect-storm", |arena| Box::pin(disconnects(arena))),
        Attack::new("server", "http2-broken-heads", |arena| Box::pin(broken_heads(arena))),
    ]
}

const INITIAL_WINDOW: u16 = 4;

/// A window of nothing: answers of 1 MB wait while pings are answered, and each is given up at the limit on writes.
async fn not_taken(arena: &Arena) -> Outcome {
    let (address, connections, limit) = (arena.address(), arena.pick(2, 10), arena.config.write_timeout);
    let (streams, bytes) = (40, arena.pick(100_000, 1_000_000));
    let large = format!("{{\"bytes\":{bytes}}}");
    let outcomes = at_once(connections, |_| {
        let large = large.clone();
        async move {
            let mut line = connect(address, &[(INITIAL_WINDOW, 0)]).await?;
            for n in 0..streams {
                let stream = 2 * n + 1;
                let head = frame(HEADERS, END_HEADERS, stream, &http2::post("/large"));
                line.send([head, frame(DATA, END_STREAM, stream, large.as_bytes())].concat()).await?;
            }
            let (begun, mut reset) = (Instant::now(), 0);
            while reset < streams {
                ensure!(
                    begun.elapsed() < limit + Duration::from_secs(20),
                    "{reset} of {streams} answers given up"
                );
                let Some(frame) = taken(line.bytes()) else {
                    if line.more().await? == 0 {
                        break;
                    }
                    continue;
                };
                match frame.kind {
                    PING if frame.flags & ACK == 0 => {
                        line.send(http2::frame(PING, ACK, 0, &frame.payload)).await?
                    }
                    SETTINGS if frame.flags & ACK == 0 => {
                        line.send(http2::frame(SETTINGS, ACK, 0, &[])).await?
                    }
                    DATA => ensure!(frame.payload.is_empty(), "data beyond the window"),
                    RST_STREAM => reset += 1,
                    _ => {}
                }
            }
            Ok((reset, begun.elapsed()))
        }
    })
    .await?;
    let most = outcomes.iter().map(|(_, time)| *time).max().unwrap_or_default();
    Ok(format!(
        "{connections} x {streams} answers of {bytes} bytes into windows of 0, all given up after {:.1} s (limit {limit:?})",
        most.as_secs_f64()
    ))
}

/// Frames of every kind with payloads, flags and streams that they must not have. Each ends in an error or in nothing, and
/// the server serves on.
async fn broken_frames(arena: &Arena) -> Outcome {
    let address = arena.address();
    let kinds = [
        DATA,
        HEADERS,
        PRIORITY,
        RST_STREAM,
        SETTINGS,
        PUSH_PROMISE,
        PING,
        GOAWAY,
        WINDOW_UPDATE,
        CONTINUATION,
        10,
        255,
    ];
    let (mut frames, payloads) = (Vec::new(), [0_usize, 1, 4, 5, 8, 16_384, 16_385]);
    for kind in kinds {
        for length in payloads {
            for (flags, stream) in [(0, 0), (0xff, 0), (0xff, 1), (0, 2), (0xff, 0x7fff_ffff)] {
                frames.push(frame(kind, flags, stream, &vec![0xff; length]));
            }
        }
    }
    frames.push(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01".to_vec());
    frames.push(settings(&[(5, 16_777_216), (4, u32::MAX), (2, 7)]));
    let count = frames.len();
    let ended = at_once(count, |number| {
        let broken = frames[number].clone();
        async move {
            let mut line = connect(address, &[]).await?;
            let _ = line.send(broken).await;
            let asked = line.send(frame(PING, 0, 0, b"the last")).await;
            let ended =
                asked.is_err() || http2::until_pong(&mut line, b"the last").await? == http2::Pong::Closed;
            Ok(if ended { "ended" } else { "passed over" })
        }
    })
    .await?;
    // Prefaces that are none.
    let prefaces =
        [&b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"[..], b"PRI * HTTP/1.1\r\n\r\n", b"PRI / HTTP/2.0\r\n\r\n"];
    for preface in prefaces {
        let mut line = Line::connect(address).await?;
        line.send(preface).await?;
        line.half_close().await?;
        line.rest().await?;
    }
    let mut line = Line::connect(address).await?;
    line.send([PREFACE, &echo("a")].concat()).await?;
    line.rest().await?;
    Ok(format!("{count} broken frames: {}", counted(ended)))
}

/// More streams than may be open: those beyond are refused, and none of them runs.
async fn too_many_streams(arena: &Arena) -> Outcome {
    let (address, most) = (arena.address(), arena.config.max_streams);
    let connections = arena.pick(4, 9);
    let refused = at_once(connections, |_| async move {
        let mut line = connect(address, &[]).await?;
        let mut bytes = Vec::new();
        for n in 0..most + 20 {
            bytes.extend(frame(HEADERS, END_HEADERS, 2 * n + 1, &http2::post("/wait")));
            bytes.extend(frame(DATA, END_STREAM, 2 * n + 1, b"{}"));
        }
        bytes.extend(frame(PING, 0, 0, b"the last"));
        line.send(bytes).await?;
        let mut refused = 0;
        loop {
            while let Some(frame) = taken(line.bytes()) {
                match frame.kind {
                    // REFUSED_STREAM: it was not begun.
                    RST_STREAM if frame.payload == 7_u32.to_be_bytes() => refused += 1,
                    RST_STREAM => {
                        return Err(Broken::from(format!(
                            "stream {} reset: {:?}",
                            frame.stream, frame.payload
                        )));
                    }
                    GOAWAY => return Ok((refused, true)),
                    PING if frame.flags & ACK > 0 => return Ok((refused, false)),
                    _ => {}
                }
            }
            ensure!(line.more().await? > 0, "closed without a word");
        }
    })
    .await?;
    let fits = refused.iter().all(|(refused, away)| *refused == 20 || *away);
    ensure!(fits, "refused, and told to go away: {refused:?}");
    gone(arena, Duration::from_secs(10)).await?;
    Ok(format!("{connections} x {} streams where {most} may be open, 20 refused each", most + 20))
}

/// No call runs any more.
async fn gone(arena: &Arena, within: Duration) -> Result<(), Broken> {
    let begun = Instant::now();
    while super::seen(arena).await?.waiting > 0 {
        ensure!(begun.elapsed() < within, "calls run on without their callers");
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Connections that vanish, and streams that are reset, in the middle of calls.
async fn disconnects(arena: &Arena) -> Outcome {
    let (address, rounds) = (arena.address(), arena.pick(10, 150));
    let before = Figures::of(arena.child.id()).descriptors;
    for round in 0..rounds {
        at_once(8, |number| async move {
            let mut line = connect(address, &[]).await?;
            let mut bytes = Vec::new();
            for n in 0..50 {
                bytes.extend(frame(HEADERS, END_HEADERS, 2 * n + 1, &http2::post("/wait")));
                if n % 3 > 0 {
                    bytes.extend(frame(DATA, END_STREAM, 2 * n + 1, b"{}"));
                }
                if n % 7 == 0 {
                    bytes.extend(frame(RST_STREAM, 0, 2 * n + 1, &8_u32.to_be_bytes()));
                }
            }
            line.send(bytes).await?;
            sleep(Duration::from_millis(((number * 5 + round) % 20) as u64)).await;
            if number % 2 == 0 { Ok(line.reset()?) } else { Ok(()) }
        })
        .await?;
    }
    gone(arena, Duration::from_secs(10)).await?;
    Ok(format!(
        "{rounds} x 8 connections of 50 calls that vanish, none runs on ({before} descriptors before)"
    ))
}

/// Heads that break the rules of HTTP/2.
fn heads() -> Vec<Vec<u8>> {
    let plus = |fields: &[u8]| [GET, fields].concat();
    vec![
        // Without a method, a path, a scheme; each twice; after a field.
        b"\x86\x44\x07/health\x41\x01x".to_vec(),
        b"\x82\x86\x41\x01x".to_vec(),
        b"\x82\x44\x07/health\x41\x01x".to_vec(),
        plus(b"\x82"),
        plus(b"\x44\x01/"),
        [&b"\x00\x01a\x01b"[..], GET].concat(),
        // An unknown pseudo-header, and one of answers.
        plus(b"\x00\x02:x\x01y"),
        plus(b"\x88"),
        // Fields of a connection, capital letters, and control characters.
        plus(b"\x00\x0aconnection\x05close"),
        plus(b"\x00\x11transfer-encoding\x07chunked"),
        plus(b"\x00\x02te\x04gzip"),
        plus(b"\x00\x01A\x01b"),
        plus(b"\x00\x01a\x04b\r\nc"),
        plus(b"\x00\x01a\x02b\0"),
        plus(b"\x00\x00\x01b"),
        // Another host than the authority; two lengths.
        plus(b"\x00\x04host\x01y"),
        plus(b"\x00\x0econtent-length\x015\x00\x0econtent-length\x016"),
        // An index beyond the table, an integer without end, a string without end.
        plus(b"\xff\xff\xff\xff\xff\xff\xff"),
        plus(b"\x00\x7f\xff\xff\xff\xff\xff\x01a"),
        plus(b"\x00\x01a\x7fb"),
        // A table larger than allowed.
        [&b"\x3f\xe1\xff\xff\x07"[..], GET].concat(),
    ]
}

/// Each of them ends its stream or the connection: none is answered by 200.
async fn broken_heads(arena: &Arena) -> Outcome {
    let (address, heads) = (arena.address(), heads());
    let count = heads.len();
    let answers = at_once(count, |number| {
        let head = heads[number].clone();
        async move {
            let mut line = connect(address, &[]).await?;
            line.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head)).await?;
            let _ = line.send(frame(PING, 0, 0, b"the last")).await;
            loop {
                while let Some(frame) = taken(line.bytes()) {
                    match frame.kind {
                        // 200 is one byte in HPACK, from the fixed table.
                        HEADERS if frame.payload.first() == Some(&0x88) => {
                            return Ok((number, "answered by 200"));
                        }
                        HEADERS => return Ok((number, "refused by a status")),
                        RST_STREAM => return Ok((number, "reset")),
                        GOAWAY => return Ok((number, "sent away")),
                        _ => {}
                    }
                }
                if line.more().await? == 0 {
                    return Ok((number, "closed"));
                }
            }
        }
    })
    .await?;
    let taken: Vec<_> =
        answers.iter().filter(|(_, word)| *word == "answered by 200").map(|(n, _)| *n).collect();
    // A host besides the authority is the caller's own business where both name this server.
    ensure!(taken.iter().all(|number| *number == 15), "answered by 200: heads {taken:?}");
    Ok(format!("{count} broken heads: {}", counted(answers.into_iter().map(|(_, word)| word))))
}
