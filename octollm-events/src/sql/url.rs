//! Reads the URL of a database.

use std::path::PathBuf;

use octollm_core::error::ConfigError;
use sqlx::postgres::PgConnectOptions;

pub(super) enum Target {
    /// A file.
    Sqlite(PathBuf),
    Postgres(Box<PgConnectOptions>),
}

/// The parameters of a URL of Postgres, which the driver reads. It writes others, with their values, to the log.
const PARAMETERS: [&str; 17] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// No error has a part of the text, which contains a password.
pub(super) fn parse(text: &str) -> Result<Target, ConfigError> {
    if let Some(file) = text.strip_prefix("sqlite:") {
        return sqlite(file.strip_prefix("//").unwrap_or(file)).map(Target::Sqlite);
    }
    if text.starts_with("postgres:") || text.starts_with("postgresql:") {
        return postgres(text).map(|options| Target::Postgres(Box::new(options)));
    }
    Err(wrong("is `sqlite:FILE` or `postgres://USER:PASSWORD@HOST/NAME`"))
}

fn wrong(reason: &'static str) -> ConfigError {
    ConfigError::new("url", reason)
}

fn sqlite(file: &str) -> Result<PathBuf, ConfigError> {
    if file.is_empty() {
        return Err(wrong("has no file after `sqlite:`"));
    }
    if file.starts_with(":memory:") || file.starts_with("file:") {
        return Err(wrong("names a file: tasks in memory are those of `MemoryStore`"));
    }
    if file.contains(['?', '#', '\0']) {
        return Err(wrong("has no parameters after the file of SQLite"));
    }
    Ok(PathBuf::from(file))
}

fn postgres(text: &str) -> Result<PgConnectOptions, ConfigError> {
    let query = text.split_once('?').map_or("", |(_, query)| query);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let name = pair.split('=').next().unwrap_or_default();
        let known = PARAMETERS.contains(&name) || name.starts_with("options[");
        if !known {
            return Err(ConfigError::new("url", format!("has an unknown parameter: {name:?}")));
        }
    }
    text.parse().map_err(|_: sqlx::Error| wrong("is not a valid URL of Postgres"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_file_or_a_server() {
        for (text, file) in [
            ("sqlite:tasks.db", "tasks.db"),
            ("sqlite:///var/lib/a b.db", "/var/lib/a b.db"),
            ("sqlite:/x", "/x"),
        ] {
            assert!(matches!(parse(text), Ok(Target::Sqlite(found)) if found.as_os_str() == file), "{text}");
        }
        let Ok(Target::Postgres(options)) =
            parse("postgres://me:s%40crt@db.local:5433/tasks?sslmode=require")
        else {
            panic!("a URL of Postgres");
        };
        assert_eq!((options.get_host(), options.get_port()), ("db.local", 5433));
        assert_eq!((options.get_username(), options.get_database()), ("me", Some("tasks")));
    }

    #[test]
    fn an_invalid_url_is_refused_without_its_secrets() {
        for text in [
            "",
            "mysql://root:geheim@host/db",
            "sqlite:",
            "sqlite::memory:",
            "sqlite:a.db?mode=ro",
            "postgres://me:geheim@host:99999/db",
            "postgres://me:geheim@host/db?sslmode=geheim",
            "postgres://me@host/db?passwrod=geheim",
        ] {
            let error = match parse(text) {
                Err(error) => format!("{error} {error:?}"),
                Ok(_) => panic!("{text} is not valid"),
            };
            assert!(!error.contains("geheim"), "{error}");
        }
    }
}
