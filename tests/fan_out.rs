//! Two physical IOMMUs under one vIOMMU: what reaches which of them, and when a fence of the guest is complete.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a script that can not be set up fails"
)]

use riscv_viommu::mock::guest::{AtsCommand, CommandRing, Iofence, Iotinval, inval_ddt, register};
use riscv_viommu::mock::tables::{Directory, FirstStageTable, PageSize, pte, tc};
use riscv_viommu::mock::{Access, Hardware, Memory, Order, Physical, PhysicalDevice, Wires};
use riscv_viommu::{
    Ats, AttachError, Behind, Capabilities, Completion, Config, Context, DeviceId, DevicePolicy, FanOut, FenceOutcome,
    FenceScope, FirstStageMode, Gpa, Gscid, Health, HostCapabilities, InterruptKinds, Invalidation, Iova, OrderError,
    Parts, PhysicalIommu, Progress, Pscid, SecondStageMode, Ticket, VIommu, Width,
};

const IOVA: Iova = Iova::new(0x4020_1000);
const PAGE: Gpa = Gpa::new(0x9000_a000);
const FENCE: Iofence = Iofence::PLAIN.accesses(true, true);

type Host = Parts<Memory, Wires, FanOut<Physical, 2>>;

/// A VM with devices behind two IOMMUs; device `n` of each is `PhysicalDevice(n)`.
struct Rig<const ITAGS: usize = 2> {
    iommu: VIommu<Host, 16, 16, 0, ITAGS>,
    hosts: [Physical; 2],
    directory: Directory,
    commands: CommandRing,
    table: FirstStageTable,
}

fn id(n: u32) -> DeviceId {
    DeviceId::new(8 + n).unwrap()
}

const fn behind(iommu: usize, n: u32) -> Behind<PhysicalDevice> {
    Behind { iommu, device: PhysicalDevice(n) }
}

fn page() -> [u64; 2] {
    Iotinval::ALL.address(IOVA).pscid(Pscid::new(1).unwrap()).vma()
}

impl Rig {
    fn new() -> Self {
        Self::on(&[Hardware::default(), Hardware::default()], &Config::nested())
    }
}

impl<const ITAGS: usize> Rig<ITAGS> {
    fn on(hardware: &[Hardware; 2], config: &Config) -> Self {
        Self::of(hardware, 1, config)
    }

    /// The VM with this GSCID, ddtp in force, nothing attached.
    fn of(hardware: &[Hardware; 2], gscid: u32, config: &Config) -> Self {
        let memory = Memory::new();
        let hosts = hardware.each_ref().map(|one| one.vm(Gscid::new(gscid).unwrap(), &memory));
        let physical = FanOut::new(hosts.clone());
        let parts = Parts { memory: memory.clone(), interrupts: Wires::new(InterruptKinds::Msi), physical };
        let mut commands = CommandRing::new(&memory, 8, Gpa::new(0x7000_0000));
        let mut iommu = VIommu::new(parts);
        iommu.start(config).unwrap();
        let _ = iommu.write(register::CQB, Width::U64, commands.cqb());
        let _ = iommu.write(register::CQCSR, Width::U32, register::ENABLE);
        let directory = Directory::new(&memory, 3, false);
        let _ = iommu.write(register::DDTP, Width::U64, directory.ddtp());
        let table = FirstStageTable::new(&memory, FirstStageMode::Sv39);
        table.map(IOVA, PAGE, PageSize::K4, pte::RW);
        Self { iommu, hosts, directory, commands, table }
    }

    /// With a device behind each IOMMU, ids 0 and 1, that translate; all orders taken.
    fn translating(mut self) -> Self {
        for n in 0..2 {
            self.enter(n, usize::try_from(n).unwrap());
        }
        self.take();
        self
    }

    /// Attaches the device of IOMMU `iommu` as `n`, with a context.
    fn enter(&mut self, n: u32, iommu: usize) {
        self.directory.set(id(n), &self.table.context(Pscid::new(1).unwrap()));
        let attached = self.iommu.attach(id(n), behind(iommu, n), DevicePolicy::default()).unwrap();
        assert_eq!(attached.progress, Progress::Idle);
        assert!(self.fence());
    }

