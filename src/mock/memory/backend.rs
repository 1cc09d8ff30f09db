//! The vIOMMU's side of the memory: recorded, checked against the contract, failing where it is told to.

use std::collections::VecDeque;

use super::{Event, GARBAGE, Memory, in_space, page_of, words};
use crate::addr::Gpa;
use crate::backend::{Completion, Epoch, GuestMemory, Invalidation, Post};
use crate::error::MemoryFault;
use crate::id::DeviceId;
use crate::regs::Width;

impl GuestMemory for Memory {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        assert!(at.get().is_multiple_of(8), "contract: load from {at}, which is no multiple of 8");
        let mut state = self.state();
        state.loads.push((at, out.len()));
        let loaded = in_space(at, out.len()).and_then(|()| {
            words(at).zip(out.iter_mut()).try_for_each(|(word, slot)| state.load(word).map(|value| *slot = value))
        });
        if loaded.is_err() {
            out.fill(GARBAGE);
        }
        loaded
    }

    fn store(&mut self, at: Gpa, values: &[u64]) -> Result<(), MemoryFault> {
        assert!(at.get().is_multiple_of(8), "contract: store to {at}, which is no multiple of 8");
        let mut state = self.state();
        in_space(at, values.len())?;
        words(at).take(values.len()).try_for_each(|word| state.check(&state.store_failures, word, 8))?;
        for (word, &value) in words(at).zip(values) {
            state.put(word, value);
        }
        state.events.push(Event::Store(at, values.to_vec()));
        Ok(())
    }

    fn post(&mut self, at: Gpa, data: u32, why: Post) -> Result<(), MemoryFault> {
        assert!(at.get().is_multiple_of(4), "contract: post to {at}, which is no multiple of 4");
        let mut state = self.state();
        if !state.interrupt_pages.contains(&page_of(at.get())) {
            state.check(&state.store_failures, at.get(), 4)?;
            let word = at.get() & !7;
            let (kept, new) = match at.get() & 4 {
                0 => (0xffff_ffff_0000_0000, u64::from(data)),
                _ => (0x0000_0000_ffff_ffff, u64::from(data) << 32),
            };
            let value = state.get(word) & kept | new;
            state.put(word, value);
        }
        state.events.push(Event::Post(at, data, why));
        Ok(())
    }

    fn has_compare_exchange(&self) -> bool {
        !self.state().without_exchange
    }

    fn compare_exchange(&mut self, at: Gpa, width: Width, old: u64, new: u64) -> Result<bool, MemoryFault> {
        let bytes = u64::from(width.bytes());
        assert!(at.get().is_multiple_of(bytes), "contract: exchange at {at}, which is no multiple of {bytes}");
        let mut state = self.state();
        assert!(!state.without_exchange, "contract: exchange at {at}, where there is none");
        state.check(&state.store_failures, at.get(), bytes)?;
        state.check(&state.load_failures, at.get(), bytes)?;
        let word = at.get() & !7;
        if let Some(value) = state.exchange_races.get_mut(&word).and_then(VecDeque::pop_front) {
            state.put(word, value);
        }
        let there = state.get(word);
        let (mask, shift) = match (width, at.get() & 4) {
            (Width::U64, _) => (u64::MAX, 0),
            (Width::U32, 0) => (0xffff_ffff, 0),
            (Width::U32, _) => (0xffff_ffff << 32, 32),
        };
        if (there & mask) >> shift != old {
            return Ok(false);
        }
        state.put(word, there & !mask | new << shift);
        state.events.push(Event::Exchange(at, old, new));
        Ok(true)
    }

    fn counts_dma(&self) -> bool {
        self.state().drain.is_some()
    }

    fn drain(&mut self, upto: Epoch) -> Completion {
        let mut state = self.state();
        state.drains.push(upto);
        state.drain.unwrap_or(Completion::Done)
    }

    fn unmapped(&mut self, what: &Invalidation<DeviceId>) {
        self.state().unmapped.push(*what);
    }

    fn watch(&mut self, page: Gpa, on: bool) {
        self.state().watch(page, on);
    }

    fn publish(&mut self, offset: u16, value: u32) {
        assert!(offset.is_multiple_of(4) && offset < 4096, "contract: publish at {offset}, which is no register");
        let mut state = self.state();
        state.mirror.insert(offset, value);
        state.events.push(Event::Publish(offset, value));
    }
}
