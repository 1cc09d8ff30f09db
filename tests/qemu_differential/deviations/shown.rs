//! What QEMU shows in place of what it should.

use crate::case::{Case, Step};
use crate::observation::{Observation, Record, Response};
use crate::scheme::Scheme;
use crate::walk::{Stage, Use, Visit};

use super::contexts;

/// Whether QEMU raises it before it has all contexts.
fn is_lookup(case: &Case, record: Record) -> bool {
    (256..=267).contains(&record.cause()) && !(record.cause() == 259 && is_misconfigured_late(case))
}

/// Whether QEMU finds what is wrong with the context when it is about to walk.
fn is_misconfigured_late(case: &Case) -> bool {
    let (tc, first, second) = (case.tc(), case.walk().first_mode, case.dword(1) >> 60);
    let unknown_first = first != 0 && Scheme::first(first, tc >> 11 & 1 == 1).is_none();
    let unknown_second = second != 0 && Scheme::second(second, case.gxl).is_none();
    let is_wrong = unknown_first || unknown_second || first != 0 && tc >> 8 & 1 == 1 || second != 0 && tc >> 7 & 1 == 1;
    is_wrong && !contexts::is_misconfigured_early(case)
}

pub(super) fn directory_fault(_: &Case, case: &Case, seen: &mut Observation) {
    let Some(process) = case.walk().process_address else {
        return;
    };
    for record in &mut seen.records {
        // Of an implicit access (rule FR-08).
        if matches!(record.cause(), 20 | 21 | 23) && record.iotval2 == process & !3 | 1 {
            record.set_cause(265);
        }
    }
}

/// A write of 1 clears the bit for good; a 0 leaves only what there is still a reason for.
pub(super) fn interrupts_are_forgotten(given: &Case, _: &Case, seen: &mut Observation) {
    let written = given.steps.iter().find_map(|step| match step {
        Step::Write { offset: 84, value, .. } => Some(*value),
        _ => None,
    });
    let (Some(written), &[before, commands, faults]) = (written, &seen.reads[..]) else {
        return;
    };
    let reasons = [(commands, 0xf00), (faults, 0x300)].map(|(csr, errors)| csr & 2 != 0 && csr & errors != 0);
    let held = u64::from(reasons[0]) | u64::from(reasons[1]) << 1;
    *seen.register(84) = before & !written & held;
}

pub(super) fn wide_under_sv32(_: &Case, case: &Case, seen: &mut Observation) {
    if case.tc() >> 11 & 1 == 1 && case.walk().first_mode == 8 && case.request.iova >> 32 != 0 {
        for record in &mut seen.records {
            match record.cause() {
                13 => record.set_cause(21),
                15 => record.set_cause(23),
                _ => {}
            }
        }
    }
}

pub(super) fn lookups_are_reads(_: &Case, case: &Case, seen: &mut Observation) {
    for record in seen.records.iter_mut().filter(|record| is_lookup(case, **record)) {
        record.set_ttyp(2);
    }
}

/// PV is that of the context where there has been a walk.
pub(super) fn processes(given: &Case, case: &Case, seen: &mut Observation) {
    let (_, process) = given.request.process;
    let has_directory = case.tc() >> 5 & 1 == 1;
    for record in &mut seen.records {
        let valid = if is_lookup(case, *record) { process != 0 } else { has_directory };
        record.set_process((valid, process));
    }
}

/// The first page of the smallest leaf on the way; process directories are not on it.
pub(super) fn first_page(_: &Case, case: &Case, seen: &mut Observation) {
    let smallest = smallest_leaf(case);
    for response in &mut seen.responses {
        if let Response::Page { page, .. } = response {
            *page &= u64::MAX << (smallest - 12);
        }
    }
}

/// 10.0 puts the page number where it does not belong, and cuts it off.
pub(super) fn misplaced_page(given: &Case, case: &Case, seen: &mut Observation) {
    let unreserved = 0x003f_ffff_ffff_ffff;
    // Without a walk that of the address; of a leaf, also what is reserved above it.
    let walk = case.walk();
    let last = walk.visits.last().map_or(given.request.iova >> 2, |visit| visit.entry.get(&given.image));
    let high = if walk.message.is_some() { 0 } else { last & !unreserved };
    let smallest = smallest_leaf(case);
    for response in &mut seen.responses {
        if let Response::Page { page, .. } = response {
            let all = (*page | high >> 10) & u64::MAX << (smallest - 12) & 0x000f_ffff_ffff_ffff;
            *page = all >> 10;
        }
    }
}

/// PV is always set, PID only where there is a process.
pub(super) fn always_a_process(given: &Case, case: &Case, seen: &mut Observation) {
    let (_, process) = given.request.process;
    let has_directory = case.tc() >> 5 & 1 == 1;
    for record in &mut seen.records {
        let valid = if is_lookup(case, *record) { process != 0 } else { has_directory };
        record.set_process((true, if valid { process } else { 0 }));
    }
}

pub(super) fn walks_are_writes(_: &Case, case: &Case, seen: &mut Observation) {
    for record in seen.records.iter_mut().filter(|record| !is_lookup(case, **record)) {
        record.set_ttyp(3);
    }
}

pub(super) fn lookups_have_no_address(_: &Case, case: &Case, seen: &mut Observation) {
    for record in seen.records.iter_mut().filter(|record| is_lookup(case, **record)) {
        record.iotval = 0;
    }
}

/// In bits.
fn smallest_leaf(case: &Case) -> u32 {
    let walk = case.walk();
    if walk.message.is_some() {
        return 12;
    }
    let visits = walk.visits.into_iter().filter(|visit| visit.of != Stage::Second(Use::Directory));
    let leaves = visits.map(|visit| (visit.entry.get(&case.image), visit)).filter(|&(value, _)| Visit::is_leaf(value));
    leaves.map(|(value, visit)| visit.scheme.leaf_bits(value, visit.level)).min().unwrap_or(12)
}
