//! Claims: what a consumer takes from its group.

use std::{sync::Arc, time::Duration};

use octollm_core::{
    bus::{BusError, ConsumeOptions, FailedAttempt, Gap, Nack},
    event::Event,
};
use tokio::time::{Instant, sleep};

use super::{
    entry::fields,
    member::{INTERVAL, Inner, Item, LIFE, Receipt},
    scripts::{CLAIM_SCRIPT, of_group},
};
use crate::redis::{
    connection::pause,
    error::RedisError,
    reply::Reply,
    values::{items, millis, number, text},
};

/// Events that were claimed and are not asked for are given back after this time, or a third of the lease.
const HOLD: Duration = Duration::from_millis(500);

/// A claim that is to be made.
pub(super) struct Claim {
    pub(super) number: u64,
    pub(super) most: usize,
    /// Whether it is a sign of life too.
    pub(super) lives: bool,
    /// Whether the answer to the one before, of the same number, may have been lost.
    pub(super) is_repeated: bool,
}

impl Inner {
    fn token(&self, claim: u64) -> String {
        format!("{}:{claim}", self.name)
    }

    async fn claim(&self, claim: &Claim) -> Result<Reply, RedisError> {
        let ConsumeOptions { lease, max_attempts, .. } = self.options;
        let mut call = of_group(&CLAIM_SCRIPT, &self.shared.keys, &self.group);
        call.arg(self.token(claim.number)).number(claim.most).number(millis(lease)).number(max_attempts);
        call.number(self.shared.dead_letters).arg(self.pattern.to_string()).arg(&self.name);
        call.number(if claim.lives { millis(LIFE) } else { 0 });
        call.arg(if claim.is_repeated { "1" } else { "" }).arg(&self.state().data);
        self.shared.commands.invoke(&call).await
    }

    /// What happens to a delivery.
    pub(super) fn act(&self, receipt: &Receipt, outcome: Result<(), Nack>) -> Act {
        match outcome {
            Ok(()) | Err(Nack::Drop) => Act::Ack,
            Err(Nack::Release) => Act::Release,
            Err(Nack::DeadLetter { reason }) => Act::Dead(reason),
            Err(Nack::Retry { after, reason }) => {
                let reason = reason.unwrap_or_else(|| FailedAttempt::REFUSED.to_owned());
                if receipt.attempt >= self.options.max_attempts {
                    return Act::Last(reason);
                }
                Act::Retry(after.unwrap_or_else(|| self.options.backoff(receipt.attempt)), reason)
            }
            Err(_) => Act::Release,
        }
    }

    /// The events of a claim, and what is settled at once: expired events, and what cannot be read.
    fn items(&self, claim: u64, claimed: Reply, until: Instant) -> (Vec<Item>, Vec<(Receipt, Act)>) {
        let token: Arc<str> = self.token(claim).into();
        let (mut found, mut settled) = (Vec::new(), Vec::new());
        for one in items(claimed) {
            let Ok([id, attempt, values]) = <[Reply; 3]>::try_from(items(one)) else { continue };
            let (id, values): (Arc<str>, _) = (text(id).into(), fields(values));
            let attempt = u32::try_from(number(&attempt)).unwrap_or(u32::MAX);
            let receipt = |event: &str| Receipt {
                id: id.clone(),
                token: token.clone(),
                event_id: event.into(),
                attempt,
            };
            match self.shared.encoding.from_fields(values.iter().map(|(name, value)| (name, value))) {
                // A dead letter that somebody replays is delivered however old it is.
                Ok(event) if is_expired(&event) && !id.starts_with("r:") => {
                    settled.push((receipt(event.id()), Act::Expired));
                }
                Ok(event) => {
                    let event = if id.starts_with("r:") { event.without_expiry() } else { event };
                    self.state().held.insert(id.clone(), until);
                    let receipt = receipt(event.id());
                    found.push((event, attempt, receipt));
                }
                Err(error) => settled.push((receipt(""), Act::Dead(error.to_string()))),
            }
        }
        (found, settled)
    }

