//! Entries of page tables that QEMU takes for others than they are.

use crate::case::Case;
use crate::scheme::Scheme;
use crate::walk::{Stage, Use, Visit};

/// D, A and U of a pointer, and N.
pub(super) fn pointer_flags(case: &mut Case) {
    case.change_entries(|visit, entry| {
        let flags = if visit.scheme.is_wide() { 1 << 63 | 0xd0 } else { 0xd0 };
        if Visit::is_pointer(entry) { entry & !flags } else { entry }
    });
}

pub(super) fn bits_60_59_are_reserved(case: &mut Case) {
    case.change_entries(|visit, entry| if visit.scheme.is_wide() && entry >> 59 & 3 != 0 { entry & !1 } else { entry });
}

/// A page of tables is not good enough for a write if it may not be written itself.
pub(super) fn tables_as_requested(case: &mut Case) {
    if case.request.write {
        case.change_entries(|visit, entry| {
            let refused = Visit::is_leaf(entry) && entry & 0x84 != 0x84;
            if visit.of == Stage::Second(Use::Table) && refused { entry & !1 } else { entry }
        });
    }
}

pub(super) fn directories_unchecked(case: &mut Case) {
    case.change_entries(|visit, entry| {
        // Write without read is reserved all the same.
        let is_one = visit.of == Stage::Second(Use::Directory) && Visit::is_leaf(entry) && entry & 6 != 4;
        if is_one { entry | 0xdf } else { entry }
    });
}

/// An address that is not canonical leads to an entry that is not valid, once the second stage has translated that of
/// the root.
pub(super) fn late_canonical_check(case: &mut Case) {
    let (walk, iova) = (case.walk(), case.request.iova);
    let Some(scheme) = Scheme::first(walk.first_mode, case.tc() >> 11 & 1 == 1).filter(|scheme| scheme.is_wide())
    else {
        return;
    };
    if scheme.canonical(iova) != iova && case.dword(1) >> 60 != 0 {
        if let Some(root) = walk.visits.iter().find(|visit| visit.of == Stage::First) {
            root.entry.set(&mut case.image, 0);
        }
        case.request.iova = scheme.canonical(iova);
    }
}

/// N means nothing in a leaf.
pub(super) fn no_napot(case: &mut Case) {
    case.change_entries(
        |visit, entry| {
            if visit.scheme.is_wide() && Visit::is_leaf(entry) { entry & !(1 << 63) } else { entry }
        },
    );
}

/// What is reserved above a page number is taken for more of it, so that it leads to nowhere; in the last leaf it only
/// shows in the answer.
pub(super) fn high_page_numbers(case: &mut Case) {
    let (below, none) = (0x003f_ffff_ffff_ffff, 0x0000_0000_0000_03ff);
    let last = case.walk().visits.last().map(|visit| visit.entry);
    let has_second = case.dword(1) >> 60 != 0;
    case.change_entries(|visit, entry| {
        let high = entry & !below;
        if !visit.scheme.is_wide() || high & 0x3fc0_0000_0000_0000 == 0 {
            return if visit.scheme.is_wide() { entry & below } else { entry };
        }
        let nowhere = match visit.of {
            // Too wide for the second stage.
            Stage::First if Visit::is_leaf(entry) && has_second => 0xff0_0000_0000,
            _ if Visit::is_leaf(entry) && last == Some(visit.entry) => return entry & below,
            _ => 0x100_0000_0000,
        };
        entry & none | nowhere << 10
    });
}

/// Once the first stage has a leaf, what the leaf allows is what the second stage is asked for.
pub(super) fn second_stage_as_the_first_allows(case: &mut Case) {
    let walk = case.walk();
    let Some(leaf) = walk.visits.iter().rfind(|visit| visit.of == Stage::First) else {
        return;
    };
    let (first, value) = (Stage::First, leaf.entry.get(&case.image));
    let tables = walk.visits.iter().filter(|visit| visit.of == Stage::Second(Use::Table));
    let is_reached = tables.chain([leaf]).all(|visit| {
        let value = visit.entry.get(&case.image);
        let within = (1 << (visit.scheme.offset_bits(visit.level) - 12)) - 1;
        // V, R and A of leaves, which are aligned.
        Visit::is_pointer(value) && visit.of != first || value & 0x43 == 0x43 && visit.scheme.page(value) & within == 0
    });
    let is_canonical = leaf.scheme.canonical(case.request.iova) == case.request.iova;
    if !case.request.write && is_reached && is_canonical && value & 4 != 0 {
        case.request.write = true;
        leaf.entry.set(&mut case.image, value | 0x80);
    }
}
