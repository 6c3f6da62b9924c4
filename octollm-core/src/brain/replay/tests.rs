use proptest::prelude::*;

use super::*;

#[test]
fn an_answer_waits_for_those_before_it() {
    let mut sequence = Sequence::after([2, 5].into_iter(), Some(6));
    assert_eq!(sequence.turn(5), Turn::NotAsked(2));
    sequence.ask(2);
    assert_eq!((sequence.turn(2), sequence.turn(5)), (Turn::Now, Turn::Pending(2)));
    sequence.leave(2);
    assert_eq!(sequence.turn(5), Turn::Now);
    let new = sequence.enter(None);
    assert_eq!((new, sequence.turn(new)), (7, Turn::NotAsked(5)));
    assert!(sequence.skip(Turn::NotAsked(5)));
    assert_eq!(sequence.turn(new), Turn::Now);
}

#[test]
fn two_that_wait_for_one_answer_skip_it_once() {
    let mut sequence = Sequence::after([1, 2].into_iter(), Some(2));
    let before = sequence.turn(9);
    assert!(sequence.skip(before) && !sequence.skip(before));
    let before = sequence.turn(9);
    sequence.ask(2);
    assert!(!sequence.skip(before), "it has been asked for since");
    assert_eq!(sequence.turn(9), Turn::Pending(2));
}

#[test]
fn an_answer_takes_the_place_of_its_failure_until_a_later_one_was_returned() {
    let fresh = || {
        let mut sequence = Sequence::after([1, 4].into_iter(), Some(4));
        sequence.hold(2);
        sequence.hold(3);
        sequence
    };
    let mut sequence = fresh();
    sequence.leave(1);
    assert_eq!((sequence.turn(4), sequence.enter(Some(3))), (Turn::Now, 3));
    assert_eq!(sequence.turn(4), Turn::Pending(3));
    sequence.leave(3);
    assert_eq!((sequence.enter(Some(2)), sequence.enter(Some(3))), (5, 6));
    let mut sequence = fresh();
    sequence.leave(4);
    assert_eq!(sequence.enter(Some(3)), 5);
}

proptest! {
    #[test]
    fn answers_leave_in_the_order_of_their_numbers(asked in Just((0_u64..8).collect::<Vec<_>>()).prop_shuffle(), fresh in 0_usize..4) {
        let mut sequence = Sequence::after(0..8, Some(7));
        let mut waiting: Vec<u64> = Vec::new();
        let mut left = Vec::new();
        let news = (0..fresh).map(|_| sequence.enter(None)).collect::<Vec<_>>();
        for seq in news.into_iter().chain(asked) {
            sequence.ask(seq);
            waiting.push(seq);
            while let Some(at) = waiting.iter().position(|seq| sequence.turn(*seq) == Turn::Now) {
                let seq = waiting.swap_remove(at);
                sequence.leave(seq);
                left.push(seq);
            }
        }
        prop_assert_eq!(left, (0..8 + fresh as u64).collect::<Vec<_>>());
    }
}
