//! Stores with one fault each, which the suite finds.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::FutureExt;
use octollm_core::{
    conformance::{Subject, task_store},
    event::Event,
    id::TaskId,
    parts::Caller,
    store::{Claim, Claimed, JournalEntry, MemoryStore, SideEffects, StoreError, TaskStore},
    task::{TaskQuery, TaskRecord, TaskUpdate},
};
use tokio::sync::watch;

/// What is wrong with a store.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    CreatesInTwoSteps,
    IgnoresLimits,
    IgnoresRevisions,
    CommitsInTwoSteps,
    ClaimsOldestFirst,
    RenewsForAnyone,
    ListsForAnyone,
    ListsOneMore,
    AppendsForAnyRun,
    AppendsLater,
    RepeatsUpdates,
    HidesGaps,
    ForgetsEvents,
    LosesOrder,
    PublishesNothing,
    HasManyRelays,
    WakesNobody,
}

#[derive(Clone)]
struct Faulty(Fault, Arc<MemoryStore>, Arc<watch::Sender<()>>);

#[async_trait]
impl Subject<dyn TaskStore> for Faulty {
    async fn open(&self) -> Arc<dyn TaskStore> {
        Arc::new(self.clone())
    }
}

impl Faulty {
    fn is(&self, fault: Fault) -> bool {
        self.0 == fault
    }
}

#[async_trait]
impl TaskStore for Faulty {
    async fn create(
        &self,
        record: TaskRecord,
        effects: SideEffects,
        max_queued: usize,
        max_queued_bytes: usize,
    ) -> Result<Arc<TaskRecord>, StoreError> {
        let (max, bytes) =
            if self.is(Fault::IgnoresLimits) { (99_999, 1 << 40) } else { (max_queued, max_queued_bytes) };
        if !self.is(Fault::CreatesInTwoSteps) {
            return self.1.create(record, effects, max, bytes).await;
        }
        self.1.create(record.clone(), SideEffects::default(), max, bytes).await?;
        tokio::task::yield_now().await;
        self.1.commit(record.clone(), effects).await?;
        Ok(Arc::new(record))
    }

    async fn get(&self, id: &TaskId) -> Result<Option<Arc<TaskRecord>>, StoreError> {
        self.1.get(id).await
    }

    async fn commit(&self, mut record: TaskRecord, mut effects: SideEffects) -> Result<(), StoreError> {
        if self.is(Fault::IgnoresRevisions) {
            let stored = self.1.get(record.id()).await?;
            record.set_revision(stored.map_or(0, |record| record.revision()));
        }
        if self.is(Fault::ForgetsEvents) {
            effects.events.clear();
        }
        if !self.is(Fault::CommitsInTwoSteps) {
            return self.1.commit(record, effects).await;
        }
        self.1.commit(record.clone(), SideEffects::default()).await?;
        tokio::task::yield_now().await;
        record.set_revision(record.revision() + 1);
        self.1.commit(record, effects).await
    }

    async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed, StoreError> {
        let mut claimed = self.1.claim(claim).await?;
        if self.is(Fault::ClaimsOldestFirst) {
            claimed.tasks.sort_by_key(|(record, _)| record.id().clone());
        }
        Ok(claimed)
    }

    async fn renew(
        &self,
        holder: &str,
        lease: Duration,
        runs: &[(TaskId, u32)],
    ) -> Result<Vec<(TaskId, u32)>, StoreError> {
        let held = self.1.renew(holder, lease, runs).await?;
        Ok(if self.is(Fault::RenewsForAnyone) { runs.to_vec() } else { held })
    }

    async fn list(
        &self,
        query: &TaskQuery,
        owner: Option<&Caller>,
    ) -> Result<Vec<Arc<TaskRecord>>, StoreError> {
        let owner = owner.filter(|_| !self.is(Fault::ListsForAnyone));
        let more = query.limit.unwrap_or(20) + usize::from(self.is(Fault::ListsOneMore));
        self.1.list(&query.clone().limit(more), owner).await
    }

