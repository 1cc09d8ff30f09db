//! A vIOMMU as bytes: what goes with a guest that is saved, or moved to another host.
//!
//! # Migration
//!
//! | | at the source | at the destination |
//! |---|---|---|
//! | 1 | stop the vCPUs; no access of the guest to the register page is under way | [`new`](crate::VIommu::new), [`start`](crate::VIommu::start) with the same [`Config`](crate::Config), [`attach`](crate::VIommu::attach) and [`attach_emulated`](crate::VIommu::attach_emulated) of the same `device_id`s with the same policies, run until [`Idle`](crate::Progress::Idle) |
//! | 2 | stop the devices: emulated ones end the DMA they began ([`drained`](crate::VIommu::drained) has been called for it), passthrough ones are quiesced as the host migrates such devices | guest memory is there, every byte of it |
//! | 3 | drain the physical fault and page-request queues into [`report_fault`](crate::VIommu::report_fault) and its siblings: what is told later is lost | [`restore`](crate::VIommu::restore), then [`run`](crate::VIommu::run), [`fence_done`](crate::VIommu::fence_done) and [`next_message`](crate::VIommu::next_message) until `Idle` |
//! | 4 | [`snapshot`](crate::VIommu::snapshot) | devices go on, then vCPUs |
//! | 5 | the last pages of guest memory; then [`shutdown`](crate::VIommu::shutdown), or [`run`](crate::VIommu::run) if the guest stays after all | |
//!
//! In the image are the registers, and what no register shows: a fence that waits, messages that wait for their mask,
//! invalidation requests emulated devices have not completed and messages to them that were not taken, page requests
//! of passthrough devices that the guest has not answered, and which of them have [no ATS any
//! more](crate::VIommu::device_reset). Not in it, and
//! the host's own to save: guest memory, models of devices with what they keep of ATS (translations, messages they
//! took), the [`Config`](crate::Config), which devices are attached and their policies, the interrupt controller,
//! which page requests the host gives the guest how much [time](crate::VIommu::page_request_timeout) for, and cycles
//! not yet [told](crate::VIommu::add_cycles). [`Stats`](crate::Stats) begin anew; [`Attachment`s](crate::Attachment),
//! [`Epoch`s](crate::Epoch) and [`Ticket`s](crate::Ticket) are those of the destination. Both sides count from 1: a
//! host that restores on the same machine drops what it still has of the source's, which would be taken for its own.
//!
//! The vIOMMU writes guest memory through [`GuestMemory`](crate::GuestMemory) alone: `store`, `compare_exchange` and
//! `post`. A host that copies memory while the guest runs marks pages dirty there; for A and D bits that a physical
//! IOMMU writes it needs means of its own. Nothing is written by `snapshot`.
//!
//! An image is taken as what anybody could have written: every value is checked before anything changes. Devices are
//! blocked, everything is invalidated, and each gets the context that the guest's directory has for it now. The guest
//! is promised what it was promised before, which may be less than the destination offers.
//!
//! # Format
//!
//! Numbers are little-endian; bits and bytes without a meaning are 0.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `VIOMMU` and two bytes of 0 |
//! | 8 | 4 | format: 1 |
//! | 12 | 4 | bytes of the whole image |
//! | 16 | 1 | number of interrupt vectors |
//! | 17 | 1 | `ddtp.iommu_mode` after a reset |
//! | 18 | 1 | `fctl.GXL` is 0: 0, 1: 1, the guest's to write: 2 |
//! | 19 | 1 | performance counters that were asked for |
//! | 20 | 1 | bits of QoS ids that were asked for |
//! | 21 | 1 | bit 0: a fence waits; 1: the last fault record stands for others; 2: an emulated device did not answer, and no fence has said so; 3: a passthrough device; 4: invalidations are not left out; 5: health was not good; 6: `ddtp` is busy, and its fence had been ordered |
//! | 22 | 2 | bit n: a message of vector n waits for its mask |
//! | 24 | 1 | the next `ITag` |
//! | 25 | 1 | i: invalidation requests that emulated devices have not completed |
//! | 26 | 1 | m: messages to them that were not taken |
//! | 27 | 1 | 0 |
//! | 28 | 2 | d: passthrough devices of which there is something to tell |
//! | 30 | 2 | g: page-request groups of passthrough devices that the guest has not answered |
//! | 32 | 16 | the command of the fence that waits, else 0 |
//! | 48 | 32 | the fault record that stands for others, else 0 |
//! | 80 | 1024 | the register page as the guest reads it |
//! | 1104 | 2 | which passthrough device is looked at next for a context that became valid, in the order of attaching |
//! | 1106 | 6 | 0 |
//! | 1112 | 8 i | requests: `device_id` (4), `ITag` (1), 1 if the message was taken (1), completions seen (1), 0 (1) |
//! | | 24 m | messages, oldest first: `device_id` (4), PASID (4), its payload as in the command (8), `ITag` (1), 1 for a page response (1), 1 if there is a PASID (1), 0 (5) |
//! | | 8 d | devices: `device_id` (4), ATS invalidations in a row that it did not answer (1), those that no fence has followed (1), 1 if it may keep translations (1), 0 (1) |
//! | | 16 g | groups: `device_id` (4), PASID (4), index (2), 1 if the last request has come (1), 1 if there is a PASID (1), 0 (4) |

