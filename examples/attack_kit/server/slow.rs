//! Callers that take their time.

use std::time::Duration;

use tokio::{
    net::TcpSocket,
    time::{Instant, sleep},
};

use super::{HEAD, HEALTH, asked, at_once, echo, post};
use crate::{
    frame::{Arena, Attack, Broken, Outcome, counted, ensure},
    lines::Line,
    process::Figures,
};

pub(super) fn attacks() -> Vec<Attack> {
    let attack = |name, run| Attack::new("server", name, run).memory(96, 64);
    vec![
        attack("silent-connections", |arena| Box::pin(heads(arena, Slow::Silent)))
            .settings(&[("head_ms", 500)]),
        attack("slow-heads", |arena| Box::pin(heads(arena, Slow::Head))).settings(&[("head_ms", 500)]),
        attack("slow-preface", |arena| Box::pin(heads(arena, Slow::Preface))).settings(&[("head_ms", 500)]),
        attack("idle-connections", |arena| Box::pin(idle(arena))).settings(&[("idle_ms", 500)]),
        attack("slow-bodies", |arena| Box::pin(bodies(arena))).settings(&[("body_ms", 800)]),
        attack("large-slow-bodies", |arena| Box::pin(large_bodies(arena)))
            .settings(&[("max_arriving", 16 << 20), ("body_ms", 1000)]),
        // An answer of 1 MB for each of at most 100 connections. They are freed, but the allocator keeps most of the pages.
        attack("answers-not-taken", |arena| Box::pin(not_taken(arena)))
            .settings(&[("write_ms", 600)])
            .memory(160, 160),
    ]
}

/// How much later than its limit something may end: as long as a loaded machine may hold up everything.
const MARGIN: Duration = Duration::from_secs(10);

/// That a limit held, and neither earlier nor much later.
fn check(name: &str, limit: Duration, times: &[Duration]) -> Result<String, Broken> {
    let (least, most) = (times.iter().min().copied(), times.iter().max().copied());
    let (least, most) = (least.unwrap_or_default(), most.unwrap_or_default());
    ensure!(least >= limit * 9 / 10, "{name} ended after {least:?}, before the limit of {limit:?}");
    ensure!(most <= limit + MARGIN, "{name} ended after {most:?}, long after the limit of {limit:?}");
    Ok(format!(
        "{name} ended after {:.1} to {:.1} s (limit {limit:?})",
        least.as_secs_f64(),
        most.as_secs_f64()
    ))
}

#[derive(Debug, Clone, Copy)]
enum Slow {
    Silent,
    Head,
    Preface,
}

/// First heads that do not come, or come a byte at a time.
async fn heads(arena: &Arena, slow: Slow) -> Outcome {
    let (address, limit, count) = (arena.address(), arena.config.head_timeout, arena.pick(100, 2000));
    let times = at_once(count, |number| async move {
        let (mut line, begun) = (Line::connect(address).await?, Instant::now());
        let pause = limit / 8;
        match slow {
            Slow::Silent => {}
            Slow::Head if number % 2 == 0 => line.trickle(HEAD.bytes().cycle(), pause).await,
            Slow::Head => line.send("POST /echo HTTP/1.1\r\nHost:").await?,
            Slow::Preface => line.trickle(crate::http2::PREFACE[..23].iter().copied(), pause).await,
        }
        let rest = line.rest().await?;
        ensure!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{}", crate::lines::shown(&rest));
        Ok(begun.elapsed())
    })
    .await?;
    check(&format!("{count} connections"), limit, &times)
}

/// Connections that rest after an answer.
async fn idle(arena: &Arena) -> Outcome {
    let (address, limit, count) = (arena.address(), arena.config.idle_timeout, arena.pick(100, 2000));
    let times = at_once(count, |number| async move {
        let mut line = Line::connect(address).await?;
        line.send(if number % 2 == 0 { HEALTH.to_vec() } else { echo("a") }).await?;
        ensure!(line.answer().await?.status == 200, "not answered");
        let begun = Instant::now();
        ensure!(line.rest().await?.is_empty(), "something after the answer");
        Ok(begun.elapsed())
    })
    .await?;
    check(&format!("{count} connections"), limit, &times)
}

