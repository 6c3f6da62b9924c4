//! The limits of servers and clients: each has its setter, type, default and range in one place.

use std::time::Duration;

pub(crate) use octollm_core::{__limits_setters as limits_setters, __private::settings::within};
use octollm_core::{
    __limits_struct as limits_struct,
    __private::machines::{BreakerLimits, RetryLimits},
    error::ConfigError,
    resilience::RetryBudget,
};
use tokio::sync::Semaphore;

const KIB: usize = 1024;
/// Bytes of a request that arrives, besides its head and its body: its stream and its future.
pub(crate) const WAITING: usize = 8 * KIB;
pub(crate) const SHORTEST: Duration = Duration::from_nanos(1);
pub(crate) const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// RFC 9113 §6.9.1.
const MAX_WINDOW: u32 = (1 << 31) - 1;

/// Hands the limits of a server to another macro.
macro_rules! server_limits {
    ($then:ident $($arguments:tt)*) => {
        $then! { $($arguments)* {
            /// Sets the time limit from the first byte of a request to the end of its head, and from the opening of a
            /// connection to the end of its first head. Default 10 s, at most a year.
            head_timeout: Duration as time = Duration::from_secs(10), SHORTEST => YEAR;
            /// Sets the time limit from the end of the head to the end of the body. Default 30 s, at most a year.
            body_timeout: Duration as time = Duration::from_secs(30), SHORTEST => YEAR;
            /// Sets the time that a connection stays open between two requests, and over HTTP/2 without a stream. A client
            /// should reuse connections for less. Default 30 s, at most a year.
            idle_timeout: Duration as time = Duration::from_secs(30), SHORTEST => YEAR;
            /// Sets the time that a caller may take to read 16 KiB of what is written to it, or the rest of it. Over HTTP/2
            /// this is the limit for each stream as well. Default 30 s, at most a year.
            write_timeout: Duration as time = Duration::from_secs(30), SHORTEST => YEAR;
            /// Sets the time limit on [authentication](Server::authenticate). A request that exceeds it is answered 503.
            /// Default 5 s, at most a year.
            authenticate_timeout: Duration as time = Duration::from_secs(5), SHORTEST => YEAR;
            /// Sets the time limit on the [reflex](Server::reflex), for all texts of a request together. A request that exceeds it
            /// is answered 503. Default 5 s, at most a year.
            reflex_timeout: Duration as time = Duration::from_secs(5), SHORTEST => YEAR;
            /// Sets the most different texts of a submission that the [reflex](Server::reflex) screens. A submission with more is
            /// answered 422. Empty texts are not screened. Default 1000.
            max_screened_texts: usize as count = 1000, 1 => usize::MAX;
            /// Sets the largest body of a request, in bytes. Default 2 MiB.
            max_body: usize as bytes = 2 * KIB * KIB, 1 => u32::MAX as usize;
            /// Sets the largest body of a request after it is decompressed, in bytes, for a server with the setting `compression` of
            /// the feature of that name. Default 8 MiB.
            max_decoded: usize as bytes = 8 * KIB * KIB, 1 => u32::MAX as usize;
            /// Sets the bytes that all requests still arriving may hold together: their bodies, and their heads while the body
            /// arrives or the caller is authenticated. A head counts with 8 KiB and twice its bytes, since it is held decoded. A
            /// request that would exceed the limit is answered 503. A body that arrives in one piece is not counted. Default
            /// 256 MiB, at least what one request takes with the largest head and the largest body.
            max_arriving: usize as bytes = 256 * KIB * KIB, 1 => usize::MAX;
            /// Sets the largest head of a request, in bytes, with the request line. Default 16 KiB, 256 bytes to 1 MiB.
            max_head: usize as bytes = 16 * KIB, 256 => 1024 * KIB;
            /// Sets the most header fields of a request. Default 100, at most 4096.
            max_headers: usize as count = 100, 1 => 4096;
            /// Sets the largest path and query of a request, in bytes. Default 8 KiB, 16 bytes to 64 KiB.
            max_uri: usize as bytes = 8 * KIB, 16 => 64 * KIB;
            /// Sets the most connections at a time. Further ones wait in the queue of the system. Default 10,000.
            max_connections: usize as count = 10_000, 1 => Semaphore::MAX_PERMITS;
            /// Sets the most requests that run at a time, each from the end of its body to the end of the answer's. Further
            /// ones are answered 503. Requests for `/capabilities`, `/arms`, `/openapi.json` and `/docs` have a limit of the same
            /// size of their own; those for `/health` and `/ready` have none. Default 1024.
            max_in_flight: usize as count = 1024, 1 => Semaphore::MAX_PERMITS;
            /// Sets the most streams of updates and WebSockets that are open at a time, as of `GET /tasks/{id}/events`. Further ones are
            /// answered 503. They do not count among the [requests that run](Self::max_in_flight). Default 1000.
            max_live_streams: usize as count = 1000, 1 => Semaphore::MAX_PERMITS;
            /// Sets the time without an event after which a stream of server-sent events has a comment, so that no proxy closes it, and
            /// the interval of pings over a WebSocket. Default 20 s, at most a year.
            event_ping: Duration as time = Duration::from_secs(20), SHORTEST => YEAR;
            /// Sets the time in which the other end of a WebSocket answers a ping. After it the connection is dropped. Default 10 s, at
            /// most a year.
            pong_timeout: Duration as time = Duration::from_secs(10), SHORTEST => YEAR;
            /// Sets the most tasks that one WebSocket follows at a time. Default 256.
            max_subscriptions: usize as count = 256, 1 => 100_000;
            /// Sets how many messages per second one WebSocket may send, on average over 10 s. One that sends more is closed with
            /// 1008. Default 100.
            max_socket_messages: u32 as count = 100, 1 => 1_000_000;
            /// Sets the most answers that are cached, for contracts with a [cache time](octollm_core::contract::ContractSpec::cache).
            /// Beyond it the oldest are dropped. 0 turns the cache off. Default 10,000.
            cache_answers: usize as count = 10_000, 0 => usize::MAX;
            /// Sets the bytes of all answers that are cached, each with 256 bytes beside its output. Default 64 MiB.
            cache_bytes: usize as bytes = 64 * KIB * KIB, 0 => usize::MAX;
            /// Sets the most HTTP/2 streams at a time on one connection. Default 100.
            max_streams: u32 as count = 100, 1 => u32::MAX;
            /// Sets the HTTP/2 flow-control window of a stream, in bytes. Default 64 KiB, at most 2 GiB.
            stream_window: u32 as bytes = 64 * 1024, 1 => MAX_WINDOW;
            /// Sets the HTTP/2 flow-control window of a connection, in bytes. Default 1 MiB, at most 2 GiB.
            connection_window: u32 as bytes = 1024 * 1024, 1 => MAX_WINDOW;
            /// Sets the time limit on a readiness [check](Server::check), which fails after it. Default 2 s, at most a year.
            check_timeout: Duration as time = Duration::from_secs(2), SHORTEST => YEAR;
            /// Sets the time after SIGTERM in which the server still accepts requests, while `/ready` answers 503. Default
            /// 5 s, at most a year; zero for none.
            drain_notice: Duration as time = Duration::from_secs(5), Duration::ZERO => YEAR;
            /// Sets the time that running requests and tasks have to finish after that. Default 30 s, at most a year; zero
            /// for none.
            drain_grace: Duration as time = Duration::from_secs(30), Duration::ZERO => YEAR;
            /// Sets the time for which a [registration](Server::register) at an orchestrator holds without being renewed. The
            /// orchestrator can decide otherwise. Default 30 s, 5 s to 5 min.
            registration_lifetime: Duration as time = Duration::from_secs(30), Duration::from_secs(5) => Duration::from_secs(300);
        } }
    };
}
pub(crate) use server_limits;

