//! The VM's memory, and the DMA of emulated devices in it.

use crate::addr::Gpa;
use crate::error::MemoryFault;
use crate::id::DeviceId;
use crate::regs::Width;

use super::{Completion, Epoch, Invalidation};

/// The memory of the VM that drives this vIOMMU, and where its message-signalled interrupts go.
///
/// Addresses are guest-physical ([`Gpa`]). Whatever is not memory of this guest that a device may use is
/// [`MemoryFault::Access`], the vIOMMU's own register page and other emulated MMIO included: the crate must not be
/// entered again from here. Memory is written only for queue records, fence data, interrupts, A and D bits, and pending
/// bits of interrupt files in memory, and never from [`read`](crate::VIommu::read). A host that tracks dirty pages
/// marks what `store`, `post` and `compare_exchange` write, and what its device models write to where a
/// [`Translation`](crate::Translation) leads.
///
/// A wrapper forwards all methods, the ones with defaults too.
pub trait GuestMemory {
    /// Reads `out.len()` 64-bit words from `at`, which is a multiple of 8.
    ///
    /// Each word is one atomic load and arrives as the little-endian number it is in memory; the crate swaps where
    /// the guest chose big-endian. A command queue's words are loaded with acquire ordering, or the call is made by
    /// the vCPU that rang.
    ///
    /// # Errors
    /// [`MemoryFault`] if any of the words can not be read; `out` is then not looked at.
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault>;

    /// Writes `words` to `at`, which is a multiple of 8: all or nothing, release-ordered after earlier stores.
    ///
    /// # Errors
    /// [`MemoryFault`] if nothing was written: there is no memory, it is read-only or shared, or it can not be marked
    /// dirty where that is needed.
    fn store(&mut self, at: Gpa, words: &[u64]) -> Result<(), MemoryFault>;

    /// Writes 4 bytes to `at`, a multiple of 4: guest memory or one of **this VM's** interrupt files, nothing else.
    ///
    /// `data` is the little-endian number that belongs in memory.
    ///
    /// # Errors
    /// [`MemoryFault`] if nothing was written.
    fn post(&mut self, at: Gpa, data: u32, why: Post) -> Result<(), MemoryFault>;

    /// Whether [`compare_exchange`](Self::compare_exchange) works; read by [`start`](crate::VIommu::start), and when an
    /// emulated device is [attached](crate::VIommu::attach_emulated).
    /// Without it the guest is not offered updates of A and D bits (`AMO_HWAD`), nor memory-resident interrupt files.
    fn has_compare_exchange(&self) -> bool {
        false
    }

    /// Replaces `old` by `new` in one atomic operation of this width at `at`, which is a multiple of the width:
    /// page-table entries whose A and D bits are set, and memory-resident interrupt files.
    ///
    /// `old` and `new` are the little-endian numbers in memory. `Ok(false)`: something else is there, and nothing was
    /// written. Ordered as an acquire-release operation.
    ///
    /// # Errors
    /// [`MemoryFault`] if nothing was written because it can not be, as for [`store`](Self::store).
    fn compare_exchange(&mut self, at: Gpa, width: Width, old: u64, new: u64) -> Result<bool, MemoryFault> {
        let _ = (at, width, old, new);
        Err(MemoryFault::Access)
    }

    /// Whether the host keeps count of emulated devices' DMA, so that [`drain`](Self::drain) can be asked; read when
    /// one is [attached](crate::VIommu::attach_emulated) and before each `drain`: always the same. A host that uses a
    /// translation only under the lock it got it under has nothing to count, and says so with
    /// [`Config::with_synchronous_dma`](crate::Config::with_synchronous_dma).
    fn counts_dma(&self) -> bool {
        false
    }

    /// Whether every DMA of an emulated device that began in epoch `upto` or before is done, its stores visible to the
    /// guest.
    ///
    /// Called only where [`counts_dma`](Self::counts_dma) is true, before the guest is told that an invalidation, or a
    /// fence for reads or writes, is complete. [`Pending`](Completion::Pending) is followed by
    /// [`drained`](crate::VIommu::drained); it is the answer where this is not implemented. A DMA begins when its
    /// [`Translation`](crate::Translation) is handed out and is of that epoch; one that begins later, with a
    /// translation [the host remembered](crate::backend#a-host-that-remembers-translations), is of the epoch after the
    /// last one asked for ([`Epoch::next`]).
    fn drain(&mut self, upto: Epoch) -> Completion {
        let _ = upto;
        Completion::Pending
    }

    /// The guest has asked to forget these translations: a host that keeps translations of its own (vhost, an IOTLB
    /// of a device model) drops them before it returns, so that none is used for a DMA that begins later.
    ///
    /// It may be told more than what changed. That a device is [detached](crate::VIommu::detach) is told as an
    /// [`Invalidation::Device`]. A host that does not know the PSCID of what it keeps drops by pages alone, and
    /// everything where only a PSCID is given. The guest is told after [`drain`](Self::drain).
    fn unmapped(&mut self, what: &Invalidation<DeviceId>) {
        let _ = what;
    }

    /// Whether the host is to say when the guest stores to a page of its memory
    /// ([`guest_wrote`](crate::VIommu::guest_wrote)): the page of an entry of the guest's directory that was not valid
    /// when an attached device was looked up. Every `true` is followed by one `false`, and one page is watched once at
    /// a time. The entry is read again after the call, so that no store before it is missed.
    ///
    /// It saves time only: a host that does not implement it, or sees some stores alone, breaks nothing.
    fn watch(&mut self, page: Gpa, on: bool) {
        let _ = (page, on);
    }

    /// Stores `value` at `offset` of a page that shows the guest the registers, so that its loads need not trap.
    ///
    /// Called only with [`Config::with_mirror`](crate::Config::with_mirror). The page is a dedicated zeroed one,
    /// read-only to the guest, absent from the second stage of devices, and never read back. The store is 4 bytes wide,
    /// release-ordered after the stores to guest memory it announces; the `post` or `set_wire` that signals it comes
    /// later.
    fn publish(&mut self, offset: u16, value: u32) {
        let _ = (offset, value);
    }
}

/// What a [`GuestMemory::post`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Post {
    /// The data of an IOFENCE.C with AV.
    FenceData,
    /// An interrupt of the IOMMU itself.
    Interrupt,
    /// The notice that follows a store to a memory-resident interrupt file.
    Notice,
}
