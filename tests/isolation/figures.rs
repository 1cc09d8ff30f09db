//! What there was in the histories.

use std::fmt;

#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) histories: u64,
    pub(crate) operations: u64,
    /// Orders whose names were checked.
    pub(crate) orders: u64,
    /// Accesses of vIOMMUs to memory.
    pub(crate) accesses: u64,
    /// Accesses of devices that reached memory.
    pub(crate) dma: u64,
    /// Accesses of a vIOMMU, a device or a model to what is not the VM's.
    pub(crate) kept_out: u64,
    /// Devices that went to another VM, or to another life of one.
    pub(crate) handed_over: u64,
    /// GSCIDs that did.
    pub(crate) rebirths: u64,
    /// Accesses after either, none of which is answered from what was before.
    pub(crate) probes: u64,
    /// Handles and tickets presented that were not the VM's, or not any more.
    pub(crate) stale: u64,
    /// Handles that were another VM's and have the number of one of its own: they can not be told apart.
    pub(crate) alike: u64,
    /// Images restored.
    pub(crate) images: u64,
}

impl Figures {
    pub(crate) fn add(&mut self, other: &Self) {
        let Self { histories, operations, orders, accesses, dma, kept_out, .. } = self;
        let Self { handed_over, rebirths, probes, stale, alike, images, .. } = other;
        *histories += other.histories;
        *operations += other.operations;
        *orders += other.orders;
        *accesses += other.accesses;
        *dma += other.dma;
        *kept_out += other.kept_out;
        self.handed_over += handed_over;
        self.rebirths += rebirths;
        self.probes += probes;
        self.stale += stale;
        self.alike += alike;
        self.images += images;
    }

    /// What a long run has enough of.
    pub(crate) const fn counts(&self) -> [(&'static str, u64); 8] {
        [
            ("orders", self.orders),
            ("accesses of devices", self.dma),
            ("accesses that were kept out", self.kept_out),
            ("hand-overs", self.handed_over),
            ("GSCIDs that were another's", self.rebirths),
            ("accesses after them", self.probes),
            ("stale handles and tickets", self.stale),
            ("images", self.images),
        ]
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { histories, operations, orders, accesses, dma, kept_out, .. } = self;
        let Self { handed_over, rebirths, probes, stale, alike, images, .. } = self;
        write!(
            f,
            "{histories} histories of two guests, {operations} operations: {orders} orders, {accesses} accesses of \
             vIOMMUs and {dma} of devices, {kept_out} kept out; {handed_over} hand-overs of devices and {rebirths} of \
             GSCIDs, {probes} accesses right after; {stale} stale handles and tickets presented ({alike} more have the \
             number of one that is not); {images} images restored; 0 leaks"
        )
    }
}
