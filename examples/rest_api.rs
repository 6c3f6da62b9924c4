//! Calls services that are no arms: a memory that loses an answer, and a model that has a rate limit, streams, and breaks off. Both are in
//! this program.
//!
//! ```text
//! cargo run --example rest_api
//! ```

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response, Sse, sse},
    routing,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use octollm::{
    RestClient,
    http::client::{RestRequest, SecretString},
    prelude::*,
};
use serde_json::json;
use tokio::{net::TcpListener, time::sleep};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Note {
    text: String,
}

/// A request of the API for chats that many models have.
#[derive(Debug, Serialize)]
struct Chat<'a> {
    model: &'a str,
    messages: Vec<Message>,
    stream: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Message {
    role: String,
    content: String,
}

#[derive(Debug, Deserialize)]
struct Completion {
    choices: Vec<Choice<Message>>,
}

/// A piece of an answer that streams.
#[derive(Debug, Deserialize)]
struct Chunk {
    choices: Vec<Choice<Delta>>,
}

#[derive(Debug, Deserialize)]
struct Choice<T> {
    #[serde(alias = "delta")]
    message: T,
}

#[derive(Debug, Deserialize)]
struct Delta {
    content: Option<String>,
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let service = Service::default();
    let url = service.start().await?;
    let key = SecretString::from("secret-key");
    remember(&service, &RestClient::builder(&url).name("memory").bearer(key.clone()).build()?).await?;
    ask(&RestClient::builder(&url).name("model").bearer(key).build()?).await
}

async fn remember(service: &Service, memory: &RestClient) -> Result<(), octollm::Error> {
    // The first answer is 503. The key makes it safe to send the request again.
    let note = Note { text: "octopuses have three hearts".into() };
    let made: Note = memory.post("notes").json(&note).key("note-1").send().await?;
    let (notes, requests) = (service.notes().len(), service.notes_made.load(Ordering::SeqCst));
    assert_eq!((made.text, notes), (note.text, 1));
    println!("the note was made once, with {requests} requests");
    let notes: Vec<Note> = memory.get("notes").query(&[("q", "hearts")]).send().await?;
    println!("{} note is found", notes.len());
    Ok(())
}

async fn ask(model: &RestClient) -> Result<(), octollm::Error> {
    let chat = |stream| Chat {
        model: "cephalopod-1",
        messages: vec![Message { role: "user".into(), content: "How many brains has an octopus?".into() }],
        stream,
    };
    let completions = || model.post("chat/completions");

    // 429, with the time of the reset: the client waits for it, and sends the request again.
    let begun = Instant::now();
    let answer: Completion = completions().json(&chat(false)).send().await?;
    assert!(begun.elapsed() >= Duration::from_secs(1));
    println!("the model, after the wait that it has asked for: {}", answer.choices[0].message.content);

    // That answer has used up what is left of the limit.
    let hasty =
        completions().json(&chat(false)).within(Duration::from_millis(100)).send::<Completion>().await;
    if let Err(error) = hasty {
        println!("not sent: {error}");
    }

    // The first stream breaks off. Only the program knows what it has used of it, and here it begins again.
    let mut text = stream(completions().json(&chat(true))).await;
    if let Err(error) = &text {
        println!(" … {error}");
        text = stream(completions().json(&chat(true))).await;
    }
    println!();
    assert_eq!(text?, "Octopuses have nine brains.");
    Ok(())
}

/// Prints the words of an answer as they arrive.
async fn stream(request: RestRequest) -> Result<String, octollm::Error> {
    let mut events = request.events().await?;
    let mut text = String::new();
    print!("the model streams: ");
    while let Some(event) = events.try_next().await? {
        if event.data == "[DONE]" {
            break;
        }
        let chunk: Chunk = event.json()?;
        let words = chunk.choices[0].message.content.as_deref().unwrap_or_default();
        print!("{words}");
        text += words;
    }
    Ok(text)
}

/// A memory of notes, and a model.
#[derive(Clone, Default)]
struct Service {
    notes: Arc<Mutex<Vec<(String, Note)>>>,
    notes_made: Arc<AtomicUsize>,
    chats: Arc<AtomicUsize>,
}

impl Service {
    async fn start(&self) -> std::io::Result<String> {
        let notes = routing::post(make).get(list);
        let app = Router::new().route("/v1/notes", notes).route("/v1/chat/completions", routing::post(chat));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/v1", listener.local_addr()?);
        let app = app.with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(url)
    }

    fn notes(&self) -> Vec<(String, Note)> {
        self.notes.lock().expect("nothing panics with the notes").clone()
    }
}

/// Stores a note once for each key. The answer to the first request is lost on the way, after the note is stored.
async fn make(State(service): State<Service>, head: HeaderMap, body: String) -> Response {
    let key = head.get("idempotency-key").and_then(|key| key.to_str().ok()).unwrap_or_default().to_owned();
    let Ok(note) = serde_json::from_str::<Note>(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    {
        let mut notes = service.notes.lock().expect("nothing panics with the notes");
        if !notes.iter().any(|(known, _)| *known == key) {
            notes.push((key, note));
        }
    }
    if service.notes_made.fetch_add(1, Ordering::SeqCst) == 0 {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    (StatusCode::CREATED, [("content-type", "application/json")], body).into_response()
}

async fn list(State(service): State<Service>) -> Response {
    let notes: Vec<Note> = service.notes().into_iter().map(|(_, note)| note).collect();
    match serde_json::to_string(&notes) {
        Ok(json) => ([("content-type", "application/json")], json).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The first answer is a refusal, and the first stream breaks off.
async fn chat(State(service): State<Service>) -> Response {
    let json = ("content-type", "application/json");
    let left = |left| ("x-ratelimit-remaining-requests", left);
    let reset = ("x-ratelimit-reset-requests", "1s");
    match service.chats.fetch_add(1, Ordering::SeqCst) {
        0 => {
            let problem =
                json!({ "error": { "message": "slow down", "type": "requests", "code": "rate_limited" } });
            (StatusCode::TOO_MANY_REQUESTS, [json, left("0"), reset], problem.to_string()).into_response()
        }
        1 => {
            let message = json!({ "role": "assistant", "content": "Nine." });
            let completion = json!({ "choices": [{ "message": message }] });
            ([json, left("0"), reset], completion.to_string()).into_response()
        }
        2 => {
            let begun = format!("data: {}\n\n", chunk("Octopuses "));
            let broken = stream::iter([Ok(begun), Err(std::io::Error::other("gone"))]);
            let broken = broken.then(|piece| async {
                sleep(Duration::from_millis(20)).await;
                piece
            });
            ([("content-type", "text/event-stream")], Body::from_stream(broken)).into_response()
        }
        _ => {
            let words = ["Octopuses ", "have ", "nine ", "brains."].map(chunk);
            let events =
                stream::iter(words.into_iter().chain(["[DONE]".to_owned()])).then(|data| async move {
                    sleep(Duration::from_millis(20)).await;
                    Ok::<_, Infallible>(sse::Event::default().data(data))
                });
            Sse::new(events).into_response()
        }
    }
}

fn chunk(words: &str) -> String {
    json!({ "choices": [{ "delta": { "content": words } }] }).to_string()
}
