//! Putting a client together.

use std::{ffi::OsStr, fmt, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use octollm_core::{
    card::ArmCard,
    contract::{ContractCard, TaskContract},
};
use tower::{Layer, Service};

use super::{
    arms::Arms,
    assembly::Assembly,
    config::ClientConfig,
    config_error::{ConfigError, UrlProblem},
    directory::{ConfiguredArm, Directory},
    endpoint::Endpoint,
    env,
    exchange::Exchange,
    exchange_error::ExchangeError,
    orchestrator_client::OrchestratorClient,
};

impl Arms {
    /// The arms that environment variables name: each `OCTOLLM_ARM_<ID>=http://host:port`, or several URLs separated
    /// by commas. `OCTOLLM_ARM_CODE_REVIEWER` is the arm `code-reviewer`. Without such variables no arm is known.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the variable.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_vars(std::env::vars_os())
    }

    /// As [`from_env`](Self::from_env), from variables that are given.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the variable.
    pub fn from_vars<K: AsRef<OsStr>, V: AsRef<OsStr>>(
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfigError> {
        Self::builder().vars(variables)?.build()
    }

    /// Names the arms one by one.
    pub fn builder() -> ArmsBuilder {
        ArmsBuilder::default()
    }
}

/// Puts [`Arms`] together: see [`Arms::builder`]. Mistakes are told by [`build`](Self::build).
#[must_use = "a builder does nothing until it builds"]
#[derive(Debug, Default)]
pub struct ArmsBuilder {
    arms: Vec<Named>,
    assembly: Assembly,
}

/// An arm with the words that it was given in.
struct Named {
    /// For errors: the variable, or the arm's id.
    name: String,
    id: String,
    urls: Vec<String>,
    serves: Option<ContractCard>,
}

impl ArmsBuilder {
    /// Adds an arm: its id, and its URL, or several of them separated by commas. What it offers is asked of it.
    pub fn arm(self, id: impl Into<String>, urls: impl AsRef<str>) -> Self {
        self.named(id.into(), urls.as_ref(), None)
    }

    /// Adds an arm that serves `C` by its usual path, and is not asked: for services that know nothing of octollm.
    /// One that serves several contracts is added once for each, with the same URLs.
    pub fn arm_serving<C: TaskContract>(self, id: impl Into<String>, urls: impl AsRef<str>) -> Self {
        // Its schemas are what it makes of them.
        let mut card = ContractCard::of::<C>();
        card.fingerprint = String::new();
        self.named(id.into(), urls.as_ref(), Some(card))
    }

    fn named(mut self, id: String, urls: &str, serves: Option<ContractCard>) -> Self {
        let urls = urls.split(',').map(|url| url.trim().to_owned()).collect();
        self.arms.push(Named { name: id.clone(), id, urls, serves });
        self
    }

    /// Adds the arms of these environment variables: each `OCTOLLM_ARM_<ID>=url[,url]`. Others are passed over.
    ///
    /// # Errors
    /// [`ConfigError::NotUtf8`]
    pub fn vars<K: AsRef<OsStr>, V: AsRef<OsStr>>(
        mut self,
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfigError> {
        let found = env::read(variables)?.into_iter();
        self.arms.extend(found.map(|env::ArmVariable { name, arm_id, urls }| Named {
            name,
            id: arm_id,
            urls,
            serves: None,
        }));
        Ok(self)
    }

    /// Sets the limits.
    pub fn config(mut self, config: ClientConfig) -> Self {
        self.assembly.config = config;
        self
    }

    /// Puts a layer around the exchange of each request and its answer: the one added last is the outermost.
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Exchange> + Send + 'static,
        L::Service: Service<Request<Bytes>, Response = Response<Bytes>> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request<Bytes>>>::Error: Into<ExchangeError>,
        <L::Service as Service<Request<Bytes>>>::Future: Send + 'static,
    {
        self.assembly.layer(layer);
        self
    }

    /// Builds the client. Nothing is connected yet: that is done by the first call.
    ///
    /// # Errors
    /// A [`ConfigError`] that names what is wrong.
    pub fn build(self) -> Result<Arms, ConfigError> {
        let time_limit = self.assembly.config.capabilities_timeout;
        let exchanger = self.assembly.build()?;
        let mut arms: Vec<ConfiguredArm> = Vec::new();
        for named in self.arms {
            add(&mut arms, named)?;
        }
        let directory = Directory::new(arms, exchanger.clone(), time_limit);
        Ok(Arms::new(exchanger, Arc::new(directory)))
    }
}

fn add(arms: &mut Vec<ConfiguredArm>, named: Named) -> Result<(), ConfigError> {
    let Named { name, id, urls, serves } = named;
    let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !id.starts_with(|c: char| c.is_ascii_lowercase()) || !id.bytes().all(lower) || id.len() > 128 {
        return Err(ConfigError::BadArmId { name });
    }
    let endpoints = urls
        .iter()
        .map(|url| Endpoint::parse(url))
        .collect::<Result<Vec<_>, UrlProblem>>()
        .map_err(|problem| ConfigError::BadUrl { name: name.clone(), problem })?;
    let Some(known) = arms.iter_mut().find(|arm| *arm.id == *id) else {
        let card = serves.map(|contract| with_contract(ArmCard::new(&*id), contract));
        arms.push(ConfiguredArm { id: id.into(), endpoints, card });
        return Ok(());
    };
    match (&mut known.card, serves) {
        (Some(card), Some(contract)) if known.endpoints == endpoints => {
            *card = with_contract(card.clone(), contract);
            Ok(())
        }
        _ => Err(ConfigError::ArmTwice { name }),
    }
}

fn with_contract(mut card: ArmCard, contract: ContractCard) -> ArmCard {
    if !card.capabilities.contains(&contract.name) {
        card.capabilities.push(contract.name.clone());
    }
    card.contracts.push(contract);
    card
}

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No URLs: nobody has looked yet whether they hold credentials.
        f.write_str(&self.name)
    }
}

