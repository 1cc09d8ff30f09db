//! Registers the guest writes besides.

use riscv_viommu::Width;

use crate::case::Step;

use super::Plan;

/// What is chosen while nothing is on.
pub(crate) fn before(plan: &mut Plan) -> Vec<Step> {
    let mut steps = Vec::new();
    let random = &mut plan.world.random;
    let wires = random.percent(50);
    let fctl = u64::from(wires) << 1 | u64::from(plan.shape.gxl) << 2;
    steps.push(Step::Write { offset: 8, width: Width::U32, value: fctl });
    if random.percent(30) {
        // Two bits for each of four causes.
        steps.push(Step::Write { offset: 760, width: Width::U64, value: random.bits(16) & 0x3333 });
    }
    let mailbox = plan.world.page();
    plan.world.mailboxes = vec![mailbox, mailbox + 0x40, mailbox + 0x48];
    for vector in 0..4 {
        let at = 768 + vector * 16;
        let data = plan.world.random.bits(31);
        steps.push(Step::Write { offset: at, width: Width::U64, value: mailbox + 0x40 + (vector & 3) * 4 });
        steps.push(Step::Write { offset: at + 8, width: Width::U32, value: data });
    }
    steps
}

/// What it writes when all is done.
pub(crate) fn after(plan: &mut Plan, steps: &mut Vec<Step>) {
    let random = &mut plan.world.random;
    if random.percent(7) {
        // Looks what there is, and acknowledges something.
        steps.extend([84, 72, 76].map(|offset| Step::Read { offset, width: Width::U32 }));
        steps.push(Step::Write { offset: 84, width: Width::U32, value: random.bits(4) });
    }
    if random.percent(5) {
        steps.push(Step::Write { offset: 72, width: Width::U32, value: 0 });
    }
    if random.percent(5) {
        steps.push(Step::Write { offset: 76, width: Width::U32, value: 0 });
    }
    if random.percent(5) {
        steps.push(Step::Write { offset: 16, width: Width::U64, value: 0 });
    }
}