    async fn journal(
        &self,
        id: &TaskId,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<JournalEntry>, StoreError> {
        self.1.journal(id, after, limit).await
    }

    async fn append(&self, id: &TaskId, run: u32, mut entry: JournalEntry) -> Result<(), StoreError> {
        let stored = self.1.get(id).await?.filter(|_| self.is(Fault::AppendsForAnyRun));
        if self.is(Fault::AppendsLater) {
            entry.seq += 1;
        }
        self.1.append(id, stored.map_or(run, |record| record.run()), entry).await
    }

    async fn append_updates(
        &self,
        id: &TaskId,
        run: u32,
        first: u64,
        updates: Vec<TaskUpdate>,
    ) -> Result<(), StoreError> {
        if self.is(Fault::RepeatsUpdates) {
            for update in updates {
                let mut effects = SideEffects::default();
                effects.updates.push(update);
                if let Some(record) = self.1.get(id).await? {
                    self.1.commit(TaskRecord::clone(&record), effects).await?;
                }
            }
            return Ok(());
        }
        self.1.append_updates(id, run, first, updates).await
    }

    async fn updates_after(
        &self,
        id: &TaskId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<TaskUpdate>, StoreError> {
        let mut updates = self.1.updates_after(id, after, limit).await?;
        if self.is(Fault::HidesGaps) {
            updates.retain(|update| !matches!(update, TaskUpdate::Gap { .. }));
        }
        Ok(updates)
    }

    async fn pending_events(&self, relay: &str, limit: usize) -> Result<Vec<Event>, StoreError> {
        let relay = if self.is(Fault::HasManyRelays) { "all" } else { relay };
        let mut events = self.1.pending_events(relay, limit).await?;
        if self.is(Fault::LosesOrder) {
            events.reverse();
        }
        Ok(events)
    }

    async fn published(&self, event_ids: &[String]) -> Result<(), StoreError> {
        if self.is(Fault::PublishesNothing) { Ok(()) } else { self.1.published(event_ids).await }
    }

    fn queue_changes(&self) -> watch::Receiver<()> {
        if self.is(Fault::WakesNobody) { self.2.subscribe() } else { self.1.queue_changes() }
    }

    fn event_changes(&self) -> watch::Receiver<()> {
        if self.is(Fault::WakesNobody) { self.2.subscribe() } else { self.1.event_changes() }
    }

    fn task_changes(&self, id: &TaskId) -> watch::Receiver<()> {
        if self.is(Fault::WakesNobody) { self.2.subscribe() } else { self.1.task_changes(id) }
    }
}

/// Each fault, and a case that finds it.
const FOUND: [(Fault, &str); 20] = [
    (Fault::CreatesInTwoSteps, "a_dropped_create_is_whole_or_nothing"),
    (Fault::IgnoresLimits, "create_refuses_what_exceeds_the_number_of_queued_tasks"),
    (Fault::IgnoresLimits, "create_refuses_what_exceeds_the_bytes_of_queued_tasks"),
    (Fault::IgnoresLimits, "creating_at_once_does_not_exceed_the_limit"),
    (Fault::IgnoresRevisions, "commit_refuses_an_older_revision_with_its_effects"),
    (Fault::IgnoresRevisions, "one_of_many_commits_of_a_revision_is_stored"),
    (Fault::CommitsInTwoSteps, "a_dropped_commit_is_whole_or_nothing"),
    (Fault::ClaimsOldestFirst, "claim_takes_the_highest_priority_and_then_the_oldest"),
    (Fault::RenewsForAnyone, "renew_returns_the_runs_that_hold_their_tasks"),
    (Fault::ListsForAnyone, "lists_select_by_owner"),
    (Fault::ListsOneMore, "lists_are_newest_first_and_have_a_limit"),
    (Fault::AppendsForAnyRun, "a_run_that_lost_its_task_stores_nothing"),
    (Fault::AppendsLater, "append_replaces_the_entry_of_its_step"),
    (Fault::RepeatsUpdates, "updates_that_were_appended_before_are_skipped"),
    (Fault::HidesGaps, "updates_that_are_dropped_are_a_gap"),
    (Fault::ForgetsEvents, "a_brain_that_dies_at_any_operation_completes_where_arms_honour_keys"),
    (Fault::LosesOrder, "events_wait_in_the_order_of_their_changes"),
    (Fault::PublishesNothing, "published_deletes_the_events_that_it_names"),
    (Fault::HasManyRelays, "one_relay_has_the_events_at_a_time"),
    (Fault::WakesNobody, "a_change_of_a_task_wakes_its_watchers"),
];

async fn holds(fault: Fault, case: &str) -> bool {
    let faulty = Faulty(fault, Arc::new(MemoryStore::new()), Arc::new(watch::Sender::new(())));
    AssertUnwindSafe(task_store(case, faulty)).catch_unwind().await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn the_suite_finds_each_fault_and_no_other() {
    for (fault, case) in FOUND {
        // Those of whole brains are long, and are run without a fault by the suite.
        let is_long = case.starts_with("a_brain");
        assert!(is_long || holds(Fault::None, case).await, "{case} holds without a fault");
        assert!(!holds(fault, case).await, "{case} finds {fault:?}");
    }
}

#[tokio::test]
#[should_panic(expected = "the suite has no case commits")]
async fn a_case_of_another_name_is_refused() {
    task_store("commits", Faulty(Fault::None, Arc::default(), Arc::default())).await;
}
