//! A server of hyper alone, to compare with: `POST /check` without tokens, limits, ids, metrics and spans.

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use octollm::prelude::*;
use tokio::net::TcpListener;

use crate::Result;

#[derive(Deserialize)]
struct Input {
    text: String,
}

#[derive(Serialize)]
struct Output {
    words: usize,
    is_valid: bool,
    score: f64,
    issues: Vec<String>,
}

/// Serves until the process ends.
pub(crate) async fn serve() -> Result<()> {
    let tcp = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    println!("{}", tcp.local_addr()?);
    loop {
        let (stream, _) = tcp.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let connections = Builder::new(TokioExecutor::new());
            // A caller that goes away is no failure of the server.
            let _ = connections.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
        });
    }
}

async fn answer(request: Request<Incoming>) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let mut response = Response::new(Full::default());
    match serde_json::from_slice::<Input>(&body) {
        Ok(input) => {
            let words = input.text.split_whitespace().count();
            let issues = vec!["missing docstring".to_owned()];
            let output = Output { words, is_valid: words > 0, score: 0.97, issues };
            *response.body_mut() = serde_json::to_vec(&output).unwrap_or_default().into();
            let json = header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
        }
        Err(_) => *response.status_mut() = http::StatusCode::BAD_REQUEST,
    }
    Ok(response)
}
