//! The guest driver's half of the queues: commands as literals, a ring to push them to, rings to take faults and page
//! requests from.
//!
//! Nothing here knows the vIOMMU: what is to be written to a register is returned. Encodings are worked out from the
//! figures of the specification, not with the crate's own formats. For big-endian queues take a
//! [`big_endian`](Memory::big_endian) handle.

mod ats;
mod records;

pub use ats::AtsCommand;
pub use records::{FaultRing, PageRequestRing, RecordRing};

use crate::addr::{Gpa, Iova};
use crate::id::{DeviceId, Gscid, ProcessId, Pscid};

use super::memory::Memory;

/// Offsets in the register page, and bits of its registers.
pub mod register {
    /// `capabilities`, 8 bytes.
    pub const CAPABILITIES: u64 = 0;
    /// `fctl`, 4 bytes.
    pub const FCTL: u64 = 8;
    /// `ddtp`, 8 bytes.
    pub const DDTP: u64 = 16;
    /// `cqb`, 8 bytes.
    pub const CQB: u64 = 24;
    /// `cqh`, 4 bytes.
    pub const CQH: u64 = 32;
    /// `cqt`, 4 bytes.
    pub const CQT: u64 = 36;
    /// `fqb`, 8 bytes.
    pub const FQB: u64 = 40;
    /// `fqh`, 4 bytes.
    pub const FQH: u64 = 48;
    /// `fqt`, 4 bytes.
    pub const FQT: u64 = 52;
    /// `pqb`, 8 bytes.
    pub const PQB: u64 = 56;
    /// `pqh`, 4 bytes.
    pub const PQH: u64 = 64;
    /// `pqt`, 4 bytes.
    pub const PQT: u64 = 68;
    /// `cqcsr`, 4 bytes.
    pub const CQCSR: u64 = 72;
    /// `fqcsr`, 4 bytes.
    pub const FQCSR: u64 = 76;
    /// `pqcsr`, 4 bytes.
    pub const PQCSR: u64 = 80;
    /// `ipsr`, 4 bytes.
    pub const IPSR: u64 = 84;
    /// `iocountovf`, 4 bytes.
    pub const IOCOUNTOVF: u64 = 88;
    /// `iocountinh`, 4 bytes.
    pub const IOCOUNTINH: u64 = 92;
    /// `iohpmcycles`, 8 bytes.
    pub const IOHPMCYCLES: u64 = 96;
    /// `tr_req_iova`, 8 bytes.
    pub const TR_REQ_IOVA: u64 = 600;
    /// `tr_req_ctl`, 8 bytes.
    pub const TR_REQ_CTL: u64 = 608;
    /// `tr_response`, 8 bytes.
    pub const TR_RESPONSE: u64 = 616;
    /// `iommu_qosid`, 4 bytes: RCID in 11:0, MCID in 27:16.
    pub const IOMMU_QOSID: u64 = 624;
    /// `icvec`, 8 bytes.
    pub const ICVEC: u64 = 760;
    /// `msi_cfg_tbl`: 16 bytes for each vector, address (8), data (4), vector control (4).
    pub const MSI_CFG_TBL: u64 = 768;

