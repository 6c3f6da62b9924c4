//! Authority that is passed on over three hops, narrower at each, and what happens to an arm that tries for more.
//!
//! Ali may do everything with reports and data. The writer calls the checker, which calls the archive, each on behalf of ali. An
//! arm can pass on what it was given as far as the card of the next one says that it needs it. No server is asked for that,
//! and every arm verifies it with the public key of the root alone.
//!
//! ```text
//! cargo run --example delegation
//! ```

use octollm::{
    context::Caller,
    http::token::{KeySet, SigningKey, TokenIssuer, TokenVerifier},
    prelude::*,
};

/// Writes a report, which is checked. Scope `report:write`.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "report.write", output = Vec<String>)]
struct WriteReport {
    greedy: bool,
}

/// Checks a report against the archive. Scope `report:check`.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "report.check", output = Vec<String>)]
struct CheckReport {
    greedy: bool,
}

/// Reads the archive. Scope `data:read`.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "data.read", output = Vec<String>, idempotent)]
struct ReadArchive {}

/// Deletes the archive. Scope `data:delete`.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "data.delete", output = Vec<String>)]
struct DeleteArchive {}

struct Writer;

#[async_trait]
impl Arm<WriteReport> for Writer {
    async fn execute(&self, input: WriteReport, cx: &Context) -> Result<Vec<String>, ArmError> {
        let below = cx.call(CheckReport { greedy: input.greedy }).await?;
        Ok([vec![describe("writer", cx)], below].concat())
    }
}

struct Checker;

#[async_trait]
impl Arm<CheckReport> for Checker {
    async fn execute(&self, input: CheckReport, cx: &Context) -> Result<Vec<String>, ArmError> {
        let below = match input.greedy {
            false => cx.call(ReadArchive {}).await?,
            true => cx.call(DeleteArchive {}).await?,
        };
        Ok([vec![describe("checker", cx)], below].concat())
    }
}

struct Archive;

#[async_trait]
impl Arm<ReadArchive> for Archive {
    async fn execute(&self, _: ReadArchive, cx: &Context) -> Result<Vec<String>, ArmError> {
        Ok(vec![describe("archive", cx)])
    }
}

#[async_trait]
impl Arm<DeleteArchive> for Archive {
    async fn execute(&self, _: DeleteArchive, cx: &Context) -> Result<Vec<String>, ArmError> {
        Ok(vec![format!("deleted: {}", describe("archive", cx))])
    }
}

/// On whose behalf an arm is called, by whom, and with which scopes.
fn describe(arm: &str, cx: &Context) -> String {
    let Some(grant) = cx.caller().grant() else { return format!("{arm}: called by anybody") };
    let actor = grant.actor.as_deref().unwrap_or("portal");
    format!("{arm}: called by {actor} on behalf of {}, with {}", grant.subject, grant.scopes.join(" "))
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    // Every arm has the public key of the root. An arm that calls on has a private key of its own as well.
    let key = SigningKey::generate()?;
    let roots = KeySet::new("portal").with_key(&key)?;
    let verifier = || TokenVerifier::builder().root(roots.clone());
    let (writer_key, checker_key) = (SigningKey::generate()?, SigningKey::generate()?);

    let archive = Server::new("archive").arm::<ReadArchive>(Archive).arm::<DeleteArchive>(Archive);
    let archive = archive.tokens(verifier()).bind("127.0.0.1:0").await?;
    let archive_url = archive.url();
    tokio::spawn(archive.run());

    // The checker would like everything that concerns data. Its callers delegate what they have of that.
    let issuer = TokenIssuer::arm("checker", checker_key.clone()).build()?;
    let arms = Arms::builder().endpoint("archive", &archive_url).tokens(issuer).build()?;
    let checker = Server::new("checker").arm(Checker).arms(arms).needs_scope("data:*");
    let checker = checker.tokens(verifier()).bind("127.0.0.1:0").await?;
    let checker_url = checker.url();
    tokio::spawn(checker.run());

    // The writer needs what it calls, and what is needed further on.
    let issuer = TokenIssuer::arm("writer", writer_key).build()?;
    let arms = Arms::builder().endpoint("checker", &checker_url).tokens(issuer).build()?;
    let writer = Server::new("writer").arm(Writer).arms(arms).needs::<CheckReport>().needs::<ReadArchive>();
    let writer = writer.tokens(verifier()).bind("127.0.0.1:0").await?;
    let writer_url = writer.url();
    tokio::spawn(writer.run());

    let issuer = TokenIssuer::root("portal", key).build()?;
    let arms = Arms::builder().endpoint("writer", &writer_url).tokens(issuer).build()?;
    let ali = arms.on_behalf_of(Caller::known("ali", ["report:*", "data:*"]));
    for line in ali.call(WriteReport { greedy: false }).await? {
        println!("{line}");
    }

    // Ali may delete the archive. The writer was not given that, so the checker has not got it, and its call is never sent.
    let refused = ali.call(WriteReport { greedy: true }).await.expect_err("nobody delegated data:delete");
    println!("\nthe checker tries to delete: {refused}");
    assert!(refused.to_string().contains("data:delete"), "{refused}");

    // Nor can it make itself a root, under its own name or under that of the root: the archive knows one key.
    for name in ["checker", "portal"] {
        let forger = TokenIssuer::root(name, checker_key.clone()).build()?;
        let arms = Arms::builder().endpoint("archive", &archive_url).tokens(forger).build()?;
        let forged = arms.on_behalf_of(Caller::known("ali", ["data:delete"]));
        let refused =
            forged.call(DeleteArchive {}).await.expect_err("the archive does not trust the checker");
        println!("the checker signs as the root {name}: {refused}");
        assert_eq!(refused.kind(), ErrorKind::Unauthenticated);
    }
    Ok(())
}
