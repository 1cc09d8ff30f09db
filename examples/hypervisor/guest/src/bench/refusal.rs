//! What the device is refused: the faults that say so, and the addresses it must not reach.

use riscv_viommu::faultq::FaultRecord;
use riscv_viommu::regs::Register;
use riscv_viommu::{Cause, Iova, TransactionType};

use super::{Bench, DEVICE, PASSING, READ, WRITE};
use crate::csr;
use crate::imsic::IMSIC;
use crate::iommu;
use crate::memory::{PAGE, Pages, RAM, pattern};
use crate::nvme::{BLOCK, Outcome, Way};
use crate::verdict::{Why, ensure, why};

impl Bench {
    /// Writing there faults, and nothing of `victim` is changed.
    pub(crate) fn write_faults(&mut self, iova: u64, cause: Cause, victim: Pages) -> Result<(), Why> {
        victim.fill(pattern(77));
        self.deliver([iova, 0], BLOCK, 78)?;
        self.expect(cause, WRITE, iova)?;
        ensure!(victim.holds(victim.len(), pattern(77)), "a write that faulted changed {:#x}", victim.gpa());
        self.revive()
    }

    /// Reading there faults, and nothing of `victim` gets on the disk.
    pub(crate) fn read_faults(&mut self, iova: u64, cause: Cause, victim: Pages) -> Result<(), Why> {
        victim.fill(pattern(79));
        self.nvme.transfer(Way::FromMemory, PASSING, BLOCK, [iova, 0]);
        self.expect(cause, READ, iova)?;
        self.revive()?;
        let read = self.collect(BLOCK)?;
        let leaked = (0..BLOCK / 8).any(|index| read.word(index) == pattern(79)(index));
        ensure!(!leaked, "a read that faulted brought data of {:#x}", victim.gpa());
        Ok(())
    }

    /// Both.
    pub(crate) fn faults(&mut self, iova: u64, [read, write]: [Cause; 2], victim: Pages) -> Result<(), Why> {
        self.write_faults(iova, write, victim)?;
        self.read_faults(iova, read, victim)
    }

    /// The device gets at nothing: its next access, to its queue, faults, and its command is not carried out.
    pub(crate) fn blocked(&mut self, cause: Cause) -> Result<(), Why> {
        let (buffer, iova) = self.buffer();
        buffer.fill(pattern(80));
        let outcome = self.nvme.transfer(Way::ToMemory, PASSING, PAGE, iova);
        ensure!(outcome == Outcome::Fatal, "a blocked device answers {outcome:?}");
        self.expect(cause, READ, self.found_at.0 + (2 * PAGE) as u64)?;
        ensure!(buffer.holds(PAGE, pattern(80)), "a blocked device wrote");
        Ok(())
    }

    /// A fault of this kind is in the queue, perhaps several times, and no other (rules FQ-07, FQ-20 to FQ-29).
    pub(crate) fn expect(&mut self, cause: Cause, access: TransactionType, iova: u64) -> Result<(), Why> {
        let mut record = None;
        csr::within(3000, || {
            record = self.iommu.fault();
            record.is_some()
        });
        ensure!(record.is_some(), "no record of {cause:?} at {iova:#x}, {:x?}", iommu::fqcsr());
        while let Some(found) = record {
            let fits = self.is_about(&found, cause, access, iova);
            ensure!(fits, "{} instead of {cause:?} of {access:?} at {iova:#x}", shown(&found));
            record = self.later_fault();
        }
        Ok(())
    }

    fn is_about(&self, record: &FaultRecord, cause: Cause, access: TransactionType, iova: u64) -> bool {
        let FaultRecord { head, custom, iotval, iotval2 } = *record;
        head.cause() == cause.code()
            && head.ttyp() == access.code()
            && head.did() == DEVICE
            && !head.pv()
            && head.pid().get() == 0
            && !head.is_priv()
            && custom == 0
            && Iova::new(iotval).page() == Iova::new(iova).page()
            // QEMU's IOMMU repeats the address there.
            && (iotval2 == 0 || self.native)
    }

    /// Looks for a fault among others, which may be late ones of before; `false` if records were lost meanwhile.
    pub(crate) fn finds(&mut self, cause: Cause, access: TransactionType, iova: u64) -> Result<bool, Why> {
        let (mut found, mut lost) = (false, false);
        csr::within(3000, || {
            while let Some(record) = self.iommu.fault() {
                found |= self.is_about(&record, cause, access, iova);
            }
            lost = iommu::fqcsr().fqof();
            found || lost
        });
        ensure!(found || lost, "no record of {cause:?} at {iova:#x}, {:x?}", iommu::fqcsr());
        iommu::write(Register::Fqcsr, iommu::fqcsr().into_bits());
        Ok(found)
    }

    /// The fault queue stays empty.
    pub(crate) fn no_fault(&mut self) -> Result<(), Why> {
        match self.later_fault() {
            None => Ok(()),
            Some(record) => Err(why!("unexpected {}", shown(&record))),
        }
    }

    /// What the fault queue says, in words.
    pub(crate) fn next_fault(&mut self) -> Why {
        self.iommu.fault().map_or_else(|| why!("no fault"), |record| shown(&record))
    }

    /// Drops what is in the fault queue and what still comes.
    pub(crate) fn drop_faults(&mut self) {
        while self.later_fault().is_some() {}
    }

    /// The next record, if it comes within a few milliseconds.
    fn later_fault(&mut self) -> Option<FaultRecord> {
        let mut record = None;
        csr::within(2, || {
            record = self.iommu.fault();
            record.is_some()
        });
        record
    }

    /// Addresses that are no memory of the guest's, each with what is there on the host, if anything.
    pub(crate) fn outside(&self) -> impl Iterator<Item = u64> + use<> {
        let ram = RAM..self.ram_end;
        [
            0,                   // what a null pointer meets
            0x10_0000,           // the device that turns the machine off
            0x0301_0000,         // the IOMMU itself
            0x1000_0000,         // the UART
            IMSIC + PAGE as u64, // the next hart's, or the hypervisor's, interrupt file
            0x3000_8000,         // configuration space
            0x4_1230_0000,       // the device's own registers
            RAM - PAGE as u64,   // just below RAM
            ram.end,             // just above
            0x1_0000_0000,       // where the hypervisor keeps its guests
            0x1_2000_0000,
            (1 << 41) - PAGE as u64, // the last page of the guest-physical space
        ]
        .into_iter()
        .filter(move |gpa| !ram.contains(gpa))
    }
}

/// A record in words.
fn shown(record: &FaultRecord) -> Why {
    let FaultRecord { head, custom: _, iotval, iotval2 } = record;
    let (cause, ttyp, did, pv) = (head.cause(), head.ttyp(), head.did().get(), head.pv());
    why!("cause {cause}, TTYP {ttyp}, DID {did:#x}, PV {pv}, iotval {iotval:#x}, iotval2 {iotval2:#x}")
}
