//! What a host implements: three small traits, their sum [`Backend`], and the types of the orders they carry.
//!
//! | trait | what the host gives | an emulated-only host |
//! |---|---|---|
//! | [`GuestMemory`] | loads and stores in the VM's physical address space, message-signalled interrupts | implements it |
//! | [`Interrupts`] | interrupt wires, and which kinds of interrupt there are | implements it |
//! | [`PhysicalIommu`] | contexts, invalidations and fences on the physical IOMMU | takes [`NoPhysical`] |
//!
//! A type that implements all three is a [`Backend`]; [`Parts`] makes one of three separate values. A wrapper that
//! fans out or injects faults wraps one of the three, and forwards all methods of it, the ones with defaults too;
//! [`Trace`] shows the calls to any of them.
//!
//! Of [`GuestMemory`] every host has [`load`](GuestMemory::load), [`store`](GuestMemory::store) and
//! [`post`](GuestMemory::post). The other methods have defaults:
//!
//! | method | what it makes possible |
//! |---|---|
//! | [`compare_exchange`](GuestMemory::compare_exchange), [`has_compare_exchange`](GuestMemory::has_compare_exchange) | updates of A and D bits (`AMO_HWAD`) for emulated devices, interrupt files in memory (`MSI_MRIF`) |
//! | [`counts_dma`](GuestMemory::counts_dma), [`drain`](GuestMemory::drain) | DMA of emulated devices that outlives the lock its translation was asked for under |
//! | [`unmapped`](GuestMemory::unmapped) | translations kept for a second access |
//! | [`watch`](GuestMemory::watch) | devices whose context becomes valid without a command are seen at once ([`guest_wrote`](crate::VIommu::guest_wrote)) |
//! | [`publish`](GuestMemory::publish) | register reads without a trap ([`Config::with_mirror`](crate::Config::with_mirror)) |
//!
//! # Locks
//!
//! A `VIommu` is `Send` and needs one lock per instance. The order is: device model, vIOMMU, physical driver and
//! interrupt controller. The crate calls a backend while its own lock is held, so no backend method may call back
//! into the same vIOMMU; a physical fault handler copies what it drained into a queue of the host and calls
//! [`report_fault`](crate::VIommu::report_fault) later, without the driver's lock. A device model asks for translations
//! under its own lock, so the crate never calls one: what the guest has for it is taken with
//! [`next_message`](crate::VIommu::next_message).
//!
//! Whichever thread made a call goes on with [`run`](crate::VIommu::run) and takes the messages. Any of them may find
//! itself in [`post`](GuestMemory::post) or [`set_wire`](Interrupts::set_wire), a device model's too: its
//! [`translate`](crate::VIommu::translate) records a fault, of which the guest is told. What a
//! [`Translation`](crate::Translation) leads to is looked up among RAM and interrupt files only: not the register page
//! of a vIOMMU, and no device model under its own lock.
//!
//! # DMA of emulated devices
//!
//! The guest takes a page back in three steps: it changes its tables, orders an invalidation, and waits for a fence.
//! When the fence is complete no device may use the page any more. A host says in one of two ways how the crate can
//! know:
//!
//! * All DMA is done under the lock its [`Translation`](crate::Translation) was asked for under:
//!   [`Config::with_synchronous_dma`](crate::Config::with_synchronous_dma). There is never anything to wait for.
//! * DMA goes on without the lock, in another thread or another process: [`counts_dma`](GuestMemory::counts_dma) says
//!   so, [`drain`](GuestMemory::drain) is asked whether that of an [`Epoch`] is done, and the guest's fence waits until
//!   the host says so with [`drained`](crate::VIommu::drained). A DMA is counted before the vIOMMU's lock, under which
//!   its translation was asked for, is let go.
//!
//! With neither, [`attach_emulated`](crate::VIommu::attach_emulated) refuses.
//!
//! # Passthrough devices with ATS
//!
//! A device gets ATS and page requests only if [`Config::with_ats`](crate::Config::with_ats) offers them, the
//! [`DevicePolicy`](crate::DevicePolicy) of its attachment grants them, and its IOMMU has them; the guest then turns
//! them on in its context ([`Context::ats`]).
//!
//! | event | call | what follows |
//! |---|---|---|
//! | the guest unmaps | [`ats_invalidate`](PhysicalIommu::ats_invalidate), then a [`fence`](PhysicalIommu::fence) | the driver waits for the device's completion within that fence |
//! | the device does not answer | [`Completion::AtsTimeout`] or [`FenceOutcome::AtsTimeout`] for that fence | the guest's fence reports it (`cmd_to`); after three in a row the device has no ATS until [`device_reset`](crate::VIommu::device_reset) |
//! | a page request in the physical queue | [`report_page_request`](crate::VIommu::report_page_request) | as below |
//! | the guest answers | [`page_response`](PhysicalIommu::page_response) | the driver sends it |
//! | it does not answer in time | [`page_request_timeout`](crate::VIommu::page_request_timeout) | the host sends that response |
//! | the device is detached, the vIOMMU reset | [`Context::Quiesced`], `ats_invalidate` of everything, [`Context::Blocked`], each fenced | its cache is empty; where it did not answer, the host resets the function before another VM gets it |
//! | the host has reset the function (FLR) | [`device_reset`](crate::VIommu::device_reset) | what was under way is forgotten |
//!
//! ```
//! use riscv_viommu::pageq::PageRequestRecord;
//! use riscv_viommu::{
//!     Attachment, Backend, PageRequest, PageRequestOutcome, PageResponse, ResponseCode, VIommu,
//! };
//!
//! /// What the host's driver does for a function of this VM.
//! trait Function {
//!     fn respond(&mut self, response: &PageResponse);
//!     /// Puts the page into the second stage, which may fail.
//!     fn populate(&mut self, request: &PageRequest) -> ResponseCode;
//!     fn start_timer(&mut self, request: &PageRequest);
//! }
//!
//! /// A record that was drained from the physical page-request queue; whose it is the host finds by its `device_id`.
//! fn page_request<B: Backend>(
//!     iommu: &mut VIommu<B>,
//!     device: Attachment,
//!     record: &PageRequestRecord,
//!     function: &mut impl Function,
//! ) {
//!     let request = PageRequest::from_record(record);
//!     match iommu.report_page_request(device, &request) {
//!         // The guest's tables allow it: the page is missing in the second stage.
//!         PageRequestOutcome::HostPage => {
//!             let code = function.populate(&request);
//!             if request.payload.wants_response() {
//!                 function.respond(&request.response(code));
//!             }
//!         }
//!         // Only the last one of a group is answered.
//!         PageRequestOutcome::Queued if request.payload.wants_response() => function.start_timer(&request),
//!         PageRequestOutcome::Discarded(Some(response)) => function.respond(&response),
//!         _ => {}
//!     }
//! }
//! ```
//!
//! # When the guest makes an entry valid
//!
//! Hardware caches no entry with V = 0, so a guest that sets V in its directory need not say so: no invalidation
//! follows, and often no command at all for a while (Linux sets V last and sends nothing after it). A vIOMMU can not see
//! the store, and until the context has been read again the device of a nested guest stays blocked: what it does
//! meanwhile is lost. The crate reads a context again that was not valid
//!
//! | when | the host's part | what is lost until then |
//! |---|---|---|
//! | the guest names the device in an `IODIR.INVAL_DDT`, or writes `ddtp` | none | nothing: the guest waits for its fence |
//! | the guest writes `cqt` for whatever reason: one such device each time, in turn | none | DMA that begins before as many doorbells as there are such devices |
//! | the guest stores to the page of the entry | [`watch`](GuestMemory::watch), and [`guest_wrote`](crate::VIommu::guest_wrote) after the store | DMA that begins within the trap of another vCPU's store, if it is not held up |
//! | a fault of the device is reported | [`report_fault`](crate::VIommu::report_fault) | the DMA that faulted |
//! | the host says so | [`resync`](crate::VIommu::resync) | up to the host: before the guest turns bus mastering on, which it traps, nothing |
//!
//! A host of PCI devices that traps the guest's configuration accesses has the best of them for nothing: `resync`
//! when the guest sets Bus Master Enable. Without that, a host that can write-protect single pages watches; stores by
//! DMA escape it, so nothing depends on it. Any other counts on doorbells and faults, which is enough for guests that
//! map something before the first DMA. For emulated devices there is nothing to do: each access reads the directory.
//!
//! The specification lets a platform ask its guest for an invalidation after each change of V. There is no standard
//! property for that today, in a device tree or in ACPI; where guest and platform are built together, a boolean
//! property of the IOMMU's node says it, for example
//!
//! ```text
//! iommu@3010000 {
//!     compatible = "riscv,iommu";
//!     /* An entry that was not valid may have been remembered: invalidate after setting V, too. */
//!     vendor,caches-invalid-entries;
//! };
//! ```
//!
//! and a guest that knows it ends every change of V with `IODIR.INVAL_DDT` and `IOFENCE.C`.
//!
//! # A host that remembers translations
//!
//! Vhost, an IOTLB of a device model and the like use a [`Translation`](crate::Translation) for later accesses, too.
//! Such a host has [`unmapped`](GuestMemory::unmapped) besides [`counts_dma`](GuestMemory::counts_dma) and
//! [`drain`](GuestMemory::drain), and a lock of its own around what it keeps and counts. `drain` and `unmapped` take
//! it while the vIOMMU's is held; who has it does not ask for the vIOMMU's.
//!
//! * A translation is put in while the vIOMMU's lock is still held that it was asked for under. Later is too late: the
//!   `unmapped` that is about it may have been and gone.
//! * To look one up and to count the DMA that uses it is one step under the host's lock. Between two steps, `unmapped`
//!   and `drain` could both find nothing.
//! * It is kept for its device, its process or none, and its privilege; for the aligned range of
//!   [`size`](crate::Translation::size) bytes around its address; and for accesses that its
//!   [`permissions`](crate::Translation::permissions) allow. For any other access the vIOMMU is asked.
//! * Not kept is what leads to [`Target::Mrif`](crate::Target::Mrif), where each write has to be seen, and what a
//!   [`translated`](crate::Request::translated) request was told, whose address is not an IOVA.
//! * `unmapped` with [`Pages`] drops each whose range overlaps with theirs, whatever `non_leaf` says. With a PSCID it
//!   does not touch those whose [`pscid`](crate::Translation::pscid) is another or `None`. The device of an
//!   [`Invalidation::Device`] may be one that is not attached any more. To drop more is always right.
//! * DMA with a translation just handed out is of its epoch. DMA with one that was kept is of the epoch after the last
//!   one that `drain` was asked for; the first epoch is 1, and before `drain` is asked that is the one. The epoch of
//!   the translation may be over, so that no fence would wait any more; and a fence that began before the DMA must not
//!   wait for it, or it might never be done.
//!
//! ```
//! use riscv_viommu::{Completion, DeviceId, Epoch, Gpa, Invalidation, Request, Target, Translation};
//! use std::collections::BTreeMap;
//! use std::ops::RangeInclusive;
//!
//! /// What the host's lock guards.
//! struct Dma {
//!     kept: Vec<(Request, Translation)>,
//!     /// How many are under way, by epoch.
//!     running: BTreeMap<Epoch, u32>,
//!     /// The last epoch that was asked for, 0 at first, and whether the answer was `Pending`.
//!     asked: Epoch,
//!     awaited: bool,
//! }
//!
//! /// The addresses that are translated alike.
//! fn range(request: &Request, translation: &Translation) -> RangeInclusive<u64> {
//!     let within = translation.size - 1;
//!     request.iova.get() & !within..=request.iova.get() | within
//! }
//!
//! impl Dma {
//!     /// DMA with a translation just handed out begins. The vIOMMU's lock is held.
//!     fn begin(&mut self, request: &Request, translation: &Translation) {
//!         *self.running.entry(translation.epoch).or_default() += 1;
//!         if translation.target != Target::Mrif && request.access.is_untranslated() {
//!             self.kept.push((*request, *translation));
//!         }
//!     }
//!
//!     /// A write begins, if a translation for it is kept: where it goes, and its epoch.
//!     fn begin_kept(&mut self, request: &Request) -> Option<(Gpa, Epoch)> {
//!         let first = request.iova.get();
//!         let last = first.checked_add(request.length.checked_sub(1)?)?;
//!         let key = |request: &Request| (request.device, request.process, request.privileged);
//!         let (of, kept) = self.kept.iter().find(|(of, kept)| {
//!             let range = range(of, kept);
//!             key(of) == key(request) && range.contains(&first) && range.contains(&last) && kept.permissions.write
//!         })?;
//!         let at = kept.target.address()?.get().wrapping_add(first.wrapping_sub(of.iova.get()));
//!         let epoch = self.asked.next();
//!         *self.running.entry(epoch).or_default() += 1;
//!         Some((Gpa::new(at), epoch))
//!     }
//!
//!     /// DMA is done. `Some`: without the host's lock, `drained` is to be called with it.
//!     fn end(&mut self, epoch: Epoch) -> Option<Epoch> {
//!         *self.running.get_mut(&epoch)? -= 1;
//!         self.running.retain(|_, running| *running != 0);
//!         let is_drained = self.running.range(..=self.asked).next().is_none();
//!         (is_drained && std::mem::take(&mut self.awaited)).then_some(self.asked)
//!     }
//!
//!     /// For `GuestMemory::drain`.
//!     fn drain(&mut self, upto: Epoch) -> Completion {
//!         self.asked = upto;
//!         self.awaited = self.running.range(..=upto).next().is_some();
//!         if self.awaited { Completion::Pending } else { Completion::Done }
//!     }
//!
//!     /// For `GuestMemory::unmapped`.
//!     fn unmapped(&mut self, what: &Invalidation<DeviceId>) {
//!         self.kept.retain(|(of, kept)| match what {
//!             Invalidation::Device(id) => of.device.device() != *id,
//!             Invalidation::AddressSpace(pscid) => kept.pscid != Some(*pscid),
//!             Invalidation::Pages(pages) => {
//!                 let (range, last) = (range(of, kept), pages.last.get() | 0xfff);
//!                 let overlaps = *range.start() <= last && pages.first.get() <= *range.end();
//!                 !overlaps || pages.pscid.is_some_and(|pscid| kept.pscid != Some(pscid))
//!             }
//!             _ => false,
//!         });
//!     }
//! }
//! #
//! # use riscv_viommu::mock::{Memory, Wires};
//! # use riscv_viommu::{Config, DevicePolicy, InterruptKinds, Iova, NoPhysical, Pages, Parts, Pscid, VIommu};
//! # let mut dma = Dma { kept: Vec::new(), running: BTreeMap::new(), asked: Epoch::new(0), awaited: false };
//! # let host = Parts { memory: Memory::new(), interrupts: Wires::new(InterruptKinds::Msi), physical: NoPhysical };
//! # let mut iommu: VIommu<_> = VIommu::new(host);
//! # iommu.start(&Config::emulated().with_synchronous_dma(true).with_reset_to_bare(true))?;
//! # let device = iommu.attach_emulated(DeviceId::new(0x10)?, DevicePolicy::default())?;
//! # let request = |iova| Request::write(device, Iova::new(iova)).with_length(8);
//! # dma.begin(&request(0x4000_1008), &iommu.translate(&request(0x4000_1008))?);
//! # assert_eq!(dma.drain(Epoch::new(1)), Completion::Pending);
//! # assert_eq!(dma.begin_kept(&request(0x4000_0ff8)), Some((Gpa::new(0x4000_0ff8), Epoch::new(2))));
//! # assert_eq!(dma.begin_kept(&request(0x3fff_fffc)), None);
//! # assert_eq!((dma.end(Epoch::new(2)), dma.end(Epoch::new(1))), (None, Some(Epoch::new(1))));
//! # dma.unmapped(&Invalidation::Pages(Pages::new(Iova::new(0), Iova::new(u64::MAX), Some(Pscid::new(1)?))));
//! # dma.unmapped(&Invalidation::Pages(Pages::new(Iova::new(0), Iova::new(0x3fff_f000), None)));
//! # assert_eq!(dma.kept.len(), 1);
//! # dma.unmapped(&Invalidation::Pages(Pages::new(Iova::new(0x4000_0000), Iova::new(0x4000_0000), None)));
//! # assert_eq!((dma.kept.len(), dma.drain(Epoch::new(2))), (0, Completion::Done));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A complete small host
//!
//! Everything a host with emulated devices only has to write, and the first access of a device. The same with a device
//! model and a guest is `examples/dma_engine.rs`.
//!
//! ```
//! use riscv_viommu::{
//!     Cause, Config, DeviceId, DevicePolicy, Gpa, GuestMemory, InterruptKinds, Interrupts, Iova, MemoryFault,
//!     NoPhysical, Parts, Post, Request, TranslateError, VIommu, Width,
//! };
//!
//! /// Guest RAM: 64-bit words from guest-physical address 0x8000_0000 on.
//! struct Ram(Vec<u64>);
//!
//! impl Ram {
//!     /// Where `words` words at `at` lie, if this guest has memory there.
//!     fn range(&self, at: Gpa, words: usize) -> Result<std::ops::Range<usize>, MemoryFault> {
//!         let offset = at.get().checked_sub(0x8000_0000).ok_or(MemoryFault::Access)?;
//!         let first = usize::try_from(offset / 8).map_err(|_| MemoryFault::Access)?;
//!         let range = first..first.checked_add(words).ok_or(MemoryFault::Access)?;
//!         self.0.get(range.clone()).map(|_| range).ok_or(MemoryFault::Access)
//!     }
//! }
//!
//! impl GuestMemory for Ram {
//!     fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
//!         // Where vCPUs run beside this, each word is one atomic load.
//!         out.copy_from_slice(&self.0[self.range(at, out.len())?]);
//!         Ok(())
//!     }
//!
//!     fn store(&mut self, at: Gpa, words: &[u64]) -> Result<(), MemoryFault> {
//!         let range = self.range(at, words.len())?;
//!         self.0[range].copy_from_slice(words);
//!         Ok(())
//!     }
//!
//!     fn post(&mut self, at: Gpa, data: u32, _why: Post) -> Result<(), MemoryFault> {
//!         // A host with an interrupt controller looks first whether `at` is one of this VM's interrupt files; one
//!         // whose vCPUs run beside this makes one atomic 4-byte store.
//!         let word = self.range(Gpa::new(at.get() & !7), 1)?.start;
//!         let shift = (at.get() & 4) * 8;
//!         self.0[word] = self.0[word] & !(0xffff_ffff << shift) | u64::from(data) << shift;
//!         Ok(())
//!     }
//!
//!     // A host that leaves out these two does not offer its guest updates of A and D bits.
//!     fn has_compare_exchange(&self) -> bool {
//!         true
//!     }
//!
//!     fn compare_exchange(&mut self, at: Gpa, width: Width, old: u64, new: u64) -> Result<bool, MemoryFault> {
//!         // Where vCPUs run beside this, one atomic operation.
//!         let word = self.range(Gpa::new(at.get() & !7), 1)?.start;
//!         let (mask, shift) = match width {
//!             Width::U32 => (0xffff_ffff, (at.get() & 4) * 8),
//!             _ => (u64::MAX, 0),
//!         };
//!         let is_old = self.0[word] >> shift & mask == old;
//!         if is_old {
//!             self.0[word] = self.0[word] & !(mask << shift) | new << shift;
//!         }
//!         Ok(is_old)
//!     }
//! }
//!
//! struct NoWires;
//!
//! impl Interrupts for NoWires {
//!     fn kinds(&self) -> InterruptKinds {
//!         InterruptKinds::Msi
//!     }
//!
//!     fn set_wire(&mut self, _vector: u8, _level: bool) {}
//! }
//!
//! let host = Parts { memory: Ram(vec![0; 0x1000]), interrupts: NoWires, physical: NoPhysical };
//! let mut iommu: VIommu<_> = VIommu::new(host);
//! iommu.start(&Config::emulated().with_synchronous_dma(true))?;
//! assert_eq!(iommu.read(0, Width::U32) & 0xff, 0x10); // capabilities.version
//!
//! let device = iommu.attach_emulated(DeviceId::new(0x10)?, DevicePolicy::default())?;
//! let refused = iommu.translate(&Request::read(device, Iova::new(0x1000)).with_length(64));
//! assert_eq!(refused, Err(TranslateError::Fault(Cause::AllInboundDisallowed))); // the guest has not turned it on
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Two vIOMMUs, one driver
//!
//! Each vIOMMU owns a handle that names its VM; the driver behind the lock is shared. The handle is where the GSCID
//! comes in, so no order of one VM can carry another's.
//!
//! ```
//! use riscv_viommu::{
//!     Applied, Capabilities, Completion, Context, FenceScope, Gscid, HostCapabilities, Invalidation, OrderError,
//!     PhysicalIommu, SecondStageMode, Ticket,
//! };
//! use std::sync::{Arc, Mutex};
//!
//! /// The host's driver of one physical IOMMU.
//! #[derive(Default)]
//! struct Driver {
//!     log: Vec<String>,
//! }
//!
//! /// What one VM's vIOMMU owns: the driver, shared, and the VM's own GSCID.
//! struct VmHandle {
//!     driver: Arc<Mutex<Driver>>,
//!     gscid: Gscid,
//! }
//!
//! impl VmHandle {
//!     fn with(&self, order: std::fmt::Arguments<'_>) {
//!         let line = format!("gscid {}: {order}", self.gscid.get());
//!         self.driver.lock().unwrap().log.push(line);
//!     }
//! }
//!
//! impl PhysicalIommu for VmHandle {
//!     type Device = u32; // the physical device_id
//!
//!     fn capabilities(&self) -> HostCapabilities {
//!         let register = Capabilities::new().with_sv39(true).with_sv39x4(true).with_pas(56);
//!         HostCapabilities::new(register, SecondStageMode::Sv39x4).with_svnapot(true).with_coherent(true)
//!     }
//!
//!     fn adopt(&mut self, _device: u32) -> Result<HostCapabilities, OrderError> {
//!         Ok(self.capabilities())
//!     }
//!
//!     fn set_context(&mut self, device: u32, new: &Context) -> Result<Applied, OrderError> {
//!         self.with(format_args!("device {device:#x} {new:?}"));
//!         Ok(Applied::Switched)
//!     }
//!
//!     fn invalidate(&mut self, orders: &[Invalidation<u32>]) -> Result<(), OrderError> {
//!         self.with(format_args!("invalidate {orders:?}"));
//!         Ok(())
//!     }
//!
//!     fn fence(&mut self, _upto: Ticket, _scope: FenceScope) -> Result<Completion, OrderError> {
//!         Ok(Completion::Done)
//!     }
//!
//!     fn release(&mut self, _device: u32) {}
//! }
//!
//! let driver = Arc::new(Mutex::new(Driver::default()));
//! let mut first = VmHandle { driver: driver.clone(), gscid: Gscid::new(1).unwrap() };
//! let mut second = VmHandle { driver: driver.clone(), gscid: Gscid::new(2).unwrap() };
//! first.set_context(0x10, &Context::Blocked).unwrap();
//! second.invalidate(&[Invalidation::FirstStage]).unwrap();
//! assert_eq!(
//!     driver.lock().unwrap().log,
//!     ["gscid 1: device 0x10 Blocked", "gscid 2: invalidate [FirstStage]"],
//! );
//! ```

