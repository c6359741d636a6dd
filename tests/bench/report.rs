//! What a run measures as it goes, and the table that is printed.

use std::time::Duration;

use crate::kept::{Group, Kept, Row, median};

pub struct Report {
    kept: Kept,
    build: String,
    /// Whose rows are being measured.
    group: String,
    failures: Vec<String>,
    /// Peers that are not there or were not measured, and why.
    missing: Vec<String>,
    /// Failures before the group that runs.
    earlier: usize,
}

impl Report {
    /// Lays what it measures over what is kept.
    pub fn over(kept: Kept, build: String) -> Report {
        Report {
            kept,
            build,
            group: String::new(),
            failures: Vec::new(),
            missing: Vec::new(),
            earlier: 0,
        }
    }

    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    pub fn begin(&mut self, group: &str) {
        group.clone_into(&mut self.group);
        self.kept.begin(group, &self.build);
        self.earlier = self.failures.len();
    }

    /// From here on a run that ends early does not lose this group.
    pub fn end(&mut self, took: Duration) {
        let whole = self.failures.len() == self.earlier;
        for group in &mut self.kept.groups {
            if group.name == self.group {
                group.whole = whole;
                group.seconds = Some(took.as_secs_f64());
            }
        }
        self.kept.write();
    }

    /// All groups of a whole run have ended.
    pub fn run_is_over(&mut self, groups: &[&str]) {
        self.kept.run_is_over(groups);
        self.kept.write();
    }

    /// One round's value.
    pub fn add(&mut self, name: &str, unit: &'static str, value: f64) {
        eprintln!("bench:   {name} = {} {unit}", shown(value));
        self.row(name, unit).values.push(value);
    }

    /// With the floor of the same round.
    pub fn add_over(&mut self, name: &str, unit: &'static str, value: f64, floor: f64) {
        self.add(name, unit, value);
        self.row(name, unit).floors.push(floor);
    }

    /// With what is promised, which is the same in every round.
    pub fn add_under(&mut self, name: &str, unit: &'static str, value: f64, ceiling: f64) {
        self.add(name, unit, value);
        self.row(name, unit).ceiling = Some(ceiling);
    }

    /// One round's value of another gateway, and ours of the same round.
    pub fn add_peer(&mut self, peer: &str, metric: &str, unit: &'static str, theirs: f64, ours: f64) {
        self.add_over(&format!("peer_{peer}_{metric}"), unit, theirs, ours);
    }

    pub fn absent(&mut self, peer: &str, why: &str) {
        self.miss(format!("peer {peer} is absent: {why}"));
    }

    /// It is there and did not do what it was asked.
    pub fn peer_failed(&mut self, peer: &str, metric: &str, why: &str) {
        self.miss(format!("peer {peer} has no {metric}: {why}"));
    }

    fn miss(&mut self, line: String) {
        if !self.missing.contains(&line) {
            eprintln!("bench:   {line}");
            self.missing.push(line);
        }
    }

    /// Wrong answers, not slow ones.
    pub fn fail(&mut self, what: String) {
        eprintln!("bench:   WRONG: {what}");
        self.failures.push(what);
    }

    pub fn failure(&self) -> Option<String> {
        (!self.failures.is_empty()).then(|| self.failures.join("; "))
    }

    fn row(&mut self, name: &str, unit: &'static str) -> &mut Row {
        self.kept.row_mut(&self.group, name, unit)
    }

    /// All that is kept, each row with its floor and the peers that were measured beside it.
    pub fn print(&self) {
        println!(
            "{:<36} {:>12} {:<9} {:>22} {:>12} {:>9}",
            "metric", "median", "unit", "lowest..highest", "floor", "ratio"
        );
        for group in &self.kept.groups {
            if group.build != self.build {
                println!("{}, by another build ({}):", group.name, group.build);
            }
            self.print_group(group);
        }
        if let Some(seconds) = self.kept.run_seconds {
            println!("{:<36} {:>12} s", "run_seconds", shown(seconds));
        }
        for line in &self.missing {
            println!("{line}");
        }
    }

    /// A ratio is the median of the rounds' own: value and floor of one round shared the machine's mood. A ceiling is told
    /// from a floor by its sign; its ratio is that of the highest round.
    fn print_group(&self, group: &Group) {
        // A peer stands below what it is a peer of.
        let is_below = |row: &Row| self.kept.rows().any(|ours| self.is_peer(ours, row));
        for row in group.rows.iter().filter(|row| !is_below(row)) {
            if row.name.starts_with("peer_") {
                print_peer(&row.name, row, None);
                continue;
            }
            let (floor, ratio) = if let Some(ceiling) = row.ceiling {
                let high = row.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                (
                    format!("<= {}", shown(ceiling)),
                    format!("{:.2}x", high / ceiling),
                )
            } else if let Some(floor) = row.floor() {
                let ratio = ratio(&row.values, &row.floors);
                (shown(floor), format!("{ratio:.2}x"))
            } else {
                ("-".to_owned(), "-".to_owned())
            };
            print_row(&row.name, row, &floor, &ratio);
            for (peer, theirs) in self.kept.peers(&row.name) {
                print_peer(&format!("  {peer}"), theirs, Some(row));
            }
        }
    }

    fn is_peer(&self, ours: &Row, row: &Row) -> bool {
        self.kept
            .peers(&ours.name)
            .any(|(_, theirs)| theirs.name == row.name)
    }
}

/// The ratio is ours over theirs, of the same round where the peer's row has ours beside it.
fn print_peer(label: &str, theirs: &Row, ours: Option<&Row>) {
    let (value, ratio) = match (theirs.floor(), ours) {
        (Some(value), _) => (value, ratio(&theirs.floors, &theirs.values)),
        (None, Some(ours)) => (ours.median(), ours.median() / theirs.median()),
        (None, None) => return print_row(label, theirs, "-", "-"),
    };
    let value = format!("ours {}", shown(value));
    print_row(label, theirs, &value, &format!("{ratio:.3}x"));
}

/// The median of the rounds' own.
fn ratio(above: &[f64], below: &[f64]) -> f64 {
    let ratios = above.iter().zip(below).map(|(above, below)| above / below);
    median(&ratios.collect::<Vec<f64>>())
}

fn print_row(label: &str, row: &Row, floor: &str, ratio: &str) {
    let (low, high) = row
        .values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(*value), high.max(*value))
        });
    let spread = format!("{}..{}", shown(low), shown(high));
    println!(
        "{label:<36} {:>12} {:<9} {spread:>22} {floor:>12} {ratio:>9}",
        shown(row.median()),
        row.unit
    );
}

fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}