    /// `cqcsr.cqen`, `fqcsr.fqen`, `pqcsr.pqen`.
    pub const ENABLE: u64 = 1;
    /// `cqcsr.cie`, `fqcsr.fie`, `pqcsr.pie`.
    pub const INTERRUPT_ENABLE: u64 = 1 << 1;
    /// `cqcsr.cqmf`, `fqcsr.fqmf`, `pqcsr.pqmf`.
    pub const MEMORY_FAULT: u64 = 1 << 8;
    /// `cqcsr.cmd_to`.
    pub const CMD_TO: u64 = 1 << 9;
    /// `fqcsr.fqof`.
    pub const FQOF: u64 = 1 << 9;
    /// `pqcsr.pqof`.
    pub const PQOF: u64 = 1 << 9;
    /// `cqcsr.cmd_ill`.
    pub const CMD_ILL: u64 = 1 << 10;
    /// `cqcsr.fence_w_ip`.
    pub const FENCE_W_IP: u64 = 1 << 11;
    /// `cqcsr.cqon`, `fqcsr.fqon`, `pqcsr.pqon`.
    pub const ON: u64 = 1 << 16;
    /// `cqcsr.busy`, `fqcsr.busy`, `pqcsr.busy`.
    pub const BUSY: u64 = 1 << 17;
    /// `ddtp.busy`.
    pub const DDTP_BUSY: u64 = 1 << 4;
    /// `ipsr.cip`.
    pub const CIP: u64 = 1;
    /// `ipsr.fip`.
    pub const FIP: u64 = 1 << 1;
    /// `ipsr.pmip`.
    pub const PMIP: u64 = 1 << 2;
    /// `ipsr.pip`.
    pub const PIP: u64 = 1 << 3;
    /// OF of `iohpmcycles` and `iohpmevt`.
    pub const OF: u64 = 1 << 63;

    /// `iohpmctr` of the counter `n`, 1 to 31, 8 bytes.
    #[must_use]
    pub const fn iohpmctr(n: u64) -> u64 {
        104_u64.wrapping_add(n.wrapping_sub(1).wrapping_mul(8))
    }

    /// `iohpmevt` of the counter `n`, 1 to 31, 8 bytes.
    #[must_use]
    pub const fn iohpmevt(n: u64) -> u64 {
        352_u64.wrapping_add(n.wrapping_sub(1).wrapping_mul(8))
    }
}

/// The command queue as the guest's driver sees it: it owns the tail.
#[derive(Clone, Debug)]
pub struct CommandRing {
    ring: Ring,
    tail: u32,
}

#[derive(Clone, Debug)]
struct Ring {
    memory: Memory,
    base: Gpa,
    log2_entries: u8,
}

impl Ring {
    /// Maps the memory of a queue of 2^`log2_entries` entries of `bytes` each.
    fn new(memory: &Memory, log2_entries: u8, base: Gpa, bytes: u64) -> Self {
        assert!((1..=32).contains(&log2_entries), "a queue has 2 to 2^32 entries, not 2^{log2_entries}");
        memory.map(base, bytes.wrapping_shl(log2_entries.into()));
        Self { memory: memory.clone(), base, log2_entries }
    }

    /// LOG2SZ-1 in bits 4:0, PPN in 53:10.
    fn base_register(&self) -> u64 {
        self.base.get() >> 2 | u64::from(self.log2_entries.wrapping_sub(1))
    }

    fn entry(&self, index: u32, bytes: u64) -> Gpa {
        Gpa::new(self.base.get().wrapping_add(u64::from(index).wrapping_mul(bytes)))
    }

    fn after(&self, index: u32) -> u32 {
        index.wrapping_add(1) & u32::MAX.wrapping_shr(32_u32.wrapping_sub(self.log2_entries.into()))
    }
}

impl CommandRing {
    /// A command queue of 2^`log2_entries` entries at `base`, whose memory is mapped here.
    ///
    /// # Panics
    /// If there is no such size.
    #[must_use]
    pub fn new(memory: &Memory, log2_entries: u8, base: Gpa) -> Self {
        Self { ring: Ring::new(memory, log2_entries, base, 16), tail: 0 }
    }

    /// What to write to `cqb`; the tail is 0 then.
    pub fn cqb(&mut self) -> u64 {
        self.tail = 0;
        self.ring.base_register()
    }

    /// Writes a command at the tail; what to write to `cqt`. Whether there is room is for the caller to know.
    pub fn push(&mut self, command: [u64; 2]) -> u64 {
        self.ring.memory.write_words(self.entry(self.tail), &command);
        self.tail = self.ring.after(self.tail);
        self.tail.into()
    }