/// More bodies that trickle than there are places: healthy calls are answered meanwhile, and each ends at the limit.
async fn bodies(arena: &Arena) -> Outcome {
    let (address, limit) = (arena.address(), arena.config.body_timeout);
    let count = arena.config.max_in_flight + 76;
    let outcomes = at_once(count, |number| async move {
        let mut line = Line::connect(address).await?;
        let framing = if number % 2 == 0 { "Content-Length: 100000" } else { "Transfer-Encoding: chunked" };
        line.send(format!("{HEAD}{framing}\r\n\r\n")).await?;
        let begun = Instant::now();
        match number % 2 {
            0 => {
                line.trickle(b"{\"text\":\"a".iter().copied().chain(std::iter::repeat(b'a')), limit / 8).await
            }
            _ => line.trickle(b"1\r\na\r\n".iter().copied().cycle(), limit / 16).await,
        }
        Ok((line.answer().await?.status, begun.elapsed()))
    })
    .await?;
    let other = outcomes.iter().find(|(status, _)| *status != 408);
    ensure!(other.is_none(), "answered {other:?} in place of 408");
    let times: Vec<_> = outcomes.into_iter().map(|(_, time)| time).collect();
    check(&format!("{count} bodies"), limit, &times)
}

/// Bodies that come almost whole, and then wait: their memory is bounded, and those beyond are refused.
async fn large_bodies(arena: &Arena) -> Outcome {
    let (address, count) = (arena.address(), arena.pick(24, 200));
    let bytes = arena.config.max_body;
    let statuses = at_once(count, |_| async move {
        let mut line = Line::connect(address).await?;
        line.send(format!("{HEAD}Content-Length: {bytes}\r\n\r\n")).await?;
        let _ = line.send(vec![b'a'; bytes - 1]).await;
        Ok(line.next().await?.map_or(0, |answer| answer.status))
    })
    .await?;
    let refused = statuses.iter().filter(|status| [0, 503].contains(*status)).count();
    let late = statuses.iter().filter(|status| **status == 408).count();
    ensure!(refused + late == count, "answered {}", counted(statuses));
    ensure!(refused > 0, "none was refused, and {count} x {bytes} bytes waited");
    Ok(format!("{count} bodies of {bytes} bytes but one, {late} held to the limit, {refused} refused"))
}

/// How many MiB more the server may hold in a second round than in the first: far below the answers of one.
const GROWTH: u64 = 32;

/// Large answers that nobody reads: the connection is closed at the limit on writes, and its answer is freed, so that a second
/// round finds room in what the first one left.
async fn not_taken(arena: &Arena) -> Outcome {
    let (limit, count) = (arena.config.write_timeout, arena.pick(4, 100));
    let first = never_read(arena, count).await?;
    let second = never_read(arena, count).await?;
    let grown = second.kib.saturating_sub(first.kib) / 1024;
    ensure!(grown <= GROWTH, "memory grew by {grown} MiB in a second round, more than {GROWTH}");
    ensure!(asked(arena, echo("a")).await?.status == 200, "not answered afterwards");
    Ok(format!(
        "2 x {count} connections that read nothing, closed after {:.1} and {:.1} s (limit {limit:?}), at most {} bytes sent, \
         memory grew by {grown} MiB in the second round",
        first.seconds,
        second.seconds,
        first.sent.max(second.sent)
    ))
}

struct NeverRead {
    seconds: f64,
    /// The most bytes that were sent over one connection.
    sent: usize,
    /// The most memory that was seen.
    kib: u64,
}

async fn never_read(arena: &Arena, count: usize) -> Result<NeverRead, Broken> {
    let limit = arena.config.write_timeout;
    let figures = || Figures::of(arena.child.id());
    let before = figures().descriptors;
    let mut lines = Vec::new();
    for _ in 0..count {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(16 * 1024)?;
        let mut line = Line::of(socket.connect(arena.address()).await?);
        // More than the system's own buffers hold.
        line.send(post("/large", "", "{\"bytes\":1000000}").repeat(30)).await?;
        lines.push(line);
    }
    let begun = Instant::now();
    while figures().descriptors < before + count {
        ensure!(begun.elapsed() < MARGIN, "not accepted");
        sleep(Duration::from_millis(5)).await;
    }
    // The server has closed them all, though nobody has read what is in the system's buffers.
    let mut kib = 0;
    loop {
        let now = figures();
        kib = kib.max(now.kib);
        if now.descriptors <= before {
            break;
        }
        let time = begun.elapsed();
        ensure!(time < limit + MARGIN, "connections are open after {time:?}, where the limit is {limit:?}");
        sleep(Duration::from_millis(20)).await;
    }
    let (seconds, mut sent) = (begun.elapsed().as_secs_f64(), 0);
    for line in lines {
        sent = sent.max(line.rest().await?.len());
    }
    ensure!(sent < 30_000_000, "all of the answers were sent: {sent} bytes");
    Ok(NeverRead { seconds, sent, kib })
}