mod ats;
mod fan_out;
mod host;
mod memory;
mod order;
mod parts;
mod trace;

pub use ats::{Ats, AtsInvalidation, PageResponse, ResponseCode};
pub use fan_out::{Behind, FanOut};
pub use host::HostCapabilities;
pub use memory::{GuestMemory, Post};
pub use order::{
    Applied, Completion, Context, Epoch, FenceOutcome, FenceScope, FirstStage, Invalidation, Pages, Processes, Ticket,
};
pub use parts::{NoPhysical, Parts};
pub use trace::{Call, Trace};

use core::fmt::Debug;

use crate::error::OrderError;
use crate::regs::Igs;

/// The interrupt wires of the vIOMMU.
pub trait Interrupts {
    /// Which kinds of interrupt the platform gives this vIOMMU; read once, by [`start`](crate::VIommu::start).
    fn kinds(&self) -> InterruptKinds;

    /// Sets wire `vector`, 0 to 15, to `level`. Called on changes only, and never if there are no wires.
    fn set_wire(&mut self, vector: u8, level: bool);
}

/// Which kinds of interrupt there are; becomes `capabilities.IGS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InterruptKinds {
    /// Messages, through [`GuestMemory::post`].
    Msi,
    /// Wires, through [`Interrupts::set_wire`].
    Wired,
    /// Both, the guest chooses.
    Both,
}

