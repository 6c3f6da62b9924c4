//! Wakes those that wait for a change, in this process and in others.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sqlx::{
    Postgres,
    pool::PoolOptions,
    postgres::{PgConnectOptions, PgListener},
};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::{
    database::{Owned, Source},
    error::SqlError,
    statement::Sql,
};

/// What can change: a text without line breaks, such as the id of a task.
pub(crate) type Topic = Arc<str>;

/// Those that wait for changes.
pub(crate) struct Changes {
    topics: Mutex<HashMap<Topic, watch::Sender<()>>>,
    /// What other processes are to be notified of.
    unsent: Mutex<Unsent>,
    wake: Notify,
    closed: watch::Sender<bool>,
    listening: watch::Sender<Listening>,
}

#[derive(Default)]
struct Unsent {
    /// Whether other processes are notified by this one.
    active: bool,
    topics: HashSet<Topic>,
}

/// The connection by which notifications come.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Listening {
    /// Whether it was lost, and is not there again.
    pub(crate) is_lost: bool,
    /// How often it was lost.
    pub(crate) outages: u64,
}

/// With so many topics, those without a receiver are removed.
const SWEPT_AT: usize = 64;

impl Changes {
    pub(super) fn new() -> Self {
        let (topics, unsent) = Default::default();
        let (closed, listening) = (watch::Sender::new(false), watch::Sender::default());
        Self { topics, unsent, wake: Notify::new(), closed, listening }
    }

    /// A receiver that changes whenever the topic does, from now on.
    pub(crate) fn subscribe(&self, topic: Topic) -> watch::Receiver<()> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if topics.len() >= SWEPT_AT && topics.len().is_power_of_two() {
            topics.retain(|_, sender| sender.receiver_count() > 0);
        }
        topics.entry(topic).or_default().subscribe()
    }

    /// A receiver that changes whenever the connection to a server is lost, or there again. SQLite has none.
    pub(crate) fn listening(&self) -> watch::Receiver<Listening> {
        self.listening.subscribe()
    }

    /// Wakes those that wait for one of these topics in this process.
    fn notify<'t>(&self, changed: impl IntoIterator<Item = &'t str>) {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        for topic in changed {
            if let Some(sender) = topics.get(topic)
                && sender.send(()).is_err()
            {
                topics.remove(topic);
            }
        }
    }

    /// Wakes everybody in this process.
    pub(super) fn notify_all(&self) {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topics.retain(|_, sender| sender.send(()).is_ok());
    }

    /// Wakes those that wait for these topics, in all processes.
    pub(super) fn publish(&self, changed: Vec<Topic>) {
        if changed.is_empty() {
            return;
        }
        self.notify(changed.iter().map(|topic| &**topic));
        let mut unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        if unsent.active {
            unsent.topics.extend(changed);
            self.wake.notify_one();
        }
    }

    fn take_unsent(&self) -> HashSet<Topic> {
        std::mem::take(&mut self.unsent.lock().unwrap_or_else(PoisonError::into_inner).topics)
    }

    /// Topics that were taken and not sent.
    fn put_back(&self, topics: HashSet<Topic>) {
        let mut unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        unsent.topics.extend(topics);
        if unsent.topics.len() > MOST_UNSENT {
            unsent.topics = HashSet::from([ALL.into()]);
        }
        self.wake.notify_one();
    }

    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }
}

/// Starts to notify other processes, and to receive their notifications.
pub(super) fn start(source: &Arc<Source>, changes: &Arc<Changes>) {
    // Of SQLite the writer polls whether others have written.
    let Source::Postgres(options, _) = &**source else { return };
    changes.unsent.lock().unwrap_or_else(PoisonError::into_inner).active = true;
    let name: Arc<str> = instance().into();
    tokio::spawn(until_closed(changes.clone(), send(source.clone(), changes.clone(), name.clone())));
    tokio::spawn(until_closed(changes.clone(), receive(options.clone(), changes.clone(), name)));
}

async fn until_closed(changes: Arc<Changes>, task: impl Future<Output = ()>) {
    let mut closed = changes.closed.subscribe();
    tokio::select! {
        () = task => {}
        _ = closed.wait_for(|closed| *closed) => {}
    }
}

const CHANNEL: &str = "octollm_changes";
/// The longest payload of Postgres is 8 000 bytes.
const PAYLOAD: usize = 7_900;
/// With more changes at once than fit into so many payloads, everybody is woken.
const PAYLOADS: usize = 4;
/// With more changes that are not sent, they are replaced by one that stands for all.
const MOST_UNSENT: usize = 10_000;
/// Stands for all topics.
const ALL: &str = "*";
/// Shortest time between two sendings.
const PAUSE: Duration = Duration::from_millis(10);
/// After so long without a change an empty notification is sent, by which the receiver knows that its connection lives.
const IDLE: Duration = Duration::from_secs(5);
/// After so long without a notification the receiver connects again.
const SILENCE: Duration = Duration::from_secs(15);
/// Pauses after a failure: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause before the receiver connects again.
const RECONNECT: Duration = Duration::from_millis(500);

/// The name of this handle among all that are notified.
fn instance() -> String {
    use std::hash::{BuildHasher, RandomState};
    // Two hashers have different random keys.
    format!("{:016x}", RandomState::new().hash_one(std::process::id()))
}

