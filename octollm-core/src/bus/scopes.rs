//! A bus as a caller may use it: the scopes of channels.

use std::sync::Arc;

use async_trait::async_trait;

use super::{BusError, Capability, EventBus, Overflow, Subscription};
use crate::{
    context::Context,
    error::Failure,
    event::{Channel, Event, Pattern},
    parts::Caller,
};

/// The scope of patterns that match channels of any entity.
const EVERY_ENTITY: &str = "events:admin";

impl Context {
    /// Returns the bus with the rights of the caller, for an arm that publishes or subscribes on behalf of its caller.
    ///
    /// The channel `events:task:completed` needs the scope `events.task:publish` or `events.task:subscribe`. A pattern with `*` as
    /// domain or entity needs `events:admin`. Each operation checks the scopes of the caller, and returns [`BusError::Denied`]
    /// before it reaches the bus where one is missing. A caller that is not checked has every right.
    ///
    /// ```
    /// use octollm_core::{Context, bus::{EventBus, MemoryBus}, event::Event, parts::{Caller, ContextParts}};
    /// # use std::sync::Arc;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let bus = MemoryBus::new();
    /// # let mut parts = ContextParts::new();
    /// # parts.caller = Caller::known("ann", ["events.report:publish"]);
    /// # let cx = Context::from_parts(parts, Arc::new(()));
    /// // `cx` is the context of a caller with the scope `events.report:publish`.
    /// let bus = cx.bus(&bus);
    /// bus.publish(Event::new("report.written", "scribe", "done")?).await?;
    /// assert!(bus.publish(Event::new("task.completed", "scribe", "done")?).await.is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn bus<B: EventBus + Clone>(&self, bus: &B) -> impl EventBus + Clone + use<B> {
        CallersBus { bus: bus.clone(), caller: self.caller().clone() }
    }
}

/// A bus on which each operation needs a scope.
#[derive(Clone)]
struct CallersBus<B> {
    bus: B,
    caller: Caller,
}

impl<B> CallersBus<B> {
    fn may_publish(&self, channel: &Channel) -> Result<(), BusError> {
        self.may(&format!("{}.{}:publish", channel.domain(), channel.entity()))
    }

    fn may_subscribe(&self, pattern: &Pattern) -> Result<(), BusError> {
        for alternative in pattern.alternatives() {
            let mut segments = alternative.split(':');
            match (segments.next(), segments.next()) {
                (Some(domain), Some(entity)) if domain != "*" && entity != "*" => {
                    self.may(&format!("{domain}.{entity}:subscribe"))?;
                }
                _ => self.may(EVERY_ENTITY)?,
            }
        }
        Ok(())
    }

    fn may(&self, scope: &str) -> Result<(), BusError> {
        self.caller.may(scope).map_err(BusError::denied)
    }
}

#[async_trait]
impl<B: EventBus> EventBus for CallersBus<B> {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        self.may_publish(event.channel())?;
        self.bus.publish(event).await
    }

    async fn subscribe(&self, pattern: Pattern, overflow: Overflow) -> Result<Subscription, BusError> {
        self.may_subscribe(&pattern)?;
        self.bus.subscribe(pattern, overflow).await
    }

    fn capabilities(&self) -> &[Capability] {
        self.bus.capabilities()
    }

    fn max_event_bytes(&self) -> usize {
        self.bus.max_event_bytes()
    }

    async fn publish_all(&self, events: Vec<Event>) -> Vec<Result<(), BusError>> {
        let denied: Vec<_> = events.iter().map(|event| self.may_publish(event.channel()).err()).collect();
        let allowed = events.into_iter().zip(&denied).filter(|(_, denied)| denied.is_none());
        let mut published = self.bus.publish_all(allowed.map(|(event, _)| event).collect()).await.into_iter();
        let result = |denied: Option<BusError>| match denied {
            Some(error) => Err(error),
            // The bus returns a result for each event.
            None => published.next().unwrap_or(Err(BusError::Unavailable { source: None })),
        };
        denied.into_iter().map(result).collect()
    }
}

impl BusError {
    fn denied(source: Failure) -> Self {
        Self::Denied { source: Arc::new(source) }
    }
}
