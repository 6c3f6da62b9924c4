//! Heads and bodies that are too long, broken or cut.

use std::time::Duration;

use super::{HEAD, asked, at_once, echo, post, seen};
use crate::{
    frame::{Arena, Attack, Broken, Outcome, counted, ensure},
    lines::Line,
};

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack::new("server", "heads-too-long", |arena| Box::pin(heads_too_long(arena))),
        Attack::new("server", "heads-without-end", |arena| Box::pin(heads_without_end(arena))),
        Attack::new("server", "broken-bodies", |arena| Box::pin(broken_bodies(arena))),
        Attack::new("server", "bodies-too-long", |arena| Box::pin(bodies_too_long(arena))).memory(96, 48),
        Attack::new("server", "requests-cut-at-every-byte", |arena| Box::pin(cut(arena))),
        Attack::new("server", "chunk-flood", |arena| Box::pin(chunk_flood(arena))),
        Attack::new("server", "expect-continue", |arena| Box::pin(expect_continue(arena)))
            .settings(&[("body_ms", 1000)]),
    ]
}

type Rows = Vec<(&'static str, Vec<u8>, &'static [u16])>;

/// Each is answered by one of its statuses.
async fn all_are_answered(arena: &Arena, rows: Rows) -> Outcome {
    let count = rows.len();
    for (name, bytes, statuses) in rows {
        let answer = asked(arena, bytes).await.map_err(|error| format!("{name}: {error}"))?;
        ensure!(statuses.contains(&answer.status), "{name}: {} in place of {statuses:?}", answer.status);
    }
    let answer = asked(arena, echo("still here")).await?;
    ensure!(answer.body == b"\"still here\"", "afterwards: {}", answer.status);
    Ok(format!("{count} requests, each answered by the status for it"))
}

async fn heads_too_long(arena: &Arena) -> Outcome {
    let (head, uri, fields) = (arena.config.max_head, arena.config.max_uri, arena.config.max_headers);
    let get = |target: &str, fields: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n").into_bytes()
    };
    let rows: Rows = vec![
        ("a long URI", get(&format!("/{}", "a".repeat(uri)), ""), &[414]),
        ("a long query", get(&format!("/health?{}", "a".repeat(uri)), ""), &[414]),
        ("a URI longer than a head", get(&format!("/{}", "a".repeat(head * 2)), ""), &[414, 431]),
        ("a long field", get("/health", &format!("X: {}\r\n", "a".repeat(head))), &[431]),
        ("a long name", get("/health", &format!("{}: x\r\n", "a".repeat(head))), &[431]),
        ("a long method", format!("{} / HTTP/1.1\r\nHost: x\r\n\r\n", "A".repeat(head)).into(), &[400, 431]),
        ("too many fields", get("/health", &"X: y\r\n".repeat(fields + 1)), &[431]),
        ("far too many fields", get("/health", &"X: y\r\n".repeat(fields * 100)), &[431]),
        ("fields without values", get("/health", &"X:\r\n".repeat(fields * 100)), &[431]),
        ("as many fields as may be", get("/health", &"X: y\r\n".repeat(fields - 2)), &[200]),
    ];
    all_are_answered(arena, rows).await
}

/// Heads that go on for as long as the server reads: it stops at its limit, and reads some MiB more so that its answer
/// arrives, and closes the connection.
async fn heads_without_end(arena: &Arena) -> Outcome {
    let (count, megabytes) = arena.pick((20, 64), (200, 256));
    let address = arena.address();
    let sent = at_once(count, |number| async move {
        let mut line = Line::connect(address).await?;
        let beginning = ["GET /", "GET / HTTP/1.1\r\nHost: x\r\nX: ", "\r\n", "X"][number % 4];
        let piece = [&b"a"[..], b"a", b"\r\n", b"X"][number % 4].repeat(64 * 1024 / [1, 1, 2, 1][number % 4]);
        line.send(beginning).await?;
        for sent in 0..megabytes * 16 {
            if line.send(&piece).await.is_err() {
                return Ok(sent * 64);
            }
        }
        Err(Broken::from(format!("the server took {megabytes} MiB of {beginning:?}")))
    })
    .await?;
    let most = sent.iter().max().copied().unwrap_or_default();
    Ok(format!("{count} heads without end, each connection closed after at most {most} KiB"))
}

