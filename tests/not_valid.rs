//! An entry of the guest's directory that becomes valid without a word of the guest's (rules UPD-04, VC-55, SWG-17):
//! every way in which that is seen.

mod nesting_rig;

use nesting_rig::{BARE, FENCE, IOVA, OFF, Rig, id, pscid};
use riscv_viommu::mock::guest::{inval_ddt, register};
use riscv_viommu::mock::{Access, Memory, Wires};
use riscv_viommu::{
    Attachment, Cause, Config, DevicePolicy, Gpa, HostFault, InterruptKinds, NoPhysical, Parts, Progress,
    TransactionType, VIommu, Width,
};

/// A VM whose directory is in force, with so many devices, none of which has a context.
fn waiting(devices: u32) -> (Rig, Vec<Attachment>) {
    let mut rig = Rig::new();
    // The way to the contexts is there.
    for n in 0..devices {
        rig.directory.set(id(n), &[0; 4]);
    }
    let _ = rig.enter();
    let attachments = (0..devices).map(|n| rig.attach(n).0).collect();
    assert!(rig.fence());
    let _ = rig.orders();
    (rig, attachments)
}

/// The guest sets V last, and says nothing.
fn set(rig: &Rig, n: u32) {
    rig.directory.set(id(n), &rig.a.context(pscid(1)));
}

fn open(rig: &Rig, devices: u32) -> Vec<u32> {
    (0..devices).filter(|n| rig.context(*n) == "A/1").collect()
}

/// The host tells what it saw of stores to watched pages.
fn tell(rig: &mut Rig) {
    for at in rig.memory.take_watched_writes() {
        let _ = rig.iommu.guest_wrote(at);
    }
}

fn page(at: Gpa) -> Gpa {
    Gpa::new(at.get() & !0xfff)
}

#[test]
fn each_doorbell_looks_at_one_device_in_its_turn() {
    let (mut rig, _) = waiting(3);
    for n in 0..3 {
        set(&rig, n);
    }
    let seen: Vec<Vec<u32>> = (0..4)
        .map(|_| {
            let _ = rig.ring([]);
            open(&rig, 3)
        })
        .collect();
    assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 3, 3], "UPD-04, T13: {seen:?}");
    // What stays without a context keeps nobody from his turn.
    let (mut rig, _) = waiting(3);
    for _ in 0..2 {
        let _ = rig.ring([]);
    }
    set(&rig, 1);
    for _ in 0..3 {
        let _ = rig.ring([]);
    }
    assert_eq!(open(&rig, 3), [1], "UPD-04");
}

#[test]
fn a_fault_of_the_device_looks_at_its_context() {
    for cause in [Cause::DdtNotValid, Cause::TransactionTypeDisallowed] {
        let (mut rig, attachments) = waiting(2);
        set(&rig, 0);
        set(&rig, 1);
        let fault = HostFault::new(cause, TransactionType::UntranslatedRead, IOVA);
        let _ = rig.iommu.report_fault(attachments[1], &fault);
        assert_eq!(open(&rig, 2), [1], "VC-55, VT-04: {cause:?}");
        assert_eq!(rig.dma(1).access, Access::Translated(nesting_rig::PAGE_A), "VC-55");
        assert_eq!(rig.records(), Vec::<[u64; 4]>::new(), "VT-04: its guest sees a context that was valid");
    }
}

#[test]
fn the_host_may_say_so() {
    let (mut rig, _) = waiting(2);
    set(&rig, 0);
    set(&rig, 1);
    assert_eq!(rig.iommu.resync(id(1)), Progress::Idle);
    assert_eq!(open(&rig, 2), [1], "UPD-04");
    // It is in force, with a fence of the crate's own: the guest need not give one.
    let orders = rig.orders();
    let at = orders.iter().position(|order| order == "1=A/1").unwrap();
    assert!(orders[at..].contains(&"fence".to_owned()), "SWG-17: {orders:?}");
}

