//! An image, or a real one with changed bytes, and what is done after it.

use arbitrary::Arbitrary;
use riscv_viommu::mock::guest::register as reg;
use riscv_viommu::{Health, Progress};

use crate::host_events::Action;
use crate::invariants::Seldom;
use crate::machine::{Iommu, Machine, PASSTHROUGH, Setup};

/// What is restored.
#[derive(Arbitrary, Clone, Debug)]
enum Image {
    /// What the vIOMMU is at that time, with these bytes changed.
    Changed(Vec<(u16, u8)>),
    Cut(u16),
    Bytes(Vec<u8>),
}

/// What is done.
#[derive(Arbitrary, Clone, Debug)]
enum Step {
    Action(Action),
    Restore(Image),
}

/// The vIOMMU as bytes.
fn save(machine: &mut Machine) -> Vec<u8> {
    let mut bytes = vec![0xa5; Iommu::SNAPSHOT_BYTES];
    let length = machine.call(|iommu| iommu.snapshot(&mut bytes)).expect("there is room");
    bytes.truncate(length);
    bytes
}

/// The image of a guest that has just begun.
pub(crate) fn image(setup: Setup) -> Vec<u8> {
    save(&mut Machine::new(setup))
}

fn restore(machine: &mut Machine, image: Image) {
    let mut bytes = save(machine);
    match image {
        Image::Changed(changes) => {
            let length = bytes.len();
            for (at, change) in changes {
                bytes[usize::from(at) % length] ^= change;
            }
        }
        Image::Cut(length) => bytes.truncate(length.into()),
        Image::Bytes(own) => bytes = own,
    }
    match machine.call(|iommu| iommu.restore(&bytes)) {
        Ok(_) => accepted(machine),
        Err(_) => refused(machine),
    }
}

/// What an image made is what a vIOMMU can be: its own image is taken, and goes round.
fn accepted(machine: &mut Machine) {
    Seldom::ImageTaken.note();
    machine.look(true);
    let own = save(machine);
    let mut twin = Machine::started(machine.setup);
    let taken = twin.call(|iommu| iommu.restore(&own));
    assert!(taken.is_ok(), "image: its own is refused, {taken:?}");
    for index in 0..256 {
        let (here, there) = (machine.read(4 * index), twin.read(4 * index));
        // What goes on by itself may have gone further in one of them.
        let goes_on = matches!(4 * index, reg::DDTP | reg::CQH | reg::FQT | reg::CQCSR | reg::FQCSR | reg::IPSR);
        assert!(here == there || goes_on, "image: {here:#x} at {:#x} comes back as {there:#x}", 4 * index);
    }
    machine.settle();
}

/// Nothing of it was taken, and no device does anything until a reset.
fn refused(machine: &mut Machine) {
    Seldom::ImageRefused.note();
    machine.settle();
    let health = machine.iommu.health();
    assert!(health >= Health::Degraded, "image: refused, and health is {health:?}");
    let done = machine.iommu.progress() == Progress::Idle && health == Health::Degraded;
    for (id, device) in PASSTHROUGH.into_iter().filter(|_| done) {
        assert!(!machine.is_open(device), "image: refused, and {id:?} translates");
    }
}

/// The target.
pub fn run(input: &[u8]) {
    crate::fuzz(input, |machine, step| match step {
        Step::Action(action) => action.act(machine),
        Step::Restore(image) => restore(machine, image),
    });
}
