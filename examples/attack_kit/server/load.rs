//! Work and memory: inputs that grow in memory, and more tasks than may wait.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{asked, at_once, post, seen};
use crate::{
    frame::{Arena, Attack, Broken, Outcome, counted, ensure},
    lines::Line,
    target::{MAX_QUEUED, MAX_RUNNING},
};

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack::new("server", "many-small-values", |arena| Box::pin(small_values(arena))).memory(256, 160),
        Attack::new("server", "large-tasks", |arena| Box::pin(large_tasks(arena)))
            .settings(&[("max_queued_bytes", LARGE)])
            .memory(128, 96),
        Attack::new("server", "finished-tasks", |arena| Box::pin(finished_tasks(arena)))
            .settings(&[("finished_bytes", LARGE)])
            .memory(128, 96),
        Attack::new("server", "task-flood", |arena| Box::pin(task_flood(arena))).memory(128, 96),
        Attack::new("server", "cancel-flood", |arena| Box::pin(cancel_flood(arena))).memory(128, 96),
        Attack::new("server", "odd-limits", |arena| Box::pin(odd_limits(arena))),
    ]
}

/// Bytes of all tasks that may wait, and of those that are finished.
const LARGE: usize = 2 << 20;

/// JSON of so many bytes that is nothing but small values.
fn small(bytes: usize) -> String {
    format!("[{}0]", "{\"k\":0},".repeat(bytes / 8))
}

/// Bodies of small values at once: what they hold stays near their size in bytes.
async fn small_values(arena: &Arena) -> Outcome {
    let (address, count, at_a_time) = (arena.address(), arena.pick(8, 200), 8);
    let body = format!("{{\"value\":{}}}", small(arena.pick(500_000, 2_000_000)));
    let request = post("/store", "", &body);
    for _ in 0..count / at_a_time {
        let statuses = at_once(at_a_time, |_| {
            let request = request.clone();
            async move {
                let mut line = Line::connect(address).await?;
                line.send(request).await?;
                Ok(line.answer().await?.status)
            }
        })
        .await?;
        ensure!(statuses.iter().all(|status| *status == 200), "answered {}", counted(statuses));
    }
    Ok(format!("{count} bodies of {} bytes in small values, {at_a_time} at a time", body.len()))
}

/// Tasks of small values that wait: they are stored as text, in bytes that are bounded, and listing copies none.
async fn large_tasks(arena: &Arena) -> Outcome {
    let count = arena.pick(20, 400);
    let body =
        format!("{{\"goal\":\"for ever\",\"context\":{{\"x\":{}}}}}", small(arena.pick(200_000, 2_000_000)));
    let request = post("/tasks", "", &body);
    let statuses = submitted(arena, request, count).await?;
    let refused = statuses.iter().filter(|status| **status == 503).count();
    ensure!(statuses.iter().all(|status| [202, 503].contains(status)), "answered {}", counted(statuses));
    let most = LARGE / body.len() + MAX_RUNNING;
    ensure!(refused > 0, "all {count} were accepted");
    ensure!(count - refused <= most, "{} were accepted, more than {most}", count - refused);
    for _ in 0..20 {
        let page = asked(arena, b"GET /tasks?limit=100 HTTP/1.1\r\nHost: x\r\n\r\n").await?;
        ensure!(page.body.len() < 1 << 20, "a page of tasks has {} bytes", page.body.len());
    }
    cancel(arena, &listed(arena).await?).await?;
    Ok(format!("{count} tasks of {} bytes: {}", body.len(), counted(statuses)))
}

/// The statuses of so many submissions, four at a time.
async fn submitted(arena: &Arena, request: Vec<u8>, count: usize) -> Result<Vec<u16>, Broken> {
    let (address, request) = (arena.address(), Arc::new(request));
    let statuses = at_once(4, |_| {
        let request = request.clone();
        async move {
            let (mut line, mut statuses) = (Line::connect(address).await?, Vec::new());
            for _ in 0..count / 4 {
                line.send(&*request).await?;
                statuses.push(line.answer().await?.status);
            }
            Ok(statuses)
        }
    });
    Ok(statuses.await?.concat())
}

/// Large tasks that end at once: what is stored of finished ones is bounded in bytes.
async fn finished_tasks(arena: &Arena) -> Outcome {
    let count = arena.pick(40, 2000);
    let body = format!(
        "{{\"goal\":\"0\",\"context\":{{\"x\":\"{}\"}}}}",
        "a".repeat(arena.pick(200_000, 2_000_000))
    );
    let statuses = submitted(arena, post("/tasks", "", &body), count).await?;
    ensure!(statuses.iter().all(|status| [202, 503].contains(status)), "answered {}", counted(statuses));
    until_none_runs(arena).await?;
    Ok(format!("{count} tasks of {} bytes that end at once: {}", body.len(), counted(statuses)))
}

/// The ids of all tasks that are not finished.
async fn listed(arena: &Arena) -> Result<Vec<String>, Broken> {
    let (mut ids, mut after) = (Vec::new(), String::new());
    loop {
        let request = format!("GET /tasks?limit=100{after} HTTP/1.1\r\nHost: x\r\n\r\n");
        let page = asked(arena, request).await?.json()?;
        let tasks = page["tasks"].as_array().cloned().unwrap_or_default();
        let open = tasks
            .iter()
            .filter(|task| ["queued", "processing"].contains(&task["status"].as_str().unwrap_or_default()));
        ids.extend(open.filter_map(|task| Some(task["task_id"].as_str()?.to_owned())));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return Ok(ids),
        }
    }
}