    fn ring(&mut self, commands: impl IntoIterator<Item = [u64; 2]>) -> bool {
        let tail = self.commands.push_all(commands);
        let _ = self.iommu.write(register::CQT, Width::U32, tail);
        self.passed()
    }

    fn fence(&mut self) -> bool {
        self.ring([FENCE.encode()])
    }

    fn passed(&self) -> bool {
        self.iommu.read(register::CQH, Width::U32) == u64::from(self.commands.tail())
    }

    /// The orders of each IOMMU since they were last taken.
    fn take(&self) -> [Vec<Order>; 2] {
        self.hosts.each_ref().map(Physical::take_orders)
    }

    /// What each was told to forget, batches put together.
    fn forgotten(&self) -> [Vec<Invalidation<PhysicalDevice>>; 2] {
        self.take().map(|orders| {
            let of = |order| if let Order::Invalidate(orders, Ok(())) = order { orders } else { vec![] };
            orders.into_iter().flat_map(of).collect()
        })
    }

    /// IOMMU `index` completes its fences, and its driver says so.
    fn complete(&mut self, index: usize) {
        for ticket in self.hosts[index].complete_all() {
            let outcome = self.hosts[index].outcome(ticket);
            self.iommu.backend_mut().physical.fence_done(index, ticket, outcome);
        }
        while let Some((ticket, outcome)) = self.iommu.backend_mut().physical.next_done() {
            let _ = self.iommu.fence_done(ticket, outcome);
        }
    }

    /// The fences that IOMMU `index` was given and called pending, since orders were last taken.
    fn pending(&self, index: usize) -> Vec<Ticket> {
        let of = |order| if let Order::Fence(ticket, _, Ok(Completion::Pending)) = order { Some(ticket) } else { None };
        self.hosts[index].take_orders().into_iter().filter_map(of).collect()
    }

    /// The driver of IOMMU `index` says that this fence is complete there.
    fn tell(&mut self, index: usize, ticket: Ticket) {
        self.iommu.backend_mut().physical.fence_done(index, ticket, FenceOutcome::Complete);
        while let Some((ticket, outcome)) = self.iommu.backend_mut().physical.next_done() {
            let _ = self.iommu.fence_done(ticket, outcome);
        }
    }

    fn dma(&self, iommu: usize, n: u32) -> (Access, bool) {
        let dma = self.hosts[iommu].hardware().dma(PhysicalDevice(n), None, IOVA, false);
        (dma.access, dma.stale)
    }
}

#[test]
fn an_invalidation_reaches_the_iommus_that_may_have_a_translation_and_no_other() {
    let mut rig = Rig::new();
    assert!(rig.ring([page(), FENCE.encode()]));
    assert_eq!(rig.forgotten(), [vec![], vec![]], "T35: nothing was ever translated");
    rig.enter(0, 0);
    rig.take();
    assert!(rig.ring([page(), FENCE.encode()]));
    let forgotten = rig.forgotten();
    assert!(matches!(forgotten[0][..], [Invalidation::Pages(pages)] if pages.first == IOVA), "VC-08: {forgotten:?}");
    assert_eq!(forgotten[1], [], "T35: it has no device of this VM");
    rig.enter(1, 1);
    rig.take();
    assert!(rig.ring([page(), FENCE.encode()]));
    assert_eq!(rig.forgotten().map(|orders| orders.len()), [1, 1], "VC-08");

    // The device behind the first has no context any more; the guest's fence orders nothing.
    rig.directory.invalidate(id(0));
    assert!(rig.ring([inval_ddt(Some(id(0))), Iofence::PLAIN.encode()]));
    rig.take();
    assert!(rig.ring([page(), FENCE.encode()]));
    assert_eq!(rig.forgotten().map(|orders| orders.len()), [1, 1], "T35: no fence for reads and writes has been");
    assert!(rig.ring([page(), FENCE.encode()]));
    assert_eq!(rig.forgotten().map(|orders| orders.len()), [0, 1], "T35: it is clean");

    // Back again.
    rig.directory.set(id(0), &rig.table.context(Pscid::new(1).unwrap()));
    assert!(rig.ring([inval_ddt(Some(id(0))), FENCE.encode()]));
    rig.take();
    assert!(rig.ring([page(), FENCE.encode()]));
    assert_eq!(rig.forgotten().map(|orders| orders.len()), [1, 1], "T35");
}

