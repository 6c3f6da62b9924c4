//! Events that are never lost, and handled once: an outbox and an inbox in the database of a shop.
//!
//! ```text
//! cargo run --example outbox --features sql
//! ```
//!
//! Each order is stored together with its event, in one transaction. A relay publishes the events on a durable bus. The warehouse handles
//! each of them at least once, and has its effect once: the mark of the inbox is stored with the effect. Every second order is
//! rolled back, and every third delivery is handled twice.

use octollm::{
    bus::{ConsumeOptions, DurableBus},
    event::Event,
    sql::{Inbox, Outbox, SqlBus, SqlDatabase, sqlx},
};
use sqlx::sqlite::SqlitePoolOptions;

const ORDERS: i64 = 10;

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite:{}", folder.path().join("shop.db").display());
    let database = SqlDatabase::open(&url).await?;
    let (outbox, inbox) = (Outbox::open(&database).await?, Inbox::open(&database, "warehouse").await?);
    let bus = SqlBus::open(&database).await?;
    let mut events =
        bus.consume("warehouse", "events:order:paid".parse()?, ConsumeOptions::default()).await?;
    tokio::spawn(outbox.relay(bus));

    // The tables of the shop, on connections of its own.
    let pool = SqlitePoolOptions::new().connect(&url).await?;
    sqlx::query("CREATE TABLE orders (id INTEGER PRIMARY KEY)").execute(&pool).await?;
    sqlx::query("CREATE TABLE parcels (number INTEGER)").execute(&pool).await?;

    for id in 1..=ORDERS {
        let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("INSERT INTO orders (id) VALUES ($1)").bind(id).execute(&mut *tx).await?;
        let event = Event::new("order.paid", "shop", id)?.with_partition_key(id.to_string());
        outbox.enqueue(&mut tx, &event).await?;
        if id % 2 == 0 { tx.rollback().await? } else { tx.commit().await? }
    }

    for handled in 1..=ORDERS / 2 {
        let Some(Ok(delivery)) = events.next().await else { break };
        let event = delivery.event();
        // As if the acknowledgement had been lost.
        for _ in 0..if handled % 3 == 0 { 2 } else { 1 } {
            let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
            let is_first = inbox.once(&mut tx, event).await?;
            if is_first {
                let number: i64 = event.data_as()?;
                sqlx::query("INSERT INTO parcels (number) VALUES ($1)")
                    .bind(number)
                    .execute(&mut *tx)
                    .await?;
            }
            tx.commit().await?;
            println!(
                "order {}: {}",
                event.data(),
                if is_first { "a parcel is sent" } else { "was sent before" }
            );
        }
        delivery.ack().await?;
    }
    let parcels: i64 = sqlx::query_scalar("SELECT count(*) FROM parcels").fetch_one(&pool).await?;
    println!("{parcels} parcels for {} orders", ORDERS / 2);
    assert_eq!(parcels, ORDERS / 2);
    Ok(())
}
