use octollm_core::contract::ContractCard;

use super::{super::site::Judging, *};

const REMEMBERED: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

fn known(groups: &[usize]) -> Known {
    Known::new([0].into_iter().chain(groups.iter().copied()), REMEMBERED, (20, 10))
}

fn listed(arm: &str, url: &str) -> Listed {
    Listed { arm: arm.into(), url: BaseUrl::parse(url).unwrap(), weight: 1, card: None }
}

/// Replaces the set of a source. Returns the URLs that are gone.
fn replace(known: &mut Known, source: usize, set: Vec<Listed>, now: Instant) -> Vec<String> {
    let judging = Judging { breaker: Some(Default::default()), ..Judging::default() };
    let create = |listed: &Listed, budget: &RetryBudget| Arc::new(Site::new(listed, budget, &judging));
    let gone = known.replace(source, set, now, create);
    gone.iter().map(|site| site.url.as_str().to_owned()).collect()
}

/// All endpoints that are listed.
fn sites(known: &Known) -> Vec<Arc<Site>> {
    known.arms.iter().flat_map(|arm| &arm.endpoints).map(|learned| learned.site.clone()).collect()
}

fn urls(sites: &[Arc<Site>]) -> Vec<&str> {
    sites.iter().map(|site| site.url.as_str()).collect()
}

fn card() -> ArmCard {
    let mut card = ArmCard::new("judge");
    let contract = serde_json::json!({ "name": "code.validate", "path": "/validate" });
    card.contracts.push(serde_json::from_value::<ContractCard>(contract).unwrap());
    card
}

