//! Events, channels and pattern: what is valid, and what survives a round trip.

use octollm_core::error::InvalidValue;
use octollm_core::event::{Channel, Event, Pattern};
use proptest::prelude::*;
use serde_json::{Value, json};

#[test]
fn parts_are_slices_of_one_text() {
    let channel: Channel = "events:task:completed".parse().unwrap();
    assert_eq!((channel.domain(), channel.entity(), channel.action()), ("events", "task", "completed"));
    assert_eq!(channel.event_type(), "task.completed");
    assert_eq!(channel.to_string(), "events:task:completed");
    assert_eq!(channel.with_domain("audit").unwrap().as_str(), "audit:task:completed");
}

#[track_caller]
fn assert_error(error: InvalidValue, expected: &str, text: &str) {
    assert_eq!(error.to_string(), expected, "{text:?}");
}

#[test]
fn what_is_no_channel_is_refused_by_name() {
    let cases = [
        ("", "3 segments are needed, but there are 1"),
        ("a:b", "3 segments are needed, but there are 2"),
        ("a:b:c:d", "3 segments are needed, but there are 4"),
        ("a::c", "segment 2 is empty"),
        ("a:b:c d", "segment 3 contains ' ', and may have a-z, 0-9, _ and -"),
        ("a:b\r\n:c", "segment 2 contains '\\r', and may have a-z, 0-9, _ and -"),
        ("A:b:c", "segment 1 contains 'A', and may have a-z, 0-9, _ and -"),
        ("a:ü:c", "segment 2 contains 'ü', and may have a-z, 0-9, _ and -"),
        ("a:b:*", "segment 3 contains '*', and may have a-z, 0-9, _ and -"),
        ("a:b?:c", "segment 2 contains '?', and may have a-z, 0-9, _ and -"),
    ];
    for (text, expected) in cases {
        let expected = format!("not a valid channel: {expected}");
        assert_error(text.parse::<Channel>().unwrap_err(), &expected, text);
    }
    let long = Channel::new("a", &"x".repeat(65), "c").unwrap_err();
    assert_error(long, "not a valid channel: segment 2 has 65 bytes, and may have 64", "too long");
}

#[test]
fn an_event_type_has_two_segments() {
    assert!(Channel::from_event_type("task.completed").is_ok());
    let error = Channel::from_event_type("com.example.created").unwrap_err();
    assert_eq!(error.to_string(), "not a valid event type: 2 segments are needed, but there are 3");
    let error = Channel::from_event_type("Task.completed").unwrap_err();
    assert!(error.to_string().starts_with("not a valid event type: segment 1 contains 'T'"), "{error}");
}

proptest! {
    #[test]
    fn channels_round_trip_as_text_and_json(text in "[a-z0-9_-]{1,64}:[a-z0-9_-]{1,64}:[a-z0-9_-]{1,64}") {
        let channel: Channel = text.parse().unwrap();
        prop_assert_eq!(channel.as_str(), &text);
        let json = serde_json::to_string(&channel).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Channel>(&json).unwrap(), &channel);
        let again = Channel::from_event_type(channel.event_type()).unwrap();
        prop_assert_eq!(again.with_domain(channel.domain()).unwrap(), channel);
    }

    #[test]
    fn any_text_is_a_channel_or_an_error(text in "[a-z*:?.A ]{0,12}") {
        let valid = text.split(':').count() == 3
            && text.split(':').all(|s| !s.is_empty() && s.bytes().all(|b| b.is_ascii_lowercase()));
        prop_assert_eq!(text.parse::<Channel>().is_ok(), valid);
    }

    #[test]
    fn channels_have_the_order_of_their_texts(a in "[a-c]{1,2}:[a-c]{1,2}:[a-c]{1,2}", b in "[a-c]{1,2}:[a-c]{1,2}:[a-c]{1,2}") {
        let (left, right): (Channel, Channel) = (a.parse().unwrap(), b.parse().unwrap());
        prop_assert_eq!(left.cmp(&right), a.cmp(&b));
        prop_assert_eq!(left == right, a == b);
    }
}

fn pattern(text: &str) -> Pattern {
    text.parse().unwrap()
}

fn channel(text: &str) -> Channel {
    text.parse().unwrap()
}

#[test]
fn a_star_is_one_whole_segment() {
    assert!(pattern("events:task:*").matches(&channel("events:task:completed")));
    assert!(!pattern("events:task:*").matches(&channel("events:arm:completed")));
    assert!(pattern("*:*:completed").matches(&channel("audit:task:completed")));
    assert!(Pattern::all().matches(&channel("a:b:c")));
    assert!(!pattern("events:task:complete").matches(&channel("events:task:completed")));
}

