//! What a server really answers, compared with the files that say what it should.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use octollm::{
    card::ArmCard,
    contract::ContractCard,
    http::{Server, server::HttpService},
};
use serde_json::Value;
use tower::ServiceExt;

use crate::{
    contracts::{Judge, ValidateCode},
    golden::{NOW, TASK, hold, pretty, read, read_json},
    ordered::Ordered,
};

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) head: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// With a fixed value in the place of each that differs each time.
    #[track_caller]
    pub(crate) fn fixed<V: Into<Value>>(self, values: impl IntoIterator<Item = (&'static str, V)>) -> Self {
        let fix = |json: Ordered, (path, value): (&str, V)| json.fix(path, value);
        let json = values.into_iter().fold(self.json(), fix);
        Self { body: pretty(&json).into(), ..self }
    }

    pub(crate) fn json(&self) -> Ordered {
        Ordered::parse(&self.body)
    }

    /// Its body is that of the file, and its media type says so.
    #[track_caller]
    pub(crate) fn is(&self, status: u16, media_type: &str, name: &str) {
        assert_eq!(self.status, status, "{:?}", self.body);
        assert_eq!(self.head[header::CONTENT_TYPE], media_type);
        hold(name, &pretty(&self.json()));
    }
}

/// An arm that serves what the examples ask.
pub(crate) fn judge() -> HttpService {
    Server::new("judge")
        .version("1.2.3")
        .endpoint("http://judge-arm:8103")
        .arm(Judge)
        .open_to_all()
        .into_service()
        .unwrap()
}

pub(crate) async fn send(service: &HttpService, request: Request<Bytes>) -> Answer {
    let Ok(response): Result<Response<_>, _> = service.clone().oneshot(request.map(Full::new)).await;
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap();
    Answer { status: head.status, head: head.headers, body: body.to_bytes() }
}

pub(crate) async fn ask(service: &HttpService, method: &str, path: &str, body: impl Into<Bytes>) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "judge-arm:8103")
        .header("x-request-id", "req-1")
        .header("content-type", "application/json");
    send(service, request.body(body.into()).unwrap()).await
}

pub(crate) const PROBLEM: &str = "application/problem+json";
pub(crate) const JSON: &str = "application/json";

#[tokio::test(start_paused = true)]
async fn a_contract_by_its_route() {
    let answer = ask(&judge(), "POST", "/validate", read("input.json")).await;
    answer.is(200, JSON, "output.json");
    assert_eq!(read_json::<ValidateCode>("input.json"), crate::contracts::code("fn main() {}"));
    assert!(read_json::<crate::contracts::Verdict>("output.json").is_valid);
}

#[tokio::test(start_paused = true)]
async fn a_contract_in_an_envelope() {
    let answer = ask(&judge(), "POST", "/execute", read("execute_request.json")).await;
    answer.fixed([("provenance.timestamp", NOW)]).is(200, JSON, "execute_answer.json");
    // A body without a task gets one of its own.
    let input = r#"{"contract":"code.validate","input":{"code":"x","language":"rust"}}"#;
    let answer = ask(&judge(), "POST", "/execute", input).await;
    let Ordered::Object(members) = answer.json() else { panic!() };
    assert_eq!(members[0].0, "task_id");
    assert_ne!(members[0].1, Ordered::Scalar(TASK.into()));
}

#[tokio::test(start_paused = true)]
async fn what_a_server_tells_of_itself() {
    ask(&judge(), "GET", "/health", "").await.is(200, JSON, "health.json");
    ask(&judge(), "GET", "/openapi.json", "").await.is(200, JSON, "openapi.json");
    let card: ArmCard =
        serde_json::from_slice(&ask(&judge(), "GET", "/capabilities", "").await.body).unwrap();
    assert_eq!(card.contracts, [ContractCard::of::<ValidateCode>()]);
    let keys = |json: Ordered| match json {
        Ordered::Object(members) => members.into_iter().map(|(key, _)| key).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let told = ask(&judge(), "GET", "/capabilities", "").await.json();
    assert_eq!(keys(told), keys(read_json("arm_card.json")));
}

#[tokio::test(start_paused = true)]
async fn whether_it_is_ready() {
    let server = |redis| {
        let server = Server::new("judge").arm(Judge).open_to_all();
        server
            .check("redis", move || async move { redis })
            .check("judge", || async { true })
            .into_service()
            .unwrap()
    };
    for (redis, status, name) in [(true, 200, "ready.json"), (false, 503, "not_ready.json")] {
        let answer = ask(&server(redis), "GET", "/ready", "").await;
        answer.fixed([("timestamp", NOW)]).is(status, JSON, name);
    }
}

#[tokio::test(start_paused = true)]
async fn problems_are_those_of_the_files() {
    let judge = judge();
    let input = |code: &str| format!(r#"{{"code":"{code}","language":"rust"}}"#);
    ask(&judge, "POST", "/validate", input("")).await.is(422, PROBLEM, "problem_validation_failed.json");
    ask(&judge, "POST", "/validate", input("broken")).await.is(500, PROBLEM, "problem_arm_failed.json");
    let envelope = r#"{"contract":"code.validate@2","input":{}}"#;
    let answer = ask(&judge, "POST", "/execute", envelope).await;
    // The envelope named no task, and so it was given one.
    answer.fixed([("task_id", Value::Null)]).is(404, PROBLEM, "problem_contract_not_offered.json");

    let busy = ask(&judge, "POST", "/validate", input("busy")).await;
    busy.is(503, PROBLEM, "problem_unavailable.json");
    assert_eq!(busy.head[header::RETRY_AFTER], "30");
    let wrong = ask(&judge, "GET", "/validate", "").await;
    wrong.is(405, PROBLEM, "problem_method_not_allowed.json");
    assert_eq!(wrong.head[header::ALLOW], "POST");
}

/// Where an input is not what it should be, all of it is told.
#[tokio::test(start_paused = true)]
async fn inputs_are_read_strictly() {
    let judge = judge();
    for (body, status) in [
        (r#"{"code":"x","language":"rust","langauge":"rust"}"#, 422),
        (r#"{"code":"x","code":"y","language":"rust"}"#, 400),
        (r#"{"code":"x"}"#, 422),
        (r#"{"code":"x","language":"rust"} "#, 200),
        (r#"{"code":"x","language":"rust"} {}"#, 400),
    ] {
        assert_eq!(ask(&judge, "POST", "/validate", body).await.status, status, "{body}");
    }
}