impl InterruptKinds {
    pub(crate) const fn igs(self) -> Igs {
        match self {
            Self::Msi => Igs::Msi,
            Self::Wired => Igs::Wsi,
            Self::Both => Igs::Both,
        }
    }
}

/// The host's physical IOMMU, as far as it serves this VM.
///
/// Orders are typed and checked; none carries a word of the guest's commands, a GSCID or a guest device id. GSCID,
/// `iohgatp`, `msiptp` and physical ids are the host's alone: one GSCID for each vIOMMU and physical IOMMU, and one
/// second-stage root, MSI table, mask and pattern for each GSCID. A [`Device`](Self::Device) belongs to one vIOMMU.
///
/// # Errors
///
/// * [`OrderError::Busy`]: nothing was done; the crate asks again from [`run`](crate::VIommu::run). A batch that does
///   not fit the queue as a whole is Busy, not Refused.
/// * [`OrderError::Refused`]: part of it was done. A refused batch of invalidations is issued once more as
///   [`Invalidation::Everything`]; if that is refused too, every device is blocked until
///   [`reset`](crate::VIommu::reset). A refused context is followed by [`Context::Blocked`].
/// * [`OrderError::Fatal`]: the crate tries to block every device, gives no further order until it is reset, and says
///   [`Health::Failed`](crate::Health::Failed). The guest's fence stays incomplete; the host stops the VM.
pub trait PhysicalIommu {
    /// Names one physical function (or a group that shares an alias) on one physical IOMMU: a number or an index.
    type Device: Copy + Eq + Debug;

