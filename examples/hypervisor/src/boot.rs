//! From the first instruction to the guests, on every hart that has one.

use core::sync::atomic::{AtomicU64, Ordering};

use fdt::Fdt;
use hypervisor::frames::{Frames, Table};
use hypervisor::iommu::{Iommu, Message, Mmio, VMS, VmId};
use hypervisor::machine::{Machine, Options};
use hypervisor::second_stage::SecondStage;
use riscv_viommu::Ppn;
use riscv_viommu::addr::PAGE_SIZE;
use spin::{Mutex, Once};

use crate::canary::{self, Canary};
use crate::console::{print_last, say};
use crate::hart;
use crate::report;
use crate::vm::{Driver, Event, Shared, Vm};

/// Bytes of stack of each hart.
const STACK: usize = 256 * 1024;
/// Those at its far end that are never used.
const STACK_END: usize = 4096;
/// Where page frames end; they begin behind the image. The firmware puts nothing here.
const FRAMES_END: usize = 0x8800_0000;

/// Everything, once it is there.
static BOARD: Once<Board> = Once::new();
static FRAMES: Once<Mutex<Frames>> = Once::new();
static DRIVER: Once<Driver> = Once::new();
static VM: [Mutex<Option<Vm>>; VMS] = [const { Mutex::new(None) }; VMS];

/// The machine and its VMs.
pub(crate) struct Board {
    pub(crate) shared: Shared,
    pub(crate) vms: &'static [Mutex<Option<Vm>>; VMS],
    /// The hart of each VM.
    harts: [usize; VMS],
    /// VMs that have ended, and those that have said how it went: a bit each.
    ended: AtomicU64,
    concluded: AtomicU64,
    /// Sum over the hypervisor's code, before any guest ran.
    pub(crate) image_sum: u64,
    /// What no stack grows down to.
    pub(crate) stack_ends: [Canary; VMS],
}

core::arch::global_asm!(
    ".pushsection .text.entry, \"ax\"",
    ".global _start",
    "_start:",
    "la sp, {stacks} + {stack}",
    "la t0, host_trap",
    "csrw stvec, t0",
    "call {first}",
    // A hart that the first one started: a1 is its stack.
    ".global start_second",
    "start_second:",
    "mv sp, a1",
    "la t0, host_trap",
    "csrw stvec, t0",
    "call {second}",
    ".balign 4",
    ".global host_trap",
    "host_trap:",
    "csrr a0, scause",
    "csrr a1, sepc",
    "csrr a2, stval",
    "call {trapped}",
    ".popsection",
    stacks = sym STACKS,
    stack = const STACK,
    first = sym first_hart,
    second = sym second_hart,
    trapped = sym trapped,
);

