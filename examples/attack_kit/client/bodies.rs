//! Bodies and headers of answers that are too large, too deep, or absurd.

use std::time::Duration;

use octollm::error::ErrorKind::{self, ArmFailed, BadResponse, Overloaded, Unavailable};

use super::{
    answers::all_fail,
    liar::{LIE, Liar, Lie, TRUE, Then, answer},
    made,
};
use crate::frame::{Arena, Attack, Outcome, ensure};

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack::new("client", "huge-answers", |arena| Box::pin(huge(arena))).memory(96, 48),
        Attack::new("client", "small-values-in-answers", |arena| Box::pin(small_values(arena)))
            .memory(128, 64),
        Attack::new("client", "foreign-problems", |arena| Box::pin(problems(arena))),
        Attack::new("client", "absurd-headers", |arena| Box::pin(headers(arena))),
    ]
}

const JSON: &str = "content-type: application/json\r\n";

async fn huge(arena: &Arena) -> Outcome {
    let bad: &[ErrorKind] = &[BadResponse];
    let most = 8 << 20;
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(65_536));
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000));
    let head = format!("HTTP/1.1 200 OK\r\n{JSON}");
    let closed = |bytes: String| Lie::new(bytes, Then::Close);
    let rows = vec![
        ("a byte too much", closed(String::from_utf8(answer(200, JSON, &"x".repeat(most + 1)))?), bad),
        (
            "a length without measure",
            closed(format!("{head}content-length: 18446744073709551615\r\n\r\nx")),
            bad,
        ),
        ("a length beyond it", closed(format!("{head}content-length: 18446744073709551616\r\n\r\nx")), bad),
        (
            "chunks beyond it",
            closed(format!("{head}transfer-encoding: chunked\r\n\r\n{}", chunk.repeat(130))),
            bad,
        ),
        ("no length", closed(format!("{head}\r\n{}", "x".repeat(most + 1))), bad),
        (
            "a string of 8 MB",
            closed(String::from_utf8(answer(200, JSON, &format!("[\"{}\"]", "x".repeat(most - 10))))?),
            bad,
        ),
        ("deep arrays", closed(String::from_utf8(answer(200, JSON, &deep("[", "]")))?), bad),
        ("deep objects", closed(String::from_utf8(answer(200, JSON, &deep("{\"a\":[", "]}")))?), bad),
        ("a number of a megabyte", closed(String::from_utf8(answer(200, JSON, &"9".repeat(1 << 20)))?), bad),
        (
            "a bomb of gzip",
            closed(String::from_utf8(answer(200, &format!("{JSON}content-encoding: gzip\r\n"), "x"))?),
            bad,
        ),
    ];
    all_fail(arena, rows).await
}

/// Answers of 8 MB in small values, as outputs and as problems: what they hold stays near their size.
async fn small_values(arena: &Arena) -> Outcome {
    let values = format!("[{}0]", "{\"k\":0},".repeat((8 << 20) / 8 - 100));
    let problem = format!("{{\"status\":500,\"code\":\"arm_failed\",\"details\":{{\"x\":{values}}}}}");
    let foreign = format!("{{\"error\":{values}}}");
    let rounds = arena.pick(1, 5);
    for _ in 0..rounds {
        for (status, body, kind) in [
            (200, &values, BadResponse),
            (500, &problem[..problem.len().min(8 << 20)].to_owned(), ArmFailed),
            (500, &foreign, ArmFailed),
        ] {
            let liar = Liar::lying(Lie::new(answer(status, JSON, body), Then::Close)).await?;
            made(arena, "call", &liar.url, LIE).await?.check(&[kind], true)?;
        }
    }
    Ok(format!("{} answers of 8 MB in small values", rounds * 3))
}

