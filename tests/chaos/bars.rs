//! What a fault may cost. In the long form, where nothing runs beside: of CPU and requests of Consul twice what it cost at the
//! worst in the runs that were recorded, within bounds that hold for all. In the short one what shows a loop or a leak on any machine.

use std::time::Duration;

use serde_json::Value;

use crate::record;
use crate::summary::is_long;

#[derive(Clone, Debug, PartialEq)]
pub struct Bars {
    /// From the moment that the dependency answers again to the first request that meets the new state.
    pub converge: Duration,
    /// Of one core, over the whole fault, and in the five seconds with the most. A busy loop takes all of it.
    pub cpu: f64,
    /// Requests of Consul's within one second.
    pub consul: u64,
    /// The same of Vault's. Nothing that goes wrong there costs more than some.
    pub vault: u64,
    /// What the agent may hold more than before, once it had the time to give back what it does not need.
    pub memory_kib: u64,
}

/// The most for any fault, unoptimised and with much beside.
const SHORT: Bars = Bars {
    converge: Duration::from_secs(10),
    cpu: 0.5,
    consul: MOST_REQUESTS,
    vault: 30,
    memory_kib: 64 * 1024,
};

/// Whatever was recorded: a run that was bad is not to make the next one good.
const MOST_CPU: f64 = 0.5;
pub const MOST_REQUESTS: u64 = 60;
/// Below this it is a burst of news, and no loop: one start of the agent, or a change that each watch looks at.
const LEAST_CPU: f64 = 0.15;
const LEAST_REQUESTS: u64 = 45;

impl Bars {
    pub fn of(fault: &str) -> Bars {
        match is_long() {
            true => Bars::by(&record::recorded(), fault),
            false => SHORT,
        }
    }

    fn by(recorded: &Value, fault: &str) -> Bars {
        let twice = |name: &str| 2.0 * worst(recorded, fault, name);
        Bars {
            converge: Duration::from_secs(2),
            cpu: twice("agent_cpu_share_busiest_5s").clamp(LEAST_CPU, MOST_CPU),
            consul: (twice("consul_busiest_second") as u64).clamp(LEAST_REQUESTS, MOST_REQUESTS),
            memory_kib: memory_kib(fault),
            ..SHORT
        }
    }
}

fn memory_kib(fault: &str) -> u64 {
    let mib = match fault {
        // Texts of 300 KiB, while the disk takes none of them: two entries of each document wait for it, and each try encodes
        // them anew as JSON, into pages of the store's own that are as large. When the disk is there again the store keeps up to
        // 4 MiB of its file, and what lives between those blocks keeps the allocator from giving all of the rest back. It was
        // 14 to 19 MiB when it was read at once.
        "disk_full" => 20,
        // The most that others held was 9 MiB, right after a thousand documents were gone.
        _ => 12,
    };
    mib * 1024
}

fn worst(recorded: &Value, fault: &str, name: &str) -> f64 {
    // A soak is a run by itself.
    let (kind, is_soak) = match fault {
        "soak" => ("soaks", true),
        _ => ("suites", false),
    };
    let of = |run: &Value| match is_soak {
        true => run[name].as_f64(),
        false => run["faults"][fault][name].as_f64(),
    };
    let runs = recorded[kind].as_array().into_iter().flatten();
    runs.filter_map(of).fold(0.0, f64::max)
}

#[test]
fn bars_are_twice_the_worst_of_what_was_recorded() {
    let row = |cpu: f64, requests: u64| serde_json::json!({ "agent_cpu_share_busiest_5s": cpu, "consul_busiest_second": requests });
    let recorded = serde_json::json!({
        "suites": [
            { "faults": { "quiet": row(0.01, 4), "busy": row(0.1, 28), "wild": row(0.9, 274) } },
            { "faults": { "quiet": row(0.02, 5), "busy": row(0.125, 18) } },
        ],
        "soaks": [row(0.08, 27)],
    });
    let of = |fault| {
        let bars = Bars::by(&recorded, fault);
        (bars.cpu, bars.consul)
    };
    assert_eq!(of("quiet"), (LEAST_CPU, LEAST_REQUESTS));
    assert_eq!(of("busy"), (0.25, 56));
    assert_eq!(of("wild"), (MOST_CPU, MOST_REQUESTS));
    assert_eq!(of("soak"), (0.16, 54));
    assert_eq!(of("new"), (LEAST_CPU, LEAST_REQUESTS));
}
