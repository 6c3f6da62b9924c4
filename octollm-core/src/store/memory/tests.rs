//! The queue of a store, compared with a list that is searched from its begin to its end.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::advance;

use super::*;
use crate::{
    clock,
    contract::ContractRef,
    error::{ErrorKind, Failure},
    json::RawJson,
    parts::ContextParts,
    task::{Priority, Submission, TaskRequest, TaskResult},
};

const PRIORITIES: [Priority; 3] = [Priority::Low, Priority::Medium, Priority::Critical];
const CONTRACTS: [&str; 3] = ["a.run", "b.run", "c.run"];
/// Attempts of each task.
const ATTEMPTS: u32 = 3;
const MAX_QUEUED: usize = 5;
const LEASE: u64 = 10;

#[derive(Debug, Clone)]
enum Step {
    Submit {
        contract: usize,
        priority: usize,
        at: Option<u64>,
        delay: Option<u64>,
        key: Option<u8>,
    },
    /// Claims tasks of the contracts from `first` on, with a limit on each.
    Claim {
        first: usize,
        room: usize,
        limits: [Option<usize>; 3],
    },
    Renew,
    Complete(usize),
    Fail(usize),
    Retry(usize, u64),
    Release(usize),
    Cancel(usize),
    Rerun(usize),
    Advance(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let time = || prop::option::weighted(0.3, 0..20_u64);
    let submit = (0..3_usize, 0..3_usize, time(), time(), prop::option::weighted(0.4, 0..2_u8));
    let limit = || prop::option::of(1..3_usize);
    let step = prop_oneof![
        4 => submit.prop_map(|(contract, priority, at, delay, key)| Step::Submit { contract, priority, at, delay, key }),
        4 => (0..3_usize, 1..4_usize, [limit(), limit(), limit()])
            .prop_map(|(first, room, limits)| Step::Claim { first, room, limits }),
        1 => Just(Step::Renew),
        2 => (0..8_usize).prop_map(Step::Complete),
        2 => (0..8_usize).prop_map(Step::Fail),
        2 => (0..8_usize, 0..12_u64).prop_map(|(task, delay)| Step::Retry(task, delay)),
        1 => (0..8_usize).prop_map(Step::Release),
        1 => (0..8_usize).prop_map(Step::Cancel),
        2 => (0..8_usize).prop_map(Step::Rerun),
        3 => (1..8_u64).prop_map(Step::Advance),
    ];
    prop::collection::vec(step, 0..60)
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    /// Free from this second on.
    Queued(u64),
    /// Held until this second.
    Leased(u64),
    Failed,
    Ended,
}

#[derive(Debug, Clone)]
struct Known {
    id: TaskId,
    contract: usize,
    priority: Priority,
    key: Option<u8>,
    state: State,
    left: u32,
}

/// The reference: tasks in the order of their submission.
#[derive(Default)]
struct Model {
    tasks: Vec<Known>,
    now: u64,
}

impl Model {
    fn is_open(task: &Known) -> bool {
        matches!(task.state, State::Queued(_) | State::Leased(_))
    }

    fn open_with(&self, contract: usize, key: Option<u8>) -> Option<TaskId> {
        let same = |task: &&Known| key.is_some() && task.key == key && task.contract == contract;
        self.tasks.iter().filter(same).find(|task| Self::is_open(task)).map(|task| task.id.clone())
    }

    fn queued(&self) -> usize {
        self.tasks.iter().filter(|task| matches!(task.state, State::Queued(_))).count()
    }

