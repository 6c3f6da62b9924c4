//! The names under which the spans of octollm are exported: those of OpenTelemetry's conventions, where there are some.

use opentelemetry::{
    Key, KeyValue, Value,
    trace::{SpanKind, Status},
};
use opentelemetry_sdk::trace::SpanData;

/// Target of the spans of octollm.
const TARGET: &str = "octollm::span";
/// Routes whose requests are as frequent as they are dull.
const QUIET: [&str; 3] = ["/health", "/ready", "/metrics"];

/// The span as it is exported; `None` for a probe. Spans of the program itself stay as they are.
pub(super) fn exported(mut span: SpanData) -> Option<SpanData> {
    if text(&span.attributes, "target") != Some(TARGET.into()) {
        return Some(span);
    }
    let fields = std::mem::take(&mut span.attributes);
    let field = |name: &str| text(&fields, name);
    let (method, route, contract) = (field("method"), field("route"), field("contract").unwrap_or_default());
    if route.as_deref().is_some_and(|route| QUIET.contains(&route)) {
        return None;
    }
    let method = method.as_deref().map_or("HTTP", |method| if method == "other" { "HTTP" } else { method });
    let status: Option<u16> = field("status").and_then(|status| status.parse().ok());
    let mut failure = field("code");
    // Names have values of bounded sets alone: routes are patterns, contracts those that programs declare.
    let name = match &*span.name {
        "request" => {
            span.span_kind = SpanKind::Server;
            failure = status.filter(|status| *status >= 500).map(|status| status.to_string());
            match &route {
                Some(route) if route != "unmatched" => format!("{method} {route}"),
                _ => method.to_owned(),
            }
        }
        "send" => {
            span.span_kind = SpanKind::Client;
            failure =
                failure.or_else(|| status.filter(|status| *status >= 400).map(|status| status.to_string()));
            method.to_owned()
        }
        kind => {
            if kind == "task" {
                span.span_kind = SpanKind::Consumer;
            }
            format!("{kind} {contract}")
        }
    };
    span.name = name.into();
    if let Some(code) = failure {
        span.status = Status::error(code.clone());
        span.attributes.push(KeyValue::new("error.type", code));
    }
    for attribute in fields {
        name_attribute(&mut span.attributes, attribute);
    }
    Some(span)
}

/// Adds a field of a span under the name of its convention.
fn name_attribute(attributes: &mut Vec<KeyValue>, KeyValue { key, value, .. }: KeyValue) {
    let mut add = |name: &'static str, value: Value| attributes.push(KeyValue::new(name, value));
    match key.as_str() {
        "method" if value.as_str() == "other" => add("http.request.method", "_OTHER".into()),
        "method" => add("http.request.method", value),
        "route" if value.as_str() == "unmatched" => {}
        "route" => add("http.route", value),
        "status" => add("http.response.status_code", number(value)),
        "attempt" if value.as_str() == "1" => {}
        "attempt" => {
            let attempts: i64 = value.as_str().parse().unwrap_or(1);
            add("http.request.resend_count", (attempts - 1).into());
        }
        "endpoint" => {
            let url: Option<http::Uri> = value.as_str().parse().ok();
            if let Some(authority) = url.as_ref().and_then(http::Uri::authority) {
                add("server.address", authority.host().to_owned().into());
                if let Some(port) = authority.port_u16() {
                    add("server.port", i64::from(port).into());
                }
            }
        }
        "request" => add("octollm.request.id", value),
        "correlation" => add("octollm.correlation.id", value),
        "task" => add("octollm.task.id", value),
        "run" => add("octollm.task.run", number(value)),
        "contract" => add("octollm.contract", value),
        "step" => add("octollm.step", value),
        "arm" => add("octollm.arm", value),
        "caller" => add("user.id", value),
        // The span has its own times, and `code` is its status.
        "target" | "duration_ms" | "code" => {}
        _ => attributes.push(KeyValue::new(key, value)),
    }
}

/// Numbers without a sign arrive as texts.
fn number(value: Value) -> Value {
    let read = value.as_str().parse::<i64>();
    read.map_or(value, Value::I64)
}

fn text(attributes: &[KeyValue], name: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == Key::from(name.to_owned()))?;
    Some(attribute.value.as_str().into_owned())
}
