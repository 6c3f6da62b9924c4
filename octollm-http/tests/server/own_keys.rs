//! Callers without a brain that set keys of their own: `Arms` and `RestClient`, with arms that end half way.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{
    Arm, Context,
    error::{ArmError, ErrorKind},
    idempotency::MemoryIdempotencyStore,
};
use octollm_http::{Arms, RestClient, Server, io::Pipes};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, task::JoinHandle, time::sleep};

/// Moves money, after a while.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "card.charge", output = u32, timeout = "30s")]
struct Charge {
    cents: u32,
}

/// Looks up what was moved.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "card.balance", output = u32, idempotent)]
struct Balance {}

/// Takes a second for each charge, and counts them.
#[derive(Clone, Default)]
struct Bank(Arc<Counts>);

#[derive(Default)]
struct Counts {
    begun: AtomicU32,
    changed: Notify,
}

#[async_trait]
impl Arm<Charge> for Bank {
    async fn execute(&self, input: Charge, _: &Context) -> Result<u32, ArmError> {
        self.0.begun.fetch_add(1, SeqCst);
        self.0.changed.notify_one();
        sleep(Duration::from_secs(1)).await;
        Ok(input.cents)
    }
}

#[async_trait]
impl Arm<Balance> for Bank {
    async fn execute(&self, _: Balance, _: &Context) -> Result<u32, ArmError> {
        Ok(self.begun())
    }
}

impl Bank {
    fn begun(&self) -> u32 {
        self.0.begun.load(SeqCst)
    }

    fn server(&self) -> Server {
        Server::new("bank").arm::<Charge>(self.clone()).arm::<Balance>(self.clone())
    }

    /// A process of the arm at `http://<host>`, until it is aborted.
    fn start(&self, pipes: &Pipes, host: &str) -> JoinHandle<()> {
        started(self.server(), pipes, host)
    }
}

fn started(server: Server, pipes: &Pipes, host: &str) -> JoinHandle<()> {
    let running = server.listen(pipes.listen(host).unwrap()).unwrap();
    tokio::spawn(async move {
        let _ = running.run().await;
    })
}

fn arms(pipes: &Pipes, urls: &str) -> Arms {
    Arms::builder().connector(pipes.clone()).endpoint("bank", urls).build().unwrap()
}

fn rest(pipes: &Pipes) -> RestClient {
    RestClient::builder("http://bank").connector(pipes.clone()).name("bank").build().unwrap()
}

/// Ends the process of the arm while it works, and starts the next one.
async fn restart(bank: &Bank, process: JoinHandle<()>, pipes: &Pipes) -> JoinHandle<()> {
    bank.0.changed.notified().await;
    process.abort();
    let _ = process.await;
    bank.start(pipes, "bank")
}

fn charge() -> Charge {
    Charge { cents: 500 }
}