server_limits!(limits_struct ServerConfig);

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Hands the limits of a client to another macro.
macro_rules! client_limits {
    ($then:ident $($arguments:tt)*) => {
        $then! { $($arguments)* {
            /// Sets the time limit on opening a connection, with the name lookup and the TLS handshake. Default 5 s, at most a day.
            connect_timeout: Duration as time = Duration::from_secs(5), SHORTEST => DAY;
            /// Sets the time that a server may send nothing while an answer is due. Until the answer begins, a contract whose
            /// own time limit exceeds 30 s may take that long. Default 30 s, at most a day.
            read_idle: Duration as time = Duration::from_secs(30), SHORTEST => DAY;
            /// Sets the time that a server may read nothing while a request is sent. Default 10 s, at most a day.
            write_idle: Duration as time = Duration::from_secs(10), SHORTEST => DAY;
            /// Sets the time that a request waits for a connection when all are busy. Default 5 s, at most a day.
            pool_wait: Duration as time = Duration::from_secs(5), SHORTEST => DAY;
            /// Sets the most connections open at a time, to all arms together. Default 100, at most 100,000.
            ///
            /// With several arms no arm has calls on more than half of them, and with more than two none has calls on more
            /// than are free. A connection that becomes free goes to a waiting call before it counts as idle.
            max_connections: usize as count = 100, 1 => 100_000;
            /// Sets the most idle connections that stay open for longer than a second. Default 20, and never more than
            /// [`max_connections`](Self::max_connections). With 0 each is closed at once.
            max_idle: usize as count = 20, 0 => usize::MAX;
            /// Sets the time after which an idle connection is closed. It should be less than the servers' own, so that the
            /// client closes first. A connection whose server announces less (`Keep-Alive: timeout=5`) is not used after
            /// that. Default 15 s, at most a day.
            idle_timeout: Duration as time = Duration::from_secs(15), SHORTEST => DAY;
            /// Sets the age after which a connection is not used again, with a random tenth added or taken away. Default
            /// 5 minutes, at most a day.
            max_age: Duration as time = Duration::from_secs(300), SHORTEST => DAY;
            /// Sets the most calls at once over one HTTP/2 connection, where its server does not allow fewer. Further calls take
            /// another connection. Default 100, at most 100,000.
            max_streams: usize as count = 100, 1 => 100_000;
            /// Sets the HTTP/2 flow-control window of a stream, in bytes. Default 64 KiB, at most 2 GiB.
            stream_window: u32 as bytes = 64 * 1024, 1 => MAX_WINDOW;
            /// Sets the HTTP/2 flow-control window of a connection, in bytes. Default 1 MiB, at most 2 GiB.
            connection_window: u32 as bytes = 1024 * 1024, 1 => MAX_WINDOW;
            /// Sets the time without a byte after which an HTTP/2 connection with open streams is sent a PING. Default 15 s, at
            /// most a day.
            ping_interval: Duration as time = Duration::from_secs(15), SHORTEST => DAY;
            /// Sets the time in which a PING must be answered. After it the connection is closed. Default 10 s, at most a day.
            ping_timeout: Duration as time = Duration::from_secs(10), SHORTEST => DAY;
            /// Sets the largest answer, in bytes. Default 8 MiB. A card has a limit of 1 MiB of its own. The body of a
            /// failure beyond 256 KiB is ignored: only its status counts.
            max_answer: usize as bytes = 8 << 20, 1 => usize::MAX;
            /// Sets the time limit on asking an arm for its card. Default 5 s, at most a day.
            capabilities_timeout: Duration as time = Duration::from_secs(5), SHORTEST => DAY;
            /// Sets the age from which the cards of arms are old: the next call asks all arms again, and does not wait for them. So
            /// an arm that was away is found, and one that is healthy again or has other contracts. Default 30 s, at most a day.
            card_refresh: Duration as time = Duration::from_secs(30), SHORTEST => DAY;
            /// Sets how many further attempts are made of a call that does not [set them](octollm_core::context::CallFuture::retry),
            /// each only where it is safe, can help, and is within the budget of its arm: see
            /// [`resilience`](octollm_core::resilience). Default 2, at most 100.
            retries: u32 as count = 2, 0 => 100;
            /// Sets how many further attempts are allowed for each hundred calls of an arm, or requests of another client: the `percent` of a
            /// [`RetryBudget`](octollm_core::resilience::RetryBudget). Default 20, at most 1,000.
            retry_budget_percent: u32 as count = 20, 0 => 1_000;
            /// Sets how many further attempts are allowed in each second besides those: the `per_second` of a
            /// [`RetryBudget`](octollm_core::resilience::RetryBudget), which has at most what ten seconds add. Default 10, at most 1,000,000.
            /// With 0 here and for [`retry_budget_percent`](Self::retry_budget_percent) there is one further attempt in all.
            retry_budget_per_second: u32 as count = 10, 0 => 1_000_000;
            /// Sets the most endpoints that one attempt of a call tries, where no connection can be made or the contract is not served.
            /// Each is tried once. Where cards have changed meanwhile, as many are tried by these. Default 8, at most 1,000.
            max_endpoints: usize as count = 8, 1 => 1_000;
            /// Sets the longest wait that an answer may ask for, by `Retry-After` or by the reset of a rate limit. If it asks for more, it
            /// is returned at once, and further requests of a [`RestClient`](crate::RestClient) wait for this time only. Default 60 s, at
            /// most a day.
            max_retry_after: Duration as time = Duration::from_secs(60), Duration::ZERO => DAY;
            /// Sets how many failures in a row open the circuit breaker of an endpoint. Default 5. 0 turns the breakers off.
            breaker_failures: u32 as count = 5, 0 => u32::MAX;
            /// Sets the percentage of successes, over [`breaker_window`](Self::breaker_window), below which the circuit breaker of an endpoint
            /// opens. Default 80. 0 is never.
            breaker_success: u32 as count = 80, 0 => 100;
            /// Sets the time over which a circuit breaker counts [successes](Self::breaker_success). Default 10 s, at most a day.
            breaker_window: Duration as time = Duration::from_secs(10), SHORTEST => DAY;
            /// Sets how many calls that time must have for a circuit breaker to open by its percentage of successes. Default 20.
            breaker_min_calls: u32 as count = 20, 1 => u32::MAX;
            /// Sets how long a circuit breaker is open before it admits a probe. It doubles with each probe that fails, up to
            /// [`breaker_max_open`](Self::breaker_max_open). Default 1 s, at most a day.
            breaker_open: Duration as time = Duration::from_secs(1), SHORTEST => DAY;
            /// Sets the longest time that a circuit breaker is open before it admits the next probe, and at least
            /// [`breaker_open`](Self::breaker_open). Default zero, which is four times `breaker_open`; at most a day.
            breaker_max_open: Duration as time = Duration::ZERO, Duration::ZERO => DAY;
            /// Sets the time for which the last endpoints of an arm stay in use after a [resolver](crate::resolve::Resolver) has none of it
            /// any more. While it fails they stay for as long as that takes. Default 30 s, at most a day; zero for none.
            resolver_grace: Duration as time = Duration::from_secs(30), Duration::ZERO => DAY;
        } }
    };
}
pub(crate) use client_limits;