mod ats;
mod nest;

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ats::Itags;
use crate::attachment::Attachment;
use crate::backend::{Ats, HostCapabilities};
use crate::cmdq::command::{Command, IofenceC, Legality, RawCommand};
use crate::config::mismatch;
use crate::error::{RestoreError, SnapshotError};
use crate::faultq::record::FaultRecord;
use crate::id::DeviceId;
use crate::nest::Saved;
use crate::regs::file::{PAGE, Registers, Setup};
use crate::regs::{Capabilities, Gxl};

use ats::{RawMessage, RawRequest};
use nest::{RawDevice, RawGroup};

const MAGIC: [u8; 8] = *b"VIOMMU\0\0";
const FORMAT: u32 = 1;

/// The part of an image that is always there.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    format: U32,
    length: U32,
    vectors: u8,
    reset_mode: u8,
    gxl: u8,
    counters: u8,
    qos_bits: u8,
    flags: u8,
    masked: U16,
    next_itag: u8,
    requests: u8,
    messages: u8,
    reserved: u8,
    devices: U16,
    groups: U16,
    fence: [U64; 2],
    fault: [U64; 4],
    page: [u8; PAGE],
    probed: U16,
    reserved_too: [u8; 6],
}

const _: () = assert!(size_of::<Head>() == 1112);

#[bitfield(u8)]
#[derive(PartialEq, Eq)]
struct Flags {
    fence: bool,
    fault: bool,
    ats_timed_out: bool,
    nest_timed_out: bool,
    residue: bool,
    degraded: bool,
    directory: bool,
    #[bits(access = RO)]
    rsvd0: bool,
}

/// What is in an image.
#[derive(Debug)]
pub(crate) struct State<const DEVICES: usize, const ITAGS: usize, const GROUPS: usize> {
    pub(crate) registers: Registers,
    /// Vectors with a message that waits for its mask.
    pub(crate) masked: u16,
    /// The fence that waits.
    pub(crate) fence: Option<IofenceC>,
    /// The fault record that stands for others.
    pub(crate) fault: Option<FaultRecord>,
    /// The fence that `ddtp.busy` waits for was ordered.
    pub(crate) directory: bool,
    pub(crate) ats: Itags<ITAGS>,
    pub(crate) nest: Saved<DEVICES, GROUPS>,
}

/// What the vIOMMU is that takes an image.
pub(crate) struct Taker<F, G> {
    pub(crate) setup: Setup,
    /// The hardware that walks the guest's tables.
    pub(crate) host: Option<HostCapabilities>,
    /// The emulated device of this id that takes part in ATS.
    pub(crate) emulated: F,
    /// What the passthrough device of this id was granted.
    pub(crate) granted: G,
}

impl<const DEVICES: usize, const ITAGS: usize, const GROUPS: usize> State<DEVICES, ITAGS, GROUPS> {
    /// The most bytes an image has.
    pub(crate) const MAX_BYTES: usize = length([ITAGS, ITAGS, DEVICES, GROUPS]);

