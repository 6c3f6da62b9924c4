//! What is stored of a task, and how it is read again.

use std::{borrow::Cow, error::Error, sync::Arc, time::Duration};

use jiff::Timestamp;
use octollm_core::{
    event::Event,
    id::StepKey,
    parts::Caller,
    store::JournalEntry,
    task::{Priority, TaskRecord, TaskStatus, TaskUpdate},
};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use crate::{Encoding, sql::connection::Row};

/// The form of the texts that this version writes. It reads this one and those before.
pub(super) const FORMAT: i64 = 1;

/// A value that cannot be written or read.
pub(super) fn unreadable(error: impl Into<Box<dyn Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}

pub(super) fn to_text(value: &impl Serialize) -> Result<Arc<str>, serde_json::Error> {
    serde_json::to_string(value).map(Into::into)
}

fn of_text<T: DeserializeOwned>(format: i64, text: &str) -> Result<T, sqlx::Error> {
    check_format(format)?;
    let mut json = serde_json::Deserializer::from_str(text);
    // What was written is read, however deep a value in it is.
    json.disable_recursion_limit();
    T::deserialize(&mut json).map_err(unreadable)
}

fn check_format(format: i64) -> Result<(), sqlx::Error> {
    match format {
        FORMAT => Ok(()),
        later => Err(unreadable(format!("a stored text has form {later}: use a newer version"))),
    }
}

