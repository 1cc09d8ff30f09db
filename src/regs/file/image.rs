//! The register file as the page a guest sees, and from a page that nobody vouches for.

use crate::regs::{
    Cqcsr, Ddtp, DdtpMode, Fqcsr, Ipsr, Pqcsr, QueueBase, Register, RegisterSet, TrReqCtl, TrResponse, Width, low_half,
};

use super::{PAGE, Registers, Setup};

/// What a page says at this offset no vIOMMU of this setup shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Impossible {
    pub(crate) offset: u16,
    pub(crate) word: u32,
}

impl Registers {
    /// The registers as the guest reads them, 0 where there is none: there is no other state.
    pub(crate) fn page(&self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        let bytes = self.words.iter().flat_map(|word| word.to_le_bytes());
        page.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        page
    }

    /// The register file that shows this page, between two calls of the crate.
    ///
    /// # Errors
    /// The first place that says what it never can, or not together with the others.
    pub(crate) fn from_page(setup: Setup, page: &[u8; PAGE]) -> Result<Self, Impossible> {
        let mut registers = Self::nearest(setup, page);
        registers.changed = RegisterSet::ALL;
        let (words, shown) = (page.chunks_exact(4), registers.page());
        for ((word, shown), offset) in words.zip(shown.chunks_exact(4)).zip((0..).step_by(4)) {
            if word != shown {
                let word = word.try_into().map_or(0, u32::from_le_bytes);
                return Err(Impossible { offset, word });
            }
        }
        Ok(registers)
    }

    /// A register file that this setup can have, and which shows the page if any does.
    fn nearest(setup: Setup, page: &[u8; PAGE]) -> Self {
        let mut new = Self::of(setup);
        // What is software's goes in as software writes it, with everything off.
        new.put(Register::Ddtp, 0);
        let mut registers = RegisterSet::ALL;
        while let Some(register) = registers.pop() {
            let value = value(page, register);
            let _ = match register {
                Register::Cqcsr | Register::Fqcsr | Register::Pqcsr | Register::Ddtp => continue,
                // No request is under way between two calls.
                Register::TrReqCtl => {
                    let ctl = TrReqCtl::from_bits(value).with_go_busy(false);
                    new.write(register.offset().into(), register.width(), ctl.into_bits())
                }
                _ => new.write(register.offset().into(), register.width(), value),
            };
        }
        // The directory comes last: `fctl` does not change under one.
        let ddtp = Ddtp::from_bits(value(page, Register::Ddtp));
        if DdtpMode::decode(ddtp.iommu_mode()).is_some() {
            let _ = new.write(Register::Ddtp.offset().into(), Width::U64, ddtp.into_bits());
            new.put(Register::Ddtp, new.ddtp().with_busy(ddtp.busy()).into_bits());
        }
        new.set_status(page);
        new
    }

    /// What is the IOMMU's own to write.
    fn set_status(&mut self, page: &[u8; PAGE]) {
        let word = |register| low_half(value(page, register));
        let ats = self.setup.capabilities.ats();
        self.set_cqcsr(command_queue(Cqcsr::from_bits(word(Register::Cqcsr)), self.fctl().wsi()));
        self.set_fqcsr(record_queue(Fqcsr::from_bits(word(Register::Fqcsr))));
        if ats {
            self.set_pqcsr(Pqcsr::from_bits(record_queue(Fqcsr::from_bits(word(Register::Pqcsr))).into_bits()));
        }
        // An index is one of the queue's while the queue is on; then it may be that of an older, larger one.
        let index = |on: bool, base: QueueBase, index| if on { index & base.index_mask() } else { index };
        self.set_cqh(index(self.cqcsr().cqon(), self.cqb(), word(Register::Cqh)));
        self.set_fqt(index(self.fqcsr().fqon(), self.fqb(), word(Register::Fqt)));
        if ats {
            self.set_pqt(index(self.pqcsr().pqon(), self.pqb(), word(Register::Pqt)));
        }
        let ipsr = Ipsr::from_bits(word(Register::Ipsr));
        self.set_ipsr(
            Ipsr::new()
                .with_cip(ipsr.cip())
                .with_fip(ipsr.fip())
                .with_pmip(ipsr.pmip() && self.counters() != 0)
                .with_pip(ipsr.pip() && ats),
        );
        if self.setup.capabilities.dbg() {
            let response = TrResponse::from_bits(value(page, Register::TrResponse));
            let response = if response.fault() {
                TrResponse::new().with_fault(true)
            } else {
                TrResponse::new().with_pbmt(response.pbmt()).with_s(response.s()).with_ppn(response.ppn())
            };
            self.put(Register::TrResponse, response.into_bits());
        }
    }
}

/// What the page has for a register.
fn value(page: &[u8; PAGE], register: Register) -> u64 {
    let mut value = [0; 8];
    let bytes = page.iter().skip(register.offset().into()).take(register.width().bytes().into());
    value.iter_mut().zip(bytes).for_each(|(value, byte)| *value = *byte);
    u64::from_le_bytes(value)
}

/// The queue is off, on, or on until what it began is done.
fn command_queue(csr: Cqcsr, wsi: bool) -> Cqcsr {
    let on = csr.cqen() || (csr.cqon() && csr.busy());
    Cqcsr::new()
        .with_cqen(csr.cqen())
        .with_cqon(on)
        .with_busy(on && !csr.cqen())
        .with_cie(csr.cie())
        .with_cqmf(csr.cqmf())
        .with_cmd_to(csr.cmd_to())
        .with_cmd_ill(csr.cmd_ill())
        .with_fence_w_ip(csr.fence_w_ip() && wsi)
}

/// On follows enable at once.
fn record_queue(csr: Fqcsr) -> Fqcsr {
    Fqcsr::new()
        .with_fqen(csr.fqen())
        .with_fqon(csr.fqen())
        .with_fie(csr.fie())
        .with_fqmf(csr.fqmf())
        .with_fqof(csr.fqof())
}
