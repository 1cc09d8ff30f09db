//! The process to translate an IOVA: which requests get how far, and with which cause they end.
//!
//! Rule IDs are those of the rules of translation and directories.

#![expect(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a failure is a finding")]

mod dma_rig;

use dma_rig::{DmaRig, everything};
use riscv_viommu::mock::tables::{PageTable, pte};
use riscv_viommu::{FirstStageMode, Iova, Request};

const IOVA: u64 = 0x20_0040_3000;

#[test]
fn a_mapped_page_is_translated_and_one_that_is_not_faults() {
    let mut rig = DmaRig::<0>::new(everything());
    let table = PageTable::first_stage(&rig.memory, FirstStageMode::Sv39);
    table.map(IOVA, 0x8765_4000, 0, pte::RW);
    rig.set_context(&[1, 0, 0, table.iosatp()]);
    let device = rig.device;
    assert_eq!(rig.address(Request::write(device, Iova::new(IOVA + 0x123))), Ok(0x8765_4123), "TR-17, TR-18, S1-03");
    assert_eq!(rig.take_faults(), [[0; 4]; 0]);
    assert_eq!(rig.address(Request::read(device, Iova::new(0x1234))), Err(13), "S1-09");
    // CAUSE 13, TTYP 2 in 39:34, DID in 63:40 (FR-01).
    assert_eq!(rig.take_fault(), [0x1234_5600_0000_000d | 2 << 34, 0, 0x1234, 0], "FR-07");
}
