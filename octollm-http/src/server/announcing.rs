//! How a server registers its arm at orchestrators: while it serves, and until it drains.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use octollm_core::{
    __private::{Counters, outcome},
    card::ArmCard,
    error::{ConfigError, ErrorKind, Failure},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Server, arm::HealthState};
use crate::registry::{Announce, Announcement, Heartbeats, Place, random};
#[cfg(feature = "tokens")]
use crate::token::SigningKey;

/// Time limit on one announcement.
const ANNOUNCE: Duration = Duration::from_secs(5);
/// Time limit on leaving, for all orchestrators together.
const LEAVE: Duration = Duration::from_secs(2);

static ANNOUNCEMENTS: LazyLock<Counters> = LazyLock::new(|| {
    let help = "Registrations of this server at orchestrators and their renewals, by outcome.";
    Counters::new("octollm_registrations_total", help, &["server", "code"])
});

/// Registration at orchestrators.
impl Server {
    /// Registers the arm at an orchestrator while the server serves, so that it is found without being configured there. It can be
    /// called again for further orchestrators.
    ///
    /// The registration holds for [`registration_lifetime`](Self::registration_lifetime), and is renewed at a third of it. Where the
    /// orchestrator is away or refuses it, the server serves all the same, stays ready, and tries again. When the server
    /// [drains](crate::BoundServer::run_until), it leaves first, within 2 s, and still serves meanwhile.
    ///
    /// The URL at which it is registered is its [`endpoint`](Self::endpoint). Without that it is the address that it listens on, unless
    /// that is not one that others can use.
    ///
    /// ```
    /// # use octollm_http::{OrchestratorClient, Server};
    /// # fn run() -> Result<Server, octollm_core::error::ConfigError> {
    /// let brain = OrchestratorClient::new("http://brain:8000")?;
    /// let judge = Server::new("judge").register(brain).endpoint("http://judge-arm:8103");
    /// # Ok(judge) }
    /// ```
    pub fn register(mut self, orchestrator: impl Announce) -> Self {
        self.announcing.targets.push(Arc::new(orchestrator));
        self
    }

    /// Sets the key with which the server signs its registrations: Ed25519 or P-256. Its public part is the key on the card. An arm that
    /// calls others with tokens signs these with the same key. Processes of one arm share it.
    ///
    /// Orchestrators that know their callers refuse registrations without a key.
    #[cfg(feature = "tokens")]
    pub fn registration_key(mut self, key: SigningKey) -> Self {
        self.announcing.key = Some(key);
        self
    }
}

/// Where a server registers, and with which key.
#[derive(Default)]
pub(crate) struct Announcing {
    pub(crate) targets: Vec<Arc<dyn Announce>>,
    #[cfg(feature = "tokens")]
    pub(crate) key: Option<SigningKey>,
}

impl Announcing {
    /// The public key for the card of the server, where it has one of its own.
    ///
    /// # Errors
    /// It cannot be on a card, or the card has another one.
    pub(crate) fn put_key(&self, card: &mut ArmCard) -> Result<(), ConfigError> {
        #[cfg(feature = "tokens")]
        if let Some(key) = &self.key {
            if !key.is_for_cards() {
                return Err(ConfigError::new("registration_key", "is neither Ed25519 nor P-256"));
            }
            let jwk = key.public_jwk();
            if card.key.is_some() && card.key != jwk {
                let problem =
                    "is not the key with which the arms of this server are called: use one for both";
                return Err(ConfigError::new("registration_key", problem));
            }
            card.key = jwk;
            return Ok(());
        }
        if !self.targets.is_empty() && card.key.is_some() {
            let problem = "is not set, and the card has a key: set it to the key with which the arms of this server are called";
            return Err(ConfigError::new("registration_key", problem));
        }
        Ok(())
    }

    /// The announcements of a server with this card, which listens at `url`. `None` where it registers nowhere.
    ///
    /// # Errors
    /// There is no URL that others can use.
    pub(crate) fn of(
        self,
        mut card: ArmCard,
        lifetime: Duration,
        url: Option<String>,
    ) -> Result<Option<Announcer>, ConfigError> {
        if self.targets.is_empty() {
            return Ok(None);
        }
        card.endpoint = card.endpoint.or(url);
        let endpoint = card.endpoint.as_deref().ok_or_else(|| {
            let problem = "is not set, and this server registers: set it to the URL by which it is called, such as \
                           http://judge-arm:8103, in the environment OCTOLLM_SERVER_ADVERTISE";
            ConfigError::new("endpoint", problem)
        })?;
        Place::parse(endpoint).map_err(|problem| ConfigError::new("endpoint", problem))?;
        let server: Arc<str> = card.arm_id.as_str().into();
        let one = |card, lifetime| {
            Announcement::new(
                card,
                lifetime,
                #[cfg(feature = "tokens")]
                self.key.clone(),
            )
        };
        let (enter, leave) = (Arc::new(one(card.clone(), lifetime)?), Arc::new(one(card, Duration::ZERO)?));
        let stop = CancellationToken::new();
        Ok(Some(Announcer { server, targets: self.targets, enter, leave, stop, left: None }))
    }
}

