//! A client of services that are no arms: any API of JSON over HTTP.
// A module uses only what stands before it here.
mod path;
mod rate;
mod redirect;
mod redact;
mod attempts;
mod stream;
mod events;
mod request;

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Uri, header};
use octollm_core::{bus::EventBus, contract::ContractRef, error::ConfigError, id::is_arm_id};
use secrecy::{ExposeSecret, SecretString};

pub use self::request::RestRequest;
use self::{rate::RateGate, redact::Secrets};
pub use super::sse::ServerEvent;
use super::{
    authority::OWN,
    base_url::{BaseUrl, Fields},
    exchange::{Exchange, Exchanger, Requests, request_setters},
    protection::Protection,
};
use crate::limits::{SHORTEST, YEAR, limits_setters, within};

/// A client of a service that is no arm: any API of JSON over HTTP. It is cheap to clone; clones share their connections and what is
/// known of the service.
///
/// ```no_run
/// # use octollm_http::RestClient;
/// # use octollm_http::client::SecretString;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Deserialize)] struct Hit { text: String }
/// # #[derive(Serialize, Deserialize)] struct Note { text: String }
/// # async fn run(key: String, note: Note) -> Result<(), octollm_core::error::Error> {
/// let memory = RestClient::builder("https://memory.example/v1").bearer(SecretString::from(key)).build()?;
/// let hits: Vec<Hit> = memory.get("search").query(&[("q", "rust")]).send().await?;
/// let made: Note = memory.post("notes").json(&note).idempotent().send().await?;
/// # Ok(()) }
/// ```
///
/// Requests have what calls to arms have: pooled connections, a deadline over all attempts, retries within a
/// [budget](octollm_core::resilience::RetryBudget), and a circuit breaker. Errors are [`CallError`](octollm_core::error::CallError)s,
/// whose contract is the name of the client and the method, such as `memory.get`. An arm that returns one answers `upstream_failed`
/// or `unavailable`, as after a failed call.
///
/// # When a request is sent again
///
/// At most twice ([`retries`](RestClientBuilder::retries)), and never after an answer has been returned. A `GET`, `PUT` or
/// `DELETE`, and any request that is [`idempotent`](RestRequest::idempotent) or has a [`key`](RestRequest::key), is sent again after a
/// lost connection, a time limit, 408, 425, 429, 502, 503 and 504. Any other request is so only where nothing was sent, and after 425 and
/// 429, with which a server refuses a request before it processes it. A `Retry-After` is waited for. A body of more than 64 KiB gets one
/// attempt unless the request [asks](RestRequest::retry) for more, and a body that streams always does.
///
/// # Rate limits
///
/// After 429 or 503 with `Retry-After`, and after an answer that has nothing left of a limit and states the time of its reset
/// (`RateLimit`, `X-RateLimit-Remaining`, and the fields of many models), all requests of the client wait for that time, at most
/// [`max_retry_after`](RestClientBuilder::max_retry_after). A request whose deadline is before that fails at once with `rate_limited`.
///
/// # Redirects
///
/// At most five are followed within the origin of the URL: those of `GET`, and for other methods 307 and 308. See
/// [`follow_elsewhere`](RestClientBuilder::follow_elsewhere) for other origins.
#[derive(Clone)]
pub struct RestClient(Arc<Inner>);

/// The methods of requests.
const METHODS: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

struct Inner {
    /// The name of the client with each method.
    contracts: [ContractRef; METHODS.len()],
    name: Arc<str>,
    base: BaseUrl,
    base_uri: Uri,
    exchanger: Exchanger,
    /// For other origins.
    exchanger_elsewhere: Exchanger,
    protection: Protection,
    rate: Mutex<RateGate>,
    max_answer: usize,
    within: Duration,
    follow_elsewhere: bool,
    /// Secrets of requests may be sent.
    may_send_secrets: bool,
    secrets: Secrets,
}

impl RestClient {
    /// Returns a builder of a client for the API below a URL.
    pub fn builder(url: impl Into<String>) -> RestClientBuilder {
        RestClientBuilder {
            url: url.into(),
            name: None,
            headers: Vec::new(),
            within: Duration::from_secs(30),
            cleartext: false,
            follow_elsewhere: false,
            requests: Requests::default(),
            bus: None,
        }
    }

    /// Returns a `GET` request for a path below the URL, such as `files/1`. Characters that no path has are escaped; a path that leads out
    /// of the URL fails when it is sent.
    pub fn get(&self, path: &str) -> RestRequest {
        RestRequest::new(self, 0, path)
    }

    /// Returns a `POST` request: see [`get`](Self::get).
    pub fn post(&self, path: &str) -> RestRequest {
        RestRequest::new(self, 1, path)
    }

