//! What a fault cost, in `target/chaos/summary.json` (by name: sent, failed, excused, worst_ms, converge_ms) and, with all
//! that was seen beside, in `target/chaos/details.json` and as a table in `target/chaos/table.md`.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::bars::Bars;
use crate::loads::Account;
use crate::record::FAULTS;

/// The long form, by `make chaos`.
pub fn is_long() -> bool {
    std::env::var("CHAOS").is_ok_and(|form| form == "long")
}

/// Requests on new connections to be sent before a fault is done with.
pub fn least_requests() -> u64 {
    if is_long() { 5000 } else { 250 }
}

/// Requests a second. Each by https is a handshake, and the short form runs unoptimised with much beside it.
pub fn rate(is_https: bool) -> u32 {
    match (is_long(), is_https) {
        (true, _) => 300,
        (false, false) => 80,
        (false, true) => 30,
    }
}

/// Requests on kept connections that were closed at that very moment, and one in a hundred more. Each is one that clients send
/// again; so many would mean that connections are closed without a word.
const STALE_BAR: u64 = 2;

/// A time that one fault alone has.
#[derive(Clone, Debug)]
pub struct Figure {
    pub name: &'static str,
    pub took: Duration,
    pub bar: Duration,
}

/// One fault, done with.
#[derive(Clone, Debug, Default)]
pub struct Row {
    pub fault: &'static str,
    /// By kind of request.
    pub accounts: Vec<(&'static str, Account)>,
    pub figures: Vec<Figure>,
    pub converge: Option<Duration>,
    /// From the write of a change to the first request that met it: the longest, the fault's own duration with it.
    pub stale: Option<Duration>,
    /// Share of one core that the agent took.
    pub cpu: f64,
    pub busiest_cpu: f64,
    /// Requests of Consul's.
    pub busiest_second: u64,
    /// So many more may they be, where the fault is one great change.
    pub asked_once: u64,
    /// Requests of Vault's, where they are counted.
    pub vault_busiest_second: Option<u64>,
    pub memory_before_kib: u64,
    pub memory_after_kib: u64,
    /// What the operator saw: warnings and errors in the agent's log, each kind once.
    pub told: Vec<String>,
}

impl Row {
    pub fn sent(&self) -> u64 {
        self.accounts.iter().map(|(_, account)| account.sent).sum()
    }

    pub fn failed(&self) -> u64 {
        self.accounts.iter().map(|(_, account)| account.failed).sum()
    }

    pub fn stale_connections(&self) -> u64 {
        self.accounts.iter().map(|(_, account)| account.stale).sum()
    }

    pub fn worst(&self) -> Duration {
        let worst = self.accounts.iter().map(|(_, account)| account.worst);
        worst.max().unwrap_or_default()
    }

    fn excused_in_all(&self) -> u64 {
        let excused = self.accounts.iter().map(|(_, account)| account.excused_in_all());
        excused.sum()
    }

    /// Of all kinds together, by reason.
    fn excused(&self) -> Map<String, Value> {
        let mut all = Map::new();
        for (reason, count) in self.accounts.iter().flat_map(|(_, account)| &account.excused) {
            let before = all.get(reason).and_then(Value::as_u64).unwrap_or(0);
            all.insert(reason.clone(), json!(before + count.as_u64().unwrap_or_default()));
        }
        all
    }

    /// Each kind of request by itself.
    pub fn kinds(&self) -> Value {
        let kinds = self.accounts.iter();
        Value::Object(
            kinds
                .map(|(kind, account)| ((*kind).to_owned(), account.shown()))
                .collect(),
        )
    }

    /// Which bars it did not keep. How many requests there were, and the times of single faults, count in the long form alone.
    pub fn missed(&self) -> Vec<String> {
        let (bars, mut missed) = (Bars::of(self.fault), Vec::new());
        for (kind, account) in &self.accounts {
            if account.failed > 0 {
                missed.push(format!("{} {kind} requests failed", account.failed));
            }
            if account.stale > STALE_BAR + account.sent / 100 {
                missed.push(format!(
                    "{} {kind} requests met a closed connection",
                    account.stale
                ));
            }
        }
        if self.busiest_second > bars.consul + self.asked_once {
            missed.push(format!(
                "{} requests of Consul in one second",
                self.busiest_second
            ));
        }
        if let Some(asked) = self.vault_busiest_second.filter(|asked| *asked > bars.vault) {
            missed.push(format!("{asked} requests of Vault in one second"));
        }
        if let Some(converge) = self.converge.filter(|converge| *converge > bars.converge) {
            missed.push(format!("converged after {converge:.1?}"));
        }
        if self.cpu > bars.cpu {
            missed.push(format!("took {:.0} % of a core", self.cpu * 100.0));
        }
        if self.busiest_cpu > bars.cpu {
            missed.push(format!(
                "took {:.0} % of a core in five seconds",
                self.busiest_cpu * 100.0
            ));
        }
        if self.memory_after_kib > self.memory_before_kib + bars.memory_kib {
            missed.push(format!(
                "grew from {} to {} KiB",
                self.memory_before_kib, self.memory_after_kib
            ));
        }
        if !is_long() {
            return missed;
        }
        for Figure { name, took, bar } in &self.figures {
            if took > bar {
                missed.push(format!("{name}: {took:.1?}, above {bar:.1?}"));
            }
        }
        if self.sent() < least_requests() {
            missed.push(format!("only {} requests", self.sent()));
        }
        missed
    }

