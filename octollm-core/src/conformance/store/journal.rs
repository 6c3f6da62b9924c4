//! The journal of a task.

use jiff::Timestamp;

use super::{Stores, fixture::*};
use crate::{
    clock,
    error::{ErrorKind, Failure},
    id::TaskId,
    store::{JournalEntry, Recorded, TaskStore},
    task::TaskResult,
};

async fn append(store: &Store, id: &TaskId, entry: JournalEntry) {
    store.append(id, 1, entry).await.expect("the entry is written");
}

async fn journal(store: &Store, id: &TaskId) -> Vec<String> {
    state(store, id).await.journal
}

pub(super) async fn the_journal_is_read_in_order_and_by_pages(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = running(&store, 1).await;
    let id = record.id();
    // In another order than that of their positions, with positions left out.
    let positions: Vec<u64> = (0..300).map(|number| number * 7 % 300 * 2).collect();
    for position in &positions {
        append(&store, id, entry(*position, format!("step {position}"), output("1"))).await;
    }
    let page = async |after, limit| {
        let entries = other.journal(id, after, limit).await.expect("the journal is read");
        entries.iter().map(|entry| entry.seq).collect::<Vec<_>>()
    };
    let all: Vec<u64> = (0..300).map(|number| number * 2).collect();
    assert_eq!(page(None, MANY).await, all, "entries have the order of their positions");
    assert_eq!(page(None, 7).await, all[..7]);
    assert_eq!(page(Some(0), 7).await, all[1..8], "a page begins after its position");
    assert_eq!(page(Some(11), 3).await, all[6..9], "also where no entry has it");
    assert_eq!(page(Some(598), 7).await, [] as [u64; 0]);
    assert_eq!(page(Some(u64::MAX), usize::MAX).await, [] as [u64; 0]);
    assert_eq!(page(None, 0).await, [] as [u64; 0]);
    let mut read = Vec::new();
    loop {
        let more = page(read.last().copied(), 64).await;
        if more.is_empty() {
            break;
        }
        read.extend(more);
    }
    assert_eq!(read, all, "the pages have each entry once");
}

pub(super) async fn append_replaces_the_entry_of_its_step(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = running(&store, 1).await;
    let id = record.id();
    let failed = || Recorded::Failure(Box::new(Failure::of(ErrorKind::Unavailable)));
    append(&store, id, entry(0, 0, Recorded::Begun)).await;
    append(&store, id, entry(1, "named", Recorded::Again { last: 1 })).await;
    append(&other, id, entry(5, 0, Recorded::Handle("job".to_owned()))).await;
    append(&store, id, entry(2, "named", failed())).await;
    append(&store, id, entry(3, 0, output("3"))).await;
    let expected = [entry(2, "named", failed()), entry(3, 0, output("3"))];
    assert_eq!(journal(&other, id).await, expected.each_ref().map(content), "each step has its last entry");
}

pub(super) async fn appending_twice_is_appending_once(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let record = running(&store, 1).await;
    let id = record.id();
    let entries = [entry(0, 0, output("0")), entry(1, "named", Recorded::Begun), entry(2, 1, output("2"))];
    for store in [&store, &other, &store] {
        for entry in &entries {
            append(store, id, entry.clone()).await;
        }
    }
    assert_eq!(journal(&store, id).await, entries.each_ref().map(content));
}

pub(super) async fn append_sets_the_time_by_the_clock_of_the_store(subject: &Stores) {
    let (store, _) = pair(subject).await;
    let record = running(&store, 1).await;
    append(&store, record.id(), entry(0, 0, output("0"))).await;
    let mut late = entry(1, 1, output("1"));
    late.at = Timestamp::MAX;
    append(&store, record.id(), late).await;
    let next = running(&store, 2).await;
    let journal = store.journal(record.id(), None, MANY).await.expect("the journal is read");
    let times = [record.task().updated_at, journal[0].at, journal[1].at, next.task().updated_at];
    // Databases round to microseconds.
    let rounded = times.map(|time| time.as_microsecond());
    assert!(rounded.is_sorted(), "claims and entries have times of one clock: {times:?}");
}

pub(super) async fn a_change_discards_steps_and_then_writes_entries(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let mut record = running(&store, 1).await;
    let id = record.id().clone();
    for position in 0..6_u32 {
        append(&store, &id, entry(position.into(), position, output("1"))).await;
    }
    append(&store, &id, entry(6, "named", output("1"))).await;
    let failure = Failure::of(ErrorKind::Unavailable);
    record.fail((&failure).into(), clock::now()).expect("it runs");
    let mut effects = effects_of(&record);
    effects.discarded = vec![1.into(), "named".into(), "unknown".into(), 4.into(), 77.into()];
    effects.journal = vec![entry(4, 4, Recorded::Again { last: 6 }), entry(9, 0, output("2"))];
    store.commit(record.clone(), effects).await.expect("the change is stored");
    let earlier = [2, 3].map(|position: u32| entry(position.into(), position, output("1")));
    let last = [entry(4, 4, Recorded::Again { last: 6 }), entry(5, 5, output("1")), entry(9, 0, output("2"))];
    let expected: Vec<_> = earlier.iter().chain(&last).map(content).collect();
    assert_eq!(journal(&other, &id).await, expected);
    record.set_revision(record.revision() + 1);
    record.rerun(true, clock::now()).expect("it has failed");
    store.commit(record.clone(), effects_of(&record)).await.expect("the change is stored");
    let mut record = claim(&store, "brain", LONG, 1).await.remove(0);
    store.append(&id, 2, entry(10, 1, output("3"))).await.expect("a discarded step is written again");
    record.complete(TaskResult::new(1), clock::now()).expect("it runs");
    store.commit(record.clone(), effects_of(&record)).await.expect("the change is stored");
    let expected = [expected, vec![content(&entry(10, 1, output("3")))]].concat();
    assert_eq!(journal(&other, &id).await, expected, "the journal outlives its task's end");
}

pub(super) async fn a_step_by_position_is_not_one_by_name(subject: &Stores) {
    let (store, other) = pair(subject).await;
    let mut record = running(&store, 1).await;
    let id = record.id().clone();
    let names = ["3", "03", "", " ", "Name", "name", "order:3", "4294967295"];
    append(&store, &id, entry(0, 3, output("0"))).await;
    let mut expected = vec![content(&entry(0, 3, output("0")))];
    for (position, name) in (1..).zip(names) {
        append(&store, &id, entry(position, name, output("1"))).await;
        expected.push(content(&entry(position, name, output("1"))));
    }
    assert_eq!(journal(&other, &id).await, expected, "each has an entry");
    record.complete(TaskResult::new(1), clock::now()).expect("it runs");
    let mut effects = effects_of(&record);
    effects.discarded.push("3".into());
    store.commit(record.clone(), effects).await.expect("the change is stored");
    expected.remove(1);
    assert_eq!(journal(&other, &id).await, expected, "one alone is discarded");
}
