//! How the client treats its connections.

use std::time::Duration;

use octollm_core::error::ConfigError;

/// The limits of a client. Checked when the client is built.
///
/// ```
/// use octollm_http::client::ClientConfig;
/// let config = ClientConfig { max_connections: 10, ..ClientConfig::default() };
/// # assert_eq!(config.max_idle, 20);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// How long a connection may take to come about, name lookup included. 5 s.
    pub connect_timeout: Duration,
    /// How long a server may be silent while it owes an answer (default 30 s). Until the answer begins, a contract with a
    /// time limit beyond 30 s may take that long.
    pub read_idle: Duration,
    /// How long a server may refuse to read while a request is sent. 10 s.
    pub write_idle: Duration,
    /// How long a call may wait for a connection when all are busy (default 5 s).
    pub pool_wait: Duration,
    /// The most connections that are open at a time, to all arms together (default 100). Where there are several arms, no
    /// arm has calls on more than half of them; where there are more than two, none on more than are free. A connection that becomes free goes to a waiting call before it counts as
    /// idle.
    pub max_connections: usize,
    /// The most of them that stay open without a call (default 20).
    pub max_idle: usize,
    /// After how long without a call one is closed (default 15 s): less than servers wait, so that the client closes first. One whose
    /// server announces less (`Keep-Alive: timeout=5`) is not used again after that.
    pub idle_timeout: Duration,
    /// How long a connection is used again, give or take a tenth. 5 min.
    pub max_age: Duration,
    /// The largest answer that is read, in bytes (default 8 MiB). A card is read up to 1 MiB, and the body of a failure up
    /// to 256 KiB: of a longer one only the status counts.
    pub max_answer: usize,
    /// How long an arm may take to tell what it offers. 5 s.
    pub capabilities_timeout: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            read_idle: Duration::from_secs(30),
            write_idle: Duration::from_secs(10),
            pool_wait: Duration::from_secs(5),
            max_connections: 100,
            max_idle: 20,
            idle_timeout: Duration::from_secs(15),
            max_age: Duration::from_secs(300),
            max_answer: 8 << 20,
            capabilities_timeout: Duration::from_secs(5),
        }
    }
}

impl ClientConfig {
    /// # Errors
    /// A [`ConfigError`] for a limit of zero or, of times, beyond a day.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let times = [
            ("connect_timeout", self.connect_timeout),
            ("read_idle", self.read_idle),
            ("write_idle", self.write_idle),
            ("pool_wait", self.pool_wait),
            ("idle_timeout", self.idle_timeout),
            ("max_age", self.max_age),
            ("capabilities_timeout", self.capabilities_timeout),
        ];
        for (field, value) in times {
            if value.is_zero() || value > Duration::from_secs(24 * 3600) {
                return Err(ConfigError::new(field, "has to be above zero and at most a day"));
            }
        }
        if !(1..=100_000).contains(&self.max_connections) {
            return Err(ConfigError::new("max_connections", "has to be 1 to 100000"));
        }
        if self.max_idle > self.max_connections {
            return Err(ConfigError::new("max_idle", "has to be at most max_connections"));
        }
        if self.max_answer == 0 {
            return Err(ConfigError::new("max_answer", "has to be above zero"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_limits_that_make_no_sense() {
        let good = ClientConfig::default();
        good.check().unwrap();
        let zero = Duration::ZERO;
        for bad in [
            ClientConfig { connect_timeout: zero, ..good.clone() },
            ClientConfig { read_idle: Duration::MAX, ..good.clone() },
            ClientConfig { max_connections: 0, max_idle: 0, ..good.clone() },
            ClientConfig { max_idle: 101, ..good.clone() },
            ClientConfig { max_answer: 0, ..good.clone() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
