//! Contexts that QEMU takes for others than they are.

use crate::case::Case;
use crate::machine::RAM;
use crate::scheme::Scheme;
use crate::walk::Visit;

/// Bits of `msi_addr_mask` and `msi_addr_pattern` that are not reserved (rule DC-30).
const MATCHED: u64 = 0x7fff_ffff_ffff;

/// A page of no case.
const SPARE: u64 = RAM.start;

/// A page number of no memory.
const NOWHERE: u64 = 0x1_8000_0000 >> 12;

/// Whether the device context is misconfigured in a way that QEMU finds as soon as it has read it.
pub(super) fn is_misconfigured_early(case: &Case) -> bool {
    let [tc, iohgatp, fsc, msiptp] = [0, 1, 3, 4].map(|dword| case.dword(dword));
    let is_set = |bit: u32| tc >> bit & 1 == 1;
    let [ats, pages, t2gpa, directory, prpr, default, big] = [1, 2, 3, 5, 6, 9, 10].map(is_set);
    tc & 0xffff_ffff_00ff_f000 != 0
        || !ats && pages
        || !pages && prpr
        || t2gpa
        || !directory && default
        || big
        || directory && matches!(fsc >> 60, 2 | 3)
        || iohgatp >> 60 != 0 && iohgatp & 3 != 0
        || msiptp >> 60 > 1
}

/// The reserved bits do not count, but for those of `tc`.
pub(super) fn unchecked(case: &mut Case) {
    case.change_context(2, |ta| ta & 0xffff_f000);
    case.change_context(3, |fsc| fsc & !0x0fff_f000_0000_0000);
    // No address has what is set there and counts.
    let matches_nothing = case.dword(6) & !case.dword(5) & !MATCHED != 0;
    case.change_context(4, |msiptp| if matches_nothing { 0 } else { msiptp & !0x0fff_f000_0000_0000 });
    case.change_context(5, |mask| mask & MATCHED);
    case.change_context(6, |pattern| pattern & MATCHED);
    case.change_context(7, |_| 0);
    if let Some(process) = case.walk().process {
        // Of ta those beside V, ENS and SUM.
        case.image.entry(process).and_modify(|ta| *ta &= !0xff8);
    }
}

/// Those of `tc` do not count either.
pub(super) fn control_unchecked(case: &mut Case) {
    case.change_context(0, |tc| tc & 0x0000_0000_ff00_0fff);
}

/// Where the first stage is Bare, SXL says nothing about the second.
pub(super) fn sxl_of_bare(case: &mut Case) {
    if case.walk().first_mode == 0 {
        case.change_context(0, |tc| tc & !(1 << 11));
    }
}

pub(super) fn messages_without_second_stage(case: &mut Case) {
    if case.dword(1) >> 60 == 0 && case.dword(4) >> 60 == 1 {
        case.change_context(4, |_| 0);
    }
}

/// SADE and GADE are looked at with the stage they are for.
pub(super) fn updates_of_bare(case: &mut Case) {
    if case.walk().first_mode == 0 {
        case.change_context(0, |tc| tc & !(1 << 8));
    }
    if case.dword(1) >> 60 == 0 {
        case.change_context(0, |tc| tc & !(1 << 7));
    }
}

pub(super) fn unused_directory(case: &mut Case) {
    let is_used = case.request.process.0 || case.tc() >> 9 & 1 == 1;
    if case.tc() >> 5 & 1 == 1 && case.dword(3) >> 60 > 3 && !is_used {
        case.change_context(3, |_| 0);
    }
}

/// An unknown mode of `pdtp` leads to a process context that is misconfigured.
pub(super) fn unknown_directory(case: &mut Case) {
    if case.tc() >> 5 & 1 == 1 && case.dword(3) >> 60 > 3 && !is_misconfigured_early(case) {
        for dword in [1, 4] {
            case.change_context(dword, |_| 0);
        }
        case.change_context(3, |_| 1 << 60 | SPARE >> 12);
        let process = SPARE + u64::from(case.request.process.1) * 16;
        case.image.extend([(process, 1), (process + 8, u64::MAX)]);
    }
}

