//! What a log promises, as cases that run on every log there is: the one in memory, JetStream on one node, and on
//! three. What only real servers can show (lost answers, deaths, timers) has files of its own.
#![cfg(test)]

mod appending;
mod ending;
mod faults;
mod fixture;
mod following;
mod racing;
mod reading;
mod samples;
mod servers;
mod setup;
mod simulated;
mod timers;

/// Runs each case on each log.
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
        who_is_unknown_is_new,
        what_is_appended_is_loaded_with_its_head,
        a_session_is_read_whole_and_in_order,
        the_last_of_a_players_belongings_is_read,
        a_message_is_one_json_event,
        the_sequences_returned_are_those_of_the_messages,
        more_than_one_commit_holds_is_stored_in_several,
        what_no_commit_can_take_is_refused,
    }
    racing {
        a_stale_head_of_a_player_is_a_conflict_and_stores_nothing,
        a_stale_head_of_a_session_is_a_conflict_and_stores_nothing,
        a_head_that_never_was_is_a_conflict,
        of_a_decision_on_several_all_is_stored_or_nothing,
        of_two_decisions_of_one_instant_on_a_player_one_is_stored,
        of_two_decisions_of_one_instant_on_a_session_one_is_stored,
        of_many_decisions_of_one_instant_the_stale_ones_conflict_and_the_others_are_stored,
        no_player_is_ever_in_two_matches,
    }
    following {
        a_reader_sees_each_event_once_and_in_order,
        a_reader_may_begin_in_the_middle,
        a_reader_that_waits_sees_what_comes,
        a_reader_without_patience_gets_there,
    }
}