async fn broken_bodies(arena: &Arena) -> Outcome {
    let body = |text: &[u8]| post("/echo", "", text);
    let store = |value: &str| post("/store", "", format!("{{\"value\":{value}}}"));
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let objects = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    // 10 MiB of zeros, as gzip writes them: refused by its name, never inflated.
    let bomb =
        post("/echo", "Content-Encoding: gzip\r\n", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03".repeat(1000));
    let coding = |coding: &str| post("/echo", &format!("Content-Encoding: {coding}\r\n"), "{\"text\":\"a\"}");
    let media = |media: &str| {
        let request =
            format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: {media}\r\nContent-Length: 12\r\n\r\n");
        [request.as_bytes(), b"{\"text\":\"a\"}"].concat()
    };
    let rows: Rows = vec![
        ("invalid UTF-8", body(b"{\"text\":\"\xff\xfe\"}"), &[400]),
        ("overlong UTF-8", body(b"{\"text\":\"\xc0\xaf\"}"), &[400]),
        ("a surrogate in UTF-8", body(b"{\"text\":\"\xed\xa0\x80\"}"), &[400]),
        ("UTF-8 cut at the end", body(b"{\"text\":\"\xe2\x82\"}"), &[400]),
        ("UTF-16", body(b"\xff\xfe{\0\"\0t\0"), &[400]),
        ("a lone surrogate", body(br#"{"text":"\ud800"}"#), &[400]),
        ("a control character", body(b"{\"text\":\"\x01\"}"), &[400]),
        ("an unknown escape", body(br#"{"text":"\x41"}"#), &[400]),
        ("truncated", body(br#"{"text":"a""#), &[400]),
        ("two values", body(br#"{"text":"a"}{"text":"b"}"#), &[400]),
        ("a key twice", body(br#"{"text":"a","text":"b"}"#), &[400]),
        ("a key twice by escapes", body(br#"{"text":"a","\u0074ext":"b"}"#), &[400]),
        ("a comment", body(br#"{"text":"a"/* b */}"#), &[400]),
        ("NaN", store("NaN"), &[400]),
        ("beyond any number", store("1e999"), &[400]),
        ("a number of 100 000 digits", store(&"1".repeat(100_000)), &[200, 400]),
        ("deep arrays", store(&nested(100_000)), &[400]),
        ("deep objects", store(&objects(50_000)), &[400]),
        ("as deep as may be", store(&nested(100)), &[200]),
        ("empty", body(b""), &[400]),
        ("another type", body(br#"{"text":1}"#), &[422]),
        ("an unknown field", body(br#"{"text":"a","x":1}"#), &[422]),
        ("20 000 unknown fields", body(unknown_fields(20_000).as_bytes()), &[422]),
        ("a bomb of gzip", bomb, &[415]),
        ("another coding", coding("br"), &[415]),
        ("codings in a stack", coding("gzip, gzip"), &[415]),
        ("plain text", media("text/plain"), &[415]),
        ("a form", media("application/x-www-form-urlencoded"), &[415]),
        ("another character set", media("application/json; charset=utf-16"), &[415]),
    ];
    all_are_answered(arena, rows).await
}

fn unknown_fields(count: usize) -> String {
    let fields: Vec<_> = (0..count).map(|n| format!("\"x{n}\":{n}")).collect();
    format!("{{\"text\":\"a\",{}}}", fields.join(","))
}

/// Bodies of a byte too many, by what they say and by what they are.
async fn bodies_too_long(arena: &Arena) -> Outcome {
    let most = arena.config.max_body;
    let text = |bytes: usize| format!("{{\"text\":\"{}\"}}", "a".repeat(bytes - 11));
    let chunked = |bytes: usize| {
        let body = text(bytes);
        let pieces: Vec<_> = body.as_bytes().chunks(60_000).map(chunk).collect();
        [
            format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n").into_bytes(),
            pieces.concat(),
            b"0\r\n\r\n".to_vec(),
        ]
        .concat()
    };
    let rows: Rows = vec![
        ("the longest", post("/echo", "", text(most)), &[200]),
        ("a byte more", post("/echo", "", text(most + 1)), &[413]),
        ("the longest in chunks", chunked(most), &[200]),
        ("a byte more in chunks", chunked(most + 1), &[413]),
        ("16 times as much", post("/echo", "", text(most * 16)), &[413]),
        (
            "a length without end",
            format!("{HEAD}Content-Length: 9000000000000000000\r\n\r\n{{").into(),
            &[413],
        ),
    ];
    all_are_answered(arena, rows).await
}

fn chunk(piece: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
}

/// One request, cut at each of its bytes: by a half-closed connection and by a reset one. None of them runs.
async fn cut(arena: &Arena) -> Outcome {
    let address = arena.address();
    let plain = echo("hidden");
    let chunked =
        format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n11\r\n{{\"text\":\"hidden\"}}\r\n0\r\n\r\n")
            .into_bytes();
    let mut count = 0;
    for whole in [plain, chunked] {
        let answers = at_once(whole.len(), |end| {
            let bytes = whole[..end].to_vec();
            async move {
                let mut line = Line::connect(address).await?;
                line.send(&bytes).await?;
                if end % 2 == 0 {
                    return Ok(line.reset().map(|()| Vec::new())?);
                }
                line.half_close().await?;
                line.answers().await
            }
        })
        .await?;
        let statuses: Vec<_> = answers.iter().flatten().map(|answer| answer.status).collect();
        ensure!(statuses.iter().all(|status| *status == 400), "cut requests are answered {statuses:?}");
        count += answers.len();
    }
    let hidden = seen(arena).await?.hidden;
    ensure!(hidden == 0, "{hidden} cut requests ran");
    Ok(format!("{count} cut requests, none ran, answered by 400 or not at all"))
}

/// Bodies in chunks of a byte, with extensions, and with zeros before each size.
async fn chunk_flood(arena: &Arena) -> Outcome {
    let chunks = arena.pick(20_000, 400_000);
    let (address, count) = (arena.address(), arena.pick(4, 20));
    let long = format!("{};{}\r\n", "0".repeat(arena.pick(1, 2) << 20), "x".repeat(1 << 20));
    let answers = at_once(count, |number| {
        let one =
            ["1\r\na\r\n", "1;x=y\r\na\r\n", "0001\r\na\r\n"].get(number % 4).copied().unwrap_or_default();
        let body = if number % 4 == 3 { long.clone() } else { one.repeat(chunks) };
        let request = format!(
            "{HEAD}Transfer-Encoding: chunked\r\n\r\na\r\n{{\"text\":\"x\r\n{body}2\r\n\"}}\r\n0\r\n\r\n"
        );
        async move {
            let mut line = Line::connect(address).await?;
            let _ = line.send(request).await;
            Ok(line.next().await?.map_or(0, |answer| answer.status))
        }
    })
    .await?;
    let fits = answers.iter().all(|status| [0, 200, 400, 408, 413].contains(status));
    ensure!(fits, "answered {}", counted(answers));
    Ok(format!("{count} x {chunks} chunks of a byte, or sizes of 1 MiB, answered {}", counted(answers)))
}

/// `Expect: 100-continue`, and then a body that comes late, never, twice, or too large.
async fn expect_continue(arena: &Arena) -> Outcome {
    let address = arena.address();
    let head = |length: usize| format!("{HEAD}Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n");
    let mut line = Line::connect(address).await?;
    line.send(head(12)).await?;
    let first = line.next().await?.map_or(0, |answer| answer.status);
    ensure!(first == 100, "answered {first} in place of 100");
    line.send("{\"text\":\"a\"}").await?;
    ensure!(line.answer().await?.status == 200, "the body after 100 is not taken");

    let mut line = Line::connect(address).await?;
    line.send(head(arena.config.max_body + 1)).await?;
    let first = line.next().await?.map_or(0, |answer| answer.status);
    ensure!(first == 413, "a body too large is answered {first}, and not by 413 before it is sent");

    let count = arena.pick(30, 300);
    let withheld = at_once(count, |_| async move {
        let mut line = Line::connect(address).await?;
        line.send(head(12)).await?;
        Ok(line.answer().await?.status)
    })
    .await?;
    ensure!(withheld.iter().all(|status| *status == 408), "withheld: {}", counted(withheld));
    let limit: Duration = arena.config.body_timeout;
    Ok(format!(
        "100 before bodies, 413 in its place, {count} withheld bodies answered by 408 after {limit:?}"
    ))
}