#[test]
fn a_glob_inside_a_segment_is_refused() {
    for (text, position, found) in [
        ("events:task:comp*", 3, '*'),
        ("events:**:x", 2, '*'),
        ("event?:task:x", 1, '?'),
        ("events:[ab]:x", 2, '['),
        ("events:a\\*:x", 2, '\\'),
    ] {
        let error = text.parse::<Pattern>().unwrap_err();
        let expected = format!("segment {position} contains {found:?}, and may have a-z, 0-9, _ and -");
        assert_error(error, &format!("not a valid pattern: {expected}"), text);
    }
    assert!("*".parse::<Pattern>().is_err());
    assert!("*:*".parse::<Pattern>().is_err());
    assert!("*:*:*:*".parse::<Pattern>().is_err());
}

#[test]
fn an_exact_one_comes_from_a_channel() {
    let exact = Pattern::from(channel("events:task:failed"));
    assert!(exact.matches(&channel("events:task:failed")));
    assert!(!exact.matches(&channel("events:task:completed")));
}

/// `matches` by splitting both texts.
fn oracle(pattern: &str, channel: &str) -> bool {
    let wanted: Vec<&str> = pattern.split(':').collect();
    let found: Vec<&str> = channel.split(':').collect();
    wanted.len() == found.len() && (0..wanted.len()).all(|i| wanted[i] == "*" || wanted[i] == found[i])
}

proptest! {
    #[test]
    fn patterns_round_trip_as_text_and_json(text in "(\\*|[a-z0-9_-]{1,64}):(\\*|[a-z0-9_-]{1,64}):(\\*|[a-z0-9_-]{1,64})", other in "[a-z]:[a-z]:\\*") {
        let pattern: Pattern = text.parse().unwrap();
        prop_assert_eq!(pattern.to_string(), text);
        let pattern = pattern.or(other.parse().unwrap());
        prop_assert_eq!(&pattern.to_string().parse::<Pattern>().unwrap(), &pattern);
        let json = serde_json::to_string(&pattern).unwrap();
        prop_assert_eq!(serde_json::from_str::<Pattern>(&json).unwrap(), pattern);
    }

    #[test]
    fn verdicts_are_those_of_the_oracle(
        wanted in "(\\*|[ab]{1,2}):(\\*|[ab]{1,2}):(\\*|[ab]{1,2})",
        channel in "[ab]{1,2}:[ab]{1,2}:[ab]{1,2}",
    ) {
        let verdict = wanted.parse::<Pattern>().unwrap().matches(&channel.parse().unwrap());
        prop_assert_eq!(verdict, oracle(&wanted, &channel));
    }
}

#[test]
fn order_and_repetition_do_not_matter() {
    let (a, b): (Pattern, Pattern) = ("a:*:*".parse().unwrap(), "b:*:*".parse().unwrap());
    let one = b.clone().or(a.clone()).or(b.clone());
    assert_eq!(one, a.or(b));
    assert_eq!(one, pattern("b:*:*,a:*:*,b:*:*"));
    assert_eq!(one.to_string(), "a:*:*,b:*:*");
    assert_eq!(one.alternatives().collect::<Vec<_>>(), ["a:*:*", "b:*:*"]);
    assert!(
        one.matches(&channel("a:x:y")) && one.matches(&channel("b:x:y")) && !one.matches(&channel("c:x:y"))
    );
}

#[test]
fn an_empty_alternative_is_refused() {
    for text in ["", ",", "a:b:c,", ",a:b:c", "a:b:c,,d:e:f", "a:b:c, d:e:f"] {
        assert!(text.parse::<Pattern>().is_err(), "{text:?}");
    }
}

#[test]
fn type_and_channel_derive_from_each_other() {
    let event = Event::new("task.completed", "brain", json!({})).unwrap();
    assert_eq!(event.channel().as_str(), "events:task:completed");
    let event = Event::on("audit:task:seen".parse().unwrap(), "brain", json!({})).unwrap();
    assert_eq!(event.event_type(), "task.seen");
}

#[test]
fn a_consequence_names_its_cause() {
    let root = Event::new("task.queued", "brain", Value::Null).unwrap();
    let child = Event::new("task.started", "brain", Value::Null).unwrap().caused_by(&root);
    let grandchild = Event::new("task.completed", "brain", Value::Null).unwrap().caused_by(&child);
    assert_eq!(child.correlation_id(), Some(root.id()));
    assert_eq!(grandchild.correlation_id(), Some(root.id()));
    assert_eq!(grandchild.causation_id(), Some(child.id()));
}

#[test]
fn an_empty_text_takes_the_attribute_away() {
    let event = Event::new("a.b", "s", Value::Null).unwrap().with_subject("x").with_subject("");
    assert_eq!(event.subject(), None);
    assert_eq!(message(Event::new("a.b", "", Value::Null)), "not a valid event: `source` is empty");
    assert_eq!(message(event.with_id("")), "not a valid event: `id` is empty");
}

