use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use octollm_http::resolve::{Endpoint, File, Resolver};
use tempfile::tempdir;
use tokio::time::timeout;

fn listing(urls: &[&str]) -> String {
    let endpoints: Vec<_> =
        urls.iter().map(|url| serde_json::json!({ "arm": "judge", "url": url })).collect();
    serde_json::json!({ "endpoints": endpoints }).to_string()
}

fn urls(endpoints: Vec<Endpoint>) -> Vec<String> {
    endpoints.into_iter().map(|endpoint| endpoint.url).collect()
}

/// The next answer, as URLs or the text of the error.
async fn next(file: &mut File) -> Result<Vec<String>, String> {
    file.next().await.map(urls).map_err(|error| error.to_string())
}

async fn is_silent(file: &mut File) -> bool {
    timeout(Duration::from_secs(60), file.next()).await.is_err()
}

/// Replaces a file in one step, with the times of the old one.
fn replace(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    fs::write(&draft, text).unwrap();
    let times = fs::metadata(path).unwrap().modified().unwrap();
    fs::File::options().write(true).open(&draft).unwrap().set_modified(times).unwrap();
    fs::rename(&draft, path).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_file_is_read_again_when_it_changes_by_any_means() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("arms.json");
    fs::write(&path, listing(&["http://a"])).unwrap();
    let mut file = File::new(&path);
    assert_eq!(next(&mut file).await.unwrap(), ["http://a"]);
    assert!(is_silent(&mut file).await, "nothing has changed");

    // In place, with the same length and, within the resolution of the clock, the same time.
    fs::write(&path, listing(&["http://b"])).unwrap();
    assert_eq!(next(&mut file).await.unwrap(), ["http://b"]);
    replace(&path, &listing(&["http://c"]));
    assert_eq!(next(&mut file).await.unwrap(), ["http://c"]);
    // Other bytes with the same endpoints are no change.
    fs::write(&path, format!("\n{}\n", listing(&["http://c"]))).unwrap();
    assert!(is_silent(&mut file).await);
}

/// As the kubelet does it: the file is a link through `..data`, which is swapped for one to another directory.
#[tokio::test(start_paused = true)]
async fn a_config_map_that_is_swapped_is_read_again() {
    let volume = tempdir().unwrap();
    let at = |name: &str| volume.path().join(name);
    let write = |version: &str, text: &str| {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("arms.json"), text).unwrap();
    };
    write("..1", &listing(&["http://a"]));
    symlink("..1", at("..data")).unwrap();
    symlink("..data/arms.json", at("arms.json")).unwrap();
    let mut file = File::new(at("arms.json"));
    assert_eq!(next(&mut file).await.unwrap(), ["http://a"]);

    write("..2", &listing(&["http://b", "http://c"]));
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    fs::remove_dir_all(at("..1")).unwrap();
    assert_eq!(next(&mut file).await.unwrap(), ["http://b", "http://c"]);
}

#[tokio::test(start_paused = true)]
async fn fault_43_a_bad_file_is_an_error_once_for_each_content() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("arms.json");
    let mut file = File::new(&path);
    assert!(next(&mut file).await.unwrap_err().contains("cannot be read"), "it is not there yet");
    assert!(is_silent(&mut file).await);
    let good = listing(&["http://a"]);
    fs::write(&path, &good).unwrap();
    assert_eq!(next(&mut file).await.unwrap(), ["http://a"]);

    fs::write(&path, &good[..10]).unwrap();
    assert!(next(&mut file).await.unwrap_err().contains("is not a list of endpoints"));
    assert!(is_silent(&mut file).await);
    fs::write(&path, &good[..11]).unwrap();
    assert!(next(&mut file).await.is_err());
    // The old content is an answer again, so that whoever asks sees the end of the trouble.
    fs::write(&path, &good).unwrap();
    assert_eq!(next(&mut file).await.unwrap(), ["http://a"]);

    fs::remove_file(&path).unwrap();
    assert!(next(&mut file).await.unwrap_err().contains("cannot be read"));
    fs::create_dir(&path).unwrap();
    assert!(next(&mut file).await.unwrap_err().contains("cannot be read"), "a directory");
    fs::remove_dir(&path).unwrap();
    assert!(next(&mut file).await.is_err());
    fs::write(&path, vec![b' '; (4 << 20) + 1]).unwrap();
    assert!(next(&mut file).await.is_err(), "too large");
    fs::write(&path, listing(&[])).unwrap();
    assert_eq!(next(&mut file).await.unwrap(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn dropped_questions_lose_no_change() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("arms.json");
    let mut file = File::new(&path);
    for number in 0..50 {
        let url = format!("http://a{number}");
        fs::write(&path, listing(&[&url])).unwrap();
        let found = loop {
            // Shorter than the time between two looks.
            if let Ok(found) = timeout(Duration::from_millis(1 + number % 7 * 100), file.next()).await {
                break found.map(urls).unwrap();
            }
        };
        assert_eq!(found, [url]);
    }
}
