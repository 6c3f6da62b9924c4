//! Calls a service that is no arm: it loses an answer, has a rate limit, and streams like a model. The service is in this program.
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
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response, Sse, sse},
    routing,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use octollm::{RestClient, http::client::SecretString, prelude::*};
use tokio::{net::TcpListener, time::sleep};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Note {
    text: String,
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let service = Service::default();
    let url = service.start().await?;
    let key = SecretString::from("secret-key");
    let memory = RestClient::builder(url).name("memory").bearer(key).build()?;

    // The first answer is 503. The key makes it safe to send the request again.
    let note = Note { text: "octopuses have three hearts".into() };
    let made: Note = memory.post("notes").json(&note).key("note-1").send().await?;
    let (notes, requests) = (service.notes().len(), service.requests.load(Ordering::SeqCst));
    assert_eq!((made.text, notes), (note.text, 1));
    println!("the note was made once, with {requests} requests");

    // The answer says that no request is left for two seconds.
    memory.post("notes").json(&Note { text: "and blue blood".into() }).idempotent().send::<Note>().await?;
    let hasty = memory.get("notes").within(Duration::from_millis(100)).send::<Vec<Note>>().await;
    if let Err(error) = hasty {
        println!("not sent: {error}");
    }
    let notes: Vec<Note> = memory.get("notes").send().await?;
    println!("within its deadline it waits: {} notes", notes.len());

    print!("the model: ");
    let mut events = memory.post("chat").json("How many brains does an octopus have?").events().await?;
    while let Some(event) = events.try_next().await? {
        if event.data == "[DONE]" {
            break;
        }
        print!("{}", event.data);
    }
    println!();
    Ok(())
}

/// A service that keeps notes.
#[derive(Clone, Default)]
struct Service {
    notes: Arc<Mutex<Vec<(String, Note)>>>,
    requests: Arc<AtomicUsize>,
}

impl Service {
    async fn start(&self) -> std::io::Result<String> {
        let notes = routing::post(make).get(list);
        let app = Router::new().route("/v1/notes", notes).route("/v1/chat", routing::post(chat));
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
    if service.requests.fetch_add(1, Ordering::SeqCst) == 0 {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let left = if service.notes().len() < 2 { "1" } else { "0" };
    let fields =
        [("content-type", "application/json"), ("ratelimit-remaining", left), ("ratelimit-reset", "2")];
    (StatusCode::CREATED, fields, body).into_response()
}

async fn list(State(service): State<Service>) -> Response {
    let notes: Vec<Note> = service.notes().into_iter().map(|(_, note)| note).collect();
    match serde_json::to_string(&notes) {
        Ok(json) => ([("content-type", "application/json")], json).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn chat() -> Response {
    let words = ["Octopuses ", "have ", "nine ", "brains.", "[DONE]"];
    let events = stream::iter(words).then(|word| async move {
        sleep(Duration::from_millis(50)).await;
        Ok::<_, Infallible>(sse::Event::default().data(word))
    });
    Sse::new(events).into_response()
}