#[test]
fn what_a_device_order_stands_for_reaches_the_other_iommu_too() {
    let mut rig = Rig::new().translating();
    assert_eq!((rig.dma(0, 0).0, rig.dma(1, 1).0), (Access::Translated(PAGE), Access::Translated(PAGE)));
    rig.table.unmap(IOVA, PageSize::K4);
    // One batch: the order for the device behind the first IOMMU covers the page.
    assert!(rig.ring([page(), inval_ddt(Some(id(0))), FENCE.encode()]));
    let forgotten = rig.forgotten();
    assert_eq!(forgotten[0], [Invalidation::Device(PhysicalDevice(0))]);
    assert_eq!(forgotten[1], [Invalidation::FirstStage], "VC-08, VC-25");
    for (iommu, n) in [(0, 0), (1, 1)] {
        let (access, stale) = rig.dma(iommu, n);
        assert!(matches!(access, Access::Faulted(_)) && !stale, "VC-40: IOMMU {iommu}: {access:?}");
    }
}

#[test]
fn a_fence_waits_for_both_in_either_order() {
    for first in [0, 1] {
        let mut rig = Rig::new().translating();
        for host in &rig.hosts {
            host.set_pending(true);
        }
        assert!(!rig.ring([page(), FENCE.encode()]), "VC-40");
        rig.complete(first);
        assert!(!rig.passed(), "VC-08, FEN-01: IOMMU {first} alone");
        rig.complete(1 - first);
        assert!(rig.passed(), "VC-08: both");
    }
}

#[test]
fn a_fence_that_one_completes_at_once_waits_for_the_other() {
    for slow in [0, 1] {
        let mut rig = Rig::new().translating();
        rig.hosts[slow].set_pending(true);
        assert!(!rig.ring([page(), FENCE.encode()]), "VC-08");
        rig.complete(1 - slow);
        assert!(!rig.passed(), "VC-08: the other is not done");
        rig.complete(slow);
        assert!(rig.passed(), "VC-08");
    }
}

#[test]
fn an_iommu_without_anything_of_the_vm_is_not_asked() {
    let mut rig = Rig::new();
    rig.enter(0, 0);
    rig.hosts[1].set_pending(true);
    rig.take();
    assert!(rig.ring([page(), FENCE.encode()]));
    let [first, second] = rig.take();
    assert_eq!((first.len(), second.len()), (2, 0), "VC-08: {second:?}");
}

#[test]
fn a_busy_or_refusing_iommu_leaves_nothing_undone_at_the_other() {
    for answer in [OrderError::Busy, OrderError::Refused { done: 0 }] {
        for one in [0, 1] {
            let mut rig = Rig::new().translating();
            let _ = (rig.dma(0, 0), rig.dma(1, 1));
            rig.table.unmap(IOVA, PageSize::K4);
            rig.hosts[one].answer_next_invalidate(Err(answer));
            let done = rig.ring([page(), FENCE.encode()]);
            assert_eq!(done, answer != OrderError::Busy, "{answer:?}");
            let _ = rig.iommu.run();
            assert!(rig.passed());
            for (iommu, n) in [(0, 0), (1, 1)] {
                let (access, stale) = rig.dma(iommu, n);
                assert!(matches!(access, Access::Faulted(_)) && !stale, "T21: {answer:?} of {one}: IOMMU {iommu}");
            }
            assert_eq!(rig.iommu.health(), Health::Good);
        }
    }
}

#[test]
fn a_busy_fence_is_issued_again_to_both() {
    for one in [0, 1] {
        let mut rig = Rig::new().translating();
        rig.hosts[one].answer_next_fence(Err(OrderError::Busy));
        assert!(!rig.ring([page(), FENCE.encode()]), "VC-08");
        let _ = rig.iommu.run();
        assert!(rig.passed(), "VC-08");
        assert!(rig.iommu.backend_mut().physical.next_done().is_none(), "nothing is told that was answered");
    }
}

