//! The register file: what each register holds, and what a write makes of it.
//!
//! The state is the page itself. A write is applied to a register and lanes, never as read-modify-write over bits that clear when written. What a
//! write sets in motion beyond the registers is handed back as an [`Effect`]; nothing here touches memory, queues or
//! devices. Every change goes through a method that notes the register as changed, so that a mirror page can follow.

mod debug;
mod hpm;
mod image;
mod write;

use super::{
    Capabilities, Cqcsr, Ddtp, DdtpMode, Fctl, Fqcsr, Gxl, Icvec, Igs, Ipsr, MsiAddr, MsiVecCtl, Pqcsr, QueueBase,
    Register, RegisterSet, Width, low_half,
};

/// Bytes of the register page with registers in them.
pub(crate) const PAGE: usize = 1024;

/// 4-byte words of these.
const WORDS: usize = PAGE >> 2;

/// What does not change between one start and the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) capabilities: Capabilities,
    /// Number of vectors, a power of two from 1 to 16.
    pub(crate) vectors: u8,
    /// `Off` or `Bare`.
    pub(crate) reset_mode: DdtpMode,
    /// What `fctl.GXL` is. The checks of device contexts depend on it, too (rule REG-FCTL-09).
    pub(crate) gxl: Gxl,
    /// Number of programmable counters: 1 to 31 with `capabilities.HPM`.
    pub(crate) counters: u8,
    /// Width of RCID and MCID: 1 to 12 with `capabilities.QOSID`.
    pub(crate) qos_bits: u8,
}

impl Setup {
    pub(crate) const NONE: Self = Self {
        capabilities: Capabilities::new(),
        vectors: 1,
        reset_mode: DdtpMode::Off,
        gxl: Gxl::Zero,
        counters: 0,
        qos_bits: 0,
    };
}

/// One entry of the MSI configuration table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MsiEntry {
    pub(crate) addr: MsiAddr,
    pub(crate) data: u32,
    pub(crate) ctl: MsiVecCtl,
}

/// What a register write leaves to be done by others. Interrupts need no entry: they are re-evaluated after every
/// access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Effect {
    None,
    /// The guest put commands into the queue, or took them out.
    Doorbell,
    /// The command queue was turned on or off, or may go on.
    Commands,
    /// `ddtp` holds a new directory; `busy` is set until it is in force.
    Directory,
    /// `tr_req_iova` and `tr_req_ctl` hold a request; `Go/Busy` is set until there is a response.
    Debug,
}

#[derive(Clone, Debug)]
pub(crate) struct Registers {
    setup: Setup,
    /// The page as the guest reads it: there is no other state. Words without a register are 0.
    words: [u32; WORDS],
    changed: RegisterSet,
}

impl Registers {
    pub(crate) const fn new() -> Self {
        Self::of(Setup::NONE)
    }

    /// The state after a reset (rules REG-RST-01 to REG-RST-05, REG-MAP-26).
    // UNSPECIFIED: what the specification leaves open is 0 (rule REG-RST-01).
    pub(crate) const fn of(setup: Setup) -> Self {
        let fctl =
            Fctl::new().with_wsi(matches!(setup.capabilities.igs(), Igs::Wsi)).with_gxl(matches!(setup.gxl, Gxl::One));
        // A compiler that keeps the encodings in a table does not see that they fit.
        let ddtp = Ddtp::new().with_iommu_mode(setup.reset_mode.encoding() & 0xf);
        let capabilities = setup.capabilities.into_bits();
        let mut words = [0; WORDS];
        [words[0], words[1]] = [low_half(capabilities), low_half(capabilities >> 32)];
        words[2] = fctl.into_bits();
        words[4] = low_half(ddtp.into_bits());
        Self { setup, words, changed: RegisterSet::ALL }
    }

    pub(crate) fn reset(&mut self) {
        *self = Self::of(self.setup);
    }

    pub(crate) const fn setup(&self) -> &Setup {
        &self.setup
    }

    pub(crate) const fn capabilities(&self) -> Capabilities {
        self.setup.capabilities
    }

    #[inline]
    pub(crate) fn fctl(&self) -> Fctl {
        Fctl::from_bits(self.word(Register::Fctl))
    }

    #[inline]
    pub(crate) fn ddtp(&self) -> Ddtp {
        Ddtp::from_bits(self.value(Register::Ddtp))
    }

    /// The mode in force; a mode that is not defined never gets into the register.
    #[inline]
    pub(crate) fn mode(&self) -> DdtpMode {
        DdtpMode::decode(self.ddtp().iommu_mode()).unwrap_or(DdtpMode::Off)
    }

    #[inline]
    pub(crate) fn cqb(&self) -> QueueBase {
        QueueBase::from_bits(self.value(Register::Cqb))
    }

    #[inline]
    pub(crate) fn cqh(&self) -> u32 {
        self.word(Register::Cqh)
    }

    #[inline]
    pub(crate) fn cqt(&self) -> u32 {
        self.word(Register::Cqt)
    }

    #[inline]
    pub(crate) fn cqcsr(&self) -> Cqcsr {
        Cqcsr::from_bits(self.word(Register::Cqcsr))
    }

    #[inline]
    pub(crate) fn fqb(&self) -> QueueBase {
        QueueBase::from_bits(self.value(Register::Fqb))
    }

