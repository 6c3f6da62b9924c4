//! Registrations against a reference that remembers everything that ever happened.

use std::collections::BTreeSet;

use octollm_core::contract::ContractCard;
use proptest::prelude::*;

use super::{super::process::MOST_PROOFS, *};

const TIME: i64 = 1_700_000_000;

fn holder(name: &str) -> Holder {
    Holder { subject: Some((None, name.to_owned())), key: Some(name.into()) }
}

fn card(arm: &str, endpoint: &str, instance: &str) -> ArmCard {
    let mut card = ArmCard::new(arm);
    (card.endpoint, card.instance) = (Some(endpoint.to_owned()), Some(instance.to_owned()));
    card.contracts = Vec::<ContractCard>::new();
    card
}

fn claim(card: ArmCard, lifetime: u64) -> Claim {
    let lifetime = Duration::from_secs(lifetime);
    Claim { holder: holder("judge"), card, bytes: 100, lifetime, proof: None, time: TIME }
}

fn book() -> Book {
    Book::new(RegistryConfig::default(), HashSet::new())
}

fn kinds(book: &mut Book) -> Vec<Kind> {
    book.take_changes().into_iter().map(|change| change.kind).collect()
}

#[tokio::test(start_paused = true)]
async fn an_arm_expires_recovers_and_leaves() {
    let (mut book, start) = (book(), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    let judge = || claim(card("judge", "http://judge", "a"), 30);
    assert!(book.register(at(0), judge()).unwrap());
    assert!(!book.register(at(10), judge()).unwrap());
    assert_eq!(kinds(&mut book), [Kind::Registered]);
    assert_eq!((book.next_end(at(10)), book.offered(at(39)).len()), (Some(at(40)), 1));
    assert!(book.offered(at(40)).is_empty());
    assert_eq!(book.cards(at(40))[0].status, ArmStatus::Unavailable);
    book.expire(at(40), TIME);
    assert_eq!(kinds(&mut book), [Kind::Unavailable(Gone::Expired)]);
    assert!(book.register(at(50), judge()).unwrap());
    assert_eq!(kinds(&mut book), [Kind::Registered, Kind::Recovered]);
    let leaving = Claim { lifetime: Duration::ZERO, ..judge() };
    assert!(!book.register(at(51), leaving.clone()).unwrap());
    assert_eq!(kinds(&mut book), [Kind::Unavailable(Gone::Left)]);
    book.register(at(52), leaving).unwrap();
    book.expire(at(1000), TIME);
    assert!(kinds(&mut book).is_empty(), "it is gone once");
    assert_eq!(book.counts(at(1000)), [0, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn the_binding_of_an_id_survives_expiry_until_it_is_cleared() {
    let (mut book, start) = (book(), Instant::now());
    let judge = || claim(card("judge", "http://judge", "a"), 5);
    let other = || Claim { holder: holder("evil"), ..judge() };
    book.register(start, judge()).unwrap();
    let day = start + Duration::from_secs(86_400);
    for now in [start, day] {
        for thief in [
            other(),
            Claim { lifetime: Duration::ZERO, ..other() },
            Claim { holder: Holder { key: None, ..holder("judge") }, ..judge() },
            Claim { holder: Holder { subject: None, ..holder("judge") }, ..judge() },
            Claim { holder: Holder::default(), ..judge() },
        ] {
            let refused = book.register(now, Claim { time: TIME + 86_400, ..thief }).unwrap_err();
            assert_eq!((refused.kind, refused.retryable), (ErrorKind::Conflict, false));
        }
    }
    assert_eq!(book.clear(day, "judge"), Some(vec![]));
    assert_eq!(book.clear(day, "judge"), None);
    assert!(book.register(day, other()).unwrap());
    assert_eq!(book.register(day, judge()).unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(book.clear(day, "judge"), Some(vec!["http://judge".to_owned()]));
    assert_eq!(book.bytes, 0);
    assert_eq!(kinds(&mut book).last(), Some(&Kind::Unavailable(Gone::Cleared)));
}

#[tokio::test(start_paused = true)]
async fn an_id_that_is_held_without_a_key_is_bound_to_the_first_key() {
    let (mut book, now) = (book(), Instant::now());
    let by = |holder: Holder, instance: &str| Claim {
        holder,
        ..claim(card("judge", "http://judge", instance), 30)
    };
    let keyed = |key: &str| Holder { subject: None, key: Some(key.into()) };
    book.register(now, by(Holder::default(), "old")).unwrap();
    assert!(!book.register(now, by(Holder::default(), "old")).unwrap());
    // The arm gets a key. From here on it is needed.
    assert!(book.register(now, by(keyed("a"), "new")).unwrap());
    for other in [Holder::default(), keyed("b")] {
        assert_eq!(book.register(now, by(other, "old")).unwrap_err().kind, ErrorKind::Conflict);
    }
    assert!(!book.register(now, by(keyed("a"), "new")).unwrap());
    assert_eq!(book.offered(now)[0].instance.as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn a_new_process_takes_the_place_of_the_old_one_at_its_endpoint() {
    let (mut book, start) = (book(), Instant::now());
    let process = |instance: &str| claim(card("judge", "http://judge", instance), 30);
    book.register(start, process("old")).unwrap();
    let version = book.version();
    assert!(book.register(start, process("new")).unwrap());
    assert_ne!(book.version(), version);
    // The old one, too, is renewed.
    assert!(!book.register(start, process("old")).unwrap());
    let offered = book.offered(start);
    assert_eq!((offered.len(), offered[0].instance.as_deref()), (1, Some("new")));
    // Where the new one leaves, the old one still works.
    book.register(start, Claim { lifetime: Duration::ZERO, ..process("new") }).unwrap();
    assert_eq!(book.offered(start)[0].instance.as_deref(), Some("old"));
    assert_eq!(kinds(&mut book), [Kind::Registered, Kind::Registered]);
}

#[tokio::test(start_paused = true)]
async fn a_proof_is_accepted_once_also_after_its_registration_has_ended() {
    let (mut book, start) = (book(), Instant::now());
    let shown = |id: &str, at, lifetime| Claim {
        proof: Some((id.to_owned(), at)),
        time: at,
        ..claim(card("judge", "http://judge", "a"), lifetime)
    };
    book.register(start, shown("1", TIME, 5)).unwrap();
    assert_eq!(book.register(start, shown("1", TIME, 5)).unwrap_err().kind, ErrorKind::Unauthenticated);
    book.register(start, shown("2", TIME + 1, 0)).unwrap();
    // Another process has registered, so that this one is not the last.
    let other = Claim { time: TIME + 1, ..claim(card("judge", "http://judge-2", "b"), 30) };
    book.register(start, other).unwrap();
    let late = start + Duration::from_secs(60);
    book.expire(late, TIME + 60);
    for (id, at) in [("1", TIME), ("2", TIME + 1)] {
        let again = Claim { time: TIME + 60, ..shown(id, at, 5) };
        assert_eq!(book.register(late, again).unwrap_err().kind, ErrorKind::Unauthenticated, "{id}");
    }
    assert!(book.register(late, shown("3", TIME + 60, 5)).unwrap());
}

#[tokio::test(start_paused = true)]
async fn fault_43_a_clock_that_is_set_back_keeps_no_arm_out() {
    let (mut book, start) = (book(), Instant::now());
    let shown = |id: &str, at| Claim {
        proof: Some((id.to_owned(), at)),
        time: at,
        ..claim(card("judge", "http://judge", "a"), 30)
    };
    assert!(book.register(start, shown("1", TIME)).unwrap());
    assert!(!book.register(start, shown("2", TIME - 3600)).unwrap());
    // Within two minutes what was shown is still known.
    assert_eq!(book.register(start, shown("2", TIME - 3500)).unwrap_err().kind, ErrorKind::Unauthenticated);
    // Nothing overflows, and no registration ends before its time.
    for (id, time) in [("3", i64::MAX), ("4", i64::MIN), ("5", i64::MAX), ("6", TIME)] {
        let _ = book.register(start, shown(id, time));
        book.expire(start + Duration::from_secs(29), time);
        assert_eq!(book.offered(start + Duration::from_secs(29)).len(), 1, "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_registers_too_often_is_slowed_down() {
    let (mut book, start) = (book(), Instant::now());
    let shown = |id: usize, time| Claim {
        proof: Some((id.to_string(), time)),
        time,
        ..claim(card("judge", "http://judge", "a"), 5)
    };
    for id in 0..MOST_PROOFS {
        book.register(start, shown(id, TIME)).unwrap();
    }
    let refused = book.register(start, shown(MOST_PROOFS, TIME)).unwrap_err();
    assert_eq!((refused.kind, refused.retryable), (ErrorKind::RateLimited, true));
    book.register(start, shown(MOST_PROOFS, TIME + SPREAD + 1)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn registrations_and_their_bytes_are_bounded() {
    let config = RegistryConfig {
        max_registered: 8,
        max_registered_bytes: 1000,
        max_registered_card: 250,
        ..RegistryConfig::default()
    };
    let (mut book, now) = (Book::new(config, HashSet::from(["brain".to_owned()])), Instant::now());
    let one = |arm: &str, n: usize, bytes| Claim {
        bytes,
        ..claim(card(arm, &format!("http://{arm}-{n}"), "a"), 30)
    };
    assert_eq!(book.register(now, one("brain", 0, 1)).unwrap_err().kind, ErrorKind::Conflict);
    book.register(now, one("judge", 0, 1)).unwrap();
    book.register(now, one("judge", 1, 1)).unwrap();
    let refused = book.register(now, one("judge", 2, 1)).unwrap_err();
    assert_eq!((refused.kind, refused.retry_after.is_some()), (ErrorKind::Overloaded, true), "a quarter");
    for arm in ["a", "b", "c"] {
        // A renewal needs no place, and takes the bytes of the card before.
        book.register(now, one(arm, 0, 1)).unwrap();
        assert!(!book.register(now, one(arm, 0, 250)).unwrap());
    }
    for arm in ["d", "e", "f"] {
        book.register(now, one(arm, 0, 1)).unwrap();
    }
    assert_eq!(book.register(now, one("g", 0, 1)).unwrap_err().kind, ErrorKind::Overloaded);
    assert!(!book.register(now, one("d", 0, 246)).unwrap());
    assert_eq!(book.register(now, one("d", 0, 247)).unwrap_err().kind, ErrorKind::Overloaded);
    // What has ended makes room once its proofs cannot be shown again; here there are none.
    book.register(now, Claim { lifetime: Duration::ZERO, ..one("judge", 1, 1) }).unwrap();
    book.register(now, one("g", 0, 1)).unwrap();
    assert_eq!(book.bytes, 1000);
}

#[tokio::test(start_paused = true)]
async fn a_large_card_and_the_large_cards_of_one_arm_are_refused() {
    let config =
        RegistryConfig { max_registered_bytes: 1000, max_registered_card: 200, ..RegistryConfig::default() };
    let (mut book, now) = (Book::new(config, HashSet::new()), Instant::now());
    let one =
        |arm: &str, n: usize, bytes| Claim { bytes, ..claim(card(arm, &format!("http://{n}"), "a"), 30) };
    let refused = book.register(now, one("judge", 0, 201)).unwrap_err();
    assert_eq!((refused.kind, refused.retryable), (ErrorKind::PayloadTooLarge, false));
    assert!(refused.message.contains("200"), "{refused}");
    book.register(now, one("judge", 0, 200)).unwrap();
    let refused = book.register(now, one("judge", 1, 51)).unwrap_err();
    assert_eq!((refused.kind, refused.retry_after.is_some()), (ErrorKind::Overloaded, true));
    assert!(refused.message.contains("of this arm"), "{refused}");
    // It leaves room to others, and its own card can change within its share.
    book.register(now, one("judge", 1, 50)).unwrap();
    book.register(now, one("coder", 0, 200)).unwrap();
    assert!(book.register(now, one("judge", 0, 201)).is_err());
    assert_eq!(book.bytes, 450);
    // An arm leaves whatever its card is by now.
    book.register(now, Claim { lifetime: Duration::ZERO, ..one("judge", 0, 300) }).unwrap();
    assert_eq!(book.offered(now).len(), 2);
}

#[derive(Debug, Clone)]
enum Step {
    Register {
        arm: usize,
        endpoint: usize,
        instance: usize,
        thief: bool,
        lifetime: usize,
        works: bool,
        proof: u8,
    },
    Pass(u64),
    Clear(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let register = (
        0..3_usize,
        0..2_usize,
        0..2_usize,
        prop::bool::weighted(0.1),
        0..3_usize,
        any::<bool>(),
        any::<u8>(),
    )
        .prop_map(|(arm, endpoint, instance, thief, lifetime, works, proof)| Step::Register {
            arm,
            endpoint,
            instance,
            thief,
            lifetime,
            works,
            proof,
        });
    prop_oneof![6 => register, 2 => (1..40_u64).prop_map(Step::Pass), 1 => (0..3_usize).prop_map(Step::Clear)]
}

const ARMS: [&str; 3] = ["a", "b", "c"];
const LIVES: [u64; 3] = [0, 5, 30];

/// A registration that was accepted.
struct Accepted {
    arm: usize,
    process: (usize, usize),
    thief: bool,
    works: bool,
    at: u64,
    until: u64,
    proof: u8,
}

/// All that was accepted since an arm was cleared, in order, and the processes that are not forgotten.
#[derive(Default)]
struct Reference(Vec<Accepted>, BTreeSet<(usize, (usize, usize))>);

impl Reference {
    fn last(&self, arm: usize, process: (usize, usize)) -> Option<&Accepted> {
        self.0.iter().rev().find(|one| (one.arm, one.process) == (arm, process))
    }

    fn is_alive(&self, arm: usize, process: (usize, usize), now: u64) -> bool {
        self.last(arm, process).is_some_and(|last| now < last.until)
    }

    /// Forgets the processes whose proofs can be shown no more, but for those that live and the last one of each arm.
    fn forget(&mut self, now: u64) {
        let rank = |(arm, process)| (self.is_alive(arm, process, now), self.born(arm, process));
        let lasts: Vec<_> = (0..3)
            .filter_map(|arm| self.1.iter().copied().filter(|one| one.0 == arm).max_by_key(|one| rank(*one)))
            .collect();
        let stays = |one: &(usize, (usize, usize))| {
            let is_recent = self.last(one.0, one.1).is_some_and(|last| now - last.at <= 120);
            self.is_alive(one.0, one.1, now) || lasts.contains(one) || is_recent
        };
        self.1 = self.1.iter().copied().filter(stays).collect();
    }

    fn works(&self, arm: usize, now: u64) -> bool {
        processes().any(|process| {
            self.is_alive(arm, process, now) && self.last(arm, process).is_some_and(|last| last.works)
        })
    }

    /// When the present life of a process has begun.
    fn born(&self, arm: usize, process: (usize, usize)) -> usize {
        let mut born = 0;
        let mut until = None;
        for (at, one) in self.0.iter().enumerate().filter(|(_, one)| (one.arm, one.process) == (arm, process))
        {
            if until.is_none_or(|until| one.at >= until) {
                born = at;
            }
            until = Some(one.until);
        }
        born
    }

    fn offered(&self, now: u64) -> Vec<(usize, usize, usize)> {
        let mut offered = Vec::new();
        for arm in 0..3 {
            for endpoint in 0..2 {
                let alive = (0..2).filter(|instance| {
                    let process = (endpoint, *instance);
                    self.is_alive(arm, process, now) && self.last(arm, process).is_some_and(|last| last.works)
                });
                let newest = alive.max_by_key(|instance| self.born(arm, (endpoint, *instance)));
                offered.extend(newest.map(|instance| (arm, endpoint, instance)));
            }
        }
        offered
    }
}

fn processes() -> impl Iterator<Item = (usize, usize)> {
    (0..2).flat_map(|endpoint| (0..2).map(move |instance| (endpoint, instance)))
}

/// The changes of arms between two states, but for registrations.
fn turned(before: [bool; 3], after: [bool; 3]) -> Vec<(usize, bool)> {
    (0..3).filter(|arm| before[*arm] != after[*arm]).map(|arm| (arm, after[arm])).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_book_is_as_the_reference(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let _guard = runtime.enter();
        let (mut book, mut reference, start, mut now) = (book(), Reference::default(), Instant::now(), 0_u64);
        let works = |reference: &Reference, now| [0, 1, 2].map(|arm| reference.works(arm, now));
        let mut before = works(&reference, now);
        for step in steps {
            let at = |now| start + Duration::from_secs(now);
            let time = TIME + i64::try_from(now).unwrap();
            let mut registered = Vec::new();
            let mut seen_before = [false; 3];
            for (arm, seen) in seen_before.iter_mut().enumerate() {
                *seen = reference.0.iter().any(|one| one.arm == arm);
            }
            match step {
                Step::Pass(seconds) => {
                    now += seconds;
                    book.expire(at(now), TIME + i64::try_from(now).unwrap());
                    reference.forget(now);
                }
                Step::Clear(arm) => {
                    let known = book.clear(at(now), ARMS[arm]).is_some();
                    prop_assert_eq!(known, seen_before[arm]);
                    reference.0.retain(|one| one.arm != arm);
                    reference.1.retain(|one| one.0 != arm);
                }
                Step::Register { arm, endpoint, instance, thief, lifetime, works, proof } => {
                    let process = (endpoint, instance);
                    reference.forget(now);
                    let mut card = card(ARMS[arm], &format!("http://{endpoint}"), &instance.to_string());
                    if !works {
                        card.status = ArmStatus::Unavailable;
                    }
                    let claim = Claim {
                        holder: holder(if thief { "thief" } else { "judge" }),
                        proof: Some((proof.to_string(), time)),
                        time,
                        ..claim(card, LIVES[lifetime])
                    };
                    let done = book.register(at(now), claim);
                    let held = reference.0.iter().find(|one| one.arm == arm).map(|one| one.thief);
                    // A proof that is older than it can be shown is forgotten.
                    let is_shown = reference.0.iter().any(|one| {
                        (one.arm, one.process, one.proof) == (arm, process, proof) && now - one.at <= 60
                    });
                    let expected = if held.is_some_and(|held| held != thief) {
                        Err(ErrorKind::Conflict)
                    } else if is_shown {
                        Err(ErrorKind::Unauthenticated)
                    } else {
                        Ok(LIVES[lifetime] > 0 && !reference.is_alive(arm, process, now))
                    };
                    // Between 60 s and 120 s a proof is too old to be shown, but may be remembered.
                    let is_between = reference.0.iter().any(|one| {
                        (one.arm, one.process, one.proof) == (arm, process, proof) && now - one.at > 60
                    });
                    match (done, expected) {
                        (Err(failure), Ok(_)) if is_between => prop_assert_eq!(failure.kind, ErrorKind::Unauthenticated),
                        (done, expected) => {
                            prop_assert_eq!(done.as_ref().map_err(|failure| failure.kind).copied(), expected);
                            if let Ok(is_new) = done {
                                let is_known = reference.1.contains(&(arm, process));
                                if LIVES[lifetime] > 0 || is_known {
                                    let until = now + LIVES[lifetime];
                                    reference.0.push(Accepted { arm, process, thief, works, at: now, until, proof });
                                }
                                if LIVES[lifetime] > 0 {
                                    reference.1.insert((arm, process));
                                } else {
                                    reference.forget(now);
                                }
                                if is_new {
                                    registered.push(arm);
                                }
                            }
                        }
                    }
                }
            }
            let after = works(&reference, now);
            let offered: Vec<_> = book.offered(at(now)).iter().map(|card| {
                let arm = ARMS.iter().position(|arm| *arm == card.arm_id).unwrap();
                let endpoint: usize = card.endpoint.as_ref().unwrap()["http://".len()..].parse().unwrap();
                (arm, endpoint, card.instance.as_ref().unwrap().parse::<usize>().unwrap())
            }).collect();
            prop_assert_eq!(offered, reference.offered(now));
            let available = after.iter().filter(|works| **works).count();
            let counts = book.counts(at(now));
            prop_assert_eq!(counts[0] + counts[1], available);
            let changes = book.take_changes();
            let of = |change: &Change| ARMS.iter().position(|arm| *arm == change.arm).unwrap();
            let new: Vec<_> = changes.iter().filter(|change| change.kind == Kind::Registered).map(of).collect();
            prop_assert_eq!(new, registered);
            let changed: Vec<_> = changes.iter().filter(|change| change.kind != Kind::Registered)
                .map(|change| (of(change), change.kind == Kind::Recovered)).collect();
            // The first registration of an arm is no recovery.
            let expected: Vec<_> = turned(before, after).into_iter()
                .filter(|(arm, works)| !works || seen_before[*arm]).collect();
            let sorted = |mut changes: Vec<(usize, bool)>| { changes.sort_unstable(); changes };
            prop_assert_eq!(sorted(changed), sorted(expected));
            before = after;
        }
    }
}
