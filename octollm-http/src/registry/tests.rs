use octollm_core::card::ArmStatus;

use super::*;

fn claim(status: ArmStatus, lifetime: u64) -> Claim {
    let mut card = ArmCard::new("judge");
    (card.endpoint, card.status) = (Some("http://judge".into()), status);
    let lifetime = Duration::from_secs(lifetime);
    Claim { holder: Holder::default(), card, bytes: 100, lifetime, proof: None, time: 1_700_000_000 }
}

#[tokio::test(start_paused = true)]
async fn the_list_of_cards_is_made_again_only_where_it_has_changed() {
    let registry = Registry::new();
    registry.register(claim(ArmStatus::Healthy, 30)).unwrap();
    let first = registry.listed();
    for _ in 0..10 {
        tokio::time::advance(Duration::from_secs(10)).await;
        registry.register(claim(ArmStatus::Healthy, 30)).unwrap();
        assert!(Arc::ptr_eq(&first, &registry.listed()));
    }
    registry.register(claim(ArmStatus::Degraded, 30)).unwrap();
    assert_eq!(registry.listed()[0].status, ArmStatus::Degraded);
    // Also where nothing attends to the end of a registration.
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(registry.listed()[0].status, ArmStatus::Unavailable);
    registry.clear("judge");
    assert!(registry.cards().is_empty());
}
