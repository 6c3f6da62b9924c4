//! Ids: of a request, of a piece of work over all its requests, of a task, and of a call within one.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{invalid::InvalidValue, random};

/// Base 62 in ASCII order, so that encoded numbers sort as the numbers do.
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

fn base62(mut value: u64) -> [u8; 11] {
    let mut digits = [b'0'; 11];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(value % 62) as usize];
        value /= 62;
    }
    digits
}

/// Bits of a count in an id.
const COUNT: u32 = 47;

/// The milliseconds since 1970 and a count of 47 bits, which together are greater than all earlier ones of this process. The count
/// starts anew from random bits each millisecond.
fn ordered(now: Timestamp) -> (u64, u64) {
    static LAST: Mutex<(u64, u64)> = Mutex::new((0, 0));
    let milliseconds = u64::try_from(now.as_millisecond()).unwrap_or_default();
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    *last = if milliseconds > last.0 {
        // Below half of the counts there are.
        (milliseconds, random::number() >> (65 - COUNT))
    } else {
        (last.0, last.1 + 1)
    };
    *last
}

/// A UUID of version 7 for the current time, greater than every earlier one of this process.
pub(crate) fn ordered_uuid(now: Timestamp) -> Uuid {
    static PROCESS: LazyLock<u64> = LazyLock::new(random::number);
    let (milliseconds, count) = ordered(now);
    // 12 bits of the count after the version and 35 after the variant, then 27 random ones of this process.
    let upper = (milliseconds << 16) | 0x7000 | (count >> 35 & 0xfff);
    let lower = (0b10 << 62) | (count << 27 & (u64::MAX >> 2)) | (*PROCESS >> 37);
    Uuid::from_u64_pair(upper, lower)
}

/// The same as text.
pub(crate) fn ordered_uuid_text(now: Timestamp) -> String {
    ordered_uuid(now).hyphenated().encode_lower(&mut Uuid::encode_buffer()).to_owned()
}

/// Whether a text is the id of an arm: at most 128 lower-case letters, digits and dashes, of which the first is a letter.
pub fn is_arm_id(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.len() <= 128
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(allowed)
}

/// The key of one call among those that a task makes: its position, or the name that the user gave it.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(untagged, expecting = "a step is its position, from 0 to 4294967295, or its name")]
pub enum StepKey {
    /// Position among the task's unnamed calls, from 0.
    Order(u32),
    /// The name that the user gave it.
    Name(String),
}

impl StepKey {
    /// Parses a key. A number without leading zeros is a position; anything else is a name.
    pub fn from_text(text: &str) -> Self {
        match text.parse() {
            Ok(order) if Self::Order(order).to_string() == text => Self::Order(order),
            _ => Self::Name(text.to_owned()),
        }
    }
}

impl From<u32> for StepKey {
    fn from(order: u32) -> Self {
        Self::Order(order)
    }
}

