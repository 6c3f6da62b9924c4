//! The routes of a registry: arms register themselves, and an administrator clears them.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, StatusCode};
use octollm_core::{
    __private::now,
    bus::EventBus,
    card::ArmCard,
    error::{ConfigError, ErrorKind, Failure},
    id::is_arm_id,
    json,
    parts::Caller,
};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Server,
    routes::{Answer, Endpoint, Inbound, Refusal, RouteTable, Takes},
};
use crate::{
    registry::{Claim, Holder, Place, Registered, Registry, Request, scopes_of},
    wire::names,
};

impl Server {
    /// Sets the registry at which arms register themselves: `POST /arms/register`. It needs an [`orchestrator`](Self::orchestrator),
    /// whose arms follow the [resolver](Registry::resolver) of the registry. `GET /arms` lists these arms with their status, and
    /// `DELETE /arms/{id}` clears one, for callers with the scope `arms:admin`.
    ///
    /// Nobody can register the ids of the server, of the issuers of its tokens, and of the arms in the configuration of the brain.
    ///
    /// Changes of arms are published on the [`bus`](Self::bus) as `arm.registered`, `arm.unavailable` and `arm.recovered`.
    ///
    /// A server that is [open to all](Self::open_to_all) is not built where the registry
    /// [allows](crate::registry::RegistryBuilder::allow) no endpoints by its program.
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = Some(registry);
        self
    }
}

/// Adds the routes of a registry to those of the server with this id.
pub(crate) fn add_registry(
    table: &mut RouteTable,
    registry: Registry,
    (id, names): (&str, TokenNames),
    configured: impl Iterator<Item = String>,
    bus: Option<Arc<dyn EventBus>>,
) -> Result<(), ConfigError> {
    let TokenNames { mut audiences, issuers } = names;
    audiences.push(id.to_owned());
    registry.of_server(id, issuers.into_iter().chain(configured).chain([id.to_owned()]), bus)?;
    table.add(Method::POST, "/arms/register", Register { registry: registry.clone(), audiences })?;
    table.add(Method::DELETE, "/arms/{id}", Clear(registry))
}

/// Names in the tokens of a server.
#[derive(Debug, Default)]
pub(crate) struct TokenNames {
    /// Audiences under which the server is addressed.
    pub(crate) audiences: Vec<String>,
    /// Issuers, whose names no arm can have.
    pub(crate) issuers: Vec<String>,
}

/// `POST /arms/register`
struct Register {
    registry: Registry,
    /// Audiences of the proofs.
    audiences: Vec<String>,
}

#[async_trait]
impl Endpoint for Register {
    fn takes(&self) -> Takes {
        Takes::Json
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        let done = self.register(&inbound);
        let code = done.as_ref().err().map_or("ok", |failure| failure.kind.code());
        self.registry.count(code);
        let (is_new, registered) = done?;
        let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
        Ok(Answer::json(&registered)?.status(status))
    }
}

impl Register {
    fn register(&self, inbound: &Inbound<'_>) -> Result<(bool, Registered), Failure> {
        let Request { mut card, lifetime_s } = json::read_input(&inbound.body)?;
        let caller = &inbound.parts.caller;
        let place = checked(&card)?;
        for scope in scopes_of(&card) {
            caller.may(&scope)?;
        }
        if !self.registry.allows(&place) {
            return Err(invalid("card.endpoint", "is not below a URL that this registry allows"));
        }
        let time = now().as_second();
        let proof = self.proof(&card, inbound, time)?;
        let grant = caller.grant();
        let holder = Holder {
            subject: grant.map(|grant| (grant.issuer.clone(), grant.subject.clone())),
            key: proof.as_ref().map(|(key, ..)| key.clone()),
        };
        card.endpoint = Some(place.to_string());
        let registered = Registered {
            arm_id: card.arm_id.clone(),
            endpoint: place.to_string(),
            lifetime_s: self.registry.lifetime(lifetime_s).as_secs(),
        };
        let lifetime = Duration::from_secs(registered.lifetime_s);
        let proof = proof.map(|(_, id, at)| (id, at));
        // As it is listed, with a comma after it.
        let bytes = Answer::json(&card)?.0.body().whole().map_or(0, Bytes::len) + 1;
        let is_new = self.registry.register(Claim { holder, card, bytes, lifetime, proof, time })?;
        Ok((is_new, registered))
    }

