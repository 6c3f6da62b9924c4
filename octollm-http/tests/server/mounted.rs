//! Servers as services: in axum, and by themselves.

use axum::routing::get;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use octollm_core::{
    Context,
    error::ErrorKind,
    orchestrator::Orchestrator,
    task::{TaskQuery, TaskRequest, TaskStatus},
};
use octollm_http::{Arms, OrchestratorClient, Server, server::HttpService};
use tower::ServiceExt;

use crate::{
    arms::{Echo, Said, Worker, server},
    peer::Peer,
    routed::hello,
    tasks::brain,
};

async fn ask(service: HttpService, path: &str, body: &'static str) -> (StatusCode, serde_json::Value) {
    let request = Request::post(path).header("content-type", "application/json");
    let answer = service.oneshot(request.body(Full::from(body)).unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    (head.status, serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap())
}

#[tokio::test]
async fn servers_are_mounted_into_axum() {
    let judge = server(&Worker::default()).open_to_all().into_service().unwrap();
    let brain = Server::new("brain").orchestrator(brain()).open_to_all().into_service().unwrap();
    let app = axum::Router::new().route("/", get(async || "home"));
    let app = app.nest_service("/arms/worker", judge).nest_service("/brain", brain);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::Tcp(listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    assert_eq!(peer.get("/").await.body, "home");
    assert_eq!(peer.post("/arms/worker/echo", "", r#"{"text":"a"}"#).await.json()["text"], "a");
    assert_eq!(peer.get("/arms/worker/health").await.json()["status"], "healthy");
    peer.get("/arms/worker/nowhere").await.is_problem(404, "not_found");

    // Where it is mounted is not known to it: what it says holds below any prefix.
    assert_eq!(peer.get("/arms/worker/capabilities").await.json()["endpoint"], serde_json::Value::Null);
    let accepted = peer.post("/brain/tasks", "", r#"{"goal":"review"}"#).await;
    let location = format!("/brain/{}", accepted.field("location").unwrap());
    let task = peer.get(&location).await.json();
    assert_eq!(task["task_id"], accepted.json()["task_id"]);
}

#[tokio::test(start_paused = true)]
async fn a_service_needs_no_socket() {
    let service = server(&Worker::default()).open_to_all().into_service().unwrap();
    let (status, answer) = ask(service.clone(), "/echo", r#"{"text":"a"}"#).await;
    assert_eq!((status, &answer["text"]), (StatusCode::OK, &"a".into()));
    assert_eq!(ask(service, "/echo", "{}").await.0, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_any_size_can_be_collected_before_it_is_sent() {
    let service = server(&Worker::default()).open_to_all().into_service().unwrap();
    let text = "a".repeat(100_000);
    let body: &'static str = serde_json::json!({ "text": text }).to_string().leak();
    let (status, answer) = ask(service.clone(), "/echo", body).await;
    assert_eq!((status, answer["text"].as_str()), (StatusCode::OK, Some(&*text)));
    let request = Request::get("/openapi.json").body(Full::<bytes::Bytes>::default()).unwrap();
    let document = service.oneshot(request).await.unwrap().into_body().collect().await.unwrap();
    assert!(document.to_bytes().len() > 1024);
}

/// A contract by hand, to give it any path.
macro_rules! at {
    ($name:ident, $contract:literal, $path:literal) => {
        #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        struct $name {}

        impl octollm_core::contract::TaskContract for $name {
            type Output = Said;
            type Chunk = ();
            const SPEC: octollm_core::contract::ContractSpec =
                octollm_core::contract::ContractSpec::new($contract, $path, "a:b");
        }

        #[async_trait::async_trait]
        impl octollm_core::Arm<$name> for Worker {
            async fn execute(
                &self,
                _: $name,
                _: &octollm_core::Context,
            ) -> Result<Said, octollm_core::error::ArmError> {
                Ok(Said { text: stringify!($name).into(), caller: None })
            }
        }
    };
}

at!(SameAsEcho, "a.echo", "/echo");
at!(SameAsHealth, "a.health", "/execute");
at!(Braces, "a.braces", "/tasks/{id}");
at!(Upwards, "a.upwards", "/a/../b");
at!(Hooked, "a.hooked", "/hooks/x");
at!(Misnamed, "a.v2", "/misnamed");

#[tokio::test(start_paused = true)]
async fn routes_that_cannot_be_are_refused() {
    let worker = Worker::default();
    let server = || server(&worker).open_to_all();
    let taken = server().arm::<SameAsEcho>(worker.clone()).into_service().unwrap_err();
    assert_eq!(
        taken.to_string(),
        "`POST /echo` is a route already: give one of the contracts another path, as in `#[task(path = \"/other\")]`"
    );
    let taken = server().arm::<SameAsHealth>(worker.clone()).into_service().unwrap_err();
    assert!(taken.to_string().contains("is a route already"), "{taken}");
    let odd = server().arm::<Braces>(worker.clone()).into_service().unwrap_err();
    assert!(odd.to_string().contains("is not the path of a route"), "{odd}");
    let odd = server().arm::<Upwards>(worker.clone()).into_service().unwrap_err();
    assert!(odd.to_string().contains("is not the path of a route"), "{odd}");

    let misnamed = server().arm::<Misnamed>(worker.clone()).into_service().unwrap_err();
    assert!(misnamed.to_string().contains("cannot be the name of a contract"), "{misnamed}");

    for path in ["/mcp", "/mcp/x", "/a2a/x", "/hooks/x", "/.well-known/agent.json"] {
        let reserved = server().route(Method::GET, path, hello()).into_service().unwrap_err();
        assert!(reserved.to_string().contains("is reserved"), "{reserved}");
    }
    let reserved = server().arm::<Hooked>(worker.clone()).into_service().unwrap_err();
    assert!(reserved.to_string().contains("is reserved"), "{reserved}");
    assert!(server().route(Method::GET, "/mcps", hello()).into_service().is_ok());
    let taken = server().route(Method::GET, "/health", hello()).into_service().unwrap_err();
    assert!(taken.to_string().contains("is a route already"), "{taken}");
    // One that is served twice is replaced, and takes no second route.
    assert!(server().arm::<Echo>(worker.clone()).into_service().is_ok());
}

#[tokio::test]
async fn clients_reach_servers_below_a_prefix() {
    let worker = server(&Worker::default()).open_to_all().into_service().unwrap();
    let brain = Server::new("brain").orchestrator(brain()).open_to_all().into_service().unwrap();
    let app = axum::Router::new().nest_service("/arms/worker", worker).nest_service("/a/brain", brain);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });

    let arms = Arms::builder().endpoint("worker", format!("{url}/arms/worker/")).build().unwrap();
    let said =
        arms.call(Echo { text: "a".into(), data: serde_json::Value::Null, number: 0.0 }).await.unwrap();
    assert_eq!(said.text, "a");
    assert_eq!(arms.cards().await[0].endpoint.as_deref(), Some(&*format!("{url}/arms/worker")));

    let client = OrchestratorClient::new(format!("{url}/a/brain")).unwrap();
    let task = client.submit(TaskRequest::new("review")).await.unwrap();
    task.output().await.unwrap();
    assert_eq!(task.cancel().await.unwrap().status, TaskStatus::Completed, "a finished task stays as it is");
    let cx = Context::detached();
    assert_eq!(client.list(TaskQuery::default(), &cx).await.unwrap().tasks.len(), 1);
    assert!(client.journal(task.id(), None, None, &cx).await.unwrap().0.is_empty());
    let refused = client.rerun(task.id(), None, &cx).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
}
