//! What a write makes of the registers: WARL rules, bits that clear when written, and the handshakes of the queues.

use crate::addr::{Ppn, low_bits};
use crate::regs::{
    Cqcsr, Ddtp, DdtpMode, Fctl, Fqcsr, Gxl, Icvec, Igs, Iocountinh, Iohpmcycles, Iohpmevt, IommuQosid, Ipsr, MsiAddr,
    MsiVecCtl, Pqcsr, QueueBase, Register, TrReqCtl, TrReqIova, Width, low_half,
};

use super::{Effect, Registers};

impl Registers {
    /// Applies a write and says what it sets in motion.
    pub(crate) fn write(&mut self, offset: u64, width: Width, value: u64) -> Effect {
        let Some((register, lanes)) = Register::access(offset, width) else {
            return Effect::None;
        };
        // The other lane keeps what is stored. Registers with bits that clear when written are 4 bytes wide, so for
        // them this is `value` itself.
        let value = lanes.merge(self.value(register), value);
        // 4-byte registers take the low half; the upper one is not part of the access.
        let word = low_half(value);
        match register {
            Register::Capabilities
            | Register::Cqh
            | Register::Fqt
            | Register::Pqt
            | Register::Iocountovf
            | Register::TrResponse => {}
            Register::Fctl => self.write_fctl(Fctl::from_bits(word)),
            Register::Ddtp => return self.write_ddtp(Ddtp::from_bits(value)),
            Register::Cqb => self.write_cqb(QueueBase::from_bits(value)),
            Register::Cqt => {
                self.put(register, u64::from(word & self.cqb().index_mask()));
                return Effect::Doorbell;
            }
            Register::Cqcsr => return self.write_cqcsr(Cqcsr::from_bits(word)),
            Register::Fqb => self.write_fqb(QueueBase::from_bits(value)),
            Register::Fqh => self.put(register, u64::from(word & self.fqb().index_mask())),
            Register::Fqcsr => self.write_fqcsr(Fqcsr::from_bits(word)),
            // Without ATS there is no such queue (rules REG-QB-12, REG-QI-05, REG-PQCSR-10).
            Register::Pqb | Register::Pqh | Register::Pqcsr if !self.setup.capabilities.ats() => {}
            Register::Pqb => self.write_pqb(QueueBase::from_bits(value)),
            Register::Pqh => self.put(register, u64::from(word & self.pqb().index_mask())),
            Register::Pqcsr => self.write_pqcsr(Pqcsr::from_bits(word)),
            Register::Ipsr => self.set_ipsr(Ipsr::from_bits(self.ipsr().into_bits() & !word)),
            Register::Iocountinh => self.write_iocountinh(Iocountinh::from_bits(word)),
            Register::Iohpmcycles => self.write_iohpmcycles(Iohpmcycles::from_bits(value)),
            Register::Iohpmctr(n) => self.write_iohpmctr(n, value),
            Register::Iohpmevt(n) => self.write_iohpmevt(n, Iohpmevt::from_bits(value)),
            Register::TrReqIova => self.write_tr_req_iova(TrReqIova::from_bits(value)),
            Register::TrReqCtl => return self.write_tr_req_ctl(TrReqCtl::from_bits(value)),
            Register::IommuQosid => self.write_iommu_qosid(IommuQosid::from_bits(word)),
            Register::Icvec => self.write_icvec(Icvec::from_bits(value)),
            Register::MsiAddr(_) | Register::MsiData(_) | Register::MsiVecCtl(_) => self.write_msi(register, value),
        }
        Effect::None
    }

    // UNSPECIFIED: a change while the IOMMU is not Off or a queue is on is dropped whole (rule REG-FCTL-07).
    fn write_fctl(&mut self, new: Fctl) {
        let (cq, fq, pq) = (self.cqcsr(), self.fqcsr(), self.pqcsr());
        let queue_on = cq.cqen() || cq.cqon() || fq.fqen() || fq.fqon() || pq.pqen() || pq.pqon();
        if self.mode() != DdtpMode::Off || self.ddtp().busy() || queue_on {
            return;
        }
        let mut fctl = self.fctl();
        if self.setup.capabilities.end() {
            fctl.set_be(new.be());
        }
        if self.setup.capabilities.igs() == Igs::Both {
            fctl.set_wsi(new.wsi());
        }
        if self.setup.gxl == Gxl::Writable {
            fctl.set_gxl(new.gxl());
        }
        self.put(Register::Fctl, fctl.into_bits().into());
        // Without wires the bit is reserved (rule REG-CQCSR-07).
        if !fctl.wsi() && cq.fence_w_ip() {
            self.set_cqcsr(cq.with_fence_w_ip(false));
        }
    }

    fn write_ddtp(&mut self, new: Ddtp) -> Effect {
        let old = self.mode();
        let accepted = match (old, DdtpMode::decode(new.iommu_mode())) {
            // UNSPECIFIED: an illegal mode leaves mode and PPN as they were (rule REG-DDTP-01), and so does a step from
            // one directory to another that does not pass Off or Bare (REG-DDTP-10); from a directory to Bare is
            // performed (REG-DDTP-09).
            (_, None) | (DdtpMode::Levels(_), Some(DdtpMode::Levels(_))) => false,
            _ => true,
        };
        // UNSPECIFIED: a write while busy is ignored (rule REG-DDTP-11).
        if !accepted || self.ddtp().busy() {
            return Effect::None;
        }
        let ddtp = Ddtp::new().with_iommu_mode(new.iommu_mode()).with_ppn(self.within_pas(new.ppn()));
        let is_same = ddtp.iommu_mode() == old.encoding();
        self.put(Register::Ddtp, ddtp.with_busy(!is_same).into_bits());
        if is_same { Effect::None } else { Effect::Directory }
    }