    /// What every physical IOMMU that a device of this VM may sit behind can do: the intersection.
    fn capabilities(&self) -> HostCapabilities;

    /// Takes a device into this VM's care: prepares what blocking it needs, so that [`Context::Blocked`] can not fail
    /// later, and reserves the GSCID. Answers what the IOMMU of this device can do.
    ///
    /// A device may be adopted only if nothing of its last owner is left: its faults and page requests are drained
    /// and its translations gone, also from the device's own cache.
    ///
    /// # Errors
    /// Any [`OrderError`]; the device then stays what it was.
    fn adopt(&mut self, device: Self::Device) -> Result<HostCapabilities, OrderError>;

    /// Makes `new` the context of `device`. Never waits.
    ///
    /// The old context may stay in use until the next completed fence; a mixture of both never is. The crate follows
    /// every change with [`Invalidation::Device`]. Blocking must work always (for a vanished device it is `Ok`) or
    /// be `Fatal`; [`Context::Blocked`] says what it is. A host that can not go from the old
    /// context to the new without a blocked state in between blocks, answers [`Applied::Blocked`], and is called
    /// again after an invalidation and a fence; up to four times for one context, which is then taken as refused.
    ///
    /// What a device does while it is blocked only on the way between two contexts is neither the old context's fault
    /// nor the new one's: the host masks such faults (`DTF`) or drops them, and reports those of devices whose
    /// context is [`Context::Blocked`].
    ///
    /// # Errors
    /// Any [`OrderError`].
    fn set_context(&mut self, device: Self::Device, new: &Context) -> Result<Applied, OrderError>;

