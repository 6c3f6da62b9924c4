//! An attacker that controls some arms, against a model.
//!
//! What holds: who controls an arm can elsewhere make only requests whose root, subject, task and scope one link to that arm's key
//! covers, until its end and 30 s. Colluding arms can make the union of theirs.
//!
//! The attacker has the keys of three arms, and all links and tokens that they were ever sent. It recombines them as the cases say,
//! signs with its keys what it likes, and sends it to an arm that is not its own. The model knows only which links the roots and
//! the honest arms have issued to a key of the attacker. It shares no code with the crate.

use std::{cell::Cell, time::Duration};

use octollm_http::token::{KeySet, TokenVerifier};
use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::{Value, json};

use crate::{
    support::{Clock, claims_of, links_of},
    world::{JUDGE, LinkOf, MINE, NAMES, SCOPES, SUBJECTS, TASKS, TokenOf, World, hash, key},
};

const CASES: u32 = 1_500;

/// One step of an attack: what is changed, where, and to what.
type Step = (u8, usize, usize);

/// An attack: where it begins, its steps, and how long it waits before it sends.
#[derive(Debug, Clone)]
struct Attack {
    chain: usize,
    /// The link that it ends with, where that is not the last: its token is then signed with a key of the attacker.
    stop: Option<usize>,
    /// Whether the token passes on a link to the judge.
    onward: bool,
    /// Through which of its other arms it passes on its authority first.
    through: Option<usize>,
    steps: Vec<Step>,
    wait: u64,
}

fn attack() -> impl Strategy<Value = Attack> {
    let step = (0..26_u8, any::<usize>(), any::<usize>());
    let through = prop::option::of(0..3_usize);
    let stop = prop_oneof![4 => Just(None), 1 => any::<usize>().prop_map(Some)];
    let wait = prop_oneof![3 => Just(0), 1 => 0..400_u64];
    let steps = prop::collection::vec(step, 0..4);
    (any::<usize>(), stop, any::<bool>(), through, steps, wait).prop_map(
        |(chain, stop, onward, through, steps, wait)| Attack { chain, stop, onward, through, steps, wait },
    )
}

/// The composition that the steps change.
struct Draft {
    links: Vec<LinkOf>,
    token: TokenOf,
    onward: Option<LinkOf>,
    /// A change of the finished text.
    finish: Option<(u8, usize, usize)>,
}

impl Draft {
    /// A request that the attacker may make: along a chain, as far as it ends at an arm of its own.
    fn new(world: &World, attack: &Attack) -> Self {
        let mut links = world.chains[attack.chain % world.chains.len()].clone();
        if let Some(stop) = attack.stop {
            links.truncate(1 + stop % links.len());
        }
        // It has the keys of its own arms only.
        let mine = |name: usize| if MINE.contains(&name) { name } else { MINE[0] };
        if let (Some(through), true) = (attack.through, links.len() < 3) {
            let last = &links[links.len() - 1];
            let to = MINE[through];
            let next =
                LinkOf { received: None, iss: last.to, to, key: to, signer: mine(last.to), ..last.clone() };
            links.push(next);
        }
        let last = &links[links.len() - 1];
        let token = TokenOf::of(&links, JUDGE, last.iat, last.exp, last.sub, last.task);
        let token = TokenOf { signer: mine(token.signer), ..token };
        let onward = (attack.onward && links.len() < 4).then(|| LinkOf {
            received: None,
            iss: last.to,
            to: JUDGE,
            key: JUDGE,
            signer: mine(last.to),
            ..last.clone()
        });
        Self { links, token, onward, finish: None }
    }

    /// The link that a step changes. A received one is composed anew, and is signed by a key of the attacker.
    fn link(&mut self, at: usize, by: usize) -> Option<&mut LinkOf> {
        let count = self.links.len() + usize::from(self.onward.is_some());
        let at = at.checked_rem(count)?;
        let link = if at < self.links.len() { self.links.get_mut(at) } else { self.onward.as_mut() }?;
        if link.received.take().is_some() && !MINE.contains(&link.signer) {
            link.signer = MINE[by % 3];
        }
        Some(link)
    }

