//! A VM's vIOMMU is saved, taken down and made anew from what was saved, as where its guest moves to another host.
//!
//! For that no access of the device may be under way. This hypervisor knows no way to stop an NVMe controller so that
//! it goes on later as if nothing had happened. So it takes moments in which nothing is: each access of the vIOMMU
//! while the guest does not let the device access memory; and whenever the guest's test, but not its operating system,
//! says that it waits for nothing from the disk.

use core::fmt::{self, Display};

use hypervisor::backend::Sabotage;
use hypervisor::iommu::VmId;
use riscv_viommu::{Progress, RestoreError, SnapshotError};
use spin::Mutex;

use super::{RUNS, Verdict, Vm, VmViommu};
use crate::console::say;

/// The image, of whichever VM's.
static IMAGE: Mutex<[u8; VmViommu::SNAPSHOT_BYTES]> = Mutex::new([0; VmViommu::SNAPSHOT_BYTES]);

/// What was saved and restored, for the report.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Snapshots {
    /// How often.
    pub(crate) restored: u64,
    /// How often while a fence of the guest's waited.
    pub(crate) with_a_fence: u64,
    /// How often while the device was at work.
    pub(crate) at_work: u64,
    /// Bytes of the last image.
    pub(crate) bytes: usize,
}

/// Why a vIOMMU could not be saved and restored.
#[derive(Debug)]
enum Lost {
    Save(SnapshotError),
    TakeDown,
    Make(&'static str),
    Restore(RestoreError),
    Unfinished,
}

impl Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Save(error) => write!(f, "it can not be saved: {error}"),
            Self::TakeDown => f.write_str("its device could not be taken back"),
            Self::Make(why) => f.write_str(why),
            Self::Restore(error) => write!(f, "it can not be restored: {error}"),
            Self::Unfinished => f.write_str("it is restored and does not come to rest"),
        }
    }
}

impl Vm {
    /// Whether what was asked for came about: only of the first VM, whose guest is a test of ours.
    pub(crate) fn has_its_snapshots(&self) -> bool {
        !self.blueprint.options.snapshots || self.id != VmId::ALL[0] || self.snapshots.at_work != 0
    }

    /// At an access of the vIOMMU, which may have left it something to do.
    pub(super) fn save_if_device_is_still(&mut self) {
        if self.blueprint.options.snapshots && !self.function.is_master() {
            self.save_and_restore();
        }
    }

    /// The vIOMMU goes; one that was never used takes its place.
    pub(super) fn save_and_restore(&mut self) {
        if let Err(lost) = self.try_save_and_restore() {
            say!("hypervisor: {}: its vIOMMU is lost: {lost}", self.name);
            self.conclude(Verdict::failed(format_args!("its vIOMMU is lost: {lost}")));
            self.ended = true;
        }
    }

    fn try_save_and_restore(&mut self) -> Result<(), Lost> {
        // Faults that are told later are lost.
        self.driver.lock().drain_faults();
        self.tell_faults();
        let with_a_fence = self.iommu.backend().physical.inner.is_pending();
        let at_work = self.function.is_master();

        let mut image = IMAGE.lock();
        let bytes = self.iommu.snapshot(&mut *image).map_err(Lost::Save)?;
        if !self.shut_down() {
            return Err(Lost::TakeDown);
        }
        (self.iommu, self.attachment) = self.blueprint.build().map_err(Lost::Make)?;
        self.come_to_rest()?;
        if !(at_work && self.blueprint.options.sabotage == Sabotage::LostSnapshot) {
            // What it leaves to do is in the progress of the vIOMMU.
            let _progress = self.iommu.restore(&image[..bytes]).map_err(Lost::Restore)?;
            self.come_to_rest()?;
        }

        self.snapshots.restored += 1;
        self.snapshots.with_a_fence += u64::from(with_a_fence);
        self.snapshots.at_work += u64::from(at_work);
        self.snapshots.bytes = bytes;
        Ok(())
    }

    /// The guest must not run before.
    fn come_to_rest(&mut self) -> Result<(), Lost> {
        let at_rest = (0..RUNS).any(|_| self.go_on()) && self.iommu.progress() == Progress::Idle;
        at_rest.then_some(()).ok_or(Lost::Unfinished)
    }
}
