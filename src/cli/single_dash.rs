//! Long flags with one dash, as HashiCorp's tools have them.
//!
//! clap knows `--config`; Consul's, Vault's and Nomad's users write `-config`. Both are taken, and what clap says is
//! shown with one dash.

use std::ffi::OsString;

/// `-name` and `-name=value` become `--name`; single letters, numbers, `-` and what follows `--` stay.
pub fn to_double(arguments: impl IntoIterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut only_values = false;
    arguments.into_iter().map(move |argument| {
        only_values |= argument == "--";
        let long = argument
            .to_str()
            .filter(|_| !only_values)
            .is_some_and(is_long_flag);
        if long {
            let mut double = OsString::from("-");
            double.push(argument);
            double
        } else {
            argument
        }
    })
}

fn is_long_flag(argument: &str) -> bool {
    let Some(name) = argument.strip_prefix('-') else {
        return false;
    };
    let name = name.split('=').next().unwrap_or_default();
    name.len() > 1
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// Help and error texts with one dash before long flags.
pub fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut before = ' ';
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let flag = rest
            .strip_prefix("--")
            .filter(|after| after.starts_with(|c: char| c.is_ascii_lowercase()));
        match flag {
            Some(after) if !(before.is_alphanumeric() || before == '-') => {
                shown.push('-');
                before = '-';
                rest = after;
            }
            _ => {
                shown.push(next);
                before = next;
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_dash_or_two() {
        let given = [
            "portreeve",
            "-config=a",
            "-dev",
            "--node",
            "-n",
            "-",
            "-5",
            "-a.b",
            "--",
            "-dev",
        ];
        let taken: Vec<OsString> = to_double(given.map(OsString::from)).collect();
        let expected = [
            "portreeve",
            "--config=a",
            "--dev",
            "--node",
            "-n",
            "-",
            "-5",
            "-a.b",
            "--",
            "-dev",
        ];
        assert_eq!(taken, expected.map(OsString::from));
    }

    #[test]
    fn shows_one_dash() {
        assert_eq!(
            shown("'--config <PATH>' or -y, --yes [--dev]"),
            "'-config <PATH>' or -y, -yes [-dev]"
        );
        assert_eq!(shown("a -- b --- c x--y"), "a -- b --- c x--y");
    }
}