    /// Drops what is cached, in order. May return before it is done: [`fence`](Self::fence) tells.
    ///
    /// The host puts its own GSCID in. It may drop more than it is asked to, within that GSCID and its devices, but
    /// not less: where the IOMMU has no range or non-leaf invalidation, it issues several commands or a wider one.
    ///
    /// # Errors
    /// Any [`OrderError`].
    fn invalidate(&mut self, orders: &[Invalidation<Self::Device>]) -> Result<(), OrderError>;

    /// Makes sure every order before it is complete, and the device accesses `scope` names are globally visible.
    ///
    /// [`Completion::Pending`] is followed by [`fence_done`](crate::VIommu::fence_done) with the ticket, which
    /// completes all before it too: a driver need remember only the newest, and each that follows an
    /// [`ats_invalidate`](Self::ats_invalidate), since a timeout counts against whom the requests right before it went
    /// to. Tickets only grow, also across resets.
    ///
    /// # Errors
    /// Any [`OrderError`].
    fn fence(&mut self, upto: Ticket, scope: FenceScope) -> Result<Completion, OrderError>;

    /// Sends an Invalidation Request to the function, after every order before it, and does not wait for its
    /// completion: the next fence does, and says [`AtsTimeout`](Completion::AtsTimeout) where the function did not
    /// answer in time.
    ///
    /// Given only for a device whose context has [`Ats`], of whom the crate has at most `ITAGS` under way; a driver
    /// whose function takes fewer at a time is [`OrderError::Busy`].
    ///
    /// # Errors
    /// Any [`OrderError`]. A request with a PASID to a function that has none finds nothing: the host drops it, which
    /// is `Ok`. Where this is not implemented it is refused: [`Health`](crate::Health) is then degraded, and the guest
    /// is told of a timeout.
    fn ats_invalidate(&mut self, device: Self::Device, what: &AtsInvalidation) -> Result<(), OrderError> {
        let _ = (device, what);
        Err(OrderError::Refused { done: 0 })
    }

    /// Answers page requests of the function. The crate answers only what
    /// [`report_page_request`](crate::VIommu::report_page_request) took, each group once.
    ///
    /// # Errors
    /// Any [`OrderError`]; a response that is refused is dropped.
    fn page_response(&mut self, device: Self::Device, response: &PageResponse) -> Result<(), OrderError> {
        let _ = (device, response);
        Err(OrderError::Refused { done: 0 })
    }

    /// Gives a device back, for another vIOMMU or the host to take. Once all are released, the GSCID is free. It is
    /// blocked, what was cached for it is dropped, and a fence has completed since.
    ///
    /// A device that had ATS was told to forget what it keeps itself: behind [`Context::Quiesced`], where its IOMMU has
    /// `T2GPA`. Where it has not, or the driver refused that or ended a fence with a timeout while the device left or
    /// before, the host resets the function before it gives it to anyone.
    fn release(&mut self, device: Self::Device);
}

/// A host: guest memory, interrupts and the physical IOMMU. Implemented for every type that implements the three.
pub trait Backend: GuestMemory + Interrupts + PhysicalIommu {}

impl<T: GuestMemory + Interrupts + PhysicalIommu> Backend for T {}
