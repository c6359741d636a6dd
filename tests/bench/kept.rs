//! What the runs have measured so far, group by group: a run that is cut off loses the group it was at, and a later one
//! goes on from there.
//!
//! `target/bench/rows.json` holds every round; `summary.json`, a flat map of names and medians, is made of it. Runs with
//! small sizes are kept apart, with a summary and pictures of their own, in `target/bench/quick`: they must not take the
//! place of hours of the others, and a name means the same sizes wherever it stands.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Kept {
    pub groups: Vec<Group>,
    /// How long the last whole run took.
    pub run_seconds: Option<f64>,
    #[serde(skip)]
    quick: bool,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Group {
    pub name: String,
    /// What measured it.
    pub build: String,
    /// To its end, and without a wrong answer.
    pub whole: bool,
    /// None: it is not at its end.
    pub seconds: Option<f64>,
    pub rows: Vec<Row>,
}

#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    pub unit: String,
    /// One per round.
    pub values: Vec<f64>,
    pub floors: Vec<f64>,
    /// What it may not be more than. None of its rounds has a floor then.
    pub ceiling: Option<f64>,
}

impl Kept {
    pub fn read(quick: bool) -> Kept {
        let text = std::fs::read_to_string(folder(quick).join(ROWS)).unwrap_or_default();
        let kept: Kept = serde_json::from_str(&text).unwrap_or_default();
        Kept { quick, ..kept }
    }

    /// With the summary that goes with it.
    pub fn write(&self) {
        let folder = self.folder();
        std::fs::create_dir_all(&folder).expect("target/bench");
        let rows = serde_json::to_string_pretty(self).expect("rows");
        write(&folder, ROWS, &rows);
        let medians = self.rows().map(|row| (row.name.clone(), row.median().into()));
        let mut map: Map<String, Value> = medians.collect();
        if let Some(seconds) = self.run_seconds {
            map.insert("run_seconds".to_owned(), seconds.into());
        }
        let summary = serde_json::to_string_pretty(&map).expect("numbers");
        write(&folder, "summary.json", &summary);
    }

    /// Where it is kept, and what is drawn of it.
    pub fn folder(&self) -> PathBuf {
        folder(self.quick)
    }

    /// Without what other builds measured, and before a whole run of this one is over.
    pub fn of_build(mut self, build: &str) -> Kept {
        self.groups.retain(|group| group.build == build);
        self.run_seconds = None;
        self
    }

    /// A whole run of these groups is over. Those that an earlier one had measured already took what they took then.
    pub fn run_is_over(&mut self, groups: &[&str]) {
        let seconds = |name: &&str| self.groups.iter().find(|group| group.name == **name)?.seconds;
        self.run_seconds = groups.iter().map(seconds).sum();
    }

    pub fn has(&self, group: &str, build: &str) -> bool {
        self.groups
            .iter()
            .any(|one| one.name == group && one.build == build && one.whole)
    }

    /// An empty group in place of the one of that name.
    pub fn begin(&mut self, name: &str, build: &str) {
        let group = Group {
            name: name.to_owned(),
            build: build.to_owned(),
            whole: false,
            seconds: None,
            rows: Vec::new(),
        };
        match self.groups.iter_mut().find(|one| one.name == name) {
            Some(old) => *old = group,
            None => self.groups.push(group),
        }
    }

    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.groups.iter().flat_map(|group| &group.rows)
    }

    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows().find(|row| row.name == name)
    }

    /// The row of the group, made if need be. A row of that name in another group is of the past.
    pub fn row_mut(&mut self, group: &str, name: &str, unit: &str) -> &mut Row {
        for other in self.groups.iter_mut().filter(|one| one.name != group) {
            other.rows.retain(|row| row.name != name);
        }
        let group = self.groups.iter_mut().find(|one| one.name == group);
        let rows = &mut group.expect("a group that has begun").rows;
        if let Some(at) = rows.iter().position(|row| row.name == name) {
            return &mut rows[at];
        }
        rows.push(Row {
            name: name.to_owned(),
            unit: unit.to_owned(),
            ..Row::default()
        });
        rows.last_mut().expect("a row")
    }

    /// Those of peers that measure the same as a row of ours, `peer_<name>_<row>`: the name and the row. What stands as
    /// floor in such a row is ours of the same round.
    pub fn peers<'a>(&'a self, row: &'a str) -> impl Iterator<Item = (&'a str, &'a Row)> {
        let named = move |other: &'a Row| {
            let rest = other.name.strip_prefix("peer_")?;
            rest.strip_suffix(row)?.strip_suffix('_')
        };
        self.rows().filter_map(move |other| Some((named(other)?, other)))
    }
}

impl Row {
    pub fn median(&self) -> f64 {
        median(&self.values)
    }

    pub fn floor(&self) -> Option<f64> {
        (!self.floors.is_empty()).then(|| median(&self.floors))
    }
}

/// Lays one figure over those that are kept.
pub fn merge(name: &str, value: f64, build: &str) {
    const GROUP: &str = "counted";
    let mut kept = Kept::read(false);
    if !kept
        .groups
        .iter()
        .any(|group| group.name == GROUP && group.build == build)
    {
        kept.begin(GROUP, build);
    }
    kept.row_mut(GROUP, name, "").values = vec![value];
    kept.write();
}

/// Whether this build has measured it.
pub fn has_row(name: &str, build: &str) -> bool {
    Kept::read(false).of_build(build).row(name).is_some()
}

/// This program and the agent that it starts: figures of two builds are not mixed unawares.
pub fn build() -> String {
    let this = std::env::current_exe().expect("this program");
    let mut hasher = blake3::Hasher::new();
    for program in [this, env!("CARGO_BIN_EXE_portreeve").into()] {
        hasher.update(&std::fs::read(program).expect("a program"));
    }
    hasher.finalize().to_hex()[..12].to_owned()
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => (sorted[length / 2 - 1] + sorted[length / 2]) / 2.0,
    }
}

const ROWS: &str = "rows.json";

fn folder(quick: bool) -> PathBuf {
    let all = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    if quick { all.join("quick") } else { all }
}

/// Whole or not at all: what is there is worth hours.
fn write(folder: &Path, name: &str, text: &str) {
    let (path, next) = (folder.join(name), folder.join(format!("{name}.next")));
    std::fs::write(&next, format!("{text}\n")).expect("target/bench");
    std::fs::rename(next, path).expect("target/bench");
}
