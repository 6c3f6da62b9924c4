//! The bytes of version 1, and what is no event.

use octollm_core::error::InvalidValue;
use octollm_core::event::Event;
use octollm_events::Encoding;
use serde_json::json;

const BOTH: [Encoding; 2] = [Encoding::Native, Encoding::CloudEvents];

/// An event that has every attribute.
fn full() -> Event {
    Event::on(
        "audit:task:completed".parse().unwrap(),
        "orchestrator",
        json!({ "task_id": "task_3fK9aZ0qLw81bXyT", "text": "\u{0}\"é", "duration_ms": 1234, "list": [null, 1.5] }),
    )
    .unwrap()
    .with_id("019a6d2f-9c00-7000-8000-000000000001")
    .unwrap()
    .with_timestamp("2025-11-10T10:30:00.123456789Z".parse().unwrap())
    .with_subject("task_3fK9aZ0qLw81bXyT")
    .with_correlation_id("req-1")
    .with_causation_id("019a6d2f-9c00-7000-8000-000000000000")
    .with_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    .with_partition_key("task_3fK9aZ0qLw81bXyT")
    .with_expires_at("2025-11-11T00:00:00Z".parse().unwrap())
}

/// An event that has only what every event has.
fn least() -> Event {
    Event::new("task.completed", "orchestrator", json!({}))
        .unwrap()
        .with_id("019a6d2f-9c00-7000-8000-000000000001")
        .unwrap()
        .with_timestamp("2025-11-10T10:30:00Z".parse().unwrap())
}

