//! The register file: what each register holds, and what a write makes of it.
//!
//! A write is applied to a register and lanes, never as read-modify-write over bits that clear when written. What a
//! write sets in motion beyond the registers is handed back as an [`Effect`]; nothing here touches memory, queues or
//! devices. Every change goes through a method that notes the register as changed, so that a mirror page can follow.

mod debug;
mod hpm;
mod image;
mod write;

use super::{
    Capabilities, Cqcsr, Ddtp, DdtpMode, Fctl, Fqcsr, Gxl, Icvec, Igs, IommuQosid, Ipsr, MsiAddr, MsiVecCtl, Pqcsr,
    QueueBase, Register, RegisterSet, Width,
};

use debug::TranslationRequest;
use hpm::Hpm;

pub(crate) use image::PAGE;

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
    fctl: Fctl,
    ddtp: Ddtp,
    cqb: QueueBase,
    cqh: u32,
    cqt: u32,
    fqb: QueueBase,
    fqh: u32,
    fqt: u32,
    pqb: QueueBase,
    pqh: u32,
    pqt: u32,
    cqcsr: Cqcsr,
    fqcsr: Fqcsr,
    pqcsr: Pqcsr,
    ipsr: Ipsr,
    hpm: Hpm,
    debug: TranslationRequest,
    qosid: IommuQosid,
    icvec: Icvec,
    msi: [MsiEntry; 16],
    changed: RegisterSet,
}

impl Registers {
    pub(crate) const fn new() -> Self {
        Self::of(Setup::NONE)
    }

    /// The state after a reset (rules REG-RST-01 to REG-RST-05, REG-MAP-26).
    // UNSPECIFIED: what the specification leaves open is 0 (rule REG-RST-01).
    pub(crate) const fn of(setup: Setup) -> Self {
        // A compiler that keeps the encodings in a table does not see that they fit.
        let mode = setup.reset_mode.encoding() & 0xf;
        Self {
            setup,
            fctl: Fctl::new()
                .with_wsi(matches!(setup.capabilities.igs(), Igs::Wsi))
                .with_gxl(matches!(setup.gxl, Gxl::One)),
            ddtp: Ddtp::new().with_iommu_mode(mode),
            cqb: QueueBase::new(),
            cqh: 0,
            cqt: 0,
            fqb: QueueBase::new(),
            fqh: 0,
            fqt: 0,
            pqb: QueueBase::new(),
            pqh: 0,
            pqt: 0,
            cqcsr: Cqcsr::new(),
            fqcsr: Fqcsr::new(),
            pqcsr: Pqcsr::new(),
            ipsr: Ipsr::new(),
            hpm: Hpm::new(),
            debug: TranslationRequest::new(),
            qosid: IommuQosid::new(),
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

    pub(crate) const fn pqb(&self) -> QueueBase {
        self.pqb
    }

    pub(crate) const fn pqh(&self) -> u32 {
        self.pqh
    }

    pub(crate) const fn pqt(&self) -> u32 {
        self.pqt
    }

    pub(crate) const fn pqcsr(&self) -> Pqcsr {
        self.pqcsr
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

    pub(crate) fn set_pqt(&mut self, index: u32) {
        self.pqt = index;
        self.changed.insert(Register::Pqt);
    }

    pub(crate) fn set_pqcsr(&mut self, csr: Pqcsr) {
        self.pqcsr = csr;
        self.changed.insert(Register::Pqcsr);
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
            Register::Pqb => self.pqb.into_bits(),
            Register::Pqh => self.pqh.into(),
            Register::Pqt => self.pqt.into(),
            Register::Cqcsr => self.cqcsr.into_bits().into(),
            Register::Fqcsr => self.fqcsr.into_bits().into(),
            Register::Pqcsr => self.pqcsr.into_bits().into(),
            Register::Ipsr => self.ipsr.into_bits().into(),
            Register::Iocountovf => self.overflows().into_bits().into(),
            Register::Iocountinh => self.inhibits().into_bits().into(),
            Register::Iohpmcycles => self.cycles().into_bits(),
            Register::Iohpmctr(n) => self.counter(n),
            Register::Iohpmevt(n) => self.event(n).into_bits(),
            Register::TrReqIova => self.debug.iova.into_bits(),
            Register::TrReqCtl => self.debug.ctl.into_bits(),
            Register::TrResponse => self.debug.response.into_bits(),
            Register::IommuQosid => self.qosid.into_bits().into(),
            Register::Icvec => self.icvec.into_bits(),
            Register::MsiAddr(vector) => self.msi(vector).addr.into_bits(),
            Register::MsiData(vector) => self.msi(vector).data.into(),
            Register::MsiVecCtl(vector) => self.msi(vector).ctl.into_bits().into(),
        }
    }
}

impl QueueBase {
    /// The number of entries less one: the bits of a head or tail index that are implemented.
    pub(crate) fn index_mask(self) -> u32 {
        // LOG2SZ-1 is at most 31, which stands for 2^32 entries.
        u32::MAX.wrapping_shr(31_u32.saturating_sub(self.log2sz_minus_1().into()))
    }
}

#[cfg(test)]
mod tests;
