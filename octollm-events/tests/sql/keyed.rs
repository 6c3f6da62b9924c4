//! Calls with a key whose records are in a database.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use octollm_core::{
    Context, arm::arm_fn, contract::TaskContract, dispatcher::Dispatcher, error::ArmError,
    id::IdempotencyKey, parts::ContextParts,
};
use octollm_events::sql::{SqlDatabase, SqlIdempotencyStore};
use octollm_macros::TaskContract;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::subject::{OnPostgres, OnSqlite};

/// Charges a card.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "card.charge", output = u32)]
struct Charge {
    cents: u32,
}

/// As where the process of the caller is killed while its call arrives: the next one makes the call again.
async fn dropped_while_its_record_begins(url: &str) {
    let database = SqlDatabase::open(url).await.unwrap();
    let charged = Arc::new(AtomicU32::new(0));
    let mut dispatcher = Dispatcher::new("bank");
    dispatcher.idempotency(SqlIdempotencyStore::open(&database).await.unwrap());
    let count = charged.clone();
    dispatcher.serve::<Charge>(arm_fn(move |input: Charge, _| {
        let count = count.clone();
        async move { Ok::<_, ArmError>(count.fetch_add(input.cents, Ordering::SeqCst) + input.cents) }
    }));
    let contract = Charge::SPEC.reference();
    let context = || {
        let mut parts = ContextParts::new();
        parts.key = IdempotencyKey::new("k");
        Context::from_parts(parts, Arc::new(()))
    };
    let mut dropped = context();
    // One poll begins the record.
    assert!(dispatcher.execute(&contract, br#"{"cents":5}"#, &mut dropped).now_or_never().is_none());
    let end = Instant::now() + Duration::from_secs(10);
    let output = loop {
        // While the record is withdrawn, the call is answered that it runs.
        match dispatcher.execute(&contract, br#"{"cents":5}"#, &mut context()).await {
            Ok(output) => break output,
            Err(error) => assert!(Instant::now() < end, "{error:?}"),
        }
        sleep(Duration::from_millis(10)).await;
    };
    assert_eq!((&output[..], charged.load(Ordering::SeqCst)), (&b"5"[..], 5));
}

mod sqlite {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_call_that_is_dropped_while_its_record_begins_runs_when_it_is_repeated() {
        super::dropped_while_its_record_begins(&super::OnSqlite::new().url()).await;
    }
}

mod on_postgres {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_call_that_is_dropped_while_its_record_begins_runs_when_it_is_repeated() {
        super::dropped_while_its_record_begins(&super::OnPostgres::new().url()).await;
    }
}