fn golden(text: &'static str) -> &'static [u8] {
    text.trim_end().as_bytes()
}

#[track_caller]
fn assert_golden(encoding: Encoding, event: &Event, bytes: &[u8]) {
    let written = encoding.encode(event).unwrap();
    assert_eq!(String::from_utf8_lossy(&written), String::from_utf8_lossy(bytes));
    assert_eq!(&encoding.decode(bytes).unwrap(), event);
}

#[test]
fn bytes_of_version_1_stay_as_they_are() {
    assert_golden(Encoding::Native, &full(), golden(include_str!("golden/native-full.json")));
    assert_golden(Encoding::Native, &least(), golden(include_str!("golden/native-least.json")));
    assert_golden(Encoding::CloudEvents, &full(), golden(include_str!("golden/cloudevents-full.json")));
    assert_golden(Encoding::CloudEvents, &least(), golden(include_str!("golden/cloudevents-least.json")));
}

#[test]
fn fields_of_version_1_stay_as_they_are() {
    let goldens = [include_str!("golden/native-full.fields"), include_str!("golden/cloudevents-full.fields")];
    for (encoding, text) in BOTH.into_iter().zip(goldens) {
        let lines = || text.lines().map(|line| line.split_once('=').unwrap());
        let written = encoding.to_fields(&full()).unwrap();
        let written: Vec<_> =
            written.iter().map(|(name, value)| (*name, std::str::from_utf8(value).unwrap())).collect();
        assert_eq!(written, lines().collect::<Vec<_>>());
        assert_eq!(encoding.from_fields(lines().rev()).unwrap(), full());
    }
}

#[test]
fn the_decision_records_own_json_is_read() {
    let event = Encoding::Native.decode(golden(include_str!("golden/record.json"))).unwrap();
    assert_eq!(event.channel().as_str(), "events:task:completed");
    assert_eq!(event.source(), "orchestrator");
    assert_eq!(event.timestamp().to_string(), "2025-11-10T10:30:00Z");
    assert_eq!(event.data()["duration_ms"], 1234);
    assert!(!event.id().is_empty());
}

#[test]
fn a_cloud_event_of_others_is_read() {
    let event =
        Encoding::CloudEvents.decode(golden(include_str!("golden/cloudevents-foreign.json"))).unwrap();
    assert_eq!(event.event_type(), "order.placed");
    assert_eq!(event.data()["amount"], 3);
}

#[test]
fn large_data_survives() {
    let event =
        Event::new("a.b", "s", json!({ "": "", "large": "\u{0}x\u{1F419}".repeat(16 * 1024) })).unwrap();
    for encoding in BOTH {
        assert_eq!(encoding.decode(&encoding.encode(&event).unwrap()).unwrap(), event);
        assert_eq!(encoding.from_fields(encoding.to_fields(&event).unwrap()).unwrap(), event);
    }
}

#[test]
fn numbers_survive_to_the_last_bit() {
    let mut bits = 0x9E37_79B9_7F4A_7C15_u64;
    let floats = (0..10_000).map(|_| {
        // Xorshift: any spread of bits will do, the same ones each time.
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        f64::from_bits(bits)
    });
    let floats: Vec<f64> =
        floats.filter(|float| float.is_finite()).chain([0.1 + 0.2, f64::MIN_POSITIVE]).collect();
    let event = Event::new("a.b", "s", json!([floats, u64::MAX, i64::MIN])).unwrap();
    for encoding in BOTH {
        assert_eq!(encoding.decode(&encoding.encode(&event).unwrap()).unwrap(), event);
        assert_eq!(encoding.from_fields(encoding.to_fields(&event).unwrap()).unwrap(), event);
    }
}

#[test]
fn garbage_is_refused_as_json() {
    for encoding in BOTH {
        for bytes in [&b""[..], b"\0\xff", b"{", b"{} {}", b"nonsense"] {
            let error = encoding.decode(bytes).unwrap_err().to_string();
            assert!(error.starts_with("not a valid event: ") && error.contains(" at line 1"), "{error}");
        }
        let error = encoding.decode(b"{}").unwrap_err().to_string();
        assert!(error.starts_with("not a valid event: missing field "), "{error}");
    }
}

/// The full event's JSON with one attribute changed, and what reading it says.
fn changed(encoding: Encoding, attribute: &str, value: serde_json::Value) -> InvalidValue {
    let mut json: serde_json::Value = serde_json::from_slice(&encoding.encode(&full()).unwrap()).unwrap();
    json[attribute] = value;
    encoding.decode(json.to_string().as_bytes()).unwrap_err()
}

#[test]
fn each_bad_attribute_has_its_error() {
    for (encoding, kind, time) in
        [(Encoding::Native, "event_type", "timestamp"), (Encoding::CloudEvents, "type", "time")]
    {
        let starts_with = |attribute, value, expected| {
            let error = changed(encoding, attribute, value).to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        let version = "not a valid event: the specversion \"2.0\" is not supported";
        starts_with("specversion", json!("2.0"), version);
        let timestamp = "not a valid event: `timestamp` is not an RFC 3339 timestamp: ";
        starts_with(time, json!("10 November"), timestamp);
        starts_with(kind, json!("com.example.order.placed"), "not a valid event type: 2 segments are needed");
        starts_with("source", json!(7), "not a valid event: invalid type: integer `7`, expected a string");
    }
}

#[test]
fn data_that_is_not_json_is_refused() {
    let error = changed(Encoding::CloudEvents, "datacontenttype", json!("text/xml"));
    assert_eq!(error.to_string(), "not a valid event: the data is \"text/xml\" and not JSON");
    let error = changed(Encoding::CloudEvents, "data_base64", json!("AA=="));
    assert!(error.to_string().ends_with("and not JSON"), "{error}");
}

#[test]
fn errors_name_bad_fields() {
    let native = |fields: &[(&str, &[u8])]| {
        Encoding::Native.from_fields(fields.iter().copied()).unwrap_err().to_string()
    };
    let least: [(&str, &[u8]); 3] =
        [("event_type", b"a.b"), ("timestamp", b"2025-11-10T10:30:00Z"), ("source", b"s")];
    assert!(Encoding::Native.from_fields(least).is_ok());
    assert_eq!(native(&least[..2]), "not a valid event: `source` is missing");
    let repeated = "not a valid event: `event_type` is given more than once";
    assert_eq!(native(&[least[0], least[0]]), repeated);
    assert!(native(&[("id", b"\xff")]).starts_with("not a valid event: `id` is not UTF-8: "));
    assert!(native(&[("data", b"{")]).starts_with("not a valid event: EOF while parsing"));
    let cloud: [(&str, &[u8]); 2] = [("type", b"a.b"), ("source", b"s")];
    let error = Encoding::CloudEvents.from_fields([("datacontenttype", "text/plain")]).unwrap_err();
    assert_eq!(error.to_string(), "not a valid event: the data is \"text/plain\" and not JSON");
    assert!(Encoding::CloudEvents.from_fields(cloud).is_ok(), "the time is optional there");
}