    /// Writes several commands; what to write to `cqt`.
    pub fn push_all(&mut self, commands: impl IntoIterator<Item = [u64; 2]>) -> u64 {
        for command in commands {
            self.push(command);
        }
        self.tail.into()
    }

    /// The index the next command goes to.
    #[must_use]
    pub const fn tail(&self) -> u32 {
        self.tail
    }

    /// Where the entry of this index is.
    #[must_use]
    pub fn entry(&self, index: u32) -> Gpa {
        self.ring.entry(index, 16)
    }
}

/// Operands of IOTINVAL. What is `None` is not given: AV, PSCV or GV is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Iotinval {
    /// AV and `ADDR[63:12]`.
    pub address: Option<Iova>,
    /// PSCV and PSCID.
    pub pscid: Option<Pscid>,
    /// GV and GSCID.
    pub gscid: Option<Gscid>,
    /// NL: non-leaf entries too.
    pub non_leaf: bool,
    /// S: ADDR names a naturally aligned power-of-two range.
    pub range: bool,
}

impl Iotinval {
    /// No operands: everything.
    pub const ALL: Self = Self { address: None, pscid: None, gscid: None, non_leaf: false, range: false };

    /// One page.
    #[must_use]
    pub const fn address(self, address: Iova) -> Self {
        Self { address: Some(address), ..self }
    }

    /// The naturally aligned range of 2^`log2_pages` pages that holds `address`, `log2_pages` being 1 to 51: as many
    /// ones as the size has bits, less one, below a zero.
    #[must_use]
    pub const fn range(self, address: Iova, log2_pages: u32) -> Self {
        let ones = 0x1000_u64.wrapping_shl(log2_pages.wrapping_sub(1)).wrapping_sub(0x1000);
        let range = 0x1000_u64.wrapping_shl(log2_pages).wrapping_sub(1);
        Self { address: Some(Iova::new(address.get() & !range | ones)), range: true, ..self }
    }

    /// One address space.
    #[must_use]
    pub const fn pscid(self, pscid: Pscid) -> Self {
        Self { pscid: Some(pscid), ..self }
    }

    /// One VM of the guest's own.
    #[must_use]
    pub const fn gscid(self, gscid: Gscid) -> Self {
        Self { gscid: Some(gscid), ..self }
    }

    /// Non-leaf entries too.
    #[must_use]
    pub const fn non_leaf(self) -> Self {
        Self { non_leaf: true, ..self }
    }

    /// IOTINVAL.VMA: opcode 1, func3 0.
    #[must_use]
    pub fn vma(self) -> [u64; 2] {
        self.encode(0x001)
    }

    /// IOTINVAL.GVMA: opcode 1, func3 1.
    #[must_use]
    pub fn gvma(self) -> [u64; 2] {
        self.encode(0x081)
    }

    // AV 10, PSCID 31:12, PSCV 32, GV 33, NL 34, GSCID 59:44; S 73, ADDR[63:12] 125:74.
    fn encode(self, function: u64) -> [u64; 2] {
        let pscid = self.pscid.map_or(0, |pscid| 1 << 32 | u64::from(pscid.get()) << 12);
        let gscid = self.gscid.map_or(0, |gscid| 1 << 33 | u64::from(gscid.get()) << 44);
        let flags = u64::from(self.address.is_some()) << 10 | u64::from(self.non_leaf) << 34;
        let address = self.address.map_or(0, |address| address.get() >> 12 << 10);
        [function | pscid | gscid | flags, address | u64::from(self.range) << 9]
    }
}

/// Operands of IOFENCE.C.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Iofence {
    /// AV, `ADDR[63:2]` and DATA.
    pub store: Option<(Gpa, u32)>,
    /// WSI.
    pub wsi: bool,
    /// PR.
    pub reads: bool,
    /// PW.
    pub writes: bool,
}

impl Iofence {
    /// A fence that only completes.
    pub const PLAIN: Self = Self { store: None, wsi: false, reads: false, writes: false };

