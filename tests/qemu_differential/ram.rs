//! The crate's guest memory: zero where nothing was written, as QEMU's is; absent where QEMU's machine has none.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use riscv_viommu::{Gpa, GuestMemory, MemoryFault, Post, Width};

use crate::machine::RAM;

/// Words by their address. A clone is another handle on the same memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ram(Rc<RefCell<Contents>>);

#[derive(Debug, Default)]
struct Contents {
    words: BTreeMap<u64, u64>,
    stored: Vec<u64>,
}

impl Ram {
    /// As the guest writes it.
    pub(crate) fn put(&self, at: u64, word: u64) {
        self.0.borrow_mut().words.insert(at, word);
    }

    pub(crate) fn get(&self, at: u64) -> u64 {
        self.0.borrow().words.get(&at).copied().unwrap_or(0)
    }

    /// Where the crate has stored something.
    pub(crate) fn stored(&self) -> Vec<u64> {
        self.0.borrow().stored.clone()
    }

    fn store_word(&self, at: u64, word: u64) {
        self.put(at, word);
        self.0.borrow_mut().stored.push(at);
    }
}

fn check(at: Gpa, bytes: u64) -> Result<(), MemoryFault> {
    let last = at.checked_add(bytes - 1).ok_or(MemoryFault::Access)?;
    if RAM.contains(&at.get()) && RAM.contains(&last.get()) { Ok(()) } else { Err(MemoryFault::Access) }
}

fn words(at: Gpa, count: usize) -> Result<impl Iterator<Item = u64>, MemoryFault> {
    let count = u64::try_from(count).map_err(|_| MemoryFault::Access)?;
    check(at, count * 8)?;
    Ok((0..count).map(move |word| at.get() + word * 8))
}

impl GuestMemory for Ram {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        words(at, out.len())?.zip(out).for_each(|(at, word)| *word = self.get(at));
        Ok(())
    }

    fn store(&mut self, at: Gpa, values: &[u64]) -> Result<(), MemoryFault> {
        words(at, values.len())?.zip(values).for_each(|(at, &word)| self.store_word(at, word));
        Ok(())
    }

    fn post(&mut self, at: Gpa, data: u32, _why: Post) -> Result<(), MemoryFault> {
        check(at, 4)?;
        let word = at.get() & !7;
        let shift = (at.get() & 4) * 8;
        self.store_word(word, self.get(word) & !(0xffff_ffff << shift) | u64::from(data) << shift);
        Ok(())
    }

    fn has_compare_exchange(&self) -> bool {
        true
    }

    /// For interrupt files in memory only, which the debug interface does not update: QEMU does not offer `AMO_HWAD`.
    fn compare_exchange(&mut self, at: Gpa, width: Width, _old: u64, _new: u64) -> Result<bool, MemoryFault> {
        panic!("the crate updates {width:?} at {at}, and was not offered to")
    }
}
