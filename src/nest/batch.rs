//! Invalidations that wait to go out together.

use heapless::Vec;

use crate::addr::join_pages;
use crate::backend::{Invalidation, Pages};
use crate::list;

/// Orders in the sequence they are to be carried out, as few as say exactly what was asked (rule VC-25).
#[derive(Debug)]
pub(crate) struct Batch<D, const BATCH: usize> {
    orders: Vec<Invalidation<D>, BATCH>,
}

impl<D: Copy + Eq, const BATCH: usize> Batch<D, BATCH> {
    pub(crate) const fn new() -> Self {
        Self { orders: Vec::new() }
    }

    pub(crate) fn orders(&self) -> &[Invalidation<D>] {
        &self.orders
    }

    pub(crate) fn clear(&mut self) {
        self.orders.clear();
    }

    /// Takes an order in; `false` if there is no room for it.
    ///
    /// Merging may move an order before others. That is sound because every context changed and every guest store
    /// made before any of these orders was asked for precedes the batch as a whole, and because what hardware caches
    /// from an old context between two of the orders goes with that context's device order, which ends with all
    /// first-stage translations.
    pub(crate) fn push(&mut self, order: Invalidation<D>) -> bool {
        let mut order = order;
        let first = self.reach(&order);
        let mut index = first;
        while let Some(held) = self.orders.get(index) {
            if are_apart(held, &order) {
                index = index.saturating_add(1);
                continue;
            }
            if covers(held, &order) {
                return true;
            }
            match union(held, &order) {
                Some(both) => {
                    // Grown, it may touch others: look again from the start.
                    let _ = list::take(&mut self.orders, index);
                    order = both;
                    index = first;
                }
                None => index = index.saturating_add(1),
            }
        }
        self.orders.push(order).is_ok()
    }

    /// The first of the orders held that this one may become one with. Between the order for a process and one before
    /// it hardware may walk from the old process context: a first-stage order behind it stays behind (rule SWG-06).
    fn reach(&self, order: &Invalidation<D>) -> usize {
        match order {
            Invalidation::Pages(_) | Invalidation::AddressSpace(_) | Invalidation::FirstStage => {
                let process = |held: &Invalidation<D>| matches!(held, Invalidation::Process(..));
                self.orders.iter().rposition(process).map_or(0, |last| last.saturating_add(1))
            }
            _ => 0,
        }
    }

    /// Replaces all orders by one that covers them.
    pub(crate) fn widen(&mut self) {
        self.orders.clear();
        // Room for one is what a capacity of at least one gives.
        let _ = self.orders.push(Invalidation::Everything);
    }

    pub(crate) fn is_widest(&self) -> bool {
        matches!(self.orders.as_slice(), [Invalidation::Everything])
    }
}

/// Whether both are about pages, but not of one range: what most pairs are, seen first.
#[inline]
fn are_apart<D>(held: &Invalidation<D>, new: &Invalidation<D>) -> bool {
    match (held, new) {
        (Invalidation::Pages(a), Invalidation::Pages(b)) => join_pages((a.first, a.last), (b.first, b.last)).is_none(),
        _ => false,
    }
}

/// Whether carrying out `wide` carries out `narrow` too.
fn covers<D: Copy + Eq>(wide: &Invalidation<D>, narrow: &Invalidation<D>) -> bool {
    match (wide, narrow) {
        // A device order ends with all first-stage translations of the GSCID.
        (Invalidation::Everything, _)
        | (
            Invalidation::Device(_) | Invalidation::FirstStage,
            Invalidation::FirstStage | Invalidation::AddressSpace(_) | Invalidation::Pages(_),
        ) => true,
        // It begins with the directory entries of the device, those of its processes among them (rule DIR-02).
        (Invalidation::Device(a), Invalidation::Device(b) | Invalidation::Process(b, _)) => a == b,
        (Invalidation::Process(a, p), Invalidation::Process(b, q)) => a == b && p == q,
        (Invalidation::AddressSpace(a), Invalidation::AddressSpace(b)) => a == b,
        (Invalidation::AddressSpace(a), Invalidation::Pages(b)) => b.pscid == Some(*a),
        (Invalidation::Pages(a), Invalidation::Pages(b)) => {
            (a.pscid.is_none() || a.pscid == b.pscid)
                && (a.non_leaf || !b.non_leaf)
                && a.first <= b.first
                && b.last <= a.last
        }
        _ => false,
    }
}

/// One order that says exactly what the two say, if there is one.
fn union<D: Copy + Eq>(held: &Invalidation<D>, new: &Invalidation<D>) -> Option<Invalidation<D>> {
    if covers(new, held) {
        return Some(*new);
    }
    match (held, new) {
        (Invalidation::Pages(a), Invalidation::Pages(b)) if a.pscid == b.pscid && a.non_leaf == b.non_leaf => {
            let (first, last) = join_pages((a.first, a.last), (b.first, b.last))?;
            Some(Invalidation::Pages(Pages { first, last, ..*a }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
