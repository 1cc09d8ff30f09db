//! The attach table, and whether anything in it is left to be done.

use core::ops::{Deref, DerefMut};

use heapless::Vec;

use super::slot::Slot;

/// The slots. Who reaches for one to change it may leave something to be done; who only looks does not.
#[derive(Debug)]
pub(super) struct Slots<D, const DEVICES: usize> {
    slots: Vec<Slot<D>, DEVICES>,
    /// Nothing is left: no order is to be given for any of them, no page to be watched, and no fence makes a difference.
    at_rest: bool,
}

impl<D, const DEVICES: usize> Slots<D, DEVICES> {
    pub(super) const fn new() -> Self {
        Self { slots: Vec::new(), at_rest: true }
    }

    pub(super) const fn is_at_rest(&self) -> bool {
        self.at_rest
    }

    /// Looks whether they are at rest, after everything was done that could be.
    pub(super) fn come_to_rest(&mut self) {
        self.at_rest = self.slots.iter().all(Slot::is_at_rest);
    }
}

impl<D, const DEVICES: usize> Deref for Slots<D, DEVICES> {
    type Target = Vec<Slot<D>, DEVICES>;

    fn deref(&self) -> &Self::Target {
        &self.slots
    }
}

impl<D, const DEVICES: usize> DerefMut for Slots<D, DEVICES> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.at_rest = false;
        &mut self.slots
    }
}
