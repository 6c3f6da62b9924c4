//! How an arm registers: what it sends, by whom, and when again.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use octollm_core::{
    card::ArmCard,
    contract::ContractCard,
    error::{ConfigError, ErrorKind, Failure},
};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::Value;

use super::book::LIFETIMES;
#[cfg(feature = "tokens")]
use crate::token::{SigningKey, proof};

/// Carries the announcements of an arm to an orchestrator. An `OrchestratorClient` does.
#[async_trait]
pub trait Announce: Send + Sync + 'static {
    /// Sends an announcement, and returns the time for which the registration holds.
    ///
    /// # Errors
    /// The orchestrator refused it, or cannot be reached.
    ///
    /// # Cancel safety
    /// The arm may or may not be registered when the future is dropped.
    async fn announce(&self, announcement: &Announcement) -> Result<Duration, Failure>;

    /// The URL of the orchestrator, for the log.
    fn at(&self) -> &str;
}

#[async_trait]
impl<A: Announce + ?Sized> Announce for Arc<A> {
    async fn announce(&self, announcement: &Announcement) -> Result<Duration, Failure> {
        (**self).announce(announcement).await
    }

    fn at(&self) -> &str {
        (**self).at()
    }
}

/// One announcement of an arm: the body of `POST /arms/register`, the scopes that it needs, and its proof.
pub struct Announcement {
    card: ArmCard,
    scopes: Vec<String>,
    body: Bytes,
    #[cfg(feature = "tokens")]
    key: Option<SigningKey>,
}

/// The body of a registration.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    /// The card of the arm, with its endpoint. Members that are not known are ignored, as wherever a card is read.
    #[serde(deserialize_with = "card")]
    pub(crate) card: ArmCard,
    /// Seconds for which the registration is to hold: 5 to 300, or 0 to end it. By default the registry decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lifetime_s: Option<u64>,
}

fn card<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ArmCard, D::Error> {
    serde_json::from_value(Value::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// The answer to a registration.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub(crate) struct Registered {
    pub(crate) arm_id: String,
    pub(crate) endpoint: String,
    /// Seconds for which the registration holds.
    pub(crate) lifetime_s: u64,
}

/// The scope that an arm needs to register.
pub(crate) fn register_scope(arm: &str) -> String {
    format!("arms.{arm}:register")
}

/// The scope that an arm needs to serve a contract. `None` where its name has no entity.
pub(crate) fn serve_scope(contract: &ContractCard) -> Option<String> {
    contract.name.rsplit_once('.').map(|(entity, _)| format!("{entity}:serve"))
}

/// The scopes that an arm needs to register this card.
pub(crate) fn scopes_of(card: &ArmCard) -> Vec<String> {
    let mut scopes = vec![register_scope(&card.arm_id)];
    scopes.extend(card.contracts.iter().filter_map(serve_scope));
    scopes.sort_unstable();
    scopes.dedup();
    scopes
}

impl Announcement {
    /// `lifetime` is zero for an arm that leaves.
    ///
    /// # Errors
    /// The card cannot be written as JSON.
    pub(crate) fn new(
        card: ArmCard,
        lifetime: Duration,
        #[cfg(feature = "tokens")] key: Option<SigningKey>,
    ) -> Result<Self, ConfigError> {
        let scopes = scopes_of(&card);
        let request = Request { card, lifetime_s: Some(lifetime.as_secs()) };
        let body = serde_json::to_vec(&request).map_err(|source| {
            ConfigError::new("register", "has a card that is not JSON").with_source(source)
        })?;
        Ok(Self {
            card: request.card,
            scopes,
            body: body.into(),
            #[cfg(feature = "tokens")]
            key,
        })
    }

    /// The card of the arm.
    pub fn card(&self) -> &ArmCard {
        &self.card
    }

    /// The scopes that the request needs.
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }

    /// The body of the request.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Signs the request for an orchestrator of this id: the value of its header field `Octollm-Proof`. Each proof is used once.
    /// `None` where the arm has no key.
    pub fn proof(&self, audience: &str) -> Option<String> {
        #[cfg(feature = "tokens")]
        if let Some(key) = &self.key {
            let now = octollm_core::__private::now().as_second();
            return proof::sign(key, &self.card.arm_id, audience, &self.body, now);
        }
        let _ = audience;
        None
    }
}

impl fmt::Debug for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Announcement").field("arm", &self.card.arm_id).finish_non_exhaustive()
    }
}

/// When an arm announces itself again.
#[derive(Debug, Default)]
pub(crate) struct Heartbeats {
    /// Failed announcements in a row.
    failures: u32,
    /// What these failed with.
    kinds: Vec<ErrorKind>,
}

