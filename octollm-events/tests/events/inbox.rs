//! Case 50: an effect together with the mark of its event.

use crate::*;

on_both! {
    case_50_an_event_that_is_handled_several_times_at_once_has_its_effect_once
    case_50_an_effect_that_is_rolled_back_is_made_again
    marks_are_of_one_handler_and_one_source_and_end
}

async fn effects(fixture: &Fixture) -> i64 {
    fixture.count("SELECT count(*) FROM effects").await
}

async fn case_50_an_event_that_is_handled_several_times_at_once_has_its_effect_once(fixture: Fixture) {
    let inbox = Inbox::open(&fixture.database().await, "billing").await.unwrap();
    for round in 0..10 {
        let sent = event(round);
        let handlers = (0..8).map(|_| {
            let (pool, inbox, sent) = (fixture.pool.clone(), inbox.clone(), sent.clone());
            tokio::spawn(async move {
                let mut tx = pool.begin().await;
                let first = tx.once(&inbox, &sent).await;
                if first {
                    tx.execute("INSERT INTO effects (name, number) VALUES ('billed', 1)").await;
                }
                tx.commit().await;
                usize::from(first)
            })
        });
        let mut firsts = 0;
        for handler in handlers.collect::<Vec<_>>() {
            firsts += handler.await.unwrap();
        }
        assert_eq!((firsts, effects(&fixture).await), (1, round as i64 + 1));
    }
}

async fn case_50_an_effect_that_is_rolled_back_is_made_again(fixture: Fixture) {
    let inbox = Inbox::open(&fixture.database().await, "billing").await.unwrap();
    let sent = event(1);
    for _ in 0..3 {
        let mut tx = fixture.begin().await;
        assert!(tx.once(&inbox, &sent).await);
        tx.execute("INSERT INTO effects (name, number) VALUES ('billed', 1)").await;
        // The handler crashes: the connection rolls back.
        drop(tx);
    }
    assert_eq!(effects(&fixture).await, 0);
    for first in [true, false] {
        let mut tx = fixture.begin().await;
        assert_eq!(tx.once(&inbox, &sent).await, first);
        tx.commit().await;
    }
}

async fn marks_are_of_one_handler_and_one_source_and_end(fixture: Fixture) {
    let database = fixture.database().await;
    assert!(matches!(Inbox::open(&database, "").await, Err(SqlError::Setting(_))));
    let (one, other) =
        (Inbox::open(&database, "one").await.unwrap(), Inbox::open(&database, "other").await.unwrap());
    let same_id = Event::new("order.paid", "another shop", 1).unwrap().with_id("1").unwrap();
    let sent = event(1).with_id("1").unwrap();
    let mut tx = fixture.begin().await;
    assert!(tx.once(&one, &sent).await && tx.once(&other, &sent).await && tx.once(&one, &same_id).await);
    assert!(!tx.once(&one, &sent).await && !tx.once(&other, &sent).await && !tx.once(&one, &same_id).await);
    tx.commit().await;
    // A mark whose time is over is removed by a later one, in the background.
    let short = Inbox::open(&database, "short").await.unwrap().retention(Duration::ZERO);
    let mut tx = fixture.begin().await;
    assert!(tx.once(&short, &sent).await);
    tx.commit().await;
    let next = Inbox::open(&database, "next").await.unwrap();
    let mut tx = fixture.begin().await;
    assert!(tx.once(&next, &sent).await);
    tx.commit().await;
    timeout(LIMIT, async {
        while fixture.count("SELECT count(*) FROM octollm_inbox").await != 4 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}
