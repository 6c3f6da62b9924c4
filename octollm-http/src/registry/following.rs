//! The resolver of the arms that are registered in this process.

use std::sync::Arc;

use async_trait::async_trait;
use octollm_core::card::ArmCard;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tower::BoxError;

use super::{Registry, endpoint_of};
use crate::resolve::{Endpoint, Resolver};

/// Follows a registry of this process.
pub(super) struct Following {
    pub(super) registry: Registry,
    pub(super) changed: watch::Receiver<u64>,
    /// The set that was returned last.
    pub(super) last: Option<Vec<Arc<ArmCard>>>,
}

#[async_trait]
impl Resolver for Following {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        loop {
            self.changed.mark_unchanged();
            let (offered, next) = {
                let (state, now) = (self.registry.0.state(), Instant::now());
                (state.book.offered(now), state.book.next_end(now))
            };
            if self.last.as_ref() != Some(&offered) {
                let endpoints = offered.iter().filter_map(|card| endpoint_of(card));
                let endpoints = endpoints.collect();
                self.last = Some(offered);
                return Ok(endpoints);
            }
            let ended = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.changed.changed() => changed?,
                () = ended => {}
            }
        }
    }

    /// This process knows all of it.
    fn has_left(&self, _: &str) -> bool {
        true
    }
}