#[test]
fn the_page_of_the_entry_that_ended_the_way_is_watched_at_each_level() {
    let mut rig = Rig::new();
    let _ = rig.enter();
    let _ = rig.attach(0);
    let at = |rig: &Rig, level| {
        if level == 0 { rig.directory.entry_address(id(0)) } else { rig.directory.non_leaf_address(id(0), level) }
    };
    // The whole way, then cut off at each of the levels.
    set(&rig, 0);
    let _ = rig.iommu.resync(id(0));
    assert_eq!((open(&rig, 1), rig.memory.watched()), (vec![0], vec![]));
    for level in [2, 1, 0] {
        let entry = at(&rig, level);
        let value = rig.memory.read(entry);
        rig.memory.write(entry, value & !1);
        assert!({
            let _ = rig.ring([inval_ddt(Some(id(0))), FENCE.encode()]);
            rig.passed()
        });
        assert_eq!(rig.context(0), "Blocked", "level {level}");
        assert_eq!(rig.memory.watched(), [page(entry)], "T09: level {level}");
        // A store to another page, or one that leaves V as it is.
        assert_eq!(rig.iommu.guest_wrote(Gpa::new(page(entry).get().wrapping_sub(8))), Progress::Idle);
        rig.memory.write(entry, value & !1);
        tell(&mut rig);
        let _ = rig.drain();
        assert_eq!((rig.context(0), rig.memory.watched()), ("Blocked".to_owned(), vec![page(entry)]), "T09");
        rig.memory.write(entry, value);
        let written = rig.memory.take_watched_writes();
        assert_eq!(written, [entry]);
        assert_eq!(rig.iommu.guest_wrote(written[0]), Progress::Runnable, "the work is left for `run`");
        assert_eq!(rig.context(0), "Blocked", "the vCPU that stores pays next to nothing");
        let _ = rig.drain();
        assert_eq!((rig.context(0), rig.memory.watched()), ("A/1".to_owned(), vec![]), "UPD-04, T09: level {level}");
    }
}

#[test]
fn one_store_serves_all_devices_of_the_page_and_the_page_is_watched_once() {
    let (mut rig, _) = waiting(3);
    let leaf = page(rig.directory.entry_address(id(0)));
    assert_eq!(rig.memory.watched(), [leaf]);
    assert_eq!(rig.memory.take_watches().iter().filter(|watch| **watch == (leaf, true)).count(), 1, "T09");
    set(&rig, 0);
    set(&rig, 2);
    let one = rig.memory.take_watched_writes()[0];
    let _ = rig.iommu.guest_wrote(one);
    let _ = rig.drain();
    assert_eq!((open(&rig, 3), rig.memory.watched()), (vec![0, 2], vec![leaf]), "UPD-04: device 1 waits still");
    assert_eq!(rig.memory.take_watches(), [], "T09: nothing is watched anew");
    let _ = rig.iommu.detach(id(1));
    assert_eq!((rig.memory.take_watches(), rig.memory.watched()), (vec![(leaf, false)], vec![]), "T09");
}

#[test]
fn a_store_between_the_reading_and_the_watch_is_not_missed() {
    for n in 0..2 {
        let (mut rig, _) = waiting(2);
        for n in 0..2 {
            set(&rig, n);
            let _ = rig.iommu.resync(id(n));
        }
        assert_eq!((open(&rig, 2), rig.memory.watched()), (vec![0, 1], vec![]));
        for n in 0..2 {
            rig.directory.invalidate(id(n));
        }
        // Another vCPU makes an entry valid right after it was read, when nobody watches yet.
        let entry = rig.directory.entry_address(id(n));
        let value = rig.memory.read(entry);
        rig.memory.on_load(entry, [value, value | 1]);
        let _ = rig.ring([inval_ddt(None), FENCE.encode()]);
        assert!(rig.passed());
        assert_eq!(rig.iommu.progress(), Progress::Idle, "nothing is left for later");
        assert_eq!(open(&rig, 2), [n], "UPD-04: entries are read once more when their page is watched");
        assert_eq!(rig.memory.watched(), [page(entry)], "T09");
    }
}

