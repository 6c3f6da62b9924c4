//! Following the resolvers of a client: one task for each.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use octollm_core::id::is_arm_id;
use tokio::{
    runtime::Handle,
    task::AbortHandle,
    time::{Instant, sleep_until},
};
use tower::BoxError;

use super::{
    authority::Authority,
    base_url::{BaseUrl, Fields},
    directory::Directory,
    site::Listed,
};
use crate::resolve::{Endpoint, Resolver, Steady};

/// The resolvers of a client. The tasks that follow them end with it.
pub(super) struct Follow {
    itself: Weak<Self>,
    directory: Weak<Directory>,
    sources: Vec<Mutex<Option<Steady>>>,
    /// Number of resolvers that no task follows.
    idle: AtomicUsize,
    tasks: Mutex<Vec<AbortHandle>>,
    rules: Rules,
}

/// What an endpoint that is found has to comply with.
pub(super) struct Rules {
    /// The arms that are named in the configuration, with the group of the sources that can list them.
    configured: HashMap<String, usize>,
    /// The group of each source.
    groups: Vec<usize>,
    /// Fields of the requests to each arm.
    fields: HashMap<String, Fields>,
    authority: Authority,
    /// Whether requests go over TCP, where others can read what is not encrypted.
    over_tcp: bool,
    reported: Mutex<HashSet<String>>,
}

/// The most problems that are remembered, so that each is logged once.
const MOST_REPORTED: usize = 1_000;

impl Follow {
    /// The ids of the arms that are named in the configuration.
    pub(super) fn configured(&self) -> Vec<String> {
        self.rules.configured()
    }

    pub(super) fn new(directory: &Arc<Directory>, resolvers: Vec<Steady>, rules: Rules) -> Arc<Self> {
        Arc::new_cyclic(|itself| Self {
            itself: itself.clone(),
            directory: Arc::downgrade(directory),
            idle: AtomicUsize::new(resolvers.len()),
            sources: resolvers.into_iter().map(|resolver| Mutex::new(Some(resolver))).collect(),
            tasks: Mutex::default(),
            rules,
        })
    }

    /// Spawns a task for each resolver that has none. Outside a runtime the next call does this.
    pub(super) fn ensure(&self) {
        if self.idle.load(Ordering::Relaxed) > 0 {
            self.spawn();
        }
    }

    fn spawn(&self) {
        let Ok(runtime) = Handle::try_current() else { return };
        for (number, source) in self.sources.iter().enumerate() {
            let resolver = source.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(resolver) = resolver {
                self.idle.fetch_sub(1, Ordering::Relaxed);
                let followed = Followed { by: self.itself.clone(), number, resolver: Some(resolver) };
                let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
                tasks.retain(|task| !task.is_finished());
                let following = follow(followed, self.directory.clone());
                tasks.push(runtime.spawn(following).abort_handle());
            }
        }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }
}

/// A resolver that a task follows. If the runtime of the task ends, another task can follow it.
struct Followed {
    by: Weak<Follow>,
    number: usize,
    resolver: Option<Steady>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        let Some(follow) = self.by.upgrade() else { return };
        if let Some(source) = follow.sources.get(self.number) {
            *source.lock().unwrap_or_else(PoisonError::into_inner) = self.resolver.take();
            follow.idle.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn follow(mut followed: Followed, directory: Weak<Directory>) {
    // Source 0 is the configuration.
    let source = followed.number + 1;
    loop {
        let Some(resolver) = &mut followed.resolver else { return };
        let Some(next) = next(resolver, &directory).await else { return };
        let (Some(directory), Some(by)) = (directory.upgrade(), followed.by.upgrade()) else { return };
        match next {
            Ok(set) => {
                let listed = by.rules.apply(source, set);
                directory.replace(source, listed);
            }
            Err(error) => {
                tracing::warn!(%error, "a resolver has failed, and its last endpoints stay in use");
                directory.has_failed(source, error.to_string());
            }
        }
    }
}

/// The next answer of a resolver. The directory is tended to meanwhile, and the resolver goes on: one whose answer takes longer than
/// the time between would never give one. `None` where the client is gone.
async fn next(resolver: &mut Steady, directory: &Weak<Directory>) -> Option<Result<Vec<Endpoint>, BoxError>> {
    let mut next = pin!(resolver.next());
    loop {
        let due = directory.upgrade()?.due();
        tokio::select! {
            next = &mut next => return Some(next),
            () = until(due) => directory.upgrade()?.tend(),
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl Rules {
    pub(super) fn new(
        configured: HashMap<String, usize>,
        groups: impl IntoIterator<Item = usize>,
        fields: HashMap<String, Fields>,
        authority: Authority,
        over_tcp: bool,
    ) -> Self {
        let groups = [0].into_iter().chain(groups).collect();
        Self { configured, groups, fields, authority, over_tcp, reported: Mutex::default() }
    }

    /// The ids of the arms that are named in the configuration.
    pub(super) fn configured(&self) -> Vec<String> {
        self.configured.keys().cloned().collect()
    }

    /// The endpoints that can be used, of those of a source.
    fn apply(&self, source: usize, set: Vec<Endpoint>) -> Vec<Listed> {
        set.into_iter().filter_map(|endpoint| self.listed(source, endpoint)).collect()
    }

    fn listed(&self, source: usize, endpoint: Endpoint) -> Option<Listed> {
        let arm = endpoint.arm.clone();
        match self.checked(source, endpoint) {
            Ok(listed) => Some(listed),
            Err(problem) => {
                let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
                if reported.len() < MOST_REPORTED && reported.insert(format!("{arm} {problem}")) {
                    tracing::warn!(?arm, problem, "an endpoint that a resolver has found is left out");
                }
                None
            }
        }
    }

    fn checked(&self, source: usize, endpoint: Endpoint) -> Result<Listed, String> {
        let Endpoint { arm, url, address, weight, card, .. } = endpoint;
        if !is_arm_id(&arm) {
            return Err("is not an arm id of lower-case letters, digits and dashes".into());
        }
        if self.configured.get(&arm).is_some_and(|group| Some(group) != self.groups.get(source)) {
            return Err("is set in the configuration, whose endpoints are used".into());
        }
        let mut url = BaseUrl::parse(&url)?;
        if let Some(fields) = self.fields.get(&arm) {
            url = url.with_fields(fields.clone());
        }
        if let Some(address) = address {
            url = url.at(address);
        }
        if self.over_tcp {
            self.authority.check(&arm, &url).map_err(|error| error.to_string())?;
        }
        Ok(Listed { arm: arm.into(), url, weight: weight.max(1), card })
    }
}
