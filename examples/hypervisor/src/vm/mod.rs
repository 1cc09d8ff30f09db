//! A VM: one hart, RAM, an interrupt file, a PCI function, and its vIOMMU. Its hart alone runs it and delivers its
//! faults.

mod create;
mod exit;
mod snapshot;
mod words;

pub(crate) use create::Shared;
pub(crate) use exit::Event;
pub(crate) use snapshot::Snapshots;

use core::fmt::{self, Write};

use heapless::{LinearMap, String, Vec};
use hypervisor::backend::VmBackend;
use hypervisor::frames::Frames;
use hypervisor::iommu::{Iommu, Mmio, VmId, WAITING_FAULTS};
use hypervisor::pci::{ConfigSpace, Function, Window};
use hypervisor::second_stage::{Hole, SecondStage};
use riscv_viommu::{Attachment, FenceOutcome, Health, HostFault, Progress, Quirks, Register, VIommu};
use spin::Mutex;

use crate::canary::Canary;
use crate::console::Line;
use crate::hart;
use create::Blueprint;

/// The driver of the IOMMU, which all VMs share.
pub(crate) type Driver = Mutex<Iommu<Mmio>>;

/// Calls of `run` before the guest goes on with work left: then the timer brings the hart back.
const RUNS: u32 = 64;
/// Ticks until then.
const SOON: u64 = 10_000;

/// Ticks for which a VM that had too many faults at a time is not heard: a second on QEMU.
const SILENCE: u64 = 10_000_000;

/// No device of this machine sends a `process_id`; QEMU 11 says `PV` all the same where a context has `PDTV`, QEMU 10
/// always.
fn quirks() -> Quirks {
    Quirks::default().with_process_valid(true)
}

/// The IOMMU of a VM.
type VmViommu = VIommu<VmBackend<Mmio>, 4>;

/// What a guest said of itself.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    Pass(String<512>),
    Fail(String<512>),
}

impl Verdict {
    /// A failure, as far as its text fits.
    fn failed(why: fmt::Arguments<'_>) -> Self {
        let mut text = String::new();
        let _ = text.write_fmt(why);
        Self::Fail(text)
    }
}

/// Exits, by what they were for.
#[derive(Debug, Default)]
pub(crate) struct Exits {
    /// Loads and stores of the vIOMMU's registers; `None` where there is no register.
    pub(crate) registers: LinearMap<Option<Register>, [u64; 2], 80>,
    /// Accesses of PCI configuration space.
    pub(crate) pci: u64,
    /// SBI calls, by extension.
    pub(crate) calls: LinearMap<&'static str, u64, 16>,
    /// Interrupts of the hypervisor.
    pub(crate) interrupts: u64,
    /// What the guest got an exception for.
    pub(crate) refused: u64,
}

impl Exits {
    /// Loads and stores of the vIOMMU's registers.
    pub(crate) fn of_the_viommu(&self) -> [u64; 2] {
        self.registers.values().fold([0, 0], |[loads, stores], of| [loads + of[0], stores + of[1]])
    }
}

/// Everything about one VM but its hart's registers.
pub(crate) struct Vm {
    pub(crate) id: VmId,
    pub(crate) name: &'static str,
    pub(crate) iommu: VmViommu,
    /// What the device's faults present.
    attachment: Attachment,
    /// What its IOMMU is made by.
    blueprint: Blueprint,
    pub(crate) snapshots: Snapshots,
    driver: &'static Driver,
    frames: &'static Mutex<Frames>,
    hart_stage: SecondStage,
    dma_stage: SecondStage,
    function: Function<Ecam>,
    /// PCI windows that are mapped.
    windows: Vec<Window, 6>,
    /// What scenarios took out of the DMA second stage.
    holes: Vec<Hole, 256>,
    line: Line,
    /// When its faults are heard again.
    silent_until: Option<u64>,
    pub(crate) canary: Canary,
    pub(crate) exits: Exits,
    pub(crate) verdict: Option<Verdict>,
    /// Faults of the device that its vIOMMU was told.
    pub(crate) faults: u64,
    pub(crate) ended: bool,
}

