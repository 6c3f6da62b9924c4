//! Servers as services: in axum, and by themselves.

use axum::routing::get;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use octollm_http::{ServeError, server::HttpService};
use tower::ServiceExt;

use crate::{
    arms::{Echo, Said, Worker, server},
    peer::Peer,
};

async fn ask(service: HttpService, path: &str, body: &'static str) -> (StatusCode, serde_json::Value) {
    let request = Request::post(path).header("content-type", "application/json");
    let answer = service.oneshot(request.body(Full::from(body)).unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    (head.status, serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap())
}

#[tokio::test]
async fn an_arm_is_mounted_into_axum() {
    let judge = server(&Worker::default()).into_service();
    let app = axum::Router::new().route("/", get(async || "home")).nest_service("/arms/worker", judge);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer(listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    assert_eq!(peer.get("/").await.body, "home");
    assert_eq!(peer.post("/arms/worker/echo", "", r#"{"text":"a"}"#).await.json()["text"], "a");
    assert_eq!(peer.get("/arms/worker/health").await.json()["status"], "healthy");
    peer.get("/arms/worker/nowhere").await.is_problem(404, "not_found");
}

#[tokio::test]
async fn a_service_needs_no_socket() {
    let service = server(&Worker::default()).into_service();
    let (status, answer) = ask(service.clone(), "/echo", r#"{"text":"a"}"#).await;
    assert_eq!((status, &answer["text"]), (StatusCode::OK, &"a".into()));
    assert_eq!(ask(service, "/echo", "{}").await.0, StatusCode::UNPROCESSABLE_ENTITY);
}

/// A contract by hand, to give it any path.
macro_rules! at {
    ($name:ident, $path:literal) => {
        #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        struct $name {}

        impl octollm_core::contract::TaskContract for $name {
            type Output = Said;
            type Chunk = octollm_core::contract::NoChunk;
            const SPEC: octollm_core::contract::ContractSpec =
                octollm_core::contract::ContractSpec::new(concat!("a.", stringify!($name)), $path, "a:b");
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

at!(SameAsEcho, "/echo");
at!(SameAsHealth, "/execute");
at!(Braces, "/tasks/{id}");
at!(Upwards, "/a/../b");

#[tokio::test]
async fn routes_that_cannot_be_are_refused() {
    let worker = Worker::default();
    let server = || server(&worker);
    let taken = server().arm::<SameAsEcho>(worker.clone()).try_into_service().unwrap_err();
    assert_eq!(
        taken.to_string(),
        "there are two routes `POST /echo`: give one of the contracts another, as in `#[task(path = \"/other\")]`"
    );
    let taken = server().arm::<SameAsHealth>(worker.clone()).try_into_service().unwrap_err();
    assert!(matches!(taken, ServeError::RouteTaken { .. }), "{taken}");
    let odd = server().arm::<Braces>(worker.clone()).try_into_service().unwrap_err();
    assert!(matches!(odd, ServeError::InvalidPath { .. }), "{odd}");
    let odd = server().arm::<Upwards>(worker.clone()).try_into_service().unwrap_err();
    assert!(matches!(odd, ServeError::InvalidPath { .. }), "{odd}");

    let broken = server().arm::<SameAsEcho>(worker.clone()).into_service();
    let (status, problem) = ask(broken, "/echo", "{}").await;
    assert_eq!((status, &problem["code"]), (StatusCode::INTERNAL_SERVER_ERROR, &"internal".into()));
    // One that is served twice is replaced, and takes no second route.
    assert!(server().arm::<Echo>(worker.clone()).try_into_service().is_ok());
}
