//! A guest's view of PCI: one bus with one device, the function that was passed through to it.
//!
//! Configuration space is mediated. The guest reaches its own function's registers, except those that say where the
//! function answers: base address registers are the guest's to write, but what they move is a mapping of the second
//! stage, from the address the guest chose to where the hypervisor put the function once and for all.

/// Bytes of configuration space of one function.
pub const FUNCTION_SIZE: u64 = 4096;
/// Bytes of configuration space of one bus.
pub const BUS_SIZE: u64 = 256 * FUNCTION_SIZE;

const COMMAND: u16 = 0x04;
const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_MASTER: u32 = 1 << 2;
const BARS: core::ops::Range<u16> = 0x10..0x28;
const ROM: u16 = 0x30;
/// Line and pin of a wired interrupt, in the low bytes of the word.
const INTERRUPT: u16 = 0x3c;
const INTERRUPT_PIN: u32 = 0xff00;

/// Kind of a base address register, and the bits that are not the address.
const BAR_IO: u32 = 1;
const BAR_KIND: u32 = 0xf;
const BAR_64: u32 = 0x4;
const BAR_TYPE: u32 = 0x6;

/// Configuration space of the machine's bus 0.
pub trait ConfigSpace {
    /// Reads 1, 2 or 4 bytes at `offset` of a function.
    fn read(&self, function: u8, offset: u16, width: u8) -> u32;
    /// Writes 1, 2 or 4 bytes at `offset` of a function.
    fn write(&self, function: u8, offset: u16, width: u8, value: u32);
}

/// A window of the function's registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bar {
    /// Where the hypervisor put it.
    pub hpa: u64,
    /// Bytes, 0 for none.
    pub size: u64,
    /// The guest's address, as it wrote it.
    guest: u64,
    /// Low bits of the register: what it is.
    kind: u32,
}

/// A window as it should be mapped for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Where the guest put it.
    pub gpa: u64,
    /// Where it is.
    pub hpa: u64,
    /// Bytes.
    pub size: u64,
}

/// The function passed through to a guest, at device 1, function 0 of its bus.
#[derive(Debug)]
pub struct Function<C> {
    config: C,
    /// Device and function number on the machine's bus 0.
    number: u8,
    bars: [Bar; 6],
}

/// Device and function number of the one device a guest sees.
pub const GUEST_FUNCTION: u8 = 1 << 3;

impl<C: ConfigSpace> Function<C> {
    /// The function `number` of bus 0, its windows put into memory from `next` on, which moves. `None` if nothing is
    /// there.
    pub fn new(config: C, number: u8, next: &mut u64) -> Option<Self> {
        if config.read(number, 0, 2) == 0xffff {
            return None;
        }
        let mut function = Self { config, number, bars: [Bar::default(); 6] };
        // Nothing answers while it moves.
        let command = function.config.read(number, COMMAND, 2);
        function.config.write(number, COMMAND, 2, command & !COMMAND_MEMORY);
        let mut index = 0;
        while index < function.bars.len() {
            let wide = function.place(index, next);
            index += if wide { 2 } else { 1 };
        }
        Some(function)
    }

    /// What the guest reads at `offset` of its bus.
    #[must_use]
    pub fn read(&self, offset: u64, width: u8) -> u64 {
        let Some(register) = own(offset, width) else { return u64::MAX };
        let value = match register {
            at if BARS.contains(&at) => self.bar_word(usize::from((at - BARS.start) / 4)) >> (8 * (at % 4)),
            at if at & !3 == ROM => 0,
            // There is none: the guest has no controller for its wire.
            at if at & !3 == INTERRUPT => {
                (self.config.read(self.number, INTERRUPT, 4) & !INTERRUPT_PIN) >> (8 * (at % 4))
            }
            at => self.config.read(self.number, at, width),
        };
        u64::from(value)
    }

    /// A store of the guest at `offset` of its bus. Whether its windows may have moved.
    pub fn write(&mut self, offset: u64, width: u8, value: u64) -> bool {
        let Some(register) = own(offset, width) else { return false };
        match register {
            at if BARS.contains(&at) => {
                // Only whole words: that is how base address registers are written.
                if width == 4 && at % 4 == 0 {
                    self.set_bar_word(usize::from((at - BARS.start) / 4), value as u32);
                }
                true
            }
            at if at & !3 == ROM => false,
            at => {
                self.config.write(self.number, at, width, value as u32);
                // A reset of the function forgets where it was put.
                (at & !3 == COMMAND) | self.put_back()
            }
        }
    }

