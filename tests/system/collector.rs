//! A collector of traces: receives OTLP over HTTP, and reads its protobuf without the code that wrote it.

use std::{
    collections::BTreeMap,
    future::pending,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, http::StatusCode, routing::post};
use tokio::net::TcpListener;

/// One span, as it was received.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exported {
    pub(crate) service: String,
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    pub(crate) state: String,
    pub(crate) name: String,
    pub(crate) kind: u64,
    pub(crate) attributes: BTreeMap<String, String>,
    /// Names of its events.
    pub(crate) events: Vec<String>,
    pub(crate) is_error: bool,
}

pub(crate) const INTERNAL: u64 = 1;
pub(crate) const SERVER: u64 = 2;
pub(crate) const CLIENT: u64 = 3;
pub(crate) const CONSUMER: u64 = 5;

/// A collector with a thread of its own, on a free port.
pub(crate) struct Collector {
    pub(crate) url: String,
    spans: Arc<Mutex<Vec<Exported>>>,
}

impl Collector {
    pub(crate) fn start() -> Self {
        let spans = Arc::<Mutex<Vec<Exported>>>::default();
        let received = spans.clone();
        let answer = move |body: Bytes| {
            received.lock().unwrap().extend(read(&body));
            async { StatusCode::OK }
        };
        Self { url: serve(post(answer)), spans }
    }

    /// One that accepts every request and never answers.
    pub(crate) fn hanging() -> Self {
        Self { url: serve(post(|| async { pending::<StatusCode>().await })), spans: Arc::default() }
    }

    pub(crate) fn spans(&self) -> Vec<Exported> {
        self.spans.lock().unwrap().clone()
    }
}

fn serve(route: axum::routing::MethodRouter) -> String {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            axum::serve(listener, Router::new().route("/v1/traces", route)).await.unwrap();
        });
    });
    format!("http://{}", receiver.recv().unwrap())
}

/// A field of a message: its number, and its value as a number or as bytes.
struct Field<'a>(u64, u64, &'a [u8]);

/// The fields of a protobuf message.
fn fields(mut message: &[u8]) -> Vec<Field<'_>> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let fixed = |message: &mut &[u8], bytes: usize| {
            let (value, rest) = message.split_at(bytes);
            *message = rest;
            value.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        let field = match key & 7 {
            0 => Field(key >> 3, varint(&mut message), &[]),
            1 => Field(key >> 3, fixed(&mut message, 8), &[]),
            2 => {
                let length = usize::try_from(varint(&mut message)).unwrap();
                let (value, rest) = message.split_at(length);
                message = rest;
                Field(key >> 3, 0, value)
            }
            5 => Field(key >> 3, fixed(&mut message, 4), &[]),
            other => panic!("wire type {other}"),
        };
        fields.push(field);
    }
    fields
}

fn varint(message: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first().unwrap();
        *message = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

/// The spans of an `ExportTraceServiceRequest`.
fn read(request: &[u8]) -> Vec<Exported> {
    let mut spans = Vec::new();
    for Field(_, _, of_resource) in fields(request) {
        let mut service = String::new();
        for Field(number, _, part) in fields(of_resource) {
            for Field(inner, _, value) in fields(part) {
                match (number, inner) {
                    (1, 1) => {
                        let (key, value) = attribute(value);
                        if key == "service.name" {
                            service = value;
                        }
                    }
                    (2, 2) => spans.push(Exported { service: service.clone(), ..span(value) }),
                    _ => {}
                }
            }
        }
    }
    spans
}

fn span(message: &[u8]) -> Exported {
    let mut span = Exported::default();
    for Field(field, number, value) in fields(message) {
        match field {
            1 => span.trace = hex(value),
            2 => span.id = hex(value),
            3 => span.state = text(value),
            4 => span.parent = hex(value),
            5 => span.name = text(value),
            6 => span.kind = number,
            9 => span.attributes.extend([attribute(value)]),
            11 => span
                .events
                .extend(fields(value).into_iter().filter(|f| f.0 == 2).map(|Field(.., name)| text(name))),
            15 => span.is_error = fields(value).iter().any(|Field(field, code, _)| (*field, *code) == (3, 2)),
            _ => {}
        }
    }
    span
}

fn attribute(pair: &[u8]) -> (String, String) {
    let (mut key, mut value) = Default::default();
    for Field(field, _, part) in fields(pair) {
        match field {
            1 => key = text(part),
            _ => {
                value = match fields(part).first() {
                    Some(Field(1, _, part)) => text(part),
                    Some(Field(4, bits, _)) => f64::from_bits(*bits).to_string(),
                    Some(Field(_, number, _)) => number.to_string(),
                    None => String::new(),
                }
            }
        }
    }
    (key, value)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
