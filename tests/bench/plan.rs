//! What to run, as the command line says it.

use std::fmt::Write as _;

pub struct Plan {
    pub quick: bool,
    pub rounds: usize,
    full: bool,
    again: bool,
    only: Option<Vec<String>>,
}

impl Plan {
    /// A word that nobody knows is an error: a misspelt `--only` would run everything for half an hour.
    pub fn parse(words: &[&str], groups: &[&str]) -> Result<Plan, String> {
        let (mut quick, mut full, mut again, mut rounds, mut only) = (false, false, false, None, None);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--quick" => quick = true,
                "--full" => full = true,
                "--again" => again = true,
                "--rounds" => rounds = Some(number_of_rounds(words.next(), groups)?),
                "--only" => only = Some(chosen(words.next(), groups)?),
                unknown => return Err(failure(&format!("there is no flag {unknown:?}"), groups)),
            }
        }
        if quick && full {
            return Err(failure("--full has no small sizes for --quick", groups));
        }
        Ok(Plan {
            quick,
            full,
            again,
            rounds: rounds.unwrap_or(if quick { 1 } else { 3 }),
            only,
        })
    }

    /// A group that takes long is run by name, or with all that there are.
    pub fn wants(&self, group: &str, long: bool) -> bool {
        match &self.only {
            Some(only) => only.iter().any(|one| one == group),
            None => self.full || !long,
        }
    }

    /// What this build has measured to its end is not measured again.
    pub fn goes_on(&self) -> bool {
        self.full && !self.again
    }

    pub fn is_partial(&self) -> bool {
        self.only.is_some()
    }
}

fn number_of_rounds(word: Option<&&str>, groups: &[&str]) -> Result<usize, String> {
    let number = word.and_then(|word| word.parse().ok());
    number
        .filter(|number| *number > 0)
        .ok_or_else(|| failure("--rounds needs a number from 1", groups))
}

fn chosen(word: Option<&&str>, groups: &[&str]) -> Result<Vec<String>, String> {
    let chosen = word.ok_or_else(|| failure("--only needs names of groups", groups))?;
    let chosen: Vec<String> = chosen.split(',').map(str::to_owned).collect();
    match chosen.iter().find(|one| !groups.contains(&one.as_str())) {
        Some(unknown) => Err(failure(&format!("there is no group {unknown:?}"), groups)),
        None => Ok(chosen),
    }
}

/// What is wrong, and all that would be right.
fn failure(what: &str, groups: &[&str]) -> String {
    let mut text = format!("{what}; these flags are known:\n");
    for (flag, meaning) in [
        ("--quick", "small sizes, one round"),
        (
            "--full",
            "the groups that take long too, but none that this build has measured",
        ),
        ("--again", "with --full: those too"),
        ("--rounds N", "so many rounds; 3 otherwise"),
    ] {
        _ = writeln!(text, "  {flag:<14} {meaning}");
    }
    _ = write!(
        text,
        "  {:<14} only these groups: {}",
        "--only A,B",
        groups.join(", ")
    );
    text
}
