//! The values of header fields. A server answers every head, and none with 500.
#![no_main]

use std::{cell::OnceCell, convert::Infallible};

use http::{HeaderValue, Request, Response};
use http_body_util::{Empty, Full};
use libfuzzer_sys::fuzz_target;
use octollm_fuzz::verifier;
use octollm_http::{
    Server,
    server::{HttpBody, HttpService},
};
use tokio::runtime::{Builder, Runtime};
use tower::{ServiceExt, service_fn};

const FIELDS: [&str; 24] = [
    "authorization",
    "x-request-id",
    "x-correlation-id",
    "traceparent",
    "tracestate",
    "idempotency-key",
    "octollm-timeout",
    "octollm-budget",
    "octollm-usage",
    "octollm-instance",
    "octollm-attempt",
    "retry-after",
    "content-type",
    "content-length",
    "content-encoding",
    "accept",
    "accept-encoding",
    "expect",
    "host",
    "transfer-encoding",
    "connection",
    "upgrade",
    "origin",
    "octollm-task",
];
const PATHS: [&str; 5] = ["/own", "/execute", "/health", "/capabilities", "/.well-known/jwks.json"];

thread_local!(static SYSTEM: OnceCell<(Runtime, HttpService)> = const { OnceCell::new() });

fn system() -> (Runtime, HttpService) {
    let own = service_fn(|_: Request<HttpBody>| async {
        Ok::<_, Infallible>(Response::new(Full::<bytes::Bytes>::default()))
    });
    let server = Server::new("judge").authenticate(verifier()).identity_from_extensions();
    let server = server.route(http::Method::POST, "/own", own);
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    (runtime, server.into_service().expect("a server"))
}

// Lines of a number, which chooses a field, and its value; the first is the path.
fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|byte| *byte == b'\n').take(40);
    let path = lines.next().and_then(|line| line.first()).copied().unwrap_or(0);
    let mut request = Request::post(PATHS[usize::from(path) % PATHS.len()]);
    for line in lines {
        let Some((field, value)) = line.split_first() else { continue };
        let Ok(value) = HeaderValue::from_bytes(value) else { continue };
        request = request.header(FIELDS[usize::from(*field) % FIELDS.len()], value);
    }
    let Ok(request) = request.body(Empty::<bytes::Bytes>::new()) else { return };
    let status = SYSTEM.with(|cell| {
        let (runtime, service) = cell.get_or_init(system);
        match runtime.block_on(service.clone().oneshot(request)) {
            Ok(response) => response.status().as_u16(),
        }
    });
    assert!((200..600).contains(&status) && status != 500, "{status}");
});