/// Wait after the first failure; each further one waits twice as long.
const BACKOFF: Duration = Duration::from_millis(500);
/// Longest wait after a failure that can pass by itself.
const LONGEST: Duration = Duration::from_secs(10);
/// Wait after a refusal, which ends when somebody changes a setting.
const REFUSED: Duration = Duration::from_secs(30);
/// Longest wait that an orchestrator can ask for.
const LONGEST_HINT: Duration = Duration::from_secs(60);

impl Heartbeats {
    /// The wait before the next announcement, where `random` is from 0 to 1.
    ///
    /// A registration is renewed at a third of its lifetime, so that two renewals may fail. Waits differ by a tenth, so that arms that
    /// were started together do not stay together.
    pub(crate) fn wait(&mut self, outcome: &Result<Duration, Failure>, random: f64) -> Duration {
        let random = random.clamp(0.0, 1.0);
        let failure = match outcome {
            Ok(lifetime) => {
                *self = Self::default();
                let (least, most) = LIFETIMES;
                return ((*lifetime).clamp(least, most) / 3).mul_f64(0.9 + 0.2 * random);
            }
            Err(failure) => failure,
        };
        let longest = BACKOFF.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let longest = if failure.retryable { longest } else { REFUSED };
        let hint = failure.retry_after.unwrap_or_default().min(LONGEST_HINT);
        longest.mul_f64(0.5 + 0.5 * random).max(hint)
    }

    /// Whether a failure is of another kind than those since the last success: one that is away can refuse the arm when it is back.
    pub(crate) fn is_news(&mut self, failure: &Failure) -> bool {
        let is_news = !self.kinds.contains(&failure.kind);
        if is_news {
            self.kinds.push(failure.kind);
        }
        is_news
    }
}

/// A random number from 0 to 1.
pub(crate) fn random() -> f64 {
    (RandomState::new().hash_one(()) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_registration_is_renewed_at_a_third_of_its_lifetime() {
        let mut heartbeats = Heartbeats::default();
        let thirty = Ok(Duration::from_secs(30));
        assert_eq!(heartbeats.wait(&thirty, 0.0), Duration::from_secs(9));
        assert_eq!(heartbeats.wait(&thirty, 1.0), Duration::from_secs(11));
        // An orchestrator cannot make an arm busy.
        assert!(heartbeats.wait(&Ok(Duration::ZERO), 0.0) > Duration::from_millis(1499));
        assert_eq!(heartbeats.wait(&Ok(Duration::MAX), 1.0), Duration::from_secs(110));
    }

    #[test]
    fn failures_are_repeated_ever_later_and_refusals_slowly() {
        let mut heartbeats = Heartbeats::default();
        let away = Err(Failure::of(ErrorKind::Unreachable));
        let waits: Vec<_> = (0..7).map(|_| heartbeats.wait(&away, 1.0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        heartbeats.wait(&Ok(Duration::from_secs(30)), 0.5);
        assert_eq!(heartbeats.wait(&away, 0.0), Duration::from_millis(250));
        let refused = Err(Failure::of(ErrorKind::Conflict));
        assert_eq!(heartbeats.wait(&refused, 0.0), Duration::from_secs(15));
        let mut busy = Failure::of(ErrorKind::Overloaded);
        busy.retry_after = Some(Duration::from_secs(3600));
        assert_eq!(heartbeats.wait(&Err(busy), 0.0), LONGEST_HINT);
    }

    #[test]
    fn each_kind_of_failure_is_news_once_until_the_arm_is_registered() {
        let mut heartbeats = Heartbeats::default();
        let mut is_news = |kind, is_registered_after| {
            let failure = Failure::of(kind);
            heartbeats.wait(&Err(failure.clone()), 0.5);
            let is_news = heartbeats.is_news(&failure);
            if is_registered_after {
                heartbeats.wait(&Ok(Duration::from_secs(30)), 0.5);
            }
            is_news
        };
        assert!(is_news(ErrorKind::Unreachable, false));
        assert!(!is_news(ErrorKind::Unreachable, false));
        assert!(is_news(ErrorKind::Conflict, false), "it is back, and refuses the arm");
        assert!(!is_news(ErrorKind::Unreachable, false) && !is_news(ErrorKind::Conflict, true));
        assert!(is_news(ErrorKind::Conflict, false));
    }

    proptest! {
        #[test]
        fn every_wait_is_within_its_bounds(
            random in -1.0_f64..2.0, lifetime in 5_u64..300, failures in 0_u32..u32::MAX, retryable: bool,
        ) {
            let mut heartbeats = Heartbeats { failures, kinds: Vec::new() };
            let mut failure = Failure::of(ErrorKind::Unreachable);
            failure.retryable = retryable;
            let wait = heartbeats.wait(&Err(failure), random);
            prop_assert!(wait >= BACKOFF / 2 && wait <= REFUSED);
            let lifetime = Duration::from_secs(lifetime);
            let wait = heartbeats.wait(&Ok(lifetime), random);
            prop_assert!(wait >= lifetime.mul_f64(0.29) && wait <= lifetime.mul_f64(0.37));
        }
    }
}
