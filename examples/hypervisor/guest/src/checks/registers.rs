//! What registers keep of what is written to them.

use riscv_viommu::Ppn;
use riscv_viommu::regs::{
    Capabilities, Cqcsr, Ddtp, DdtpMode, Fctl, Fqcsr, Icvec, Igs, Ipsr, MsiAddr, QueueBase, Register,
};

use crate::bench::Bench;
use crate::csr;
use crate::iommu::{self, cqcsr, ddtp, fqcsr, ipsr, read, write};
use crate::mmio::IOMMU;
use crate::verdict::{Verdict, Why, ensure, skip};

/// To be looked at before anything is written.
pub(super) fn are_as_reset_leaves_them() -> Result<(), Why> {
    // REG-RST-01, REG-RST-03, REG-MAP-14, REG-MAP-15, REG-MAP-17.
    let mode = DdtpMode::decode(ddtp().iommu_mode());
    ensure!(matches!(mode, Some(DdtpMode::Off | DdtpMode::Bare)) && !ddtp().busy(), "{:x?}", ddtp());
    let (cq, fq) = (cqcsr(), fqcsr());
    ensure!(!cq.cqen() && !cq.cie() && !cq.cqon() && !cq.busy(), "{cq:x?}");
    ensure!(!fq.fqen() && !fq.fie() && !fq.fqon() && !fq.busy(), "{fq:x?}");
    ensure!(ipsr() == Ipsr::new(), "{:x?}", ipsr());
    Ok(())
}

/// None of the IOMMU's, but its wire shares a register of the hart with it.
pub(super) fn an_interrupt_sent_to_oneself_arrives(bench: &mut Bench) -> Verdict {
    if bench.native {
        skip!("the firmware knows this hart by another number");
    }
    csr::take_software_interrupt();
    let sent = sbi_rt::send_ipi(sbi_rt::HartMask::from_mask_base(1, 0));
    // What exits in between must not take it away.
    write(Register::Ipsr, 0_u32);
    ensure!(sent.is_ok() && csr::take_software_interrupt(), "sent {sent:?}, and it did not come");
    ensure!(!csr::take_software_interrupt(), "it came again");
    let elsewhere = sbi_rt::send_ipi(sbi_rt::HartMask::from_mask_base(1, 1));
    ensure!(elsewhere.is_err() && !csr::take_software_interrupt(), "there is no hart 1");
    Ok(())
}

pub(super) fn capabilities_hang_together_and_ignore_writes(bench: &mut Bench) -> Verdict {
    let caps = bench.iommu.capabilities;
    ensure!(caps.version() == 0x10, "version {:#x}", caps.version()); // REG-CAP-01
    let ordered = (!caps.sv57() || caps.sv48()) && (!caps.sv48() || caps.sv39());
    ensure!(ordered && caps.sv39(), "{caps:x?}"); // REG-CAP-40
    ensure!(caps.igs() != Igs::Reserved, "{caps:x?}"); // REG-CAP-42
    ensure!(caps.pas() <= 56, "{caps:x?}"); // REG-CAP-45
    let second_stage = caps.sv32x4() || caps.sv39x4() || caps.sv48x4() || caps.sv57x4();
    // What is offered under a hypervisor: no second stage, and nothing that needs one (REG-CAP-48, REG-CAP-49).
    ensure!(bench.native || !(second_stage || caps.msi_mrif() || caps.t2gpa()), "{caps:x?}");
    ensure!(bench.native || (caps.s() && caps.nl()), "{caps:x?}");
    write(Register::Capabilities, u64::MAX);
    write(Register::Capabilities, 0_u64);
    let after = Capabilities::from_bits(read(Register::Capabilities));
    ensure!(after == caps, "{after:x?} after writes"); // REG-CAP-57
    Ok(())
}

