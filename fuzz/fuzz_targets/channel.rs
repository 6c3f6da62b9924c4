//! Channels and patterns: lines of text. What is read is written as the same text, patterns match as a simple matcher does, and each
//! subscriber of a bus receives what its pattern matches, once and in order.
#![no_main]

use std::cell::OnceCell;

use futures_util::FutureExt;
use libfuzzer_sys::fuzz_target;
use octollm_core::{
    bus::{EventBus, MemoryBus, Overflow, Signal, Subscription},
    event::{Channel, Event, Pattern},
};
use tokio::{
    runtime::{Builder, Runtime},
    task::unconstrained,
};

thread_local!(static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() });

fuzz_target!(|text: &str| {
    let (mut channels, mut patterns) = (Vec::new(), Vec::new());
    for line in text.split('\n').take(24) {
        if let Some(channel) = channel(line) {
            channels.push(channel);
        }
        if let Some(pattern) = pattern(line) {
            patterns.push(pattern);
        }
        event_type(line);
    }
    for pattern in &patterns {
        for channel in &channels {
            assert_eq!(
                pattern.matches(channel),
                matches(&pattern.to_string(), channel.as_str()),
                "{pattern} {channel}"
            );
        }
        for other in &patterns {
            either(pattern, other, &channels);
        }
    }
    let runtime = || Builder::new_current_thread().enable_time().build().expect("a runtime");
    RUNTIME.with(|cell| cell.get_or_init(runtime).block_on(deliver(&channels, &patterns)));
});

fn is_segment(text: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

/// The matcher to compare with: the text of a pattern, and that of a channel.
fn matches(pattern: &str, channel: &str) -> bool {
    let segments: Vec<_> = channel.split(':').collect();
    pattern.split(',').any(|alternative| {
        let wanted: Vec<_> = alternative.split(':').collect();
        wanted.len() == segments.len() && wanted.iter().zip(&segments).all(|(w, s)| *w == "*" || w == s)
    })
}

fn channel(text: &str) -> Option<Channel> {
    let segments: Vec<_> = text.split(':').collect();
    let is_channel = segments.len() == 3 && segments.iter().all(|segment| is_segment(segment));
    let read = text.parse::<Channel>().ok();
    assert_eq!(read.is_some(), is_channel, "{text:?}");
    let channel = read?;
    assert_eq!((channel.as_str(), channel.to_string().as_str()), (text, text));
    assert_eq!([channel.domain(), channel.entity(), channel.action()], *segments);
    assert_eq!(channel.event_type(), format!("{}.{}", segments[1], segments[2]));
    let json = serde_json::to_value(&channel).expect("a text");
    assert_eq!(serde_json::from_value::<Channel>(json).expect("a channel"), channel);
    // Its own pattern matches it alone.
    assert_eq!(Pattern::from(channel.clone()), text.parse().expect("a pattern"));
    Some(channel)
}

fn pattern(text: &str) -> Option<Pattern> {
    let is_alternative = |text: &str| {
        let segments: Vec<_> = text.split(':').collect();
        segments.len() == 3 && segments.iter().all(|segment| *segment == "*" || is_segment(segment))
    };
    let read = text.parse::<Pattern>().ok();
    assert_eq!(read.is_some(), text.split(',').all(is_alternative), "{text:?}");
    let pattern = read?;
    let written = pattern.to_string();
    assert_eq!(written.parse::<Pattern>().as_ref(), Ok(&pattern));
    assert_eq!(serde_json::from_value::<Pattern>(written.clone().into()).expect("a pattern"), pattern);
    // The order and the repetition of alternatives make no difference.
    let mut alternatives: Vec<_> = text.split(',').collect();
    alternatives.reverse();
    assert_eq!(format!("{},{text}", alternatives.join(",")).parse::<Pattern>().as_ref(), Ok(&pattern));
    let mut once: Vec<_> = pattern.alternatives().collect();
    alternatives.sort_unstable();
    alternatives.dedup();
    once.sort_unstable();
    assert_eq!(once, alternatives);
    Some(pattern)
}

fn event_type(text: &str) {
    let segments: Vec<_> = text.split('.').collect();
    let is_type = segments.len() == 2 && segments.iter().all(|segment| is_segment(segment));
    let read = Channel::from_event_type(text);
    assert_eq!(read.is_ok(), is_type, "{text:?}");
    if let Ok(channel) = read {
        assert_eq!((channel.domain(), channel.event_type()), (Channel::DEFAULT_DOMAIN, text));
    }
}

/// Two patterns together, which may overlap.
fn either(one: &Pattern, other: &Pattern, channels: &[Channel]) {
    let both = one.clone().or(other.clone());
    assert_eq!(both, other.clone().or(one.clone()));
    assert_eq!(both.clone().or(one.clone()), both);
    assert_eq!(format!("{one},{other}").parse::<Pattern>().as_ref(), Ok(&both));
    for channel in channels {
        assert_eq!(both.matches(channel), one.matches(channel) || other.matches(channel), "{both} {channel}");
        assert!(Pattern::all().matches(channel));
    }
}

async fn deliver(channels: &[Channel], patterns: &[Pattern]) {
    let bus = MemoryBus::new();
    let mut subscriptions: Vec<(&Pattern, Subscription)> = Vec::new();
    for pattern in patterns {
        let subscription =
            bus.subscribe(pattern.clone(), Overflow::DropNewest(64)).await.expect("a subscription");
        subscriptions.push((pattern, subscription));
    }
    for (index, channel) in channels.iter().enumerate() {
        let event = Event::on(channel.clone(), "fuzz", index).expect("an event");
        bus.publish(event).await.expect("room");
    }
    for (pattern, mut subscription) in subscriptions {
        let matching = |(_, channel): &(usize, &Channel)| matches(&pattern.to_string(), channel.as_str());
        for (index, channel) in channels.iter().enumerate().filter(matching) {
            match unconstrained(subscription.next()).now_or_never() {
                Some(Some(Signal::Event(event))) => {
                    assert_eq!((event.channel(), event.data()), (channel, &index.into()), "{pattern}");
                }
                other => panic!("{pattern} {channel}: {other:?}"),
            }
        }
        assert!(unconstrained(subscription.next()).now_or_never().is_none(), "{pattern}");
    }
}
