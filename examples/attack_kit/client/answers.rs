//! Answers whose heads and ends are not what they say.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use octollm::error::ErrorKind::{self, BadResponse, ConnectionLost, DeadlineExceeded, Timeout, Unreachable};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{
    liar::{FORGED, LIE, Liar, Lie, TRUE, Then, answer, honest, request},
    made, within,
};
use crate::{
    frame::{Arena, Attack, Broken, Outcome, counted, ensure},
    lines::Line,
};

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack::new("client", "answers-that-are-none", |arena| Box::pin(no_answers(arena))),
        Attack::new("client", "heads-without-end", |arena| Box::pin(endless(arena))),
        Attack::new("client", "answers-cut-at-every-byte", |arena| Box::pin(cut(arena))),
        Attack::new("client", "answers-to-nobody", |arena| Box::pin(to_nobody(arena))),
        Attack::new("client", "answers-before-requests", |arena| Box::pin(early(arena))),
        Attack::new("client", "slow-answers", |arena| Box::pin(slow(arena))),
        Attack::new("client", "connections-that-are-none", |arena| Box::pin(no_connections(arena))),
        Attack::new("client", "slow-arm-beside-a-fast-one", |arena| Box::pin(beside(arena))),
    ]
}

type Rows = Vec<(&'static str, Lie, &'static [ErrorKind])>;

/// Each call that is lied to fails by one of these kinds, as one that may have executed; the next call is answered.
pub(super) async fn all_fail(arena: &Arena, rows: Rows) -> Outcome {
    let mut seen = Vec::new();
    for (name, lie, kinds) in rows {
        let liar = Liar::lying(lie).await?;
        let ended = made(arena, "call", &liar.url, LIE).await?;
        let kind = ended.check(kinds, true).map_err(|error| format!("{name}: {error}"))?;
        let mut next = made(arena, "call", &liar.url, "next").await?;
        if next.kind == Some(ConnectionLost) {
            // The close of the connection after the lie may cross the next request.
            next = made(arena, "call", &liar.url, "next").await?;
        }
        ensure!(next.output.as_deref() == Some("true"), "{name}: the next call: {next:?}");
        seen.push(kind);
    }
    Ok(format!("{} lies, each next call answered: {}", seen.len(), counted(seen)))
}