impl OrchestratorClient {
    /// A client of the orchestrator, or of the reflex server in front of it, at this URL.
    ///
    /// # Errors
    /// A [`ConfigError`] when the URL leads nowhere.
    pub fn new(url: impl Into<String>) -> Result<Self, ConfigError> {
        Self::builder(url).build()
    }

    /// The same, with limits and layers of its own.
    pub fn builder(url: impl Into<String>) -> OrchestratorClientBuilder {
        OrchestratorClientBuilder { url: url.into(), assembly: Assembly::default() }
    }
}

/// Puts an [`OrchestratorClient`] together: see [`OrchestratorClient::builder`].
#[must_use = "a builder does nothing until it builds"]
pub struct OrchestratorClientBuilder {
    url: String,
    assembly: Assembly,
}

impl OrchestratorClientBuilder {
    /// Sets the limits.
    pub fn config(mut self, config: ClientConfig) -> Self {
        self.assembly.config = config;
        self
    }

    /// Puts a layer around the exchange of each request and its answer: the one added last is the outermost.
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Exchange> + Send + 'static,
        L::Service: Service<Request<Bytes>, Response = Response<Bytes>> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request<Bytes>>>::Error: Into<ExchangeError>,
        <L::Service as Service<Request<Bytes>>>::Future: Send + 'static,
    {
        self.assembly.layer(layer);
        self
    }

    /// Builds the client. Nothing is connected yet.
    ///
    /// # Errors
    /// A [`ConfigError`] that names what is wrong.
    pub fn build(self) -> Result<OrchestratorClient, ConfigError> {
        let bad = |problem| ConfigError::BadUrl { name: "orchestrator".into(), problem };
        let endpoint = Endpoint::parse(&self.url).map_err(bad)?;
        Ok(OrchestratorClient::assemble(endpoint, self.assembly.build()?))
    }
}

impl fmt::Debug for OrchestratorClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrchestratorClientBuilder").field("assembly", &self.assembly).finish_non_exhaustive()
    }
}
