//! A guest: its queues, and its IOMMU turned on.

use riscv_viommu::mock::Memory;
use riscv_viommu::mock::guest::register;
use riscv_viommu::mock::tables::{self, Directory};
use riscv_viommu::{
    Attachment, Config, DeviceId, DevicePolicy, FirstStageMode, Gpa, PhysicalIommu, Progress, Pscid, VIommu, Width,
};

use crate::host::{Host, NoOp, NoWires, Ram};

/// Entries of the command queue.
const COMMANDS: u64 = 1024;
/// Entries of the fault queue.
pub const FAULTS: u64 = 128;

/// The `number`th device of a guest whose directory has so many levels: no index on the way to its context is 0.
pub fn device(levels: u8, number: u32) -> DeviceId {
    let width = [7, 16, 24][usize::from(levels) - 1];
    DeviceId::new((0x12_3410 & ((1 << width) - 1)) + number).expect("24 bits")
}

/// The first page of memory, where fences store.
pub const DONE: Gpa = Gpa::new(0x8000_0000);

/// Memory of which nothing is in use but that page.
pub fn memory() -> Memory {
    let memory = Memory::new();
    assert_eq!(memory.allocate(1), DONE);
    memory
}

/// The tag of the devices' first stage.
pub fn pscid() -> Pscid {
    Pscid::new(1).expect("20 bits")
}

/// A guest with an IOMMU: passthrough devices behind `P`, room for `DEVICES`, memory of `CACHE` translations.
#[derive(Debug)]
pub struct Guest<P: PhysicalIommu, const DEVICES: usize, const CACHE: usize> {
    /// Its IOMMU.
    pub iommu: VIommu<Host<P>, DEVICES, 16, CACHE>,
    /// Its passthrough devices.
    pub devices: Vec<Attachment>,
    commands: Gpa,
    tail: u64,
    faults: Gpa,
}

impl<P: PhysicalIommu, const DEVICES: usize, const CACHE: usize> Guest<P, DEVICES, CACHE> {
    /// A guest that has allocated what is in `memory`, with all queues on and this directory in force.
    pub fn new(config: &Config, physical: P, memory: &Memory, directory: &Directory) -> Self {
        // Entries of 16 and 32 bytes.
        let (commands, faults) = (memory.allocate(COMMANDS * 16 / 4096), memory.allocate(FAULTS * 32 / 4096));
        let host = Host { memory: Ram::of(memory), interrupts: NoWires, physical };
        let mut guest = Self { iommu: VIommu::new(host), devices: Vec::new(), commands, tail: 0, faults };
        guest.iommu.start(config).expect("a configuration that is taken");
        guest.set(register::CQB, Width::U64, commands.get() >> 2 | u64::from(COMMANDS.ilog2() - 1));
        guest.set(register::FQB, Width::U64, faults.get() >> 2 | u64::from(FAULTS.ilog2() - 1));
        guest.set(register::CQCSR, Width::U32, register::ENABLE);
        guest.set(register::FQCSR, Width::U32, register::ENABLE);
        guest.set(register::DDTP, Width::U64, directory.ddtp());
        assert_eq!(guest.get(register::CQCSR), register::ON | register::ENABLE);
        assert_eq!(guest.get(register::FQCSR), register::ON | register::ENABLE);
        guest
    }

    /// A store to a register, and what it left to do.
    pub fn set(&mut self, offset: u64, width: Width, value: u64) {
        let mut progress = self.iommu.write(offset, width, value);
        while progress == Progress::Runnable {
            progress = self.iommu.run();
        }
    }

    /// A register of 4 bytes.
    pub fn get(&self, offset: u64) -> u64 {
        self.iommu.read(offset, Width::U32)
    }

    /// The guest's memory.
    pub const fn memory(&mut self) -> &mut Ram {
        &mut self.iommu.backend_mut().memory
    }

    /// The fault record at an index.
    pub fn fault(&mut self, index: u64) -> [u64; 4] {
        let at = self.faults.get() + 32 * index;
        [0, 8, 16, 24].map(|offset| self.memory().read(Gpa::new(at + offset)))
    }

    /// Puts commands into the queue; the vIOMMU does not know of them yet.
    pub fn push(&mut self, commands: &[[u64; 2]]) {
        for command in commands {
            let at = Gpa::new(self.commands.get() + 16 * self.tail);
            self.memory().write(at, command);
            self.tail = (self.tail + 1) % COMMANDS;
        }
    }

    /// Rings the doorbell, and lets the vIOMMU finish.
    pub fn ring(&mut self) {
        self.set(register::CQT, Width::U32, self.tail);
    }

    /// Rings the doorbell for each of the last commands by itself.
    pub fn ring_each(&mut self, commands: u64) {
        for after in (0..commands).rev() {
            self.set(register::CQT, Width::U32, (self.tail + COMMANDS - after) % COMMANDS);
        }
    }

    /// Commands, done.
    pub fn order(&mut self, commands: &[[u64; 2]]) {
        self.push(commands);
        self.ring();
        self.check_commands();
    }

    /// That every command was carried out.
    pub fn check_commands(&self) {
        assert_eq!(self.get(register::CQH), self.tail, "all commands are fetched");
        assert_eq!(self.get(register::CQCSR), register::ON | register::ENABLE, "none is refused");
        assert_eq!(self.iommu.progress(), Progress::Idle, "none is under way");
    }
}

impl<const DEVICES: usize> Guest<NoOp, DEVICES, 0> {
    /// A guest with passthrough devices that translate, and a directory of 1 to 3 levels.
    pub fn nested(levels: u8, devices: u32) -> Self {
        let memory = memory();
        let directory = Directory::new(&memory, levels, false);
        // The vIOMMU does not walk the tables of passthrough devices: their root holds nothing.
        let context = tables::first_stage(FirstStageMode::Sv39, memory.allocate(1), pscid());
        for number in 0..devices {
            directory.set(device(levels, number), &context);
        }
        let mut guest = Self::new(&Config::nested(), NoOp, &memory, &directory);
        for number in 0..devices {
            let attached = guest.iommu.attach(device(levels, number), number, DevicePolicy::default());
            let attached = attached.expect("room for it");
            assert_eq!(attached.progress, Progress::Idle);
            guest.devices.push(attached.attachment);
        }
        guest
    }
}