async fn cancel(arena: &Arena, ids: &[String]) -> Result<(), Broken> {
    for id in ids {
        let status = asked(arena, format!("DELETE /tasks/{id} HTTP/1.1\r\nHost: x\r\n\r\n")).await?.status;
        ensure!(status == 200, "cancelling is answered {status}");
    }
    until_none_runs(arena).await
}

async fn until_none_runs(arena: &Arena) -> Result<(), Broken> {
    let begun = Instant::now();
    while !listed(arena).await?.is_empty() {
        ensure!(begun.elapsed() < Duration::from_secs(10), "tasks do not end");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Many tasks at once: no more are accepted than may wait and run, and each of those ends.
async fn task_flood(arena: &Arena) -> Outcome {
    let (address, lines, each) = (arena.address(), 50, arena.pick(20, 200));
    let statuses = at_once(lines, |_| async move {
        let mut line = Line::connect(address).await?;
        let mut statuses = Vec::new();
        for _ in 0..each {
            line.send(post("/tasks", "", "{\"goal\":\"for ever\"}")).await?;
            let answer = line.answer().await?;
            let hint = answer.head.to_ascii_lowercase().contains("\r\nretry-after:");
            ensure!(answer.status != 503 || hint, "refused without Retry-After: {}", answer.head);
            statuses.push(answer.status);
        }
        Ok(statuses)
    })
    .await?
    .concat();
    ensure!(statuses.iter().all(|status| [202, 503].contains(status)), "answered {}", counted(statuses));
    let accepted = statuses.iter().filter(|status| **status == 202).count();
    let (least, most) = (MAX_QUEUED, MAX_QUEUED + MAX_RUNNING);
    ensure!((least..=most).contains(&accepted), "{accepted} accepted, not {least} to {most}");
    let open = listed(arena).await?;
    ensure!(open.len() == accepted, "{} are listed of {accepted}", open.len());
    cancel(arena, &open).await?;
    Ok(format!(
        "{} submissions: {}, at most {most} accepted, each cancelled to its end",
        lines * each,
        counted(statuses)
    ))
}

/// Tasks that are cancelled, read and run again by many callers at once.
async fn cancel_flood(arena: &Arena) -> Outcome {
    let (address, rounds) = (arena.address(), arena.pick(40, 600));
    let statuses = at_once(8, |_| async move {
        let mut statuses = Vec::new();
        let mut line = Line::connect(address).await?;
        for round in 0..rounds {
            let goal = if round % 2 == 0 { "for ever".to_owned() } else { (round % 5).to_string() };
            line.send(post("/tasks", "", format!("{{\"goal\":{goal:?}}}"))).await?;
            let answer = line.answer().await?;
            statuses.push(answer.status);
            let Some(id) = answer.json()?["task_id"].as_str().map(str::to_owned) else { continue };
            let delete = format!("DELETE /tasks/{id} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes();
            let get = format!("GET /tasks/{id} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes();
            let rerun = post(&format!("/tasks/{id}/rerun"), "", "{}");
            line.send([&delete[..], &rerun, &delete, &get].concat()).await?;
            for expected in [&[200][..], &[202, 409], &[200], &[200]] {
                let answer = line.answer().await?;
                ensure!(expected.contains(&answer.status), "{} in place of {expected:?}", answer.status);
            }
        }
        Ok(statuses)
    })
    .await?
    .concat();
    until_none_runs(arena).await?;
    Ok(format!(
        "{} tasks cancelled twice, read and run again, none left: {}",
        statuses.len(),
        counted(statuses)
    ))
}

/// Limits and ids in headers that are no limits and no ids: refused or replaced, and never taken for more.
async fn odd_limits(arena: &Arena) -> Outcome {
    let body = "{\"ms\":1}";
    let fields: [(&str, &[u16]); 16] = [
        ("Octollm-Timeout: -1", &[400]),
        ("Octollm-Timeout: 1e3", &[400]),
        ("Octollm-Timeout: 99999999999999999999999", &[400]),
        ("Octollm-Timeout: 0", &[504]),
        ("Octollm-Timeout: 18446744073709551615", &[200, 400]),
        ("Octollm-Budget: tokens=-1", &[400]),
        ("Octollm-Budget: cost_usd=NaN", &[400]),
        ("Octollm-Budget: cost_usd=1e300", &[200, 400]),
        ("Octollm-Budget: tokens=1;tokens=2", &[200, 400]),
        ("Idempotency-Key: \"unended", &[400]),
        ("Idempotency-Key: \"\"", &[400]),
        ("Authorization: Bearer a\r\nAuthorization: Bearer b", &[400]),
        ("X-Request-ID: ../../etc/passwd", &[200]),
        ("traceparent: 00-ffffffffffffffffffffffffffffffff-0000000000000000-ff", &[200]),
        ("Accept: text/html", &[406]),
        ("Expect: a miracle", &[417]),
    ];
    for (field, statuses) in fields {
        let answer = asked(arena, post("/wait", &format!("{field}\r\n"), body)).await?;
        ensure!(statuses.contains(&answer.status), "{field}: {} in place of {statuses:?}", answer.status);
    }
    ensure!(seen(arena).await?.waiting == 0, "something runs");
    Ok(format!("{} odd headers, each answered by the status for it", fields.len()))
}
