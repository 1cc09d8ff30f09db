//! Queues and the commands in them.

use riscv_viommu::Width;

use crate::case::Step;

use super::Plan;

/// The guest's end of the command queue.
#[derive(Debug)]
pub(crate) struct Ring {
    at: u64,
    entries: u64,
    tail: u64,
}

/// Sets both queues up.
pub(crate) fn queue(plan: &mut Plan, steps: &mut Vec<Step>) -> Ring {
    let (commands, faults) = (plan.world.page(), plan.world.page());
    let random = &mut plan.world.random;
    let command_size = random.within(1..=8);
    let fault_size = if random.percent(5) { 1 } else { random.within(2..=7) };
    let [command_interrupt, fault_interrupt] = [30, 40].map(|percent| u64::from(random.percent(percent)) << 1);
    steps.push(Step::Write { offset: 24, width: Width::U64, value: commands >> 2 | (command_size - 1) });
    steps.push(Step::Write { offset: 72, width: Width::U32, value: 1 | command_interrupt });
    if random.percent(96) {
        steps.push(Step::Write { offset: 40, width: Width::U64, value: faults >> 2 | (fault_size - 1) });
        steps.push(Step::Write { offset: 76, width: Width::U32, value: 1 | fault_interrupt });
        plan.world.faults = Some((faults, 1 << fault_size.min(3)));
    }
    let mut ring = Ring { at: commands, entries: 1 << command_size, tail: 0 };
    if plan.world.random.percent(10) {
        some(plan, &mut ring, steps);
    }
    ring
}

/// Has a few commands executed.
pub(crate) fn some(plan: &mut Plan, ring: &mut Ring, steps: &mut Vec<Step>) {
    if plan.world.random.percent(60) {
        return;
    }
    let count = plan.world.random.within(1..=4).min(ring.entries - 1);
    for _ in 0..count {
        let command = one(plan);
        let at = ring.at + ring.tail * 16;
        steps.push(Step::Store { at, value: command[0] });
        steps.push(Step::Store { at: at + 8, value: command[1] });
        ring.tail = (ring.tail + 1) % ring.entries;
    }
    steps.push(Step::Write { offset: 36, width: Width::U32, value: ring.tail });
}

/// A command at random, mostly legal.
fn one(plan: &mut Plan) -> [u64; 2] {
    let mailbox = plan.world.mailboxes[0];
    let width = [6, 15, 24][usize::from(plan.shape.levels - 1)];
    let random = &mut plan.world.random;
    let mut flag = |bit: u32, percent: u64| u64::from(random.percent(percent)) << bit;
    let tags = flag(10, 50) | flag(33, 50);
    let pscv = flag(32, 50);
    let [fence, pdt] = [flag(10, 60) | flag(12, 50) | flag(13, 50), flag(33, 97)];
    let [device, process] = [random.bits(width) << 40, random.bits(8) << 12];
    let address = random.bits(52) << 10;
    match random.within(1..=100) {
        ..=35 => {
            let hole = random.percent(8);
            let to = if hole { plan.world.hole(56) } else { mailbox };
            [2 | fence | plan.world.random.bits(32) << 32, to >> 2]
        }
        36..=55 => [1 | tags | pscv | random.bits(16) << 44 | random.bits(20) << 12, address],
        56..=70 => [1 | 1 << 7 | tags | random.bits(16) << 44, address],
        71..=82 => [3 | u64::from(random.percent(50)) << 33 | device, 0],
        83..=92 => [3 | 1 << 7 | pdt | device | process, 0],
        93..=96 => [random.within(5..=127), 0],
        _ => [random.within(1..=4) | random.within(2..=7) << 7, 0],
    }
}
