//! Brains over a database that are killed, stopped, and lose their database, while tasks of 30 steps run.

mod brain;
mod brains;
mod events;
mod kills;
mod outage;
#[path = "../../../octollm-events/tests/support/postgres.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests use the rest")]
mod postgres;
mod program;
mod report;
mod system;

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};

use octollm::task::Timestamp;

use self::postgres::Postgres;
use crate::Result;

/// A mode that needs a database, or the process of a brain.
pub(crate) async fn run(words: &[&str]) -> Result<()> {
    match *words {
        ["brain", name, url, lease, slots] => brain::run(name, url, lease, slots).await,
        ["kills", ref rest @ ..] => {
            let (options, databases) = Options::read(rest, &[])?;
            kills::storm(&databases, options.short).await
        }
        ["brains", ref rest @ ..] => {
            let (options, urls) = Options::read(rest, &["--brains", "--lease"])?;
            none(&urls)?;
            brains::storm(&options).await
        }
        ["outage", ref rest @ ..] => {
            let (options, urls) = Options::read(rest, &[])?;
            none(&urls)?;
            outage::storm(options.short).await
        }
        _ => Err("there is no such mode".into()),
    }
}

/// The options of a mode.
#[derive(Default)]
struct Options {
    short: bool,
    brains: Option<usize>,
    lease: Option<Duration>,
}

impl Options {
    /// Reads the options, of which these have values. What is left are the URLs of databases.
    fn read<'w>(words: &[&'w str], known: &[&str]) -> Result<(Self, Vec<&'w str>)> {
        let (mut options, mut rest, mut words) = (Self::default(), Vec::new(), words.iter().copied());
        while let Some(word) = words.next() {
            if word == "--short" {
                options.short = true;
            } else if known.contains(&word) {
                let value = words.next().ok_or_else(|| format!("{word} needs a number"))?;
                match word {
                    "--brains" => options.brains = Some(value.parse()?),
                    _ => options.lease = Some(Duration::from_secs(value.parse()?)),
                }
            } else if word.starts_with('-') {
                return Err(format!("there is no option {word}").into());
            } else {
                rest.push(word);
            }
        }
        Ok((options, rest))
    }
}

fn none(words: &[&str]) -> Result<()> {
    words.first().map_or(Ok(()), |word| Err(format!("{word} is not an option of this mode").into()))
}

/// A server of Postgres of this process. It asks for no password: a debug build takes long to compute the proof of one.
struct Database {
    server: Postgres,
    _folder: tempfile::TempDir,
}

fn postgres() -> Result<Database> {
    if !Path::new("/usr/lib/postgresql").exists() {
        let words =
            "a server of Postgres is started from Debian's package `postgresql`, which is not installed";
        return Err(words.into());
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("pg_hba.conf");
    fs::write(&file, "host all all 127.0.0.1/32 trust\n")?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let server = Postgres::start(&[&format!("hba_file={}", file.display())]);
    Ok(Database { server, _folder: folder })
}

/// A random part of a time.
fn part_of(time: Duration) -> Duration {
    time.mul_f64(random() as f64 / u64::MAX as f64)
}

fn random() -> u64 {
    RandomState::new().hash_one(0)
}

/// Seconds from one time to a later one.
fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}
