//! Guest memory for many operations: words in a vector, with a count of loads and the past of each word.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use riscv_viommu::{Gpa, GuestMemory, MemoryFault, Post, Width};

/// Where memory begins, and how many words there are.
pub(crate) const BASE: u64 = 0x8000_0000;
const WORDS: usize = 0x8_0000;

/// A handle on the memory of a guest.
#[derive(Clone, Debug)]
pub(crate) struct Ram(Rc<State>);

#[derive(Debug)]
struct State {
    words: RefCell<Vec<u64>>,
    loads: Cell<u64>,
    record: Cell<Option<[u64; 4]>>,
    /// What an entry was before, since its invalidation. Entries are read and written whole.
    past: RefCell<BTreeMap<u64, Vec<Vec<u64>>>>,
    remembers: bool,
}

impl Ram {
    /// `remembers`: the past of entries is kept for [`Lens`].
    pub(crate) fn new(remembers: bool) -> Self {
        Self(Rc::new(State {
            words: RefCell::new(vec![0; WORDS]),
            loads: Cell::new(0),
            record: Cell::new(None),
            past: RefCell::default(),
            remembers,
        }))
    }

    pub(crate) fn read(&self, at: u64) -> u64 {
        self.0.words.borrow()[index(at).unwrap()]
    }

    /// Writes an entry whole.
    pub(crate) fn write(&self, at: u64, entry: &[u64]) {
        let first = index(at).unwrap();
        let there = &mut self.0.words.borrow_mut()[first..first + entry.len()];
        if self.0.remembers && there != entry {
            self.0.past.borrow_mut().entry(at).or_default().push(there.to_vec());
        }
        there.copy_from_slice(entry);
    }

    /// Everything was invalidated: nobody may have the past of any entry.
    pub(crate) fn forget_past(&self) {
        self.0.past.borrow_mut().clear();
    }

    /// A page that nothing leads to yet has no past.
    pub(crate) fn forget_page(&self, page: u64) {
        self.0.past.borrow_mut().retain(|&at, _| at & !0xfff != page);
    }

    /// Loads since they were last taken.
    pub(crate) fn take_loads(&self) -> u64 {
        self.0.loads.take()
    }

    /// The fault record written since it was last taken.
    pub(crate) fn take_record(&self) -> Option<[u64; 4]> {
        self.0.record.take()
    }

    /// Where two memories differ first.
    pub(crate) fn difference(&self, other: &Self) -> Option<u64> {
        let (here, there) = (self.0.words.borrow(), other.0.words.borrow());
        (0..WORDS).find(|&index| here[index] != there[index]).map(|index| BASE + 8 * u64::try_from(index).unwrap())
    }
}

fn index(at: u64) -> Result<usize, MemoryFault> {
    let offset = at.checked_sub(BASE).filter(|offset| offset.is_multiple_of(8)).ok_or(MemoryFault::Access)?;
    usize::try_from(offset / 8).ok().filter(|&index| index < WORDS - 8).ok_or(MemoryFault::Access)
}

impl GuestMemory for Ram {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        self.0.loads.set(self.0.loads.get() + 1);
        let first = index(at.get())?;
        out.copy_from_slice(&self.0.words.borrow()[first..first + out.len()]);
        Ok(())
    }

    fn store(&mut self, at: Gpa, words: &[u64]) -> Result<(), MemoryFault> {
        let first = index(at.get())?;
        self.0.record.set(words.try_into().ok());
        self.0.words.borrow_mut()[first..first + words.len()].copy_from_slice(words);
        Ok(())
    }

    fn post(&mut self, _at: Gpa, _data: u32, _why: Post) -> Result<(), MemoryFault> {
        Ok(())
    }

    fn has_compare_exchange(&self) -> bool {
        true
    }

    fn compare_exchange(&mut self, at: Gpa, width: Width, old: u64, new: u64) -> Result<bool, MemoryFault> {
        assert_eq!(width, Width::U64, "there are no tables of RV32 here");
        let same = self.0.words.borrow()[index(at.get())?] == old;
        if same {
            self.write(at.get(), &[new]);
        }
        Ok(same)
    }
}

/// A look at memory in which an entry that changed since its invalidation may be what it was: at each load one of the
/// possibilities, all of them one after another. Nothing is changed through it.
#[derive(Clone, Debug)]
pub(crate) struct Lens(Rc<LensState>);

#[derive(Debug)]
struct LensState {
    ram: Ram,
    /// What each load of such an entry gives, and how many possibilities it has.
    choices: RefCell<Vec<(usize, usize)>>,
    next: Cell<usize>,
    loads: Cell<u64>,
    record: Cell<Option<[u64; 4]>>,
}

impl Lens {
    pub(crate) fn new(ram: &Ram) -> Self {
        let (choices, next, loads, record) = Default::default();
        Self(Rc::new(LensState { ram: ram.clone(), choices, next, loads, record }))
    }

    /// Begins with the first possibility.
    pub(crate) fn begin(&self) {
        self.0.choices.borrow_mut().clear();
        self.start();
    }

    fn start(&self) {
        self.0.next.set(0);
        self.0.loads.set(0);
        self.0.record.set(None);
    }

    /// Loads of this possibility.
    pub(crate) fn loads(&self) -> u64 {
        self.0.loads.get()
    }

    /// Goes on to the next possibility, if there is one.
    pub(crate) fn advance(&self) -> bool {
        let mut choices = self.0.choices.borrow_mut();
        while choices.pop_if(|(chosen, count)| *chosen + 1 >= *count).is_some() {}
        self.start();
        choices.last_mut().map(|(chosen, _)| *chosen += 1).is_some()
    }

    pub(crate) fn take_record(&self) -> Option<[u64; 4]> {
        self.0.record.take()
    }
}

impl GuestMemory for Lens {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        let state = &self.0;
        state.loads.set(state.loads.get() + 1);
        let first = index(at.get())?;
        out.copy_from_slice(&state.ram.0.words.borrow()[first..first + out.len()]);
        let past = state.ram.0.past.borrow();
        let Some(past) = past.get(&at.get()) else {
            return Ok(());
        };
        let mut choices = state.choices.borrow_mut();
        let next = state.next.replace(state.next.get() + 1);
        if next == choices.len() {
            choices.push((0, past.len() + 1));
        }
        // The newest first.
        if let Some(older) = choices[next].0.checked_sub(1) {
            out.copy_from_slice(&past[past.len() - 1 - older]);
        }
        Ok(())
    }

    fn store(&mut self, _at: Gpa, words: &[u64]) -> Result<(), MemoryFault> {
        self.0.record.set(words.try_into().ok());
        Ok(())
    }

    fn post(&mut self, _at: Gpa, _data: u32, _why: Post) -> Result<(), MemoryFault> {
        Ok(())
    }

    fn has_compare_exchange(&self) -> bool {
        true
    }

    /// An entry is marked as it was read.
    fn compare_exchange(&mut self, at: Gpa, _width: Width, _old: u64, _new: u64) -> Result<bool, MemoryFault> {
        index(at.get()).map(|_| true)
    }
}
