//! A bus behind an `Arc` is the bus.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{
    BusError, Capabilities, ConsumeOptions, Consumer, Counts, DeadLetter, DurableBus, EventBus, GroupStatus,
    Overflow, Subscription,
};
use crate::event::{Event, Patterns};

#[async_trait]
impl<B: EventBus + ?Sized> EventBus for Arc<B> {
    async fn publish(&self, event: Event) -> Result<(), BusError> {
        (**self).publish(event).await
    }

    async fn subscribe_any(&self, patterns: Patterns, overflow: Overflow) -> Result<Subscription, BusError> {
        (**self).subscribe_any(patterns, overflow).await
    }

    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn counts(&self) -> Counts {
        (**self).counts()
    }

    async fn publish_all(&self, events: Vec<Event>) -> Vec<Result<(), BusError>> {
        (**self).publish_all(events).await
    }

    async fn publish_after(&self, event: Event, delay: Duration) -> Result<(), BusError> {
        (**self).publish_after(event, delay).await
    }

    async fn cancel_publish(&self, event_id: &str) -> Result<bool, BusError> {
        (**self).cancel_publish(event_id).await
    }
}

#[async_trait]
impl<B: DurableBus + ?Sized> DurableBus for Arc<B> {
    async fn consume_any(
        &self,
        group: &str,
        patterns: Patterns,
        options: ConsumeOptions,
    ) -> Result<Consumer, BusError> {
        (**self).consume_any(group, patterns, options).await
    }

    async fn group(&self, group: &str) -> Result<GroupStatus, BusError> {
        (**self).group(group).await
    }

    async fn remove_group(&self, group: &str) -> Result<bool, BusError> {
        (**self).remove_group(group).await
    }

    async fn dead_letters(
        &self,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BusError> {
        (**self).dead_letters(group, after, limit).await
    }

    async fn replay(&self, group: &str, entry: &str) -> Result<(), BusError> {
        (**self).replay(group, entry).await
    }
}
