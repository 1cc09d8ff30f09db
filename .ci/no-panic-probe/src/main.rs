//! Calls everything a host can call, with arguments and a backend of which nothing is known.

#![no_std]
#![no_main]

mod host;

use core::hint::black_box;
use core::panic::PanicInfo;

use host::{Host, any, any_u32, keep, maybe, some};
use riscv_viommu::{
    Ats, AtsRequest, Attachment, Capabilities, Config, DeviceId, DevicePolicy, Epoch, FaultHead, FaultRecord,
    FenceOutcome, Gpa, Gxl, HostFault, InvalidationCompletion, Iova, Itag, PageRequest, PageRequestPayload, Prgi,
    ProcessId, Quirks, Request, Ticket, VIommu, Width,
};
#[cfg(feature = "wrapped")]
use riscv_viommu::{
    Behind, FanOut, Parts,
    backend::{Call, Trace},
};

type Plain = VIommu<Host, 4, 4, 8, 2, 2>;
/// 16 devices fit into a page here, too.
const _: () = assert!(size_of::<VIommu<Host, 16, 1, 0, 1, 0>>() <= 4096);
#[cfg(feature = "wrapped")]
type Traced = VIommu<Trace<Host, fn(&Call<'_>)>, 4, 4>;
#[cfg(feature = "wrapped")]
type Fanned = VIommu<Parts<Host, Host, FanOut<Host, 2, 4>>, 4, 4>;

/// What the linker finds if anything here, in the crate, or below it can panic.
#[panic_handler]
fn panicked(_: &PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

fn width() -> Width {
    if maybe() { Width::U32 } else { Width::U64 }
}

fn process() -> Option<ProcessId> {
    some(ProcessId::truncate(any_u32()))
}

fn policy() -> DevicePolicy {
    let ats = match any() & 3 {
        0 => Ats::Off,
        1 => Ats::Translations,
        _ => Ats::PageRequests,
    };
    DevicePolicy::default().with_ats(ats).with_trusted_translations(maybe()).with_response_failure(maybe())
}

fn id() -> DeviceId {
    DeviceId::truncate(any_u32())
}

fn outcome() -> FenceOutcome {
    match any() & 3 {
        0 => FenceOutcome::Complete,
        1 => FenceOutcome::AtsTimeout,
        _ => FenceOutcome::Failed,
    }
}

fn config() -> Config {
    let config = if maybe() { Config::nested() } else { Config::emulated() };
    config
        .with_capabilities(Capabilities::from_bits(any()))
        .with_extended_contexts(maybe())
        .with_second_stage(maybe())
        .with_gxl(if maybe() { Gxl::One } else { Gxl::Writable })
        .with_synchronous_dma(maybe())
        .with_big_endian(maybe())
        .with_ats(maybe())
        .with_vectors(any() as u8)
        .with_pas(any() as u8)
        .with_reset_to_bare(maybe())
        .with_budget(any_u32())
        .with_mirror(maybe())
        .with_debug(maybe())
        .with_counters(any() as u8)
        .with_qos_bits(any() as u8)
}

fn request(device: Attachment) -> Request {
    let iova = Iova::new(any());
    let request = match any() & 3 {
        0 => Request::read(device, iova),
        1 => Request::write(device, iova),
        2 => Request::execute(device, iova),
        _ => Request::msi(device, iova, any_u32()),
    };
    let request = request.with_length(any());
    let request = if let Some(process) = process() { request.with_process(process, maybe()) } else { request };
    if maybe() { request.translated() } else { request }
}

fn page_request() -> PageRequest {
    let request = PageRequest::new(PageRequestPayload::from_bits(any())).with_execute(maybe()).with_last(maybe());
    if let Some(process) = process() { request.with_process(process, maybe()) } else { request }
}

fn record() -> FaultRecord {
    FaultRecord { head: FaultHead::from_bits(any()), custom: any(), iotval: any(), iotval2: any() }
}

fn quirks() -> Quirks {
    Quirks::default().with_process_valid(maybe()).with_transaction_type(maybe()).with_second_stage(maybe())
}

fn bytes() -> [u8; 16] {
    black_box([0; 16])
}

/// What it is called in the report, and the call, for a vIOMMU and an attachment that may be any.
type Probe<V> = (&'static str, fn(&mut V, Attachment));

/// Names each call after its method.
macro_rules! probes {
    ($iommu:ident, $device:ident: $($name:ident => $call:expr,)*) => {
        [$((stringify!($name), |$iommu, $device| { let _ = &$device; keep($call); }),)*]
    };
}

const PLAIN: &[Probe<Plain>] = &probes! { iommu, device:
    new => *iommu = Plain::new(Host),
    start => iommu.start(&config()),
    read => iommu.read(any(), width()),
    write => iommu.write(any(), width(), any()),
    mmio_read => iommu.mmio_read(any(), some(&mut bytes()[..]).unwrap_or_default()),
    mmio_write => iommu.mmio_write(any(), some(&bytes()[..]).unwrap_or_default()),
    run => iommu.run(),
    progress => iommu.progress(),
    health => iommu.health(),
    stats => iommu.stats(),
    last_error => iommu.last_error(),
    backend => iommu.backend(),
    backend_mut => iommu.backend_mut(),
    reset => iommu.reset(),
    shutdown => iommu.shutdown(),
    attach => iommu.attach(id(), any_u32(), policy()),
    attach_emulated => iommu.attach_emulated(id(), policy()),
    detach => iommu.detach(id()),
    resync => iommu.resync(id()),
    fence_done => iommu.fence_done(Ticket::new(any()), outcome()),
    report_fault => HostFault::from_record(&record(), quirks()).map(|fault| iommu.report_fault(device, &fault)),
    report_lost => iommu.report_lost(any()),
    report_page_request => iommu.report_page_request(device, &page_request()),
    page_request_timeout => iommu.page_request_timeout(device, Prgi::truncate(any_u32()), process()),
    page_request => iommu.page_request(device, &page_request()),
    device_reset => iommu.device_reset(id()),
    translate => iommu.translate(&request(device)),
    pieces => for piece in iommu.pieces(request(device)) { keep(piece); },
    left => {
        let mut pieces = iommu.pieces(request(device));
        keep(pieces.backend_mut());
        keep(pieces.left());
    },
    ats_translate => iommu.ats_translate(&AtsRequest::new(device, Iova::new(any()))),
    drained => iommu.drained(Epoch::new(any())),
    next_message => iommu.next_message(),
    ats_completion => iommu.ats_completion(device, InvalidationCompletion::from_bits(any())),
    ats_timeout => iommu.ats_timeout(device, Itag::truncate(any_u32())),
    add_cycles => iommu.add_cycles(any()),
    cycles_until_overflow => iommu.cycles_until_overflow(),
    invalidate_gpa => iommu.invalidate_gpa(Gpa::new(any())..=Gpa::new(any())),
    is_gpa_invalidated => iommu.is_gpa_invalidated(),
    guest_wrote => iommu.guest_wrote(Gpa::new(any())),
    host_lost_state => iommu.host_lost_state(),
    snapshot => iommu.snapshot(some(&mut bytes()[..]).unwrap_or_default()),
    restore => iommu.restore(some(&bytes()[..]).unwrap_or_default()),
};

#[cfg(feature = "wrapped")]
/// The same with several physical IOMMUs, and what there is for them.
const FANNED: &[Probe<Fanned>] = &probes! { iommu, device:
    new => *iommu = Fanned::new(Parts { memory: Host, interrupts: Host, physical: FanOut::new([Host; 2]) }),
    start => iommu.start(&config()),
    write => iommu.write(any(), width(), any()),
    attach => iommu.attach(id(), Behind { iommu: any() as usize, device: any_u32() }, policy()),
    detach => iommu.detach(id()),
    fence_done => iommu.backend_mut().physical.fence_done(any() as usize, Ticket::new(any()), outcome()),
    next_done => while let Some((ticket, outcome)) = iommu.backend_mut().physical.next_done() {
        keep(iommu.fence_done(ticket, outcome));
    },
    report_page_request => iommu.report_page_request(device, &page_request()),
    reset => iommu.reset(),
    shutdown => iommu.shutdown(),
    restore => iommu.restore(some(&bytes()[..]).unwrap_or_default()),
};

#[cfg(feature = "wrapped")]
/// The same with an observer in between.
const TRACED: &[Probe<Traced>] = &probes! { iommu, device:
    new => *iommu = Traced::new(Trace::new(Host, keep_call)),
    start => iommu.start(&config()),
    write => iommu.write(any(), width(), any()),
    attach => iommu.attach(id(), any_u32(), policy()),
    translate => iommu.translate(&request(device)),
    shutdown => iommu.shutdown(),
};

#[cfg(feature = "wrapped")]
fn keep_call(call: &Call<'_>) {
    keep(call);
}

fn all<V>(probes: &[Probe<V>], iommu: &mut V, device: Attachment) {
    for (name, call) in black_box(probes) {
        keep(*name);
        call(iommu, device);
    }
}

#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    let mut plain = Plain::new(Host);
    #[cfg(feature = "wrapped")]
    let (mut fanned, mut traced) = (
        Fanned::new(Parts { memory: Host, interrupts: Host, physical: FanOut::new([Host; 2]) }),
        Traced::new(Trace::new(Host, keep_call)),
    );
    loop {
        if let Ok(device) = plain.attach_emulated(id(), policy()) {
            all(PLAIN, &mut plain, device);
            #[cfg(feature = "wrapped")]
            {
                all(FANNED, &mut fanned, device);
                all(TRACED, &mut traced, device);
            }
        }
    }
}