    #[inline]
    pub(crate) fn fqh(&self) -> u32 {
        self.word(Register::Fqh)
    }

    #[inline]
    pub(crate) fn fqt(&self) -> u32 {
        self.word(Register::Fqt)
    }

    #[inline]
    pub(crate) fn fqcsr(&self) -> Fqcsr {
        Fqcsr::from_bits(self.word(Register::Fqcsr))
    }

    #[inline]
    pub(crate) fn pqb(&self) -> QueueBase {
        QueueBase::from_bits(self.value(Register::Pqb))
    }

    #[inline]
    pub(crate) fn pqh(&self) -> u32 {
        self.word(Register::Pqh)
    }

    #[inline]
    pub(crate) fn pqt(&self) -> u32 {
        self.word(Register::Pqt)
    }

    #[inline]
    pub(crate) fn pqcsr(&self) -> Pqcsr {
        Pqcsr::from_bits(self.word(Register::Pqcsr))
    }

    #[inline]
    pub(crate) fn ipsr(&self) -> Ipsr {
        Ipsr::from_bits(self.word(Register::Ipsr))
    }

    #[inline]
    pub(crate) fn icvec(&self) -> Icvec {
        Icvec::from_bits(self.value(Register::Icvec))
    }

    /// The entry of a vector below 16.
    pub(crate) fn msi(&self, vector: u8) -> MsiEntry {
        MsiEntry {
            addr: MsiAddr::from_bits(self.value(Register::MsiAddr(vector))),
            data: self.word(Register::MsiData(vector)),
            ctl: MsiVecCtl::from_bits(self.word(Register::MsiVecCtl(vector))),
        }
    }

    #[inline]
    pub(crate) fn set_cqh(&mut self, index: u32) {
        self.put(Register::Cqh, index.into());
    }

    #[inline]
    pub(crate) fn set_fqt(&mut self, index: u32) {
        self.put(Register::Fqt, index.into());
    }

    #[inline]
    pub(crate) fn set_cqcsr(&mut self, csr: Cqcsr) {
        self.put(Register::Cqcsr, csr.into_bits().into());
    }

    #[inline]
    pub(crate) fn set_fqcsr(&mut self, csr: Fqcsr) {
        self.put(Register::Fqcsr, csr.into_bits().into());
    }

    #[inline]
    pub(crate) fn set_pqt(&mut self, index: u32) {
        self.put(Register::Pqt, index.into());
    }

    #[inline]
    pub(crate) fn set_pqcsr(&mut self, csr: Pqcsr) {
        self.put(Register::Pqcsr, csr.into_bits().into());
    }

    #[inline]
    pub(crate) fn set_ipsr(&mut self, ipsr: Ipsr) {
        self.put(Register::Ipsr, ipsr.into_bits().into());
    }

    /// The directory written last is in force.
    pub(crate) fn clear_ddtp_busy(&mut self) {
        self.put(Register::Ddtp, self.ddtp().with_busy(false).into_bits());
    }

    /// Takes one register whose value changed since it was last taken.
    pub(crate) fn pop_changed(&mut self) -> Option<Register> {
        self.changed.pop()
    }

    /// What an access reads. No register has a read side effect (rule REG-ACC-10).
    // UNSPECIFIED: what is misaligned or covers two registers reads 0 (rules REG-ACC-08, REG-ACC-09).
    #[inline]
    pub(crate) fn read(&self, offset: u64, width: Width) -> u64 {
        let is_legal = match width {
            Width::U32 => offset.trailing_zeros() >= 2,
            Width::U64 => RegisterSet::WIDE.has(offset),
        };
        match usize::try_from(offset >> 2) {
            Ok(index) if is_legal => self.at(index, width),
            _ => 0,
        }
    }

    /// The whole register.
    #[inline]
    pub(crate) fn value(&self, register: Register) -> u64 {
        self.at(index(register), register.width())
    }

    /// The low half of the register, for one of 4 bytes all of it.
    #[inline]
    fn word(&self, register: Register) -> u32 {
        self.words.get(index(register)).copied().unwrap_or_default()
    }

    #[inline]
    fn at(&self, index: usize, width: Width) -> u64 {
        let word = |index| u64::from(self.words.get(index).copied().unwrap_or_default());
        match width {
            Width::U32 => word(index),
            Width::U64 => word(index) | word(index | 1) << 32,
        }
    }

    /// Replaces the whole register.
    #[inline]
    fn put(&mut self, register: Register, value: u64) {
        let words = self.words.iter_mut().skip(index(register));
        for (word, value) in words.zip([low_half(value), low_half(value >> 32)]).take(register.width().words()) {
            *word = value;
        }
        self.changed.insert(register);
    }
}

/// Where a register begins.
#[inline]
fn index(register: Register) -> usize {
    usize::from(register.offset() >> 2)
}

impl QueueBase {
    /// The number of entries less one: the bits of a head or tail index that are implemented.
    #[inline]
    pub(crate) fn index_mask(self) -> u32 {
        // LOG2SZ-1 is at most 31, which stands for 2^32 entries.
        u32::MAX.wrapping_shr(31_u32.saturating_sub(self.log2sz_minus_1().into()))
    }
}

#[cfg(test)]
mod tests;
