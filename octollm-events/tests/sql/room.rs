//! Disks that are full, and have room again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use octollm_core::{
    Context,
    brain::Brain,
    bus::{BusError, ConsumeOptions, DurableBus, EventBus},
    error::ErrorKind,
    event::Event,
    orchestrator::{Orchestrator, finished},
    store::TaskStore,
    task::{Submission, TaskQuery, TaskStatus},
};
use octollm_events::sql::{SqlBus, SqlError, SqlStore};
use tokio::time::Instant;

use crate::{
    brains::{Count, Counter, Steps},
    postgres::Postgres,
};

/// A disk of its own, which has a ballast that can be removed. It needs the right to mount, as root has.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn new(size: &str, ballast: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=777"), "tmpfs"])
            .arg(folder.path())
            .status();
        assert!(mounted.unwrap().success(), "a small disk is mounted: this test needs root");
        let disk = Self { folder };
        fs::write(disk.ballast(), vec![0; ballast]).unwrap();
        disk
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    fn make_room(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// Whether it says that the disk is full.
fn is_full(error: &BusError) -> bool {
    let BusError::Unavailable { source: Some(source) } = error else { return false };
    matches!(source.downcast_ref::<SqlError>(), Some(SqlError::DiskFull(_)))
}

/// A text that no database makes shorter.
fn noise(bytes: usize) -> String {
    let mut state = 1_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'!' + (state >> 33) as u8 % 90)
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

async fn goes_on_when_there_is_room(url: &str, disk: &Disk) {
    const LIMIT: Duration = Duration::from_secs(60);
    let store = SqlStore::open(url).await.unwrap();
    let bus = SqlBus::open(store.database()).await.unwrap();
    let steps = Steps::new(Duration::from_millis(1));
    let brain = Brain::builder().arm(Counter).arms(steps).store(store.clone()).build().unwrap();
    let cx = Context::detached();
    let before = brain.submit(Submission::of(&Count { steps: 3 }).unwrap(), &cx).await.unwrap();
    assert_eq!(finished(&brain, &before.task_id, &cx).await.unwrap().status, TaskStatus::Completed);
    // A group that settles nothing, so that everything stays.
    let pattern = "events:disk:*".parse().unwrap();
    let _consumer = bus.consume("slow", pattern, ConsumeOptions::default()).await.unwrap();

    let large = Event::new("disk.filled", "test", noise(64 * 1024)).unwrap();
    let end = Instant::now() + LIMIT;
    let error = loop {
        assert!(Instant::now() < end, "the disk is not full");
        let begun = Instant::now();
        if let Err(error) = bus.publish(large.clone()).await {
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
            break error;
        }
    };
    assert!(is_full(&error), "{error:?}");
    assert!(error.retryable(), "{error:?}");
    // Smaller ones may have found room until now.
    let failure = loop {
        assert!(Instant::now() < end, "tasks find room for ever");
        let submission = Submission::of(&Count { steps: 3 }).unwrap();
        if let Err(failure) = brain.submit(submission, &cx).await {
            break failure;
        }
    };
    // A server answers it with 503.
    assert_eq!((failure.kind, failure.kind.status()), (ErrorKind::Unavailable, 503), "{failure:?}");
    let read = store.get(&before.task_id).await.unwrap().expect("what is stored is read");
    assert_eq!(read.status(), TaskStatus::Completed);

    disk.make_room();
    let end = Instant::now() + LIMIT;
    let after = loop {
        match brain.submit(Submission::of(&Count { steps: 3 }).unwrap(), &cx).await {
            Ok(after) => break after,
            Err(failure) => assert!(failure.retryable && Instant::now() < end, "{failure:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    // Also those that were accepted before.
    for id in [&before.task_id, &after.task_id] {
        assert_eq!(finished(&brain, id, &cx).await.unwrap().status, TaskStatus::Completed);
    }
    let accepted = store.list(&TaskQuery::default().limit(10_000), None).await.unwrap();
    for record in accepted {
        let task = finished(&brain, record.id(), &cx).await.unwrap();
        assert_eq!(task.status, TaskStatus::Completed, "{:?}", task.error);
    }
    bus.publish(large).await.unwrap();
    brain.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_sqlite_is_named_and_work_goes_on_when_there_is_room() {
    let disk = Disk::new("12m", 6 << 20);
    let url = format!("sqlite:{}", disk.path().join("tasks.db").display());
    goes_on_when_there_is_room(&url, &disk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_postgres_is_named_and_work_goes_on_when_there_is_room() {
    let disk = Disk::new("40m", 20 << 20);
    let space = disk.path().join("space");
    fs::create_dir(&space).unwrap();
    assert!(Command::new("chown").arg("postgres").arg(&space).status().unwrap().success());
    {
        let server = Postgres::start(&[]);
        let create = format!("CREATE TABLESPACE small LOCATION '{}'", space.display());
        server.execute("postgres", &create);
        server.execute("postgres", "CREATE DATABASE small TABLESPACE small");
        goes_on_when_there_is_room(&server.url("small"), &disk).await;
    }
}