    fn claim(&mut self, first: usize, room: usize, limits: [Option<usize>; 3]) -> Vec<TaskId> {
        let mut claimed = Vec::new();
        while claimed.len() < room {
            let runs = |contract: usize| {
                let of = self.tasks.iter().filter(|task| task.contract == contract);
                of.filter(|task| matches!(task.state, State::Leased(until) if until > self.now)).count()
            };
            let free = self.tasks.iter().enumerate().filter(|(_, task)| match task.state {
                State::Queued(at) => at <= self.now,
                State::Leased(until) => until <= self.now,
                _ => false,
            });
            let mine = free.filter(|(_, task)| task.contract >= first);
            let below =
                mine.filter(|(_, task)| limits[task.contract].is_none_or(|most| runs(task.contract) < most));
            let Some((next, _)) = below.min_by_key(|(n, task)| (std::cmp::Reverse(task.priority), *n)) else {
                break;
            };
            self.tasks[next].state = State::Leased(self.now + LEASE);
            claimed.push(self.tasks[next].id.clone());
        }
        claimed
    }

    fn free_in(&self, first: usize) -> Option<Duration> {
        let mine = self.tasks.iter().filter(|task| task.contract >= first);
        let later = mine.filter_map(|task| match task.state {
            State::Queued(at) if at > self.now => Some(at - self.now),
            _ => None,
        });
        later.min().map(Duration::from_secs)
    }