#[test]
fn a_failed_iommu_fails_the_vm() {
    let mut rig = Rig::new().translating();
    for host in &rig.hosts {
        host.set_pending(true);
    }
    assert!(!rig.fence());
    rig.iommu.backend_mut().physical.fence_done(1, Ticket::new(u64::MAX), FenceOutcome::Failed);
    assert!(rig.iommu.backend_mut().physical.next_done().is_none(), "no such ticket");
    let ticket = *rig.hosts[1].complete_all().last().unwrap();
    rig.iommu.backend_mut().physical.fence_done(1, ticket, FenceOutcome::Failed);
    let (ticket, outcome) = rig.iommu.backend_mut().physical.next_done().unwrap();
    let _ = rig.iommu.fence_done(ticket, outcome);
    assert_eq!((outcome, rig.iommu.health(), rig.passed()), (FenceOutcome::Failed, Health::Failed, false));
}

#[test]
fn an_address_that_was_unmapped_while_detached_is_not_found_after_any_re_attach() {
    let hardware = [Hardware::default(), Hardware::default()];
    let mut rig: Rig = Rig::of(&hardware, 1, &Config::nested()).translating();
    let mut other: Rig = Rig::of(&hardware, 2, &Config::nested());
    assert_eq!(rig.dma(0, 0), (Access::Translated(PAGE), false));
    for round in 0..3 {
        assert_eq!(rig.iommu.detach(id(round)), Ok(Progress::Idle));
        rig.table.unmap(IOVA, PageSize::K4);
        // The guest says so while the device is away, or has nothing left to say it for.
        assert!(rig.ring([page(), FENCE.encode()]));
        // Under its own id, another one, and then with another vIOMMU in between.
        if round == 2 {
            other.directory.set(id(0), &other.table.context(Pscid::new(1).unwrap()));
            let _ = other.iommu.attach(id(0), behind(0, 0), DevicePolicy::default()).unwrap();
            assert_eq!(other.dma(0, 0), (Access::Translated(PAGE), false), "its own tables");
            assert_eq!(other.iommu.detach(id(0)), Ok(Progress::Idle));
        }
        let next = round + 1;
        rig.directory.invalidate(id(1));
        rig.directory.set(id(next), &rig.table.context(Pscid::new(1).unwrap()));
        if next == 1 {
            assert_eq!(rig.iommu.detach(id(1)), Ok(Progress::Idle));
        }
        let attached = rig.iommu.attach(id(next), behind(0, 0), DevicePolicy::default()).unwrap();
        assert_eq!(attached.progress, Progress::Idle);
        let (access, stale) = rig.dma(0, 0);
        assert!(matches!(access, Access::Faulted(_)) && !stale, "T35, T36: round {round}: {access:?}");
        rig.table.map(IOVA, PAGE, PageSize::K4, pte::RW);
        assert!(rig.ring([page(), FENCE.encode()]));
        assert_eq!(rig.dma(0, 0), (Access::Translated(PAGE), false));
    }
}

#[test]
fn a_device_that_does_not_answer_is_told_of_also_if_the_other_iommu_is_done_later() {
    for slow in [None, Some(0), Some(1)] {
        let mut rig: Rig = Rig::on(&[Hardware::default(), Hardware::default()], &Config::nested().with_ats(true));
        let mut context = rig.table.context(Pscid::new(1).unwrap());
        context[0] |= tc::EN_ATS;
        for n in 0..2 {
            rig.directory.set(id(n), &context);
            let policy = DevicePolicy::default().with_ats(Ats::Translations);
            let _ = rig.iommu.attach(id(n), behind(usize::try_from(n).unwrap(), n), policy).unwrap();
        }
        assert!(rig.fence());
        let _ = rig.hosts[0].hardware().dma_through_atc(PhysicalDevice(0), None, IOVA, false);
        rig.hosts[0].hardware().set_unresponsive(PhysicalDevice(0), true);
        if let Some(slow) = slow {
            rig.hosts[slow].set_pending(true);
        }
        let rid = |n: u32| u16::try_from(id(n).get()).unwrap();
        let _ = rig.ring([AtsCommand::to(rid(0)).inval(IOVA.get()), FENCE.encode()]);
        for host in [1, 0] {
            rig.complete(host);
        }
        let _ = rig.iommu.run();
        for host in [1, 0] {
            rig.complete(host);
        }
        let csr = rig.iommu.read(register::CQCSR, Width::U32);
        assert_ne!(csr & register::CMD_TO, 0, "FEN-07, VC-45: {slow:?} {csr:#x}");
        assert!(rig.iommu.backend_mut().physical.next_done().is_none(), "told once");
    }
}

