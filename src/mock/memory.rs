//! Guest memory that records what is done to it and fails where it is told to.

mod backend;
mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};
use std::vec::Vec;

use crate::addr::{Gpa, PAGE_SIZE};
use crate::backend::{Completion, Epoch, Invalidation, Post};
use crate::error::MemoryFault;
use crate::id::DeviceId;

/// Where [`Memory::allocate`] begins; low enough for the smallest physical address size.
const HEAP: u64 = 0x8000_0000;

/// What a failed load leaves in the buffer, so that whoever looks at it nevertheless is found out.
const GARBAGE: u64 = 0xdead_dead_dead_dead;

/// Sparse guest memory, zeroed where mapped. A clone is another handle on the same memory.
///
/// [`read`](Self::read) and [`write`](Self::write) are the guest's own accesses: they are not recorded and do not
/// fail on [`fail`](Self::fail). The [`GuestMemory`](crate::GuestMemory) methods are the vIOMMU's: they are recorded,
/// and they check the contract.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    state: Arc<Mutex<State>>,
    big_endian: bool,
}

/// Something that became visible to the guest. The order of events is the order of visibility.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// [`GuestMemory::store`](crate::GuestMemory::store).
    Store(Gpa, Vec<u64>),
    /// [`GuestMemory::post`](crate::GuestMemory::post).
    Post(Gpa, u32, Post),
    /// [`GuestMemory::publish`](crate::GuestMemory::publish).
    Publish(u16, u32),
    /// A [`GuestMemory::compare_exchange`](crate::GuestMemory::compare_exchange) that stored: where, what was there,
    /// and what is there now.
    Exchange(Gpa, u64, u64),
    /// [`Interrupts::set_wire`](crate::Interrupts::set_wire), if the wires were told to log here.
    Wire(u8, bool),
}

#[derive(Debug, Default)]
struct State {
    pages: BTreeSet<u64>,
    /// Words that are not 0.
    words: BTreeMap<u64, u64>,
    allocated: u64,
    load_failures: Vec<Failure>,
    store_failures: Vec<Failure>,
    interrupt_pages: BTreeSet<u64>,
    /// What the guest writes just before the next loads of a word.
    races: BTreeMap<u64, VecDeque<u64>>,
    loads: Vec<(Gpa, usize)>,
    /// What the guest writes just before the next exchanges of a word.
    exchange_races: BTreeMap<u64, VecDeque<u64>>,
    without_exchange: bool,
    drain: Option<Completion>,
    drains: Vec<Epoch>,
    unmapped: Vec<Invalidation<DeviceId>>,
    events: Vec<Event>,
    mirror: BTreeMap<u16, u32>,
    watched: BTreeSet<u64>,
    watches: Vec<(Gpa, bool)>,
    watched_writes: Vec<Gpa>,
}

#[derive(Debug)]
struct Failure {
    first: u64,
    last: u64,
    fault: MemoryFault,
}

impl Memory {
    /// No memory at all.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A handle through which the guest reads and writes big-endian words (`fctl.BE`, `tc.SBE`).
    #[must_use]
    pub fn big_endian(&self) -> Self {
        Self { state: self.state.clone(), big_endian: true }
    }

    /// Gives the guest zeroed memory: every page that `bytes` from `at` touch.
    pub fn map(&self, at: Gpa, bytes: u64) {
        self.state().pages.extend(pages(at, bytes));
    }

    /// Takes the pages away again, and what they held.
    pub fn unmap(&self, at: Gpa, bytes: u64) {
        let mut state = self.state();
        for page in pages(at, bytes) {
            state.pages.remove(&page);
            state.words.retain(|&word, _| page_of(word) != page);
        }
    }

    /// Maps `pages` fresh contiguous pages, aligned to their number rounded up to a power of two.
    #[must_use]
    pub fn allocate(&self, pages: u64) -> Gpa {
        let mut state = self.state();
        let bytes = pages.next_power_of_two().saturating_mul(PAGE_SIZE);
        let mut at = state.allocated.max(HEAP).next_multiple_of(bytes);
        while state.pages.range(at..at.saturating_add(bytes)).next().is_some() {
            at = at.saturating_add(bytes);
        }
        state.allocated = at.saturating_add(bytes);
        state.pages.extend(self::pages(Gpa::new(at), pages.saturating_mul(PAGE_SIZE)));
        Gpa::new(at)
    }