#[test]
fn every_attribute_survives_json() {
    let event =
        Event::on("audit:task:seen".parse().unwrap(), "brain", json!({ "nul": "\0", "n": [1.5, null] }))
            .unwrap()
            .with_subject("task_1")
            .with_correlation_id("c")
            .with_causation_id("p")
            .with_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .with_partition_key("k")
            .with_expires_at("2030-01-01T00:00:00.000000001Z".parse().unwrap());
    let json = serde_json::to_string(&event).unwrap();
    assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    assert_eq!(Event::from_json(json.as_bytes()).unwrap(), event);
}

#[test]
fn size_counts_data_and_texts() {
    let event = Event::new("a.b", "src", json!({ "k": "é\n" })).unwrap().with_id("id").unwrap();
    let data = serde_json::to_string(event.data()).unwrap();
    assert_eq!(event.size(), "events:a:b".len() + "src".len() + "id".len() + data.len());
    assert_eq!(event.clone().with_subject("12345").size(), event.size() + 5);
}

#[test]
fn clones_share_until_one_is_changed() {
    let event = Event::new("a.b", "s", json!("x".repeat(1000))).unwrap();
    let clone = event.clone();
    assert!(std::ptr::eq(event.data(), clone.data()));
    let changed = clone.with_subject("task_1");
    assert_eq!((event.subject(), changed.subject()), (None, Some("task_1")));
    assert_eq!(event.data(), changed.data());
}

#[test]
fn data_reads_as_a_type() {
    let event = Event::of("a.b", "s", &vec![1, 2]).unwrap();
    assert_eq!(event.data_as::<Vec<u8>>().unwrap(), [1, 2]);
    let expected = "not a valid event: the data does not have the expected form: invalid type: sequence, expected a string";
    assert_eq!(message(event.data_as::<String>()), expected);
}

fn message<T: std::fmt::Debug>(result: Result<T, InvalidValue>) -> String {
    result.unwrap_err().to_string()
}

/// The event with the least attributes and some more.
fn with(more: &[(&str, &str)]) -> Result<Event, InvalidValue> {
    let mut attributes =
        vec![("event_type", "task.completed"), ("timestamp", "2025-11-10T10:30:00Z"), ("source", "brain")];
    attributes.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
    attributes.extend(more);
    Event::from_attributes(attributes, Value::Null)
}

#[test]
fn four_attributes_are_an_event() {
    let event = with(&[("unknown", "x")]).unwrap();
    assert_eq!(event.channel().as_str(), "events:task:completed");
    assert_eq!(event.id().len(), 36, "it gets a new id");
    assert_eq!(event.subject(), None);
}

#[test]
fn each_fault_has_its_error() {
    let of = |attributes: &[(&str, &str)]| message(with(attributes));
    assert_eq!(of(&[("specversion", "0.3")]), "not a valid event: the specversion \"0.3\" is not supported");
    for attribute in ["timestamp", "expires_at"] {
        let expected = format!("not a valid event: `{attribute}` is not an RFC 3339 timestamp: ");
        assert!(of(&[(attribute, "2025-13-01")]).starts_with(&expected));
    }
    for attribute in ["source", "id"] {
        assert_eq!(of(&[(attribute, "")]), format!("not a valid event: `{attribute}` is empty"));
    }
    assert_eq!(with(&[("domain", "*")]).unwrap_err().kind(), "channel");
    assert_eq!(of(&[("id", "a"), ("id", "b")]), "not a valid event: `id` is given more than once");
    let none = Event::from_attributes([("timestamp", "2025-11-10T10:30:00Z")], Value::Null);
    assert_eq!(message(none), "not a valid event: `event_type` is missing");
}

#[test]
fn attributes_round_trip() {
    let event = Event::new("a.b", "s", json!([1])).unwrap().with_domain("audit").unwrap().with_subject("x");
    let names: Vec<_> = event.attributes().map(|(name, _)| name).collect();
    assert_eq!(names, ["event_type", "timestamp", "source", "id", "specversion", "subject", "domain"]);
    assert_eq!(Event::from_attributes(event.attributes(), json!([1])).unwrap(), event);
}

proptest! {
    #[test]
    fn size_counts_data_as_compact_json(text in prop::collection::vec(any::<char>(), 0..40), ascii in "[\\x00-\\x7f]*", integer: i64, float: f64, large: u64) {
        let text: String = text.into_iter().collect();
        let value = json!({ (text.as_str()): [text, ascii, integer, float, large, null, true, false], "": {}, "a": [] });
        let length = value.to_string().len();
        let event = Event::new("a.b", "src", value).unwrap().with_id("id").unwrap();
        prop_assert_eq!(event.size(), "events:a:b".len() + "src".len() + "id".len() + length);
    }
}