    /// Returns a `PUT` request: see [`get`](Self::get).
    pub fn put(&self, path: &str) -> RestRequest {
        RestRequest::new(self, 2, path)
    }

    /// Returns a `PATCH` request: see [`get`](Self::get).
    pub fn patch(&self, path: &str) -> RestRequest {
        RestRequest::new(self, 3, path)
    }

    /// Returns a `DELETE` request: see [`get`](Self::get).
    pub fn delete(&self, path: &str) -> RestRequest {
        RestRequest::new(self, 4, path)
    }
}

impl fmt::Debug for RestClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { name, base, .. } = &*self.0;
        f.debug_struct("RestClient").field("name", name).field("url", base).finish_non_exhaustive()
    }
}

/// Builds a [`RestClient`]: see [`RestClient::builder`].
#[must_use = "a builder does nothing until it builds"]
pub struct RestClientBuilder {
    url: String,
    name: Option<String>,
    headers: Vec<Credential>,
    within: Duration,
    cleartext: bool,
    follow_elsewhere: bool,
    requests: Requests,
    bus: Option<Arc<dyn EventBus>>,
}

/// A header field with a secret.
struct Credential {
    name: String,
    /// What precedes the secret.
    scheme: &'static str,
    secret: SecretString,
}

impl RestClientBuilder {
    /// Sets the name of the service in errors, metrics and spans: lower-case letters, digits and dashes, as the id of an arm. By default it
    /// is made of the host of the URL: `memory-example` for `memory.example`, and `service` for an address.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sends a token with each request: `Authorization: Bearer …`.
    pub fn bearer(mut self, token: impl Into<SecretString>) -> Self {
        let (name, secret) = (header::AUTHORIZATION.as_str().to_owned(), token.into());
        self.headers.push(Credential { name, scheme: "Bearer ", secret });
        self
    }

    /// Sends a header field with each request, such as `x-api-key`. Its value is treated as a secret, which is in no log and error.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<SecretString>) -> Self {
        self.headers.push(Credential { name: name.into(), scheme: "", secret: value.into() });
        self
    }

    /// Sets the time for all attempts of a request together, with the waits between them. For an answer that
    /// [streams](RestRequest::stream) it is the time until the answer begins. Default 30 s, at most a year.
    pub fn within(mut self, time: Duration) -> Self {
        self.within = time;
        self
    }

    /// Allows header fields with secrets to be sent in cleartext to another machine, for networks that encrypt connections.
    pub fn cleartext(mut self) -> Self {
        self.cleartext = true;
        self
    }

    /// Follows redirects to other origins as well, for requests that only read. They are sent there without credentials, header fields and
    /// body, and do not pass the [layers](Self::request_layer), which could add such. A redirect from `https` to `http` is never followed.
    pub fn follow_elsewhere(mut self) -> Self {
        self.follow_elsewhere = true;
        self
    }

    /// Publishes on this bus each opening and closing of the circuit breaker, as `circuit.opened` and `circuit.closed`. The `arm_id` of
    /// these events is the name of the client.
    pub fn bus(mut self, bus: impl EventBus) -> Self {
        self.bus = Some(Arc::new(bus));
        self
    }

    /// Builds the client. The first request opens the first connection.
    ///
    /// # Errors
    /// A setting or the URL is invalid, or secrets would be sent in cleartext to another machine.
    pub fn build(self) -> Result<RestClient, ConfigError> {
        let parsed = BaseUrl::parse(&self.url);
        let base = parsed.map_err(|problem| ConfigError::new("url", problem))?;
        let base_uri: Uri = base.as_str().parse().map_err(|_| ConfigError::new("url", "is not a URL"))?;
        let name = self.name.unwrap_or_else(|| named_by(base_uri.host().unwrap_or_default()));
        let contracts = contracts(&name).ok_or_else(|| {
            let words = "is not a name of at most 40 lower-case letters, digits and dashes";
            ConfigError::new("name", words)
        })?;
        within("within", SHORTEST, self.within, YEAR)?;
        let fields = fields(&self.headers)?;
        let may_send_secrets = self.cleartext || self.requests.connector.is_some() || base.is_confidential();
        if !fields.is_empty() && !may_send_secrets {
            return Err(ConfigError::new("url", EXPOSED));
        }
        let mut secrets = Secrets::default();
        self.headers.iter().for_each(|credential| secrets.add(&credential.secret));
        let (base, name): (_, Arc<str>) = (base.with_fields(fields), name.into());
        let config = &self.requests.config;
        let protection = Protection::new(config, (&name, base.shared()), self.bus.as_ref());
        let (max_answer, exchanger) = (config.max_answer, self.requests.build()?);
        let inner = Inner {
            contracts,
            protection,
            max_answer,
            exchanger_elsewhere: exchanger.without_layers(),
            exchanger,
            rate: Mutex::default(),
            within: self.within,
            follow_elsewhere: self.follow_elsewhere,
            may_send_secrets,
            secrets,
            name,
            base,
            base_uri,
        };
        Ok(RestClient(Arc::new(inner)))
    }
}