    /// The thumbprint of the key on the card, the id of the proof, and when it was signed. `None` for an arm without a key, where
    /// callers are not checked.
    ///
    /// # Errors
    /// The request is not signed by the key on the card.
    fn proof(
        &self,
        card: &ArmCard,
        inbound: &Inbound<'_>,
        time: i64,
    ) -> Result<Option<(Arc<str>, String, i64)>, Failure> {
        let unproved = |words: String| Failure::new(ErrorKind::Unauthenticated, words).before_execution();
        let Some(jwk) = &card.key else {
            return match inbound.parts.caller {
                Caller::Unchecked => Ok(None),
                _ => Err(unproved("the card has no key: an arm that registers signs its requests".into())),
            };
        };
        let mut fields = inbound.head.headers.get_all(names::PROOF).iter();
        let (field, more) = (fields.next(), fields.next());
        let proof = field.filter(|_| more.is_none()).and_then(|field| field.to_str().ok());
        let proof = proof.ok_or_else(|| {
            unproved("the request has no proof: sign it with the key on the card, in Octollm-Proof".into())
        })?;
        #[cfg(feature = "tokens")]
        {
            let expected = (&*card.arm_id, &*self.audiences);
            let verified = crate::token::proof::verify(proof, jwk, expected, &inbound.body, time);
            let proof = verified.map_err(|problem| unproved(format!("the proof is not valid: {problem}")))?;
            Ok(Some((proof.key, proof.id, proof.issued_at)))
        }
        #[cfg(not(feature = "tokens"))]
        {
            let _ = (jwk, proof, time, &self.audiences);
            let words = "this server cannot verify proofs: it is built without the feature `tokens`";
            Err(Failure::new(ErrorKind::NotImplemented, words).before_execution())
        }
    }
}

/// Most bytes of the id of a process.
const LONGEST_INSTANCE: usize = 128;

/// Checks a card by itself. Returns its endpoint.
fn checked(card: &ArmCard) -> Result<Place, Failure> {
    if !is_arm_id(&card.arm_id) {
        return Err(invalid("card.arm_id", "is not an id of lower-case letters, digits and dashes"));
    }
    if card.contracts.is_empty() {
        return Err(invalid("card.contracts", "is empty: the arm serves nothing that can be read"));
    }
    if card.contracts.iter().any(|contract| contract.reference().is_none()) {
        return Err(invalid("card.contracts", "has a contract whose name or version is not one"));
    }
    if card.instance.as_ref().is_some_and(|instance| instance.len() > LONGEST_INSTANCE) {
        return Err(invalid("card.instance", "is longer than 128 bytes"));
    }
    let endpoint = card.endpoint.as_deref().ok_or_else(|| invalid("card.endpoint", "is missing"))?;
    Place::parse(endpoint).map_err(|problem| invalid("card.endpoint", problem))
}

fn invalid(path: &str, message: &str) -> Failure {
    Failure::invalid(vec![octollm_core::contract::Violation::new(path, message)])
}

/// `DELETE /arms/{id}`
struct Clear(Registry);

/// The answer to `DELETE /arms/{id}`.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Cleared {
    arm_id: String,
    /// The endpoints that were registered.
    endpoints: Vec<String>,
}

#[async_trait]
impl Endpoint for Clear {
    fn takes(&self) -> Takes {
        Takes::Place
    }

    async fn call(&self, inbound: Inbound<'_>) -> Result<Answer, Refusal> {
        inbound.parts.caller.may("arms:admin")?;
        let Some(endpoints) = self.0.clear(inbound.id) else {
            return Err(Failure::new(ErrorKind::NotFound, "no such arm is registered").into());
        };
        let grant = inbound.parts.caller.grant();
        tracing::info!(arm = inbound.id, caller = grant.map(|grant| &*grant.subject), "arm cleared");
        Ok(Answer::json(&Cleared { arm_id: inbound.id.to_owned(), endpoints })?)
    }
}
