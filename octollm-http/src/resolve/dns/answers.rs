//! The meaning of answers: which addresses, targets and names follow from them. It decides without I/O.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use hickory_resolver::{
    config::ResolverConfig,
    net::{DnsError, NetError},
    proto::{
        op::ResponseCode,
        rr::{Name, RData, Record, rdata::SRV},
    },
};

/// Time to live of an answer without records that names none.
const OF_NOTHING: Duration = Duration::from_secs(5);

/// What was answered about the records of one type.
#[derive(Debug)]
pub(super) enum Answer<T> {
    Found(Vec<T>, Duration),
    /// There are none.
    Nothing {
        ttl: Duration,
        /// Whether the name has no records of any type.
        is_unknown_name: bool,
    },
    Failed(NetError),
}

impl<T> Answer<T> {
    /// Reads the answer of a name server. `read` is `None` for records of other types.
    pub(super) fn of(answer: Result<&[Record], NetError>, read: impl Fn(&RData) -> Option<T>) -> Self {
        match answer {
            Ok(records) => {
                // With the aliases on the way, which live no longer than what they lead to.
                let ttl = records.iter().map(|record| record.ttl).min();
                let ttl = ttl.map_or(OF_NOTHING, |ttl| Duration::from_secs(ttl.into()));
                let found: Vec<_> = records.iter().filter_map(|record| read(&record.data)).collect();
                if found.is_empty() {
                    Self::Nothing { ttl, is_unknown_name: false }
                } else {
                    Self::Found(found, ttl)
                }
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Self::Nothing {
                ttl: none.negative_ttl.map_or(OF_NOTHING, |ttl| Duration::from_secs(ttl.into())),
                is_unknown_name: none.response_code == ResponseCode::NXDomain,
            },
            Err(error) => Self::Failed(error),
        }
    }
}

/// The addresses of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) v4: Vec<Ipv4Addr>,
    pub(super) v6: Vec<Ipv6Addr>,
}

impl Addresses {
    /// The addresses by the answers about both families. If one failed, those that the name had before stay. Returns the time for
    /// which they hold as well.
    ///
    /// # Errors
    /// No family has addresses, and whether that is so failed for one of them.
    pub(super) fn of(
        v4: Answer<Ipv4Addr>,
        v6: Answer<Ipv6Addr>,
        before: Option<&Self>,
    ) -> Result<(Self, Duration), NetError> {
        use Answer::{Failed, Found, Nothing};
        let before = || before.cloned().unwrap_or_default();
        let (addresses, ttl) = match (v4, v6) {
            (Found(v4, a), Found(v6, b)) => (Self { v4, v6 }, a.min(b)),
            // A family that nobody uses often has a short time to live.
            (Found(v4, ttl), Nothing { .. }) => (Self { v4, v6: Vec::new() }, ttl),
            (Nothing { .. }, Found(v6, ttl)) => (Self { v4: Vec::new(), v6 }, ttl),
            (Found(v4, a), Failed(_)) => (Self { v4, v6: before().v6 }, a.min(OF_NOTHING)),
            (Failed(_), Found(v6, b)) => (Self { v4: before().v4, v6 }, b.min(OF_NOTHING)),
            (Nothing { ttl: a, .. }, Nothing { ttl: b, .. }) => (Self::default(), a.min(b)),
            (Nothing { ttl, is_unknown_name: true }, Failed(_))
            | (Failed(_), Nothing { ttl, is_unknown_name: true }) => (Self::default(), ttl),
            (_, Failed(error)) | (Failed(error), _) => return Err(error),
        };
        Ok((addresses.sorted(), ttl))
    }