request_setters!(RestClientBuilder);

impl fmt::Debug for RestClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No URL: it is not checked yet for credentials.
        f.debug_struct("RestClientBuilder")
            .field("name", &self.name)
            .field("config", &self.requests.config)
            .finish_non_exhaustive()
    }
}

const EXPOSED: &str = "is on another machine, to which secrets would be sent in cleartext: use https, or, if the network encrypts \
                       connections, set `cleartext()`";

const MOST_NAME: usize = 40;

/// The name of a service by its host.
fn named_by(host: &str) -> String {
    let name: String = host.to_ascii_lowercase().replace(['.', '_'], "-").chars().take(MOST_NAME).collect();
    let name = name.trim_end_matches('-');
    if is_arm_id(name) { name.to_owned() } else { "service".to_owned() }
}

/// The names of the requests of each method, in place of contracts.
fn contracts(name: &str) -> Option<[ContractRef; METHODS.len()]> {
    if !is_arm_id(name) || name.len() > MOST_NAME {
        return None;
    }
    let named = |method: Method| format!("{name}.{}", method.as_str().to_ascii_lowercase());
    let contracts: Vec<_> =
        METHODS.into_iter().filter_map(|method| ContractRef::new(named(method), 1).ok()).collect();
    contracts.try_into().ok()
}

/// # Errors
/// The setting is the header.
fn fields(headers: &[Credential]) -> Result<Fields, ConfigError> {
    let mut fields = Fields::new();
    for Credential { name, scheme, secret } in headers {
        let refused = |problem: &'static str| ConfigError::new(format!("header {name}"), problem);
        let value = format!("{scheme}{}", secret.expose_secret());
        let (name, value) = field(name, &value).map_err(refused)?;
        if is_own(&name) {
            return Err(refused("is one that the client sets"));
        }
        if fields.iter().any(|(known, _)| *known == name) {
            return Err(refused("is set twice"));
        }
        fields.push((name, value));
    }
    Ok(fields)
}

/// Whether the client sets the field itself, or cannot read the answers that it asks for.
fn is_own(name: &HeaderName) -> bool {
    OWN.contains(name) || *name == header::ACCEPT_ENCODING
}

/// # Errors
/// The problem of the field, without its value.
fn field(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), &'static str> {
    let name: HeaderName = name.parse().map_err(|_| "is not the name of a header field")?;
    let mut value = HeaderValue::try_from(value).map_err(|_| "has a malformed value")?;
    value.set_sensitive(true);
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_by_its_host() {
        for (host, name) in [
            ("memory.example", "memory-example"),
            ("API.OpenAI.com", "api-openai-com"),
            ("127.0.0.1", "service"),
            ("[::1]", "service"),
            ("localhost", "localhost"),
            ("a_b", "a-b"),
        ] {
            assert_eq!(named_by(host), name);
            assert!(contracts(name).is_some());
        }
        assert!(named_by(&"x".repeat(100)).len() <= MOST_NAME);
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let build = |url: &str| RestClient::builder(url);
        for (builder, setting) in [
            (build("memory"), "url"),
            (build("http://me:secret@memory"), "url"),
            (build("http://memory?x=1"), "url"),
            (build("http://memory.example").bearer("secret"), "url"),
            (build("http://memory.example").header("x-api-key", "secret"), "url"),
            (build("http://localhost").header("x api", "secret"), "header x api"),
            (build("http://localhost").header("x-api-key", "sec\nret"), "header x-api-key"),
            (build("http://localhost").header("host", "x"), "header host"),
            (build("http://localhost").header("Accept-Encoding", "gzip"), "header Accept-Encoding"),
            (build("http://localhost").bearer("a").bearer("b"), "header authorization"),
            (build("http://localhost").name("My Memory"), "name"),
            (build("http://localhost").name("a".repeat(41)), "name"),
            (build("http://localhost").within(Duration::ZERO), "within"),
            (build("http://localhost").max_answer(0), "max_answer"),
        ] {
            let error = builder.build().unwrap_err();
            assert_eq!(error.setting(), setting);
            assert!(
                !error.to_string().contains("secret would") && !format!("{error:?}").contains("sec\nret")
            );
        }
        build("http://memory.example").bearer("secret").cleartext().build().unwrap();
        build("http://127.0.0.1:1").bearer("secret").build().unwrap();
        build("http://memory.example").build().unwrap();
    }
}
