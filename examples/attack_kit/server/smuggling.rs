//! Requests hidden in others: none runs, and no answer is another's.

use super::{HEAD, asked, at_once, echo, post, seen};
use crate::{
    frame::{Arena, Attack, Outcome, counted, ensure},
    lines::Line,
};

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack::new("server", "smuggling-by-length", |arena| Box::pin(by_framing(arena, lengths()))),
        Attack::new("server", "smuggling-by-coding", |arena| Box::pin(by_framing(arena, codings()))),
        Attack::new("server", "smuggling-by-chunks", |arena| Box::pin(by_framing(arena, chunks()))),
        Attack::new("server", "smuggling-by-head", |arena| Box::pin(by_head(arena))),
        Attack::new("server", "smuggling-in-unread-bodies", |arena| Box::pin(in_unread_bodies(arena))),
        Attack::new("server", "smuggling-by-trailers", |arena| Box::pin(by_trailers(arena))),
        Attack::new("server", "pipelining", |arena| Box::pin(pipelining(arena))),
    ]
}

const HIDDEN: &str = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{\"text\":\"hidden\"}";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

type Framings = Vec<(String, String)>;

fn after_no_body(fields: &[&str]) -> Framings {
    fields.iter().map(|field| (format!("{field}\r\n"), HIDDEN.to_owned())).collect()
}

fn after_chunks(fields: &[&str]) -> Framings {
    fields.iter().map(|field| (format!("{field}\r\n"), format!("0\r\n\r\n{HIDDEN}"))).collect()
}

/// Lengths that two servers may read as two lengths.
fn lengths() -> Framings {
    let mut framings = after_no_body(&[
        "Content-Length: 0\r\nContent-Length: 10",
        "Content-Length: 0, 0",
        "Content-Length: 0,10",
        "Content-Length: -0",
        "Content-Length: +0",
        "Content-Length: 0x0",
        "Content-Length: 0 0",
        "Content-Length: 0.0",
        "Content-Length: 0;",
        "Content-Length: \"0\"",
        "Content-Length: ",
        "Content-Length:\u{b}0",
        "Content-Length : 0",
        "Content-Length: 18446744073709551616",
        "Content-Length: 0\r\n 10",
        "Content-Length:\r\n 0",
        "Content-Length: 9223372036854775808",
    ]);
    framings.extend(after_chunks(&[
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: chunked\r\nContent-Length: 0",
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
    ]));
    framings
}

/// Codings that one server takes for chunks and another one does not.
fn codings() -> Framings {
    after_chunks(&[
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunkedx",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: 'chunked'",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
        "Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: \u{b}chunked",
        "Transfer-Encoding: chun\tked",
        "Transfer-Encoding : chunked",
        " Transfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding\u{0}: chunked",
        "Transfer_Encoding: chunked\r\nContent-Length: 99999",
    ])
}

/// Chunks whose end is not where they say.
fn chunks() -> Framings {
    let bodies = [
        format!("-1\r\n{HIDDEN}"),
        format!("+0\r\n\r\n{HIDDEN}"),
        format!("0x0\r\n\r\n{HIDDEN}"),
        format!("0 0\r\n\r\n{HIDDEN}"),
        format!("0;\n\r\n\r\n{HIDDEN}"),
        format!("0\n\n{HIDDEN}"),
        format!("10000000000000000\r\n\r\n{HIDDEN}"),
        format!("ffffffffffffffff\r\n\r\n{HIDDEN}"),
        format!("0;{}", "x".repeat(100_000)),
        format!("2\r\n{{}}XX0\r\n\r\n{HIDDEN}"),
        format!("2\r\n{{}}0\r\n\r\n{HIDDEN}"),
        format!("2\r\n{{}}\n0\r\n\r\n{HIDDEN}"),
        format!("\r\n0\r\n\r\n{HIDDEN}"),
        format!(";x\r\n\r\n{HIDDEN}"),
        format!("0\r\nX: y\r\n z\r\n{HIDDEN}"),
        format!("{:x}\r\n{HIDDEN}\r\n0\r\n\r\n", HIDDEN.len()),
    ];
    bodies.into_iter().map(|body| (CHUNKED.to_owned(), body)).collect()
}

async fn by_framing(arena: &Arena, framings: Framings) -> Outcome {
    let requests =
        framings.into_iter().map(|(fields, body)| format!("{HEAD}{fields}\r\n{body}").into_bytes());
    none_is_found(arena, requests.collect()).await
}

/// Sends each of them over a connection of its own. One answer at most comes back, and what is hidden does not run.
async fn none_is_found(arena: &Arena, requests: Vec<Vec<u8>>) -> Outcome {
    let address = arena.address();
    let answers = at_once(requests.len(), |number| {
        let bytes = requests[number].clone();
        async move {
            let mut line = Line::connect(address).await?;
            let _ = line.send(&bytes).await;
            // Otherwise the answer to a request that is not finished is waited for.
            let _ = line.half_close().await;
            let answers = line.answers().await?;
            let shown = bytes[..bytes.len().min(200)].escape_ascii();
            ensure!(answers.len() <= 1, "{} answers to {shown}", answers.len());
            let body = answers.first().map(|answer| String::from_utf8_lossy(&answer.body).into_owned());
            ensure!(!body.unwrap_or_default().contains("hidden"), "the hidden request answers {shown}");
            Ok(answers.first().map_or(0, |answer| answer.status))
        }
    })
    .await?;
    let hidden = seen(arena).await?.hidden;
    ensure!(hidden == 0, "{hidden} hidden requests ran");
    Ok(format!(
        "{} requests, each answered at most once, none hidden ran: {}",
        answers.len(),
        counted(answers)
    ))
}

/// Heads that two servers may read as two requests. What is hidden has the place of a body.
async fn by_head(arena: &Arena) -> Outcome {
    let length = HIDDEN.len();
    let framing = format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
    let heads = [
        format!("POST /echo HTTP/1.1\r\n{framing}"),
        format!("POST /echo HTTP/1.1\r\nHost: x\r\nHost: y\r\n{framing}"),
        format!("POST /echo HTTP/1.1\r\nHost: x, y\r\n{framing}"),
        format!("POST /echo HTTP/1.1\r\nHost : x\r\n{framing}"),
        format!("POST /echo HTTP/1.1\r\nHost: x\r\nX: \0\r\n{framing}"),
        format!("POST /echo HTTP/1.1\r\nHost: x\r\nX\0: y\r\n{framing}"),
        format!("POST /echo HTTP/1.1\r\nHost: x\r\nX: y\rContent-Length: 0\r\n{framing}"),
        format!("POST /echo HTTP/1.1\r\nHost: x\r\nX: y\r\r\n{framing}"),
        format!("POST /echo HTTP/1.1\r\nHost: x\r\n: y\r\n{framing}"),
        format!("POST /echo HTTP/1.1\r\nHost: x\r\nno colon\r\n{framing}"),
        format!("POST /echo HTTP/1.1\r\n Host: x\r\n{framing}"),
        format!("POST /echo  HTTP/1.1\r\nHost: x\r\n{framing}"),
        format!("POST  /echo HTTP/1.1\r\nHost: x\r\n{framing}"),
        format!("POST /echo\tHTTP/1.1\r\nHost: x\r\n{framing}"),
        format!("POST /echo HTTP/1.0\r\nHost: x\r\n{CHUNKED}{framing}"),
        format!("POST /echo HTTP/2.0\r\nHost: x\r\n{framing}"),
        format!("POST /echo HTTP/1.12\r\nHost: x\r\n{framing}"),
        format!("POST /echo HTTP/1.1 HTTP/1.1\r\nHost: x\r\n{framing}"),
        "POST /echo\r\n".to_owned(),
        format!("POST http://elsewhere/echo HTTP/1.1\r\nHost: x\r\nX\u{7f}: y\r\n{framing}"),
        format!("POST /echo%00 HTTP/1.1\r\nHost: x\r\n{framing}"),
        format!("POST /%2e%2e/echo HTTP/1.1\r\nHost: x\r\n{framing}"),
        format!("POST /x/../echo HTTP/1.1\r\nHost: x\r\n{framing}"),
        format!("POST /echo\\..\\ HTTP/1.1\r\nHost: x\r\n{framing}"),
        format!("CONNECT x:80 HTTP/1.1\r\nHost: x\r\n{framing}"),
        format!("POST * HTTP/1.1\r\nHost: x\r\n{framing}"),
    ];
    let mut requests: Vec<_> = heads.iter().map(|head| format!("{head}\r\n{HIDDEN}").into_bytes()).collect();
    // Lines that end in LF alone are read as lines (RFC 9112 §2.2): the body is a body then as well.
    requests.push(
        format!("{HEAD}Content-Length: {length}\r\n\r\n{HIDDEN}").replacen("\r\n", "\n", 5).into_bytes(),
    );
    let words = none_is_found(arena, requests).await?;
    // The target in absolute form names the host, whatever `Host` says (RFC 9112 §3.2.2): it is one request.
    let body = "{\"text\":\"absolute\"}";
    let bytes = post("/echo", "", body);
    let absolute = String::from_utf8(bytes)?.replacen("/echo", "http://elsewhere/echo", 1);
    let answer = asked(arena, absolute).await?;
    ensure!(answer.status == 200 || answer.status == 400, "absolute form: {}", answer.status);
    Ok(words)
}

/// Bodies that nobody reads: to probes, to unknown routes and methods, and behind refused heads.
async fn in_unread_bodies(arena: &Arena) -> Outcome {
    let length = HIDDEN.len();
    let heads = [
        "GET /health HTTP/1.1\r\nHost: x\r\n",
        "HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n",
        "DELETE /nowhere HTTP/1.1\r\nHost: x\r\n",
        "GET /echo HTTP/1.1\r\nHost: x\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 200-ok\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nOctollm-Timeout: 0\r\nExpect: 100-continue\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n",
        "CONNECT x:80 HTTP/1.1\r\nHost: x\r\n",
        "BREW /echo HTTP/1.1\r\nHost: x\r\n",
    ];
    let mut requests = Vec::new();
    for head in heads.into_iter().filter(|head| !head.starts_with("HEAD")) {
        requests.push(format!("{head}Content-Length: {length}\r\n\r\n{HIDDEN}").into_bytes());
        requests.push(format!("{head}{CHUNKED}\r\n{length:x}\r\n{HIDDEN}\r\n0\r\n\r\n").into_bytes());
    }
    none_is_found(arena, requests).await
}

/// Trailers with fields that frame, authorize or route: they change neither this request nor the next one.
async fn by_trailers(arena: &Arena) -> Outcome {
    let trailers = [
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
        "Host: elsewhere",
        "Authorization: Bearer x",
        "Idempotency-Key: \"x\"",
        "Octollm-Timeout: 0",
        "Octollm-Budget: tokens=0",
        "Content-Type: text/plain",
        "Connection: close",
        "Expect: 100-continue",
    ];
    for trailer in trailers {
        let mut line = Line::connect(arena.address()).await?;
        let first = format!("{HEAD}{CHUNKED}\r\n10\r\n{{\"text\":\"first\"}}\r\n0\r\n{trailer}\r\n\r\n");
        line.send([first.as_bytes(), &echo("second")].concat()).await?;
        for text in ["first", "second"] {
            let answer = line.answer().await?;
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            ensure!(
                answer.status == 200 && body == format!("{text:?}"),
                "{trailer}: {} {body}",
                answer.status
            );
        }
    }
    Ok(format!("{} trailers, both requests answered as without", trailers.len()))
}

/// Many requests in pieces of all sizes, whose texts look like answers: each is answered by its own text, in order.
async fn pipelining(arena: &Arena) -> Outcome {
    let (lines, requests) = arena.pick((8, 60), (40, 500));
    let address = arena.address();
    at_once(lines, |number| async move {
        let looks = "HTTP/1.1 400 Bad Request\\r\\ncontent-length: 0\\r\\n\\r\\n";
        let text = |n: usize| format!("{number}-{n} {looks}{}", "y".repeat(n * 97 % 3000));
        let mut line = Line::connect(address).await?;
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for n in 0..requests {
            bytes.extend(echo(&text(n)));
            ends.push(bytes.len());
        }
        let (mut sent, mut size) = (0, 1);
        for (n, end) in ends.iter().enumerate() {
            // Twenty answers may be due at a time.
            let due = ends[(n + 20).min(requests - 1)].max(*end);
            while sent < due {
                size = (size * 7 + number) % 6007 + 1;
                let until = (sent + size).min(bytes.len());
                line.send(&bytes[sent..until]).await?;
                sent = until;
            }
            let (answer, found) = (line.answer().await?, format!("\"{}\"", text(n)));
            let fits = answer.status == 200 && answer.body == found.as_bytes();
            ensure!(fits, "line {number}: another answer than {found}");
        }
        Ok(())
    })
    .await?;
    Ok(format!("{lines} x {requests} pipelined requests, each answered in order by its own text"))
}
