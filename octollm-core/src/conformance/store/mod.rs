//! The cases of task stores.

mod changes;
mod claims;
mod crashes;
mod dropped;
mod events;
mod fixture;
mod jobs;
mod journal;
mod layer;
mod leases;
mod lists;
mod records;
mod reopened;
mod updates;
mod values;

use super::Subject;
use crate::store::TaskStore;

type Stores = dyn Subject<dyn TaskStore>;

/// Runs one case of the suite of task stores, by its name. [`task_store_tests`](crate::task_store_tests) has a test for each.
///
/// # Panics
/// When the case does not hold, or there is none of this name.
pub async fn task_store(case: &str, subject: impl Subject<dyn TaskStore>) {
    let subject: &Stores = &subject;
    crate::__task_store_cases! { __conformance_run case subject }
}

/// Writes a test for each case of the suite of task stores: see [`conformance`](crate::conformance).
#[macro_export]
macro_rules! task_store_tests {
    ($(#[$attribute:meta])+ $subject:expr) => {
        $crate::__task_store_cases! { __conformance_tests task_store [$(#[$attribute])+] $subject }
    };
    ($subject:expr) => {
        $crate::task_store_tests! { #[::tokio::test] $subject }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __task_store_cases {
    ($then:ident $($with:tt)*) => {
        $crate::$then! { [$($with)*]
            records:
                create_stores_the_task_with_its_effects
                create_refuses_an_id_that_exists
                create_refuses_what_exceeds_the_number_of_queued_tasks
                create_refuses_what_exceeds_the_bytes_of_queued_tasks
                creating_at_once_does_not_exceed_the_limit
                an_unknown_task_has_nothing
                commit_stores_the_next_revision_with_its_effects
                commit_refuses_an_older_revision_with_its_effects
                one_of_many_commits_of_a_revision_is_stored
                a_refused_commit_fails_no_other
                a_task_goes_through_all_its_statuses;
            values:
                unusual_text_is_stored_as_it_is
                numbers_are_stored_to_the_digit
                large_values_are_stored_whole
                a_finished_task_is_read_as_it_was_stored;
            lists:
                lists_are_newest_first_and_have_a_limit
                lists_select_by_status
                lists_select_by_owner
                lists_continue_after_a_task
                many_tasks_are_listed_and_claimed;
            claims:
                claim_starts_a_run_and_stores_it
                claim_takes_the_highest_priority_and_then_the_oldest
                claim_takes_the_contracts_that_it_names
                claim_takes_no_more_than_its_limit
                claimers_at_once_take_each_run_once
                claimers_at_once_share_expired_leases
                the_time_left_is_that_to_the_deadline
                a_released_task_is_free_at_once;
            jobs:
                a_delayed_task_is_free_when_its_time_has_come
                a_delay_is_one_of_the_stores_clock
                a_retry_is_delayed_and_released_tasks_are_not
                a_key_has_one_task_that_is_not_finished
                a_key_is_one_of_a_caller_and_a_contract
                submissions_of_a_key_at_once_store_one_task
                a_key_is_refused_a_task_that_is_queued_again
                a_limit_holds_over_claims_at_once
                a_contract_at_its_limit_holds_up_no_other
                a_run_counts_until_its_lease_has_expired
                a_change_that_makes_room_wakes_the_queue;
            leases:
                a_lease_holds_until_it_expires
                renew_extends_a_lease
                renew_returns_the_runs_that_hold_their_tasks
                a_renewal_is_no_change_of_the_record
                a_run_that_lost_its_task_stores_nothing
                a_run_that_has_ended_stores_nothing
                claims_and_late_writes_at_once_leave_one_run;
            journal:
                the_journal_is_read_in_order_and_by_pages
                append_replaces_the_entry_of_its_step
                appending_twice_is_appending_once
                append_sets_the_time_by_the_clock_of_the_store
                a_change_discards_steps_and_then_writes_entries
                a_step_by_position_is_not_one_by_name;
            updates:
                updates_are_numbered_over_all_runs
                updates_that_were_appended_before_are_skipped
                updates_of_a_change_are_skipped_as_well
                updates_are_read_after_a_number
                updates_that_are_dropped_are_a_gap
                appending_updates_at_once_gives_each_a_number;
            events:
                events_wait_in_the_order_of_their_changes
                published_deletes_the_events_that_it_names
                one_relay_has_the_events_at_a_time
                a_relay_that_does_not_call_loses_its_turn
                events_of_many_writers_are_all_published_in_order;
            changes:
                a_free_task_wakes_the_queue
                an_event_wakes_the_relays
                a_change_of_a_task_wakes_its_watchers
                a_change_by_another_handle_wakes;
            dropped:
                a_dropped_create_is_whole_or_nothing
                a_dropped_commit_is_whole_or_nothing
                a_dropped_claim_is_whole_or_nothing
                a_dropped_append_is_whole_or_nothing
                dropped_updates_are_whole_or_nothing
                a_dropped_renewal_is_whole_or_nothing
                dropped_reads_and_publications_change_nothing;
            reopened:
                what_is_stored_is_there_after_reopening
                a_lease_runs_on_while_nothing_is_open;
            crashes:
                a_brain_that_dies_at_any_operation_loses_nothing_and_repeats_nothing
                a_brain_that_dies_at_any_operation_completes_where_arms_honour_keys
                two_brains_that_die_one_after_the_other_lose_nothing_and_repeat_nothing
                a_brain_that_stalls_at_any_operation_and_goes_on_later_changes_nothing
                a_brain_survives_the_failure_of_any_operation;
        }
    };
}
