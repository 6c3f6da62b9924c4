//! URLs of Redis servers.

use std::path::PathBuf;

use octollm_core::error::ConfigError;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// Who uses a server, and which database of it.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: u32,
}

pub(super) struct Url {
    pub(super) address: Address,
    pub(super) uses_tls: bool,
    pub(super) login: Login,
}

const FORM: &str = "is `redis://USER:PASSWORD@HOST:PORT/DATABASE`, `rediss://…` or `unix:///FILE`";
const PORT: u16 = 6379;

impl Url {
    /// Reads a URL. No error has a part of the text, which may contain a password.
    pub(super) fn parse(url: &str) -> Result<Self, ConfigError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong(FORM))?;
        if rest.contains('#') {
            return Err(wrong("has no fragment"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (mut login, rest) = match rest.rsplit_once('@') {
            Some((login, rest)) if scheme != "unix" => (Login::parse(login)?, rest),
            _ => (Login::default(), rest),
        };
        login.set(query)?;
        let uses_tls = matches!(scheme, "rediss" | "valkeys");
        let address = match scheme {
            "redis" | "rediss" | "valkey" | "valkeys" => {
                let (address, database) = rest.split_once('/').unwrap_or((rest, ""));
                login.set_database(database.trim_end_matches('/'))?;
                tcp(address)?
            }
            "unix" if rest.len() > 1 && rest.starts_with('/') => Address::Unix(decoded(rest)?.into()),
            _ => return Err(wrong(FORM)),
        };
        Ok(Self { address, uses_tls, login })
    }
}

impl Login {
    fn parse(text: &str) -> Result<Self, ConfigError> {
        let (user, password) = match text.split_once(':') {
            Some((user, password)) => (user, Some(decoded(password)?)),
            None => (text, None),
        };
        Ok(Self { user: some(decoded(user)?), password: password.and_then(some), database: 0 })
    }

    /// What a URL of a socket has as `?db=1&user=USER&pass=PASSWORD`.
    fn set(&mut self, query: &str) -> Result<(), ConfigError> {
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("db", database) => self.set_database(database)?,
                ("user", user) => self.user = some(decoded(user)?),
                ("pass", password) => self.password = some(decoded(password)?),
                ("protocol", "3" | "resp3") => {}
                _ => return Err(wrong("has a parameter other than `db`, `user` and `pass`")),
            }
        }
        Ok(())
    }

    fn set_database(&mut self, text: &str) -> Result<(), ConfigError> {
        if !text.is_empty() {
            self.database = text.parse().map_err(|_| wrong("has a database that is not a number"))?;
        }
        Ok(())
    }
}

fn tcp(text: &str) -> Result<Address, ConfigError> {
    // The colons of an IPv6 address are within brackets.
    let (host, port) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((host, port)) => (host, port),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match port.strip_prefix(':') {
        Some("") => PORT,
        Some(port) => port.parse().map_err(|_| wrong("has a port that is not a number up to 65535"))?,
        None if port.is_empty() => PORT,
        None => return Err(wrong(FORM)),
    };
    let is_valid = |character: char| !character.is_whitespace() && !character.is_control();
    if host.is_empty() || !host.chars().all(is_valid) {
        return Err(wrong("has no valid host"));
    }
    Ok(Address::Tcp { host: decoded(host)?, port })
}

/// A text of which bytes can be `%` and two hexadecimal digits.
fn decoded(text: &str) -> Result<String, ConfigError> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, further @ ..] = rest {
        let (byte, further) = match (first, further) {
            (b'%', [high, low, further @ ..]) => {
                let digit = |digit: &u8| char::from(*digit).to_digit(16).map(|digit| digit as u8);
                let byte = digit(high).zip(digit(low)).map(|(high, low)| high << 4 | low);
                (byte.ok_or_else(|| wrong(ENCODING))?, further)
            }
            (b'%', _) => return Err(wrong(ENCODING)),
            (byte, further) => (*byte, further),
        };
        bytes.push(byte);
        rest = further;
    }
    String::from_utf8(bytes).map_err(|_| wrong(ENCODING))
}

const ENCODING: &str = "has a `%` that is not followed by the two hexadecimal digits of a byte of UTF-8";

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn wrong(reason: &'static str) -> ConfigError {
    ConfigError::new("url", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str, port: u16) -> Address {
        Address::Tcp { host: host.to_owned(), port }
    }

    fn login(user: &str, password: &str, database: u32) -> Login {
        Login { user: some(user.to_owned()), password: some(password.to_owned()), database }
    }

    #[test]
    fn a_url_is_a_server_or_a_socket() {
        let socket = Address::Unix("/run/re dis.sock".into());
        for (text, address, uses_tls, expected) in [
            ("redis://127.0.0.1", at("127.0.0.1", 6379), false, login("", "", 0)),
            ("redis://127.0.0.1/", at("127.0.0.1", 6379), false, login("", "", 0)),
            ("redis://127.0.0.1:/?protocol=resp3", at("127.0.0.1", 6379), false, login("", "", 0)),
            (
                "rediss://me:s%40%C3%A4@cache.local:6380/2",
                at("cache.local", 6380),
                true,
                login("me", "s@ä", 2),
            ),
            ("redis://:geheim@host", at("host", 6379), false, login("", "geheim", 0)),
            ("redis://me:a:b@c@host/", at("host", 6379), false, login("me", "a:b@c", 0)),
            ("valkey://[::1]:7000/", at("::1", 7000), false, login("", "", 0)),
            ("valkeys://[::1]", at("::1", 6379), true, login("", "", 0)),
            ("unix:///run/re%20dis.sock", socket.clone(), false, login("", "", 0)),
            ("unix:///run/re%20dis.sock?db=3&user=me&pass=a%26b", socket, false, login("me", "a&b", 3)),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!((url.address, url.uses_tls), (address, uses_tls), "{text}");
            assert!(url.login == expected, "{text}");
        }
    }

    #[test]
    fn an_invalid_url_is_refused_without_its_secrets() {
        for text in [
            "",
            "127.0.0.1:6379",
            "http://root:geheim@host",
            "redis:geheim@host",
            "redis://:geheim@",
            "redis://:geheim@host:99999",
            "redis://:geheim@ho st",
            "redis://:geheim@[::1]7000",
            "redis://:geheim%4@host",
            "redis://:geheim%ff@host",
            "redis://:geheim@h/geheim",
            "redis://:geheim@h?geheim=1",
            "rediss://:geheim@h#insecure",
            "unix://geheim",
        ] {
            let error = Url::parse(text).err().unwrap_or_else(|| panic!("{text} is refused"));
            assert!(!format!("{error} {error:?}").contains("geheim"), "{error}");
        }
    }
}
