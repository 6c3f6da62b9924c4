//! Moves an arm from place to place while it is called, and prints which calls went where. The places are in a file.
//!
//! ```text
//! cargo run --example discover
//! ```
//!
//! With names in DNS, `File::new(path)` is `Dns::new("scribe", "http://scribe:8000").build()?` (feature `dns`), or the arm is added by
//! `.endpoint("scribe", "dns+http://scribe:8000")`.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use octollm::{error::CallError, http::resolve::File, prelude::*};
use tokio::{task::JoinHandle, time::sleep};

/// Asks an arm where it is.
#[derive(Debug, Serialize, Deserialize, JsonSchema, TaskContract)]
#[task(name = "place.name", output = String, idempotent)]
struct WhereAreYou {}

/// One process of the arm, as far as this program is concerned.
struct Scribe(&'static str);

#[async_trait]
impl Arm<WhereAreYou> for Scribe {
    async fn execute(&self, _: WhereAreYou, _: &Context) -> Result<String, ArmError> {
        Ok(self.0.into())
    }
}

/// A place that runs until its task is aborted.
struct Place {
    url: String,
    task: JoinHandle<()>,
}

async fn start(name: &'static str) -> Result<Place, octollm::Error> {
    let server = Server::new("scribe").arm(Scribe(name)).bind("127.0.0.1:0").await?;
    let url = server.url();
    let task = tokio::spawn(async move {
        let _ = server.run().await;
    });
    Ok(Place { url, task })
}

/// Replaces the file in one step, so that nobody reads half of it.
fn list(file: &Path, places: &[&Place]) -> std::io::Result<()> {
    let endpoints: Vec<_> =
        places.iter().map(|place| serde_json::json!({ "arm": "scribe", "url": place.url })).collect();
    let draft = file.with_extension("draft");
    fs::write(&draft, serde_json::json!({ "endpoints": endpoints }).to_string())?;
    fs::rename(draft, file)
}

/// Calls for a while, and prints how many calls each place has answered.
async fn call(arms: &Arms, change: &str) {
    let mut answers: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..100 {
        let answer: Result<String, CallError> = arms.call(WhereAreYou {}).retry(2).await;
        let place = answer.unwrap_or_else(|error| format!("failed ({})", error.kind().code()));
        *answers.entry(place).or_default() += 1;
        sleep(Duration::from_millis(2)).await;
    }
    let answers: Vec<_> = answers.iter().map(|(place, count)| format!("{place} {count}")).collect();
    println!("{change:<45} {}", answers.join(", "));
}

/// Longer than the time between two looks at the file.
async fn noticed() {
    sleep(Duration::from_millis(1500)).await;
}

#[tokio::main]
async fn main() -> Result<(), octollm::Error> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("arms.json");
    let (oslo, rome) = (start("Oslo").await?, start("Rome").await?);
    list(&file, &[&oslo])?;
    let arms = Arms::builder().resolver(File::new(&file)).resolver_grace(Duration::from_secs(2)).build()?;

    call(&arms, "the file has one place").await;

    list(&file, &[&oslo, &rome])?;
    noticed().await;
    call(&arms, "it has two").await;

    list(&file, &[&rome])?;
    noticed().await;
    oslo.task.abort();
    call(&arms, "the first is removed, and then stopped").await;

    fs::write(&file, "{ \"endpoints\": [")?;
    noticed().await;
    call(&arms, "the file is cut short: the last one holds").await;

    list(&file, &[])?;
    noticed().await;
    call(&arms, "it has none: the last one for a while").await;
    sleep(Duration::from_secs(2)).await;
    call(&arms, "and then none").await;

    let bern = start("Bern").await?;
    list(&file, &[&bern])?;
    noticed().await;
    call(&arms, "a new one").await;
    rome.task.abort();
    bern.task.abort();
    Ok(())
}
