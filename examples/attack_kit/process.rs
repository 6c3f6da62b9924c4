//! The figures of another process, as Linux has them in `/proc`; elsewhere they are 0.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// What a process holds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    /// Resident memory.
    pub(crate) kib: u64,
    pub(crate) descriptors: usize,
}

impl Figures {
    pub(crate) fn of(process: u32) -> Self {
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count);
        Self { kib: field(process, "VmRSS:"), descriptors }
    }
}

fn field(process: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok());
    value.unwrap_or_default()
}

/// Looks at a process again and again, on a thread of its own.
pub(crate) struct Watch {
    process: u32,
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<Figures>,
}

impl Watch {
    pub(crate) fn start(process: u32) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let seen = stopped.clone();
        let thread = thread::spawn(move || {
            let mut peak = Figures::default();
            while !seen.load(Ordering::Relaxed) {
                let now = Figures::of(process);
                peak = Figures {
                    kib: peak.kib.max(now.kib),
                    descriptors: peak.descriptors.max(now.descriptors),
                };
                thread::sleep(Duration::from_millis(10));
            }
            peak
        });
        Self { process, stopped, thread }
    }

    /// The most of each that was seen. The kernel remembers the peak of the memory.
    pub(crate) fn stop(self) -> Figures {
        self.stopped.store(true, Ordering::Relaxed);
        let peak = self.thread.join().unwrap_or_default();
        Figures { kib: peak.kib.max(field(self.process, "VmHWM:")), ..peak }
    }
}
