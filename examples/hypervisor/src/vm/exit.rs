//! What a guest stopped for.

use hypervisor::machine::guest;
use hypervisor::mmio::{AccessKind, MemoryAccess};
use hypervisor::pci;
use hypervisor::second_stage::{Access, MapError};
use riscv_viommu::addr::PAGE_SIZE;
use riscv_viommu::{Gpa, Register};

use super::Vm;
use crate::console::say;
use crate::hart::{self, Exit, Guest};
use crate::sbi::{self, Call, Request};

/// `scause` of what stops a guest.
const INTERRUPT: u64 = 1 << 63;
const SOFTWARE_INTERRUPT: u64 = INTERRUPT | 1;
const TIMER_INTERRUPT: u64 = INTERRUPT | 5;
const EXTERNAL_INTERRUPT: u64 = INTERRUPT | 9;
const GUEST_CALL: u64 = 10;
const LOAD_GUEST_PAGE_FAULT: u64 = 21;
const VIRTUAL_INSTRUCTION: u64 = 22;
const STORE_GUEST_PAGE_FAULT: u64 = 23;

/// Exceptions of a guest.
const INSTRUCTION_ACCESS_FAULT: u64 = 1;
const ILLEGAL_INSTRUCTION: u64 = 2;
const LOAD_ACCESS_FAULT: u64 = 5;
const STORE_ACCESS_FAULT: u64 = 7;

/// What other VMs have to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Nothing.
    None,
    /// The IOMMU has reported faults, perhaps of their devices.
    Faults,
}

impl Vm {
    /// Handles what the guest stopped for.
    pub(crate) fn handle(&mut self, registers: &mut Guest, exit: Exit) -> Event {
        match exit.cause {
            GUEST_CALL => self.call(registers),
            LOAD_GUEST_PAGE_FAULT | STORE_GUEST_PAGE_FAULT => self.access(registers, exit),
            EXTERNAL_INTERRUPT => {
                self.exits.interrupts += 1;
                if hart::claim() == hart::FAULT_IDENTITY {
                    return Event::Faults;
                }
            }
            // Another hart has drained faults of this VM's device: `settle` delivers them.
            SOFTWARE_INTERRUPT => {
                self.exits.interrupts += 1;
                hart::clear_software_interrupt();
            }
            TIMER_INTERRUPT => {
                self.exits.interrupts += 1;
                hart::clear_timer();
            }
            VIRTUAL_INSTRUCTION => self.refuse(registers, ILLEGAL_INSTRUCTION, exit.value),
            _ => self.refuse(registers, INSTRUCTION_ACCESS_FAULT, exit.value),
        }
        Event::None
    }

    /// The guest did what its machine does not have.
    fn refuse(&mut self, registers: &mut Guest, cause: u64, value: u64) {
        self.exits.refused += 1;
        registers.inject(cause, value);
    }

    /// A load or store of something that is not mapped.
    fn access(&mut self, registers: &mut Guest, exit: Exit) {
        let in_page = |base: Gpa, size: u64| exit.address.checked_sub(base.get()).filter(|offset| *offset < size);
        let (iommu, ecam) = (in_page(guest::IOMMU, PAGE_SIZE), in_page(guest::ECAM, pci::BUS_SIZE));
        let Some(access) = MemoryAccess::decode(exit.instruction).filter(|_| iommu.is_some() || ecam.is_some()) else {
            let store = exit.cause == STORE_GUEST_PAGE_FAULT;
            let cause = if store { STORE_ACCESS_FAULT } else { LOAD_ACCESS_FAULT };
            return self.refuse(registers, cause, exit.value);
        };
        match access.kind {
            AccessKind::Load { rd, .. } => {
                let value = match (iommu, ecam) {
                    (Some(offset), _) => self.load_register(offset, access.width),
                    (_, Some(offset)) => self.load_config(offset, access.width),
                    _ => 0,
                };
                if rd != 0 {
                    registers.registers[rd] = access.extend(value);
                }
            }
            AccessKind::Store { rs2 } => match (iommu, ecam) {
                (Some(offset), _) => self.store_register(offset, access.width, registers.registers[rs2]),
                (_, Some(offset)) => self.store_config(offset, access.width, registers.registers[rs2]),
                _ => {}
            },
        }
        registers.skip(access.length);
        if iommu.is_some() {
            self.save_if_device_is_still();
        }
    }

