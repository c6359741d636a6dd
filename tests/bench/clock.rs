//! Clocks and figures of processes.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::support::process::memory_kib;

/// The same in every process of this machine.
pub fn monotonic() -> Duration {
    read(ClockId::Monotonic)
}

pub fn thread_cpu() -> Duration {
    read(ClockId::ThreadCPUTime)
}

pub fn process_cpu() -> Duration {
    read(ClockId::ProcessCPUTime)
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time of this thread, which other programs on the machine disturb least.
pub fn cpu_of<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let before = thread_cpu();
    let value = work();
    (thread_cpu() - before, value)
}

/// CPU time of another process, of all threads that it has: what `utime` and `stime` say in hundredths of a second, to
/// the nanosecond.
pub fn cpu_of_process(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    let times = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(times.sum())
}

/// VmRSS.
pub fn resident_mib(pid: u32) -> f64 {
    let kib = memory_kib(pid);
    assert!(kib > 0, "process {pid} does not run");
    kib as f64 / 1024.0
}

/// Connections of a process to a port of this machine.
pub fn connections(pid: u32, port: u16) -> usize {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process");
    let sockets: BTreeSet<String> = descriptors
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|target| {
            Some(
                target
                    .to_str()?
                    .strip_prefix("socket:[")?
                    .trim_end_matches(']')
                    .to_owned(),
            )
        })
        .collect();
    let table = std::fs::read_to_string("/proc/net/tcp").expect("a table of connections");
    let remote = format!(":{port:04X}");
    let established = table.lines().skip(1).filter(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[2].ends_with(&remote) && fields[3] == "01" && sockets.contains(fields[9])
    });
    established.count()
}

pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A quantile of measured times, in milliseconds.
pub fn quantile(times: &[Duration], quantile: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort();
    let at = ((sorted.len() as f64 * quantile).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied().map_or(f64::NAN, milliseconds)
}
