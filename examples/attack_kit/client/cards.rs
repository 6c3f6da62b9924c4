//! Cards that lie about what an arm is and where it is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use octollm::error::ErrorKind;
use serde_json::{Value, json};

use super::{
    liar::{Liar, answer, honest, request},
    made, within,
};
use crate::{
    frame::{Arena, Attack, Broken, Outcome, counted, ensure},
    lines::find,
};

pub(super) fn attacks() -> Vec<Attack> {
    vec![
        Attack::new("client", "cards-that-lead-elsewhere", |arena| Box::pin(elsewhere(arena))),
        Attack::new("client", "cards-without-measure", |arena| Box::pin(without_measure(arena)))
            .memory(160, 96),
        Attack::new("client", "cards-that-are-none", |arena| Box::pin(no_cards(arena))),
    ]
}

fn contract(path: &str) -> Value {
    json!({
        "name": "attack.check", "version": 1, "path": path, "scope": "attack:check", "idempotent": false,
        "timeout_ms": 20_000, "fingerprint": "", "input_schema": {}, "output_schema": {},
    })
}

fn card(contracts: Vec<Value>, endpoint: &str) -> Value {
    json!({ "arm_id": "liar", "name": "Liar", "version": "1", "endpoint": endpoint, "contracts": contracts })
}

/// A server that shows this card, and answers calls to any path. Returns it with the number of its calls.
async fn shows(bytes: Vec<u8>) -> Result<(Liar, Arc<AtomicUsize>), Broken> {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let bytes = Arc::new(bytes);
    let liar = Liar::start(move |mut line, _| {
        let (bytes, counted) = (bytes.clone(), counted.clone());
        async move {
            loop {
                while find(line.bytes(), b"\r\n").is_none() {
                    ensure!(line.more().await? > 0, "the client has left");
                }
                let is_card = line.bytes().starts_with(b"GET /capabilities ");
                request(&mut line).await?;
                if is_card {
                    line.send(&*bytes).await?;
                } else {
                    counted.fetch_add(1, Ordering::Relaxed);
                    line.send(honest()).await?;
                }
            }
        }
    })
    .await?;
    Ok((liar, calls))
}

fn shown(card: &Value) -> Vec<u8> {
    answer(200, "content-type: application/json\r\n", &card.to_string())
}

/// Endpoints and paths that name another server: nothing ever goes there.
async fn elsewhere(arena: &Arena) -> Outcome {
    let other = Liar::start(|mut line, _| async move {
        request(&mut line).await?;
        Ok(line.send(honest()).await?)
    })
    .await?;
    let at = other.address;
    let paths = [
        "/check".to_owned(),
        format!("http://{at}/check"),
        format!("//{at}/check"),
        format!("@{at}/check"),
        format!("/@{at}/check"),
        format!(":{}/check", at.port()),
        format!("/\\{at}/check"),
        format!("/check HTTP/1.1\r\nhost: {at}\r\n\r\n"),
        "/../../admin".to_owned(),
        "/%2e%2e/admin".to_owned(),
        "/check?admin=1".to_owned(),
        "/check#x".to_owned(),
        String::new(),
        "*".to_owned(),
        format!("/{}", "a".repeat(100_000)),
    ];
    let mut words = Vec::new();
    for path in &paths {
        let (liar, _) = shows(shown(&card(vec![contract(path)], &other.url))).await?;
        let ended = made(arena, "card", &liar.url, "a").await?;
        words.push(ended.kind.map_or("answered".to_owned(), |kind| kind.to_string()));
    }
    let redirect = answer(307, &format!("location: {}/capabilities\r\n", other.url), "");
    let (liar, _) = shows(redirect).await?;
    made(arena, "card", &liar.url, "a").await?.check(
        &[
            ErrorKind::Unreachable,
            ErrorKind::BadResponse,
            ErrorKind::ContractNotOffered,
            ErrorKind::UpstreamFailed,
        ],
        false,
    )?;
    ensure!(other.accepted() == 0, "{} connections to the server elsewhere", other.accepted());
    Ok(format!("{} cards and a redirect, nothing sent elsewhere: {}", paths.len(), counted(words)))
}