    fn load_register(&mut self, offset: u64, width: u8) -> u64 {
        self.count(offset, 0);
        let mut bytes = [0; 8];
        self.iommu.mmio_read(offset, &mut bytes[..usize::from(width)]);
        u64::from_le_bytes(bytes)
    }

    fn store_register(&mut self, offset: u64, width: u8, value: u64) {
        self.count(offset, 1);
        // Faults so far are of the contexts so far.
        self.driver.lock().drain_faults();
        self.tell_faults();
        // What it leaves to do, `settle` does.
        let _progress = self.iommu.mmio_write(offset, &value.to_le_bytes()[..usize::from(width)]);
    }

    fn count(&mut self, offset: u64, direction: usize) {
        let register = Register::at(offset & !3).or_else(|| Register::at(offset & !7));
        if let Some(counts) = self.exits.registers.get_mut(&register) {
            counts[direction] += 1;
        } else {
            let mut counts = [0, 0];
            counts[direction] = 1;
            // There are fewer registers than places.
            let _ = self.exits.registers.insert(register, counts);
        }
    }

    fn load_config(&mut self, offset: u64, width: u8) -> u64 {
        self.exits.pci += 1;
        self.function.read(offset, width)
    }

    fn store_config(&mut self, offset: u64, width: u8, value: u64) {
        self.exits.pci += 1;
        if self.function.write(offset, width, value) {
            self.map_windows();
        }
    }

    /// Maps the function's windows where the guest has put them now, inside the windows of its host bridge.
    fn map_windows(&mut self) {
        for window in &self.windows {
            for page in (0..window.size).step_by(PAGE_SIZE as usize) {
                let _hole = self.hart_stage.unmap(Gpa::new(window.gpa + page));
            }
        }
        self.windows.clear();
        hart::flush_second_stage();
        for window in self.function.windows() {
            let inside = guest::PCI_WINDOWS.iter().any(|(start, size)| {
                window.gpa >= *start && window.gpa.checked_add(window.size).is_some_and(|end| end <= start + size)
            });
            // A window that overlaps another is not there: what the guest gets is its own confusion.
            if inside && self.windows.push(window).is_ok() {
                let mut frames = self.frames.lock();
                // Page by page, so that `unmap` takes out what was put in.
                for page in (0..window.size).step_by(PAGE_SIZE as usize) {
                    let (gpa, hpa) = (Gpa::new(window.gpa + page), window.hpa + page);
                    if self.hart_stage.map(&mut frames, gpa, hpa, PAGE_SIZE, Access::All) == Err(MapError::OutOfFrames)
                    {
                        say!("hypervisor: {}: no page frames for a PCI window", self.name);
                        return;
                    }
                }
            }
        }
        // Also what was not valid may be cached by a hart.
        hart::flush_second_stage();
    }

    fn call(&mut self, registers: &mut Guest) {
        let call = Call::of(&registers.registers);
        match self.exits.calls.get_mut(call.name()) {
            Some(count) => *count += 1,
            None => drop(self.exits.calls.insert(call.name(), 1)),
        }
        registers.skip(4);
        let (error, value) = match call.decide() {
            Request::Answer(error, value) => (error, value),
            Request::Print { at, length } if self.iommu.backend().memory.hpa(at, length).is_some() => {
                (0, self.print(at, length))
            }
            Request::Print { .. } => (sbi::INVALID, 0),
            Request::PrintByte(byte) => {
                self.print_byte(byte);
                (0, 0)
            }
            Request::Shutdown => {
                self.ended = true;
                (0, 0)
            }
        };
        registers.registers[10] = error.cast_unsigned() as u64;
        registers.registers[11] = value;
    }
}
