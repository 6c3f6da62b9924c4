//! The answer to a call as server-sent events: its progress and its chunks, and last its output or its problem.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use octollm_core::{
    error::ErrorKind,
    json::read_output,
    transport::Call,
    update::{Phase, Update},
};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use tokio::time::timeout;

use crate::{
    client::{
        exchange::{CODED, Exchanger, Received, Target, is_coded, whole},
        pool::{ExchangeError, ExchangeLimits},
        sse::{EventReader, ServerEvent, is_events},
    },
    wire::names,
};

/// The time to wait for the end of an answer that is complete.
const END: Duration = Duration::from_millis(100);

/// Sends a call that accepts events, and passes its updates on as they arrive. Returns the answer as it would be without them.
///
/// The next event is read when the last one was received.
pub(super) async fn send(
    exchanger: &Exchanger,
    request: Request<Bytes>,
    (call, arm): (&Call, &Arc<str>),
    limits: ExchangeLimits,
    target: impl FnOnce() -> Target,
) -> Result<Response<Bytes>, ExchangeError> {
    let answer = exchanger.send_streamed(request, None, arm, limits, target).await?;
    let most = exchanger.max_answer();
    if !answer.status().is_success() || !is_events(answer.headers()) {
        return Ok(whole(answer, most).await?.map(Received::into_whole));
    }
    if is_coded(answer.headers()) {
        return Err(ExchangeError::new(ErrorKind::BadResponse, CODED));
    }
    let mut events = EventReader::new(answer.into_body(), most);
    while let Some(event) = events.next().await {
        if let Some(answer) = pass_on(&event?, call).await? {
            // The connection is used again if the answer has ended.
            let _ = timeout(END, events.next()).await;
            return Ok(answer);
        }
    }
    Err(ExchangeError::new(ErrorKind::ConnectionLost, "the answer has ended before the output"))
}

/// The members of all events. One of another type is left out, so that there can be more types.
#[derive(Deserialize)]
struct Event<'e> {
    #[serde(borrow)]
    r#type: Cow<'e, str>,
    progress: Option<u8>,
    phase: Option<Phase>,
    message: Option<String>,
    #[serde(borrow)]
    data: Option<&'e RawValue>,
    #[serde(borrow)]
    output: Option<&'e RawValue>,
    #[serde(borrow)]
    problem: Option<&'e RawValue>,
    usage: Option<String>,
}

/// Passes an update on, or returns the answer.
async fn pass_on(event: &ServerEvent, call: &Call) -> Result<Option<Response<Bytes>>, ExchangeError> {
    let shape = |error: serde_json::Error| {
        ExchangeError::new(ErrorKind::BadResponse, format!("an event has another shape: {error}"))
    };
    let event: Event<'_> = serde_json::from_str(&event.data).map_err(shape)?;
    match (&*event.r#type, &call.updates) {
        ("chunk", Some(updates)) => {
            let data = event.data.map_or("null", RawValue::get);
            let data: Value = read_output(data.as_bytes()).map_err(shape)?;
            updates.chunk(data).await;
        }
        ("progress", Some(updates)) => {
            if let Some(phase) = event.phase {
                updates.update(Update::Phase(phase));
            }
            let message = event.message.unwrap_or_default();
            updates.update(Update::Progress(event.progress.unwrap_or(0).min(100), message));
        }
        ("output", _) => return Ok(Some(answer(StatusCode::OK, event.output, event.usage))),
        ("problem", _) => {
            let problem = event.problem.map_or("null", RawValue::get);
            let status = read_output::<Value>(problem.as_bytes()).ok().and_then(|problem| {
                StatusCode::from_u16(problem.get("status")?.as_u64()?.try_into().ok()?).ok()
            });
            let status = status.filter(|status| !status.is_success());
            let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return Ok(Some(answer(status, event.problem, event.usage)));
        }
        _ => {}
    }
    Ok(None)
}

/// The answer as it would be without a stream.
fn answer(status: StatusCode, body: Option<&RawValue>, usage: Option<String>) -> Response<Bytes> {
    let body = Bytes::copy_from_slice(body.map_or("null", RawValue::get).as_bytes());
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(usage) = usage.and_then(|usage| HeaderValue::try_from(usage).ok()) {
        answer.headers_mut().insert(names::USAGE, usage);
    }
    answer
}