#[tokio::test(start_paused = true)]
async fn a_program_that_starts_again_repeats_its_call_and_gets_the_recorded_answer() {
    let (bank, pipes) = (Bank::default(), Pipes::new());
    let _process = bank.start(&pipes, "bank");
    {
        let first = arms(&pipes, "http://bank");
        assert_eq!(first.call(charge()).key("order-7").await.unwrap(), 500);
    }
    let next = arms(&pipes, "http://bank");
    assert_eq!(next.call(charge()).key("order-7").repeated().await.unwrap(), 500);
    assert_eq!((next.call(charge()).key("order-7").await.unwrap(), bank.begun()), (500, 1));
    let other = next.call(Charge { cents: 600 }).key("order-7").await.unwrap_err();
    assert_eq!((other.kind(), other.failure().kind.status()), (ErrorKind::ValidationFailed, 422));
    assert_eq!(bank.begun(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_caller_ends_while_the_arm_works_is_not_run_again() {
    let (bank, pipes) = (Bank::default(), Pipes::new());
    let _process = bank.start(&pipes, "bank");
    let first = arms(&pipes, "http://bank");
    tokio::select! {
        _ = first.call(charge()).key("order-7") => unreachable!(),
        () = bank.0.changed.notified() => {}
    }
    let next = arms(&pipes, "http://bank");
    let unknown = next.call(charge()).key("order-7").repeated().retry(3).await.unwrap_err();
    assert_eq!((unknown.kind(), bank.begun()), (ErrorKind::OutcomeUnknown, 1));
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_is_restarted_half_way_runs_a_call_with_a_key_once() {
    let (bank, pipes) = (Bank::default(), Pipes::new());
    let process = bank.start(&pipes, "bank");
    let client = arms(&pipes, "http://bank");
    let (answer, _process) =
        tokio::join!(client.call(charge()).key("order-7").retry(5), restart(&bank, process, &pipes));
    assert_eq!((answer.unwrap_err().kind(), bank.begun()), (ErrorKind::OutcomeUnknown, 1));
    // Neither does the next program that says so.
    let next = arms(&pipes, "http://bank").call(charge()).key("order-7").repeated().await;
    assert_eq!((next.unwrap_err().kind(), bank.begun()), (ErrorKind::OutcomeUnknown, 1));
}

#[tokio::test(start_paused = true)]
async fn a_call_with_a_key_goes_elsewhere_where_it_did_not_run_or_records_are_shared() {
    // Nothing listens at the first host.
    let (bank, pipes) = (Bank::default(), Pipes::new());
    let _process = bank.start(&pipes, "bank");
    let client = arms(&pipes, "http://nobody,http://bank");
    for order in ["order-1", "order-2", "order-3"] {
        assert_eq!(client.call(charge()).key(order).await.unwrap(), 500);
    }
    assert_eq!(bank.begun(), 3);

    // The arm ends half way: the other process has the record of the run, which is unknown.
    let (bank, pipes, store) =
        (Bank::default(), Pipes::new(), Arc::new(MemoryIdempotencyStore::new().shared()));
    let start = |host| started(bank.server().idempotency(store.clone()), &pipes, host);
    let processes = [start("one"), start("two")];
    let client = arms(&pipes, "http://one,http://two");
    let ends = async {
        bank.0.changed.notified().await;
        processes.iter().for_each(JoinHandle::abort);
        for process in processes {
            let _ = process.await;
        }
        [start("one"), start("two")]
    };
    let (answer, _processes) = tokio::join!(client.call(charge()).key("order-7").retry(5), ends);
    assert_eq!((answer.unwrap_err().kind(), bank.begun()), (ErrorKind::OutcomeUnknown, 1));
    // A record that is shared answers at each of them.
    for _ in 0..4 {
        let other = arms(&pipes, "http://one,http://two");
        assert_eq!(other.call(charge()).key("order-8").repeated().await.unwrap(), 500);
    }
    assert_eq!(bank.begun(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_arm_that_does_not_honour_keys_does_not_get_the_call() {
    let (bank, pipes) = (Bank::default(), Pipes::new());
    let _process = started(bank.server().idempotency(()), &pipes, "bank");
    let client = arms(&pipes, "http://bank");
    let refused = client.call(charge()).key("order-7").retry(3).await.unwrap_err();
    assert_eq!((refused.kind(), refused.may_have_executed()), (ErrorKind::NotImplemented, false));
    assert_eq!((refused.attempts(), bank.begun()), (0, 0), "{refused}");
    let unknown = client.call(charge()).key("order-7").repeated().await.unwrap_err();
    assert_eq!((unknown.kind(), bank.begun()), (ErrorKind::OutcomeUnknown, 0));
    assert_eq!(client.call(Balance {}).key("order-7").await.unwrap(), 0, "an idempotent contract");
    assert_eq!(client.call(charge()).await.unwrap(), 500, "without a key");
    // The card of a service that is no arm of octollm states nothing.
    let client = Arms::builder().connector(pipes.clone()).endpoint_serving::<Charge>("bank", "http://bank");
    let refused = client.build().unwrap().call(charge()).key("order-7").await.unwrap_err();
    assert_eq!((refused.kind(), bank.begun()), (ErrorKind::NotImplemented, 1));
}

#[tokio::test(start_paused = true)]
async fn a_key_in_quotes_and_one_without_are_the_same() {
    let (bank, pipes) = (Bank::default(), Pipes::new());
    let _process = bank.start(&pipes, "bank");
    let key = "order 7/a;b=\\1";
    for _ in 0..2 {
        let paid: u32 = rest(&pipes).post("charge").json(&charge()).key(key).send().await.unwrap();
        assert_eq!((paid, bank.begun()), (500, 1));
    }
    let same = arms(&pipes, "http://bank").call(charge()).key(key).await.unwrap();
    assert_eq!((same, bank.begun()), (500, 1));
    // Quotes by hand are those of the field.
    let quoted = rest(&pipes).post("charge").json(&charge()).key(r#""order 7/a;b=\\1""#);
    assert_eq!((quoted.send::<u32>().await.unwrap(), bank.begun()), (500, 1));
    let list = rest(&pipes).post("charge").json(&charge()).key("a, b").send::<u32>().await.unwrap_err();
    assert_eq!((list.kind(), bank.begun()), (ErrorKind::BadRequest, 1));
}

#[tokio::test(start_paused = true)]
async fn a_request_at_an_arm_that_is_restarted_half_way_runs_once() {
    let (bank, pipes) = (Bank::default(), Pipes::new());
    let process = bank.start(&pipes, "bank");
    let client = rest(&pipes);
    let request = client.post("charge").json(&charge()).key("order-8").retry(5).send::<u32>();
    let (answer, _process) = tokio::join!(request, restart(&bank, process, &pipes));
    let error = answer.unwrap_err();
    assert_eq!((error.kind(), bank.begun(), error.attempts()), (ErrorKind::OutcomeUnknown, 1, 2), "{error}");
    let next = rest(&pipes).post("charge").json(&charge()).key("order-8").repeated().send::<u32>().await;
    assert_eq!((next.unwrap_err().kind(), bank.begun()), (ErrorKind::OutcomeUnknown, 1));
    let no_key = rest(&pipes).post("charge").json(&charge()).repeated().send::<u32>().await.unwrap_err();
    assert_eq!((no_key.kind(), no_key.attempts()), (ErrorKind::BadRequest, 0));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_an_arm_did_not_run_is_sent_again_and_runs() {
    let (bank, pipes) = (Bank::default(), Pipes::new());
    // One record at a time: the second request is refused before it runs, and is not marked as one that may have run.
    let store = MemoryIdempotencyStore::new().max_records(1).retained_for(Duration::from_secs(1));
    let _process = started(bank.server().idempotency(store), &pipes, "bank");
    for order in ["order-1", "order-2"] {
        let request = rest(&pipes).post("charge").json(&charge()).key(order).retry(5);
        assert_eq!(request.send::<u32>().await.unwrap(), 500, "{order}");
    }
    assert_eq!(bank.begun(), 2);
}
