//! The table that is printed and the flat map that is kept.

use std::path::PathBuf;

use serde_json::{Map, Value};

#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    failures: Vec<String>,
}

struct Row {
    name: String,
    unit: &'static str,
    /// One per round.
    values: Vec<f64>,
    floors: Vec<f64>,
    /// What it may not be more than. None of its rounds has a floor then.
    ceiling: Option<f64>,
}

impl Report {
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

    /// Wrong answers, not slow ones.
    pub fn fail(&mut self, what: String) {
        self.failures.push(what);
    }

    pub fn failure(&self) -> Option<String> {
        (!self.failures.is_empty()).then(|| self.failures.join("; "))
    }

    fn row(&mut self, name: &str, unit: &'static str) -> &mut Row {
        if let Some(at) = self.rows.iter().position(|row| row.name == name) {
            return &mut self.rows[at];
        }
        self.rows.push(Row {
            name: name.to_owned(),
            unit,
            values: Vec::new(),
            floors: Vec::new(),
            ceiling: None,
        });
        self.rows.last_mut().expect("a row")
    }

    /// A ratio is the median of the rounds' own: value and floor of one round shared the machine's mood. A ceiling is told
    /// from a floor by its sign; its ratio is that of the highest round.
    pub fn print(&self) {
        println!(
            "{:<32} {:>12} {:<9} {:>22} {:>12} {:>8}",
            "metric", "median", "unit", "lowest..highest", "floor", "ratio"
        );
        for row in &self.rows {
            let value = median(&row.values);
            let (low, high) = row
                .values
                .iter()
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                    (low.min(*value), high.max(*value))
                });
            let spread = format!("{}..{}", shown(low), shown(high));
            let (floor, ratio) = if let Some(ceiling) = row.ceiling {
                (
                    format!("<= {}", shown(ceiling)),
                    format!("{:.2}x", high / ceiling),
                )
            } else if row.floors.is_empty() {
                ("-".to_owned(), "-".to_owned())
            } else {
                let ratios = row.values.iter().zip(&row.floors);
                let ratios: Vec<f64> = ratios.map(|(value, floor)| value / floor).collect();
                (shown(median(&row.floors)), format!("{:.2}x", median(&ratios)))
            };
            println!(
                "{:<32} {:>12} {:<9} {spread:>22} {floor:>12} {ratio:>8}",
                row.name,
                shown(value),
                row.unit
            );
        }
    }

    /// A partial run is laid over what is there, a whole one replaces it.
    pub fn write(&self, partial: bool) {
        let mut map = if partial { read() } else { Map::new() };
        for row in &self.rows {
            map.insert(row.name.clone(), median(&row.values).into());
        }
        write(&map);
    }
}

/// Lays one figure over those of the last run.
pub fn merge(name: &str, value: f64) {
    let mut map = read();
    map.insert(name.to_owned(), value.into());
    write(&map);
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench/summary.json")
}

fn read() -> Map<String, Value> {
    let text = std::fs::read_to_string(path()).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn write(map: &Map<String, Value>) {
    let path = path();
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("target/bench");
    let text = serde_json::to_string_pretty(map).expect("numbers");
    std::fs::write(&path, text + "\n").expect("summary.json");
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => (sorted[length / 2 - 1] + sorted[length / 2]) / 2.0,
    }
}

fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}