    /// Whether it may access memory.
    #[must_use]
    pub fn is_master(&self) -> bool {
        self.config.read(self.number, COMMAND, 2) & COMMAND_MASTER != 0
    }

    /// The windows that answer now.
    pub fn windows(&self) -> impl Iterator<Item = Window> + '_ {
        let decodes = self.config.read(self.number, COMMAND, 2) & COMMAND_MEMORY != 0;
        let bars = self.bars.iter().filter(move |bar| decodes && bar.size != 0);
        bars.map(|bar| Window { gpa: bar.guest, hpa: bar.hpa, size: bar.size })
    }

    /// Finds out how large the window of a base address register is and puts it at `next`. Whether it is 64 bits wide.
    fn place(&mut self, index: usize, next: &mut u64) -> bool {
        let at = BARS.start + 4 * index as u16;
        let probe = |config: &C, at: u16| {
            config.write(self.number, at, 4, u32::MAX);
            config.read(self.number, at, 4)
        };
        let low = probe(&self.config, at);
        let wide = low & BAR_TYPE == BAR_64 && index + 1 < self.bars.len();
        if low == 0 || low & BAR_IO != 0 {
            return false;
        }
        let high = if wide { probe(&self.config, at + 4) } else { u32::MAX };
        let size = (u64::from(high) << 32 | u64::from(low & !BAR_KIND)).wrapping_neg();
        // Windows of different guests never share a page.
        let hpa = next.next_multiple_of(size.max(FUNCTION_SIZE));
        *next = hpa + size.max(FUNCTION_SIZE);
        self.config.write(self.number, at, 4, hpa as u32);
        if wide {
            self.config.write(self.number, at + 4, 4, (hpa >> 32) as u32);
        }
        self.bars[index] = Bar { hpa, size: size.max(FUNCTION_SIZE), guest: 0, kind: low & BAR_KIND };
        wide
    }

    /// Puts the function where it belongs, if it is elsewhere; whether it was.
    fn put_back(&self) -> bool {
        let mut moved = false;
        for (at, bar) in (BARS.start..).step_by(4).zip(&self.bars).filter(|(_, bar)| bar.size != 0) {
            if self.config.read(self.number, at, 4) & !BAR_KIND != bar.hpa as u32 {
                self.config.write(self.number, at, 4, bar.hpa as u32);
                moved = true;
            }
            if bar.kind & BAR_TYPE == BAR_64 && self.config.read(self.number, at + 4, 4) != (bar.hpa >> 32) as u32 {
                self.config.write(self.number, at + 4, 4, (bar.hpa >> 32) as u32);
                moved = true;
            }
        }
        moved
    }

    /// The window whose register has this word, and whether the word is the upper one.
    fn bar_of(&self, word: usize) -> Option<(usize, bool)> {
        let is_wide = |index: usize| self.bars[index].kind & BAR_TYPE == BAR_64;
        match word.checked_sub(1) {
            Some(below) if self.bars[below].size != 0 && is_wide(below) => Some((below, true)),
            _ if self.bars[word].size != 0 => Some((word, false)),
            _ => None,
        }
    }

    fn bar_word(&self, word: usize) -> u32 {
        match self.bar_of(word) {
            Some((index, true)) => (self.bars[index].guest >> 32) as u32,
            Some((index, false)) => self.bars[index].guest as u32 | self.bars[index].kind,
            None => 0,
        }
    }

    fn set_bar_word(&mut self, word: usize, value: u32) {
        let Some((index, upper)) = self.bar_of(word) else { return };
        let bar = &mut self.bars[index];
        let (high, low) = (bar.guest >> 32, bar.guest & 0xffff_ffff);
        let written = if upper { u64::from(value) << 32 | low } else { high << 32 | u64::from(value) };
        bar.guest = written & !(bar.size - 1);
    }
}

