//! One connection of subscriptions, until it is lost.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use octollm_core::{
    bus::{
        Gap,
        engine::{Feed, deliver},
    },
    event::Channel,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{error::RedisError, listener::Listener, live::Subscriber, reply::Reply};
use crate::Encoding;

/// Why a connection is no longer used.
pub(super) enum End {
    /// The bus is closed, or nobody can subscribe any more.
    Closed,
    /// Nobody subscribes at the moment.
    Idle,
    Lost(RedisError),
    /// The server does not answer.
    Silent,
}

/// What the server still has to answer, in the order of the commands.
enum Awaited {
    Pong,
    /// So many confirmations, or one error.
    Names {
        left: usize,
        subscriber: Option<Arc<Subscriber>>,
        is_last: bool,
    },
}

/// One connection, from its first subscription on.
pub(super) struct Session {
    listener: Listener,
    encoding: Encoding,
    awaited: VecDeque<Awaited>,
    by_name: HashMap<Box<str>, Vec<Arc<Subscriber>>>,
    /// That of the last event, since many are on one channel.
    channel: Option<Channel>,
    pub(super) has_confirmed: bool,
}

impl Session {
    pub(super) fn new(listener: Listener, encoding: Encoding) -> Self {
        Self {
            listener,
            encoding,
            awaited: VecDeque::new(),
            by_name: HashMap::new(),
            channel: None,
            has_confirmed: false,
        }
    }

    pub(super) async fn run(
        &mut self,
        subscribers: &mut Vec<Arc<Subscriber>>,
        requests: &mut mpsc::UnboundedReceiver<Subscriber>,
    ) -> End {
        match self.serve(subscribers, requests).await {
            Ok(end) => end,
            Err(error) => End::Lost(error),
        }
    }

