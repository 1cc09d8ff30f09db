//! The report and the verdict.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use hypervisor::iommu::IommuError;
use riscv_viommu::addr::PAGE_SIZE;
use riscv_viommu::{Health, Register};
use spin::Mutex;

use crate::boot::{self, Board};
use crate::canary;
use crate::console::{print_last, say};
use crate::vm::{Snapshots, Verdict, Vm};

/// Takes the VMs' devices back, says what happened, and ends the machine.
pub(crate) fn finish(board: &Board) -> ! {
    static FINISHING: AtomicBool = AtomicBool::new(false);
    // One hart is enough.
    while FINISHING.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    // Held to the end: other harts stop at their next exit.
    let mut vms = board.vms.each_ref().map(Mutex::lock);
    let mut wrong: Option<(&str, &str)> = None;
    for vm in vms.iter_mut().filter_map(|vm| vm.as_mut()) {
        let shut_down = vm.shut_down();
        of_vm(vm);
        let found = wrong_with(vm, board).or((!shut_down).then_some("its device could not be taken back"));
        wrong = wrong.or(found.map(|why| (vm.name, why)));
    }
    of_driver(board);
    let failed = vms.iter().filter_map(|vm| vm.as_ref()).find_map(|vm| match &vm.verdict {
        Some(Verdict::Fail(why)) => Some((vm.name, why.as_str())),
        _ => None,
    });
    let machine = wrong_with_the_machine(board).map(|why| ("hypervisor", why));
    // A guest whose data is wrong shows what the host did to it: the host's own check says why.
    let wrong = names_foreign(board).or(failed).or(wrong).or(machine);
    match wrong {
        None => print_last(format_args!("PASS")),
        Some((who, why)) => print_last(format_args!("FAIL: {who}: {why}")),
    }
    boot::end(wrong.is_none())
}

fn wrong_with(vm: &Vm, board: &Board) -> Option<&'static str> {
    let exits: u64 = vm.exits.of_the_viommu().iter().sum();
    let checks = [
        (vm.verdict.is_some(), "ended without a verdict"),
        (vm.canary.changed().is_none(), "the canary in its memory has changed"),
        (vm.iommu.health() == Health::Good, "its vIOMMU is not in good health"),
        (vm.has_its_snapshots(), "its vIOMMU was never saved with its device at work"),
        (board.shared.options.exits.is_none_or(|most| exits <= most), "more exits of its vIOMMU than allowed"),
    ];
    checks.into_iter().find(|(holds, _)| !holds).map(|(_, why)| why)
}

fn names_foreign(board: &Board) -> Option<(&'static str, &'static str)> {
    let any = board.shared.driver.lock().owners().violations != 0;
    any.then_some(("hypervisor", "a physical command or context named what is not its issuer's"))
}

fn wrong_with_the_machine(board: &Board) -> Option<&'static str> {
    let driver = board.shared.driver.lock();
    let checks = [
        (driver.failure.is_none_or(|failure| failure == IommuError::Foreign), "the IOMMU failed"),
        (canary::image_sum() == board.image_sum, "the hypervisor's code has changed"),
        (board.stack_ends.iter().all(|canary| canary.changed().is_none()), "a stack of the hypervisor has overflowed"),
    ];
    checks.into_iter().find(|(holds, _)| !holds).map(|(_, why)| why)
}

/// Prints `name=count` for the counts that are not 0.
struct Counts<'a>(&'a [(&'a str, u64)]);

impl fmt::Display for Counts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counted = self.0.iter().filter(|(_, count)| *count != 0).peekable();
        if counted.peek().is_none() {
            return f.write_str(" none");
        }
        counted.try_for_each(|(name, count)| write!(f, " {name}={count}"))
    }
}

/// A line of counts.
fn line(who: &str, what: &str, counts: &[(&str, u64)]) {
    say!("report: {who}: {what}{}", Counts(counts));
}

