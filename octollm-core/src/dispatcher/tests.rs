use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::*;
use crate::contract::Violation;

/// A contract whose own code panics: where it is checked, and where its output is written.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Panics {
    in_check: bool,
}

#[derive(Deserialize, JsonSchema)]
struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("while it is written")
    }
}

impl TaskContract for Panics {
    type Output = Unwritable;
    type Chunk = ();
    const SPEC: ContractSpec = ContractSpec::new("test.panics", "/panics", "test:panics");

    fn check(&self) -> Result<(), Vec<Violation>> {
        assert!(!self.in_check, "while it is checked");
        Ok(())
    }
}

struct Arms;

#[async_trait]
impl Arm<Panics> for Arms {
    async fn execute(&self, _: Panics, _: &Context) -> Result<Unwritable, ArmError> {
        Ok(Unwritable)
    }
}

#[tokio::test]
async fn a_panic_of_the_contract_itself_is_a_failure_too() {
    let mut dispatcher = Dispatcher::new("test");
    dispatcher.serve::<Panics>(Arms);
    let contract = Panics::SPEC.reference();
    let checked = dispatcher.check(&contract, br#"{"in_check":true}"#);
    assert_eq!(checked.unwrap_err().kind, ErrorKind::ArmPanicked);
    for input in ["{\"in_check\":true}", "{\"in_check\":false}"] {
        let mut cx = Context::detached();
        let error = dispatcher.execute(&contract, input.as_bytes(), &mut cx).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ArmPanicked);
    }
}

/// Panics once more when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("while what was thrown is dropped")
    }
}

struct Throws;

#[async_trait]
impl Arm<Panics> for Throws {
    async fn execute(&self, _: Panics, _: &Context) -> Result<Unwritable, ArmError> {
        std::panic::panic_any(Bomb)
    }
}

#[tokio::test]
async fn a_panic_whose_value_panics_when_it_is_dropped_is_one_failure() {
    let mut dispatcher = Dispatcher::new("test");
    dispatcher.serve::<Panics>(Throws);
    let (contract, mut cx) = (Panics::SPEC.reference(), Context::detached());
    let result = dispatcher.execute(&contract, br#"{"in_check":false}"#, &mut cx).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::ArmPanicked);
}

struct Waits;

#[async_trait]
impl Arm<Panics> for Waits {
    async fn execute(&self, _: Panics, _: &Context) -> Result<Unwritable, ArmError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn work_is_cancelled_beside_work_that_spends_every_cooperative_budget() {
    let mut dispatcher = Dispatcher::new("test");
    dispatcher.serve::<Panics>(Waits);
    let (cancellation, begun) = (CancellationToken::new(), tokio::time::Instant::now());
    let mut cx = Context::detached().with_cancellation(cancellation.clone());
    tokio::spawn(async move {
        // Time passes only where nothing waits: it is moved on by hand.
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        cancellation.cancel();
        tokio::task::yield_now().await;
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
    });
    let greedy = poll_fn(|task| {
        while pin!(tokio::task::coop::consume_budget()).poll(task).is_ready() {}
        if begun.elapsed().as_secs() < 2 { Poll::Pending } else { Poll::Ready(()) }
    });
    let contract = Panics::SPEC.reference();
    let work = async {
        let result = dispatcher.execute(&contract, br#"{"in_check":false}"#, &mut cx).await;
        (result, begun.elapsed())
    };
    let ((), (result, took)) = tokio::join!(biased; greedy, work);
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(took < std::time::Duration::from_millis(1_200), "{took:?}");
}

struct Spends;

#[async_trait]
impl Arm<Panics> for Spends {
    async fn execute(&self, _: Panics, cx: &Context) -> Result<Unwritable, ArmError> {
        cx.spend(crate::budget::Usage::tokens(3))?;
        Err(cx.deadline().map_or("no deadline", |_| "a deadline").into())
    }
}

#[tokio::test(start_paused = true)]
async fn a_context_that_is_shared_is_narrowed_and_counts_what_the_arm_uses() {
    let mut dispatcher = Dispatcher::new("test");
    dispatcher.serve::<Panics>(Spends);
    let shared = Context::detached();
    let mut cx = shared.clone();
    let result = dispatcher.execute(&Panics::SPEC.reference(), br#"{"in_check":false}"#, &mut cx).await;
    let error = result.unwrap_err();
    let cause = error.source().map(ToString::to_string);
    assert_eq!((cause.as_deref(), error.into_failure().may_have_executed), (Some("a deadline"), true));
    assert_eq!((shared.used().tokens, cx.used().tokens), (3, 3));
    assert_eq!((shared.deadline(), shared.is_cancelled(), cx.is_cancelled()), (None, false, true));
}
