//! The one place that reads and writes records in guest memory: each is copied once, whole, in the guest's byte order,
//! and nowhere outside the physical address size the guest was shown.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::addr::{Gpa, PAGE_SIZE, low_bits};
use crate::backend::{GuestMemory, Post};
use crate::error::MemoryFault;
use crate::regs::file::Registers;
use crate::regs::{Lanes, Width, low_half};

/// Times a word is looked at anew because it changed under its update.
// DEVIATES: an update that a vCPU is always faster than ends in an access fault; the specification repeats it without
// end (rules AD-03, VT-13).
pub(crate) const ATTEMPTS: u8 = 8;

/// Guest memory behind glass: a walk sees what it would come to, and changes nothing. Updates of entries come true for
/// the walk alone.
#[derive(Debug)]
pub(crate) struct Glass<'a, M> {
    pub(crate) memory: &'a M,
    /// A page that is taken for not there.
    pub(crate) hole: Option<Gpa>,
}

impl<M: GuestMemory> GuestMemory for Glass<'_, M> {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        match self.hole {
            Some(hole) if (hole.get() ^ at.get()) < PAGE_SIZE => Err(MemoryFault::Access),
            _ => self.memory.load(at, out),
        }
    }

    fn store(&mut self, _at: Gpa, _words: &[u64]) -> Result<(), MemoryFault> {
        Err(MemoryFault::Access)
    }

    fn post(&mut self, _at: Gpa, _data: u32, _why: Post) -> Result<(), MemoryFault> {
        Err(MemoryFault::Access)
    }

    fn compare_exchange(&mut self, _at: Gpa, _width: Width, _old: u64, _new: u64) -> Result<bool, MemoryFault> {
        Ok(true)
    }
}

/// How the guest's structures are to be read: what `fctl.BE` and `capabilities.PAS` say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    big_endian: bool,
    address_mask: u64,
}

impl View {
    /// The view of the structures `fctl.BE` governs (rules EDN-01, EDN-03).
    #[inline]
    pub(crate) fn of(registers: &Registers) -> Self {
        Self { big_endian: registers.fctl().be(), address_mask: low_bits(registers.capabilities().pas()) }
    }

    /// The same memory, for structures whose byte order `tc.SBE` says (rule EDN-02).
    pub(crate) const fn with_big_endian(self, big_endian: bool) -> Self {
        Self { big_endian, ..self }
    }

    /// Reads one page-table entry: 8 bytes, or 4 widened with zeros (rules PTE-10, EDN-06).
    pub(crate) fn load_pte(self, memory: &impl GuestMemory, at: Gpa, width: Width) -> Result<u64, MemoryFault> {
        self.check(at, width.bytes().into())?;
        let mut word = 0_u64;
        memory.load(Gpa::new(at.get() & !7), core::slice::from_mut(&mut word))?;
        let lanes = if at.get() & 4 == 0 { Lanes::Low } else { Lanes::High };
        Ok(self.order(if width == Width::U32 { lanes.select(word) } else { word }, width))
    }

    /// Replaces `old` by `new` at once; whether `old` was there. Both are in the guest's order: what is compared and
    /// stored is their image in memory (rule EDN-07).
    pub(crate) fn exchange(
        self,
        memory: &mut impl GuestMemory,
        at: Gpa,
        width: Width,
        old: u64,
        new: u64,
    ) -> Result<bool, MemoryFault> {
        self.check(at, width.bytes().into())?;
        memory.compare_exchange(at, width, self.order(old, width), self.order(new, width))
    }

    /// Turns a number around, if the structure is big-endian.
    fn order(self, value: u64, width: Width) -> u64 {
        match (self.big_endian, width) {
            (false, _) => value,
            (true, Width::U64) => value.swap_bytes(),
            (true, Width::U32) => low_half(value).swap_bytes().into(),
        }
    }

    /// Reads one record, or a slice of them: a single load, nothing is read twice (rule DDT-17).
    pub(crate) fn load<T>(self, memory: &impl GuestMemory, at: Gpa, record: &mut T) -> Result<(), MemoryFault>
    where
        T: FromBytes + IntoBytes + ?Sized,
    {
        self.check(at, size_of_val(record))?;
        let words = words_mut(record);
        memory.load(at, words)?;
        self.swap(words);
        Ok(())
    }

    /// Reads one record into a fresh copy.
    pub(crate) fn load_new<T>(self, memory: &impl GuestMemory, at: Gpa) -> Result<T, MemoryFault>
    where
        T: FromBytes + IntoBytes,
    {
        let mut record = T::new_zeroed();
        self.load(memory, at, &mut record)?;
        Ok(record)
    }

    /// Writes one record.
    pub(crate) fn store<T>(self, memory: &mut impl GuestMemory, at: Gpa, mut record: T) -> Result<(), MemoryFault>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        self.check(at, size_of::<T>())?;
        let words = words_mut(&mut record);
        self.swap(words);
        memory.store(at, words)
    }

    /// Writes 4 bytes of fence data or of an MSI (rules END-09, END-10).
    #[inline]
    pub(crate) fn post(self, memory: &mut impl GuestMemory, at: Gpa, data: u32, why: Post) -> Result<(), MemoryFault> {
        self.check(at, size_of::<u32>())?;
        memory.post(at, if self.big_endian { data.swap_bytes() } else { data }, why)
    }

    /// An address past `PAS` is an access fault (rule REG-CAP-46).
    // UNSPECIFIED: also where a pointer in a context could be refused when it is decoded (rule DDT-14).
    #[inline]
    fn check(self, at: Gpa, bytes: usize) -> Result<(), MemoryFault> {
        let beyond_first = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_sub(1);
        match at.checked_add(beyond_first) {
            Some(last) if last.get() & !self.address_mask == 0 => Ok(()),
            _ => Err(MemoryFault::Access),
        }
    }

    #[inline]
    fn swap(self, words: &mut [u64]) {
        if self.big_endian {
            for word in words {
                *word = word.swap_bytes();
            }
        }
    }
}