    /// The word at `at`, as the guest reads it.
    ///
    /// # Panics
    /// If no memory is there, or `at` is no multiple of 8.
    #[must_use]
    pub fn read(&self, at: Gpa) -> u64 {
        let word = self.peek(at);
        assert!(word.is_some(), "the guest reads a word at {at}, where it has none");
        self.in_order(word.unwrap_or_default())
    }

    /// Writes the word at `at`, as the guest does.
    ///
    /// # Panics
    /// If no memory is there, or `at` is no multiple of 8.
    pub fn write(&self, at: Gpa, value: u64) {
        assert!(self.peek(at).is_some(), "the guest writes a word at {at}, where it has none");
        self.poke(at, self.in_order(value));
        self.note_write(at);
    }

    /// The 4 bytes at `at`, as the guest reads them.
    ///
    /// # Panics
    /// If no memory is there, or `at` is no multiple of 4.
    #[must_use]
    pub fn read_half(&self, at: Gpa) -> u32 {
        let word = self.read(Gpa::new(at.get() & !7)) >> self.half(at);
        u32::try_from(word & 0xffff_ffff).unwrap_or_default()
    }

    /// Writes the 4 bytes at `at`, as the guest does.
    ///
    /// # Panics
    /// If no memory is there, or `at` is no multiple of 4.
    pub fn write_half(&self, at: Gpa, value: u32) {
        let (word, shift) = (Gpa::new(at.get() & !7), self.half(at));
        self.write(word, self.read(word) & !(0xffff_ffff << shift) | u64::from(value) << shift);
    }

    /// Which half of its word the 4 bytes at `at` are: of a big-endian one the low half comes last.
    fn half(&self, at: Gpa) -> u32 {
        assert!(at.get().is_multiple_of(4), "the guest accesses 4 bytes at {at}");
        if (at.get() & 4 == 0) == self.big_endian { 32 } else { 0 }
    }

    /// `count` words from `at` on.
    #[must_use]
    pub fn read_words(&self, at: Gpa, count: usize) -> Vec<u64> {
        words(at).take(count).map(|word| self.read(Gpa::new(word))).collect()
    }

    /// Writes words from `at` on.
    pub fn write_words(&self, at: Gpa, values: &[u64]) {
        for (word, &value) in words(at).zip(values) {
            self.write(Gpa::new(word), value);
        }
    }

    /// Loads that touch these bytes fail from now on.
    pub fn fail(&self, at: Gpa, bytes: u64, fault: MemoryFault) {
        self.state().load_failures.push(Failure::new(at, bytes, fault));
    }

    /// Stores and posts that touch these bytes fail from now on.
    pub fn fail_stores(&self, at: Gpa, bytes: u64, fault: MemoryFault) {
        self.state().store_failures.push(Failure::new(at, bytes, fault));
    }

    /// These bytes can be read but not written.
    pub fn read_only(&self, at: Gpa, bytes: u64) {
        self.fail_stores(at, bytes, MemoryFault::Access);
    }

    /// Nothing fails any more.
    pub fn clear_failures(&self) {
        let mut state = self.state();
        state.load_failures.clear();
        state.store_failures.clear();
    }

    /// Just before each of the next loads of this word the guest writes the next of `values`; the last one stays.
    pub fn on_load(&self, at: Gpa, values: impl IntoIterator<Item = u64>) {
        let words = values.into_iter().map(|value| self.in_order(value)).collect();
        self.state().races.insert(at.get(), words);
    }

    /// Just before each of the next exchanges of this word the guest writes the next of `values`; the last one stays.
    pub fn on_exchange(&self, at: Gpa, values: impl IntoIterator<Item = u64>) {
        let words = values.into_iter().map(|value| self.in_order(value)).collect();
        self.state().exchange_races.insert(at.get(), words);
    }

    /// Takes [`GuestMemory::compare_exchange`](crate::GuestMemory::compare_exchange) away: to be called before the
    /// vIOMMU is started.
    pub fn without_compare_exchange(&self) {
        self.state().without_exchange = true;
    }

    /// What [`GuestMemory::drain`](crate::GuestMemory::drain) answers from now on; `None`: the host does not count DMA.
    pub fn answer_drain(&self, answer: Option<Completion>) {
        self.state().drain = answer;
    }

    /// The epochs that were to be drained since they were last taken.
    #[must_use]
    pub fn take_drains(&self) -> Vec<Epoch> {
        mem::take(&mut self.state().drains)
    }