async fn no_answers(arena: &Arena) -> Outcome {
    let bad: &[ErrorKind] = &[BadResponse];
    let lost: &[ErrorKind] = &[BadResponse, ConnectionLost];
    let closed = |bytes: &[u8]| Lie::new(bytes, Then::Close);
    let rows: Rows = vec![
        ("SSH", closed(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"), bad),
        ("SMTP", closed(b"220 mail ESMTP\r\n"), lost),
        ("HTTP/0.9", closed(b"<html>hello</html>\r\n\r\n"), bad),
        ("HTTP/3", closed(b"HTTP/3 200 OK\r\n\r\n"), bad),
        ("a preface of HTTP/2", closed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), bad),
        ("SETTINGS of HTTP/2", closed(b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x04\0\0\0\0"), lost),
        ("an alert of TLS", closed(b"\x15\x03\x01\0\x02\x02\x16"), lost),
        ("a request", closed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), bad),
        ("no status", closed(b"HTTP/1.1 \r\n\r\n"), bad),
        ("a status of letters", closed(b"HTTP/1.1 abc X\r\n\r\n"), bad),
        ("a status too small", closed(b"HTTP/1.1 99 X\r\ncontent-length: 0\r\n\r\n"), bad),
        ("a status too large", closed(&answer(999, "", "")), bad),
        ("NUL in a field", closed(b"HTTP/1.1 200 OK\r\nx: \0\r\ncontent-length: 0\r\n\r\n"), bad),
        ("a folded field", closed(b"HTTP/1.1 200 OK\r\nx: y\r\n z\r\ncontent-length: 0\r\n\r\n"), bad),
        ("no answer", closed(b""), &[ConnectionLost]),
        ("no answer, reset", Lie::new(*b"", Then::Reset), &[ConnectionLost]),
        ("204", Lie::new(answer(204, "", ""), Then::Serve), bad),
        (
            "204 with a body",
            closed(&[&b"HTTP/1.1 204 X\r\ncontent-length: 6\r\n\r\n"[..], TRUE.as_bytes()].concat()),
            bad,
        ),
        ("205", closed(&answer(205, "", "")), bad),
        ("304 with a body", closed(&answer(304, "", TRUE)), bad),
        ("an upgrade", closed(b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n\"true\""), bad),
        ("a redirect", closed(&answer(307, "location: http://127.0.0.1:1/\r\n", "")), bad),
        ("HTML", closed(&answer(200, "content-type: text/html\r\n", "<html>")), bad),
        (
            "gzip",
            closed(&answer(200, "content-type: application/json\r\ncontent-encoding: gzip\r\n", TRUE)),
            bad,
        ),
        ("another shape", closed(&answer(200, "content-type: application/json\r\n", "{}")), bad),
        ("two shapes", closed(&answer(200, "content-type: application/json\r\n", "\"a\"\"b\"")), bad),
        (
            "not UTF-8",
            closed(b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: 3\r\n\r\n\"\xff\""),
            bad,
        ),
    ];
    all_fail(arena, rows).await
}

/// Heads and interim answers that never end: they end the call long before its time limit.
async fn endless(arena: &Arena) -> Outcome {
    let bad: &[ErrorKind] = &[BadResponse];
    let again = |bytes: &[u8], times: usize| Lie::new(bytes.repeat(times), Then::Repeat);
    let rows: Rows = vec![
        ("100 without end", again(b"HTTP/1.1 100 Continue\r\n\r\n", 1000), bad),
        ("103 without end", again(b"HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n", 1000), bad),
        ("an interim head without end", again(b"x: y\r\n", 10_000), bad),
        ("empty lines", again(b"\r\n", 10_000), bad),
        ("one line", again(b"x", 100_000), bad),
    ];
    let mut words = vec![all_fail(arena, rows).await?];
    // These begin as an answer.
    for (name, first, rest) in [
        ("fields", "HTTP/1.1 200 OK\r\n", "x: y\r\n"),
        ("one field", "HTTP/1.1 200 OK\r\nx: ", "yyyyyyyy"),
        ("a reason", "HTTP/1.1 200 ", "OK OK OK "),
        ("an interim field", "HTTP/1.1 100 Continue\r\nx: ", "yyyyyyyy"),
    ] {
        let liar = Liar::start(move |mut line, _| async move {
            request(&mut line).await?;
            line.send(first).await?;
            loop {
                line.send(rest.repeat(1000)).await?;
            }
        })
        .await?;
        made(arena, "call", &liar.url, LIE)
            .await?
            .check(bad, true)
            .map_err(|error| format!("{name}: {error}"))?;
        words.push(name.to_owned());
    }
    Ok(words.join(", "))
}

/// One answer, cut at each of its bytes. None is taken for whole, and the work may have run.
async fn cut(arena: &Arena) -> Outcome {
    let plain = honest();
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let chunked =
        [&head[..], b"transfer-encoding: chunked\r\n\r\n3\r\n\"tr\r\n3\r\nue\"\r\n0\r\n\r\n"].concat();
    let mut count = 0;
    for whole in [plain, chunked] {
        for then in [Then::Close, Then::Reset] {
            for end in (0..whole.len()).step_by(arena.pick(5, 1)) {
                let liar = Liar::lying(Lie::new(&whole[..end], then)).await?;
                let ended = made(arena, "call", &liar.url, LIE).await?;
                ended
                    .check(&[ConnectionLost, BadResponse], true)
                    .map_err(|error| format!("at {end}, {then:?}: {error}"))?;
                count += 1;
            }
        }
    }
    Ok(format!("{count} cut answers, each an error that may have executed"))
}

/// Bytes after an answer, at once and later: no later call reads them.
async fn to_nobody(arena: &Arena) -> Outcome {
    let typed = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let chunked = format!("{typed}transfer-encoding: chunked\r\n");
    let lies = [
        format!("{typed}content-length: 6\r\n\r\n{TRUE}{FORGED}"),
        format!("{typed}content-length: 6\r\n\r\n{TRUE}\r\n{FORGED}"),
        format!("{typed}content-length: 6\r\n\r\n{TRUE}HTTP/1.1 100 Continue\r\n\r\n"),
        format!("{typed}content-length: 3\r\n\r\n{TRUE}{FORGED}"),
        format!("{chunked}\r\n6\r\n{TRUE}\r\n0\r\n\r\n{FORGED}"),
        format!("{chunked}content-length: 1\r\n\r\n6\r\n{TRUE}\r\n0\r\n\r\n{FORGED}"),
        format!("{chunked}\r\n6\r\n{TRUE}\r\n0\r\nx: y\r\n\r\n{FORGED}"),
        format!("{typed}content-length: 6\r\ncontent-length: 8\r\n\r\n{TRUE}{FORGED}"),
        format!("{typed}content-length: 0\r\n\r\n{FORGED}"),
        format!("{typed}content-length: +6\r\n\r\n{TRUE}{FORGED}"),
        format!("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n{FORGED}"),
        format!("HTTP/1.1 304 Not Modified\r\n\r\n{FORGED}"),
        format!("HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n{FORGED}"),
    ];
    let count = lies.len();
    for bytes in lies {
        let liar = Liar::lying(Lie::new(bytes.clone(), Then::Serve)).await?;
        let first = made(arena, "call", &liar.url, LIE).await?;
        ensure!(first.output.as_deref() != Some("forged"), "forged: {bytes}");
        for _ in 0..3 {
            let next = made(arena, "call", &liar.url, "next").await?;
            ensure!(next.output.as_deref() == Some("true"), "{bytes}: {next:?}");
        }
    }
    // A forged answer that comes while the connection rests: it is there before the next call.
    let (forged, mut is_there) = mpsc::unbounded_channel();
    let liar = Liar::start(move |mut line, _| {
        let forged = forged.clone();
        async move {
            request(&mut line).await?;
            line.send(honest()).await?;
            sleep(Duration::from_millis(2)).await;
            line.send(FORGED).await?;
            forged.send(())?;
            request(&mut line).await.map(drop)
        }
    })
    .await?;
    let rounds = arena.pick(20, 200);
    for round in 0..rounds {
        let ended = made(arena, "again", &liar.url, "next").await?;
        ensure!(ended.output.as_deref() == Some("true"), "round {round}: {ended:?}");
        is_there.recv().await;
    }
    Ok(format!("{count} answers with another after them, {rounds} while connections rest, none read"))
}

/// Answers that come before the request: read where they refuse it, and never taken for the answer to another one.
async fn early(arena: &Arena) -> Outcome {
    let refusal =
        answer(413, "connection: close\r\ncontent-type: application/json\r\n", "{\"error\":\"too large\"}");
    let liar = Liar::start(move |mut line, _| {
        let refusal = refusal.clone();
        async move {
            line.more().await?;
            line.send(refusal).await?;
            line.half_close().await?;
            line.rest().await.map(drop)
        }
    })
    .await?;
    made(arena, "large", &liar.url, LIE).await?.check(&[ErrorKind::PayloadTooLarge], false)?;
    // An answer that is there before the request is no answer to it.
    let liar = Liar::start(|mut line, _| async move {
        line.send(FORGED).await?;
        line.rest().await.map(drop)
    })
    .await?;
    // A call over a connection whose answer was read before ends at its limit, since the server answers no more.
    let (limit, rounds) = (Duration::from_secs(1), arena.pick(5, 50));
    let mut ends = Vec::new();
    for _ in 0..rounds {
        let ended = within(arena, "call", &liar.url, limit, LIE).await?;
        ensure!(ended.kind.is_some() || ended.output.as_deref() == Some("forged"), "{ended:?}");
        ends.push(ended.kind.map_or("answered".to_owned(), |kind| kind.to_string()));
    }
    let (answered, accepted) = (ends.iter().filter(|end| *end == "answered").count(), liar.accepted());
    ensure!(answered <= accepted, "{answered} calls answered over {accepted} connections");
    Ok(format!("an early refusal read, answers at connect end one call each and no other: {}", counted(ends)))
}

/// Answers that come too slowly, or stop: each call ends at its limit. A byte now and then keeps one alive, but not beyond
/// its deadline.
async fn slow(arena: &Arena) -> Outcome {
    let limit = Duration::from_millis(arena.pick(3000, 40_000));
    let json = answer(200, "content-type: application/json\r\n", TRUE);
    let rows: [(&str, &str, Vec<u8>, &str); 7] = [
        ("silence", "call", Vec::new(), ""),
        ("half a head", "call", b"HTTP/1.1 200 OK\r\ncontent-le".to_vec(), ""),
        ("half a body", "call", json[..json.len() - 2].to_vec(), ""),
        (
            "half a chunk",
            "call",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\n\"t".to_vec(),
            "",
        ),
        ("a slow head", "call", b"HTTP/1.1 200 OK\r\nx: ".to_vec(), "x"),
        ("a slow body", "call", b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n".to_vec(), "x"),
        ("a request that is not read", "large", Vec::new(), ""),
    ];
    let calls = rows.into_iter().map(async |(name, how, first, rest)| {
        let first = Arc::new(first);
        let liar = Liar::start(move |mut line, _| {
            let first = first.clone();
            async move {
                // One that is too large for the system's buffers stays there.
                if how == "call" {
                    request(&mut line).await?;
                }
                line.send(&*first).await?;
                loop {
                    sleep(Duration::from_millis(50)).await;
                    line.send(rest).await?;
                }
            }
        })
        .await?;
        let ended = within(arena, how, &liar.url, limit, LIE).await?;
        // A machine that is busy may not have sent the request by then.
        let executed = ended.executed || liar.accepted() > 0;
        let kind = ended.check(&[DeadlineExceeded, Timeout], executed);
        Ok::<_, Broken>(kind.map_err(|error| format!("{name}: {error}"))?)
    });
    let kinds: Result<Vec<_>, _> = join(calls).await.into_iter().collect();
    Ok(format!("7 slow answers, each ended at its limit: {}", counted(kinds?)))
}

/// Refused, reset at accept, accepted and never answered, and never accepted.
async fn no_connections(arena: &Arena) -> Outcome {
    let refused = TcpSocket::new_v4()?;
    refused.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let url = format!("http://{}", refused.local_addr()?);
    made(arena, "call", &url, LIE).await?.check(&[Unreachable], false)?;
    let mut kinds = Vec::new();
    let liar = Liar::start(|line, _| async move { Ok(line.reset()?) }).await?;
    for _ in 0..arena.pick(20, 300) {
        let ended = made(arena, "call", &liar.url, LIE).await?;
        let kind = ended.kind.ok_or("answered")?;
        ensure!([ConnectionLost, Unreachable].contains(&kind), "reset at accept: {ended:?}");
        kinds.push(kind);
    }
    // The queue is full: whoever connects gets no answer from the system.
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let listener: TcpListener = socket.listen(1)?;
    let address = listener.local_addr()?;
    let mut filling = tokio::task::JoinSet::new();
    for _ in 0..8 {
        filling.spawn(async move { Line::connect(address).await });
    }
    sleep(Duration::from_millis(100)).await;
    let ended = within(arena, "call", &format!("http://{address}"), Duration::from_secs(8), LIE).await?;
    ended.check(&[Timeout, DeadlineExceeded, Unreachable], false)?;
    Ok(format!("refused, never accepted, and reset at accept: {}", counted(kinds)))
}

/// More calls to an arm that hangs than there are connections: another arm of the same client is called as before.
async fn beside(arena: &Arena) -> Outcome {
    let liar = Liar::lying(Lie::new(*b"", Then::Silence)).await?;
    let (both, limit) = (format!("{}+http://{}", liar.url, arena.address()), arena.pick(3000, 10_000));
    let calls = async {
        let limit = Duration::from_millis(limit);
        let mut kinds = Vec::new();
        let calls = (0..150).map(|_| within(arena, "call", &both, limit, LIE));
        for ended in join(calls).await {
            let ended = ended?;
            kinds.push(ended.kind.ok_or("answered")?);
        }
        Ok::<_, Broken>(kinds)
    };
    let healthy = async {
        let mut slowest = 0;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(limit) {
            let ended = made(arena, "second", &both, "healthy").await?;
            ensure!(ended.output.as_deref() == Some("healthy"), "{ended:?}");
            slowest = slowest.max(ended.ms);
            sleep(Duration::from_millis(10)).await;
        }
        Ok::<_, Broken>(slowest)
    };
    let (kinds, slowest) = tokio::try_join!(calls, healthy)?;
    let fits = kinds.iter().all(|kind| [Timeout, DeadlineExceeded].contains(kind));
    ensure!(fits, "{}", counted(kinds));
    ensure!(slowest < 5_000, "a call to the fast arm took {slowest} ms");
    Ok(format!(
        "150 calls to an arm that hangs, {} connections, the fast arm at most {slowest} ms",
        liar.accepted()
    ))
}

/// Polls all of them at once.
async fn join<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        for (future, done) in &mut futures {
            if done.is_none()
                && let std::task::Poll::Ready(answer) = future.as_mut().poll(cx)
            {
                *done = Some(answer);
            }
        }
        match futures.iter().all(|(_, done)| done.is_some()) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    futures.into_iter().filter_map(|(_, done)| done).collect()
}
