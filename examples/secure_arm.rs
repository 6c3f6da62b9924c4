//! An arm that checks who calls it: one arm, one caller, a token for each call, and the answers to those without one.
//!
//! ```text
//! cargo run --example secure_arm
//! ```

use std::net::SocketAddr;

use octollm::{
    card::ArmCard,
    context::{Caller, Grant},
    http::token::{ExposeSecret, KeySet, SigningKey, TokenIssuer, TokenVerifier},
    prelude::*,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Counts the words of a text. Its scope is `text:count`.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "text.count", output = Count, idempotent)]
struct CountWords {
    text: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Count {
    words: usize,
    caller: String,
}

struct Scribe;

#[async_trait]
impl Arm<CountWords> for Scribe {
    async fn execute(&self, input: CountWords, cx: &Context) -> Result<Count, ArmError> {
        let caller = cx.caller().subject().unwrap_or("nobody").to_owned();
        Ok(Count { words: input.text.split_whitespace().count(), caller })
    }
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    // The issuer of tokens has a private key. In a system with a brain that is the brain.
    let key = SigningKey::generate()?;
    let issuer = TokenIssuer::root("portal", key.clone()).build()?;

    // The arm has the public key of the issuer.
    let roots = KeySet::new("portal").with_key(&key)?;
    let scribe = Server::new("scribe").arm(Scribe).tokens(TokenVerifier::builder().root(roots));
    let scribe = scribe.bind("127.0.0.1:0").await?;
    let (url, address) = (scribe.url(), scribe.local_addr());
    tokio::spawn(scribe.run());

    // A client with an issuer sends a token of its caller with each call.
    let arms = Arms::builder().endpoint("scribe", &url).tokens(issuer.clone()).build()?;
    let input = || CountWords { text: "Ten arms, one brain.".into() };
    let count = arms.on_behalf_of(Caller::known("ali", ["text:count"])).call(input()).await?;
    println!("a call on behalf of ali: {count:?}");
    assert_eq!(count, Count { words: 4, caller: "ali".into() });

    // A client without an issuer sends none.
    let nobody = Arms::builder().endpoint("scribe", &url).build()?;
    let refused = nobody.call(input()).await.expect_err("the arm needs a token");
    println!("a call without a token: {refused}");
    assert_eq!((refused.kind(), refused.may_have_executed()), (ErrorKind::Unauthenticated, false));

    // The answers as they are on the wire. Any client can send a token; this one is issued by hand.
    let grant = Grant::new("bob", ["text:*", "image:*"]);
    let card = ArmCard::new("scribe");
    let token = |scope: &str| issuer.issue(&grant, &[scope], &card);
    let (good, other) = (token("text:count")?, token("image:paint")?);
    let another = issuer.issue(&grant, &["text:count"], &ArmCard::new("judge"))?;
    for (caller, token, status) in [
        ("no token", None, 401),
        ("a token for another arm", Some(&another), 401),
        ("a token with another scope", Some(&other), 403),
        ("a token with the scope", Some(&good), 200),
    ] {
        let answer = post(address, token.map(ExposeSecret::expose_secret)).await?;
        println!("\n{caller}:\n{answer}");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    Ok(())
}

/// Sends a request as curl would. Returns the status line, the challenge and the body.
async fn post(address: SocketAddr, token: Option<&str>) -> Result<String, octollm::Error> {
    let authorization = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!(
        "POST /count HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{authorization}\
         content-type: application/json\r\ncontent-length: 12\r\n\r\n{{\"text\":\"a\"}}"
    );
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    let challenge = lines.find(|line| line.to_ascii_lowercase().starts_with("www-authenticate"));
    Ok([status, challenge.unwrap_or("(no challenge)"), body].join("\n"))
}