#[test]
fn what_all_can_do_is_what_the_guest_is_promised() {
    let capable = Hardware::default();
    let full = capable.vm(Gscid::new(7).unwrap(), &Memory::new()).capabilities();
    let lesser = full.capabilities.with_sv57(false).with_pd20(false).with_pas(46).with_version(0x10);
    let stated = HostCapabilities::new(lesser, SecondStageMode::Sv39x4).with_svnapot(true);
    let lesser = stated.with_leaves_dirty(true).with_coherent(true);
    let rig: Rig = Rig::on(&[Hardware::default(), Hardware::new(lesser)], &Config::nested());
    let shown = Capabilities::from_bits(rig.iommu.read(0, Width::U64));
    assert!(shown.sv48() && !shown.sv57() && !shown.pd20(), "MRG-12");
    assert_eq!(shown.pas(), 41, "MRG-13: the narrower second stage");
    for (one, other) in [(full, lesser), (lesser, full)] {
        let both = one.intersection(&other);
        assert_eq!((both.second_stage, both.capabilities.pas()), (SecondStageMode::Sv39x4, 46));
        assert!(!both.with_coherent(false).intersection(&full).coherent, "what one does not state is not there");
    }
}

#[test]
fn a_device_behind_an_iommu_that_does_not_do_what_was_promised_is_refused() {
    let full = Hardware::default().vm(Gscid::new(7).unwrap(), &Memory::new()).capabilities();
    let mut odd = full;
    odd.capabilities.set_svpbmt(true);
    let mut rig: Rig = Rig::on(&[Hardware::default(), Hardware::new(odd)], &Config::nested());
    assert!(rig.iommu.attach(id(0), behind(0, 0), DevicePolicy::default()).is_ok());
    let refused = rig.iommu.attach(id(1), behind(1, 1), DevicePolicy::default());
    assert_eq!(refused, Err(AttachError::Capability("Svpbmt")), "MRG-12, T44");
    let refused = rig.iommu.attach(id(1), behind(2, 1), DevicePolicy::default());
    assert_eq!(refused, Err(AttachError::Host(OrderError::Refused { done: 0 })), "there is no third IOMMU");
}

#[test]
fn a_fan_out_answers_pending_while_any_of_its_iommus_is() {
    let memory = Memory::new();
    let hosts = [0, 1].map(|_| Hardware::default().vm(Gscid::new(1).unwrap(), &memory));
    let mut fan: FanOut<Physical, 2> = FanOut::new(hosts.clone());
    for n in [0, 1] {
        fan.adopt(behind(n, 0)).unwrap();
        fan.set_context(behind(n, 0), &Context::Blocked).unwrap();
    }
    let devices = [0, 1].map(|n| Invalidation::Device(behind(n, 0)));
    fan.invalidate(&devices).unwrap();
    hosts[1].set_pending(true);
    let all = FenceScope::ALL;
    assert_eq!(fan.fence(Ticket::new(1), all), Ok(Completion::Pending));
    assert_eq!(fan.fence(Ticket::new(2), all), Ok(Completion::Pending));
    assert_eq!(fan.next_done(), None);
    let _ = hosts[1].complete(Ticket::new(1));
    fan.fence_done(1, Ticket::new(1), FenceOutcome::Complete);
    assert_eq!(fan.next_done(), Some((Ticket::new(1), FenceOutcome::Complete)), "the minimum of both");
    assert_eq!(fan.next_done(), None);
    fan.fence_done(1, Ticket::new(2), FenceOutcome::AtsTimeout);
    assert_eq!(fan.next_done(), Some((Ticket::new(2), FenceOutcome::AtsTimeout)), "VC-45");
    assert_eq!(fan.next_done(), None);
}