client_limits!(limits_struct ClientConfig);

/// Hands the limits of a registry to another macro.
macro_rules! registry_limits {
    ($then:ident $($arguments:tt)*) => {
        $then! { $($arguments)* {
            /// Sets the time for which a registration holds without being renewed, where the arm asks for none. Default 30 s, 5 s to
            /// 5 min, as for what an arm asks for.
            lifetime: Duration as time = Duration::from_secs(30), Duration::from_secs(5) => Duration::from_secs(300);
            /// Sets the most processes of arms that are registered at a time, with those that were registered within the last two
            /// minutes, and one for each arm that was registered at all. One arm has at most a quarter of them. Default 1000.
            max_registered: usize as count = 1000, 1 => 100_000;
            /// Sets the bytes of their cards together, as `GET /arms` lists them. One arm has at most a quarter of them. Default
            /// 6 MiB, at least four times [`max_registered_card`](Self::max_registered_card).
            ///
            /// Clients that follow `GET /arms` read the whole list. With more than the default, raise their `max_answer`.
            max_registered_bytes: usize as bytes = 6 * KIB * KIB, 4 => u32::MAX as usize;
            /// Sets the bytes of one card, as `GET /arms` lists it. Default 256 KiB, at most 1 MiB.
            max_registered_card: usize as bytes = 256 * KIB, 1 => 1024 * KIB;
        } }
    };
}
pub(crate) use registry_limits;

