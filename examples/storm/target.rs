//! The server under load.

use std::{
    future::pending,
    io::{Write, stdout},
    net::SocketAddr,
    time::Duration,
};

use octollm::{
    http::{
        io::Acceptor,
        server::BoundServer,
        token::{KeySet, TokenVerifier},
    },
    limit::RateLimit,
    prelude::*,
};

use crate::Result;

/// Checks a text.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "storm.check", output = Verdict, idempotent, timeout = "10s")]
pub(crate) struct Check {
    #[garde(length(max = 100_000))]
    pub(crate) text: String,
}

/// What was found in a text.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Verdict {
    words: usize,
    is_valid: bool,
    score: f64,
    issues: Vec<String>,
}

/// Writes a report of so many lines.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "storm.report", output = Vec<String>, idempotent, timeout = "10s")]
struct Report {
    #[garde(range(max = 10_000))]
    lines: usize,
}

/// Waits until its caller has gone.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "storm.wait", output = (), timeout = "5m")]
struct Wait {}

#[derive(Clone)]
struct Worker;

#[async_trait]
impl Arm<Check> for Worker {
    async fn execute(&self, input: Check, _: &Context) -> std::result::Result<Verdict, ArmError> {
        let words = input.text.split_whitespace().count();
        Ok(Verdict { words, is_valid: words > 0, score: 0.97, issues: vec!["missing docstring".into()] })
    }
}

#[async_trait]
impl Arm<Report> for Worker {
    async fn execute(&self, input: Report, _: &Context) -> std::result::Result<Vec<String>, ArmError> {
        Ok((0..input.lines).map(|line| format!("line {line}: nothing was found in the text")).collect())
    }
}

#[async_trait]
impl Arm<Wait> for Worker {
    async fn execute(&self, _: Wait, _: &Context) -> std::result::Result<(), ArmError> {
        pending().await
    }
}

/// The options of a server.
#[derive(Default)]
struct Options<'w> {
    keys: Option<&'w str>,
    issuer: Option<&'w str>,
    certificate: Option<&'w str>,
    key: Option<&'w str>,
    compress: bool,
    log: bool,
}

impl<'w> Options<'w> {
    fn read(words: &[&'w str]) -> Result<Self> {
        let (mut options, mut words) = (Self::default(), words.iter().copied());
        while let Some(word) = words.next() {
            let option = match word {
                "--keys" => &mut options.keys,
                "--issuer" => &mut options.issuer,
                "--certificate" => &mut options.certificate,
                "--key" => &mut options.key,
                "--compress" => {
                    options.compress = true;
                    continue;
                }
                "--log" => {
                    options.log = true;
                    continue;
                }
                other => return Err(format!("there is no option {other}").into()),
            };
            *option = Some(words.next().ok_or_else(|| format!("{word} needs a value"))?);
        }
        Ok(options)
    }
}

/// Serves until Ctrl-C or SIGTERM.
pub(crate) async fn serve(words: &[&str]) -> Result<()> {
    let options = Options::read(words)?;
    if options.log {
        tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    }
    let mut server = Server::new("storm").arm::<Check>(Worker).arm::<Report>(Worker).arm::<Wait>(Worker);
    if let Some(file) = options.keys {
        let keys = KeySet::new(options.issuer.ok_or("--keys needs --issuer")?);
        let keys = keys.with_jwks(&std::fs::read_to_string(file)?)?;
        server = limited(server.tokens(TokenVerifier::builder().root(keys)));
    }
    if options.compress {
        server = compressed(server)?;
    }
    match (options.certificate, options.key) {
        (Some(certificate), Some(key)) => secure(server, certificate, key).await,
        _ => {
            let server = server.bind("127.0.0.1:0").await?;
            let address = server.local_addr();
            listening(server, address).await
        }
    }
}

/// Limits that are checked with each call, and that no load reaches.
fn limited(server: Server) -> Server {
    let all = RateLimit::new(1_000_000, Duration::from_secs(1));
    let server = server.rate_limit(all).total_rate_limit_of::<Check>(all);
    server.max_in_flight(20_000).max_in_flight_of::<Check>(20_000)
}

async fn listening(server: BoundServer<impl Acceptor>, address: SocketAddr) -> Result<()> {
    println!("{address}");
    stdout().flush()?;
    server.run_until_signal().await;
    Ok(())
}

#[cfg(feature = "tls")]
async fn secure(server: Server, certificate: &str, key: &str) -> Result<()> {
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = tcp.local_addr()?;
    listening(server.listen(octollm::http::io::TlsAcceptor::new(tcp, certificate, key)?)?, address).await
}

#[cfg(not(feature = "tls"))]
async fn secure(_: Server, _: &str, _: &str) -> Result<()> {
    Err("--certificate needs the feature `tls`".into())
}

#[cfg(feature = "compression")]
fn compressed(server: Server) -> Result<Server> {
    Ok(server.compression())
}

#[cfg(not(feature = "compression"))]
fn compressed(_: Server) -> Result<Server> {
    Err("--compress needs the feature `compression`".into())
}
