//! Connections in numbers: bursts, storms, and descriptors that are used up.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{HEALTH, asked, at_once, echo, post, seen};
use crate::{
    frame::{Arena, Attack, Broken, Outcome, counted, ensure},
    lines::Line,
};

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack::new("server", "connect-burst", |arena| Box::pin(burst(arena))).memory(160, 64),
        Attack::new("server", "descriptors-used-up", |arena| Box::pin(descriptors(arena))).descriptors(64),
        Attack::new("server", "connection-limit", |arena| Box::pin(limit(arena)))
            .settings(&[("max_connections", 50)]),
        Attack::new("server", "half-closed", |arena| Box::pin(half_closed(arena))),
        Attack::new("server", "disconnect-storm", |arena| Box::pin(disconnects(arena)))
            .settings(&[("max_in_flight", 64)]),
        Attack::new("server", "places-used-up", |arena| Box::pin(places(arena))),
        Attack::new("server", "upgrades", |arena| Box::pin(upgrades(arena))),
    ]
}

/// Many connects in one instant, each with a request.
async fn burst(arena: &Arena) -> Outcome {
    let (address, count) = (arena.address(), arena.pick(1000, 5000));
    let begun = Instant::now();
    let times = at_once(count, |_| async move {
        let mut line = Line::connect(address).await?;
        line.send(HEALTH).await?;
        ensure!(line.answer().await?.status == 200, "not answered");
        Ok(begun.elapsed())
    })
    .await?;
    let most = times.iter().max().copied().unwrap_or_default();
    ensure!(most < Duration::from_secs(30), "the last was answered after {most:?}");
    Ok(format!("{count} connects at once, the last answered after {:.2} s", most.as_secs_f64()))
}

/// More connections than the process has descriptors for: it serves on, and takes the rest when there are some again.
async fn descriptors(arena: &Arena) -> Outcome {
    let (address, rounds) = (arena.address(), arena.pick(2, 10));
    for round in 0..rounds {
        let mut held = at_once(200, |_| async move { Line::connect(address).await }).await?;
        let mut waiting = Line::connect(address).await?;
        waiting.send(echo("waiting")).await?;
        // While they are held, the healthy caller is answered over its connection.
        sleep(Duration::from_millis(300)).await;
        for line in held.drain(..) {
            line.reset()?;
        }
        let answer = waiting.answer().await.map_err(|error| format!("round {round}: {error}"))?;
        ensure!(answer.status == 200, "round {round}: answered {}", answer.status);
    }
    Ok(format!("{rounds} x 200 connections to a process with 64 descriptors, the one after them answered"))
}

/// More connections than the server's limit: those beyond wait, and are served when others have ended.
async fn limit(arena: &Arena) -> Outcome {
    let (address, count) = (arena.address(), arena.pick(200, 500));
    let answers = at_once(count, |_| async move {
        let mut line = Line::connect(address).await?;
        line.send(echo("a").repeat(2)).await?;
        let first = line.answer().await?.status;
        Ok((first, line.answer().await?.status))
    })
    .await?;
    ensure!(answers.iter().all(|both| *both == (200, 200)), "answered {answers:?}");
    Ok(format!("{count} connections where 50 may be open, all answered"))
}

/// Callers that send no more, before and after their request is whole. That is how a caller leaves, so that the server may
/// end the call; no connection waits.
async fn half_closed(arena: &Arena) -> Outcome {
    let (address, count) = (arena.address(), arena.pick(100, 1000));
    let answers = at_once(count, |number| async move {
        let mut line = Line::connect(address).await?;
        let request = post("/wait", "", "{\"ms\":20}");
        let length = if number % 2 == 0 { request.len() } else { request.len() - 1 };
        line.send(&request[..length]).await?;
        line.half_close().await?;
        let answers = line.answers().await?;
        Ok((number % 2, answers.first().map_or(0, |answer| answer.status)))
    })
    .await?;
    let fits = answers.iter().all(|answer| matches!(answer, (0, 0 | 200) | (1, 0 | 400)));
    let statuses = counted(answers.iter().map(|(_, status)| *status));
    ensure!(fits, "answered {statuses}");
    ensure!(seen(arena).await?.waiting == 0, "calls run on without their callers");
    Ok(format!("{count} half-closed connections, every second in the middle of a request: {statuses}"))
}