/// Problems of other stacks: whether the work may have run follows from the status and the code.
async fn problems(arena: &Arena) -> Outcome {
    use ErrorKind::{BadRequest, NotFound, RateLimited, UpstreamFailed, ValidationFailed};
    let long = format!("{{\"error\":\"{}\"}}", "x".repeat(1 << 20));
    let deep = format!("{{\"error\":{}{}}}", "[".repeat(50_000), "]".repeat(50_000));
    let rows: Vec<(u16, &str, ErrorKind, bool)> = vec![
        (400, "", BadRequest, false),
        (404, "<html>", NotFound, false),
        (422, "{\"detail\":[{\"loc\":[\"body\",\"x\"],\"msg\":\"y\"}]}", ValidationFailed, false),
        (429, "{}", RateLimited, false),
        (500, "", ArmFailed, true),
        (500, &long, ArmFailed, true),
        (500, &deep, ArmFailed, true),
        (500, "{\"error\":{\"error\":{\"error\":1}}}", ArmFailed, true),
        (500, "null", ArmFailed, true),
        (500, "[[[[", ArmFailed, true),
        (500, "\u{feff}{}", ArmFailed, true),
        (502, "", UpstreamFailed, true),
        (503, "", Unavailable, true),
        (500, "{\"status\":500,\"code\":\"arm_failed\"}", ArmFailed, true),
        (500, "{\"status\":500,\"code\":\"no_such_code\"}", ArmFailed, true),
        (500, "{\"status\":503,\"code\":\"overloaded\"}", Overloaded, false),
        (500, "{\"status\":500,\"code\":\"arm_failed\",\"may_have_executed\":\"no\"}", ArmFailed, true),
        (500, "{\"status\":99999,\"code\":\"arm_failed\"}", ArmFailed, true),
        (599, "", ArmFailed, true),
    ];
    let count = rows.len();
    for (status, body, kind, executed) in rows {
        let liar = Liar::lying(Lie::new(answer(status, JSON, body), Then::Serve)).await?;
        let ended = made(arena, "call", &liar.url, LIE).await?;
        let shown: String = body.chars().take(60).collect();
        ended.check(&[kind], executed).map_err(|error| format!("{status} {shown}: {error}"))?;
        ensure!(ended.words.len() < 4096, "an error of {} bytes", ended.words.len());
        let next = made(arena, "call", &liar.url, "next").await?;
        ensure!(next.output.as_deref() == Some("true"), "{status} {shown}: the next call: {next:?}");
    }
    Ok(format!("{count} foreign problems, each of the right kind"))
}

/// `Retry-After` and usage without measure: they hold up no call and no retry beyond its deadline.
async fn headers(arena: &Arena) -> Outcome {
    // One that is no wait does not say either that nothing has run.
    let waits = [
        ("1e300", true),
        ("-1", true),
        ("99999999999999999999999", false),
        ("18446744073709551615", false),
        ("Fri, 31 Dec 9999 23:59:59 GMT", false),
        ("Sun, 06 Nov 1994 08:49:37 GMT", false),
        ("NaN", true),
        ("", true),
    ];
    for (wait, executed) in waits {
        let liar =
            Liar::lying(Lie::new(answer(503, &format!("retry-after: {wait}\r\n"), ""), Then::Serve)).await?;
        let ended = made(arena, "again", &liar.url, LIE).await?;
        ended.check(&[Unavailable], executed).map_err(|error| format!("Retry-After: {wait}: {error}"))?;
        ensure!(
            Duration::from_millis(ended.ms) < Duration::from_secs(20),
            "Retry-After: {wait} took {} ms",
            ended.ms
        );
    }
    let usages = [
        "tokens=10.0",
        "tokens=1e300",
        "tokens=-1",
        "tokens=NaN",
        "tokens=18446744073709551615",
        "cost_usd=1e300",
        "cost_usd=-1",
        "x=y",
        "",
        ";;;",
    ];
    let mut read = 0;
    for usage in usages {
        let bytes = answer(200, &format!("{JSON}octollm-usage: {usage}\r\n"), TRUE);
        let liar = Liar::lying(Lie::new(bytes, Then::Serve)).await?;
        let ended = made(arena, "call", &liar.url, LIE).await?;
        match ended.kind {
            None => read += 1,
            Some(_) => {
                ended.check(&[BadResponse], true).map_err(|error| format!("usage {usage}: {error}"))?;
            }
        }
    }
    Ok(format!("{} waits and {} usages without measure, {read} usages read", waits.len(), usages.len()))
}