registry_limits!(limits_struct RegistryConfig);

impl ServerConfig {
    /// # Errors
    /// Names the first limit that is out of range, or that another limit contradicts.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        self.check()?;
        let largest = WAITING.saturating_add(2 * self.max_head).saturating_add(self.max_body);
        if self.max_arriving < largest {
            let problem = format!(
                "is {}, and one request takes up to {largest} with the `max_body` and `max_head` of this server: set it to at \
                 least that, or them to less",
                self.max_arriving
            );
            return Err(ConfigError::new("max_arriving", problem));
        }
        Ok(())
    }
}

impl RegistryConfig {
    /// # Errors
    /// Names the first limit that is out of range, or that another limit contradicts.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        self.check()?;
        let least = 4 * self.max_registered_card;
        if self.max_registered_bytes < least {
            let problem = format!(
                "is {}, of which one arm has a quarter, and one card has up to {}: set it to at least {least}, or \
                 `max_registered_card` to less",
                self.max_registered_bytes, self.max_registered_card
            );
            return Err(ConfigError::new("max_registered_bytes", problem));
        }
        Ok(())
    }
}

impl ClientConfig {
    pub(crate) fn retry_limits(&self) -> RetryLimits {
        RetryLimits { retries: self.retries, max_retry_after: self.max_retry_after, ..RetryLimits::default() }
    }

