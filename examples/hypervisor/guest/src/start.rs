//! The first instructions, what the device tree says, and the end.
#![expect(unsafe_code, reason = "entry, traps and the device tree's memory")]

use core::arch::naked_asm;
use core::hint;
use core::panic::PanicInfo;

use fdt::Fdt;
use heapless::String;
use sbi_rt::{NoReason, Shutdown};

use crate::console::say;

/// What the program is told.
pub(crate) struct Orders {
    /// `chosen/bootargs`.
    arguments: String<160>,
    /// First address behind RAM.
    pub(crate) ram_end: u64,
}

impl Orders {
    /// The value of `key=value` on the command line.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.arguments.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }
}

// SAFETY: the name and the section are what the linker script and the loader enter; nothing else has them. Interrupts
// are off, the stack is RAM of the image's own, and all of `.bss` is zeroed before Rust code runs.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.start")]
#[unsafe(naked)]
extern "C" fn start() -> ! {
    naked_asm!(
        "csrw sie, zero",
        "li   t0, 1 << 13", // sstatus.FS: the floating-point unit may be used
        "csrs sstatus, t0",
        "la   t0, {trap} + 3",
        "andi t0, t0, -4", // as `trap` aligns itself
        "csrw stvec, t0",
        "la   sp, stack_top",
        "la   t0, bss_start",
        "la   t1, bss_end",
        "0: bgeu t0, t1, 1f",
        "sd   zero, 0(t0)",
        "addi t0, t0, 8",
        "j    0b",
        "1: mv a0, a1",
        "tail {main}",
        trap = sym trap,
        main = sym main,
    )
}

/// Traps are not expected: interrupts are polled, and every address is one that exists.
#[unsafe(naked)]
extern "C" fn trap() -> ! {
    naked_asm!(
        ".balign 4",
        "la   sp, stack_top",
        "csrr a0, scause",
        "csrr a1, sepc",
        "csrr a2, stval",
        "tail {trapped}",
        trapped = sym trapped,
    )
}

extern "C" fn trapped(cause: u64, pc: u64, value: u64) -> ! {
    panic!("trap {cause:#x} at {pc:#x}, value {value:#x}")
}

extern "C" fn main(tree: *const u8) -> ! {
    // SAFETY: the boot protocol gives the address of the device tree in `a1`; it is read only here, before any memory
    // is handed out, and nothing of it is kept.
    let tree = unsafe { Fdt::from_ptr(tree) }.expect("a device tree");
    let mut arguments = String::new();
    arguments.push_str(tree.chosen().bootargs().unwrap_or_default()).expect("a short command line");
    let memory = tree.memory();
    let ram = memory.regions().next().expect("RAM");
    let ram_end = ram.starting_address as u64 + ram.size.expect("its size") as u64;
    crate::run(&Orders { arguments, ram_end })
}

/// Ends the machine.
pub(crate) fn shut_down() -> ! {
    sbi_rt::system_reset(Shutdown, NoReason);
    loop {
        hint::spin_loop();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    let place = info.location().map_or(("?", 0), |place| (place.file(), place.line()));
    say!("@hv fail panic at {}:{}: {}", place.0, place.1, info.message());
    shut_down()
}
