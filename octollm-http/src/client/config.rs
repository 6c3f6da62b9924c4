//! The limits of a client.

use std::time::Duration;

use octollm_core::error::ConfigError;

use crate::limits::limits_struct;

const SHORTEST: Duration = Duration::from_nanos(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Hands the limits of a client to another macro.
macro_rules! client_limits {
    ($then:ident $($arguments:tt)*) => {
        $then! { $($arguments)* {
            /// Sets the time limit on opening a connection, with the name lookup. Default 5 s, at most a day.
            connect_timeout: Duration = Duration::from_secs(5), SHORTEST => DAY;
            /// Sets the time that a server may send nothing while an answer is due. Until the answer begins, a contract whose
            /// own time limit exceeds 30 s may take that long. Default 30 s, at most a day.
            read_idle: Duration = Duration::from_secs(30), SHORTEST => DAY;
            /// Sets the time that a server may read nothing while a request is sent. Default 10 s, at most a day.
            write_idle: Duration = Duration::from_secs(10), SHORTEST => DAY;
            /// Sets the time that a request waits for a connection when all are busy. Default 5 s, at most a day.
            pool_wait: Duration = Duration::from_secs(5), SHORTEST => DAY;
            /// Sets the most connections open at a time, to all arms together. Default 100, at most 100,000.
            ///
            /// With several arms no arm has calls on more than half of them, and with more than two none has calls on more
            /// than are free. A connection that becomes free goes to a waiting call before it counts as idle.
            max_connections: usize = 100, 1 => 100_000;
            /// Sets the most idle connections that stay open. Default 20, at most
            /// [`max_connections`](Self::max_connections).
            max_idle: usize = 20, 0 => usize::MAX;
            /// Sets the time after which an idle connection is closed. It should be less than the servers' own, so that the
            /// client closes first. A connection whose server announces less (`Keep-Alive: timeout=5`) is not used after
            /// that. Default 15 s, at most a day.
            idle_timeout: Duration = Duration::from_secs(15), SHORTEST => DAY;
            /// Sets the age after which a connection is not used again, with a random tenth added or taken away. Default
            /// 5 minutes, at most a day.
            max_age: Duration = Duration::from_secs(300), SHORTEST => DAY;
            /// Sets the largest answer, in bytes. Default 8 MiB. A card has a limit of 1 MiB of its own. The body of a
            /// failure beyond 256 KiB is ignored: only its status counts.
            max_answer: usize = 8 << 20, 1 => usize::MAX;
            /// Sets the time limit on asking an arm for its card. Default 5 s, at most a day.
            capabilities_timeout: Duration = Duration::from_secs(5), SHORTEST => DAY;
        } }
    };
}
pub(super) use client_limits;

client_limits!(limits_struct ClientConfig);

impl ClientConfig {
    /// # Errors
    /// Names the first limit that is out of range.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        self.check()?;
        if self.max_idle > self.max_connections {
            return Err(ConfigError::new("max_idle", "is above max_connections: set it to at most that"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_out_of_range_are_refused() {
        let good = ClientConfig::default();
        good.validate().unwrap();
        for bad in [
            ClientConfig { connect_timeout: Duration::ZERO, ..good.clone() },
            ClientConfig { read_idle: Duration::MAX, ..good.clone() },
            ClientConfig { max_connections: 0, max_idle: 0, ..good.clone() },
            ClientConfig { max_idle: 101, ..good.clone() },
            ClientConfig { max_answer: 0, ..good.clone() },
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