    /// The group is not there, or is that of other data: it was removed, or the server has lost it.
    async fn rejoin(&self) -> Result<Gap, BusError> {
        let known = self.state().data.clone();
        let joined = self.shared.join(&self.group, &self.pattern, true, &self.name, &known).await?;
        self.state().data = joined.data;
        Ok(Gap::GroupRecreated)
    }

    /// Makes a claim.
    async fn claimed(&self, claim: &Claim) -> Claimed {
        let until = Instant::now() + self.options.lease;
        let mut claimed = Claimed::default();
        match self.claim(claim).await {
            Ok(Reply::Other) => match self.rejoin().await {
                Ok(recreated) => claimed.gap = Some(recreated),
                Err(error) if error.retryable() => claimed.failed = true,
                Err(error) => claimed.ended = Some(error),
            },
            Ok(answer) => {
                let Ok([events, gone, wait]) = <[Reply; 3]>::try_from(items(answer)) else { return claimed };
                (claimed.found, claimed.settled) = self.items(claim.number, events, until);
                let gone: Vec<_> = items(gone).into_iter().map(text).collect();
                if !gone.is_empty() {
                    let event_ids = gone.into_iter().filter(|id| !id.is_empty()).collect();
                    claimed.gap = Some(Gap::Trimmed { event_ids });
                } else if claimed.found.is_empty() && claimed.settled.is_empty() && number(&wait) != 0 {
                    let wait = u64::try_from(number(&wait)).map(Duration::from_millis);
                    claimed.idle = Some(wait.map_or(INTERVAL, |wait| wait.min(INTERVAL)));
                }
            }
            Err(error) => {
                claimed.failed = true;
                if !claim.is_repeated {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        group = self.group,
                        "events not claimed from Redis"
                    );
                }
            }
        }
        claimed
    }
}

/// What a claim has found.
#[derive(Default)]
struct Claimed {
    found: Vec<Item>,
    /// What is settled at once.
    settled: Vec<(Receipt, Act)>,
    gap: Option<Gap>,
    ended: Option<BusError>,
    /// How long there is nothing more, where nothing was found.
    idle: Option<Duration>,
    failed: bool,
}

/// Claims events for a member. It is a task of its own, so that no event is lost where nobody waits for it any more.
pub(super) async fn run(inner: Arc<Inner>, claim: Claim) {
    let Claimed { found, settled, gap, ended, idle, failed } = inner.claimed(&claim).await;
    let (has_found, count) = (!found.is_empty(), found.len() + settled.len());
    let has_left = {
        let mut state = inner.state();
        state.ready.extend(found.into_iter().map(|item| (claim.number, item)));
        state.gaps.extend(gap);
        (state.is_claiming, state.is_busy, state.idle) = (false, has_found, idle);
        state.has_more = count == claim.most;
        state.failures = if failed { state.failures.saturating_add(1) } else { 0 };
        if failed {
            state.idle = Some(pause(state.failures).min(INTERVAL));
        }
        if let Some(ended) = ended {
            state.ended.get_or_insert(ended);
        }
        state.has_left
    };
    inner.wake.notify_waiters();
    if !settled.is_empty() {
        drop(inner.settle(settled).await);
    }
    if has_left {
        return inner.give_back(None);
    }
    if has_found {
        sleep(HOLD.min(inner.options.lease / 3)).await;
        inner.give_back(Some(claim.number));
    }
}

/// What is done to a delivery.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Act {
    Ack,
    Expired,
    Release,
    Retry(Duration, String),
    /// A dead letter, because the last attempt failed for this reason.
    Last(String),
    Dead(String),
    Extend(Duration),
}

impl Act {
    pub(super) fn parts(&self) -> (&'static str, String) {
        match self {
            Self::Ack => ("ack", String::new()),
            Self::Expired => ("expired", String::new()),
            Self::Release => ("release", String::new()),
            Self::Retry(delay, reason) => ("retry", format!("{} {reason}", millis(*delay))),
            Self::Last(reason) => ("last", reason.clone()),
            Self::Dead(reason) => ("dead", reason.clone()),
            Self::Extend(time) => ("extend", millis(*time).to_string()),
        }
    }
}

fn is_expired(event: &Event) -> bool {
    event.expires_at().is_some_and(|at| at <= jiff::Timestamp::now())
}