/// A record as the 64-bit words it is made of.
fn words_mut<T: FromBytes + IntoBytes + ?Sized>(record: &mut T) -> &mut [u64] {
    // Every record is `repr(C)` of 64-bit fields, so this is always the whole of it.
    <[u64]>::mut_from_bytes(record.as_mut_bytes()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::{Event, Memory};

    const PAGE: Gpa = Gpa::new(0x8000_0000);

    fn view(big_endian: bool, pas: u8) -> View {
        View { big_endian, address_mask: low_bits(pas) }
    }

    fn memory() -> Memory {
        let memory = Memory::new();
        memory.map(PAGE, 4096);
        memory
    }

    #[test]
    fn a_big_endian_record_is_swapped_by_doubleword_and_keeps_their_order() {
        let mut memory = memory();
        memory.write_words(PAGE, &[0x0102_0304_0506_0708, 0x1112_1314_1516_1718]);
        let read = |big_endian| view(big_endian, 56).load_new::<[u64; 2]>(&memory, PAGE);
        assert_eq!(read(false), Ok([0x0102_0304_0506_0708, 0x1112_1314_1516_1718]), "EDN-03");
        assert_eq!(read(true), Ok([0x0807_0605_0403_0201, 0x1817_1615_1413_1211]), "EDN-06, END-13");
        view(true, 56).store(&mut memory, PAGE, [1_u64, 2]).unwrap();
        assert_eq!(memory.read_words(PAGE, 2), [1 << 56, 2 << 56], "END-07");
        view(false, 56).store(&mut memory, PAGE, [1_u64, 2]).unwrap();
        assert_eq!(memory.read_words(PAGE, 2), [1, 2]);
    }

    #[test]
    fn four_bytes_are_swapped_as_four_bytes() {
        let mut memory = memory();
        view(false, 56).post(&mut memory, PAGE, 0x0102_0304, Post::FenceData).unwrap();
        view(true, 56).post(&mut memory, PAGE, 0x0102_0304, Post::Interrupt).unwrap();
        let posts = [(0x0102_0304, Post::FenceData), (0x0403_0201, Post::Interrupt)];
        assert_eq!(memory.take_events(), posts.map(|(data, why)| Event::Post(PAGE, data, why)), "END-09, END-10");
    }

    #[test]
    fn a_record_is_one_load() {
        let memory = memory();
        let mut commands = [[0_u64; 2]; 16];
        view(false, 56).load(&memory, PAGE, &mut commands[..]).unwrap();
        let _ = view(true, 56).load_new::<[u64; 8]>(&memory, PAGE);
        assert_eq!(memory.take_loads(), [(PAGE, 32), (PAGE, 8)], "DDT-17, T08");
    }

    #[test]
    fn a_record_that_ends_past_the_physical_address_size_is_never_accessed() {
        // The last and the first doubleword of each size, and addresses whose end wraps.
        let cases = [
            (32, 0xffff_fff8, true),
            (32, 0x1_0000_0000, false),
            (32, 0x8000_0000_0000_0000, false),
            (56, 0x00ff_ffff_ffff_fff8, true),
            (56, 0x0100_0000_0000_0000, false),
            (56, 0xffff_ffff_ffff_fff8, false),
        ];
        for (pas, at, within) in cases {
            let at = Gpa::new(at);
            // There is memory everywhere: who asks it, gets it.
            let mut memory = Memory::new();
            memory.map(at, 8);
            let expected = if within { Ok(()) } else { Err(MemoryFault::Access) };
            let view = view(false, pas);
            assert_eq!(view.load_new::<u64>(&memory, at).map(|_| ()), expected, "Q-10 at {at}, {pas} bits");
            assert_eq!(memory.take_loads().len(), usize::from(within), "at {at}");
            assert_eq!(view.store(&mut memory, at, 1_u64), expected, "Q-10 at {at}, {pas} bits");
            assert_eq!(view.post(&mut memory, at, 1, Post::FenceData), expected, "FEN-05 at {at}, {pas} bits");
        }
        // One doubleword within, the next not.
        let memory = memory();
        memory.map(Gpa::new(0xffff_fff8), 16);
        assert_eq!(view(false, 32).load_new::<[u64; 2]>(&memory, Gpa::new(0xffff_fff8)), Err(MemoryFault::Access));
        assert_eq!(view(false, 33).load_new::<[u64; 2]>(&memory, Gpa::new(0xffff_fff8)), Ok([0; 2]));
        assert_eq!(view(false, 64).load_new::<[u64; 2]>(&memory, Gpa::new(u64::MAX - 7)), Err(MemoryFault::Access));
    }

    #[test]
    fn a_failing_access_says_how_it_failed() {
        let memory = memory();
        memory.fail(Gpa::new(PAGE.get() + 8), 8, MemoryFault::Corruption);
        assert_eq!(view(false, 56).load_new::<[u64; 2]>(&memory, PAGE), Err(MemoryFault::Corruption), "FLT-01");
        assert_eq!(view(false, 56).load_new::<u64>(&memory, PAGE), Ok(0));
        assert_eq!(view(false, 56).load_new::<u64>(&memory, Gpa::new(0)), Err(MemoryFault::Access), "T07");
    }
}
