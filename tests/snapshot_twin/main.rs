//! The randomised twin test of `snapshot` and `restore`: a guest can not tell.
//!
//! A guest and its devices do anything for a while. Then one vIOMMU goes on as if nothing was, one is saved and goes on,
//! and a third, on a host of its own with a copy of the memory, is what the second was saved as. Once the host of each
//! has ended what was under way, the same happens to all three: every register, every word of memory, every store, every
//! message and wire, and what devices are told is the same in all of them; so are, in the second and the third, the
//! orders to the physical IOMMU.
//!
//! Seeds are fixed, so that every run is the same; `TWIN_SEED` takes another one, `TWIN_HISTORIES` more histories. The
//! long run: `cargo test --release --test snapshot_twin -- --ignored --nocapture`.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::print_stderr,
    clippy::panic,
    reason = "a failure is a finding"
)]

mod guest;
mod host;
mod hostile;
mod iommu;

#[path = "../random/mod.rs"]
mod random;

use std::time::Instant;

use guest::Guest;
use host::Order;
use iommu::{Action, Iommu};
use random::{Random, setting};
use riscv_viommu::mock::guest::register;
use riscv_viommu::{Capabilities, Config, Progress};

/// How many histories had what at the point where they were saved.
#[derive(Debug, Default)]
struct Figures {
    histories: u64,
    actions: u64,
    /// A fence waited at the head of the queue.
    parked: u64,
    /// An emulated device had not completed an invalidation request.
    outstanding: u64,
    /// A message waited for its mask.
    masked: u64,
    /// Invalidations were held back.
    held: u64,
    /// The budget had left commands, or devices to be read.
    left: u64,
    /// Both.
    half_done: u64,
    /// A fault record stood for others.
    standing: u64,
    directory: u64,
    /// The guest had not told of a change of the directory, and its queue had stopped: not followed any further.
    owing: u64,
    /// Orders to the physical side that were compared.
    orders: u64,
}

fn config(nested: bool, ats: bool, random: &mut Random) -> Config {
    let budget = u32::try_from(1 + random.below(6)).unwrap();
    let config = if nested {
        Config::nested().with_mirror(true)
    } else {
        let all = Capabilities::from_bits(u64::MAX).with_msi_flat(false).with_end(false).with_pas(56);
        Config::emulated().with_capabilities(all).with_ats(true).with_debug(true).with_counters(3).with_qos_bits(4)
    };
    config.with_ats(ats).with_synchronous_dma(true).with_budget(budget).with_reset_to_bare(random.percent(20))
}

/// A guest, and what it is offered.
fn begin(seed: u64, random: &mut Random) -> (Guest, Config) {
    let nested = random.percent(50);
    let ats = !nested || random.percent(70);
    (Guest::new(seed, nested, ats), config(nested, ats, random))
}

/// What happened to each is the same.
fn compare(name: &str, seed: u64, step: usize, action: &str, one: &mut Iommu, other: &mut Iommu) {
    let at = || format!("seed {seed}, step {step}, {action}: {name}");
    let (here, there) = (one.registers(), other.registers());
    if let Some(index) = (0..here.len()).find(|&index| here[index] != there[index]) {
        panic!("{}: offset {} is {:#x}, not {:#x}", at(), index * 4, there[index], here[index]);
    }
    assert_eq!(one.inner.progress(), other.inner.progress(), "{}: progress", at());
    assert_eq!(one.host().events, other.host().events, "{}: events", at());
    assert_eq!(one.host().levels, other.host().levels, "{}: wires", at());
    assert!(one.host().words == other.host().words, "{}: memory", at());
    one.check_mirror();
    other.check_mirror();
}

/// What no register shows is the same.
fn compare_images(seed: u64, one: &mut Iommu, other: &mut Iommu) {
    let (here, there) = (one.image(), other.image());
    let first = (0..here.len().max(there.len())).find(|&index| here.get(index) != there.get(index));
    let lists = |image: &[u8]| format!("{:x?} .. {:x?}", &image[16..80], &image[1104..]);
    assert_eq!(first, None, "seed {seed}: images differ from this byte on, {} and {}", lists(&here), lists(&there));
}

/// Brings the queue past what it has not come to, if that is a command that tells of a change of the directory: only the
/// one that was restored has seen it. They are equal again after that command, and with what they have asked of devices
/// after a fence. False if that does not come. Until then the one that was restored may have less left to do: its host
/// watches the pages already that the others' hosts will be asked to.
fn say_all(seed: u64, owes: bool, guest: &mut Guest, mut iommus: [&mut Iommu; 3]) -> bool {
    let mut fences = u32::from(owes);
    for _ in 0..300 {
        let action = if guest.owes(iommus[0]) || (owes && iommus[0].has_queued()) {
            guest.catch_up(iommus[0])
        } else if fences == 0 {
            return true;
        } else {
            fences -= 1;
            guest.fence_alone(iommus[0])
        };
        let answers = iommus.each_mut().map(|iommu| iommu.act(&action));
        assert!(answers.iter().all(|answer| answer.agrees(&answers[0])), "seed {seed}, {action:x?}: {answers:?}");
        guest.note(&answers[0]);
        for iommu in &mut iommus {
            iommu.settle();
        }
    }
    false
}