/// With an unknown mode of `iohgatp` there is no second stage, and the process directory is nowhere.
pub(super) fn unknown_second_stage(case: &mut Case) {
    let mode = case.dword(1) >> 60;
    let known = mode == 0 || Scheme::second(mode, case.gxl).is_some();
    if !known && case.walk().process_address.is_some() && !is_misconfigured_early(case) {
        case.change_context(1, |_| 0);
        case.change_context(3, |_| 1 << 60 | NOWHERE);
        case.change_context(4, |_| 0);
    }
}

/// An unknown mode of `iosatp` is looked at after the request's `process_id`; the highest ones make no context.
pub(super) fn unknown_first_stage(case: &mut Case) {
    let (tc, mode) = (case.tc(), case.dword(3) >> 60);
    if tc >> 5 & 1 == 1 || mode == 0 || Scheme::first(mode, tc >> 11 & 1 == 1).is_some() {
        return;
    }
    if is_misconfigured_early(case) {
        return;
    }
    if case.request.process.0 {
        case.change_context(3, |_| 0);
    } else if mode > 10 {
        case.change_context(0, |tc| tc & !1);
    }
}

/// Sv48 and Sv57 in the context of a process of RV32 misconfigure that of the device.
pub(super) fn wide_process_of_rv32(case: &mut Case) {
    let walk = case.walk();
    let process = walk.process.and_then(|at| case.image.get(&at));
    let is_sound = process.is_some_and(|ta| ta & 0xffff_ffff_0000_0001 == 1);
    if is_sound && case.tc() >> 11 & 1 == 1 && matches!(walk.first_mode, 9 | 10) {
        // SADE, which is looked at as late.
        case.change_context(0, |tc| tc | 1 << 8);
    }
}

/// A write to a page of interrupt files is answered with its own address, anything else goes through the second stage.
pub(super) fn messages_unchecked(case: &mut Case) {
    let Some(page) = case.walk().message.map(|guest| guest >> 12) else {
        return;
    };
    if case.request.write {
        // A table of one entry.
        case.image.insert(SPARE, page << 10 & 0x3f_ffff_ffff_fc00 | 7);
        case.change_context(4, |_| 1 << 60 | SPARE >> 12);
        case.change_context(5, |_| 0);
        case.change_context(6, |_| page);
    } else {
        case.change_context(4, |_| 0);
    }
}

/// A and D of a stage that would update them do not count, and nobody updates them.
pub(super) fn updates_are_taken_for_done(case: &mut Case) {
    let tc = case.tc();
    case.change_entries(|visit, entry| {
        let is_updated = match visit.of {
            crate::walk::Stage::First => tc >> 8 & 1 == 1,
            crate::walk::Stage::Second(_) => tc >> 7 & 1 == 1,
        };
        if is_updated && Visit::is_leaf(entry) { entry | 0xc0 } else { entry }
    });
    case.change_context(0, |tc| tc & !0x180);
}

/// The root of a second stage need not be aligned.
pub(super) fn unaligned_root(case: &mut Case) {
    let root = case.dword(1) << 12 & 0x00ff_ffff_ffff_ffff;
    let aligned = root & !0x3fff;
    if case.dword(1) >> 60 == 0 || root == aligned {
        return;
    }
    // The entries that are read are put where they are looked for.
    let visits = case.walk().visits.into_iter().filter(|visit| (root..root + 0x4000).contains(&visit.entry.at));
    let moved: Vec<_> = visits.map(|visit| (visit.entry, visit.entry.get(&case.image))).collect();
    for (mut entry, value) in moved {
        entry.at = entry.at - root + aligned;
        entry.set(&mut case.image, value);
    }
    case.change_context(1, |iohgatp| iohgatp & !3);
}
