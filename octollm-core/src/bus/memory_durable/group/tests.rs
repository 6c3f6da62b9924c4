//! Single cases, and any sequence of operations.

use proptest::prelude::*;

use super::*;
use crate::event::Expiry;

const SECOND: Duration = Duration::from_secs(1);

fn group(members: u64, options: ConsumeOptions) -> Group {
    let mut group = Group::new("a:b:*".parse().unwrap(), Limit { events: 4, bytes: 100 });
    (0..members).for_each(|member| group.join(member, options));
    group
}

fn options() -> ConsumeOptions {
    ConsumeOptions { max_in_flight: 8, lease: SECOND, max_attempts: 3, ..ConsumeOptions::default() }
}

fn item(key: &str) -> Item {
    let event = Event::new("a.b", "s", 0).unwrap().with_partition_key(key);
    Item { event, expiry: Expiry::Never, size: 10, attempts: 0, holder: None, history: Vec::new() }
}

fn claim(group: &mut Group, member: u64, now: Instant) -> Claim {
    match group.take(member, now) {
        Some(Turn::Claim(claim)) => claim,
        other => panic!("no claim but {other:?}"),
    }
}

#[test]
fn an_expired_lease_is_lost_once_another_member_has_the_event() {
    let (mut group, now) = (group(2, options()), Instant::now());
    group.push(1, item(""));
    let stale = claim(&mut group, 0, now);
    assert!(matches!(group.take(1, now), Some(Turn::Wait(Some(at))) if at == now + SECOND));
    let fresh = claim(&mut group, 1, now + SECOND);
    assert_eq!(fresh.attempt, 2);
    assert_eq!(group.settle(&stale, Ok(()), now + SECOND), Err(Lost));
    assert_eq!(group.extend(&stale, SECOND, now + SECOND), Err(Lost));
    assert_eq!(group.settle(&fresh, Ok(()), now + SECOND), Ok(()));
    assert_eq!((group.backlog(), group.next_due()), (0, None));
}

#[test]
fn an_expired_lease_is_settled_late_while_nobody_else_has_the_event() {
    let (mut group, mut now) = (group(2, options()), Instant::now());
    group.push(1, item("k"));
    group.push(2, item("k"));
    let late = claim(&mut group, 0, now);
    now += SECOND;
    assert_eq!(group.settle(&late, Ok(()), now), Ok(()));
    assert_eq!(group.settle(&late, Ok(()), now), Err(Lost), "once");
    let next = claim(&mut group, 1, now);
    assert_eq!((next.number, next.attempt), (2, 1), "the next of its key is free");
    now += SECOND;
    group.settle(&next, Err(Nack::retry_after(SECOND)), now).unwrap();
    assert!(
        matches!(group.take(0, now), Some(Turn::Wait(Some(at))) if at == now + SECOND),
        "a late nack holds too"
    );
    assert_eq!(claim(&mut group, 0, now + SECOND).attempt, 2);
}

#[test]
fn an_expired_lease_is_renewed_unless_its_owner_holds_enough() {
    let one = ConsumeOptions { max_in_flight: 1, ..options() };
    let (mut group, mut now) = (group(2, one), Instant::now());
    group.push(1, item(""));
    group.push(2, item(""));
    let late = claim(&mut group, 0, now);
    now += SECOND;
    assert_eq!(group.extend(&late, SECOND, now), Ok(()));
    assert_eq!(claim(&mut group, 1, now).number, 2, "it is leased again");
    now += SECOND;
    assert_eq!(claim(&mut group, 0, now).number, 1);
    assert_eq!(group.extend(&late, SECOND, now), Err(Lost), "it was delivered again");
    let (first, second) = (claim(&mut group, 1, now), now + SECOND);
    assert_eq!(first.number, 2);
    let again = claim(&mut group, 1, second);
    assert_eq!(group.extend(&first, SECOND, second), Err(Lost), "the member holds another one");
    assert_eq!(group.settle(&first, Ok(()), second), Ok(()), "and can settle this one");
    group.settle(&again, Ok(()), second).unwrap();
    assert_eq!((group.backlog(), group.next_due()), (0, None));
}

#[test]
fn a_dead_letter_of_an_expired_lease_is_settled_late() {
    let once = ConsumeOptions { max_attempts: 1, ..options() };
    let (mut group, mut now) = (group(1, once), Instant::now());
    group.max_dead.bytes = 1_000;
    for number in 1..=3 {
        group.push(number, item(""));
    }
    let claims = [claim(&mut group, 0, now), claim(&mut group, 0, now), claim(&mut group, 0, now)];
    now += SECOND;
    assert_eq!(group.status(now).dead_letters, 3);
    assert_eq!(group.extend(&claims[0], SECOND, now), Err(Lost));
    assert_eq!(group.settle(&claims[0], Ok(()), now), Ok(()));
    assert_eq!(group.settle(&claims[1], Err(Nack::dead_letter("bad")), now), Ok(()));
    assert_eq!(group.settle(&claims[2], Err(Nack::Release), now), Err(Lost));
    let reasons: Vec<_> = group.dead_letters(None, 9, now).into_iter().map(|dead| dead.reason).collect();
    assert_eq!(reasons, ["bad", NO_ATTEMPTS]);
}

