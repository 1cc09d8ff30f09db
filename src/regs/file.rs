//! The register file: what each register holds, and what a write makes of it.
//!
//! A write is applied to a register and lanes, never as read-modify-write over bits that clear when written. What a
//! write sets in motion beyond the registers is handed back as an [`Effect`]; nothing here touches memory, queues or
//! devices. Every change goes through a method that notes the register as changed, so that a mirror page can follow.

use crate::addr::Ppn;

use super::{
    Capabilities, Cqcsr, Ddtp, DdtpMode, Fctl, Fqcsr, Icvec, Igs, Ipsr, MAX_VECTORS, MsiAddr, MsiVecCtl, QueueBase,
    Register, RegisterSet, Width,
};

/// What does not change between one start and the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) capabilities: Capabilities,
    /// Number of vectors, a power of two from 1 to 16.
    pub(crate) vectors: u8,
    /// `Off` or `Bare`.
    pub(crate) reset_mode: DdtpMode,
}

impl Setup {
    const NONE: Self = Self { capabilities: Capabilities::new(), vectors: 1, reset_mode: DdtpMode::Off };
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
}

#[derive(Clone, Debug)]
pub(crate) struct Registers {
    setup: Setup,
    fctl: Fctl,
    ddtp: Ddtp,
    cqb: QueueBase,
    cqh: u32,
    cqt: u32,
    fqb: QueueBase,
    fqh: u32,
    fqt: u32,
    cqcsr: Cqcsr,
    fqcsr: Fqcsr,
    ipsr: Ipsr,
    icvec: Icvec,
    msi: [MsiEntry; 16],
    changed: RegisterSet,
}

impl Registers {
    pub(crate) const fn new() -> Self {
        Self::of(Setup::NONE)
    }