    fn sorted(mut self) -> Self {
        self.v4.retain(|address| !address.is_unspecified() && !address.is_multicast());
        self.v6.retain(|address| !address.is_unspecified() && !address.is_multicast());
        self.v4.sort_unstable();
        self.v4.dedup();
        self.v6.sort_unstable();
        self.v6.dedup();
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// All addresses, without those of a family to which there is no route if there is one to the other.
    pub(super) fn reachable(&self, has_route: impl Fn(IpAddr) -> bool) -> Vec<IpAddr> {
        let has_v4 = self.v4.first().is_some_and(|address| has_route((*address).into()));
        let has_v6 = self.v6.first().is_some_and(|address| has_route((*address).into()));
        let v4 = self.v4.iter().map(|address| IpAddr::from(*address)).filter(|_| has_v4 || !has_v6);
        let v6 = self.v6.iter().map(|address| IpAddr::from(*address)).filter(|_| has_v6 || !has_v4);
        v4.chain(v6).collect()
    }
}

/// The targets of SRV records by priority, the most wanted first, each with the weight of an endpoint.
pub(super) fn by_priority(records: Vec<SRV>) -> Vec<Vec<(SRV, u32)>> {
    let mut groups: BTreeMap<u16, Vec<SRV>> = BTreeMap::new();
    for record in records {
        // A root as target means that there is no such service.
        if !record.target.is_root() && record.port != 0 {
            groups.entry(record.priority).or_default().push(record);
        }
    }
    let weighted = |group: Vec<SRV>| {
        // Beside others a weight of 0 is a very small one.
        let is_mixed =
            group.iter().any(|record| record.weight == 0) && group.iter().any(|record| record.weight != 0);
        let weight =
            |record: &SRV| u32::from(record.weight).saturating_mul(if is_mixed { 100 } else { 1 }).max(1);
        group
            .into_iter()
            .map(|record| (weight(&record), record))
            .map(|(weight, record)| (record, weight))
            .collect()
    };
    groups.into_values().map(weighted).collect()
}

/// The full names that a name stands for, in the order in which they are looked up: a name with at least `ndots` dots as it is
/// before it is looked up in the search domains, another one after that.
pub(super) fn full_names(name: &Name, config: &ResolverConfig, ndots: usize) -> Vec<Name> {
    let mut as_it_is = name.clone();
    as_it_is.set_fqdn(true);
    if name.is_fqdn() {
        return vec![as_it_is];
    }
    let domains = match config.search() {
        [] => config.domain().into_iter().collect::<Vec<_>>(),
        search => search.iter().collect(),
    };
    // Together they can be longer than a name may be.
    let searched = domains.into_iter().filter_map(|domain| name.clone().append_domain(domain).ok());
    let dots = usize::from(name.num_labels()).saturating_sub(1);
    let mut names: Vec<Name> = searched.collect();
    names.insert(if dots >= ndots { 0 } else { names.len() }, as_it_is);
    for name in &mut names {
        name.set_fqdn(true);
    }
    let mut different: Vec<Name> = Vec::new();
    for name in names {
        if !different.contains(&name) {
            different.push(name);
        }
    }
    different
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }

