//! The client of other services against services that fail, limit, redirect and stream.

mod redirects;
mod requests;
mod streams;

use std::{future::ready, time::Duration};

use octollm_http::{RestClient, client::RestClientBuilder};
use serde_json::{Value, json};

use crate::peer::{Answer, Peer, Received, network};

/// A secret that must appear nowhere.
const SECRET: &str = "sk-0123456789-abc";

/// A client of a peer, in memory.
fn client(peer: &Peer) -> RestClientBuilder {
    RestClient::builder(format!("{}/v1", peer.url))
        .name("memory")
        .connector(network())
        .bearer(SECRET)
        .read_idle(Duration::from_secs(5))
}

/// A peer that answers each request with the next of these, and the last of them for ever.
async fn answers(answers: Vec<Answer>) -> Peer {
    let count = std::sync::atomic::AtomicUsize::new(0);
    Peer::start(move |_: Received| {
        let at = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        ready(answers[at.min(answers.len() - 1)].clone())
    })
    .await
}

fn ok() -> Answer {
    Answer::Json(200, json!({ "is": "ok" }))
}

/// An answer with these header fields.
fn with(status: u16, fields: &[(&str, &str)], body: &Value) -> Answer {
    let body = body.to_string();
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    Answer::Raw(
        format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{fields}content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes(),
    )
}

/// The connection is closed before an answer.
fn lost() -> Answer {
    Answer::Last(Vec::new())
}