#[tokio::test(start_paused = true)]
async fn a_weight_changes_in_place() {
    let (mut known, now) = (known(&[1]), Instant::now());
    replace(&mut known, 1, vec![listed("judge", "http://a")], now);
    let before = sites(&known).remove(0);
    let gone = replace(&mut known, 1, vec![Listed { weight: 7, ..listed("judge", "http://a") }], now);
    assert!(gone.is_empty(), "its connections stay");
    assert!(Arc::ptr_eq(&before, &sites(&known)[0]));
    assert_eq!(before.weight(), 7);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_goes_and_returns_has_the_health_and_the_budget_that_it_had() {
    let (mut known, now) = (known(&[1]), Instant::now());
    let both = || vec![listed("judge", "http://a"), listed("judge", "http://b")];
    replace(&mut known, 1, both(), now);
    let first = sites(&known);
    while first[0].budget.withdraw(now) {}
    // The endpoint alone, and then the whole arm.
    for without in [vec![listed("judge", "http://b")], vec![]] {
        let gone = replace(&mut known, 1, without, now + SECOND);
        assert!(gone.contains(&"http://a".to_owned()));
        replace(&mut known, 1, both(), now + REMEMBERED);
        let again = sites(&known);
        assert!(first.iter().zip(&again).all(|(first, again)| Arc::ptr_eq(first, again)));
        assert!(known.forgets_at().is_none());
    }
    let again = replace(&mut known, 1, vec![], now);
    assert_eq!((again.len(), known.forgets_at()), (2, Some(now + REMEMBERED)));
    known.forget(now + REMEMBERED);
    assert!(known.forgets_at().is_none());
    replace(&mut known, 1, both(), now + REMEMBERED);
    let new = sites(&known);
    assert!(!Arc::ptr_eq(&new[0], &first[0]));
    assert!(new[0].budget.withdraw(now), "a new budget");
}

#[tokio::test(start_paused = true)]
async fn what_goes_and_returns_is_asked_for_its_card_and_serves_by_the_last_one() {
    let (mut known, now) = (known(&[1]), Instant::now());
    replace(&mut known, 1, vec![listed("judge", "http://a")], now);
    let asked = known.ask_in(1);
    known.learn(1, vec![(asked[0].clone(), Ok(card()))]);
    assert!(!known.has_unasked() && known.offers.len() == 1);
    replace(&mut known, 1, vec![], now);
    assert!(known.offers.is_empty());
    replace(&mut known, 1, vec![listed("judge", "http://a")], now);
    assert!(known.has_unasked() && known.offers.len() == 1);
    assert_eq!(urls(&known.ask_in(1)), ["http://a"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_found_while_a_round_runs_belongs_to_the_round() {
    let (mut known, now) = (known(&[1]), Instant::now());
    replace(&mut known, 1, vec![listed("judge", "http://a")], now);
    assert_eq!(urls(&known.ask_in(1)), ["http://a"]);
    replace(&mut known, 1, vec![listed("judge", "http://a"), listed("coder", "http://b")], now);
    let new = known.ask_in(1);
    assert_eq!(urls(&new), ["http://b"]);
    assert!(known.ask_in(1).is_empty() && known.has_unasked());
    let both = sites(&known);
    let failed = || Err(Failure::of(ErrorKind::Unreachable));
    known.learn(1, both.iter().map(|site| (site.clone(), failed())).collect());
    assert!(!known.has_unasked(), "a failure is an answer");
    assert!(known.learned_in(1, &both) && !known.learned_in(2, &both));
    assert_eq!(known.ask_in(2).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_whose_source_with_its_card_is_gone_is_asked() {
    let (mut known, now) = (known(&[1, 2]), Instant::now());
    let with_card = || vec![Listed { card: Some(card()), ..listed("judge", "http://a") }];
    replace(&mut known, 2, vec![listed("judge", "http://a")], now);
    let asked = known.ask_in(1);
    known.learn(1, vec![(asked[0].clone(), Err(Failure::of(ErrorKind::Unreachable)))]);
    replace(&mut known, 1, with_card(), now);
    assert!(!known.asks() && known.ask_in(2).is_empty());
    assert_eq!(known.cards().len(), 1, "its trouble has ended");
    replace(&mut known, 1, vec![], now);
    assert!(known.asks() && known.has_unasked());
    assert_eq!(urls(&known.ask_in(2)), ["http://a"]);
    assert_eq!(known.offers.len(), 1, "the last card holds until it answers");
}

#[tokio::test(start_paused = true)]
async fn sources_of_one_group_count_together_and_of_others_the_first() {
    let (mut known, now) = (known(&[1, 1, 2]), Instant::now());
    replace(&mut known, 3, vec![listed("judge", "http://other"), listed("coder", "http://coder")], now);
    assert_eq!(urls(&sites(&known)), ["http://other", "http://coder"]);
    replace(&mut known, 1, vec![listed("judge", "http://a")], now);
    replace(&mut known, 2, vec![listed("judge", "http://b"), listed("judge", "http://a")], now);
    assert_eq!(urls(&sites(&known)), ["http://a", "http://b", "http://coder"]);
    replace(&mut known, 1, vec![], now);
    assert_eq!(urls(&sites(&known)), ["http://b", "http://a", "http://coder"]);
}

#[tokio::test(start_paused = true)]
async fn many_endpoints_are_compared_by_their_names() {
    let (mut known, now) = (known(&[1]), Instant::now());
    let all =
        |from: usize| (from..from + 4096).map(|port| listed("judge", &format!("http://a:{port}"))).collect();
    replace(&mut known, 1, all(1), now);
    let first = sites(&known);
    // The second half stays.
    let gone = replace(&mut known, 1, all(2049), now);
    assert_eq!((gone.len(), sites(&known).len()), (2048, 4096));
    assert!(Arc::ptr_eq(&first[2048], &sites(&known)[0]));
    let asked = known.ask_in(1);
    known.learn(1, asked.into_iter().map(|site| (site, Ok(card()))).collect());
    assert!(known.learned_in(1, &sites(&known)) && !known.has_unasked());
    assert_eq!(known.cards().len(), 1);
}