    // UNSPECIFIED: a base written while the queue is on is dropped (rule REG-QB-07).
    fn write_cqb(&mut self, new: QueueBase) {
        if !self.cqcsr().cqon() && !self.cqcsr().busy() {
            self.put(Register::Cqb, self.queue_base(new).into_bits());
            // UNSPECIFIED: the index is a valid one; 0 is what drivers count on (rule REG-QB-08).
            self.put(Register::Cqt, 0);
        }
    }

    fn write_fqb(&mut self, new: QueueBase) {
        if !self.fqcsr().fqon() && !self.fqcsr().busy() {
            self.put(Register::Fqb, self.queue_base(new).into_bits());
            // UNSPECIFIED: the fault queue's index becomes 0, too (rule REG-QB-08).
            self.put(Register::Fqh, 0);
        }
    }

    fn write_pqb(&mut self, new: QueueBase) {
        if !self.pqcsr().pqon() && !self.pqcsr().busy() {
            self.put(Register::Pqb, self.queue_base(new).into_bits());
            // UNSPECIFIED: the page-request queue's index becomes 0, too (rule REG-QB-08).
            self.put(Register::Pqh, 0);
        }
    }

    fn write_cqcsr(&mut self, new: Cqcsr) -> Effect {
        let mut csr = self.cqcsr();
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
        self.set_cqcsr(
            csr.with_cie(new.cie())
                .with_cqmf(csr.cqmf() && !new.cqmf())
                .with_cmd_to(csr.cmd_to() && !new.cmd_to())
                .with_cmd_ill(csr.cmd_ill() && !new.cmd_ill())
                .with_fence_w_ip(csr.fence_w_ip() && !new.fence_w_ip()),
        );
        Effect::Commands
    }

    fn write_fqcsr(&mut self, new: Fqcsr) {
        if !self.fqcsr().fqen() && new.fqen() {
            self.set_fqt(0);
        }
        self.set_fqcsr(record_queue(self.fqcsr(), new));
    }

    /// Bit for bit as `fqcsr` (rules REG-PQCSR-01 to REG-PQCSR-09).
    fn write_pqcsr(&mut self, new: Pqcsr) {
        if !self.pqcsr().pqen() && new.pqen() {
            self.set_pqt(0);
        }
        let of = |csr: Pqcsr| Fqcsr::from_bits(csr.into_bits());
        self.set_pqcsr(Pqcsr::from_bits(record_queue(of(self.pqcsr()), of(new)).into_bits()));
    }

    // UNSPECIFIED: all four fields are as wide as the number of vectors needs, also those of causes that are not
    // offered; Linux writes all four and reads them back (rules REG-ICVEC-03, REG-ICVEC-04).
    fn write_icvec(&mut self, new: Icvec) {
        let mask = self.setup.vectors.saturating_sub(1);
        let icvec = Icvec::new()
            .with_civ(new.civ() & mask)
            .with_fiv(new.fiv() & mask)
            .with_pmiv(new.pmiv() & mask)
            .with_piv(new.piv() & mask);
        self.put(Register::Icvec, icvec.into_bits());
    }

    /// Without MSIs all entries are read-only 0 (rule REG-MSI-08).
    // UNSPECIFIED: so are those past the number of vectors (REG-MSI-09).
    fn write_msi(&mut self, register: Register, value: u64) {
        let (vector, value) = match register {
            Register::MsiAddr(vector) => {
                (vector, MsiAddr::new().with_addr(MsiAddr::from_bits(value & self.address_mask()).addr()).into_bits())
            }
            Register::MsiVecCtl(vector) => {
                (vector, MsiVecCtl::new().with_m(MsiVecCtl::from_bits(low_half(value)).m()).into_bits().into())
            }
            Register::MsiData(vector) => (vector, value),
            _ => return,
        };
        if self.setup.capabilities.igs() != Igs::Wsi && vector < self.setup.vectors {
            self.put(register, value);
        }
    }

    // UNSPECIFIED: every size there is a number for (rule REG-QB-01).
    fn queue_base(&self, new: QueueBase) -> QueueBase {
        QueueBase::new().with_log2sz_minus_1(new.log2sz_minus_1()).with_ppn(self.within_pas(new.ppn()))
    }

    /// The page number cut to the physical address size.
    // UNSPECIFIED: bits above it are not kept, of these and of message addresses (rules REG-DDTP-04, REG-QB-03,
    // REG-MSI-03).
    fn within_pas(&self, ppn: Ppn) -> Ppn {
        Ppn::truncate(ppn.get() & (self.address_mask() >> 12))
    }

    /// The bits of an address of `PAS` bits.
    fn address_mask(&self) -> u64 {
        low_bits(self.setup.capabilities.pas())
    }
}

/// What a write of `new` makes of the control and status of a queue the IOMMU fills. Records are stored within the call
/// that reports them: on follows enable at once.
fn record_queue(old: Fqcsr, new: Fqcsr) -> Fqcsr {
    let restarted = !old.fqen() && new.fqen();
    Fqcsr::new()
        .with_fqen(new.fqen())
        .with_fqon(new.fqen())
        .with_fie(new.fie())
        .with_fqmf(old.fqmf() && !new.fqmf() && !restarted)
        .with_fqof(old.fqof() && !new.fqof() && !restarted)
}