    /// Writes the image; its length.
    ///
    /// # Errors
    /// [`SnapshotError::TooSmall`]; nothing was written.
    pub(crate) fn encode(&self, out: &mut [u8]) -> Result<usize, SnapshotError> {
        let Self { registers, masked, fence, fault, directory, ats, nest } = self;
        let Itags { outstanding, outbox, next, timed_out } = ats;
        let needed = length([outstanding.len(), outbox.len(), nest.devices.len(), nest.groups.len()]);
        let place = out.get_mut(..needed).ok_or(SnapshotError::TooSmall { needed })?;
        let Setup { capabilities: _, vectors, reset_mode, gxl, counters, qos_bits } = *registers.setup();
        let flags = Flags::new()
            .with_fence(fence.is_some())
            .with_fault(fault.is_some())
            .with_ats_timed_out(*timed_out)
            .with_nest_timed_out(nest.timed_out)
            .with_residue(nest.residue)
            .with_degraded(nest.degraded)
            .with_directory(*directory);
        let fence = fence.map_or([0; 2], |fence| {
            let RawCommand { low, high } = Command::IofenceC(fence).encode();
            [low, high]
        });
        let fault: [u64; 4] = zerocopy::transmute!(fault.unwrap_or_default());
        let head = Head {
            magic: MAGIC,
            format: FORMAT.into(),
            length: u32::try_from(needed).unwrap_or(u32::MAX).into(),
            vectors,
            reset_mode: reset_mode.encoding(),
            gxl: gxl_code(gxl),
            counters,
            qos_bits,
            flags: flags.into_bits(),
            masked: (*masked).into(),
            next_itag: ats::number(*next),
            requests: small_count(outstanding.len()),
            messages: small_count(outbox.len()),
            reserved: 0,
            devices: count(nest.devices.len()).into(),
            groups: count(nest.groups.len()).into(),
            fence: fence.map(U64::new),
            fault: fault.map(U64::new),
            page: registers.page(),
            probed: count(nest.probed).into(),
            reserved_too: [0; 6],
        };
        let mut rest = put(place, &head);
        for request in outstanding {
            rest = put(rest, &RawRequest::of(request));
        }
        for (to, message) in outbox {
            rest = put(rest, &RawMessage::of(*to, message));
        }
        for device in &nest.devices {
            rest = put(rest, &RawDevice::of(*device));
        }
        for group in &nest.groups {
            rest = put(rest, &RawGroup::of(group));
        }
        Ok(needed)
    }

    /// Reads an image that anybody may have written.
    pub(crate) fn decode(
        image: &[u8],
        taker: &Taker<impl Fn(DeviceId) -> Option<Attachment>, impl Fn(DeviceId) -> Option<Ats>>,
    ) -> Result<Self, RestoreError> {
        if !image.starts_with(&MAGIC) {
            return Err(RestoreError::NotAnImage);
        }
        let mut rest = image;
        let head: Head = take(&mut rest).ok_or(wrong_length(size_of::<Head>(), image))?;
        if head.format.get() != FORMAT {
            return Err(RestoreError::Version(head.format.get()));
        }
        let lists = [head.requests.into(), head.messages.into(), head.devices.get().into(), head.groups.get().into()];
        let stated = length(lists);
        if stated != image.len() || u32::try_from(stated) != Ok(head.length.get()) {
            return Err(wrong_length(stated, image));
        }
        let flags = Flags::from_bits(head.flags);
        if head.reserved != 0 || head.reserved_too != [0; 6] || flags.rsvd0() {
            return Err(RestoreError::State("reserved bits are not 0"));
        }
        let setup = head.promise(taker)?;
        let registers = Registers::from_page(setup, &head.page)
            .map_err(|impossible| RestoreError::Register { offset: impossible.offset, value: impossible.word })?;
        let fence = parked(flags.fence(), head.fence.map(U64::get), &registers)?;
        let fault = head.fault.map(U64::get);
        if !(flags.fault() && registers.fqcsr().fqon()) && (flags.fault() || fault != [0; 4]) {
            return Err(RestoreError::State("a fault record stands for others in a queue that is off"));
        }
        let directory = flags.directory();
        if directory && !registers.ddtp().busy() {
            return Err(RestoreError::State("a fence of ddtp that is not busy"));
        }
        let ats = head.ats(flags.ats_timed_out(), &mut rest, &registers, &taker.emulated)?;
        let nest = head.nest(flags, &mut rest, ITAGS, &taker.granted)?;
        // Requests and groups are of guests that have ATS; what a device keeps may be older than the guest.
        let asked = nest.devices.iter().any(|device| device.requests != 0) || !nest.groups.is_empty();
        if asked && !registers.capabilities().ats() {
            return Err(RestoreError::State("an ATS request or page request that can not be"));
        }
        let fault = flags.fault().then(|| zerocopy::transmute!(fault));
        Ok(Self { masked: head.masked.get(), fence, fault, directory, ats, nest, registers })
    }
}