#[test]
fn a_watch_ends_with_its_reason_and_comes_back_with_it() {
    type Way = fn(&mut Rig);
    let ways: [(&str, Way); 5] = [
        ("detach", |rig| assert_eq!(rig.iommu.detach(id(0)), Ok(Progress::Idle))),
        ("shutdown", |rig| assert_eq!(rig.iommu.shutdown(), Progress::Idle)),
        ("Off", |rig| assert_eq!(rig.ddtp(OFF), Progress::Idle)),
        ("Bare", |rig| assert_eq!(rig.ddtp(BARE), Progress::Idle)),
        ("reset", |rig| assert_eq!(rig.iommu.reset(), Progress::Idle)),
    ];
    for (name, way) in ways {
        let (mut rig, _) = waiting(1);
        let leaf = page(rig.directory.entry_address(id(0)));
        let _ = rig.memory.take_watches();
        way(&mut rig);
        assert_eq!(rig.memory.take_watches(), [(leaf, false)], "T09: {name}");
        assert_eq!(rig.iommu.guest_wrote(leaf), Progress::Idle, "{name}");
        // The directory again.
        rig.turn_on();
        let _ = rig.enter();
        let again = matches!(name, "Off" | "Bare" | "reset");
        assert_eq!(rig.memory.watched(), if again { vec![leaf] } else { vec![] }, "T09: {name}");
    }
}

#[test]
fn a_watch_is_there_again_after_the_host_lost_its_state_or_took_memory() {
    let (mut rig, _) = waiting(1);
    let leaf = page(rig.directory.entry_address(id(0)));
    rig.physical.lose_state();
    assert_eq!(rig.iommu.host_lost_state(), Progress::Idle);
    assert_eq!(rig.memory.watched(), [leaf], "T09");
    assert_eq!(rig.iommu.invalidate_gpa(IOVA_PAGE..=IOVA_PAGE), Progress::Idle);
    assert_eq!(rig.memory.watched(), [leaf], "T09");
    set(&rig, 0);
    tell(&mut rig);
    let _ = rig.drain();
    assert_eq!((open(&rig, 1), rig.memory.watched()), (vec![0], vec![]), "UPD-04");
}

const IOVA_PAGE: Gpa = Gpa::new(0x9000_a000);

#[test]
fn contexts_that_can_not_be_used_are_not_watched() {
    // A misconfigured one is no matter of V, and the guest says when it changes it (rule UPD-01).
    let (mut rig, _) = waiting(1);
    rig.directory.set(id(0), &[1 | 1 << 12, 0, 0, 0]);
    assert_eq!(rig.iommu.resync(id(0)), Progress::Idle);
    assert_eq!((rig.context(0), rig.memory.watched()), ("Blocked".to_owned(), vec![]), "T09");
    let loads = rig.memory.take_loads().len();
    let _ = rig.ring([]);
    assert!(loads != 0 && rig.memory.take_loads().is_empty(), "nor is it looked at with each doorbell");
}

#[test]
fn nothing_is_watched_for_emulated_devices() {
    let memory = Memory::new();
    let parts = Parts { memory: memory.clone(), interrupts: Wires::new(InterruptKinds::Msi), physical: NoPhysical };
    let mut iommu: VIommu<Parts<Memory, Wires, NoPhysical>> = VIommu::new(parts);
    iommu.start(&Config::emulated().with_synchronous_dma(true)).unwrap();
    let directory = riscv_viommu::mock::tables::Directory::new(&memory, 3, false);
    let _ = iommu.write(register::DDTP, Width::U64, directory.ddtp());
    let device = iommu.attach_emulated(id(0), DevicePolicy::default()).unwrap();
    let request = riscv_viommu::Request::read(device, IOVA);
    assert!(iommu.translate(&request).is_err());
    directory.set(id(0), &[1, 0, 0, 0]);
    assert!(iommu.translate(&request).is_ok(), "UPD-04: an entry that is not valid is not remembered");
    assert_eq!(memory.take_watches(), [], "T09");
}