    async fn serve(
        &mut self,
        subscribers: &mut Vec<Arc<Subscriber>>,
        requests: &mut mpsc::UnboundedReceiver<Subscriber>,
    ) -> Result<End, RedisError> {
        for subscriber in subscribers.iter() {
            self.subscribe(subscriber).await?;
        }
        let heartbeat = self.listener.heartbeat();
        let mut ticks = interval_at(Instant::now() + heartbeat, heartbeat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_heard = true;
        // Whether further subscribers can come.
        let mut is_shared = true;
        loop {
            let only = subscribers.first().filter(|_| !is_shared).cloned();
            tokio::select! {
                biased;
                request = requests.recv(), if is_shared => match request {
                    Some(subscriber) => {
                        let subscriber = Arc::new(subscriber);
                        subscribers.push(subscriber.clone());
                        self.subscribe(&subscriber).await?;
                    }
                    None => is_shared = false,
                },
                reply = self.listener.next() => {
                    was_heard = true;
                    self.handle(reply?).await?;
                    while let Some(reply) = self.listener.received()? {
                        self.handle(reply).await?;
                    }
                }
                () = ended(only) => return Ok(End::Closed),
                _ = ticks.tick() => {
                    if !was_heard {
                        return Ok(End::Silent);
                    }
                    was_heard = false;
                    subscribers.retain(|subscriber| !subscriber.feed.is_closed());
                    if subscribers.is_empty() {
                        return Ok(End::Idle);
                    }
                    self.unsubscribe().await?;
                    self.listener.send(&["PING"]).await?;
                    self.awaited.push_back(Awaited::Pong);
                }
            }
        }
    }

    async fn subscribe(&mut self, subscriber: &Arc<Subscriber>) -> Result<(), RedisError> {
        let is_glob = |name: &&str| name.contains('*');
        let (globs, literals): (Vec<_>, Vec<_>) =
            subscriber.names.iter().map(|name| &*name.text).partition(is_glob);
        let commands = [("SUBSCRIBE", literals, globs.is_empty()), ("PSUBSCRIBE", globs, true)];
        for (command, names, is_last) in commands {
            self.request(command, &names, Some(subscriber), is_last).await?;
        }
        Ok(())
    }

    /// Sends a command that is confirmed for each name.
    async fn request(
        &mut self,
        command: &str,
        names: &[&str],
        subscriber: Option<&Arc<Subscriber>>,
        is_last: bool,
    ) -> Result<(), RedisError> {
        if names.is_empty() {
            return Ok(());
        }
        self.listener.send(&[&[command], names].concat()).await?;
        self.awaited.push_back(Awaited::Names {
            left: names.len(),
            subscriber: subscriber.cloned(),
            is_last,
        });
        Ok(())
    }

    /// Ends what nobody subscribes to any more.
    async fn unsubscribe(&mut self) -> Result<(), RedisError> {
        let mut gone = Vec::new();
        self.by_name.retain(|name, subscribers| {
            subscribers.retain(|subscriber| !subscriber.feed.is_closed());
            let stays = !subscribers.is_empty();
            if !stays {
                gone.push(name.clone());
            }
            stays
        });
        // A subscriber that is not confirmed yet may have the same name.
        let awaits = |name: &str| {
            self.awaited.iter().any(|awaited| match awaited {
                Awaited::Names { subscriber: Some(subscriber), .. } => {
                    subscriber.names.iter().any(|own| &*own.text == name)
                }
                _ => false,
            })
        };
        gone.retain(|name| !awaits(name));
        let (globs, literals): (Vec<_>, Vec<_>) =
            gone.iter().map(|name| &**name).partition(|name| name.contains('*'));
        self.request("UNSUBSCRIBE", &literals, None, true).await?;
        self.request("PUNSUBSCRIBE", &globs, None, true).await
    }

    async fn handle(&mut self, reply: Reply) -> Result<(), RedisError> {
        let items = match reply {
            Reply::Push(items) => items,
            Reply::Error(text) => return self.refused(&text),
            _ => {
                self.awaited.pop_front();
                return Ok(());
            }
        };
        let kind = items.first().and_then(Reply::as_text).unwrap_or_default();
        match (kind, &items[..]) {
            (b"message", [_, Reply::Text(channel), Reply::Text(payload)]) => {
                self.receive(channel, channel, payload).await;
            }
            (b"pmessage", [_, Reply::Text(name), Reply::Text(channel), Reply::Text(payload)]) => {
                self.receive(name, channel, payload).await;
            }
            (b"subscribe" | b"psubscribe" | b"unsubscribe" | b"punsubscribe", _) => self.confirm(),
            _ => {}
        }
        Ok(())
    }

    async fn receive(&mut self, name: &[u8], channel: &[u8], payload: &[u8]) {
        let (Ok(name), Ok(text)) = (std::str::from_utf8(name), std::str::from_utf8(channel)) else {
            return;
        };
        let Some(subscribers) = self.by_name.get(name) else { return };
        let channel = match &self.channel {
            Some(last) if last.as_str() == text => last,
            _ => match text.parse() {
                Ok(channel) => self.channel.insert(channel),
                Err(_) => return,
            },
        };
        let receives = subscribers.iter().filter(|subscriber| subscriber.receives(name, channel));
        let feeds: Vec<&Feed> = receives.map(|subscriber| &subscriber.feed).collect();
        if feeds.is_empty() {
            return;
        }
        match self.encoding.decode(payload) {
            Ok(event) => {
                deliver(feeds, &event).await;
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::debug!(error, %channel, "what was published is no event");
            }
        }
    }

    fn confirm(&mut self) {
        let Some(Awaited::Names { left, .. }) = self.awaited.front_mut() else { return };
        *left -= 1;
        if *left > 0 {
            return;
        }
        let Some(Awaited::Names { subscriber: Some(subscriber), is_last: true, .. }) =
            self.awaited.pop_front()
        else {
            return;
        };
        // One of its commands may have been refused.
        if subscriber.feed.is_closed() {
            return;
        }
        self.has_confirmed = true;
        if subscriber.is_new() {
            subscriber.reply(Ok(()));
        } else {
            subscriber.feed.gap(Gap::ConnectionLost);
        }
        for name in &subscriber.names {
            self.by_name.entry(name.text.clone()).or_default().push(subscriber.clone());
        }
    }

    /// An error is the answer to the oldest command.
    fn refused(&mut self, text: &str) -> Result<(), RedisError> {
        let error = RedisError::answered(text);
        match self.awaited.pop_front() {
            Some(Awaited::Names { subscriber: Some(subscriber), .. })
                if matches!(error, RedisError::NotPermitted(_)) =>
            {
                subscriber.refuse(&error);
                Ok(())
            }
            Some(Awaited::Names { subscriber: None, .. }) => Ok(()),
            _ => Err(error),
        }
    }
}

/// Waits for the end of a subscription that has the connection alone.
async fn ended(only: Option<Arc<Subscriber>>) {
    match only {
        Some(subscriber) => subscriber.feed.closed().await,
        None => std::future::pending().await,
    }
}
