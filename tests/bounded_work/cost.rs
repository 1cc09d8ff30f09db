//! What calls cost, and what they may.

macro_rules! costs {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Calls to the host within one call to the vIOMMU.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub(crate) struct Cost {
            $($(#[$doc])* pub(crate) $name: u64,)*
        }

        impl Cost {
            pub(crate) fn counts(self) -> Vec<(&'static str, u64)> {
                let Self { $($name,)* } = self;
                vec![$((stringify!($name), $name),)*]
            }

            /// The greater of each.
            pub(crate) fn max(self, other: Self) -> Self {
                Self { $($name: self.$name.max(other.$name),)* }
            }
        }
    };
}

costs! {
    loads,
    /// Those of all loads.
    bytes,
    stores,
    exchanges,
    /// Fence data, messages and notices.
    posts,
    wires,
    publishes,
    watches,
    unmapped,
    drains,
    /// `capabilities`, `kinds`, `has_compare_exchange`, `counts_dma`.
    queries,
    adopts,
    contexts,
    invalidates,
    fences,
    /// ATS invalidations.
    requests,
    responses,
    releases,
    /// Orders answered by `Busy`, which do not count as any other.
    busy,
}

/// What bounds are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// `Config::with_budget`.
    pub(crate) units: u64,
    pub(crate) devices: u64,
    pub(crate) groups: u64,
}

/// Words of the register page.
pub(crate) const WORDS: u64 = 222;

impl Limits {
    /// A call that goes on with waiting work.
    pub(crate) fn goes_on(self) -> Cost {
        let Self { units, devices, groups } = self;
        // Readings of the directory come by `devices` for two commands, one that asks for them and one that waits. The
        // first, those of devices that come in, and the last do without one command or both.
        let rounds = |each: u64| (each * (units + 6)).div_ceil(devices + 2);
        let fences = rounds(5 * devices + 1) + 14 * devices + 3;
        Cost {
            loads: 3 * units + 2,
            bytes: 272 * (units + 1),
            stores: 3,
            exchanges: 0,
            posts: units + 2,
            wires: 8,
            publishes: 9,
            watches: 2 * units + devices,
            unmapped: units + 1,
            drains: units + 2,
            queries: units + 2,
            adopts: 1,
            contexts: rounds(6 * devices) + 13 * devices,
            invalidates: 2 * (rounds(6 * devices) + 14 * devices + 4),
            fences,
            requests: units + 2 * devices,
            responses: units.min(groups),
            releases: devices,
            busy: (devices - 1) * (fences + devices + 1) + 5 * (devices + 1) + 8,
        }
    }

    /// One that translates.
    pub(crate) fn translates() -> Cost {
        // One walk of the second stage: four tables, then the leaf eight times.
        let second = 5 - 1 + 8;
        let loads = 3 + 3 * (second + 1) + 4 * (second + 1) + 8 * (second + 1 + second) + second;
        Cost {
            loads,
            bytes: 8 + 8 + 64 + 8 + 8 + 16 + 8 * (loads - 6),
            stores: 3,
            exchanges: 3 * 8 + 4 * 8 + 8 * (8 + 1 + 8) + 8,
            posts: 3,
            wires: 4,
            publishes: 3,
            ..Cost::default()
        }
    }

    /// The bound of each entry point.
    pub(crate) fn of(self, name: &str) -> Option<Cost> {
        let goes_on = self.goes_on();
        let one = |posts, publishes| Cost { stores: posts, posts, wires: 4, publishes, ..Cost::default() };
        Some(match name {
            "run" | "attach" | "detach" | "resync" | "fence_done" | "shutdown" | "device_reset" | "drained"
            | "ats_completion" | "ats_timeout" | "invalidate_gpa" | "host_lost_state" => goes_on,
            // The debug interface does not go on.
            "write" | "mmio_write" => goes_on.max(Self::translates()),
            "reset" => Cost { publishes: WORDS + 3, ..goes_on },
            "restore" => Cost { publishes: WORDS + 3, queries: goes_on.queries + 1, ..goes_on },
            // The directory, and the way to one process.
            "report_fault" => Cost { loads: goes_on.loads + 6, bytes: goes_on.bytes + 112, ..goes_on },
            "snapshot" => {
                let read = Self { units: 4 * self.devices, ..self }.goes_on();
                let Cost { watches, contexts, invalidates, fences, releases, busy, .. } = read;
                let (loads, bytes, requests) = (12 * self.devices, 320 * self.devices, 2 * self.devices);
                let orders = Cost { contexts, invalidates, fences, requests, releases, busy, ..Cost::default() };
                Cost { loads, bytes, watches, ..orders }
            }
            "translate" | "next" | "ats_translate" => Self::translates(),
            "page_request" => Cost { loads: 3, bytes: 80, stores: 4, ..one(3, 5) },
            "report_page_request" => Cost { loads: 14, bytes: 232, stores: 3, ..one(2, 5) },
            "add_cycles" => one(2, 0),
            "report_lost" => Cost { stores: 0, ..one(1, 2) },
            "start" => Cost { queries: 3, publishes: WORDS, ..Cost::default() },
            "attach_emulated" => Cost { queries: 2, ..Cost::default() },
            "new"
            | "read"
            | "mmio_read"
            | "health"
            | "progress"
            | "stats"
            | "last_error"
            | "backend"
            | "backend_mut"
            | "pieces"
            | "left"
            | "next_message"
            | "is_gpa_invalidated"
            | "guest_wrote"
            | "cycles_until_overflow"
            | "page_request_timeout"
            | "with_ats"
            | "with_trusted_translations"
            | "with_response_failure" => Cost::default(),
            _ => return None,
        })
    }
}
