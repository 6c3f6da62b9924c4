//! The cases of buses.

mod delivery;
mod faults;
mod fixture;
mod losses;
mod publish;
mod settling;
mod workers;

use std::sync::Arc;

use async_trait::async_trait;

use crate::bus::{DelayBus, DurableBus, EventBus};

/// A bus that the suite tests.
///
/// ```
/// use std::sync::Arc;
///
/// use async_trait::async_trait;
/// use octollm_core::{
///     bus::{DelayBus, DurableBus, EventBus, MemoryDurableBus},
///     conformance::{BusSubject, bus_tests},
/// };
///
/// struct Memory(MemoryDurableBus);
///
/// #[async_trait]
/// impl BusSubject for Memory {
///     async fn open(&self) -> Arc<dyn EventBus> {
///         Arc::new(self.0.clone())
///     }
///
///     async fn durable(&self) -> Option<Arc<dyn DurableBus>> {
///         Some(Arc::new(self.0.clone()))
///     }
///
///     async fn delay(&self) -> Option<Arc<dyn DelayBus>> {
///         Some(Arc::new(self.0.clone()))
///     }
/// }
///
/// bus_tests! { #[tokio::test(start_paused = true)] Memory(MemoryDurableBus::new()) }
/// # fn main() {}
/// ```
///
/// # Panics
/// Where the bus cannot be opened: the test fails.
#[async_trait]
pub trait BusSubject: Send + Sync + 'static {
    /// Opens the bus. Each call returns a further handle on the same bus, as another process would have it.
    async fn open(&self) -> Arc<dyn EventBus>;

    /// Opens the bus where it is durable. `None` where it is not: the cases of durable buses then assert that it claims none of
    /// their capabilities.
    async fn durable(&self) -> Option<Arc<dyn DurableBus>> {
        None
    }

    /// Opens the bus where it can publish later. `None` where it cannot.
    async fn delay(&self) -> Option<Arc<dyn DelayBus>> {
        None
    }

    /// Does something to the broker of the bus, and returns when it is done. Returns `false` where there is no broker, or it
    /// cannot be done: the cases that need it then assert that the bus has none at all.
    async fn broker(&self, fault: BrokerFault<'_>) -> bool {
        let _ = fault;
        false
    }
}

/// What happens to the broker of a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BrokerFault<'a> {
    /// Its process is killed.
    Kill,
    /// It is started again, on the same address and with the same data.
    Start,
    /// Its process is stopped, as by SIGSTOP: connections stay open and are not answered.
    Stop,
    /// Its process is continued.
    Continue,
    /// All connections to it are closed.
    Disconnect,
    /// The stored events of this channel are deleted, also those that are not settled. A bus that never does so returns `false`
    /// for this fault alone.
    Trim {
        /// The channel, such as `events:task:completed`.
        channel: &'a str,
    },
    /// All that the bus has stored is deleted, as where its broker is started again without its data. A bus that cannot lose
    /// its data returns `false` for this fault alone.
    Empty,
    /// Bytes that are no event are stored where the events of this channel are.
    Garbage {
        /// The channel, such as `events:task:completed`.
        channel: &'a str,
        /// The bytes.
        bytes: &'a [u8],
    },
}

type Subject = dyn BusSubject;

/// Runs one case of the suite of buses, by its name. The macro [`bus_tests`](crate::bus_tests) has a test for each.
///
/// # Panics
/// When the case does not hold, or there is none of this name.
pub async fn bus(case: &str, subject: impl BusSubject) {
    let subject: &Subject = &subject;
    crate::__bus_cases! { __conformance_run case subject }
}

/// Writes a test for each case of the suite of buses: see [`conformance`](crate::conformance).
#[macro_export]
macro_rules! bus_tests {
    ($(#[$attribute:meta])+ $subject:expr) => {
        $crate::__bus_cases! { __conformance_tests bus [$(#[$attribute])+] $subject }
    };
    ($subject:expr) => {
        $crate::bus_tests! { #[::tokio::test] $subject }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __bus_cases {
    ($then:ident $($with:tt)*) => {
        $crate::$then! { [$($with)*]
            delivery:
                case_01_publishing_right_after_subscribe_loses_nothing
                case_02_every_attribute_arrives_as_it_was
                case_03_what_is_too_large_is_refused_whole
                case_04_twenty_channels_at_once_get_their_own
                case_05_fifty_publishers_and_fifty_members_miss_and_repeat_nothing
                case_06_patterns_have_one_table
                case_07_overlapping_patterns_deliver_once
                case_08_each_group_gets_all_and_its_members_split_it
                case_09_keys_stay_in_order
                case_10_a_new_group_reads_the_history;
            settling:
                case_11_one_in_flight_delays_the_second_until_the_ack
                case_12_an_acked_event_is_not_delivered_again
                case_14_a_retry_waits_for_its_delay_and_delays_no_other_event
                case_15_attempts_count_over_nack_crash_and_reclaim
                case_16_the_last_attempt_makes_a_dead_letter
                case_17_a_dropped_event_ends_and_a_dead_letter_needs_no_attempts
                case_18_garbage_is_a_dead_letter_and_delays_no_event
                case_20_a_replayed_dead_letter_is_the_same_event_at_attempt_1
                case_21_a_killed_consumers_event_is_at_a_peer_after_the_lease
                case_23_a_stale_owner_has_lost_its_lease_and_the_new_one_has_not
                case_24_the_events_of_a_dead_consumer_are_delivered_to_a_peer
                case_26_an_ack_that_races_the_close_holds;
            workers:
                case_19_a_handler_that_panics_is_a_nack_and_the_worker_lives
                case_22_a_handler_of_three_leases_runs_once
                case_25_closing_lets_what_runs_end_and_a_peer_have_the_rest;
            faults:
                case_27_a_broker_that_restarts_loses_nothing_or_reports_a_gap
                case_28_a_broker_that_is_away_for_long_is_found_again
                case_29_publishing_while_the_broker_is_away_is_an_error_in_time
                case_30_a_broker_that_is_stopped_is_a_gap
                case_31_a_closed_connection_is_one_gap
                case_32_what_is_received_and_what_is_lost_are_all
                case_33_a_stalled_subscriber_stores_what_it_has_room_for
                case_34_no_more_are_in_flight_than_allowed
                case_37_what_was_published_survives_a_killed_broker;
            losses:
                case_35_what_is_deleted_before_it_is_settled_is_a_gap
                case_36_a_group_that_is_gone_is_created_again_after_a_gap;
            publish:
                case_38_a_batch_returns_results_by_index
                case_40_expired_events_are_counted_and_not_delivered
                case_41_delayed_events_are_not_early_and_can_be_cancelled
                case_42_a_next_that_is_dropped_takes_nothing
                case_43_trace_and_causation_reach_each_attempt
                case_51_each_capability_is_shown_or_denied
                case_52_golden_events_arrive_as_they_are_read;
        }
    };
}
