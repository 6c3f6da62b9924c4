//! The card of an arm.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::{
    contract::{ContractCard, ContractRef, lenient},
    id::RequestId,
    parts::is_scope,
};

/// Most scopes that an arm can need.
pub const MAX_NEEDS: usize = 256;

/// An arm's card: who it is, and the contracts it serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[non_exhaustive]
pub struct ArmCard {
    /// `judge`
    pub arm_id: String,
    /// A human-readable name.
    #[serde(default, deserialize_with = "lenient")]
    pub name: String,
    /// Its purpose.
    #[serde(default, deserialize_with = "lenient")]
    pub description: String,
    /// The arm's own version.
    #[serde(default, deserialize_with = "lenient")]
    pub version: String,
    /// The contracts it serves, by name.
    #[serde(default, deserialize_with = "lenient")]
    pub capabilities: Vec<String>,
    /// Id of one run of the process, which differs after each start. `None` where a foreign card has none.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The scopes that it needs for calls of its own, such as `code:validate`. Those of a foreign card that are
    /// [no scopes](crate::parts::is_scope) are left out, and so are all of them where there are more than [`MAX_NEEDS`].
    #[serde(default, deserialize_with = "needs", skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// The public key that verifies what it signs, as a JWK.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub key: Option<Map<String, Value>>,
    /// 1 (cheap) to 5 (expensive).
    #[serde(default = "middle_tier", deserialize_with = "tier")]
    #[schemars(range(min = 1, max = 5))]
    pub cost_tier: u8,
    /// The URL at which it can be reached, as far as it knows.
    #[serde(default, deserialize_with = "lenient")]
    pub endpoint: Option<String>,
    /// Its status.
    #[serde(default, deserialize_with = "lenient")]
    pub status: ArmStatus,
    /// The contracts it serves, in full.
    #[serde(default, deserialize_with = "readable")]
    pub contracts: Vec<ContractCard>,
}

/// A contract that cannot be read is left out: the arm can still be called for the others.
fn readable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ContractCard>, D::Error> {
    let cards: Vec<Value> = lenient(deserializer)?;
    let read = cards.into_iter().filter_map(|card| {
        let read = serde_json::from_value(card).map(ContractCard::completed);
        read.inspect_err(|error| tracing::warn!(%error, "a contract on the card of an arm cannot be read"))
            .ok()
    });
    Ok(read.collect())
}

/// A need that is no scope is left out: the arm can still be given the others. Of too many none is used, rather than some.
fn needs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let listed: Vec<Value> = lenient(deserializer)?;
    if listed.len() > MAX_NEEDS {
        let count = listed.len();
        tracing::warn!(
            count,
            most = MAX_NEEDS,
            "the needs on the card of an arm are too many, and are not used"
        );
        return Ok(Vec::new());
    }
    let scope = |need| match need {
        Value::String(scope) if is_scope(&scope) => Some(scope),
        _ => None,
    };
    Ok(listed.into_iter().filter_map(scope).collect())
}

fn tier<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let tier = lenient(deserializer)?;
    Ok(if (1..=5).contains(&tier) { tier } else { middle_tier() })
}

fn middle_tier() -> u8 {
    3
}

impl ArmCard {
    /// The card of an arm that serves nothing yet.
    pub fn new(arm_id: impl Into<String>) -> Self {
        let arm_id = arm_id.into();
        let mut name = arm_id.clone();
        if let Some(first) = name.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        Self {
            arm_id,
            name,
            description: String::new(),
            version: String::new(),
            instance: None,
            needs: Vec::new(),
            key: None,
            capabilities: Vec::new(),
            cost_tier: middle_tier(),
            endpoint: None,
            status: ArmStatus::default(),
            contracts: Vec::new(),
        }
    }

    /// Sets a new [`instance`](Self::instance): the arm starts in this process.
    #[must_use]
    pub fn started(mut self) -> Self {
        self.instance = Some(RequestId::new().as_str().to_owned());
        self
    }

    /// The card of one contract it serves.
    pub fn contract(&self, contract: &ContractRef) -> Option<&ContractCard> {
        self.contracts.iter().find(|card| card.name == contract.name() && card.version == contract.version())
    }
}

/// The status of an arm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ArmStatus {
    /// It works.
    #[default]
    Healthy,
    /// It accepts no work.
    Unavailable,
    /// It works, with less than its usual quality or speed. A word that this version does not know is read as this.
    #[serde(other)]
    Degraded,
}
