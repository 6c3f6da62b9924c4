//! Attacks against a server.

mod connections;
mod http2_floods;
mod http2_state;
mod input;
mod load;
mod slow;
mod smuggling;

use tokio::task::JoinSet;

use crate::{
    frame::{Arena, Attack, Broken},
    lines::{Answer, Line},
    target::Seen,
};

pub(crate) fn attacks() -> Vec<Attack> {
    let groups = [
        smuggling::attacks(),
        input::attacks(),
        slow::attacks(),
        connections::attacks(),
        load::attacks(),
        http2_floods::attacks(),
        http2_state::attacks(),
    ];
    groups.concat()
}

/// The head of a `POST /echo` of JSON, without its framing.
const HEAD: &str = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";

/// A whole request.
fn post(path: &str, fields: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n");
    let head = format!("{head}{fields}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn echo(text: &str) -> Vec<u8> {
    post("/echo", "", format!("{{\"text\":\"{text}\"}}"))
}

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";

/// The answer to one request over a connection of its own.
async fn asked(arena: &Arena, bytes: impl AsRef<[u8]>) -> Result<Answer, Broken> {
    let mut line = Line::connect(arena.address()).await?;
    // A server that has refused it may read no more of it.
    let _ = line.send(bytes).await;
    line.answer().await
}

/// What the arms have done so far.
async fn seen(arena: &Arena) -> Result<Seen, Broken> {
    Ok(serde_json::from_value(asked(arena, post("/look", "", "{}")).await?.json()?)?)
}

/// Runs so many at once, and returns what they return; the first that fails ends all.
async fn at_once<T: Send + 'static, F>(count: usize, each: impl Fn(usize) -> F) -> Result<Vec<T>, Broken>
where
    F: Future<Output = Result<T, Broken>> + Send + 'static,
{
    let mut running: JoinSet<_> = (0..count).map(&each).collect();
    let mut done = Vec::with_capacity(count);
    while let Some(one) = running.join_next().await {
        done.push(one??);
    }
    Ok(done)
}
