//! The circuit breakers of endpoints: their changes are logged, and published on a bus.

use std::{sync::Arc, time::Duration};

use octollm_core::{
    __private::machines::{BreakerLimits, Circuit},
    bus::EventBus,
    event::Event,
    resilience::BreakerState,
};
use serde_json::json;
use tokio::{runtime::Handle, time::timeout};

/// The breaker of an endpoint. Its openings and closings are logged, and published on a bus with a source.
pub(super) fn circuit(
    limits: BreakerLimits,
    (arm, endpoint): (Arc<str>, Arc<str>),
    bus: Option<(&Arc<dyn EventBus>, &Arc<str>)>,
) -> Circuit {
    let bus = bus.map(|(bus, source)| (bus.clone(), source.clone()));
    let name = Some((arm.clone(), endpoint.clone()));
    let changed = move |state| {
        let retry_after = match state {
            BreakerState::Open { retry_after } => {
                tracing::warn!(%arm, %endpoint, ?retry_after, "a circuit breaker has opened");
                Some(retry_after)
            }
            BreakerState::Closed => {
                tracing::info!(%arm, %endpoint, "a circuit breaker has closed");
                None
            }
            BreakerState::HalfOpen => return,
        };
        if let (Some((bus, source)), Ok(runtime)) = (&bus, Handle::try_current()) {
            runtime.spawn(publish((bus.clone(), source.clone()), arm.clone(), endpoint.clone(), retry_after));
        }
    };
    Circuit::new(limits, name, Some(Arc::new(changed)))
}

/// Publishes that a breaker has opened, or closed where there is nothing to wait for.
async fn publish(
    (bus, source): (Arc<dyn EventBus>, Arc<str>),
    arm: Arc<str>,
    endpoint: Arc<str>,
    retry_after: Option<Duration>,
) {
    let milliseconds = retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
    let data = json!({ "arm_id": arm, "endpoint": endpoint, "retry_after_ms": milliseconds });
    let event_type = if retry_after.is_some() { "circuit.opened" } else { "circuit.closed" };
    let published = match Event::new(event_type, &*source, data) {
        Ok(event) => timeout(PUBLISH, bus.publish(event.with_subject(&*arm))).await,
        Err(error) => {
            tracing::error!(%error, "event cannot be written");
            return;
        }
    };
    match published {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "a change of a circuit breaker could not be published"),
        Err(_) => tracing::warn!("a change of a circuit breaker could not be published in time"),
    }
}

/// Source of the events of a client without a name.
pub(super) const CLIENT: &str = "client";

/// Time limit on publishing an event.
const PUBLISH: Duration = Duration::from_secs(1);