pub(super) fn registers_of_facilities_not_offered_read_0_and_ignore_writes(bench: &mut Bench) -> Verdict {
    let caps = bench.iommu.capabilities;
    let absent = |offset: usize| match offset {
        0x038..0x048 | 0x050..0x054 => !caps.ats(), // REG-MAP-11 to REG-MAP-13, REG-MAP-16
        0x058..0x258 => !caps.hpm(),                // REG-MAP-18 to REG-MAP-22
        0x258..0x270 => !caps.dbg(),                // REG-MAP-23 to REG-MAP-25
        0x270..0x274 => !caps.qosid(),              // REG-MAP-26
        0x00c..0x010 | 0x274..0x2f8 => true,        // REG-MAP-03, REG-MAP-27, REG-MAP-28
        // Where the table ends, QEMU's IOMMU ends: what follows is no device.
        0x400.. => !bench.native, // REG-MAP-33
        _ => false,
    };
    for offset in (0..0x1000).step_by(4).filter(|&offset| absent(offset)) {
        IOMMU.write32(offset, u32::MAX);
        ensure!(IOMMU.read32(offset) == 0, "{offset:#x} reads {:#x}", IOMMU.read32(offset)); // REG-ACC-11 to 13
    }
    for offset in (0..0x1000).step_by(8).filter(|&offset| absent(offset) && absent(offset + 4)) {
        IOMMU.write64(offset, u64::MAX);
        ensure!(IOMMU.read64(offset) == 0, "{offset:#x} reads {:#x}", IOMMU.read64(offset));
    }
    Ok(())
}

pub(super) fn fctl_keeps_only_what_is_offered(bench: &mut Bench) -> Verdict {
    iommu::stop()?;
    write(Register::Fctl, u32::MAX);
    let all = Fctl::from_bits(read(Register::Fctl) as u32);
    write(Register::Fctl, 0_u32);
    let none = Fctl::from_bits(read(Register::Fctl) as u32);
    let caps = bench.iommu.capabilities;
    ensure!(all.be() == none.be() || caps.end(), "{all:x?}"); // REG-FCTL-01
    let wires = match caps.igs() {
        Igs::Both => (false, true),
        Igs::Wsi => (true, true),
        _ => (false, false),
    };
    ensure!((none.wsi(), all.wsi()) == wires, "{none:x?} {all:x?}"); // REG-FCTL-02
    let known = Fctl::new().with_be(all.be()).with_wsi(all.wsi()).with_gxl(all.gxl());
    ensure!(all == known, "{all:x?}"); // REG-FCTL-04, REG-FCTL-05
    Ok(())
}

pub(super) fn ddtp_takes_defined_modes_and_keeps_the_old_one_otherwise(bench: &mut Bench) -> Verdict {
    let page = bench.pool.pages(1).ppn();
    for bits in 0..16 {
        iommu::set_ddtp(iommu::OFF)?;
        write(Register::Ddtp, Ddtp::new().with_iommu_mode(bits).with_ppn(page).into_bits());
        let (mode, expected) = (ddtp().iommu_mode(), DdtpMode::decode(bits).map_or(0, DdtpMode::encoding));
        ensure!(mode == expected, "mode {bits} reads back as {mode}"); // REG-DDTP-01
        ensure!(expected == 0 || ddtp().ppn() == page, "mode {bits} reads back page {}", ddtp().ppn()); // REG-DDTP-04
    }
    // In halves, the one with the mode last; reserved bits read 0 (REG-DDTP-15, REG-DDTP-03, REG-DDTP-05).
    iommu::set_ddtp(iommu::OFF)?;
    let offset = usize::from(Register::Ddtp.offset());
    let all_levels = Ddtp::new().with_iommu_mode(DdtpMode::Levels(1).encoding()).with_ppn(page);
    IOMMU.write32(offset + 4, (all_levels.into_bits() >> 32) as u32 | 0xffc0_0000);
    IOMMU.write32(offset, all_levels.into_bits() as u32 | 0x3e0);
    ensure!(ddtp() == all_levels, "{:x?} instead of {all_levels:x?}", ddtp());
    Ok(())
}