/// Callers that leave in the middle of a call: what it runs ends, and its place comes back.
async fn disconnects(arena: &Arena) -> Outcome {
    let (address, rounds, most) = (arena.address(), arena.pick(20, 400), arena.config.max_in_flight);
    // The healthy caller needs a place.
    let calls = most / 2;
    for round in 0..rounds {
        at_once(calls, |number| async move {
            let mut line = Line::connect(address).await?;
            line.send(post("/wait", "", "{}")).await?;
            sleep(Duration::from_millis(((number * 7 + round) % 20) as u64)).await;
            if number % 2 == 0 { Ok(line.reset()?) } else { Ok(()) }
        })
        .await?;
    }
    let begun = Instant::now();
    while seen(arena).await?.waiting > 0 {
        ensure!(begun.elapsed() < Duration::from_secs(10), "calls run on without their callers");
        sleep(Duration::from_millis(10)).await;
    }
    // As many as there are places beside that of the healthy caller.
    let answers = at_once(most - 2, |_| async move {
        let mut line = Line::connect(address).await?;
        line.send(post("/wait", "", "{\"ms\":100}")).await?;
        Ok(line.answer().await?.status)
    })
    .await?;
    ensure!(answers.iter().all(|status| *status == 200), "places are lost: {}", counted(answers));
    Ok(format!("{rounds} x {calls} calls left by their callers, all {most} places are back"))
}

/// More calls than there are places: those beyond are refused at once, and probes are answered. The healthy caller comes in
/// first, and so does each of its calls when the others have ended.
async fn places(arena: &Arena) -> Outcome {
    let (address, most) = (arena.address(), arena.config.max_in_flight);
    let held = most - 8;
    let waiting = at_once(held, |_| async move {
        let mut line = Line::connect(address).await?;
        line.send(post("/wait", "", "{}")).await?;
        Ok(line)
    })
    .await?;
    let begun = Instant::now();
    while seen(arena).await?.waiting < held as u64 {
        ensure!(begun.elapsed() < Duration::from_secs(30), "the calls do not begin");
        sleep(Duration::from_millis(10)).await;
    }
    let beyond = at_once(arena.pick(100, 1000), |_| async move {
        let mut line = Line::connect(address).await?;
        line.send(HEALTH.to_vec()).await?;
        let probe = line.answer().await?.status;
        ensure!(probe == 200, "a probe is answered {probe}");
        Ok(probe)
    })
    .await?;
    drop(waiting);
    ensure!(asked(arena, echo("a")).await?.status == 200, "not answered afterwards");
    Ok(format!("{held} of {most} places held, {} probes and all healthy calls answered", beyond.len()))
}

/// Upgrades that no route offers: answered as requests, and never by 101.
async fn upgrades(arena: &Arena) -> Outcome {
    let fields = [
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
        "Connection: keep-alive, Upgrade\r\nUpgrade: x\r\n",
        "Upgrade: websocket\r\n",
    ];
    let (address, rounds) = (arena.address(), arena.pick(10, 200));
    let count = fields.len() * rounds;
    at_once(count, |number| async move {
        let mut line = Line::connect(address).await?;
        line.send(post("/echo", fields[number % fields.len()], "{\"text\":\"a\"}")).await?;
        // Bytes of the other protocol: a frame of WebSocket, and the preface of HTTP/2.
        let _ = line.send(b"\x81\x85\x01\x02\x03\x04hello").await;
        let answer = line.answer().await?;
        ensure!([200, 400, 426].contains(&answer.status), "answered {}", answer.status);
        let rest = line.rest().await?;
        ensure!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 4"), "then {}", crate::lines::shown(&rest));
        Ok::<_, Broken>(())
    })
    .await?;
    Ok(format!("{count} upgrades, none answered by 101"))
}