    fn change(&mut self, world: &World, (what, at, to): Step) -> Option<()> {
        let exp = world.now + [50, 150, 250, 290, 300][to % 5];
        match what {
            // The token.
            0 => self.token.sub = SUBJECTS[to % 3],
            1 => self.token.task = TASKS[to % 3],
            2 => self.token.scopes.push(SCOPES[to % 7]),
            3 => self.token.scopes = vec![SCOPES[to % 7]],
            4 => self.token.exp = exp,
            5 => self.token.iss = to % NAMES.len(),
            6 => self.token.signer = MINE[to % 3],
            7 => self.token.dlg = Some(world.seen(to)),
            8 => self.token.extra = extra(to),
            9 => self.token.typ = ["delegation+jwt", "JWT"][to % 2],
            // The list.
            10 => self.links.truncate(at % (self.links.len() + 1)),
            11 => drop(self.links.remove(at.checked_rem(self.links.len())?)),
            12 => {
                let count = self.links.len();
                self.links.swap(at.checked_rem(count)?, to.checked_rem(count)?);
            }
            13 => self
                .links
                .insert(at % (self.links.len() + 1), self.links.get(to % self.links.len().max(1))?.clone()),
            14 | 15 => {
                let chain = &world.chains[to % world.chains.len()];
                let link = chain[at % chain.len()].clone();
                let place = (at / 8) % (self.links.len() + 1);
                match (what, self.links.get_mut(place)) {
                    (15, Some(old)) => *old = link,
                    _ => self.links.insert(place, link),
                }
            }
            // A link.
            16 => self.link(at, to)?.sub = SUBJECTS[to % 3],
            17 => self.link(at, to)?.task = TASKS[to % 3],
            18 => self.link(at, to)?.scopes.push(SCOPES[to % 7]),
            19 => self.link(at, to)?.exp = exp,
            20 => self.link(at, to)?.iss = (to / 3) % NAMES.len(),
            21 => {
                let link = self.link(at, to)?;
                (link.to, link.key) = ((to / 3) % NAMES.len(), MINE[to % 3]);
            }
            22 => self.link(at, to)?.signer = MINE[to % 3],
            23 => self.link(at, to)?.prv = Some(hash(&world.seen(to))),
            24 => self.link(at, to)?.extra = extra(to),
            // The text.
            _ => self.finish = Some((what, at, to)),
        }
        Some(())
    }

    fn text(&self, world: &World) -> String {
        let mut prf: Vec<String> = Vec::new();
        for link in &self.links {
            let text = link.text(prf.last().map(String::as_str));
            prf.push(text);
        }
        let mut token = self.token.clone();
        if let Some(onward) = &self.onward {
            token.dlg.get_or_insert(onward.text(prf.last().map(String::as_str)));
        }
        let text = token.text(&prf);
        match self.finish {
            Some((_, at, to)) => finished(&text, &world.seen(to), at),
            None => text,
        }
    }
}

/// Claims that the attacker adds.
fn extra(to: usize) -> Value {
    [
        json!({ "sub_id": { "format": "iss_sub", "iss": "other", "sub": "ali" } }),
        json!({ "sub_id": { "format": "iss_sub", "iss": "brain", "sub": "bob" } }),
        json!({ "aud": ["judge", "mal"] }),
        json!({ "aud": "mal" }),
        json!({ "nbf": 0 }),
        json!({ "task": null }),
        json!({ "prf": null }),
        json!({ "cnf": { "jwk": key(4).jwk() } }),
    ][to % 8]
        .clone()
}

/// A text with a part of another, or that other one.
fn finished(text: &str, other: &str, at: usize) -> String {
    let (mine, theirs): (Vec<_>, Vec<_>) = (text.split('.').collect(), other.split('.').collect());
    match at % 6 {
        0 => other.to_owned(),
        1 => [mine[0], mine[1], theirs[2]].join("."),
        2 => [mine[0], theirs[1], mine[2]].join("."),
        3 => [theirs[0], mine[1], mine[2]].join("."),
        4 => [theirs[0], mine[1], theirs[2]].join("."),
        _ => [theirs[0], theirs[1], mine[2]].join("."),
    }
}

fn judge(clock: Clock) -> TokenVerifier {
    let root = |at: usize| {
        let key = key(at).signing().with_kid(NAMES[at]).unwrap();
        KeySet::new(NAMES[at]).with_key(&key).unwrap()
    };
    TokenVerifier::builder()
        .audience("judge")
        .root(root(0))
        .root(root(1))
        .clock(clock.read())
        .build()
        .unwrap()
}