    /// Stores `data` at `at` on completion.
    #[must_use]
    pub const fn store(self, at: Gpa, data: u32) -> Self {
        Self { store: Some((at, data)), ..self }
    }

    /// Signals a wire on completion.
    #[must_use]
    pub const fn wsi(self) -> Self {
        Self { wsi: true, ..self }
    }

    /// Waits for reads (PR) and writes (PW) of devices.
    #[must_use]
    pub const fn accesses(self, reads: bool, writes: bool) -> Self {
        Self { reads, writes, ..self }
    }

    /// IOFENCE.C: opcode 2, func3 0; AV 10, WSI 11, PR 12, PW 13, DATA 63:32, `ADDR[63:2]` 125:64.
    #[must_use]
    pub fn encode(self) -> [u64; 2] {
        let flags = u64::from(self.wsi) << 11 | u64::from(self.reads) << 12 | u64::from(self.writes) << 13;
        match self.store {
            None => [0x002 | flags, 0],
            Some((at, data)) => [0x402 | flags | u64::from(data) << 32, at.get() >> 2],
        }
    }
}

/// `IODIR.INVAL_DDT`: opcode 3, func3 0; DV 33, DID 63:40. `None`: of every device.
#[must_use]
pub fn inval_ddt(device: Option<DeviceId>) -> [u64; 2] {
    [0x003 | device.map_or(0, |device| 1 << 33 | u64::from(device.get()) << 40), 0]
}

/// `IODIR.INVAL_PDT`: opcode 3, func3 1; PID 31:12, DV 33, DID 63:40.
#[must_use]
pub fn inval_pdt(device: DeviceId, process: ProcessId) -> [u64; 2] {
    [0x083 | 1 << 33 | u64::from(device.get()) << 40 | u64::from(process.get()) << 12, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_the_figures_of_the_specification() {
        let page = Iotinval::ALL.address(Iova::new(0x1234_5000)).pscid(Pscid::new(0xabcde).unwrap()).non_leaf();
        assert_eq!(page.vma(), [0x0000_0005_abcd_e401, 0x0000_0000_048d_1400]);
        // 64 KiB at 0x20000: three ones below a zero.
        assert_eq!(Iotinval::ALL.range(Iova::new(0x2_3000), 4).vma(), [0x401, 0x27 << 10 | 1 << 9]);
        assert_eq!(Iotinval::ALL.gscid(Gscid::new(0xffff).unwrap()).gvma(), [0x0fff_f002_0000_0081, 0]);
        let fence = Iofence::PLAIN.store(Gpa::new(0x8000_0004), 7).accesses(true, true);
        assert_eq!(fence.encode(), [0x7_0000_3402, 0x2000_0001]);
        assert_eq!(inval_ddt(None), [3, 0]);
        assert_eq!(inval_ddt(Some(DeviceId::new(0x42).unwrap())), [0x0000_4202_0000_0003, 0]);
        let process = ProcessId::new(1).unwrap();
        assert_eq!(inval_pdt(DeviceId::new(2).unwrap(), process), [0x0000_0202_0000_1083, 0]);
    }

    #[test]
    fn rings_wrap() {
        let memory = Memory::new();
        let mut commands = CommandRing::new(&memory.big_endian(), 1, Gpa::new(0x1000));
        assert_eq!(commands.cqb(), 0x1000 >> 2);
        assert_eq!(commands.push(inval_ddt(None)), 1);
        assert_eq!(commands.push(inval_ddt(None)), 0);
        assert_eq!(memory.read(Gpa::new(0x1010)), 3 << 56);
        let mut faults = FaultRing::new(&memory, 2, Gpa::new(0x2000));
        assert_eq!(faults.fqb(), 0x2000 >> 2 | 1);
        memory.write(Gpa::new(0x2020), 0x102);
        assert_eq!(faults.take(2), [[0; 4], [0x102, 0, 0, 0]]);
        assert_eq!(faults.take(0).len(), 2);
        assert_eq!(faults.head(), 0);
    }
}