/// Cards of megabytes, in names, contracts and small values.
async fn without_measure(arena: &Arena) -> Outcome {
    let name = "x".repeat(1 << 20);
    let many: Vec<_> = (0..20_000)
        .map(|n| json!({ "name": format!("attack.n{n}"), "version": 1, "path": format!("/n{n}") }))
        .collect();
    let mut named = card(vec![contract("/check")], "");
    (named["name"], named["description"]) = (name.clone().into(), name.clone().into());
    let mut schema = contract("/check");
    let values = format!("[{}0]", "{\"k\":0},".repeat(arena.pick(100_000, 900_000)));
    schema["input_schema"] = json!({ "x": "SCHEMA" });
    let schema = card(vec![schema], "").to_string().replace("\"SCHEMA\"", &values);
    let cards = [
        ("a long name", shown(&named)),
        ("a long id", shown(&json!({ "arm_id": name, "contracts": [contract("/check")] }))),
        (
            "a long contract",
            shown(&card(vec![json!({ "name": name, "version": 1, "path": "/x" }), contract("/check")], "")),
        ),
        ("20 000 contracts", shown(&card([many, vec![contract("/check")]].concat(), ""))),
        ("a schema of small values", answer(200, "content-type: application/json\r\n", &schema)),
        ("beyond the limit", answer(200, "content-type: application/json\r\n", &"[".repeat((8 << 20) + 1))),
        ("deep", answer(200, "content-type: application/json\r\n", &"{\"a\":".repeat(100_000))),
    ];
    let mut words = Vec::new();
    for (what, bytes) in cards {
        let (liar, calls) = shows(bytes).await?;
        let ended = made(arena, "card", &liar.url, "a").await?;
        let called = calls.load(Ordering::Relaxed);
        ensure!(ended.words.len() < 8192, "{what}: an error of {} bytes", ended.words.len());
        ensure!(ended.kind.is_none() == (called == 1), "{what}: {ended:?}, {called} calls");
        ensure!(ended.kind.is_none() || !ended.executed, "{what}: {ended:?}");
        words.push(ended.kind.map_or("answered".to_owned(), |kind| kind.to_string()));
    }
    Ok(format!("cards of megabytes: {}", counted(words)))
}

/// What is shown in place of a card: the call fails before anything was sent.
async fn no_cards(arena: &Arena) -> Outcome {
    let json = |text: &str| answer(200, "content-type: application/json\r\n", text);
    let cards = [
        json("null"),
        json("[]"),
        json("{}"),
        json("{\"arm_id\":1}"),
        json("{\"arm_id\":\"liar\",\"contracts\":{}}"),
        json("{\"arm_id\":\"liar\",\"contracts\":[null]}"),
        json(
            "{\"arm_id\":\"liar\",\"contracts\":[{\"name\":\"attack.check\",\"version\":-1,\"path\":\"/check\"}]}",
        ),
        json(
            "{\"arm_id\":\"liar\",\"contracts\":[{\"name\":\"attack.check\",\"version\":1e300,\"path\":\"/check\"}]}",
        ),
        json(
            "{\"arm_id\":\"liar\",\"contracts\":[{\"name\":\"../check\",\"version\":1,\"path\":\"/check\"}]}",
        ),
        answer(200, "content-type: text/html\r\n", "<html>"),
        answer(204, "", ""),
        answer(401, "", ""),
        answer(404, "", ""),
        answer(500, "", ""),
        answer(503, "retry-after: 1e300\r\n", ""),
        b"SSH-2.0\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_vec(),
    ];
    let (count, mut kinds) = (cards.len(), Vec::new());
    for bytes in cards {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (liar, calls) = shows(bytes).await?;
        let ended = within(arena, "card", &liar.url, Duration::from_secs(8), "a").await?;
        let kind = ended.kind.ok_or_else(|| format!("answered after {text}"))?;
        ensure!(!ended.executed, "{text}: {ended:?}");
        ensure!(calls.load(Ordering::Relaxed) == 0, "called after {text}");
        kinds.push(kind);
    }
    Ok(format!("{count} answers that are no cards, nothing called: {}", counted(kinds)))
}
