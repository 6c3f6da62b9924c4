//! The endpoints in a file.

use std::{
    collections::HashSet,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use octollm_core::{error::ConfigError, id::is_arm_id};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep_until},
};
use tower::BoxError;

use super::{Endpoint, Resolver, url::ServiceUrl};

/// Time between two looks at the file.
const BETWEEN: Duration = Duration::from_secs(1);
/// Most bytes of a file.
const MOST: u64 = 4 << 20;

/// The endpoints that a JSON file lists, which is read again when it changes.
///
/// ```json
/// { "endpoints": [
///     { "arm": "judge", "url": "http://10.0.0.7:8103" },
///     { "arm": "judge", "url": "http://10.0.0.8:8103", "weight": 2 },
///     { "arm": "coder", "url": "https://coder.internal", "address": "10.0.0.9:8443" }
/// ] }
/// ```
///
/// The members of an endpoint are those of [`Endpoint`]; `arm` and `url` are required.
///
/// The file is read every second and compared with the last time, so that it can be replaced by any means: written in place,
/// renamed, or swapped as a mounted ConfigMap is. If it cannot be read or is not valid, the last endpoints stay in force, and the
/// reason is logged once. The largest file has 4 MiB.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    /// Time of the next look. `None` before the first.
    due: Option<Instant>,
    /// What the last look has found.
    seen: Option<Contents>,
    /// The last endpoints. `None` after an error.
    endpoints: Option<Vec<Endpoint>>,
}

/// What a look at the file has found.
#[derive(Debug, PartialEq, Eq)]
enum Contents {
    /// Digest of the bytes.
    Bytes([u8; 32]),
    Unreadable(io::ErrorKind),
}

impl File {
    /// Creates a resolver of the endpoints in this file. The file need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), due: None, seen: None, endpoints: None }
    }
}

#[async_trait]
impl Resolver for File {
    async fn next(&mut self) -> Result<Vec<Endpoint>, BoxError> {
        loop {
            if let Some(due) = self.due {
                sleep_until(due).await;
            }
            let path = self.path.clone();
            // The task fails only while the runtime shuts down.
            let look =
                spawn_blocking(move || read(&path)).await.unwrap_or_else(|gone| Err(io::Error::other(gone)));
            self.due = Some(Instant::now() + BETWEEN);
            let contents = match &look {
                Ok(bytes) => Contents::Bytes(Sha256::digest(bytes).into()),
                Err(error) => Contents::Unreadable(error.kind()),
            };
            if self.seen.as_ref() == Some(&contents) {
                continue;
            }
            self.seen = Some(contents);
            let last = self.endpoints.take();
            let bytes = look.map_err(|source| unusable(&self.path, "cannot be read").with_source(source))?;
            let endpoints = parse(&self.path, &bytes)?;
            self.endpoints = Some(endpoints.clone());
            if last.as_ref() != Some(&endpoints) {
                return Ok(endpoints);
            }
        }
    }
}

fn unusable(file: &Path, problem: impl Into<std::borrow::Cow<'static, str>>) -> ConfigError {
    ConfigError::new(file.display().to_string(), problem)
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    // Opening a pipe could take for ever.
    if !fs::metadata(file)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(file)?.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 4 MiB"));
    }
    Ok(bytes)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    endpoints: Vec<Endpoint>,
}

/// # Errors
/// The file is not JSON of the right form, or an endpoint is not valid. The text does not repeat a URL, which could hold credentials.
fn parse(file: &Path, bytes: &[u8]) -> Result<Vec<Endpoint>, ConfigError> {
    let Listed { endpoints } = serde_json::from_slice(bytes)
        .map_err(|source| unusable(file, "is not a list of endpoints").with_source(source))?;
    let mut places = HashSet::new();
    for (position, endpoint) in endpoints.iter().enumerate() {
        let invalid = |problem: &str| {
            unusable(file, format!("has an endpoint, number {}, that {problem}", position + 1))
        };
        if !is_arm_id(&endpoint.arm) {
            return Err(invalid("names no arm id of lower-case letters, digits and dashes"));
        }
        ServiceUrl::parse(&endpoint.url).map_err(invalid)?;
        if endpoint.weight == 0 {
            return Err(invalid("has a weight of 0"));
        }
        if !places.insert((&endpoint.arm, &endpoint.url, endpoint.address)) {
            return Err(invalid("is listed before"));
        }
    }
    Ok(endpoints)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Endpoint>, String> {
        parse(Path::new("arms.json"), text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_what_the_documentation_shows() {
        let documented = include_str!("file.rs").split("```").nth(1).unwrap();
        let text: String = documented.lines().skip(1).map(|line| line.trim_start_matches("///")).collect();
        let text = if cfg!(feature = "tls") { text } else { text.replace("https", "http") };
        let endpoints = read_text(&text).unwrap();
        assert_eq!(endpoints.len(), 3);
        assert_eq!(endpoints[0], Endpoint::new("judge", "http://10.0.0.7:8103"));
        assert_eq!(endpoints[1].weight, 2);
        assert_eq!(endpoints[2].address, Some(([10, 0, 0, 9], 8443).into()));
        assert_eq!(read_text(r#"{"endpoints": []}"#), Ok(Vec::new()));
    }

    #[test]
    fn refuses_what_is_no_list_of_endpoints() {
        for (text, problem) in [
            ("", "not a list"),
            ("[]", "not a list"),
            ("{}", "not a list"),
            (r#"{"endpoints": []"#, "not a list"),
            (r#"{"endpoints": []} {}"#, "not a list"),
            (r#"{"endpoints": [], "endpoints": []}"#, "not a list"),
            (r#"{"endpoints": [{"arm": "a", "url": "http://a", "wieght": 2}]}"#, "not a list"),
            (r#"{"endpoints": [{"arm": "a", "url": "http://a", "weight": -1}]}"#, "not a list"),
            (r#"{"endpoints": [{"arm": "a", "url": "http://a", "address": "a:80"}]}"#, "not a list"),
            (r#"{"endpoints": [{"arm": "a", "url": "http://a", "weight": 0}]}"#, "weight of 0"),
            (r#"{"endpoints": [{"arm": "a", "url": "ftp://a"}]}"#, "number 1, that has a scheme other"),
            (r#"{"endpoints": [{"arm": "A B", "url": "http://a"}]}"#, "no arm id"),
            (
                r#"{"endpoints": [{"arm": "a", "url": "http://a"}, {"arm": "a", "url": "http://a"}]}"#,
                "number 2",
            ),
        ] {
            let error = read_text(text).unwrap_err();
            assert!(error.starts_with("`arms.json` ") && error.contains(problem), "{text}: {error}");
        }
        let secret = read_text(r#"{"endpoints": [{"arm": "a", "url": "http://me:secret@a"}]}"#).unwrap_err();
        assert!(secret.contains("credentials") && !secret.contains("secret@"), "{secret}");
    }
}