    fn v6(last: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into())
    }

    /// An answer by one number: failed, nothing, no such name, or found.
    fn answer<T>(kind: u8, found: Vec<T>) -> Answer<T> {
        match kind {
            0 => Answer::Failed(NetError::Timeout),
            1 => Answer::Nothing { ttl: Duration::from_secs(9), is_unknown_name: false },
            2 => Answer::Nothing { ttl: Duration::from_secs(9), is_unknown_name: true },
            _ => Answer::Found(found, Duration::from_secs(7)),
        }
    }

    proptest! {
        #[test]
        fn families_are_judged_by_rules_that_hold_for_both(a in 0..4_u8, b in 0..4_u8, knows in any::<bool>()) {
            let known = Addresses { v4: vec![v4(8)], v6: vec![v6(8)] };
            let before = knows.then_some(&known);
            let judged = Addresses::of(answer(a, vec![v4(1)]), answer(b, vec![v6(1)]), before);
            let is_error = judged.is_err();
            let (found, ttl) = judged.unwrap_or_default();
            // One failed, none was found, and none said that the name does not exist.
            prop_assert_eq!(is_error, [a, b].contains(&0) && ![a, b].contains(&2) && ![a, b].contains(&3));
            let is_found = [a, b].contains(&3);
            let rule = |kind, found, before| match kind {
                3 => Some(found),
                0 if is_found && knows => Some(before),
                _ => None,
            };
            prop_assert_eq!(found.v4.first().copied(), rule(a, 1, 8).map(v4));
            prop_assert_eq!(found.v6.first().copied(), rule(b, 1, 8).map(v6));
            prop_assert!(is_error || ttl <= Duration::from_secs(9));
        }
    }

    #[test]
    fn addresses_are_sorted_different_and_of_one_host() {
        let found = vec![v4(2), v4(1), v4(2), Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(224, 0, 0, 1)];
        let found = Answer::Found(found, Duration::ZERO);
        let (addresses, _) = Addresses::of(found, answer(1, Vec::new()), None).unwrap();
        assert_eq!(addresses, Addresses { v4: vec![v4(1), v4(2)], v6: Vec::new() });
    }

    #[test]
    fn a_family_without_a_route_is_left_out_beside_one_with() {
        let both = Addresses { v4: vec![v4(1)], v6: vec![v6(1)] };
        let all: Vec<IpAddr> = vec![v4(1).into(), v6(1).into()];
        assert_eq!(both.reachable(|_| true), all);
        assert_eq!(both.reachable(|_| false), all);
        assert_eq!(both.reachable(|address| address.is_ipv4()), all[..1]);
        assert_eq!(both.reachable(|address| address.is_ipv6()), all[1..]);
        let one = Addresses { v4: vec![v4(1)], v6: Vec::new() };
        assert_eq!(one.reachable(|_| false), all[..1]);
    }

    #[test]
    fn targets_are_grouped_by_priority_and_weighed() {
        let srv = |priority, weight, target: &str| {
            SRV::new(priority, weight, 80, Name::from_ascii(target).unwrap())
        };
        let groups = by_priority(vec![
            srv(20, 0, "d."),
            srv(10, 3, "a."),
            srv(20, 0, "e."),
            srv(10, 0, "b."),
            srv(10, 65_535, "c."),
            srv(0, 1, "."),
        ]);
        let weights: Vec<Vec<_>> = groups
            .iter()
            .map(|group| group.iter().map(|(srv, weight)| (srv.target.to_string(), *weight)).collect())
            .collect();
        let named = |name: &str, weight| (name.to_owned(), weight);
        assert_eq!(
            weights,
            [
                vec![named("a.", 300), named("b.", 1), named("c.", 6_553_500)],
                vec![named("d.", 1), named("e.", 1)],
            ]
        );
    }

    #[test]
    fn names_are_searched_as_the_system_has_it() {
        let name = |text: &str| Name::from_ascii(text).unwrap();
        let search = vec![name("ns.svc.cluster.local"), name("svc.cluster.local")];
        let config = ResolverConfig::from_parts(Some(name("example.org")), search, Vec::new());
        let names = |text: &str, ndots| -> Vec<String> {
            full_names(&name(text), &config, ndots).iter().map(ToString::to_string).collect()
        };
        let searched = ["judge.ns.svc.cluster.local.", "judge.svc.cluster.local.", "judge."];
        assert_eq!(names("judge", 5), searched);
        assert_eq!(names("judge", 1), searched);
        assert_eq!(names("judge.", 5), ["judge."]);
        assert_eq!(names("judge.ns", 1)[0], "judge.ns.");
        assert_eq!(names("judge.ns", 5)[2], "judge.ns.");
        assert_eq!(names("_http._tcp.judge", 5)[0], "_http._tcp.judge.ns.svc.cluster.local.");
        let long = vec!["a".repeat(60); 4].join(".");
        assert_eq!(names(&long, 1), [format!("{long}.")]);
        let plain = ResolverConfig::from_parts(Some(name("example.org")), Vec::new(), Vec::new());
        assert_eq!(full_names(&name("judge"), &plain, 1), [name("judge.example.org."), name("judge.")]);
    }
}
