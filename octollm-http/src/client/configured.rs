//! The arms that are added to a client by their ids, in the program and in the environment.

use std::{collections::HashMap, ffi::OsStr, fmt, sync::Arc};

use octollm_core::{
    __private::settings::{SERVICE_LINK, is_service_link},
    card::ArmCard,
    contract::ContractCard,
    error::ConfigError,
    id::is_arm_id,
};

use super::{base_url::BaseUrl, site::Listed};
use crate::resolve::{self, Resolver};

/// An arm as it was added.
pub(super) struct Named {
    /// Name in errors: that of the variable, or the id of the arm.
    pub(super) name: String,
    pub(super) id: String,
    pub(super) urls: Vec<String>,
    pub(super) serves: Option<ContractCard>,
}

/// Prefix of the variables that have the URLs of arms.
pub(super) const PREFIX: &str = "OCTOLLM_ARM_";

/// Reads the variables `OCTOLLM_ARM_<ID>=url[,url]`, sorted by name.
pub(super) fn arm_variables<K: AsRef<OsStr>, V: AsRef<OsStr>>(
    variables: impl IntoIterator<Item = (K, V)>,
) -> Result<Vec<Named>, ConfigError> {
    let mut arms = Vec::new();
    for (name, value) in variables {
        let name = name.as_ref().to_string_lossy();
        let Some(id) = name.strip_prefix(PREFIX) else { continue };
        if is_service_link(&name, value.as_ref().to_str()) {
            return Err(ConfigError::new(name.into_owned(), SERVICE_LINK));
        }
        let arm_id = id.to_ascii_lowercase().replace('_', "-");
        let Some(value) = value.as_ref().to_str() else {
            return Err(ConfigError::new(name.into_owned(), "is not UTF-8"));
        };
        let urls = value.split(',').map(|url| url.trim().to_owned()).collect();
        arms.push(Named { name: name.into_owned(), id: arm_id, urls, serves: None });
    }
    arms.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(arms)
}

/// The arms that were added by their ids.
#[derive(Default)]
pub(super) struct Configured {
    /// Their endpoints.
    pub(super) listed: Vec<Listed>,
    /// The resolvers for their URLs that stand for one, with their groups: one for each arm, from 1.
    pub(super) resolvers: Vec<(usize, Box<dyn Resolver>)>,
    /// The groups of all arms, which are 0 for those with endpoints.
    pub(super) groups: HashMap<String, usize>,
}

impl Configured {
    pub(super) fn add(&mut self, named: Named) -> Result<(), ConfigError> {
        let Named { name, id, urls, serves } = named;
        if !is_arm_id(&id) {
            return Err(ConfigError::new(name, "is not an arm id of lower-case letters, digits and dashes"));
        }
        let (mut endpoints, mut resolvers) = (Vec::new(), Vec::new());
        for url in &urls {
            match resolve::parse(&id, url).map_err(|error| error.for_setting(name.clone()))? {
                Some(resolver) => resolvers.push(resolver),
                None => endpoints
                    .push(BaseUrl::parse(url).map_err(|problem| ConfigError::new(name.clone(), problem))?),
            }
        }
        if !resolvers.is_empty() && (!endpoints.is_empty() || serves.is_some()) {
            return Err(ConfigError::new(name, "mixes URLs of DNS with others"));
        }
        if !resolvers.is_empty() {
            let group = self.resolvers.last().map_or(1, |(last, _)| last + 1);
            if self.groups.insert(id, group).is_some() {
                return Err(ConfigError::new(name, "names an arm that is set already"));
            }
            self.resolvers.extend(resolvers.into_iter().map(|resolver| (group, resolver)));
            return Ok(());
        }
        let card = serves.map(|contract| with_contract(ArmCard::new(&*id), contract));
        if !self.groups.contains_key(&id) {
            self.groups.insert(id.clone(), 0);
            let arm: Arc<str> = id.into();
            let listed = |url| Listed { arm: arm.clone(), url, weight: 1, card: card.clone() };
            self.listed.extend(endpoints.into_iter().map(listed));
            return Ok(());
        }
        let known: Vec<_> = self.listed.iter_mut().filter(|known| *known.arm == *id).collect();
        let are_same = known.iter().map(|known| &known.url).eq(&endpoints);
        let is_set = || ConfigError::new(name.clone(), "names an arm that is set already");
        if !are_same {
            return Err(is_set());
        }
        for known in known {
            match (&mut known.card, &card) {
                (Some(known), Some(card)) => {
                    card.contracts
                        .iter()
                        .for_each(|contract| *known = with_contract(known.clone(), contract.clone()));
                }
                _ => return Err(is_set()),
            }
        }
        Ok(())
    }

    /// # Errors
    /// A header is for none of the arms.
    pub(super) fn check_headers(&self, headers: &[(String, String, String)]) -> Result<(), ConfigError> {
        match headers.iter().find(|(arm, ..)| !self.groups.contains_key(arm)) {
            Some((arm, ..)) => Err(ConfigError::new(arm.clone(), "has a header, but is not among the arms")),
            None => Ok(()),
        }
    }
}

fn with_contract(mut card: ArmCard, contract: ContractCard) -> ArmCard {
    if !card.capabilities.contains(&contract.name) {
        card.capabilities.push(contract.name.clone());
    }
    card.contracts.push(contract);
    card
}

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No URLs: they are not checked yet for credentials.
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_are_sorted_and_have_one_url_or_several() {
        let arms = arm_variables([
            ("PATH", "/bin"),
            ("OCTOLLM_ARM_JUDGE", "http://judge:8103"),
            ("OCTOLLM_ARM_CODE_REVIEWER", "http://a:1, http://b:2"),
        ])
        .unwrap();
        assert_eq!(arms.len(), 2);
        assert_eq!(arms[0].id, "code-reviewer");
        assert_eq!(arms[0].urls, ["http://a:1", "http://b:2"]);
        assert_eq!(arms[1].name, "OCTOLLM_ARM_JUDGE");
        let link = arm_variables([("OCTOLLM_ARM_JUDGE_SERVICE_HOST", "10.0.0.1")]).unwrap_err();
        assert!(link.to_string().contains("enableServiceLinks"));
    }

    #[cfg(feature = "dns")]
    #[test]
    fn the_names_of_one_arm_are_one_group_and_no_arm_is_set_twice() {
        let named = |id: &str, urls: &str| {
            arm_variables([(format!("{PREFIX}{}", id.to_uppercase()), urls)]).unwrap().remove(0)
        };
        let mut configured = Configured::default();
        configured.add(named("plain", "http://p")).unwrap();
        configured.add(named("judge", "dns+http://a:1,dns+http://b:1")).unwrap();
        configured.add(named("coder", "srv+http://_http._tcp.c")).unwrap();
        let groups: Vec<_> = configured.resolvers.iter().map(|(group, _)| *group).collect();
        assert_eq!(groups, [1, 1, 2]);
        assert_eq!(
            configured.groups,
            HashMap::from(
                [("plain", 0), ("judge", 1), ("coder", 2)].map(|(id, group)| (id.to_owned(), group))
            )
        );
        for (id, urls) in [
            ("judge", "dns+http://x"),
            ("judge", "http://x"),
            ("plain", "dns+http://x"),
            ("plain", "http://x"),
        ] {
            let error = configured.add(named(id, urls)).unwrap_err();
            assert!(error.to_string().contains("is set already"), "{id} {urls}: {error}");
        }
    }
}