#[test]
fn an_iommu_is_clean_only_when_a_fence_for_all_accesses_after_the_invalidation_is_complete() {
    let memory = Memory::new();
    let hosts = [0, 1].map(|_| Hardware::default().vm(Gscid::new(1).unwrap(), &memory));
    let mut fan = FanOut::<_, 2>::new(hosts.clone());
    let devices = [behind(0, 0), behind(1, 0)];
    let open = Context::SecondStageOnly { process_ids: true, ats: Ats::Off };
    for device in devices {
        fan.adopt(device).unwrap();
        fan.set_context(device, &Context::Blocked).unwrap();
        fan.set_context(device, &open).unwrap();
    }
    let reached = |fan: &mut FanOut<_, 2>| {
        let _ = hosts.each_ref().map(Physical::take_orders);
        fan.invalidate(&[Invalidation::FirstStage]).unwrap();
        hosts.each_ref().map(|host| !host.take_orders().is_empty())
    };
    for host in &hosts {
        host.set_pending(true);
    }
    fan.invalidate(&devices.map(Invalidation::Device)).unwrap();
    assert_eq!(fan.fence(Ticket::new(1), FenceScope::ALL), Ok(Completion::Pending));
    for device in devices {
        fan.set_context(device, &Context::Blocked).unwrap();
    }
    assert_eq!(reached(&mut fan), [true, true], "T35: nothing has been dropped");
    fan.invalidate(&devices.map(Invalidation::Device)).unwrap();
    assert_eq!(fan.fence(Ticket::new(2), FenceScope::new(true, false)), Ok(Completion::Pending));
    assert_eq!(fan.fence(Ticket::new(3), FenceScope::ALL), Ok(Completion::Pending));
    fan.fence_done(0, Ticket::new(2), FenceOutcome::Complete);
    assert_eq!(fan.next_done(), None, "the minimum of both");
    fan.fence_done(1, Ticket::new(2), FenceOutcome::Complete);
    assert_eq!(reached(&mut fan), [true, true], "T35: neither the fence before nor one for reads alone");
    fan.fence_done(0, Ticket::new(3), FenceOutcome::Complete);
    assert_eq!(reached(&mut fan), [false, true], "T35");
    assert_eq!(fan.next_done(), Some((Ticket::new(2), FenceOutcome::Complete)), "the minimum of both");
    assert_eq!(fan.next_done(), None);
}

#[test]
fn a_timeout_is_told_with_its_own_fence_also_if_another_follows() {
    use FenceOutcome::{AtsTimeout, Complete};
    let memory = Memory::new();
    let hosts = [0, 1].map(|_| Hardware::default().vm(Gscid::new(1).unwrap(), &memory));
    let mut fan = FanOut::<_, 2>::new(hosts.clone());
    for iommu in [0, 1] {
        hosts[iommu].set_pending(true);
        fan.adopt(behind(iommu, 0)).unwrap();
    }
    let tickets = [1, 2, 3].map(Ticket::new);
    for ticket in tickets {
        assert_eq!(fan.fence(ticket, FenceScope::ALL), Ok(Completion::Pending));
    }
    let [first, second, third] = tickets;
    for (ticket, outcome) in [(first, AtsTimeout), (second, AtsTimeout), (third, Complete)] {
        fan.fence_done(0, ticket, outcome);
    }
    assert_eq!(fan.next_done(), None);
    fan.fence_done(1, first, Complete);
    assert_eq!(fan.next_done(), Some((first, AtsTimeout)), "FEN-07: whoever waits for this one is told");
    assert_eq!(fan.next_done(), None);
    fan.fence_done(1, third, Complete);
    assert_eq!(fan.next_done(), Some((second, AtsTimeout)), "FEN-07");
    assert_eq!(fan.next_done(), Some((third, Complete)));
    assert_eq!(fan.next_done(), None);
}

#[test]
fn an_iommu_that_lost_a_fence_when_its_last_device_was_gone_is_waited_for_no_more() {
    let mut rig = Rig::new().translating();
    for host in &rig.hosts {
        host.set_pending(true);
    }
    // The second one's device leaves, and a later fence of the first one's reaches both.
    assert_eq!(rig.iommu.detach(id(1)), Ok(Progress::Waiting));
    assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Waiting));
    for index in [0, 1] {
        let oldest = *rig.pending(index).first().unwrap();
        let _ = rig.hosts[index].complete(oldest);
        rig.tell(index, oldest);
    }
    assert!(matches!(rig.hosts[1].take_orders().last(), Some(Order::Release(_))), "the second one has nothing left");
    for host in &rig.hosts {
        host.lose_state();
    }
    let _ = rig.iommu.host_lost_state();
    rig.complete(0);
    rig.complete(1);
    assert_eq!(rig.iommu.progress(), Progress::Idle, "T19: what nobody has cannot keep the others waiting");
    assert!(matches!(rig.hosts[0].take_orders().last(), Some(Order::Release(_))), "SWG-21");
}