impl Head {
    /// What the guest was promised, if it can be kept.
    fn promise<F, G>(&self, taker: &Taker<F, G>) -> Result<Setup, RestoreError> {
        let own = taker.setup;
        let equal = [
            (self.vectors == own.vectors, "the number of interrupt vectors"),
            (self.reset_mode == own.reset_mode.encoding(), "the mode after a reset"),
            (self.gxl == gxl_code(own.gxl), "fctl.GXL"),
            (self.counters == own.counters, "the number of performance counters"),
            (self.qos_bits == own.qos_bits, "the width of QoS ids"),
        ];
        if let Some((_, name)) = equal.into_iter().find(|(equal, _)| !equal) {
            return Err(RestoreError::Promise(name));
        }
        let (bits, _) = u64::read_from_prefix(&self.page).unwrap_or_default();
        let promised = Capabilities::from_bits(u64::from_le(bits));
        if promised.igs() != own.capabilities.igs() || promised.version() != own.capabilities.version() {
            return Err(RestoreError::Promise("capabilities.IGS or version"));
        }
        if !(32..=own.capabilities.pas()).contains(&promised.pas()) {
            return Err(RestoreError::Promise("capabilities.PAS"));
        }
        // More than is offered here (threat T18).
        let more = promised.with_pas(0).into_bits() & !own.capabilities.into_bits();
        if more != 0 {
            return Err(RestoreError::Capabilities(more));
        }
        if !is_consistent(promised) {
            return Err(RestoreError::Promise("capabilities that can not go together"));
        }
        // What hardware would do although the guest was told it does not.
        if let Some(mismatch) = taker.host.and_then(|host| mismatch(promised, &host)) {
            return Err(RestoreError::Promise(mismatch.name()));
        }
        Ok(Setup { capabilities: promised, ..own })
    }
}

/// Whether some configuration promises these together (rules REG-CAP-40, REG-CAP-47).
const fn is_consistent(promised: Capabilities) -> bool {
    let mrif = (!promised.msi_mrif() || promised.msi_flat()) && promised.amo_mrif() == promised.msi_mrif();
    promised.has_ordered_modes() && mrif && (!promised.t2gpa() || promised.ats())
}

/// The fence that waits at the head of the queue.
fn parked(waits: bool, words: [u64; 2], registers: &Registers) -> Result<Option<IofenceC>, RestoreError> {
    let csr = registers.cqcsr();
    let stopped = csr.cqmf() || csr.cmd_to() || csr.cmd_ill();
    match (waits, words) {
        // The queue goes off at once where no fence waits.
        (false, [0, 0]) if !csr.busy() => Ok(None),
        (true, [low, high]) if csr.cqon() && !stopped => {
            let raw = RawCommand { low, high };
            let legality = Legality::new(registers.capabilities(), registers.fctl().wsi(), registers.mode());
            match Command::decode(raw, &legality) {
                Ok(command @ Command::IofenceC(fence)) if command.encode() == raw => Ok(Some(fence)),
                _ => Err(RestoreError::State("what waits is no fence")),
            }
        }
        _ => Err(RestoreError::State("a fence waits in a queue that is off or stopped, or none where one has to")),
    }
}

/// Bytes of an image with so many requests, messages, devices and groups.
const fn length([requests, messages, devices, groups]: [usize; 4]) -> usize {
    size_of::<Head>()
        .saturating_add(requests.saturating_mul(size_of::<RawRequest>()))
        .saturating_add(messages.saturating_mul(size_of::<RawMessage>()))
        .saturating_add(devices.saturating_mul(size_of::<RawDevice>()))
        .saturating_add(groups.saturating_mul(size_of::<RawGroup>()))
}

const fn wrong_length(stated: usize, image: &[u8]) -> RestoreError {
    RestoreError::Length { stated, found: image.len() }
}

const fn gxl_code(gxl: Gxl) -> u8 {
    match gxl {
        Gxl::Zero => 0,
        Gxl::One => 1,
        Gxl::Writable => 2,
    }
}

/// Entries of a list of ATS: at most 32.
fn small_count(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}

/// Entries of a list of devices or groups.
fn count(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

/// A byte that is 0 or 1.
fn flag(byte: u8) -> Option<bool> {
    match byte {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// Writes a value, for which there is room; what is left.
fn put<'a>(place: &'a mut [u8], value: &(impl IntoBytes + Immutable)) -> &'a mut [u8] {
    let bytes = value.as_bytes();
    let (here, rest) = place.split_at_mut_checked(bytes.len()).unwrap_or_default();
    here.iter_mut().zip(bytes).for_each(|(here, byte)| *here = *byte);
    rest
}

/// Takes a value off the front.
fn take<T: FromBytes>(rest: &mut &[u8]) -> Option<T> {
    let (value, left) = T::read_from_prefix(rest).ok()?;
    *rest = left;
    Some(value)
}
