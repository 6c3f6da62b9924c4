//! A database that goes away while a brain serves.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use octollm::{
    prelude::*,
    sql::{SqlBus, SqlDatabase, SqlStore},
    task::TaskQuery,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{postgres, program::Runner, report::Report, system::System};
use crate::Result;

/// How long the database is away, and how long before and after that requests are made.
struct Size {
    away: Duration,
    around: Duration,
    /// The time limit of an operation of the database.
    operation: Duration,
}

const FULL: Size =
    Size { away: Duration::from_secs(30), around: Duration::from_secs(5), operation: Duration::from_secs(8) };
const SHORT: Size =
    Size { away: Duration::from_secs(5), around: Duration::from_secs(1), operation: Duration::from_secs(2) };

const LEASE: Duration = Duration::from_secs(3);
/// Between two requests of one kind.
const INTERVAL: Duration = Duration::from_millis(250);
/// Requests are answered within this, whatever the database does: a submission that was not stored in 10 s is looked for, for as long.
const LONGEST_ANSWER: Duration = Duration::from_secs(22);

pub(super) async fn storm(short: bool) -> Result<()> {
    let size = if short { SHORT } else { FULL };
    outage("stopped", &size).await?;
    outage("killed", &size).await
}

/// An answer: what was requested, when it began and ended, its status, and its body.
struct Answer {
    path: &'static str,
    began: Instant,
    ended: Instant,
    status: u16,
    body: String,
}

async fn outage(how: &str, size: &Size) -> Result<()> {
    let mut database = postgres()?;
    let url = database.server.database();
    let system = System::start(&url, None).await?;
    let brain = brain(&system, size).await?;
    let address = brain.1;

    let answers = Arc::new(Mutex::new(Vec::new()));
    let asking = tokio::spawn(ask(address, answers.clone(), size.around * 2 + size.away));
    sleep(size.around).await;
    let server = &mut database.server;
    if how == "stopped" {
        server.stop()
    } else {
        server.kill()
    }
    // Some of its processes may answer until the last one is gone.
    let away = Instant::now();
    sleep(size.away).await;
    let back = Instant::now();
    if how == "stopped" {
        server.resume()
    } else {
        server.restart()
    }
    asking.await?;
    system.finished().await?;
    brain.0.close().await;

    let answers = std::mem::take(&mut *answers.lock().unwrap_or_else(PoisonError::into_inner));
    let (line, problems) = judge(&answers, away, back, &system);
    let mut report = Report::of(&system, &[]).await?;
    report.problems.extend(problems);
    println!("storm outage={how} seconds={} {line} {report}", size.away.as_secs());
    report.verdict()
}

/// Starts a brain in this process, and its server.
async fn brain(system: &System, size: &Size) -> Result<(Brain, SocketAddr)> {
    let database = SqlDatabase::builder(&system.url).operation_time(size.operation).open().await?;
    let store = SqlStore::builder().open(&database).await?;
    let arms = system.arms.iter().fold(Arms::builder(), |arms, (name, url)| {
        arms.endpoint(name.trim_start_matches("OCTOLLM_ARM_").to_lowercase(), url)
    });
    let builder = Brain::builder().arm(Runner).arms(arms.build()?).bus(SqlBus::open(&database).await?);
    let brain = builder.store(store).lease(LEASE).build()?;
    let checked = brain.clone();
    let is_there = move || {
        let brain = checked.clone();
        async move { brain.list(TaskQuery::default().limit(1), &Context::detached()).await.is_ok() }
    };
    let server = Server::new("brain").orchestrator(brain.clone()).check("store", is_there);
    let server = server.bind("127.0.0.1:0").await?;
    let address = server.local_addr();
    tokio::spawn(server.run());
    Ok((brain, address))
}

/// Submits tasks, and asks for the list of them and whether the server is ready, at an even rate.
async fn ask(address: SocketAddr, answers: Arc<Mutex<Vec<Answer>>>, time: Duration) {
    let (begun, mut asking) = (Instant::now(), JoinSet::new());
    while begun.elapsed() < time {
        for path in ["POST /tasks", "GET /tasks", "GET /ready", "GET /health"] {
            let answers = answers.clone();
            asking.spawn(async move {
                let began = Instant::now();
                let answer = timeout(LONGEST_ANSWER * 2, request(address, path)).await;
                let (status, body) = answer.ok().and_then(std::io::Result::ok).unwrap_or_default();
                let answer = Answer { path, began, ended: Instant::now(), status, body };
                answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
            });
        }
        sleep(INTERVAL).await;
    }
    while asking.join_next().await.is_some() {}
}

/// Makes a request, and returns the status and the body of the answer.
async fn request(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let body =
        if path.starts_with("POST") { r#"{"contract":"storm.program","input":{"steps":30}}"# } else { "" };
    let mut stream = TcpStream::connect(address).await?;
    let head = format!(
        "{path} HTTP/1.1\r\nhost: storm\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    Ok((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}

/// The figures of the answers, and what must not be.
fn judge(answers: &[Answer], away: Instant, back: Instant, system: &System) -> (String, Vec<String>) {
    let (mut problems, mut refused, mut slowest) = (Vec::new(), 0, Duration::ZERO);
    for answer in answers {
        let Answer { path, began, ended, status, .. } = answer;
        let expected = if *path == "POST /tasks" { 202 } else { 200 };
        let is_within = *began > away && *ended < back;
        let (is_served, needs_store) = (*status == expected, *path != "GET /health");
        slowest = slowest.max(*ended - *began);
        refused += usize::from(*status == 503);
        if !is_served && *status != 503 || is_within && needs_store && is_served {
            let at = began.saturating_duration_since(away).as_secs_f64();
            problems
                .push(format!("{path}, {at:.1} s after the begin of the outage: {status}: {}", answer.body));
        }
        if !needs_store && !is_served {
            problems.push(format!("{path}: {status}"));
        }
    }
    if slowest > LONGEST_ANSWER {
        problems.push(format!("an answer took {slowest:?}"));
    }
    let accepted = answers.iter().filter(|answer| answer.status == 202);
    let mut stored = system.accepted.lock().unwrap_or_else(PoisonError::into_inner);
    for answer in accepted.clone() {
        let task: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
        stored.insert(task["task_id"].as_str().unwrap_or_default().to_owned());
    }
    let again = accepted.clone().filter(|answer| answer.began > back).map(|answer| answer.ended).min();
    let again = again.map(|again| (again - back).as_secs_f64());
    if again.is_none() {
        problems.push("no task was accepted after the outage".into());
    }
    let line = format!(
        "accepted={} refused_503={refused} slowest_answer_s={:.1} accepted_again_after_s={:.2}",
        accepted.count(),
        slowest.as_secs_f64(),
        again.unwrap_or_default()
    );
    (line, problems)
}