    /// What [`GuestMemory::unmapped`](crate::GuestMemory::unmapped) was told since it was last taken.
    #[must_use]
    pub fn take_unmapped(&self) -> Vec<Invalidation<DeviceId>> {
        mem::take(&mut self.state().unmapped)
    }

    /// Makes the page that holds `at` an interrupt file of this VM: posts to it succeed and change no memory.
    pub fn interrupt_page(&self, at: Gpa) {
        self.state().interrupt_pages.insert(page_of(at.get()));
    }

    /// What the mirror page shows: register offset to value.
    #[must_use]
    pub fn mirror(&self) -> BTreeMap<u16, u32> {
        self.state().mirror.clone()
    }

    /// Every load since they were last taken: address and number of words, failed ones included.
    #[must_use]
    pub fn take_loads(&self) -> Vec<(Gpa, usize)> {
        mem::take(&mut self.state().loads)
    }

    /// Every event since they were last taken.
    #[must_use]
    pub fn take_events(&self) -> Vec<Event> {
        mem::take(&mut self.state().events)
    }

    /// The posts among the events since they were last taken; takes all events.
    #[must_use]
    pub fn take_posts(&self) -> Vec<(Gpa, u32, Post)> {
        let post = |event| match event {
            Event::Post(at, data, why) => Some((at, data, why)),
            _ => None,
        };
        self.take_events().into_iter().filter_map(post).collect()
    }

    /// The word at `at` as it lies in memory, if there is one.
    pub(super) fn peek(&self, at: Gpa) -> Option<u64> {
        let state = self.state();
        let there = at.get().is_multiple_of(8) && state.mapped(at.get());
        there.then(|| state.get(at.get()))
    }

    /// The word at `at` as it lies in memory, for hardware: fails where loads are told to.
    pub(super) fn hardware_load(&self, at: Gpa) -> Result<u64, MemoryFault> {
        let state = self.state();
        state.check(&state.load_failures, at.get(), 8).map(|()| state.get(at.get()))
    }

    /// Writes the word at `at`.
    pub(super) fn poke(&self, at: Gpa, word: u64) {
        self.state().put(at.get(), word);
    }

    fn in_order(&self, value: u64) -> u64 {
        if self.big_endian { value.swap_bytes() } else { value }
    }

    pub(super) fn log(&self, event: Event) {
        self.state().events.push(event);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        super::lock(&self.state)
    }
}

impl State {
    fn mapped(&self, at: u64) -> bool {
        self.pages.contains(&page_of(at))
    }

    fn get(&self, word: u64) -> u64 {
        self.words.get(&word).copied().unwrap_or_default()
    }

    fn put(&mut self, word: u64, value: u64) {
        self.words.insert(word, value);
    }

    fn load(&mut self, word: u64) -> Result<u64, MemoryFault> {
        self.check(&self.load_failures, word, 8)?;
        if let Some(value) = self.races.get_mut(&word).and_then(VecDeque::pop_front) {
            self.put(word, value);
        }
        Ok(self.get(word))
    }

    fn check(&self, failures: &[Failure], at: u64, bytes: u64) -> Result<(), MemoryFault> {
        if !self.mapped(at) {
            return Err(MemoryFault::Access);
        }
        match failures.iter().find(|failure| failure.touches(at, bytes)) {
            Some(failure) => Err(failure.fault),
            None => Ok(()),
        }
    }
}

impl Failure {
    fn new(at: Gpa, bytes: u64, fault: MemoryFault) -> Self {
        Self { first: at.get(), last: last_byte(at, bytes), fault }
    }

    fn touches(&self, at: u64, bytes: u64) -> bool {
        at <= self.last && last_byte(Gpa::new(at), bytes) >= self.first
    }
}

fn page_of(at: u64) -> u64 {
    at & !(PAGE_SIZE - 1)
}

fn last_byte(at: Gpa, bytes: u64) -> u64 {
    at.get().saturating_add(bytes.saturating_sub(1))
}

/// The pages that `bytes` from `at` touch.
fn pages(at: Gpa, bytes: u64) -> impl Iterator<Item = u64> {
    let next = |page: &u64| page.checked_add(PAGE_SIZE);
    let last = last_byte(at, bytes);
    core::iter::successors(Some(page_of(at.get())), next).take_while(move |&page| page <= last)
}