    pub(crate) fn retry_budget(&self) -> RetryBudget {
        RetryBudget::new(self.retry_budget_percent, self.retry_budget_per_second)
    }

    /// `None` without breakers.
    pub(crate) fn breaker_limits(&self) -> Option<BreakerLimits> {
        (self.breaker_failures > 0).then(|| BreakerLimits {
            failures: self.breaker_failures,
            min_success: self.breaker_success,
            open: self.breaker_open,
            window: self.breaker_window,
            min_calls: self.breaker_min_calls,
            max_open: if self.breaker_max_open.is_zero() {
                self.breaker_open.saturating_mul(4)
            } else {
                self.breaker_max_open.max(self.breaker_open)
            },
            ..BreakerLimits::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_range() {
        ServerConfig::default().validate().unwrap();
    }

    #[test]
    fn limits_of_servers_out_of_range_are_refused() {
        let default = ServerConfig::default;
        for (field, config) in [
            ("head_timeout", ServerConfig { head_timeout: Duration::ZERO, ..default() }),
            ("idle_timeout", ServerConfig { idle_timeout: Duration::MAX, ..default() }),
            ("max_body", ServerConfig { max_body: 0, ..default() }),
            ("max_in_flight", ServerConfig { max_in_flight: usize::MAX, ..default() }),
            ("stream_window", ServerConfig { stream_window: u32::MAX, ..default() }),
        ] {
            assert_eq!(config.check().unwrap_err().setting(), field);
        }
        let error = ServerConfig { max_head: 1, ..default() }.check().unwrap_err();
        assert_eq!(error.to_string(), "`max_head` is 1: set it to a value from 256 to 1048576");
    }

    #[test]
    fn one_request_has_room_among_those_that_arrive() {
        let bodies =
            |max_body, max_arriving| ServerConfig { max_body, max_arriving, ..ServerConfig::default() };
        let heads = WAITING + 2 * 16 * KIB;
        bodies(1000, heads + 1000).validate().unwrap();
        for bad in [bodies(1000, heads + 999), bodies(300 << 20, 256 << 20), bodies(2 << 20, 1 << 20)] {
            assert_eq!(bad.validate().unwrap_err().setting(), "max_arriving");
        }
    }

    #[test]
    fn the_cards_of_a_registry_fit_into_its_bytes_and_its_list_into_an_answer() {
        RegistryConfig::default().validate().unwrap();
        let small = RegistryConfig { max_registered_bytes: 1 << 20, ..RegistryConfig::default() };
        small.validate().unwrap();
        let error = RegistryConfig { max_registered_bytes: (1 << 20) - 1, ..small }.validate().unwrap_err();
        assert_eq!(error.setting(), "max_registered_bytes");
        // The cards of arms that are configured have room as well.
        let (list, answer) = (RegistryConfig::default(), ClientConfig::default());
        assert!(list.max_registered_bytes + 2 * KIB * KIB <= answer.max_answer);
    }

    #[test]
    fn limits_of_clients_out_of_range_are_refused() {
        let good = ClientConfig::default();
        good.check().unwrap();
        for bad in [
            ClientConfig { connect_timeout: Duration::ZERO, ..good.clone() },
            ClientConfig { read_idle: Duration::MAX, ..good.clone() },
            ClientConfig { max_connections: 0, max_idle: 0, ..good.clone() },
            ClientConfig { max_answer: 0, ..good.clone() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