impl Vm {
    /// Ends every exit: faults that arrived for this VM are told, and its vIOMMU does what is left to do. What it then
    /// waits for is in its progress, which is why single answers are not looked at.
    pub(crate) fn settle(&mut self) {
        let idle = self.go_on();
        self.end_silence();
        if self.iommu.health() == Health::Failed && !self.ended {
            self.conclude(Verdict::failed(format_args!("the IOMMU failed")));
            self.ended = true;
        }
        if !idle {
            hart::come_back(SOON);
        }
        hart::set_guest_external(self.iommu.backend().interrupts.any());
    }

    /// Takes the device from the guest, for good: blocked, invalidated, fenced, released. Whether that was done.
    pub(crate) fn shut_down(&mut self) -> bool {
        // First nothing of the guest's queue is left.
        let _progress = self.iommu.reset();
        let _progress = self.iommu.shutdown();
        (0..RUNS).any(|_| self.go_on())
    }

    /// A VM that was silenced for its many faults is heard again after a while.
    fn end_silence(&mut self) {
        let mut driver = self.driver.lock();
        match (driver.is_silenced(self.id), self.silent_until) {
            (true, None) => self.silent_until = Some(hart::time() + SILENCE),
            (true, Some(until)) if hart::time() >= until => {
                driver.silence(self.id, false);
                self.silent_until = None;
            }
            (true, Some(_)) => {}
            (false, _) => return,
        }
        hart::come_back(SILENCE);
    }

    /// Whether nothing is left to do.
    fn go_on(&mut self) -> bool {
        for _ in 0..RUNS {
            self.tell_faults();
            // A fence ends when the faults of what it ended have been told.
            let _progress = match self.iommu.backend_mut().physical.inner.take_pending() {
                Some(ticket) => self.iommu.fence_done(ticket, FenceOutcome::Complete),
                None if self.iommu.progress() == Progress::Idle => return true,
                None => self.iommu.run(),
            };
        }
        false
    }

    /// Tells the vIOMMU what waits for it, at most one queue of it.
    fn tell_faults(&mut self) {
        for _ in 0..WAITING_FAULTS {
            // The driver's lock is free again when the vIOMMU, which orders from the driver, gets the fault.
            let record = self.driver.lock().next_fault(self.id);
            let Some(record) = record else { break };
            if let Some(fault) = HostFault::from_record(&record, quirks()) {
                self.faults += 1;
                let _progress = self.iommu.report_fault(self.attachment, &fault);
            }
        }
        let lost = self.driver.lock().take_lost(self.id);
        if lost != 0 {
            let _progress = self.iommu.report_lost(lost.into());
        }
    }
}

/// Configuration space of the machine's bus 0.
#[derive(Debug)]
pub(crate) struct Ecam(u64);

impl Ecam {
    fn at(&self, function: u8, offset: u16) -> u64 {
        self.0 + (u64::from(function) << 12) + u64::from(offset & 0xfff)
    }
}

impl ConfigSpace for Ecam {
    fn read(&self, function: u8, offset: u16, width: u8) -> u32 {
        let at = self.at(function, offset);
        // SAFETY: configuration space of the machine, aligned as `pci` promises.
        unsafe {
            match width {
                1 => (at as *const u8).read_volatile().into(),
                2 => (at as *const u16).read_volatile().into(),
                _ => (at as *const u32).read_volatile(),
            }
        }
    }

    fn write(&self, function: u8, offset: u16, width: u8, value: u32) {
        let at = self.at(function, offset);
        // SAFETY: as for `read`; no function can reach memory but through the IOMMU, where none has a context yet.
        unsafe {
            match width {
                1 => (at as *mut u8).write_volatile(value as u8),
                2 => (at as *mut u16).write_volatile(value as u16),
                _ => (at as *mut u32).write_volatile(value),
            }
        }
    }
}