pub(super) fn queue_bases_keep_size_and_page_and_zero_the_index(bench: &mut Bench) -> Verdict {
    iommu::stop()?;
    let page = bench.pool.pages(1).ppn();
    for (base, index) in [(Register::Cqb, Register::Cqt), (Register::Fqb, Register::Fqh)] {
        for log2 in [0, 1, 7, 8, 14] {
            let value = QueueBase::new().with_log2sz_minus_1(log2).with_ppn(page);
            write(base, value.into_bits());
            ensure!(read(base) == value.into_bits(), "{base}: {:#x} of {value:x?}", read(base)); // REG-QB-01, REG-QB-03
            write(index, 1_u32);
            write(base, value.into_bits());
            // REG-QB-08.
            ensure!(read(index) == 0 || bench.excused(), "{index} is {} after a write of {base}", read(index));
        }
        write(base, u64::MAX);
        let all = QueueBase::from_bits(read(base));
        let known = QueueBase::new().with_log2sz_minus_1(all.log2sz_minus_1()).with_ppn(all.ppn());
        ensure!(all == known, "{base}: {all:x?}"); // REG-QB-02, REG-QB-04
        let offset = usize::from(base.offset());
        let value = QueueBase::new().with_log2sz_minus_1(3).with_ppn(Ppn::truncate(0x12_3456_789a));
        IOMMU.write32(offset + 4, (value.into_bits() >> 32) as u32);
        IOMMU.write32(offset, value.into_bits() as u32);
        // Bits past the physical width need not stay.
        ensure!(read(base) as u32 == value.into_bits() as u32, "{base}: {:#x}", read(base)); // REG-ACC-03, REG-ACC-07
    }
    Ok(())
}

pub(super) fn indices_keep_only_the_bits_of_the_queue(bench: &mut Bench) -> Verdict {
    if bench.native {
        skip!("QEMU's IOMMU keeps no index while the queue is off");
    }
    iommu::stop()?;
    let page = bench.pool.pages(1).ppn();
    for (base, index) in [(Register::Cqb, Register::Cqt), (Register::Fqb, Register::Fqh)] {
        for log2 in 1..8 {
            write(base, QueueBase::new().with_log2sz_minus_1(log2 - 1).with_ppn(page).into_bits());
            write(index, u32::MAX);
            let expected = (1 << log2) - 1;
            // REG-QI-02, REG-QI-03.
            ensure!(read(index) == expected, "{index} is {:#x} with {expected:#x}", read(index));
        }
    }
    // The IOMMU's own indices are not software's (REG-QI-01, REG-QI-04).
    for register in [Register::Cqh, Register::Fqt] {
        let before = read(register);
        write(register, 0x15_u32);
        ensure!(read(register) == before, "{register} was written");
    }
    Ok(())
}

pub(super) fn icvec_shows_a_power_of_two_of_vectors(bench: &mut Bench) -> Verdict {
    write(Register::Icvec, u64::MAX);
    let all = Icvec::from_bits(read(Register::Icvec));
    let vectors = all.civ() + 1;
    ensure!(vectors.is_power_of_two() && all.fiv() == all.civ(), "{all:x?}"); // REG-ICVEC-07
    // The device tree names four interrupts.
    ensure!(bench.native || vectors == 4, "{all:x?}");
    let known = Icvec::new().with_civ(all.civ()).with_fiv(all.fiv()).with_pmiv(all.pmiv()).with_piv(all.piv());
    ensure!(all == known, "{all:x?}"); // REG-ICVEC-05, REG-ICVEC-06
    Ok(())
}

pub(super) fn the_message_table_keeps_address_data_and_mask(bench: &mut Bench) -> Verdict {
    let page = bench.pool.pages(1);
    for vector in 0..4 {
        write(Register::MsiVecCtl(vector), u32::MAX);
        let masked = read(Register::MsiVecCtl(vector)); // REG-MSI-06, REG-MSI-07
        ensure!(masked == 1 || bench.excused(), "vector {vector}: {masked:#x}");
        let data = 0xdead_0000 + u32::from(vector);
        write(Register::MsiData(vector), data);
        write(Register::MsiAddr(vector), page.at(0x123).get() | 0xff << 56);
        ensure!(read(Register::MsiData(vector)) == u64::from(data), "vector {vector}"); // REG-MSI-05
        let address = MsiAddr::from_bits(read(Register::MsiAddr(vector)));
        let expected = MsiAddr::new().with_addr(page.at(0x120).get() >> 2);
        // REG-MSI-02 to REG-MSI-04.
        ensure!(address == expected || bench.excused(), "vector {vector}: {address:x?}");
        write(Register::MsiVecCtl(vector), 0_u32);
        ensure!(read(Register::MsiVecCtl(vector)) == 0, "vector {vector}");
    }
    let status = (Cqcsr::new().with_cqen(true).with_cqon(true), Fqcsr::new().with_fqen(true).with_fqon(true));
    ensure!((cqcsr(), fqcsr()) == status, "{:x?} {:x?}", cqcsr(), fqcsr());
    Ok(())
}
