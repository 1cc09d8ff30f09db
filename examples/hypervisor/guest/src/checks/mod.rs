//! The conformance checks, each named by the statement it checks.

mod commands;
mod contexts;
mod faults;
mod invalidation;
mod processes;
mod registers;
mod translation;

use crate::bench::Bench;
use crate::console::say;
use crate::verdict::{Stop, Verdict, Why, why};

/// A check and its name.
type Check = (&'static str, fn(&mut Bench) -> Verdict);

macro_rules! checks {
    ($($file:ident: $($check:ident)*;)*) => { &[$($((stringify!($check), $file::$check)),*),*] };
}

const CHECKS: &[Check] = checks! {
    registers:
        an_interrupt_sent_to_oneself_arrives
        capabilities_hang_together_and_ignore_writes
        registers_of_facilities_not_offered_read_0_and_ignore_writes
        fctl_keeps_only_what_is_offered
        ddtp_takes_defined_modes_and_keeps_the_old_one_otherwise
        queue_bases_keep_size_and_page_and_zero_the_index
        indices_keep_only_the_bits_of_the_queue
        icvec_shows_a_power_of_two_of_vectors
        the_message_table_keeps_address_data_and_mask;
    commands:
        the_command_queue_wraps_at_every_size
        commands_wait_for_the_queue_to_be_on
        a_fence_stores_four_bytes_and_no_more
        a_fence_can_store_to_the_interrupt_file
        a_fence_with_a_wire_needs_wires
        an_illegal_command_stops_the_queue_at_itself
        every_illegal_encoding_is_refused
        legal_commands_with_odd_operands_are_carried_out
        operands_without_their_valid_bit_may_hold_anything
        a_fence_outside_memory_stops_and_is_done_again
        an_unreadable_queue_is_a_memory_fault
        an_error_of_the_command_queue_sends_a_message
        a_masked_message_waits;
    translation:
        bare_lets_addresses_through
        the_controller_answers_wherever_its_registers_are
        a_bare_first_stage_lets_addresses_through
        every_depth_of_directory_and_every_scheme_translates
        leaves_of_every_size_translate_to_their_last_page
        transfers_of_every_size_reach_their_bytes
        upper_addresses_translate_and_those_between_fault
        an_entry_that_is_not_to_be_used_faults
        a_page_for_reading_is_not_written
        messages_of_the_device_are_translated
        memory_that_is_not_the_guests_is_out_of_reach
        the_interrupt_file_is_no_memory
        tables_that_are_not_in_memory_are_access_faults;
    invalidation:
        every_scope_of_invalidation_ends_an_old_translation
        a_range_invalidation_covers_each_of_its_pages
        a_table_is_replaced_under_a_live_space
        a_global_page_goes_with_an_address_and_with_everything
        a_page_moved_300_times_is_always_the_new_one
        pages_move_while_others_are_in_use
        an_unmapped_page_is_out_of_reach
        a_page_mapped_needs_no_invalidation
        one_pscid_is_not_another
        two_spaces_take_turns;
    contexts:
        off_blocks_the_device
        a_context_made_invalid_blocks_the_device
        a_context_made_valid_opens_the_device
        a_misconfigured_context_blocks_the_device
        words_behind_a_base_context_count_in_the_extended_format_only
        a_broken_directory_blocks_the_device
        a_process_directory_that_is_bare_lets_addresses_through;
    processes:
        requests_of_no_process_are_those_of_process_0
        without_a_default_process_addresses_are_let_through
        a_process_context_changes_by_its_commands
        a_process_directory_is_replaced_under_a_live_device
        a_process_without_a_good_context_is_blocked
        a_process_directory_outside_memory_blocks_the_device;
    faults:
        a_fault_sends_a_message
        a_message_that_cannot_be_stored_is_a_fault
        a_full_queue_says_so_and_recovers
        the_fault_queue_wraps
        a_queue_that_is_off_records_nothing
        an_unwritable_queue_is_a_memory_fault
        dtf_hides_faults_of_translation_only;
};

/// Carries them out, those whose name has `only`, and gives the verdict.
pub(crate) fn run(bench: &mut Bench, only: &str) {
    let mut first: Option<Why> = None;
    let (mut passed, mut skipped) = (0, 0);
    if let Err(why) = registers::are_as_reset_leaves_them() {
        say!("FAIL reset: {why}");
        first = Some(why!("reset: {why}"));
    }
    for (name, check) in CHECKS.iter().filter(|(name, _)| name.contains(only)) {
        let verdict = bench.begin().map_err(Stop::from).and_then(|()| check(bench));
        match verdict.and_then(|()| bench.canaries_live().map_err(Stop::from)) {
            Ok(()) => {
                passed += 1;
                match bench.excuses {
                    0 => say!("ok {name}"),
                    excuses => say!("ok {name}, with {excuses} excuses for QEMU's IOMMU"),
                }
            }
            Err(Stop::Skip(why)) => {
                skipped += 1;
                say!("skip {name}: {why}");
            }
            Err(Stop::Fail(why)) => {
                say!("FAIL {name}: {why}");
                first.get_or_insert_with(|| why!("{name}: {why}"));
            }
        }
    }
    match first {
        Some(why) => say!("@hv fail {why}"),
        None if passed == 0 => say!("@hv fail no check has '{only}' in its name"),
        None => say!("@hv pass {passed} checks, {skipped} skipped"),
    }
}
