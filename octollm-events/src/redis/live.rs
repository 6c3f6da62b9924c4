//! Subscriptions, which survive the connections that feed them.

use std::sync::Arc;

use octollm_core::{
    bus::{BusError, Gap, Overflow, Subscription, engine::Feed},
    event::{Channel, Pattern},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};

use super::{
    connection::{Connector, pause},
    error::RedisError,
    listener::Listener,
    session::{End, Session},
};
use crate::Encoding;

/// The subscriptions of a bus. They share a connection, except that one under [`Overflow::Block`] has its own: where it has no room, its
/// connection is not read.
pub(super) struct Live {
    requests: mpsc::UnboundedSender<Subscriber>,
    source: Source,
    block_timeout: std::time::Duration,
}

/// Where events come from.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) connector: Arc<Connector>,
    pub(super) encoding: Encoding,
    pub(super) closed: watch::Receiver<bool>,
}

pub(super) struct Subscriber {
    pub(super) names: Vec<Name>,
    pub(super) feed: Feed,
    /// Taken by the first confirmation.
    confirmed: std::sync::Mutex<Option<oneshot::Sender<Result<(), RedisError>>>>,
}

/// What Redis has as one subscription.
pub(super) struct Name {
    pub(super) text: Box<str>,
    pattern: Pattern,
}

impl Live {
    pub(super) fn new(source: Source, block_timeout: std::time::Duration) -> Self {
        let (requests, receiver) = mpsc::unbounded_channel();
        tokio::spawn(Supervisor::new(source.clone(), receiver).run());
        Self { requests, source, block_timeout }
    }

    /// Returns once the server has confirmed.
    pub(super) async fn subscribe(
        &self,
        pattern: &Pattern,
        overflow: Overflow,
    ) -> Result<Subscription, BusError> {
        let (feed, subscription) = Feed::new(overflow, self.block_timeout)?;
        let (confirmed, confirmation) = oneshot::channel();
        let name = |text: &str| text.parse().ok().map(|pattern| Name { text: text.into(), pattern });
        let names = pattern.alternatives().filter_map(name).collect();
        let subscriber = Subscriber { names, feed, confirmed: std::sync::Mutex::new(Some(confirmed)) };
        if overflow == Overflow::Block {
            let (own, requests) = mpsc::unbounded_channel();
            let _ = own.send(subscriber);
            tokio::spawn(Supervisor::new(self.source.clone(), requests).run());
        } else if self.requests.send(subscriber).is_err() {
            return Err(BusError::Closed);
        }
        let limit = self.source.connector.settings.timeout + super::connection::CONNECT_TIMEOUT;
        match timeout(limit, confirmation).await {
            Ok(Ok(Ok(()))) => Ok(subscription),
            Ok(Ok(Err(error))) => Err(error.into()),
            Ok(Err(_)) => Err(BusError::Closed),
            Err(_) => Err(RedisError::TimedOut(limit).into()),
        }
    }
}

impl Subscriber {
    /// Settles the call that waits. Returns `false` where none does, because the subscriber was confirmed before.
    pub(super) fn reply(&self, result: Result<(), RedisError>) -> bool {
        let waiting = self.confirmed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        waiting.map(|waiting| waiting.send(result)).is_some()
    }

    pub(super) fn is_new(&self) -> bool {
        self.confirmed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_some()
    }

    pub(super) fn refuse(&self, error: &RedisError) {
        self.reply(Err(error.clone()));
        self.feed.end(error.clone().into());
    }

    /// Whether it receives what comes by this name: of several that match a channel, by the first one.
    pub(super) fn receives(&self, name: &str, channel: &Channel) -> bool {
        match &self.names[..] {
            [_] => true,
            names => {
                let first = names.iter().find(|name| name.pattern.matches(channel));
                first.is_some_and(|first| &*first.text == name)
            }
        }
    }
}

/// Feeds subscribers from one connection, and replaces it when it is lost.
struct Supervisor {
    source: Source,
    requests: mpsc::UnboundedReceiver<Subscriber>,
    subscribers: Vec<Arc<Subscriber>>,
    failures: u32,
}

impl Supervisor {
    fn new(source: Source, requests: mpsc::UnboundedReceiver<Subscriber>) -> Self {
        Self { source, requests, subscribers: Vec::new(), failures: 0 }
    }

    async fn run(mut self) {
        let mut closed = self.source.closed.clone();
        tokio::select! {
            _ = closed.wait_for(|closed| *closed) => {}
            () = self.supervise() => {}
        }
        for subscriber in self.subscribers {
            subscriber.feed.end(BusError::Closed);
        }
    }

    async fn supervise(&mut self) {
        loop {
            self.forget();
            if self.subscribers.is_empty() {
                match self.requests.recv().await {
                    Some(subscriber) => self.subscribers.push(Arc::new(subscriber)),
                    None => return,
                }
            }
            let lost =
                match Listener::open(&self.source.connector, &self.source.connector.settings.address).await {
                    Ok(listener) => {
                        let mut session = Session::new(listener, self.source.encoding);
                        let end = session.run(&mut self.subscribers, &mut self.requests).await;
                        if session.has_confirmed {
                            self.failures = 0;
                        }
                        match end {
                            End::Closed => return,
                            End::Idle => continue,
                            End::Lost(error) => error,
                            End::Silent => {
                                for subscriber in
                                    self.subscribers.iter().filter(|subscriber| !subscriber.is_new())
                                {
                                    subscriber.feed.gap(Gap::ConnectionLost);
                                }
                                RedisError::TimedOut(2 * self.source.connector.settings.heartbeat)
                            }
                        }
                    }
                    Err(error) => error,
                };
            self.failures = self.failures.saturating_add(1);
            self.wait(lost).await;
        }
    }

    /// Removes subscriptions that have ended.
    fn forget(&mut self) {
        self.subscribers.retain(|subscriber| !subscriber.feed.is_closed());
    }

    /// Waits before the next attempt. Those who subscribe meanwhile receive the error.
    async fn wait(&mut self, error: RedisError) {
        for subscriber in self.subscribers.extract_if(.., |subscriber| subscriber.is_new()) {
            subscriber.refuse(&error);
        }
        self.forget();
        if self.subscribers.is_empty() {
            return;
        }
        if self.failures == 1 {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the connection to Redis was lost: subscriptions reconnect"
            );
        }
        let until = sleep(pause(self.failures));
        tokio::pin!(until);
        loop {
            tokio::select! {
                () = &mut until => return,
                Some(subscriber) = self.requests.recv() => subscriber.refuse(&error),
            }
        }
    }
}
