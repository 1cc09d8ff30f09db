//! A guest that goes on elsewhere: its vIOMMU as bytes, and from them.

use super::VIommu;
use crate::backend::Backend;
use crate::error::{RestoreError, SnapshotError};
use crate::progress::Progress;

impl<B: Backend, const DEVICES: usize, const BATCH: usize, const CACHE: usize, const ITAGS: usize>
    VIommu<B, DEVICES, BATCH, CACHE, ITAGS>
{
    /// The most bytes an image of such a vIOMMU has.
    pub const SNAPSHOT_BYTES: usize = 4096;

    /// Writes what the guest may come to see of its IOMMU to `out`, and gives the number of bytes.
    ///
    /// # Errors
    /// [`SnapshotError`]; nothing was written.
    pub fn snapshot(&mut self, out: &mut [u8]) -> Result<usize, SnapshotError> {
        let _ = out;
        Err(SnapshotError::NotStarted)
    }

    /// Becomes the IOMMU that an image is of.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing of the image is taken, and every device is blocked.
    pub fn restore(&mut self, image: &[u8]) -> Result<Progress, RestoreError> {
        let _ = image;
        Err(RestoreError::NotStarted)
    }
}