impl From<&str> for StepKey {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

impl From<String> for StepKey {
    fn from(name: String) -> Self {
        Self::Name(name)
    }
}

impl fmt::Display for StepKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order(order) => write!(f, "{order}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Bytes of the id of a task.
const TASK_ID: usize = 21;

/// The id of a task: `task_` and 16 letters or digits. Ids sort by their time of creation.
///
/// The first eight encode milliseconds since 1970, the rest are a counter that starts anew from random bits each
/// millisecond: within one process later ids are greater.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^task_[a-zA-Z0-9]{16}$"))]
// ASCII, beside the other members of what has it: a comparison in a map reads no other memory.
pub struct TaskId([u8; TASK_ID]);

impl TaskId {
    /// A new id, greater than every earlier one of this process.
    pub fn new() -> Self {
        let (milliseconds, count) = ordered(Timestamp::now());
        Self::of(milliseconds, count)
    }

    /// The id that these bits stand for: equal bits have equal ids.
    pub(crate) fn of_bits(bits: u128) -> Self {
        Self::of((bits >> 64) as u64, bits as u64)
    }

    /// The last eight digits of each number.
    fn of(first: u64, second: u64) -> Self {
        let mut text = *b"task_0000000000000000";
        text[5..13].copy_from_slice(&base62(first)[3..]);
        text[13..].copy_from_slice(&base62(second)[3..]);
        Self(text)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        // Every byte is ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Default for TaskId {
    fn default() -> Self {
        Self::new()
    }
}

impl FromStr for TaskId {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = text
            .strip_prefix("task_")
            .is_some_and(|id| id.len() == 16 && id.bytes().all(|b| b.is_ascii_alphanumeric()));
        let bytes = text.as_bytes().try_into().ok().filter(|_| valid);
        bytes.map(Self).ok_or_else(|| InvalidValue::new("task id"))
    }
}

impl TryFrom<String> for TaskId {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TaskId> for String {
    fn from(id: TaskId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The idempotency key of a call: the same over every attempt and every recovery.
///
/// An arm that passes it on, such as to a payment provider, has the effect of its call once there as well.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IdempotencyKey(Box<str>);

impl IdempotencyKey {
    /// A key of this text; `None` unless it is 1 to 255 printable ASCII characters.
    pub fn new(text: impl Into<Box<str>>) -> Option<Self> {
        let text = text.into();
        let printable = text.bytes().all(|b| (b' '..=b'~').contains(&b));
        ((1..=255).contains(&text.len()) && printable).then_some(Self(text))
    }

    /// The text of the key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The id of a request, or of a piece of work over all its requests.
///
/// 1 to 128 characters of `[A-Za-z0-9._-]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^[A-Za-z0-9._-]{1,128}$"))]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// A new id: random bits of this process, and a count.
    pub fn new() -> Self {
        static PROCESS: LazyLock<[u8; 11]> = LazyLock::new(|| base62(random::number() >> 2));
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = base62(COUNT.fetch_add(1, Ordering::Relaxed));
        let mut text = [b'-'; 19];
        text[..11].copy_from_slice(&*PROCESS);
        text[12..].copy_from_slice(&count[4..]);
        // Every digit is ASCII.
        Self(std::str::from_utf8(&text).unwrap_or("request").into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for RequestId {
    fn default() -> Self {
        Self::new()
    }
}

impl FromStr for RequestId {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = (1..=128).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if valid { Ok(Self(text.into())) } else { Err(InvalidValue::new("request id")) }
    }
}

impl TryFrom<String> for RequestId {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RequestId> for String {
    fn from(id: RequestId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn later_tasks_have_greater_ids() {
        let ids: Vec<_> = (0..10_000).map(|_| TaskId::new()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        assert!(ids.iter().all(|id| id.as_str().parse::<TaskId>().is_ok()));
    }

    #[test]
    fn each_thread_has_greater_ids_later_and_no_two_have_the_same() {
        let make = || (0..50_000).map(|_| TaskId::new()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(make)).collect();
        let mut all = std::collections::HashSet::new();
        for ids in threads.into_iter().map(|thread| thread.join().unwrap()) {
            assert!(ids.is_sorted_by(|a, b| a < b));
            all.extend(ids);
        }
        assert_eq!(all.len(), 400_000);
    }

    #[test]
    fn later_uuids_of_version_7_are_greater() {
        let ids: Vec<_> = (0..10_000).map(|_| ordered_uuid(Timestamp::now())).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        let now = u64::try_from(Timestamp::now().as_second()).unwrap();
        for id in ids {
            assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122));
            let (seconds, _) = id.get_timestamp().unwrap().to_unix();
            assert!(seconds <= now + 1 && seconds + 60 > now, "{seconds} and {now}");
        }
    }

    #[test]
    fn requests_are_told_apart() {
        let ids: std::collections::HashSet<_> = (0..10_000).map(|_| RequestId::new()).collect();
        assert_eq!(ids.len(), 10_000);
    }

    proptest! {
        #[test]
        fn base62_keeps_the_order(a in 0_u64..62_u64.pow(8), b in 0_u64..62_u64.pow(8)) {
            prop_assert_eq!(a.cmp(&b), TaskId::of(a, 0).cmp(&TaskId::of(b, 0)));
            prop_assert_eq!(a.cmp(&b), TaskId::of(0, a).cmp(&TaskId::of(0, b)));
        }

        #[test]
        fn only_task_ids_parse_as_task_ids(text in "(task_)?\\PC{14,18}") {
            let expected = text.len() == 21 && text.starts_with("task_") && text[5..].chars().all(|c| c.is_ascii_alphanumeric());
            prop_assert_eq!(text.parse::<TaskId>().is_ok(), expected);
        }

        #[test]
        fn request_ids_hold_no_other_characters(text in "[A-Za-z0-9._\\-\r\n é]{0,140}") {
            let expected = !text.is_empty() && text.len() <= 128 && !text.contains(['\r', '\n', ' ', 'é']);
            prop_assert_eq!(text.parse::<RequestId>().is_ok(), expected);
        }
    }
}
