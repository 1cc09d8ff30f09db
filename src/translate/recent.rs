//! What requests were answered lately: an answer is given again, whole, until anything at all is invalidated.

use crate::addr::{Gpa, PAGE_SHIFT, low_bits};
use crate::attachment::Attachment;
use crate::backend::Epoch;
use crate::fault::TransactionType;
use crate::id::ProcessId;

use super::{Request, Target, Translation};

/// Whose request, for which page, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    page: u64,
    device: Attachment,
    process: Option<ProcessId>,
    privileged: bool,
    access: TransactionType,
}

impl Key {
    #[inline]
    fn of(request: &Request) -> Self {
        let Request { device, access, iova, length: _, process, privileged, data: _ } = *request;
        Self { page: iova.get() >> PAGE_SHIFT, device, process, privileged, access }
    }

    /// Where in `places` it goes, if there are any. Pages that follow each other do so there, and the low pages of
    /// devices and processes do not meet.
    #[inline]
    fn place(&self, places: usize) -> Option<usize> {
        let whose = self.device.device().get().wrapping_add(self.process.map_or(0, ProcessId::get));
        let mixed = self.page.wrapping_add(u64::from(whose.wrapping_mul(0x9e37_79b1) >> 16));
        let place = mixed.checked_rem(u64::try_from(places).ok()?)?;
        usize::try_from(place).ok()
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    age: u64,
    key: Key,
    /// That of the page's first byte.
    answer: Translation,
}

/// Up to `N` answers. They are kept no longer than what they were made of may be remembered: whatever is forgotten
/// there, all are forgotten here.
#[derive(Debug)]
pub(crate) struct Recent<const N: usize> {
    entries: [Option<Entry>; N],
    /// Entries of another age are forgotten.
    age: u64,
}

impl<const N: usize> Recent<N> {
    pub(super) const fn new() -> Self {
        Self { entries: [None; N], age: 0 }
    }

    /// Forgets all of them.
    #[inline]
    pub(crate) const fn clear(&mut self) {
        self.age = self.age.wrapping_add(1);
    }

    /// The answer to a request like this one, for an access that begins in this epoch.
    #[inline]
    pub(crate) fn find(&self, request: &Request, epoch: impl FnOnce() -> Epoch) -> Option<Translation> {
        let key = Key::of(request);
        let entry = self.entries.get(key.place(N)?)?.as_ref()?;
        if entry.age != self.age || entry.key != key {
            return None;
        }
        let offset = request.iova.get() & low_bits(PAGE_SHIFT);
        let answer = &entry.answer;
        let target = match answer.target {
            Target::Memory(page) => Target::Memory(page.or(offset)),
            Target::InterruptFile(page) => Target::InterruptFile(page.or(offset)),
            Target::Mrif => return None,
        };
        Some(Translation {
            target,
            length: answer.reach(request),
            epoch: epoch(),
            size: answer.size,
            permissions: answer.permissions,
            memory_type: answer.memory_type,
            pscid: answer.pscid,
            qos: answer.qos,
        })
    }

    /// Keeps the answer to a request, unless the access is done with it.
    pub(crate) fn insert(&mut self, request: &Request, answer: &Translation) {
        let page = |at: Gpa| at.page();
        let target = match answer.target {
            Target::Memory(at) => Target::Memory(page(at)),
            Target::InterruptFile(at) => Target::InterruptFile(page(at)),
            Target::Mrif => return,
        };
        let key = Key::of(request);
        if let Some(place) = key.place(N).and_then(|place| self.entries.get_mut(place)) {
            *place = Some(Entry { age: self.age, key, answer: Translation { target, ..*answer } });
        }
    }
}

impl Translation {
    /// How many bytes of a request it is good for: up to the end of the mapping.
    #[inline]
    pub(crate) fn reach(&self, request: &Request) -> u64 {
        // Both ends of the mapping included.
        let last = self.size.wrapping_sub(1);
        request.length.min((last & !request.iova.get()).saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Iova;
    use crate::attachment::Generations;
    use crate::id::DeviceId;
    use crate::translate::{Pbmt, Permissions, QosIds};

    fn answer(target: Target, size: u64) -> Translation {
        Translation {
            target,
            length: 1,
            size,
            permissions: Permissions::default(),
            memory_type: Pbmt::Pma,
            epoch: Epoch::FIRST,
            pscid: None,
            qos: QosIds::default(),
        }
    }

    fn device() -> Attachment {
        Generations::new().attach(DeviceId::truncate(8))
    }

    #[test]
    fn an_answer_is_given_again_to_the_same_request_for_the_same_page_alone() {
        let mut recent = Recent::<16>::new();
        let request = Request::read(device(), Iova::new(0x20_1234));
        recent.insert(&request, &answer(Target::Memory(Gpa::new(0x8000_1234)), 4096));
        let found =
            recent.find(&Request { iova: Iova::new(0x20_1ffe), length: 16, ..request }, || Epoch::FIRST).unwrap();
        assert_eq!((found.target, found.length), (Target::Memory(Gpa::new(0x8000_1ffe)), 2), "CA-01");
        let other = Generations::new().attach(DeviceId::truncate(9));
        let mut later = Generations::new();
        let _ = later.attach(DeviceId::truncate(8));
        for other in [
            Request { iova: Iova::new(0x20_2234), ..request },
            Request { iova: Iova::new(0x20_1234 | 16 << 12), ..request },
            Request { access: TransactionType::UntranslatedWrite, ..request },
            Request { privileged: true, ..request },
            Request { process: Some(ProcessId::truncate(0)), ..request },
            Request { device: other, ..request },
            Request { device: later.attach(DeviceId::truncate(8)), ..request },
        ] {
            assert_eq!(recent.find(&other, || Epoch::FIRST), None, "CA-03, CA-07, T34: {other:?}");
        }
        recent.clear();
        assert_eq!(recent.find(&request, || Epoch::FIRST), None, "CA-01");
    }

    #[test]
    fn an_answer_is_good_up_to_the_end_of_its_mapping() {
        let mut recent = Recent::<1>::new();
        let request = Request::write(device(), Iova::new(0x20_1000));
        recent.insert(&request, &answer(Target::InterruptFile(Gpa::new(0x2801_1000)), 1 << 21));
        let found = recent.find(&request.with_length(u64::MAX), || Epoch::FIRST).unwrap();
        assert_eq!((found.target, found.length), (Target::InterruptFile(Gpa::new(0x2801_1000)), 0x1f_f000));
        // The last of the address space.
        let last = Request { iova: Iova::new(u64::MAX), length: 8, ..request };
        recent.insert(&last, &answer(Target::Memory(Gpa::new(0x8000_0fff)), 4096));
        assert_eq!(recent.find(&last, || Epoch::FIRST).map(|found| found.length), Some(1));
    }

    #[test]
    fn an_access_that_is_done_is_not_kept() {
        let mut recent = Recent::<4>::new();
        let request = Request::msi(device(), Iova::new(0x2800_0000), 7);
        recent.insert(&request, &answer(Target::Mrif, 4096));
        assert_eq!(recent.find(&request, || Epoch::FIRST), None, "CA-01: each is stored anew");
        let mut none = Recent::<0>::new();
        none.insert(&request, &answer(Target::Memory(Gpa::new(0)), 4096));
        assert_eq!(none.find(&request, || Epoch::FIRST), None);
    }
}
