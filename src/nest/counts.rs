//! Counts of orders to the physical side.

use crate::error::OrderError;

/// How the physical side answered orders of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answers {
    /// It took them.
    pub done: u64,
    /// It was busy; they were given again later.
    pub busy: u64,
    /// It refused them, or failed over them.
    pub refused: u64,
}

impl Answers {
    const NONE: Self = Self { done: 0, busy: 0, refused: 0 };

    /// Counts an answer and hands it on.
    pub(super) fn count<T>(&mut self, answer: Result<T, OrderError>) -> Result<T, OrderError> {
        let counter = match &answer {
            Ok(_) => &mut self.done,
            Err(OrderError::Busy) => &mut self.busy,
            Err(OrderError::Refused { .. } | OrderError::Fatal) => &mut self.refused,
        };
        *counter = counter.wrapping_add(1);
        answer
    }
}

/// How many orders of each kind the physical side was given: the calls of the methods of
/// [`PhysicalIommu`](crate::PhysicalIommu).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OrderCounts {
    /// [`adopt`](crate::PhysicalIommu::adopt).
    pub adopt: Answers,
    /// [`set_context`](crate::PhysicalIommu::set_context).
    pub set_context: Answers,
    /// [`invalidate`](crate::PhysicalIommu::invalidate).
    pub invalidate: Answers,
    /// Orders in the calls of `invalidate` that were taken.
    pub invalidations: u64,
    /// [`fence`](crate::PhysicalIommu::fence).
    pub fence: Answers,
    /// [`ats_invalidate`](crate::PhysicalIommu::ats_invalidate).
    pub ats_invalidate: Answers,
    /// Fences by which a device had not answered an ATS invalidation, and ATS invalidations that were refused.
    pub ats_timeouts: u64,
    /// [`page_response`](crate::PhysicalIommu::page_response).
    pub page_response: Answers,
    /// [`release`](crate::PhysicalIommu::release).
    pub release: u64,
}

impl OrderCounts {
    pub(crate) const NONE: Self = Self {
        adopt: Answers::NONE,
        set_context: Answers::NONE,
        invalidate: Answers::NONE,
        invalidations: 0,
        fence: Answers::NONE,
        ats_invalidate: Answers::NONE,
        ats_timeouts: 0,
        page_response: Answers::NONE,
        release: 0,
    };
}
