//! What the programs take over a long time, and whether it grows.

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::bars::Bars;
use crate::course::Course;
use crate::observer::open_files;
use crate::record;
use crate::summary::{Row, directory, merge};
use crate::support::load::{Load, Report};
use crate::support::process::memory_kib;

const PAUSE: Duration = Duration::from_secs(5);
/// Between two lines that say how it stands.
const PROGRESS: Duration = Duration::from_secs(60);
/// Below this a level cannot be told from its noise.
const LONG: Duration = Duration::from_secs(600);
/// What the level at the end may lie above the one at the beginning. An allocator that is still finding its level takes some;
/// what is kept of each change would take more within the hour: there are some 7,000.
const MEMORY_BAR_KIB: f64 = 6.0 * 1024.0;
/// Connections come and go.
const FILES_BAR: f64 = 8.0;
/// The same of Envoy, over the whole run by its slope: its connections are the load's, and pile up while the machine is busy
/// with other things. The worst that was recorded are 20 MiB, on such a machine; a quiet one takes nothing.
const ENVOY_MEMORY_BAR_KIB: f64 = 24.0 * 1024.0;
const ENVOY_FILES_BAR: f64 = 64.0;

pub struct Trend {
    begun: Instant,
    date: SystemTime,
    samples: Vec<Sample>,
    /// Where each sample goes at once: a soak that is ended early, or fails, has shown something all the same.
    file: File,
    lines: u32,
}

struct Sample {
    at: Duration,
    agent_kib: u64,
    envoy_kib: u64,
    agent_files: u64,
    envoy_files: u64,
    /// Both since the start.
    cpu: Duration,
    asked: u64,
}

impl Trend {
    pub fn begin() -> Trend {
        std::fs::create_dir_all(directory()).expect("a directory for the samples");
        let file = File::create(directory().join("soak-samples.jsonl")).expect("a file for the samples");
        Trend {
            begun: Instant::now(),
            date: SystemTime::now(),
            samples: Vec::new(),
            file,
            lines: 0,
        }
    }

    /// Takes a sample if one is due, and says how it stands, if that is. `plain` has the requests by http.
    pub fn look(&mut self, course: &Course, plain: &Load) {
        let at = self.begun.elapsed();
        if self.samples.last().is_some_and(|last| last.at + PAUSE > at) {
            return;
        }
        let (agent, envoy) = (course.observer.pid(), course.stack.envoy_pid() as u32);
        let sample = Sample {
            at,
            agent_kib: memory_kib(agent),
            envoy_kib: memory_kib(envoy),
            agent_files: open_files(agent),
            envoy_files: open_files(envoy),
            cpu: course.observer.cpu_time(),
            asked: course.line.asked(),
        };
        writeln!(self.file, "{}", sample.shown()).expect("a sample in its file");
        if at >= PROGRESS * (self.lines + 1) {
            self.lines = (at.as_secs() / PROGRESS.as_secs()) as u32;
            println!(
                "soak: {} min, {} requests, {} lost, agent {} MiB, {} files, Envoy {} MiB, {} files",
                self.lines,
                plain.sent() + course.load().sent(),
                plain.lost() + course.load().lost(),
                sample.agent_kib / 1024,
                sample.agent_files,
                sample.envoy_kib / 1024,
                sample.envoy_files,
            );
        }
        self.samples.push(sample);
    }