/// The text of a key in an index. A long one is replaced by its digest: an index has a limit, and Postgres refuses NUL.
pub(super) fn key(text: &str) -> String {
    const LONGEST: usize = 200;
    if text.len() <= LONGEST && !text.contains('\0') {
        return format!("={text}");
    }
    let digest = Sha256::digest(text);
    digest.iter().fold("#".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// A text without NUL, which Postgres refuses.
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    match text.contains(['\0', '\u{1}']) {
        true => text.replace('\u{1}', "\u{1}1").replace('\0', "\u{1}0").into(),
        false => text.into(),
    }
}

fn unescaped(text: String) -> String {
    match text.contains('\u{1}') {
        true => text.replace("\u{1}0", "\0").replace("\u{1}1", "\u{1}"),
        false => text,
    }
}

pub(super) fn step_key(step: &StepKey) -> String {
    match step {
        StepKey::Order(order) => order.to_string(),
        StepKey::Name(name) => key(name),
    }
}

/// The owner of a task: the same for the same caller, whatever its scopes.
pub(super) fn owner_key(caller: &Caller) -> String {
    match caller {
        Caller::Known(grant) => {
            let issuer = grant.issuer.as_deref();
            // The length separates the two.
            let length = issuer.map_or("-".to_owned(), |issuer| issuer.len().to_string());
            key(&format!("{length}:{}{}", issuer.unwrap_or_default(), grant.subject))
        }
        Caller::Anonymous => "anonymous".to_owned(),
        Caller::Unchecked => "unchecked".to_owned(),
        other => key(&format!("{other:?}")),
    }
}

pub(super) fn status_number(status: TaskStatus) -> i64 {
    match status {
        TaskStatus::Queued => 0,
        TaskStatus::Processing => 1,
        TaskStatus::Completed => 2,
        TaskStatus::Failed => 3,
        TaskStatus::Cancelled => 4,
        // No record has it.
        _ => 5,
    }
}

pub(super) fn priority_number(priority: Priority) -> i64 {
    match priority {
        Priority::Low => 0,
        Priority::Medium => 1,
        Priority::High => 2,
        Priority::Critical => 3,
    }
}

pub(super) fn time(microseconds: i64) -> Timestamp {
    Timestamp::from_microsecond(microseconds).unwrap_or(Timestamp::MAX)
}

/// The first microsecond that is not before a time.
pub(super) fn microsecond(at: Timestamp) -> i64 {
    let rest = at.as_nanosecond().rem_euclid(1_000);
    at.as_nanosecond().div_euclid(1_000).try_into().unwrap_or(i64::MAX).saturating_add(i64::from(rest > 0))
}

/// The columns of a task beside its stored record, which change more often.
pub(super) struct Columns {
    pub(super) run: u32,
    pub(super) revision: u64,
    pub(super) run_at: Option<i64>,
    pub(super) holder: Option<String>,
    pub(super) leased_until: Option<i64>,
    pub(super) first_claim: Option<i64>,
    pub(super) last_claim: Option<i64>,
}

/// The columns of [`Columns`] in a statement with `octollm_tasks AS t`.
macro_rules! columns {
    () => {
        "t.run, t.revision, t.run_at, t.holder, t.leased_until, t.first_claim, t.last_claim"
    };
}
pub(super) use columns;

impl Columns {
    /// Reads them from this column of a row on.
    pub(super) fn of(row: &Row, at: usize) -> Result<Self, sqlx::Error> {
        Ok(Self {
            run: u32::try_from(row.int(at)?).unwrap_or(u32::MAX),
            revision: row.count(at + 1)?,
            run_at: row.int_or_null(at + 2)?,
            holder: row.text_or_null(at + 3)?.map(unescaped),
            leased_until: row.int_or_null(at + 4)?,
            first_claim: row.int_or_null(at + 5)?,
            last_claim: row.int_or_null(at + 6)?,
        })
    }

    /// The record with what the columns say: a claim and the renewal of a lease change them alone.
    pub(super) fn apply(self, format: i64, text: &str) -> Result<TaskRecord, sqlx::Error> {
        let mut record: TaskRecord = of_text(format, text)?;
        // The store's clock has set it, unless it is that of the record.
        if let Some(at) = self.run_at.filter(|at| Some(*at) != record.run_at().map(microsecond)) {
            record.run_in(Duration::ZERO, time(at));
        }
        let holder = self.holder.as_deref().unwrap_or_default();
        let until = time(self.leased_until.unwrap_or(0));
        for (claim, at) in (record.run()..self.run)
            .zip(std::iter::once(self.first_claim).chain(std::iter::repeat(self.last_claim)))
        {
            // The lease before has expired.
            if let Some(before) = record.holder().map(str::to_owned) {
                record.renew(&before, claim, Timestamp::MIN);
            }
            let last = claim + 1 == self.run;
            let until = if last { until } else { Timestamp::MIN };
            record.claim(holder, until, time(at.unwrap_or(0))).map_err(unreadable)?;
        }
        record.renew(holder, self.run, until);
        record.set_revision(self.revision);
        Ok(record)
    }
}

pub(super) fn entry(format: i64, text: &str, at: i64) -> Result<JournalEntry, sqlx::Error> {
    let mut entry: JournalEntry = of_text(format, text)?;
    entry.at = time(at);
    Ok(entry)
}

pub(super) fn update(format: i64, text: &str, seq: u64) -> Result<TaskUpdate, sqlx::Error> {
    Ok(of_text::<TaskUpdate>(format, text)?.with_seq(seq))
}

pub(super) fn event(format: i64, text: &str) -> Result<Event, sqlx::Error> {
    check_format(format)?;
    Encoding::Native.decode(text.as_bytes()).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_text_without_nul_is_read_as_it_was(text in "[a-c01\\x00\\x01]{0,12}") {
            let stored = escaped(&text);
            prop_assert!(!stored.contains('\0'));
            prop_assert_eq!(unescaped(stored.into_owned()), text);
        }
    }

    #[test]
    fn keys_of_different_texts_differ_and_are_short() {
        let (long, other) = ("a".repeat(5_000), format!("{}b", "a".repeat(4_999)));
        let texts = ["", "a", "=a", "#a", "a\0", &long, &other];
        let keys: std::collections::HashSet<_> = texts.iter().map(|text| key(text)).collect();
        assert_eq!(keys.len(), texts.len());
        assert!(keys.iter().all(|key| key.len() <= 201 && !key.contains('\0')));
    }

    #[test]
    fn a_step_by_position_is_not_the_one_of_that_name() {
        assert_ne!(step_key(&StepKey::Order(1)), step_key(&StepKey::Name("1".into())));
    }
}
