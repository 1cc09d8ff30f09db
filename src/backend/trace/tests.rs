//! Every method is forwarded with its arguments and its answer, and shown. The list of methods is read in the traits.

use std::borrow::ToOwned;
use std::cell::RefCell;
use std::fmt::Arguments;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use super::*;
use crate::addr::Iova;
use crate::backend::{Parts, ResponseCode};
use crate::id::{Prgi, SecondStageMode};
use crate::regs::Capabilities;

/// A host that writes down what it is asked and answers what no default does.
#[derive(Debug, Default)]
struct Recorder(RefCell<Vec<String>>);

impl Recorder {
    fn saw(&self, call: Arguments<'_>) {
        self.0.borrow_mut().push(call.to_string());
    }
}

const HOST: HostCapabilities = HostCapabilities::new(Capabilities::from_bits(0x1234), SecondStageMode::Sv48x4);

#[deny(clippy::missing_trait_methods, reason = "the test is about the defaults, too")]
impl GuestMemory for Recorder {
    fn load(&self, at: Gpa, out: &mut [u64]) -> Result<(), MemoryFault> {
        out.fill(7);
        self.saw(format_args!("load {at} {}", out.len()));
        Ok(())
    }

    fn store(&mut self, at: Gpa, words: &[u64]) -> Result<(), MemoryFault> {
        self.saw(format_args!("store {at} {words:x?}"));
        Err(MemoryFault::Corruption)
    }

    fn post(&mut self, at: Gpa, data: u32, why: Post) -> Result<(), MemoryFault> {
        self.saw(format_args!("post {at} {data:#x} {why:?}"));
        Err(MemoryFault::Access)
    }

    fn has_compare_exchange(&self) -> bool {
        self.saw(format_args!("has_compare_exchange"));
        true
    }

    fn compare_exchange(&mut self, at: Gpa, width: Width, old: u64, new: u64) -> Result<bool, MemoryFault> {
        self.saw(format_args!("compare_exchange {at} {width:?} {old:#x} {new:#x}"));
        Ok(true)
    }

    fn counts_dma(&self) -> bool {
        self.saw(format_args!("counts_dma"));
        true
    }

    fn drain(&mut self, upto: Epoch) -> Completion {
        self.saw(format_args!("drain {upto:?}"));
        Completion::Done
    }

    fn unmapped(&mut self, what: &Invalidation<DeviceId>) {
        self.saw(format_args!("unmapped {what:x?}"));
    }

    fn watch(&mut self, page: Gpa, on: bool) {
        self.saw(format_args!("watch {page} {on}"));
    }

    fn publish(&mut self, offset: u16, value: u32) {
        self.saw(format_args!("publish {offset:#x} {value:#x}"));
    }
}

#[deny(clippy::missing_trait_methods, reason = "the test is about the defaults, too")]
impl Interrupts for Recorder {
    fn kinds(&self) -> InterruptKinds {
        self.saw(format_args!("kinds"));
        InterruptKinds::Both
    }

    fn set_wire(&mut self, vector: u8, level: bool) {
        self.saw(format_args!("set_wire {vector} {level}"));
    }
}

#[deny(clippy::missing_trait_methods, reason = "the test is about the defaults, too")]
impl PhysicalIommu for Recorder {
    type Device = u32;

    fn capabilities(&self) -> HostCapabilities {
        self.saw(format_args!("capabilities"));
        HOST
    }

    fn adopt(&mut self, device: u32) -> Result<HostCapabilities, OrderError> {
        self.saw(format_args!("adopt {device:x}"));
        Ok(HOST)
    }

    fn set_context(&mut self, device: u32, new: &Context) -> Result<Applied, OrderError> {
        self.saw(format_args!("set_context {device:x} {new:?}"));
        Ok(Applied::Blocked)
    }

    fn invalidate(&mut self, orders: &[Invalidation<u32>]) -> Result<(), OrderError> {
        self.saw(format_args!("invalidate {orders:x?}"));
        Err(OrderError::Busy)
    }

    fn fence(&mut self, upto: Ticket, scope: FenceScope) -> Result<Completion, OrderError> {
        self.saw(format_args!("fence {upto:?} {scope:?}"));
        Ok(Completion::AtsTimeout)
    }

    fn ats_invalidate(&mut self, device: u32, what: &AtsInvalidation) -> Result<(), OrderError> {
        self.saw(format_args!("ats_invalidate {device:x} {what:x?}"));
        Ok(())
    }

    fn page_response(&mut self, device: u32, response: &PageResponse) -> Result<(), OrderError> {
        self.saw(format_args!("page_response {device:x} {response:x?}"));
        Ok(())
    }

    fn release(&mut self, device: u32) {
        self.saw(format_args!("release {device:x}"));
    }
}

/// The names of the methods of a trait, in the order of its source.
fn methods<'a>(source: &'a str, name: &str) -> Vec<&'a str> {
    let begins = format!("\npub trait {name} {{\n");
    let body = source.split(&begins).nth(1).unwrap().split("\n}").next().unwrap();
    body.lines().filter_map(|line| line.strip_prefix("    fn ")?.split('(').next()).collect()
}