/// The register of the guest's own function that an access to its bus means.
fn own(offset: u64, width: u8) -> Option<u16> {
    let first = u64::from(GUEST_FUNCTION) * FUNCTION_SIZE;
    let register = offset.checked_sub(first).filter(|&register| register < FUNCTION_SIZE)?;
    // Aligned, and as wide as configuration space is.
    (matches!(width, 1 | 2 | 4) && register % u64::from(width) == 0).then_some(register as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// Configuration space with one function that has a 16-KiB window, 64 bits wide.
    struct Fake(RefCell<[u8; 64]>);

    const NUMBER: u8 = 2 << 3;

    impl Fake {
        fn new() -> Self {
            let mut bytes = [0; 64];
            bytes[..4].copy_from_slice(&0x0010_1b36_u32.to_le_bytes());
            bytes[0x10] = 4;
            Self(RefCell::new(bytes))
        }
    }

    impl ConfigSpace for &Fake {
        fn read(&self, function: u8, offset: u16, width: u8) -> u32 {
            if function != NUMBER {
                return u32::MAX;
            }
            let mut word = [0; 4];
            let (at, width) = (usize::from(offset), usize::from(width));
            word[..width].copy_from_slice(&self.0.borrow()[at..at + width]);
            u32::from_le_bytes(word)
        }

        fn write(&self, function: u8, offset: u16, width: u8, value: u32) {
            assert_eq!(function, NUMBER, "another function was written");
            let value = match offset {
                0x10 => value & !0x3fff | 4,
                0x14..0x28 if offset != 0x14 => 0,
                _ => value,
            };
            let at = usize::from(offset);
            self.0.borrow_mut()[at..at + usize::from(width)].copy_from_slice(&value.to_le_bytes()[..width.into()]);
        }
    }

    const OWN: u64 = 0x8000;

    fn function(fake: &Fake) -> Function<&Fake> {
        let mut next = 0x4000_1000;
        let function = Function::new(fake, NUMBER, &mut next).expect("is there");
        assert_eq!(next, 0x4000_8000);
        function
    }

    #[test]
    fn a_guest_finds_its_own_function_and_nothing_else() {
        let fake = Fake::new();
        let function = function(&fake);
        assert_eq!(function.read(OWN, 4), 0x0010_1b36);
        for other in [0, 0x1000, 0x9000, 0x1_0000, 0xf_f000] {
            assert_eq!(function.read(other, 4) as u32, u32::MAX, "{other:#x}");
        }
    }

    #[test]
    fn a_guest_sees_no_pin_of_an_interrupt_wire() {
        let fake = Fake::new();
        fake.0.borrow_mut()[0x3c..0x40].copy_from_slice(&[7, 1, 2, 3]);
        let function = function(&fake);
        let bytes = [0x3c, 0x3d, 0x3e, 0x3f].map(|at| function.read(OWN + at, 1) & 0xff);
        assert_eq!((bytes, function.read(OWN + 0x3c, 4)), ([7, 0, 2, 3], 0x0302_0007));
    }

    #[test]
    fn a_function_accesses_memory_while_its_command_register_lets_it() {
        let fake = Fake::new();
        let mut function = function(&fake);
        assert!(!function.is_master());
        for (command, masters) in [(0x2, false), (0x6, true), (0x4, true), (0x403, false)] {
            function.write(OWN + 0x4, 2, command);
            assert_eq!(function.is_master(), masters, "{command:#x}");
        }
    }

    #[test]
    fn a_reset_of_the_function_does_not_move_it() {
        let fake = Fake::new();
        let mut function = function(&fake);
        fake.0.borrow_mut()[0x10..0x18].fill(0);
        assert!(function.write(OWN + 0x38, 2, 0x8000), "its windows may answer no longer");
        assert_eq!((&fake).read(NUMBER, 0x10, 4), 0x4000_4004);
    }

    #[test]
    fn a_base_address_moves_the_mapping_and_not_the_function() {
        let fake = Fake::new();
        let mut function = function(&fake);
        assert!(function.write(OWN + 0x10, 4, 0xffff_ffff));
        assert!(function.write(OWN + 0x14, 4, 0xffff_ffff));
        assert_eq!((function.read(OWN + 0x10, 4), function.read(OWN + 0x14, 4)), (0xffff_c004, 0xffff_ffff));
        function.write(OWN + 0x10, 4, 0x10_0000);
        function.write(OWN + 0x14, 4, 0x4);
        assert_eq!(function.windows().count(), 0, "memory decoding is off");
        assert!(function.write(OWN + 0x4, 2, 0x6));
        let window = Window { gpa: 0x4_0010_0000, hpa: 0x4000_4000, size: 0x4000 };
        assert_eq!(function.windows().collect::<Vec<_>>(), [window]);
        assert_eq!((&fake).read(NUMBER, 0x10, 4), 0x4000_4004, "the function stays where it was put");
    }
}