/// Sends changes outside of the transactions that made them: a notification locks out all other ones until its transaction is
/// committed, and those do not wait for the disk. What a process does not send because it ends is found by the intervals of
/// brains.
async fn send(source: Arc<Source>, changes: Arc<Changes>, name: Arc<str>) {
    let mut connection: Option<Owned> = None;
    let mut pause = FIRST_PAUSE;
    loop {
        let _ = timeout(IDLE, changes.wake.notified()).await;
        let topics = changes.take_unsent();
        let sent = async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => source.connect(false).await?,
            };
            for payload in payloads(&name, &topics) {
                notify(&mut open, payload).await?;
            }
            Ok::<_, SqlError>(open)
        };
        match timeout(source.settings().operation_time, sent).await {
            Ok(Ok(open)) => {
                connection = Some(open);
                pause = FIRST_PAUSE;
                sleep(PAUSE).await;
            }
            failed => {
                if let Ok(Err(error)) = failed {
                    tracing::debug!(%error, "changes not sent");
                }
                changes.put_back(topics);
                sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }
}

/// The payloads for these topics: the name of the sender, and in each further line a topic.
fn payloads(name: &str, topics: &HashSet<Topic>) -> Vec<String> {
    let mut payloads = vec![name.to_owned()];
    for topic in topics {
        let full = payloads.last().is_none_or(|payload| payload.len() + 1 + topic.len() > PAYLOAD);
        if topic.len() + name.len() + 1 > PAYLOAD || (full && payloads.len() == PAYLOADS) {
            return vec![format!("{name}\n{ALL}")];
        }
        if full {
            payloads.push(name.to_owned());
        }
        if let Some(payload) = payloads.last_mut() {
            payload.push('\n');
            payload.push_str(topic);
        }
    }
    payloads
}

async fn notify(connection: &mut Owned, payload: String) -> Result<(), sqlx::Error> {
    static NOTIFY: Sql = Sql::new("SELECT pg_notify($1, $2)");
    connection.conn().execute(&NOTIFY, [CHANNEL.into(), payload.into()]).await.map(drop)
}

/// Receives the changes of other processes. After a connection was lost, everybody is woken once.
async fn receive(options: PgConnectOptions, changes: Arc<Changes>, name: Arc<str>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let mut is_listening = false;
        if let Err(error) = listen(&options, &changes, &name, &mut is_listening).await {
            tracing::debug!(%error, "notifications interrupted");
        }
        if is_listening {
            changes.listening.send_modify(|listening| {
                *listening = Listening { is_lost: true, outages: listening.outages + 1 };
            });
            pause = FIRST_PAUSE;
        }
        sleep(pause).await;
        pause = (pause * 2).min(RECONNECT);
    }
}

async fn listen(
    options: &PgConnectOptions,
    changes: &Changes,
    name: &str,
    is_listening: &mut bool,
) -> Result<(), sqlx::Error> {
    // Within this time the pool tries again by itself, after pauses of at most a fifth of it.
    let pool = PoolOptions::<Postgres>::new().max_connections(1).acquire_timeout(5 * RECONNECT);
    let mut listener = PgListener::connect_with(&pool.connect_lazy_with(options.clone())).await?;
    // A loss is reported when it happens, and not once the server is there again.
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    *is_listening = true;
    // What was sent before is lost.
    changes.notify_all();
    changes.listening.send_modify(|listening| listening.is_lost = false);
    loop {
        let Ok(received) = timeout(SILENCE, listener.try_recv()).await else {
            return Err(sqlx::Error::Protocol("no notification came in time".to_owned()));
        };
        let Some(notification) = received? else { return Ok(()) };
        let mut lines = notification.payload().lines();
        if lines.next() == Some(name) {
            continue;
        }
        let topics: Vec<&str> = lines.collect();
        if topics.contains(&ALL) {
            changes.notify_all();
        } else {
            changes.notify(topics);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_wakes_those_who_wait_for_it_once() {
        let changes = Changes::new();
        let (mut queue, mut task) = (changes.subscribe("queue".into()), changes.subscribe("task_1".into()));
        changes.publish(vec!["task_1".into(), "task_1".into()]);
        let is_changed = |receiver: &mut watch::Receiver<()>| {
            let changed = receiver.has_changed().unwrap();
            receiver.mark_unchanged();
            changed
        };
        assert!(!is_changed(&mut queue) && is_changed(&mut task) && !is_changed(&mut task));
        drop(task);
        changes.publish(vec!["task_1".into()]);
        assert_eq!(changes.topics.lock().unwrap().len(), 1, "nobody waits for the task any more");
        changes.notify_all();
        assert!(is_changed(&mut queue));
    }

    #[test]
    fn many_changes_fit_into_few_payloads_or_wake_everybody() {
        let topics = |count: usize| -> HashSet<Topic> {
            (0..count).map(|number| format!("task_{number:016}").into()).collect()
        };
        assert_eq!(payloads("me", &topics(0)), ["me"]);
        let some = payloads("me", &topics(1_000));
        assert!(some.len() <= PAYLOADS && some.iter().all(|payload| payload.len() <= PAYLOAD));
        let read: HashSet<Topic> =
            some.iter().flat_map(|payload| payload.lines().skip(1)).map(Into::into).collect();
        assert_eq!(read, topics(1_000));
        assert_eq!(payloads("me", &topics(10_000)), ["me\n*"]);
    }
}
