//! Requests and register writes that QEMU takes for others than they are.

use crate::case::{Case, Step};
use crate::walk::{Stage, Visit};

/// 0 for what follows from it; it reads back as written.
pub(super) fn gxl_is_0(case: &mut Case) {
    case.gxl = false;
    for step in &mut case.steps {
        if let Step::Write { offset: 8, value, .. } = step {
            *value &= !4;
        }
    }
}

/// Writing a control register clears its error bits.
pub(super) fn errors_are_cleared(case: &mut Case) {
    for step in &mut case.steps {
        match step {
            Step::Write { offset: 72, value, .. } => *value |= 0x700,
            Step::Write { offset: 76 | 80, value, .. } => *value |= 0x300,
            _ => {}
        }
    }
}

pub(super) fn execute_is_read(case: &mut Case) {
    case.request.execute = false;
}

pub(super) fn process_0_is_none(case: &mut Case) {
    case.request.process.0 &= case.request.process.1 != 0;
}

pub(super) fn any_other_process_is_one(case: &mut Case) {
    case.request.process.0 |= case.request.process.1 != 0;
}

/// The directory is of one level here.
pub(super) fn narrow_process(case: &mut Case) {
    if case.tc() >> 5 & 1 == 1 {
        case.request.process.1 &= 0xff;
    }
}

/// A request without a `process_id` needs U, one with it does not.
pub(super) fn no_privilege(case: &mut Case) {
    case.request.privileged = false;
    if case.request.process.0 {
        user_is_set(case, |stage| stage == Stage::First);
    }
}

/// No request needs U.
pub(super) fn neither_privilege_nor_user(case: &mut Case) {
    case.request.privileged = false;
    user_is_set(case, |_| true);
}

fn user_is_set(case: &mut Case, of: fn(Stage) -> bool) {
    case.change_entries(|visit, entry| if of(visit.of) && Visit::is_leaf(entry) { entry | 1 << 4 } else { entry });
}