    /// One of the tasks in such a state, by its position.
    fn nth(&self, n: usize, wanted: impl Fn(&State) -> bool) -> Option<usize> {
        let those: Vec<_> = (0..self.tasks.len()).filter(|&at| wanted(&self.tasks[at].state)).collect();
        those.get(n % those.len().max(1)).copied()
    }
}

fn contract(n: usize) -> ContractRef {
    CONTRACTS[n].parse().unwrap()
}

async fn play(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (store, begin, mut model) = (MemoryStore::new(), clock::now(), Model::default());
    for step in steps {
        let now = begin + Duration::from_secs(model.now);
        let running = |state: &State| matches!(state, State::Leased(_));
        let of = |model: &Model, at: usize| model.tasks[at].id.clone();
        match step {
            Step::Submit { contract: of, priority, at, delay, key } => {
                let mut submission = Submission::from(TaskRequest::new("g")).attempts(ATTEMPTS);
                (submission.contract, submission.priority) = (contract(of), PRIORITIES[priority]);
                submission.unique = key.map(|key| key.to_string());
                submission.run_at = at.map(|at| begin + Duration::from_secs(at));
                let record = TaskRecord::new(submission, &ContextParts::new(), Duration::from_secs(900), now);
                let delay_time = delay.map(Duration::from_secs);
                let effects = SideEffects { delay: delay_time, ..SideEffects::default() };
                let id = record.id().clone();
                let stored = store.create(record, effects, MAX_QUEUED, usize::MAX).await;
                if let Some(existing) = model.open_with(of, key) {
                    prop_assert_eq!(stored.unwrap().id().clone(), existing);
                } else if model.queued() >= MAX_QUEUED {
                    prop_assert!(matches!(stored, Err(StoreError::Full)));
                } else {
                    prop_assert_eq!(stored.unwrap().id().clone(), id.clone());
                    let from = delay.map_or(at.unwrap_or(0), |delay| model.now + delay);
                    let (state, priority, left) = (State::Queued(from), PRIORITIES[priority], ATTEMPTS - 1);
                    model.tasks.push(Known { id, contract: of, priority, key, state, left });
                }
            }
            Step::Claim { first, room, limits } => {
                let contracts: Vec<_> = (first..3).map(contract).collect();
                let limited = |n: usize| limits[n].map(|most| (contract(n), most));
                let max_running: Vec<_> = (0..3).filter_map(limited).collect();
                let lease = Duration::from_secs(LEASE);
                let (contracts, max_running) = (&*contracts, &*max_running);
                let claim = Claim { holder: "b", contracts, lease, limit: room, max_running, source: "b" };
                let claimed = store.claim(&claim).await.unwrap();
                let expected = model.claim(first, room, limits);
                let ids: Vec<_> = claimed.tasks.iter().map(|(record, _)| record.id().clone()).collect();
                prop_assert_eq!(&ids, &expected);
                let known = ids.len() < room;
                prop_assert_eq!(claimed.free_in, model.free_in(first).filter(|_| known));
            }
            Step::Renew => {
                let mut runs = Vec::new();
                for task in model.tasks.iter_mut().filter(|task| running(&task.state)) {
                    task.state = State::Leased(model.now + LEASE);
                    runs.push((task.id.clone(), store.get(&task.id).await.unwrap().unwrap().run()));
                }
                let held = store.renew("b", Duration::from_secs(LEASE), &runs).await.unwrap();
                prop_assert_eq!(held, runs);
            }
            Step::Complete(n) | Step::Fail(n) | Step::Retry(n, _) | Step::Release(n) => {
                let Some(at) = model.nth(n, running) else { continue };
                let mut record = TaskRecord::clone(&*store.get(&of(&model, at)).await.unwrap().unwrap());
                let (mut effects, task) = (SideEffects::default(), &mut model.tasks[at]);
                task.state = match step {
                    Step::Complete(_) => {
                        record.complete(TaskResult::new(RawJson::object()), now).unwrap();
                        State::Ended
                    }
                    Step::Retry(_, delay) if task.left > 0 => {
                        record.retry((&Failure::of(ErrorKind::Unavailable)).into(), now).unwrap();
                        effects.delay = Some(Duration::from_secs(delay));
                        task.left -= 1;
                        State::Queued(model.now + delay)
                    }
                    Step::Release(_) => {
                        record.release(now).unwrap();
                        State::Queued(0)
                    }
                    _ => {
                        record.fail((&Failure::of(ErrorKind::ArmFailed)).into(), now).unwrap();
                        State::Failed
                    }
                };
                store.commit(record, effects).await.unwrap();
            }
            Step::Cancel(n) => {
                let Some(at) = model.nth(n, |state| matches!(state, State::Queued(_) | State::Leased(_)))
                else {
                    continue;
                };
                let mut record = TaskRecord::clone(&*store.get(&of(&model, at)).await.unwrap().unwrap());
                record.cancel(now).unwrap();
                store.commit(record, SideEffects::default()).await.unwrap();
                model.tasks[at].state = State::Ended;
            }
            Step::Rerun(n) => {
                let Some(at) = model.nth(n, |state| *state == State::Failed) else { continue };
                let mut record = TaskRecord::clone(&*store.get(&of(&model, at)).await.unwrap().unwrap());
                record.rerun(false, now).unwrap();
                let committed = store.commit(record, SideEffects::default()).await;
                let task = &model.tasks[at];
                if model.open_with(task.contract, task.key).is_some() {
                    prop_assert!(matches!(committed, Err(StoreError::NotUnique)));
                } else {
                    committed.unwrap();
                    (model.tasks[at].state, model.tasks[at].left) = (State::Queued(0), ATTEMPTS - 1);
                }
            }
            Step::Advance(seconds) => {
                model.now += seconds;
                advance(Duration::from_secs(seconds)).await;
            }
        }
        let tables = store.tables();
        prop_assert_eq!(tables.index.queued(), model.queued());
        prop_assert!(tables.index.counts_the_delayed());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_queue_is_that_of_a_list_that_is_searched(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(play(steps))?;
    }
}

#[tokio::test(start_paused = true)]
async fn a_delayed_task_and_one_that_makes_room_are_changes_of_the_queue() {
    let store = MemoryStore::new();
    let mut changes = store.queue_changes();
    let record =
        TaskRecord::new(TaskRequest::new("g").into(), &ContextParts::new(), LEASE_TIME, clock::now());
    let later = SideEffects { delay: Some(Duration::from_secs(60)), ..SideEffects::default() };
    let stored = store.create(record, later, 1, usize::MAX).await.unwrap();
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert_eq!(stored.run_at(), Some(store.now() + Duration::from_secs(60)));
    let mut record = TaskRecord::clone(&stored);
    record.cancel(clock::now()).unwrap();
    let room = SideEffects { makes_room: true, ..SideEffects::default() };
    store.commit(record, room).await.unwrap();
    assert!(changes.has_changed().unwrap());
}

const LEASE_TIME: Duration = Duration::from_secs(LEASE);