#[test]
fn the_last_attempt_makes_a_dead_letter() {
    let (mut group, mut now) = (group(1, options()), Instant::now());
    group.push(1, item("k"));
    for attempt in 1..=3 {
        let claim = claim(&mut group, 0, now);
        assert_eq!(claim.attempt, attempt);
        group.settle(&claim, Err(Nack::retry()), now).unwrap();
        now += SECOND;
    }
    let dead = group.dead_letters(None, 9, now);
    assert_eq!((dead.len(), dead[0].attempts, dead[0].reason.as_str()), (1, 3, NO_ATTEMPTS));
    assert!(group.dead_letters(Some(1), 9, now).is_empty());
    assert_eq!(group.backlog(), 0);
}

#[test]
fn dead_letters_are_bounded_and_counted() {
    let (mut group, now) = (group(1, options()), Instant::now());
    for number in 1..=6 {
        group.push(number, item(""));
        let claim = claim(&mut group, 0, now);
        group.settle(&claim, Err(Nack::dead_letter("bad")), now).unwrap();
    }
    assert_eq!(group.dead_letters(None, 9, now).len(), 4);
    assert_eq!(group.discarded, 2);
}

#[test]
fn the_leases_of_a_member_that_left_last_until_they_expire() {
    let (mut group, now) = (group(2, options()), Instant::now());
    group.push(1, item(""));
    group.push(2, item(""));
    let (one, _two) = (claim(&mut group, 0, now), claim(&mut group, 0, now));
    group.leave(0);
    assert_eq!(group.settle(&one, Ok(()), now), Ok(()));
    assert_eq!(claim(&mut group, 1, now + SECOND).attempt, 2);
}

#[test]
fn a_key_has_one_item_out_at_a_time() {
    let mut queue = KeyedQueue::default();
    for (number, key) in [(1, "k"), (2, "k"), (3, ""), (4, "k"), (5, "l")] {
        queue.push(number, item(key));
    }
    let (one, first) = queue.pop().unwrap();
    assert_eq!((one, queue.pop().unwrap().0, queue.pop().unwrap().0), (1, 3, 5));
    assert!(queue.pop().is_none());
    queue.put_back(one, first);
    let (one, first) = queue.pop().unwrap();
    assert_eq!(one, 1);
    queue.remove(&first);
    assert_eq!(queue.len(), 2);
    let (two, second) = queue.pop().unwrap();
    queue.remove(&second);
    let (four, third) = queue.pop().unwrap();
    assert_eq!((two, four), (2, 4));
    queue.remove(&third);
    assert_eq!((queue.len(), queue.blocked.len()), (0, 1), "the item of `l` is still out");
}

#[derive(Debug, Clone)]
enum Step {
    Push(u8),
    Take(u64),
    Settle(usize, Result<(), Nack>),
    Extend(usize),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![
        Just(Ok(())),
        Just(Err(Nack::Release)),
        Just(Err(Nack::Drop)),
        Just(Err(Nack::retry())),
        Just(Err(Nack::retry_after(Duration::ZERO))),
        Just(Err(Nack::dead_letter("bad"))),
    ];
    let step = prop_oneof![
        (0_u8..3).prop_map(Step::Push),
        (0_u64..2).prop_map(Step::Take),
        (0_usize..4, outcome).prop_map(|(which, how)| Step::Settle(which, how)),
        (0_usize..4).prop_map(Step::Extend),
        (1_u64..800).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    /// Nothing is lost or duplicated, one event of a key is out at a time, and no member exceeds its limit.
    #[test]
    fn every_event_is_somewhere_exactly_once(steps in steps()) {
        let options = ConsumeOptions { max_in_flight: 2, max_attempts: 2, ..options() };
        let (mut group, mut now) = (group(2, options), Instant::now());
        let (mut pushed, mut gone, mut claims) = (0, 0, Vec::<Claim>::new());
        for step in steps {
            match step {
                Step::Push(key) => {
                    pushed += 1;
                    group.push(pushed, item(&"k".repeat(usize::from(key))));
                }
                Step::Take(member) => {
                    if let Some(Turn::Claim(claim)) = group.take(member, now) {
                        claims.push(claim);
                    }
                }
                Step::Settle(which, how) if which < claims.len() => {
                    let final_ = matches!(how, Ok(()) | Err(Nack::Drop));
                    let settled = group.settle(&claims.swap_remove(which), how, now);
                    gone += u64::from(settled.is_ok() && final_);
                }
                Step::Extend(which) if which < claims.len() => {
                    let _ = group.extend(&claims[which], SECOND, now);
                }
                Step::Settle(..) | Step::Extend(_) => {}
                Step::Pass(millis) => now += Duration::from_millis(millis),
            }
            group.advance(now);
            let dead = group.dead.len() as u64 + group.discarded;
            prop_assert_eq!(group.backlog() as u64 + dead + gone, pushed);
            for member in 0..2 {
                let holds = |leased: &&Leased| leased.item.holder.is_some_and(|holder| holder.member == member);
                let held = group.leased.values().filter(holds).count();
                prop_assert!(held <= 2);
                prop_assert_eq!(held, group.members[&member].in_flight);
            }
            let mut keys: Vec<_> =
                group.leased.values().filter_map(|leased| leased.item.event.partition_key()).collect();
            keys.sort_unstable();
            prop_assert!(keys.windows(2).all(|pair| pair[0] != pair[1]));
            prop_assert_eq!(group.due.len(), group.leased.len() + group.delayed.len());
            let dead: usize = group.dead.values().map(|(item, reason)| dead_size(item, reason)).sum();
            prop_assert_eq!((group.bytes, group.dead_bytes), (10 * group.backlog(), dead));
        }
    }
}