fn history(seed: u64, figures: &mut Figures) {
    let mut random = Random::new(seed ^ 0x5eed_0000_0000);
    let (mut guest, config) = begin(seed, &mut random);
    let (words, nested) = (guest.memory(), guest.nested);
    let mut plain = Iommu::new(&config, nested, words.clone());
    let mut saved = Iommu::new(&config, nested, words);
    let length = 10 + random.below(50);
    for step in 0..length {
        let action = if step == 0 { guest.boot() } else { guest.next(&plain) };
        let answer = plain.act(&action);
        assert_eq!(answer, saved.act(&action));
        guest.note(&answer);
        figures.actions += 1;
    }

    let _ = (plain.take_events(), saved.take_events(), saved.take_orders());
    let owes = guest.owes(&saved);
    let busy = saved.read(register::DDTP) & register::DDTP_BUSY != 0;
    let left = saved.inner.progress() == Progress::Runnable;
    let image = saved.image();
    let held = saved.take_orders().iter().any(|order| matches!(order, Order::Invalidate(_)));
    note(&image, left, held, figures);
    figures.directory += u64::from(busy);
    let mut restored = Iommu::new(&config, nested, saved.host().words.clone());
    restored.settle();
    restored.inner.backend_mut().pending = random.percent(50);
    let _ = restored.restore(&image).unwrap();
    // The hosts end what is under way.
    for iommu in [&mut plain, &mut saved, &mut restored] {
        let _ = iommu.act(&Action::Pending(false));
        iommu.settle();
    }
    if !say_all(seed, owes, &mut guest, [&mut plain, &mut saved, &mut restored]) {
        figures.owing += 1;
        return;
    }
    for iommu in [&mut plain, &mut saved, &mut restored] {
        // Wires that are high have to be set on the new host.
        let host = iommu.inner.backend_mut();
        host.events.retain(|event| !matches!(event, host::Event::Wire(..)));
        host.asked = false;
        let _ = iommu.act(&Action::Pending(random.clone().percent(50)));
    }
    let step = usize::try_from(length).unwrap();
    compare("restored", seed, step, "restore", &mut plain, &mut restored);
    compare("saved", seed, step, "snapshot", &mut plain, &mut saved);
    if busy || image[21] & 1 != 0 {
        // Invalidations meanwhile are held back here, and were of no use to hardware that was clean a moment earlier
        // there.
        compare_images(seed, &mut saved, &mut restored);
    }
    let _ = (saved.take_orders(), restored.take_orders());

    for step in step..step + 20 + usize::try_from(random.below(20)).unwrap() {
        let action = guest.next(&plain);
        let answer = plain.act(&action);
        let text = format!("{action:x?}");
        for (name, iommu) in [("saved", &mut saved), ("restored", &mut restored)] {
            let its = iommu.act(&action);
            assert_eq!(answer, its, "seed {seed}, step {step}, {action:x?}: {name}");
            compare(name, seed, step, &text, &mut plain, iommu);
            let _ = iommu.take_events();
        }
        let _ = plain.take_events();
        let (orders, again) = (saved.take_orders(), restored.take_orders());
        assert_eq!(orders, again, "seed {seed}, step {step}, {text}: orders");
        figures.orders += u64::try_from(orders.len()).unwrap();
        guest.note(&answer);
        figures.actions += 1;
    }
    for iommu in [&mut saved, &mut restored] {
        iommu.settle();
    }
    compare_images(seed, &mut saved, &mut restored);
}

/// What there was at the point of the snapshot.
fn note(image: &[u8], left: bool, held: bool, figures: &mut Figures) {
    figures.histories += 1;
    figures.parked += u64::from(image[21] & 1 != 0);
    figures.standing += u64::from(image[21] & 2 != 0);
    figures.outstanding += u64::from(image[25] != 0);
    figures.masked += u64::from(image[22] != 0 || image[23] != 0);
    figures.held += u64::from(held);
    figures.left += u64::from(left);
    figures.half_done += u64::from(left && held);
}

fn run(first: u64, histories: u64) -> Figures {
    let (first, histories) = (setting("TWIN_SEED", first), setting("TWIN_HISTORIES", histories));
    let (begin, mut figures) = (Instant::now(), Figures::default());
    for seed in first..first + histories {
        history(seed, &mut figures);
    }
    let Figures { histories, actions, orders, parked, outstanding, masked, held, left, half_done, .. } = figures;
    let Figures { standing, directory, owing, .. } = figures;
    eprintln!(
        "{histories} histories of a guest that is restored, from seed {first}: {actions} operations, {orders} orders, 0 \
         differences; {:?}",
        begin.elapsed()
    );
    eprintln!(
        "of the {histories} histories of a guest, when it was saved: {parked} with a parked fence, {outstanding} with an \
         outstanding ITAG, {masked} with a masked message, {held} with held invalidations, {left} with work left by the \
         budget, {half_done} with both, {standing} with a record that stands for others, {directory} with ddtp busy; \
         {owing} not followed"
    );
    figures
}

#[test]
fn a_guest_can_not_tell_that_it_was_restored() {
    let _ = run(1, 300);
}

#[test]
#[ignore = "a long run, for a build with optimisation"]
fn a_guest_can_not_tell_that_it_was_restored_in_ten_thousand_histories() {
    let figures = run(1_000_000, 10_000);
    let Figures { parked, outstanding, masked, half_done, .. } = figures;
    for (name, count) in [
        ("parked fence", parked),
        ("outstanding ITAG", outstanding),
        ("masked message", masked),
        ("half-done batch", half_done),
    ] {
        assert!(count >= 500, "{count} histories with a {name}");
    }
}
