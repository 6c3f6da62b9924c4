//! Makes and reads capability tokens, for the shell.
//!
//! ```text
//! token=(cargo run -q --example token --)
//! "${token[@]}" keygen brain.pem > brain.jwks                    # a key, unless there is one, and its public JWK set
//! "${token[@]}" keygen coder.pem > coder.jwks
//!
//! # A token for the arm `coder`, which may call on with what it needs.
//! t=$("${token[@]}" issue --key brain.pem --issuer brain --subject ali --audience coder --scope code:review \
//!     --callee-key coder.jwks --needs code:validate --grant 'code:review code:validate')
//! echo "$t" | "${token[@]}" inspect
//! echo "$t" | "${token[@]}" verify --keys brain.jwks --issuer brain --audience coder
//!
//! # The token by which `coder` calls `judge` on behalf of ali.
//! echo "$t" | "${token[@]}" delegate --key coder.pem --as coder --keys brain.jwks --issuer brain --audience judge --scope code:validate
//! ```
//!
//! Keys are PEM or JWK files. `--keys` can be the URL of a JWK set. Tokens are read from the standard input,
//! so that the list of processes does not show them.

use std::{
    collections::HashMap,
    env, fs,
    io::{Read, stdin},
    process::ExitCode,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use octollm::{
    card::ArmCard,
    context::Grant,
    http::token::{ExposeSecret, KeySet, SigningKey, TokenIssuer, TokenVerifier},
};
use serde_json::{Value, json};

const USAGE: &str = "\
usage: token keygen FILE
       token issue    --key FILE --issuer NAME --subject NAME --audience ARM --scope 'SCOPES'
                      [--grant 'SCOPES'] [--callee-key FILE --needs 'SCOPES'] [--kid ID] [--life SECONDS]
       token delegate --key FILE --as ARM --keys FILE|URL --issuer NAME --audience ARM --scope 'SCOPES'
                      [--callee-key FILE --needs 'SCOPES'] < TOKEN
       token inspect  < TOKEN
       token verify   --keys FILE|URL | --key FILE  --issuer NAME --audience ARM < TOKEN";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<_> = env::args().skip(1).collect();
    let done = match words.split_first() {
        Some((command, words)) => run(command, words).await,
        None => Err(USAGE.into()),
    };
    match done {
        Ok(output) => {
            println!("{output}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("because {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(command: &str, words: &[String]) -> Result<String> {
    match (command, words) {
        ("keygen", [file]) => {
            let key = SigningKey::from_file_or_new(file)?;
            Ok(KeySet::new("own").with_key(&key)?.to_jwks().to_string())
        }
        ("inspect", []) => Ok(serde_json::to_string_pretty(&inspect(&token()?)?)?),
        ("issue", _) => issue(&Options::read(words)?),
        ("delegate", _) => delegate(&Options::read(words)?).await,
        ("verify", _) => {
            let options = Options::read(words)?;
            let grant = verify(&options, options.get("audience")?).await?;
            let links = grant.links.as_deref().map_or(0, <[_]>::len);
            let end = grant.valid_until.map(|end| end.to_string());
            let said = json!({
                "issuer": grant.issuer, "subject": grant.subject, "scopes": grant.scopes, "actor": grant.actor,
                "task": grant.task, "valid_until": end, "links": links,
            });
            Ok(serde_json::to_string_pretty(&said)?)
        }
        _ => Err(USAGE.into()),
    }
}

fn issue(options: &Options<'_>) -> Result<String> {
    let mut key = read_key(options.get("key")?)?;
    if let Some(kid) = options.find("kid") {
        key = key.with_kid(kid)?;
    }
    let mut issuer = TokenIssuer::root(options.get("issuer")?, key);
    if let Some(life) = options.find("life") {
        issuer = issuer.life(Duration::from_secs(life.parse()?));
    }
    let granted =
        options.find("grant").map_or_else(|| options.scopes("scope"), |_| options.scopes("grant"))?;
    sign(&issuer.build()?, &Grant::new(options.get("subject")?, granted), options)
}

/// The token by which the receiver of a token calls on.
async fn delegate(options: &Options<'_>) -> Result<String> {
    let arm = options.get("as")?;
    let grant = verify(options, arm).await?;
    let issuer = TokenIssuer::arm(arm, read_key(options.get("key")?)?).build()?;
    sign(&issuer, &grant, options)
}

fn sign(issuer: &TokenIssuer, grant: &Grant, options: &Options<'_>) -> Result<String> {
    let mut callee = ArmCard::new(options.get("audience")?);
    if let Some(file) = options.find("callee-key") {
        let mut set: Value = serde_json::from_str(&fs::read_to_string(file)?)?;
        let jwk = set.pointer_mut("/keys/0").map(Value::take).unwrap_or(set);
        callee.key = Some(serde_json::from_value(jwk)?);
        callee.needs = options.scopes("needs")?.into_iter().map(str::to_owned).collect();
    }
    let token = issuer.issue(grant, &options.scopes("scope")?, &callee)?;
    Ok(token.expose_secret().to_owned())
}

async fn verify(options: &Options<'_>, audience: &str) -> Result<Grant> {
    let keys = KeySet::new(options.get("issuer")?);
    // With its own key `delegate` signs; `verify` has it for a secret, which no set shows.
    let keys = match options.find("keys") {
        Some(url) if url.contains("://") => keys.url(url)?,
        Some(file) => keys.with_jwks(&fs::read_to_string(file)?)?,
        None => keys.with_key(&read_key(options.get("key")?)?)?,
    };
    let verifier = TokenVerifier::builder().audience(audience).root(keys).build()?;
    Ok(Grant::clone(&*verifier.verify_and_fetch(&token()?).await?))
}

/// The head and the claims of a token and of its links, which are not verified.
fn inspect(token: &str) -> Result<Value> {
    let parts: Vec<_> = token.split('.').collect();
    let [head, claims, _] = *parts else { return Err("it is not three parts with dots between them".into()) };
    let read = |part| -> Result<Value> { Ok(serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part)?)?) };
    let (head, mut claims) = (read(head)?, read(claims)?);
    let links = claims.get_mut("prf").and_then(Value::as_array_mut).into_iter().flatten();
    for link in links {
        *link = inspect(link.as_str().unwrap_or_default())?;
    }
    if let Some(link) = claims.get_mut("dlg") {
        *link = inspect(link.as_str().unwrap_or_default())?;
    }
    Ok(json!({ "head": head, "claims": claims }))
}

fn token() -> Result<String> {
    let mut token = String::new();
    stdin().read_to_string(&mut token)?;
    Ok(token.trim().to_owned())
}

/// A private key from a PEM or from a JWK.
fn read_key(file: &str) -> Result<SigningKey> {
    let text = fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let is_jwk = text.trim_start().starts_with('{');
    let text = text.into();
    Ok(if is_jwk { SigningKey::from_jwk(&text)? } else { SigningKey::from_pem(&text)? })
}

/// Options `--name value`.
struct Options<'w>(HashMap<&'w str, &'w str>);

impl<'w> Options<'w> {
    fn read(words: &'w [String]) -> Result<Self> {
        let mut options = HashMap::new();
        for pair in words.chunks(2) {
            match pair {
                [name, value] if name.starts_with("--") => options.insert(&name[2..], value.as_str()),
                _ => return Err(USAGE.into()),
            };
        }
        Ok(Self(options))
    }

    fn find(&self, name: &str) -> Option<&'w str> {
        self.0.get(name).copied()
    }

    fn get(&self, name: &str) -> Result<&'w str> {
        self.find(name).ok_or_else(|| format!("--{name} is missing\n{USAGE}").into())
    }

    fn scopes(&self, name: &str) -> Result<Vec<&'w str>> {
        Ok(self.get(name)?.split_whitespace().collect())
    }
}
