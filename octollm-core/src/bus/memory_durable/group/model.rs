//! Groups under any sequence of what may happen to them.

use proptest::prelude::*;

use super::tests::{group, item, terms};
use super::*;

#[derive(Debug, Clone)]
enum Step {
    Push(u8),
    Take(u64),
    Settle(usize, Settlement),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let settlement = prop_oneof![
        Just(Settlement::Ack),
        Just(Settlement::Release),
        Just(Settlement::Nack(Nack::Drop)),
        Just(Settlement::Nack(Nack::retry())),
        Just(Settlement::Nack(Nack::retry_after(Duration::ZERO))),
        Just(Settlement::Nack(Nack::dead_letter("bad"))),
    ];
    let step = prop_oneof![
        (0_u8..3).prop_map(Step::Push),
        (0_u64..2).prop_map(Step::Take),
        (0_usize..4, settlement).prop_map(|(which, how)| Step::Settle(which, how)),
        (1_u64..800).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    /// Whatever happens: nothing is lost or there twice, one of a key is out at a time and they leave in order, and no
    /// member holds more than it may.
    #[test]
    fn every_event_is_somewhere_exactly_once(steps in steps()) {
        let terms = Terms { max_in_flight: 2, max_attempts: 2, ..terms() };
        let (mut group, mut now) = (group(2, &terms), Instant::now());
        let (mut pushed, mut gone, mut claims) = (0, 0, Vec::<Claim>::new());
        for step in steps {
            match step {
                Step::Push(key) => {
                    pushed += 1;
                    group.push(pushed, item(&"k".repeat(usize::from(key))));
                }
                Step::Take(member) => {
                    if let Turn::Claim(claim) = group.take(member, now) {
                        claims.push(claim);
                    }
                }
                Step::Settle(which, how) if which < claims.len() => {
                    let final_ = matches!(how, Settlement::Ack | Settlement::Nack(Nack::Drop));
                    let settled = group.settle(&claims.swap_remove(which), how, now);
                    gone += u64::from(settled.is_ok() && final_);
                }
                Step::Settle(..) => {}
                Step::Pass(millis) => now += Duration::from_millis(millis),
            }
            group.advance(now);
            let dead = group.dead.len() as u64 + group.counters.counts().discarded;
            prop_assert_eq!(group.backlog() as u64 + dead + gone, pushed);
            for member in 0..2 {
                let held = group.leased.values().filter(|leased| leased.member == member).count();
                prop_assert!(held <= 2);
                prop_assert_eq!(held, group.members[&member].in_flight);
            }
            let mut keys: Vec<_> =
                group.leased.values().filter_map(|leased| leased.item.event.partition_key()).collect();
            keys.sort_unstable();
            prop_assert!(keys.windows(2).all(|pair| pair[0] != pair[1]));
            prop_assert_eq!(group.due.len(), group.leased.len() + group.resting.len());
        }
    }
}