fn of_vm(vm: &Vm) {
    let name = vm.name;
    exits_of(vm);
    work_of(vm);
    match &vm.verdict {
        Some(Verdict::Pass(text)) => say!("report: {name}: verdict pass: {text}"),
        Some(Verdict::Fail(text)) => say!("report: {name}: verdict fail: {text}"),
        None => say!("report: {name}: no verdict"),
    }
}

/// What the guest stopped for.
fn exits_of(vm: &Vm) {
    let (name, exits) = (vm.name, &vm.exits);
    let [loads, stores] = exits.of_the_viommu();
    say!("report: {name}: vIOMMU exits {} (loads {loads}, stores {stores})", loads + stores);
    for register in (0..PAGE_SIZE).step_by(4).filter_map(Register::at) {
        if let Some([loads, stores]) = exits.registers.get(&Some(register)) {
            say!("report: {name}:   {register} loads {loads}, stores {stores}");
        }
    }
    if let Some([loads, stores]) = exits.registers.get(&None) {
        say!("report: {name}:   (no register) loads {loads}, stores {stores}");
    }
    line(name, "other exits", &[("pci", exits.pci), ("interrupts", exits.interrupts), ("refused", exits.refused)]);
    for (extension, count) in &exits.calls {
        say!("report: {name}:   SBI {extension} {count}");
    }
}

/// What the vIOMMU did.
fn work_of(vm: &Vm) {
    let (name, stats) = (vm.name, vm.iommu.stats());
    let commands = [
        ("IOTINVAL.VMA", stats.commands.iotinval_vma),
        ("IOTINVAL.GVMA", stats.commands.iotinval_gvma),
        ("IOFENCE.C", stats.commands.iofence_c),
        ("IODIR.INVAL_DDT", stats.commands.iodir_inval_ddt),
        ("IODIR.INVAL_PDT", stats.commands.iodir_inval_pdt),
        ("illegal", stats.commands.illegal),
    ];
    line(name, "commands", &commands);
    let memory = &vm.iommu.backend().memory.calls;
    let calls =
        [("load", memory.loads.get()), ("store", memory.stores), ("post", memory.posts), ("publish", memory.publishes)];
    line(name, "memory calls", &calls);
    let orders = &vm.iommu.backend().physical.inner.orders;
    let orders = [
        ("adopt", orders.adopted),
        ("context-blocked", orders.blocked),
        ("context-second-stage", orders.second_stage_only),
        ("context-first-stage", orders.first_stage),
        ("context-processes", orders.processes),
        ("context-steps", orders.steps),
        ("batches", orders.batches),
        ("invalidations", orders.invalidations),
        ("fences", orders.fences),
    ];
    line(name, "orders", &orders);
    let faults = [
        ("physical", vm.faults),
        ("recorded", stats.faults_recorded),
        ("coalesced", stats.faults_coalesced),
        ("withheld", stats.faults_withheld),
        ("lost", stats.faults_lost),
        ("stale", stats.stale_events),
    ];
    line(name, "faults", &faults);
    let Snapshots { restored, with_a_fence, at_work, bytes } = vm.snapshots;
    if restored != 0 {
        say!(
            "report: {name}: saved and restored {restored} times, {with_a_fence} with a fence that waited, {at_work} \
             with the device at work, last in {bytes} bytes; work of the vIOMMU is since then"
        );
    }
}

fn of_driver(board: &Board) {
    let driver = board.shared.driver.lock();
    let (counts, owners) = (driver.counts, driver.owners());
    let work = [
        ("commands", counts.commands),
        ("doorbells", counts.doorbells),
        ("faults", counts.faults),
        ("faults-of-nobody", counts.faults_of_nobody),
        ("faults-repeated", counts.faults_repeated),
    ];
    line("physical IOMMU", "work", &work);
    if let Some(failure) = driver.failure {
        say!("report: physical IOMMU: {failure:?}");
    }
    say!("report: device and GSCID of {} commands and contexts checked, {} wrong", owners.checked, owners.violations);
}