#[repr(align(4096))]
struct Stacks(#[expect(dead_code, reason = "only its address is used")] [u8; STACK * VMS]);

static mut STACKS: Stacks = Stacks([0; STACK * VMS]);

unsafe extern "C" {
    fn start_second();
}

/// The first hart: finds out about the machine, makes the VMs, starts the others.
extern "C" fn first_hart(hart: usize, tree: *const u8) -> ! {
    let board = match set_up(hart, tree) {
        Ok(board) => board,
        Err(why) => {
            print_last(format_args!("FAIL: {why}"));
            end(false);
        }
    };
    for vm in 1..board.shared.options.vms {
        let stack = &raw const STACKS as usize + STACK * (vm + 1);
        if sbi_rt::hart_start(board.harts[vm], start_second as *const () as usize, stack).is_err() {
            print_last(format_args!("FAIL: hart {} does not start: give QEMU -smp 2", board.harts[vm]));
            end(false);
        }
    }
    run(board, 0)
}

/// Every other hart.
extern "C" fn second_hart(hart: usize) -> ! {
    let board = BOARD.wait();
    match board.harts.iter().position(|&other| other == hart) {
        Some(vm) => run(board, vm),
        None => panic!("hart {hart} has no VM"),
    }
}

/// Everything that can fail.
fn set_up(hart: usize, tree: *const u8) -> Result<&'static Board, &'static str> {
    // SAFETY: the firmware hands the device tree over.
    let tree = unsafe { Fdt::from_ptr(tree) }.map_err(|_| "the firmware gave no device tree")?;
    let machine = Machine::from_device_tree(&tree)?;
    let options = Options::parse(tree.chosen().bootargs().unwrap_or_default()).map_err(|word| {
        say!("hypervisor: not an option: {word}");
        "an option is not understood"
    })?;
    let frames = FRAMES.call_once(|| {
        unsafe extern "C" {
            static memory_start: u8;
        }
        // SAFETY: behind the image, and before anything the firmware or a guest has.
        Mutex::new(unsafe { Frames::new(&raw const memory_start as usize, FRAMES_END) })
    });
    let on_fault = Message { address: machine.interrupt_file(hart, 0), data: hart::FAULT_IDENTITY };
    // SAFETY: the device tree says that the IOMMU is there, and this hypervisor is the only one to drive it.
    let registers = unsafe { Mmio::new(machine.iommu as usize) };
    let mut driver = Iommu::start(registers, &mut frames.lock(), on_fault).map_err(|error| {
        say!("hypervisor: the IOMMU: {error:?}");
        "the IOMMU can not be used: start QEMU 10.0 or newer with iommu-sys=on"
    })?;
    say!("hypervisor: IOMMU at {:#x}, capabilities {:#x}", machine.iommu, driver.capabilities().into_bits());
    if !options.processes {
        driver.without_process_directories();
    }
    let driver = DRIVER.call_once(|| Mutex::new(driver));
    let nothing = SecondStage::new(&mut frames.lock()).ok_or("page frames are used up")?;

    let shared = Shared { machine, options, driver, frames, nothing };
    // Two VMs take this hart and the other one of the first two.
    let harts = [hart, hart ^ 1];
    let mut next_window = machine.pci_memory;
    for (id, vm) in VmId::ALL.into_iter().zip(&VM).take(options.vms) {
        *vm.lock() = Some(Vm::create(id, harts[id.index()], &shared, &mut next_window)?);
    }
    let image_sum = canary::image_sum();
    let stack_ends = core::array::from_fn(|vm| {
        let end = &raw const STACKS as u64 + (STACK * vm) as u64;
        // SAFETY: the far end of a stack; what is there from now on is the canary.
        Canary::fill(unsafe { Table::at(Ppn::truncate(end / PAGE_SIZE), STACK_END / 8) }.words())
    });
    let (ended, concluded) = (AtomicU64::new(0), AtomicU64::new(0));
    Ok(BOARD.call_once(|| Board { shared, vms: &VM, harts, ended, concluded, image_sum, stack_ends }))
}

/// Runs a VM on this hart, to its end.
fn run(board: &'static Board, index: usize) -> ! {
    let slot = &board.vms[index];
    let Some(mut guest) = slot.lock().as_mut().map(Vm::enter) else {
        panic!("hart without a VM");
    };
    loop {
        let exit = guest.run();
        let mut slot = slot.lock();
        let Some(vm) = slot.as_mut() else { panic!("the VM is gone") };
        if vm.handle(&mut guest, exit) == Event::Faults {
            board.drain_faults(index);
        }
        vm.settle();
        if vm.ended {
            vm.shut_down();
        }
        let (ended, concluded) = (vm.ended, vm.verdict.is_some());
        drop(slot);
        board.note(index, ended, concluded);
        if board.is_over() {
            report::finish(board);
        }
        if ended {
            board.wait_for_the_others(index);
        }
    }
}

impl Board {
    /// Takes the faults out of the IOMMU's queue, and tells the harts of the VMs whose devices had them.
    fn drain_faults(&self, own: usize) {
        let waiting = self.shared.driver.lock().on_fault_interrupt();
        for (vm, _) in waiting.iter().enumerate().filter(|&(vm, waits)| *waits && vm != own) {
            // A hart that can not be told finds them at its next exit.
            let _told = sbi_rt::send_ipi(sbi_rt::HartMask::from_mask_base(1, self.harts[vm]));
        }
    }

    fn note(&self, vm: usize, ended: bool, concluded: bool) {
        self.ended.fetch_or(u64::from(ended) << vm, Ordering::Relaxed);
        self.concluded.fetch_or(u64::from(ended || concluded) << vm, Ordering::Relaxed);
    }

    /// The first VM has ended, and the others have at least said how it went.
    fn is_over(&self) -> bool {
        let all = (1 << self.shared.options.vms) - 1;
        self.ended.load(Ordering::Relaxed) & 1 != 0 && self.concluded.load(Ordering::Relaxed) == all
    }

    /// The VM of this hart has ended: the hart goes on taking faults for the others.
    fn wait_for_the_others(&self, own: usize) -> ! {
        loop {
            hart::wait();
            self.drain_faults(own);
            if self.is_over() {
                report::finish(self);
            }
        }
    }
}

/// The hypervisor itself did something wrong.
extern "C" fn trapped(cause: u64, at: u64, value: u64) -> ! {
    panic!("trap {cause:#x} at {at:#x}, value {value:#x}");
}

/// Ends the machine.
pub(crate) fn end(well: bool) -> ! {
    if well {
        sbi_rt::system_reset(sbi_rt::Shutdown, sbi_rt::NoReason);
    } else {
        sbi_rt::system_reset(sbi_rt::Shutdown, sbi_rt::SystemFailure);
    }
    loop {
        core::hint::spin_loop();
    }
}

#[panic_handler]
fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    print_last(format_args!("FAIL: the hypervisor panicked: {info}"));
    end(false)
}