/// The word at `at` and all after it.
fn words(at: Gpa) -> impl Iterator<Item = u64> {
    core::iter::successors(Some(at.get()), |word| word.checked_add(8))
}

/// That no word lies past the end of the address space.
fn in_space(at: Gpa, count: usize) -> Result<(), MemoryFault> {
    let bytes = u64::try_from(count).unwrap_or(u64::MAX).saturating_mul(8);
    at.checked_add(bytes.saturating_sub(1)).map(|_| ()).ok_or(MemoryFault::Access)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::GuestMemory;

    const AT: Gpa = Gpa::new(0x1000);

    fn page() -> Memory {
        let memory = Memory::new();
        memory.map(AT, 1);
        memory
    }

    #[test]
    fn what_is_not_mapped_can_not_be_accessed() {
        let mut memory = page();
        let mut out = [0; 2];
        assert_eq!(memory.load(Gpa::new(0x1ff8), &mut out), Err(MemoryFault::Access));
        assert_eq!(out, [GARBAGE; 2], "nobody may look at it");
        assert_eq!(memory.store(Gpa::new(0x1ff8), &[1, 2]), Err(MemoryFault::Access));
        assert_eq!(memory.read(Gpa::new(0x1ff8)), 0, "all or nothing");
        assert_eq!(memory.load(Gpa::new(u64::MAX - 7), &mut out), Err(MemoryFault::Access));
        assert_eq!(memory.post(Gpa::new(0x2000), 1, Post::Interrupt), Err(MemoryFault::Access));
        memory.unmap(AT, 4096);
        assert_eq!(memory.load(AT, &mut out), Err(MemoryFault::Access));
    }

    #[test]
    fn failures_are_where_they_were_put() {
        let mut memory = page();
        memory.fail(Gpa::new(0x1010), 8, MemoryFault::Corruption);
        memory.read_only(Gpa::new(0x1024), 4);
        let mut out = [0; 2];
        assert_eq!(memory.load(AT, &mut out), Ok(()));
        assert_eq!(memory.load(Gpa::new(0x1008), &mut out), Err(MemoryFault::Corruption));
        assert_eq!(memory.post(Gpa::new(0x1020), 1, Post::FenceData), Ok(()));
        assert_eq!(memory.post(Gpa::new(0x1024), 1, Post::FenceData), Err(MemoryFault::Access));
        assert_eq!(memory.take_loads(), [(AT, 2), (Gpa::new(0x1008), 2)]);
        memory.clear_failures();
        assert_eq!(memory.load(Gpa::new(0x1010), &mut out), Ok(()));
    }

    #[test]
    fn a_word_changes_under_its_reader() {
        let memory = page();
        memory.on_load(AT, [1, 2]);
        let mut out = [0];
        let seen = [(); 3].map(|()| memory.load(AT, &mut out).map(|()| out[0]));
        assert_eq!(seen, [Ok(1), Ok(2), Ok(2)]);
    }

    #[test]
    fn events_keep_their_order_and_a_post_its_half_of_the_word() {
        let mut memory = page();
        memory.interrupt_page(Gpa::new(0x2800_0000));
        memory.store(AT, &[u64::MAX]).unwrap();
        memory.post(Gpa::new(0x1004), 7, Post::FenceData).unwrap();
        memory.publish(32, 1);
        memory.post(Gpa::new(0x2800_0000), 9, Post::Interrupt).unwrap();
        assert_eq!(memory.read(AT), 0x7_ffff_ffff);
        assert_eq!(
            memory.take_events(),
            [
                Event::Store(AT, std::vec![u64::MAX]),
                Event::Post(Gpa::new(0x1004), 7, Post::FenceData),
                Event::Publish(32, 1),
                Event::Post(Gpa::new(0x2800_0000), 9, Post::Interrupt),
            ]
        );
        assert_eq!(memory.mirror().get(&32), Some(&1));
    }

    #[test]
    fn allocated_pages_are_aligned_and_new() {
        let memory = Memory::new();
        memory.map(Gpa::new(HEAP), 1);
        assert_eq!(memory.allocate(1), Gpa::new(HEAP + 0x1000));
        assert_eq!(memory.allocate(3), Gpa::new(HEAP + 0x4000));
    }

    #[test]
    #[should_panic(expected = "contract: load from 0x1004")]
    fn a_misaligned_load_is_a_breach() {
        let _ = page().load(Gpa::new(0x1004), &mut [0]);
    }
}