    /// The state after a reset (rules REG-RST-01 to REG-RST-05): what the specification leaves open is 0.
    pub(crate) const fn of(setup: Setup) -> Self {
        let mode = match setup.reset_mode {
            DdtpMode::Bare => 1,
            _ => 0,
        };
        Self {
            setup,
            fctl: Fctl::new().with_wsi(matches!(setup.capabilities.igs(), Igs::Wsi)),
            ddtp: Ddtp::new().with_iommu_mode(mode),
            cqb: QueueBase::new(),
            cqh: 0,
            cqt: 0,
            fqb: QueueBase::new(),
            fqh: 0,
            fqt: 0,
            cqcsr: Cqcsr::new(),
            fqcsr: Fqcsr::new(),
            ipsr: Ipsr::new(),
            icvec: Icvec::new(),
            msi: [MsiEntry { addr: MsiAddr::new(), data: 0, ctl: MsiVecCtl::new() }; 16],
            changed: RegisterSet::ALL,
        }
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

    pub(crate) const fn fctl(&self) -> Fctl {
        self.fctl
    }

    pub(crate) const fn ddtp(&self) -> Ddtp {
        self.ddtp
    }

    /// The mode in force; a mode that is not defined never gets into the register.
    pub(crate) const fn mode(&self) -> DdtpMode {
        match DdtpMode::decode(self.ddtp.iommu_mode()) {
            Some(mode) => mode,
            None => DdtpMode::Off,
        }
    }

    pub(crate) const fn cqb(&self) -> QueueBase {
        self.cqb
    }

    pub(crate) const fn cqh(&self) -> u32 {
        self.cqh
    }

    pub(crate) const fn cqt(&self) -> u32 {
        self.cqt
    }

    pub(crate) const fn cqcsr(&self) -> Cqcsr {
        self.cqcsr
    }

    pub(crate) const fn fqb(&self) -> QueueBase {
        self.fqb
    }

    pub(crate) const fn fqh(&self) -> u32 {
        self.fqh
    }

    pub(crate) const fn fqt(&self) -> u32 {
        self.fqt
    }

    pub(crate) const fn fqcsr(&self) -> Fqcsr {
        self.fqcsr
    }

    pub(crate) const fn ipsr(&self) -> Ipsr {
        self.ipsr
    }

    pub(crate) const fn icvec(&self) -> Icvec {
        self.icvec
    }

    pub(crate) fn msi(&self, vector: u8) -> MsiEntry {
        self.msi.get(usize::from(vector)).copied().unwrap_or_default()
    }

    pub(crate) fn set_cqh(&mut self, index: u32) {
        self.cqh = index;
        self.changed.insert(Register::Cqh);
    }

    pub(crate) fn set_fqt(&mut self, index: u32) {
        self.fqt = index;
        self.changed.insert(Register::Fqt);
    }

    pub(crate) fn set_cqcsr(&mut self, csr: Cqcsr) {
        self.cqcsr = csr;
        self.changed.insert(Register::Cqcsr);
    }

    pub(crate) fn set_fqcsr(&mut self, csr: Fqcsr) {
        self.fqcsr = csr;
        self.changed.insert(Register::Fqcsr);
    }

    pub(crate) fn set_ipsr(&mut self, ipsr: Ipsr) {
        self.ipsr = ipsr;
        self.changed.insert(Register::Ipsr);
    }

    /// The directory written last is in force.
    pub(crate) fn clear_ddtp_busy(&mut self) {
        self.ddtp.set_busy(false);
        self.changed.insert(Register::Ddtp);
    }

    /// Takes one register whose value changed since it was last taken.
    pub(crate) fn pop_changed(&mut self) -> Option<Register> {
        self.changed.pop()
    }

    /// What an access reads. No register has a read side effect (rule REG-ACC-10).
    pub(crate) fn read(&self, offset: u64, width: Width) -> u64 {
        match Register::access(offset, width) {
            Some((register, lanes)) => lanes.select(self.value(register)),
            None => 0,
        }
    }

    /// The whole register.
    pub(crate) fn value(&self, register: Register) -> u64 {
        match register {
            Register::Capabilities => self.setup.capabilities.into_bits(),
            Register::Fctl => self.fctl.into_bits().into(),
            Register::Ddtp => self.ddtp.into_bits(),
            Register::Cqb => self.cqb.into_bits(),
            Register::Cqh => self.cqh.into(),
            Register::Cqt => self.cqt.into(),
            Register::Fqb => self.fqb.into_bits(),
            Register::Fqh => self.fqh.into(),
            Register::Fqt => self.fqt.into(),
            Register::Cqcsr => self.cqcsr.into_bits().into(),
            Register::Fqcsr => self.fqcsr.into_bits().into(),
            Register::Ipsr => self.ipsr.into_bits().into(),
            Register::Icvec => self.icvec.into_bits(),
            Register::MsiAddr(vector) => self.msi(vector).addr.into_bits(),
            Register::MsiData(vector) => self.msi(vector).data.into(),
            Register::MsiVecCtl(vector) => self.msi(vector).ctl.into_bits().into(),
        }
    }

    /// Applies a write and says what it sets in motion.
    pub(crate) fn write(&mut self, offset: u64, width: Width, value: u64) -> Effect {
        let Some((register, lanes)) = Register::access(offset, width) else {
            return Effect::None;
        };
        self.changed.insert(register);
        // The other lane keeps what is stored. Registers with bits that clear when written are 4 bytes wide, so for
        // them this is `value` itself.
        let value = lanes.merge(self.value(register), value);
        // 4-byte registers take the low half; the upper one is not part of the access.
        let word = low_half(value);
        match register {
            Register::Capabilities | Register::Cqh | Register::Fqt => {}
            Register::Fctl => self.write_fctl(Fctl::from_bits(word)),
            Register::Ddtp => return self.write_ddtp(Ddtp::from_bits(value)),
            Register::Cqb => self.write_cqb(QueueBase::from_bits(value)),
            Register::Cqt => {
                self.cqt = word & self.cqb.index_mask();
                return Effect::Doorbell;
            }
            Register::Cqcsr => return self.write_cqcsr(Cqcsr::from_bits(word)),
            Register::Fqb => self.write_fqb(QueueBase::from_bits(value)),
            Register::Fqh => self.fqh = word & self.fqb.index_mask(),
            Register::Fqcsr => self.write_fqcsr(Fqcsr::from_bits(word)),
            Register::Ipsr => self.ipsr = Ipsr::from_bits(self.ipsr.into_bits() & !word),
            Register::Icvec => self.write_icvec(Icvec::from_bits(value)),
            Register::MsiAddr(vector) => {
                let addr = MsiAddr::new().with_addr(MsiAddr::from_bits(value & self.address_mask()).addr());
                self.write_msi(vector, |entry| entry.addr = addr);
            }
            Register::MsiData(vector) => self.write_msi(vector, |entry| entry.data = word),
            Register::MsiVecCtl(vector) => {
                let ctl = MsiVecCtl::new().with_m(MsiVecCtl::from_bits(word).m());
                self.write_msi(vector, |entry| entry.ctl = ctl);
            }
        }
        Effect::None
    }

    // UNSPECIFIED: a change while the IOMMU is not Off or a queue is on is dropped whole (rule REG-FCTL-07).
    fn write_fctl(&mut self, new: Fctl) {
        let queues_off = !self.cqcsr.cqen() && !self.cqcsr.cqon() && !self.fqcsr.fqen() && !self.fqcsr.fqon();
        if self.mode() != DdtpMode::Off || self.ddtp.busy() || !queues_off {
            return;
        }
        if self.setup.capabilities.end() {
            self.fctl.set_be(new.be());
        }
        if self.setup.capabilities.igs() == Igs::Both {
            self.fctl.set_wsi(new.wsi());
        }
    }

    fn write_ddtp(&mut self, new: Ddtp) -> Effect {
        let old = self.mode();
        let accepted = match (old, DdtpMode::decode(new.iommu_mode())) {
            // An illegal mode leaves mode and PPN as they were (rule REG-DDTP-01).
            // UNSPECIFIED: so does a step from one directory to another that does not pass Off or Bare (REG-DDTP-10);
            // from a directory to Bare is performed (REG-DDTP-09).
            (_, None) | (DdtpMode::Levels(_), Some(DdtpMode::Levels(_))) => false,
            _ => true,
        };
        // UNSPECIFIED: a write while busy is ignored (rule REG-DDTP-11).
        if !accepted || self.ddtp.busy() {
            return Effect::None;
        }
        self.ddtp = Ddtp::new().with_iommu_mode(new.iommu_mode()).with_ppn(self.within_pas(new.ppn()));
        if self.mode() == old {
            return Effect::None;
        }
        self.ddtp.set_busy(true);
        Effect::Directory
    }

    // UNSPECIFIED: a base written while the queue is on is dropped (rule REG-QB-07).
    fn write_cqb(&mut self, new: QueueBase) {
        if !self.cqcsr.cqon() && !self.cqcsr.busy() {
            self.cqb = self.queue_base(new);
            self.cqt = 0;
            self.changed.insert(Register::Cqt);
        }
    }

    fn write_fqb(&mut self, new: QueueBase) {
        if !self.fqcsr.fqon() && !self.fqcsr.busy() {
            self.fqb = self.queue_base(new);
            self.fqh = 0;
            self.changed.insert(Register::Fqh);
        }
    }

    fn write_cqcsr(&mut self, new: Cqcsr) -> Effect {
        let mut csr = self.cqcsr;
        // UNSPECIFIED: a write while busy is dropped whole (rule REG-CQCSR-23).
        if csr.busy() {
            return Effect::None;
        }
        match (csr.cqen(), new.cqen()) {
            (false, true) => {
                csr = Cqcsr::new().with_cqen(true).with_cqon(true);
                self.set_cqh(0);
            }
            // The queue stays on until what it has begun is done.
            (true, false) => csr = csr.with_cqen(false).with_busy(true),
            _ => {}
        }
        self.cqcsr = csr
            .with_cie(new.cie())
            .with_cqmf(csr.cqmf() && !new.cqmf())
            .with_cmd_to(csr.cmd_to() && !new.cmd_to())
            .with_cmd_ill(csr.cmd_ill() && !new.cmd_ill())
            .with_fence_w_ip(csr.fence_w_ip() && !new.fence_w_ip());
        Effect::Commands
    }

    fn write_fqcsr(&mut self, new: Fqcsr) {
        let mut csr = self.fqcsr;
        if !csr.fqen() && new.fqen() {
            csr = csr.with_fqmf(false).with_fqof(false);
            self.set_fqt(0);
        }
        // Records are stored within the call that reports them: on follows enable at once.
        self.fqcsr = csr
            .with_fqen(new.fqen())
            .with_fqon(new.fqen())
            .with_fie(new.fie())
            .with_fqmf(csr.fqmf() && !new.fqmf())
            .with_fqof(csr.fqof() && !new.fqof());
    }

    // UNSPECIFIED: all four fields are as wide as the number of vectors needs, also those of causes that are not
    // offered; Linux writes all four and reads them back.
    fn write_icvec(&mut self, new: Icvec) {
        let mask = self.setup.vectors.saturating_sub(1);
        self.icvec = Icvec::new()
            .with_civ(new.civ() & mask)
            .with_fiv(new.fiv() & mask)
            .with_pmiv(new.pmiv() & mask)
            .with_piv(new.piv() & mask);
    }

    /// Entries past the number of vectors, and all of them without MSIs, are read-only 0 (rules REG-MSI-08, -09).
    fn write_msi(&mut self, vector: u8, change: impl FnOnce(&mut MsiEntry)) {
        let present = self.setup.capabilities.igs() != Igs::Wsi && vector < self.setup.vectors.min(MAX_VECTORS);
        if let (true, Some(entry)) = (present, self.msi.get_mut(usize::from(vector))) {
            change(entry);
        }
    }

    fn queue_base(&self, new: QueueBase) -> QueueBase {
        QueueBase::new().with_log2sz_minus_1(new.log2sz_minus_1()).with_ppn(self.within_pas(new.ppn()))
    }

    /// The page number cut to the physical address size (rules REG-DDTP-04, REG-QB-03).
    fn within_pas(&self, ppn: Ppn) -> Ppn {
        Ppn::truncate(ppn.get() & (self.address_mask() >> 12))
    }

    /// The bits of an address of `PAS` bits.
    fn address_mask(&self) -> u64 {
        address_mask(self.setup.capabilities.pas())
    }
}

impl QueueBase {
    /// The number of entries less one: the bits of a head or tail index that are implemented.
    pub(crate) fn index_mask(self) -> u32 {
        // LOG2SZ-1 is at most 31, which stands for 2^32 entries.
        u32::MAX.wrapping_shr(31_u32.saturating_sub(self.log2sz_minus_1().into()))
    }
}

/// The bits of an address of `pas` bits.
pub(crate) fn address_mask(pas: u8) -> u64 {
    u64::MAX.checked_shl(pas.into()).map_or(u64::MAX, |above| !above)
}

#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
const fn low_half(value: u64) -> u32 {
    value as u32
}