    /// Prints it, writes it down, and panics if a bar was missed.
    pub fn settle(self) {
        assert!(FAULTS.contains(&self.fault), "{} is not in the list", self.fault);
        let ms = |duration: Option<Duration>| duration.map(|duration| duration.as_secs_f64() * 1e3);
        let brief = json!({
            "sent": self.sent(),
            "failed": self.failed(),
            "excused": self.excused_in_all(),
            "worst_ms": ms(Some(self.worst())),
            "converge_ms": ms(self.converge),
        });
        let mut full = brief.clone();
        full["excused_for"] = Value::Object(self.excused());
        full["stale_connections"] = json!(self.stale_connections());
        full["kinds"] = self.kinds();
        let figures = self.figures.iter();
        full["figures"] = figures
            .map(|figure| (figure.name.to_owned(), json!(ms(Some(figure.took)))))
            .collect::<Map<String, Value>>()
            .into();
        full["stale_ms"] = json!(ms(self.stale));
        full["agent_cpu_share"] = json!(self.cpu);
        full["agent_cpu_share_busiest_5s"] = json!(self.busiest_cpu);
        full["consul_busiest_second"] = json!(self.busiest_second);
        full["vault_busiest_second"] = json!(self.vault_busiest_second);
        full["agent_kib_before"] = json!(self.memory_before_kib);
        full["agent_kib_after"] = json!(self.memory_after_kib);
        full["told"] = json!(self.told);
        println!("{}: {full:#}", self.fault);
        merge("summary.json", self.fault, brief);
        merge("details.json", self.fault, full);
        let missed = self.missed();
        assert!(missed.is_empty(), "{}: {}", self.fault, missed.join("; "));
    }
}

/// The details as a table for the docs.
fn table(all: &Map<String, Value>) -> String {
    let mut text = String::from(
        "| fault | sent | failed | excused | slowest | converged after | stale for | agent, of one core | in its busiest 5 s | Consul, busiest \
         second | agent's memory |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for (fault, row) in all {
        let ms = |name: &str| {
            row[name]
                .as_f64()
                .map_or("".to_owned(), |ms| format!("{ms:.0} ms"))
        };
        let number = |name: &str| row[name].as_u64().unwrap_or(0);
        let excused = match row["excused_for"]
            .as_object()
            .filter(|reasons| !reasons.is_empty())
        {
            None => "0".to_owned(),
            Some(reasons) => {
                let reasons = reasons.iter().map(|(reason, count)| format!("{count} {reason}"));
                reasons.collect::<Vec<_>>().join(", ")
            }
        };
        text.push_str(&format!(
            "| `{fault}` | {} | {} | {excused} | {} | {} | {} | {:.0} % | {:.0} % | {} | {} to {} MiB |\n",
            number("sent"),
            number("failed"),
            ms("worst_ms"),
            ms("converge_ms"),
            ms("stale_ms"),
            row["agent_cpu_share"].as_f64().unwrap_or(0.0) * 100.0,
            row["agent_cpu_share_busiest_5s"].as_f64().unwrap_or(0.0) * 100.0,
            number("consul_busiest_second"),
            number("agent_kib_before") / 1024,
            number("agent_kib_after") / 1024,
        ));
    }
    text
}

pub fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(if is_long() {
        "target/chaos"
    } else {
        "target/chaos-short"
    })
}

/// Puts a row of this name into a file of the results.
pub fn merge(file: &str, fault: &str, row: Value) {
    // Faults may run side by side.
    static WRITING: Mutex<()> = Mutex::new(());
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = directory();
    std::fs::create_dir_all(&directory).expect("a directory for the summary");
    // A fault in a network of its own is played by another process.
    let lock = std::fs::File::create(directory.join("lock")).expect("a lock for the summary");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("a lock for the summary");
    let path = directory.join(file);
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    let mut all: Map<String, Value> = serde_json::from_str(&old).unwrap_or_default();
    all.insert(fault.to_owned(), row);
    let text = serde_json::to_string_pretty(&all).expect("a summary");
    let write = |path: &PathBuf, text: String| {
        std::fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    };
    write(&path, text + "\n");
    if file == "details.json" {
        write(&directory.join("table.md"), table(&all));
    }
}