/// Devices 0 and 1 behind the first IOMMU, 2 behind the second, which is slow; 0 does not answer.
#[test]
fn a_timeout_counts_against_the_device_whose_fence_it_was_and_no_other() {
    let capable = || {
        let mut host = Hardware::default().vm(Gscid::new(9).unwrap(), &Memory::new()).capabilities();
        host.capabilities = host.capabilities.with_ats(true).with_t2gpa(true);
        Hardware::new(host)
    };
    let mut rig = Rig::<8>::on(&[capable(), capable()], &Config::nested().with_ats(true));
    let [tc, iohgatp, ta, fsc] = rig.table.context(Pscid::new(1).unwrap());
    for (n, iommu) in [(0, 0), (1, 0), (2, 1)] {
        rig.directory.set(id(n), &[tc | tc::EN_ATS, iohgatp, ta, fsc]);
        let policy = DevicePolicy::default().with_ats(Ats::Translations);
        let _ = rig.iommu.attach(id(n), behind(iommu, n), policy).unwrap();
    }
    assert!(rig.fence());
    rig.hosts[0].hardware().set_unresponsive(PhysicalDevice(0), true);
    for host in &rig.hosts {
        host.set_pending(true);
    }
    rig.take();
    let to = |n: u32| AtsCommand::to(u16::try_from(id(n).get()).unwrap()).inval(IOVA.get());
    let _ = rig.ring([0, 1, 0, 1, 0, 1, 0].map(to).into_iter().chain([FENCE.encode()]));
    for _ in 0..4 {
        rig.complete(0);
        rig.complete(1);
    }
    assert_eq!(rig.iommu.stats().orders.ats_timeouts, 4, "VC-45, VC-74: as many as it left unanswered");
    let context = |n| rig.hosts[0].hardware().context(PhysicalDevice(n)).map(|context| context.ats());
    assert_eq!((context(0), context(1)), (Some(Ats::Off), Some(Ats::Translations)), "VC-45, VC-74");
}

#[test]
fn a_fence_that_one_of_them_did_not_take_is_not_told_as_complete() {
    for busy in [0, 1] {
        let memory = Memory::new();
        let hosts = [0, 1].map(|_| Hardware::default().vm(Gscid::new(1).unwrap(), &memory));
        let mut fan = FanOut::<_, 2>::new(hosts.clone());
        for iommu in [0, 1] {
            fan.adopt(behind(iommu, 0)).unwrap();
        }
        hosts[busy].answer_next_fence(Err(OrderError::Busy));
        assert_eq!(fan.fence(Ticket::new(1), FenceScope::ALL), Err(OrderError::Busy), "T15");
        assert_eq!(fan.next_done(), None, "T15: IOMMU {busy} has no such fence");
        assert_eq!(fan.fence(Ticket::new(2), FenceScope::ALL), Ok(Completion::Done), "T15");
    }
}

#[test]
fn a_fence_that_failed_where_it_was_taken_is_told_also_if_another_iommu_did_not_take_it() {
    let memory = Memory::new();
    let hosts = [0, 1].map(|_| Hardware::default().vm(Gscid::new(1).unwrap(), &memory));
    let mut fan = FanOut::<_, 2>::new(hosts.clone());
    for iommu in [0, 1] {
        fan.adopt(behind(iommu, 0)).unwrap();
    }
    hosts[0].set_pending(true);
    assert_eq!(fan.fence(Ticket::new(1), FenceScope::ALL), Ok(Completion::Pending));
    hosts[1].answer_next_fence(Err(OrderError::Busy));
    assert_eq!(fan.fence(Ticket::new(2), FenceScope::ALL), Err(OrderError::Busy));
    fan.fence_done(0, Ticket::new(2), FenceOutcome::Failed);
    assert_eq!(fan.next_done(), Some((Ticket::new(2), FenceOutcome::Failed)), "T15");
}
