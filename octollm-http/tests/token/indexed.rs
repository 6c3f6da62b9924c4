//! Tokens over HTTP/2, in a field that HPACK indexes where the server offers that.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::{client, server};
use http::{HeaderMap, Request, Response, StatusCode, header::AUTHORIZATION};
use octollm_core::{card::ArmCard, parts::Grant};
use octollm_http::{
    Arms, Server,
    client::Protocol,
    server::{HttpBody, HttpService},
    token::{ExposeSecret, KeySet, SigningKey, TokenIssuer, TokenVerifier},
};
use tokio::net::{TcpListener, TcpStream};
use tower::{ServiceExt, layer::layer_fn};

use crate::wired::{Judge, Look};

const FIELD: &str = "octollm-authorization";

type Heads = Arc<Mutex<Vec<HeaderMap>>>;

/// A server of one connection that records heads, and offers the field with its first answer. One that `reads` takes tokens there.
async fn peer(offers: bool, reads: bool) -> (String, Heads) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (url, heads) = (format!("http://{}", listener.local_addr().unwrap()), Heads::default());
    let recorded = heads.clone();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection = server::handshake(socket).await.unwrap();
        while let Some(request) = connection.accept().await {
            let (request, mut respond) = request.unwrap();
            let head = request.headers().clone();
            let is_accepted = head.contains_key(AUTHORIZATION) || (reads && head.contains_key(FIELD));
            let status = if is_accepted { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
            let mut answer = Response::builder().status(status).header("content-type", "application/json");
            if offers && recorded.lock().unwrap().is_empty() {
                answer = answer.header(FIELD, "?1");
            }
            recorded.lock().unwrap().push(head);
            let mut body = respond.send_response(answer.body(()).unwrap(), false).unwrap();
            body.send_data(Bytes::from_static(b"\"looked\""), true).unwrap();
        }
    });
    (url, heads)
}

fn root() -> (SigningKey, TokenIssuer) {
    let key = SigningKey::generate().unwrap();
    (key.clone(), TokenIssuer::root("brain", key).build().unwrap())
}

/// Where the token was in each of five calls: `A` for an `Authorization` and `F` for the field.
async fn sent_to(offers: bool, reads: bool) -> String {
    let (url, heads) = peer(offers, reads).await;
    let arms = Arms::builder().protocol(Protocol::Http2).tokens(root().1);
    let arms = arms.endpoint_serving::<Look>("judge", &url).build().unwrap();
    for _ in 0..5 {
        assert_eq!(arms.call(Look {}).await.unwrap(), "looked");
    }
    let heads = heads.lock().unwrap();
    let token = &heads[0][AUTHORIZATION];
    heads
        .iter()
        .map(|head| match (head.get(AUTHORIZATION), head.get(FIELD)) {
            (Some(value), None) => {
                assert!(value == token);
                'A'
            }
            (None, Some(value)) => {
                assert!(value == token);
                'F'
            }
            other => panic!("{other:?}"),
        })
        .collect()
}

#[tokio::test]
async fn a_token_that_is_sent_again_is_indexed_where_the_server_offers_that() {
    assert_eq!(sent_to(true, true).await, "AAFFF");
    assert_eq!(sent_to(false, true).await, "AAAAA");
}

#[tokio::test]
async fn a_gateway_that_looks_for_an_authorization_gets_it_from_then_on() {
    assert_eq!(sent_to(true, false).await, "AAFAAA");
}

/// An arm that verifies tokens, and the heads that its layers have seen.
async fn verifying(key: &SigningKey) -> (String, Heads) {
    let heads = Heads::default();
    let seen = heads.clone();
    let records = layer_fn(move |inner: HttpService| {
        let seen = seen.clone();
        inner.map_request(move |request: Request<HttpBody>| {
            seen.lock().unwrap().push(request.headers().clone());
            request
        })
    });
    let verifier = TokenVerifier::builder().root(KeySet::new("brain").with_key(key).unwrap());
    let server = Server::new("judge").arm::<Look>(Judge).tokens(verifier).layer(records);
    let server = server.bind("127.0.0.1:0").await.unwrap();
    let url = server.url();
    tokio::spawn(server.run());
    (url, heads)
}

#[tokio::test]
async fn a_server_and_its_layers_see_an_authorization_wherever_the_token_was_sent() {
    let (key, issuer) = root();
    let (url, heads) = verifying(&key).await;
    let arms = Arms::builder().protocol(Protocol::Http2).tokens(issuer).endpoint("judge", &url);
    let arms = arms.build().unwrap();
    for _ in 0..5 {
        arms.call(Look {}).await.unwrap();
    }
    let heads = heads.lock().unwrap();
    let calls: Vec<_> = heads.iter().filter(|head| head.contains_key("x-correlation-id")).collect();
    assert!(calls.len() >= 5);
    for head in heads.iter().filter(|head| head.contains_key("content-type")) {
        assert_eq!(head.get_all(AUTHORIZATION).iter().count(), 1);
        assert!(!head.contains_key(FIELD));
    }
}

#[tokio::test]
async fn a_token_in_the_field_is_verified_and_two_are_refused() {
    let (key, issuer) = root();
    let (url, _) = verifying(&key).await;
    let token = issuer.issue(&Grant::new("ali", ["code:look"]), &["code:look"], &ArmCard::new("judge"));
    let token = format!("Bearer {}", token.unwrap().expose_secret());
    let socket = TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap();
    let (mut sender, connection) = client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    for (fields, status) in [
        (&[(FIELD, &*token)][..], 200),
        (&[("authorization", &*token)], 200),
        (&[(FIELD, "Bearer x.y.z")], 401),
        (&[], 401),
        (&[(FIELD, &*token), ("authorization", &*token)], 400),
        (&[(FIELD, &*token), (FIELD, &*token)], 400),
    ] {
        let mut request = Request::post(format!("{url}/look")).header("content-type", "application/json");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (answer, mut body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        body.send_data(Bytes::from_static(b"{}"), true).unwrap();
        assert_eq!(answer.await.unwrap().status().as_u16(), status, "{}", fields.len());
    }
}