    /// Prints what came of it, writes it down, and panics if a bar was missed. `row` has the https requests.
    pub fn settle(self, lasted: Duration, row: Row, plain: &Report, changes: Value, envoys: &[(f64, f64)]) {
        let agent = Levels::of(&self.samples, |sample| sample.agent_kib);
        let envoy = Levels::of(&self.samples, |sample| sample.envoy_kib);
        let files = Levels::of(&self.samples, |sample| sample.agent_files);
        let envoy_files = Levels::of(&self.samples, |sample| sample.envoy_files);
        let (first, last) = (&self.samples[0], &self.samples[self.samples.len() - 1]);
        let seconds = (last.at - first.at).as_secs_f64().max(1.0);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let brief = json!({
            "minutes": lasted.as_secs_f64() / 60.0,
            "sent": row.sent() + plain.sent,
            "failed": row.failed() + plain.lost(),
            "stale_connections": row.stale_connections(),
            "worst_ms": ms(row.worst().max(plain.latency(1.0))),
            "p99_ms": ms(plain.latency(0.99)),
            "stale_ms": row.stale.map(ms),
            "changes": changes,
            "agent_kib": [agent.begin, agent.end],
            "agent_kib_per_hour": agent.per_hour,
            "envoy_kib": [envoy.begin, envoy.end],
            "envoy_kib_per_hour": envoy.per_hour,
            "agent_files": [files.begin, files.end],
            "envoy_files": [envoy_files.begin, envoy_files.end],
            "agent_cpu_share": (last.cpu - first.cpu).as_secs_f64() / seconds,
            "agent_cpu_share_busiest_5s": row.busiest_cpu,
            "consul_per_second": (last.asked - first.asked) as f64 / seconds,
            "consul_busiest_second": row.busiest_second,
            "vault_busiest_second": row.vault_busiest_second,
        });
        let mut full = brief.clone();
        full["told"] = json!(row.told);
        full["kinds"] = row.kinds();
        full["envoys_at"] = json!(envoys);
        let slow = plain.slow.iter();
        full["slow"] = slow
            .map(|(due, took)| json!([due.as_secs_f64(), ms(*took)]))
            .collect();
        full["samples"] = self.samples.iter().map(Sample::shown).collect();
        let date = humantime::format_rfc3339_seconds(self.date).to_string();
        println!("soak: {brief:#}");
        merge("soak.json", &date, full);
        record::soak(&date, &brief);

        let mut missed = row.missed();
        if plain.lost() > 0 {
            missed.push(format!("{} requests by http failed", plain.lost()));
        }
        if lasted >= LONG {
            if agent.end > agent.begin + MEMORY_BAR_KIB {
                missed.push(format!(
                    "the agent grew from {} to {} KiB",
                    agent.begin, agent.end
                ));
            }
            if files.end > files.begin + FILES_BAR {
                missed.push(format!(
                    "the agent's files grew from {} to {}",
                    files.begin, files.end
                ));
            }
            let hours = lasted.as_secs_f64() / 3600.0;
            if envoy.per_hour * hours > ENVOY_MEMORY_BAR_KIB {
                missed.push(format!("Envoy grew by {:.0} KiB an hour", envoy.per_hour));
            }
            if envoy_files.per_hour * hours > ENVOY_FILES_BAR {
                missed.push(format!(
                    "Envoy's files grew by {:.0} an hour",
                    envoy_files.per_hour
                ));
            }
            let share = brief["agent_cpu_share"].as_f64().unwrap_or_default();
            if share > Bars::of("soak").cpu {
                missed.push(format!("took {:.0} % of a core", share * 100.0));
            }
        }
        assert!(missed.is_empty(), "soak: {}", missed.join("; "));
    }
}

impl Sample {
    fn shown(&self) -> Value {
        json!({
            "s": self.at.as_secs(),
            "agent_kib": self.agent_kib,
            "envoy_kib": self.envoy_kib,
            "agent_files": self.agent_files,
            "envoy_files": self.envoy_files,
            "agent_cpu_s": self.cpu.as_secs_f64(),
            "consul_requests": self.asked,
        })
    }
}

/// Where something lay at first and at last, and how fast it grew. The first tenth is left out: a start is no level.
struct Levels {
    begin: f64,
    end: f64,
    per_hour: f64,
}

impl Levels {
    fn of(samples: &[Sample], value: impl Fn(&Sample) -> u64) -> Levels {
        let points: Vec<(f64, f64)> = samples
            .iter()
            .skip(samples.len() / 10)
            .map(|sample| (sample.at.as_secs_f64() / 3600.0, value(sample) as f64))
            .collect();
        let third = points.len().div_ceil(3);
        Levels {
            begin: median(&points[..third]),
            end: median(&points[points.len() - third..]),
            per_hour: slope(&points),
        }
    }
}

fn median(points: &[(f64, f64)]) -> f64 {
    let mut values: Vec<f64> = points.iter().map(|(_, value)| *value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// By least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len().max(1) as f64;
    let (x, y) = points
        .iter()
        .fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (x, y) = (x / count, y / count);
    let (over, under) = points.iter().fold((0.0, 0.0), |(over, under), point| {
        (
            over + (point.0 - x) * (point.1 - y),
            under + (point.0 - x).powi(2),
        )
    });
    if under > 0.0 { over / under } else { 0.0 }
}

#[test]
fn growth_shows_in_slope_and_levels_and_noise_in_neither() {
    let samples = |value: fn(u64) -> u64| -> Vec<Sample> {
        (0..720)
            .map(|number| Sample {
                at: Duration::from_secs(number * 5),
                agent_kib: value(number),
                envoy_kib: 0,
                agent_files: 0,
                envoy_files: 0,
                cpu: Duration::ZERO,
                asked: 0,
            })
            .collect()
    };
    let of = |value| Levels::of(&samples(value), |sample| sample.agent_kib);
    // A KiB in a sample: 720 an hour.
    let growing = of(|number| 20_000 + number);
    assert!((growing.per_hour - 720.0).abs() < 1.0, "{}", growing.per_hour);
    assert!(
        growing.end - growing.begin > 400.0,
        "{} to {}",
        growing.begin,
        growing.end
    );
    // A start that lies higher, and two values in turn.
    let level = of(|number| {
        if number < 60 {
            90_000
        } else {
            20_000 + number % 2 * 500
        }
    });
    assert!(level.per_hour.abs() < 20.0, "{}", level.per_hour);
    assert!((level.end - level.begin).abs() <= 500.0);
}