/// Makes one attack. Returns whether the judge accepted it.
async fn attempt(verifier: &TokenVerifier, clock: Clock, attack: &Attack) -> Result<bool, TestCaseError> {
    let world = World::new(clock.now().as_second());
    let mut draft = Draft::new(&world, attack);
    for step in &attack.steps {
        draft.change(&world, *step);
    }
    let text = draft.text(&world);
    tokio::time::advance(Duration::from_secs(attack.wait)).await;
    let now = clock.now().as_second();
    let Ok(grant) = verifier.verify(&text) else {
        let is_late = now >= draft.token.exp + 30;
        prop_assert!(
            is_late || !attack.steps.is_empty() || attack.stop.is_some(),
            "refused: {}",
            claims_of(&text)
        );
        return Ok(false);
    };
    let root = grant.issuer.clone().unwrap_or_default();
    let end = grant.valid_until.map_or(i64::MAX, |end| end.as_second());
    prop_assert!(now < end + 30, "accepted after its end");
    let is_covered = |task: Option<&str>, scopes: &[String], end: i64| {
        world.covers.iter().any(|cover| cover.covers(&root, &grant.subject, task, scopes, end))
    };
    let task = grant.task.as_ref().map(|task| task.as_str());
    prop_assert!(is_covered(task, &grant.scopes, end), "not covered: {grant:?} by {}", claims_of(&text));
    // Nor may the judge act on a link that the attacker could not have issued.
    if let Some(onward) = links_of(&grant).last() {
        let claims = claims_of(onward);
        let scopes: Vec<_> = claims["scope"].as_str().unwrap().split(' ').map(str::to_owned).collect();
        prop_assert_eq!(claims["sub"].as_str(), Some(&*grant.subject));
        let end = claims["exp"].as_i64().unwrap();
        prop_assert!(is_covered(claims["task"].as_str(), &scopes, end), "not covered: {claims}");
    }
    Ok(true)
}

#[test]
fn an_attacker_has_no_more_than_the_links_to_its_keys() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (clock, verifier) = runtime.block_on(async {
        let clock = Clock::runtime();
        (clock, judge(clock))
    });
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    let (accepted, changed) = (Cell::new(0), Cell::new(0));
    let result = TestRunner::new(config).run(&attack(), |attack| {
        let was_accepted = runtime.block_on(attempt(&verifier, clock, &attack))?;
        accepted.set(accepted.get() + u32::from(was_accepted));
        changed.set(changed.get() + u32::from(was_accepted && !attack.steps.is_empty()));
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    // The attacks are worth something: many are accepted as what they may be, and many are refused.
    let (accepted, changed) = (accepted.get(), changed.get());
    assert!((CASES / 10..CASES * 9 / 10).contains(&accepted) && changed > CASES / 30, "{accepted} {changed}");
}

/// The attacks that a reader thinks of first, one by one.
#[tokio::test(start_paused = true)]
async fn attacks_by_name() {
    let clock = Clock::runtime();
    let verifier = judge(clock);
    let plain =
        |chain: usize| Attack { chain, stop: None, onward: false, through: None, steps: Vec::new(), wait: 0 };
    for chain in 0..6 {
        for through in [None, Some(0), Some(2)] {
            let attack = Attack { through, ..plain(chain) };
            assert!(
                attempt(&verifier, clock, &attack).await.unwrap(),
                "what is covered is accepted: {chain}"
            );
        }
    }
    for (name, chain, steps) in [
        ("changed subject", 0, vec![(0, 0, 1)]),
        ("changed task", 0, vec![(1, 0, 2)]),
        ("dropped task", 0, vec![(1, 0, 0)]),
        ("wider scope", 0, vec![(2, 0, 4)]),
        ("longer life", 1, vec![(4, 0, 4)]),
        ("named like a root", 0, vec![(5, 0, 0)]),
        ("named like its caller", 2, vec![(5, 0, 2)]),
        ("signed by another arm", 0, vec![(6, 0, 1)]),
        ("a link as a token", 0, vec![(9, 0, 0)]),
        ("no links", 0, vec![(10, 0, 0)]),
        ("truncated at its caller", 2, vec![(10, 1, 0)]),
        ("without its first link", 2, vec![(11, 0, 0)]),
        ("reordered", 2, vec![(12, 0, 1)]),
        ("twice the same link", 0, vec![(13, 0, 0)]),
        ("spliced after the root's link to another", 2, vec![(15, 0, 3)]),
        ("the root of another", 0, vec![(15, 0, 4)]),
        ("its own link in place of its caller's", 2, vec![(22, 1, 2)]),
        ("its own link in place of the root's", 0, vec![(22, 0, 0)]),
        ("a token that was sent to it", 0, vec![(25, 0, 0)]),
        ("the signature of another", 0, vec![(25, 1, 0)]),
    ] {
        let attack = Attack { steps, ..plain(chain) };
        assert!(!attempt(&verifier, clock, &attack).await.unwrap(), "accepted: {name}");
    }
}
