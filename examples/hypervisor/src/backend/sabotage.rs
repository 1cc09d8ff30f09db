//! Negative controls: hosts that are wrong in one way each. A test that can not fail shows nothing; under each of these
//! the guests' checks must.

use riscv_viommu::cmdq::Command;
use riscv_viommu::{
    Applied, Completion, Context, FenceScope, HostCapabilities, Invalidation, OrderError, PhysicalIommu, Ticket,
};

use heapless::Vec;

/// What is wrong with this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing.
    #[default]
    None,
    /// Invalidations of the first stage are not carried out.
    NoInvalidate,
    /// Devices are not blocked.
    NoBlock,
    /// Every VM has the same GSCID.
    SharedGscid,
    /// A fence is told to be complete before the invalidations in front of it are.
    EarlyFence,
    /// Second-stage translations are not dropped.
    NoGvma,
    /// Contexts of processes are not dropped.
    NoInvalPdt,
    /// A vIOMMU that was saved while its device was at work begins anew.
    LostSnapshot,
}

impl Sabotage {
    /// All of them, by name.
    pub const NAMES: [(&str, Self); 7] = [
        ("no-invalidate", Self::NoInvalidate),
        ("no-block", Self::NoBlock),
        ("shared-gscid", Self::SharedGscid),
        ("early-fence", Self::EarlyFence),
        ("no-gvma", Self::NoGvma),
        ("no-inval-pdt", Self::NoInvalPdt),
        ("lost-snapshot", Self::LostSnapshot),
    ];

    /// Whether a command goes to the hardware.
    pub(super) fn lets_pass(self, command: &Command) -> bool {
        match command {
            Command::IotinvalGvma(_) => self != Self::NoGvma,
            Command::IodirInvalPdt(..) => self != Self::NoInvalPdt,
            _ => true,
        }
    }
}

/// A physical side that is wrong as its [`Sabotage`] says, and else as it is.
#[derive(Debug)]
pub struct Sabotaged<P: PhysicalIommu> {
    /// The physical side.
    pub inner: P,
    how: Sabotage,
    /// What is late.
    late: Vec<Invalidation<P::Device>, 64>,
}

impl<P: PhysicalIommu> Sabotaged<P> {
    /// Wraps `inner`.
    pub const fn new(inner: P, how: Sabotage) -> Self {
        Self { inner, how, late: Vec::new() }
    }
}

impl<P: PhysicalIommu> PhysicalIommu for Sabotaged<P> {
    type Device = P::Device;

    fn capabilities(&self) -> HostCapabilities {
        self.inner.capabilities()
    }

    fn adopt(&mut self, device: P::Device) -> Result<HostCapabilities, OrderError> {
        self.inner.adopt(device)
    }

    fn set_context(&mut self, device: P::Device, new: &Context) -> Result<Applied, OrderError> {
        if self.how == Sabotage::NoBlock && *new == Context::Blocked {
            return Ok(Applied::Switched);
        }
        self.inner.set_context(device, new)
    }

    fn invalidate(&mut self, orders: &[Invalidation<P::Device>]) -> Result<(), OrderError> {
        let of_the_first_stage = |order: &Invalidation<P::Device>| {
            matches!(order, Invalidation::Pages(_) | Invalidation::AddressSpace(_) | Invalidation::FirstStage)
        };
        match self.how {
            Sabotage::NoInvalidate => {
                let others: Vec<_, 64> = orders.iter().filter(|order| !of_the_first_stage(order)).copied().collect();
                if others.is_empty() { Ok(()) } else { self.inner.invalidate(&others) }
            }
            Sabotage::EarlyFence => {
                // One batch behind: whoever looks right after the fence finds what should be gone.
                let late = core::mem::replace(&mut self.late, orders.iter().copied().collect());
                if late.is_empty() { Ok(()) } else { self.inner.invalidate(&late) }
            }
            _ => self.inner.invalidate(orders),
        }
    }

    fn fence(&mut self, upto: Ticket, scope: FenceScope) -> Result<Completion, OrderError> {
        self.inner.fence(upto, scope)
    }

    fn release(&mut self, device: P::Device) {
        self.inner.release(device);
    }
}
