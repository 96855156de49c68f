//! The contract of the log, as test cases that run on each implementation: in memory, on JetStream with one node, and
//! on JetStream with three nodes. Tests that need real servers (lost answers, crashes, timers) are in files of their
//! own.
#![cfg(test)]

mod appending;
mod crowded;
mod ending;
mod faults;
mod fixture;
mod following;
mod full;
mod parties;
mod racing;
mod reading;
mod reports;
mod samples;
mod servers;
mod setup;
mod simulated;
mod timers;

/// Declares one test per case and implementation.
macro_rules! contract {
    ($($module:ident { $($case:ident),* $(,)? })*) => {
        mod sim {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::ending::within(crate::$module::$case(crate::fixture::Sim::new())).await;
            })*)*
        }

        mod one_node {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::ending::within(crate::$module::$case(crate::fixture::JetStream::shared(1).await)).await;
            })*)*
        }

        mod three_nodes {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::ending::within(crate::$module::$case(crate::fixture::JetStream::shared(3).await)).await;
            })*)*
        }
    };
}

contract! {
    appending {
        an_unknown_aggregate_is_new,
        a_load_returns_the_last_event_and_the_head,
        a_session_is_loaded_with_all_events_in_order,
        the_last_inventory_event_of_a_player_is_loaded,
        a_message_is_one_json_event,
        the_returned_sequences_are_those_of_the_messages,
        more_events_than_fit_one_commit_are_stored_in_several,
        a_decision_that_no_commit_can_hold_is_refused,
        the_largest_event_is_stored_and_read_back,
    }
    racing {
        a_stale_head_of_a_player_is_a_conflict_and_stores_nothing,
        a_stale_head_of_a_session_is_a_conflict_and_stores_nothing,
        a_head_that_never_existed_is_a_conflict,
        a_decision_on_several_aggregates_is_stored_completely_or_not_at_all,
        one_of_several_simultaneous_decisions_on_a_player_is_stored,
        one_of_several_simultaneous_decisions_on_a_session_is_stored,
        among_many_simultaneous_decisions_only_the_stale_ones_conflict,
        no_player_is_ever_in_two_matches,
    }
    parties {
        the_last_event_of_a_party_is_loaded,
        two_events_of_a_party_in_one_decision_are_refused,
        of_several_players_who_join_the_last_place_at_once_one_gets_it,
        a_player_who_joins_two_parties_at_once_is_in_one,
        a_member_who_leaves_while_the_party_queues_waits_with_nobody,
    }
    following {
        a_reader_sees_each_event_once_and_in_order,
        a_reader_can_start_in_the_middle,
        a_waiting_reader_sees_new_events,
        a_reader_that_keeps_dropping_its_wait_still_gets_the_event,
    }
}