/// Announces a server at its orchestrators.
pub(crate) struct Announcer {
    server: Arc<str>,
    targets: Vec<Arc<dyn Announce>>,
    enter: Arc<Announcement>,
    leave: Arc<Announcement>,
    stop: CancellationToken,
    /// Ends when it has left everywhere.
    left: Option<mpsc::Receiver<()>>,
}

impl Announcer {
    /// Begins to announce the server. It ends with what is returned.
    pub(crate) fn start(&mut self) -> JoinSet<()> {
        let (leaving, left) = mpsc::channel(1);
        self.left = Some(left);
        let mut running = JoinSet::new();
        for target in &self.targets {
            let one = One {
                server: self.server.clone(),
                target: target.clone(),
                enter: self.enter.clone(),
                leave: self.leave.clone(),
            };
            running.spawn(one.run(self.stop.clone(), leaving.clone()));
        }
        running
    }

    /// Leaves all orchestrators, within 2 s. A second call has no effect.
    pub(crate) async fn leave(&mut self) {
        self.stop.cancel();
        let Some(mut left) = self.left.take() else { return };
        if timeout(LEAVE, left.recv()).await.is_err() {
            tracing::warn!(
                server = &*self.server,
                "an orchestrator was not told in time that the server leaves: its registration expires"
            );
        }
    }
}

/// Waits for the end of a server, and until it has left its orchestrators. `shutdown` returns for how long it still accepts requests
/// although it is not ready.
pub(crate) async fn left(
    shutdown: impl Future<Output = Option<Duration>>,
    announcer: Option<&mut Announcer>,
    health: &HealthState,
    server: &str,
) {
    let notice = shutdown.await;
    if let Some(notice) = notice {
        tracing::info!(server, ?notice, "not ready any more");
        health.drain();
    }
    let leave = async {
        if let Some(announcer) = announcer {
            announcer.leave().await;
        }
    };
    let notice = async {
        if let Some(notice) = notice {
            sleep(notice).await;
        }
    };
    tokio::join!(leave, notice);
}

/// The registration at one orchestrator.
struct One {
    server: Arc<str>,
    target: Arc<dyn Announce>,
    enter: Arc<Announcement>,
    leave: Arc<Announcement>,
}

impl One {
    async fn run(self, stop: CancellationToken, _leaving: mpsc::Sender<()>) {
        let mut heartbeats = Heartbeats::default();
        let (mut may_be_known, mut is_registered) = (false, false);
        while !stop.is_cancelled() {
            // Not dropped when the server leaves: it could arrive after that.
            let outcome = self.announce(&self.enter).await;
            may_be_known |= outcome.as_ref().err().is_none_or(|failure| failure.may_have_executed);
            let wait = heartbeats.wait(&outcome, random());
            self.log(&outcome, &mut is_registered, &mut heartbeats);
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(wait) => {}
            }
        }
        if may_be_known {
            let left = self.announce(&self.leave).await;
            tracing::info!(server = &*self.server, at = self.target.at(), is_done = left.is_ok(), "left");
        }
    }

    async fn announce(&self, announcement: &Announcement) -> Result<Duration, Failure> {
        let late = |_| Err(Failure::of(ErrorKind::Timeout));
        let done = timeout(ANNOUNCE, self.target.announce(announcement)).await.unwrap_or_else(late);
        let code = outcome(done.as_ref().map(|_| ()).map_err(|failure| failure.kind));
        ANNOUNCEMENTS.with(&[&self.server, code]).count();
        done
    }

    fn log(
        &self,
        outcome: &Result<Duration, Failure>,
        is_registered: &mut bool,
        heartbeats: &mut Heartbeats,
    ) {
        let (server, at) = (&*self.server, self.target.at());
        match outcome {
            Ok(lifetime) if !*is_registered => {
                *is_registered = true;
                tracing::info!(server, at, ?lifetime, "registered");
            }
            Ok(_) => tracing::debug!(server, at, "registered again"),
            Err(failure) if heartbeats.is_news(failure) => {
                *is_registered = false;
                tracing::warn!(server, at, %failure, "not registered at an orchestrator");
            }
            Err(failure) => tracing::debug!(server, at, %failure, "still not registered"),
        }
    }
}
