//! One thing that must be there, and what is done about it.

use serde_json::Value;

use crate::cli::failure::Failure;
use crate::cli::terminal::{Color, Terminal};
use crate::model::ProblemKind;
use crate::sources::agent_api::{ApiClient, ApiError, Product};

/// One server, and whether it may be changed.
pub(super) struct Server<'a> {
    pub client: &'a ApiClient,
    pub dry_run: bool,
    pub terminal: &'a mut Terminal,
    /// The right that all of it takes, for whoever is refused.
    needs: &'static str,
    changes: usize,
}

/// A thing of one server.
pub(super) struct Desired<'a> {
    /// As printed: `policy portreeve`.
    pub what: String,
    /// What is there now, if anything.
    pub found: Option<Value>,
    pub wanted: Value,
    /// Where it is written, created or changed.
    pub path: &'a str,
}

impl<'a> Server<'a> {
    pub fn new(
        client: &'a ApiClient,
        dry_run: bool,
        terminal: &'a mut Terminal,
        needs: &'static str,
    ) -> Self {
        Self {
            client,
            dry_run,
            terminal,
            needs,
            changes: 0,
        }
    }

    pub async fn read(&self, path: &str) -> anyhow::Result<Option<Value>> {
        self.read_with(path, &[]).await
    }

    pub async fn read_with(
        &self,
        path: &str,
        query: &[(&'static str, &str)],
    ) -> anyhow::Result<Option<Value>> {
        let read = self.client.read_json(path, query).await;
        Ok(read.map_err(|error| failure(&error, self.client.product(), self.needs))?)
    }

    /// For what is only worth a word: `None` where the token may not look, or nobody answers.
    pub async fn look(&self, path: &str) -> Option<Option<Value>> {
        self.client.read_json(path, &[]).await.ok()
    }

    /// Something that setup does not make is missing.
    pub fn warn(&mut self, text: &str) -> anyhow::Result<()> {
        self.say(Color::Yellow, "!", text)
    }

    /// Writes what is missing or differs, and says so.
    pub async fn ensure(&mut self, desired: Desired<'_>) -> anyhow::Result<()> {
        let differs = match &desired.found {
            None => None,
            Some(found) => {
                let differs = differing(found, &desired.wanted);
                if differs.is_empty() {
                    return self.say(Color::Cyan, "=", &format!("{} is there", desired.what));
                }
                Some(differs.join(", "))
            }
        };
        let (sign, verb) = match (&differs, self.dry_run) {
            (None, true) => ("+", "would be created"),
            (None, false) => ("+", "created"),
            (Some(_), true) => ("~", "would be changed"),
            (Some(_), false) => ("~", "changed"),
        };
        if !self.dry_run {
            self.client
                .write_json(desired.path, &desired.wanted)
                .await
                .map_err(|error| failure(&error, self.client.product(), self.needs))?;
        }
        self.changes += 1;
        let which = differs.map(|differs| format!(": {differs}")).unwrap_or_default();
        self.say(Color::Green, sign, &format!("{} {verb}{which}", desired.what))
    }

    pub fn finish(self) -> anyhow::Result<()> {
        let server = self.client.address();
        let text = match (self.changes, self.dry_run) {
            (0, _) => format!("Nothing to do at {server}."),
            (changes, true) => {
                format!("{changes} to do at {server}. Nothing was changed: run it without -dry-run.")
            }
            (changes, false) => format!("{changes} done at {server}."),
        };
        Ok(self.terminal.line(text)?)
    }

    fn say(&mut self, color: Color, sign: &str, text: &str) -> anyhow::Result<()> {
        let sign = self.terminal.paint(color, sign);
        Ok(self.terminal.line(format!("{sign} {text}"))?)
    }
}

/// The fields of `wanted` that `found` has otherwise. What else it has is somebody's own.
fn differing(found: &Value, wanted: &Value) -> Vec<String> {
    let Some(wanted) = wanted.as_object() else {
        return Vec::new();
    };
    let differs = |(name, value): (&String, &Value)| {
        (!same(found.get(name).unwrap_or(&Value::Null), value)).then(|| name.clone())
    };
    wanted.iter().filter_map(differs).collect()
}

/// Servers leave out what is empty, add what they know, and keep lists as sets.
fn same(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && wanted.iter().all(|w| found.iter().any(|f| same(f, w)))
        }
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(name, value)| same(found.get(name).unwrap_or(&Value::Null), value)),
        (Value::Null, Value::String(text)) => text.is_empty(),
        (Value::Null, Value::Array(list)) => list.is_empty(),
        (Value::String(found), Value::String(wanted)) => found.trim() == wanted.trim(),
        _ => found == wanted,
    }
}

fn failure(error: &ApiError, product: Product, needs: &str) -> Failure {
    let problem = error.problem();
    let failure = Failure::new(problem.message.to_string());
    // Of a refusal other fixes speak of the agent's settings, which setup does not read.
    let is_about_rights = problem.kind.is_refusal() && problem.kind != ProblemKind::Blocked;
    match &problem.fix {
        Some(fix) if !is_about_rights => failure.fix(fix.to_string()),
        _ => failure.fix(format!(
            "setup needs {needs}: put it into a file and name that as -token-file, or set {}; the agent itself does not need it",
            product.token_variable()
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_wanted_is_compared() {
        let found = json!({ "Name": "p", "Policies": [{ "ID": "1", "Name": "b" }, { "ID": "2", "Name": "a" }], "Hash": "x", "Rules": "a\n" });
        let wanted = json!({ "Name": "p", "Policies": [{ "Name": "a" }, { "Name": "b" }], "Rules": "a", "Description": "" });
        assert!(differing(&found, &wanted).is_empty());
        let other = json!({ "Name": "p", "Policies": [{ "Name": "a" }], "Rules": "b" });
        assert_eq!(differing(&found, &other), ["Policies", "Rules"]);
    }
}