/// The first word of each line.
fn names(lines: &[String]) -> Vec<&str> {
    lines.iter().map(|line| line.split([' ', ',']).next().unwrap()).collect()
}

const AT: Gpa = Gpa::new(0x8000_0000);
const PAGE: Invalidation<DeviceId> = Invalidation::FirstStage;

/// Calls each method of each trait once, in the order of its source, and compares the answers with those of the
/// [`Recorder`].
fn call_each<B: GuestMemory + Interrupts + PhysicalIommu<Device = u32>>(backend: &mut B) {
    let mut words = [0; 2];
    assert_eq!((backend.load(AT, &mut words), words), (Ok(()), [7, 7]));
    assert_eq!(backend.store(AT, &[0x1f]), Err(MemoryFault::Corruption));
    assert_eq!(backend.post(AT, 0x1e, Post::Notice), Err(MemoryFault::Access));
    assert!(backend.has_compare_exchange());
    assert_eq!(backend.compare_exchange(AT, Width::U32, 0x1d, 0x1c), Ok(true));
    assert!(backend.counts_dma());
    assert_eq!(backend.drain(Epoch::new(0x1b)), Completion::Done);
    backend.unmapped(&PAGE);
    backend.watch(AT, true);
    backend.publish(0x1a, 0x19);
    assert_eq!(backend.kinds(), InterruptKinds::Both);
    backend.set_wire(3, true);
    assert_eq!(backend.capabilities(), HOST);
    assert_eq!(backend.adopt(0x18), Ok(HOST));
    assert_eq!(backend.set_context(0x17, &Context::Quiesced), Ok(Applied::Blocked));
    assert_eq!(backend.invalidate(&[Invalidation::Device(0x16)]), Err(OrderError::Busy));
    assert_eq!(backend.fence(Ticket::new(0x15), FenceScope::new(true, false)), Ok(Completion::AtsTimeout));
    let what = AtsInvalidation { first: Iova::new(0x1000), last: Iova::new(0x3000), ..AtsInvalidation::ALL };
    assert_eq!(backend.ats_invalidate(0x14, &what), Ok(()));
    let response = PageResponse { process: None, group: Prgi::truncate(0x13), code: ResponseCode::InvalidRequest };
    assert_eq!(backend.page_response(0x12, &response), Ok(()));
    backend.release(0x11);
}

#[test]
fn every_method_of_each_trait_is_forwarded_and_shown() {
    let mut plain = Recorder::default();
    call_each(&mut plain);
    let shown = RefCell::new(Vec::new());
    let mut traced = Trace::new(Recorder::default(), |call| shown.borrow_mut().push(call.to_string()));
    call_each(&mut traced);
    assert_eq!(traced.inner.0, plain.0, "forwarded with the same arguments");

    let mut expected = methods(include_str!("../memory.rs"), "GuestMemory");
    expected.extend(methods(include_str!("../../backend.rs"), "Interrupts"));
    expected.extend(methods(include_str!("../../backend.rs"), "PhysicalIommu"));
    assert!(expected.len() >= 20, "{expected:?}: the search does not work");
    assert_eq!(names(&shown.borrow()), expected, "every method of the traits is shown");
    assert_eq!(names(&plain.0.borrow()), expected, "and is called by this test");
}

#[test]
fn parts_of_a_backend_forward_every_method_too() {
    let mut plain = Recorder::default();
    call_each(&mut plain);
    let mut parts =
        Parts { memory: Recorder::default(), interrupts: Recorder::default(), physical: Recorder::default() };
    call_each(&mut parts);
    let Parts { memory, interrupts, physical } = parts;
    let seen: Vec<String> = [memory, interrupts, physical].into_iter().flat_map(|part| part.0.into_inner()).collect();
    assert_eq!(seen, plain.0.into_inner());
}

#[test]
fn a_call_shows_as_one_line() {
    let shown = RefCell::new(Vec::new());
    call_each(&mut Trace::new(Recorder::default(), |call| shown.borrow_mut().push(call.to_string())));
    let expected = [
        "load 0x80000000, 2 words",
        "store 0x80000000 [1f]: guest memory data corruption",
        "post 0x80000000 0x1e (Notice): guest memory access fault",
        "has_compare_exchange = true",
        "compare_exchange 0x80000000 (U32) 0x1d to 0x1c = true",
        "counts_dma = true",
        "drain 27 = Done",
        "unmapped FirstStage",
        "watch 0x80000000 true",
        "publish 0x1a 0x19",
        "kinds = Both",
        "set_wire 3 true",
        "capabilities = 0x1234",
        "adopt 24",
        "set_context 23 Quiesced = Blocked",
        "invalidate [Device(22)]: the physical IOMMU is busy, nothing was done",
        "fence 21, reads = AtsTimeout",
        "ats_invalidate 20 AtsInvalidation { process: None, global: false, first: Iova(0x1000), last: Iova(0x3000) }",
        "page_response 18 PageResponse { process: None, group: Prgi(19), code: InvalidRequest }",
        "release 17",
    ];
    assert_eq!(*shown.borrow(), expected.map(ToOwned::to_owned));
}
