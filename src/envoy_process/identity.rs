//! Who a process is, as /proc tells it.
//!
//! A pid alone names nothing: it is reused. Pid, start time and boot together do.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// One process of this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub pid: u32,
    /// Clock ticks after boot, field 22 of /proc/<pid>/stat.
    pub start_time: u64,
}

impl Identity {
    /// The living process with this pid. A zombie counts as dead: it serves nothing, it only waits to be reaped.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start_time) = parse_stat(&stat)?;
        (!matches!(state, 'Z' | 'X')).then_some(Self { pid, start_time })
    }

    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// An Envoy of ours in the process table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundEnvoy {
    pub identity: Identity,
    pub base_id: u32,
    pub epoch: u32,
    /// Its command line, program and all.
    pub arguments: Vec<String>,
}

/// Finds every living Envoy of this user that was started with our bootstrap file.
///
/// The record alone is not enough: an agent killed between starting Envoy and writing it down leaves one unrecorded.
pub(super) fn find_envoys(bootstrap: &Path) -> Vec<FoundEnvoy> {
    let mut found: Vec<FoundEnvoy> = own_processes()
        .filter_map(|pid| recognise(pid, bootstrap))
        .collect();
    found.sort_by_key(|envoy| (envoy.identity.start_time, envoy.epoch));
    found
}

/// Finds the Envoy that a `portreeve envoy run` became with our bootstrap file.
///
/// The lock says it too, but that of an older version took none, and lives until its unit or task is started again.
pub(super) fn find_run(bootstrap: &Path) -> Option<u32> {
    own_processes().find(|pid| {
        let living = Identity::of(*pid).and_then(|_| command_line(*pid));
        living.is_some_and(|arguments| is_of_run(&arguments, bootstrap)) && runs_envoy(*pid)
    })
}

fn own_processes() -> impl Iterator<Item = u32> {
    let own_uid = rustix::process::geteuid().as_raw();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(move |pid| is_owned_by(*pid, own_uid))
}

fn command_line(pid: u32) -> Option<Vec<String>> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    // Each ends with a NUL, the last one too.
    let arguments = line.strip_suffix(&[0]).unwrap_or(&line).split(|byte| *byte == 0);
    Some(
        arguments
            .map(|argument| String::from_utf8_lossy(argument).into_owned())
            .collect(),
    )
}

/// Reads from its command line whether this process is an Envoy of ours.
pub(super) fn recognise(pid: u32, bootstrap: &Path) -> Option<FoundEnvoy> {
    let identity = Identity::of(pid)?;
    let arguments = command_line(pid)?;
    let (base_id, epoch) = parse_arguments(&arguments, bootstrap)?;
    if !runs_envoy(pid) {
        return None;
    }
    // The pid may have changed hands between the reads.
    (Identity::of(pid) == Some(identity)).then_some(FoundEnvoy {
        identity,
        base_id,
        epoch,
        arguments,
    })
}

/// Unreadable counts as yes: an Envoy with file capabilities (for low ports) hides its link from its own user, and
/// the command line has already named our bootstrap file.
fn runs_envoy(pid: u32) -> bool {
    let Ok(target) = fs::read_link(format!("/proc/{pid}/exe")) else {
        return true;
    };
    let name = target
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    // `envoy`, `envoy-1.40.0-linux-x86_64`, `envoy (deleted)` after an upgrade; a wrapper script on its way to exec.
    name.contains("envoy") || name.starts_with("python") || name.ends_with("sh")
}

/// By all of its user ids: anybody can start a setuid program with arguments of their choice, and such a one we could not
/// even end. The owner of its directory in /proc says less: that of a process with file capabilities belongs to root.
fn is_owned_by(pid: u32, uid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| all_ids_are(&status, uid))
}

/// Real, effective, saved, and that of the file system.
pub(super) fn all_ids_are(status: &str, uid: u32) -> bool {
    let Some(ids) = status.lines().find_map(|line| line.strip_prefix("Uid:")) else {
        return false;
    };
    let mut ids = ids.split_ascii_whitespace().peekable();
    ids.peek().is_some() && ids.all(|id| id.parse() == Ok(uid))
}

pub(super) fn parse_stat(stat: &str) -> Option<(char, u64)> {
    // The command name stands in parentheses and may itself hold any character, also `) `.
    let after_name = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // State is field 3, the start time field 22: 18 lie between.
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}

fn value<'a>(arguments: &'a [String], flag: &str) -> Option<&'a str> {
    let at = arguments.iter().position(|argument| argument == flag)?;
    arguments.get(at + 1).map(String::as_str)
}

fn serves_with(arguments: &[String], bootstrap: &Path) -> bool {
    value(arguments, "-c").is_some_and(|path| Path::new(path) == bootstrap)
        && value(arguments, "--mode") != Some("validate")
}

fn parse_arguments(arguments: &[String], bootstrap: &Path) -> Option<(u32, u32)> {
    if !serves_with(arguments, bootstrap) {
        return None;
    }
    Some((
        value(arguments, "--base-id")?.parse().ok()?,
        value(arguments, "--restart-epoch")?.parse().ok()?,
    ))
}

fn is_of_run(arguments: &[String], bootstrap: &Path) -> bool {
    serves_with(arguments, bootstrap) && arguments.iter().any(|argument| argument == NO_HOT_RESTART)
}

/// What tells the Envoy of `portreeve envoy run` from one that is supervised, in every version.
pub(super) const NO_HOT_RESTART: &str = "--disable-hot-restart";

/// Changes with every boot, so that a record from before it matches nothing.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stat_behind_a_hostile_name() {
        let fields = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 187954 99";
        assert_eq!(
            parse_stat(&format!("77 (a) R 1 (x) S {fields}")),
            Some(('S', 187_954))
        );
        assert_eq!(parse_stat("77 (short) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn knows_itself() {
        let own = Identity::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert!(
            !Identity {
                start_time: own.start_time + 1,
                ..own
            }
            .is_alive()
        );
        assert!(recognise(own.pid, Path::new("/bootstrap.json")).is_none());
    }

    #[test]
    fn a_setuid_program_is_nobodys_envoy() {
        let of = |ids: &str| format!("Name:\tenvoy\nUid:\t{ids}\nGid:\t1\t1\t1\t1\n");
        assert!(all_ids_are(&of("100\t100\t100\t100"), 100));
        assert!(!all_ids_are(&of("100\t0\t0\t0"), 100), "setuid, run by our user");
        assert!(!all_ids_are(&of("200\t0\t0\t0"), 100), "run by another");
        assert!(!all_ids_are(&of("200\t100\t100\t100"), 100));
        assert!(!all_ids_are(&of("0\t0\t0\t0"), 100));
        assert!(!all_ids_are("Name:\tenvoy\nUid:\n", 100));
        assert!(!all_ids_are("", 100));
        let own = rustix::process::geteuid().as_raw();
        assert!(is_owned_by(std::process::id(), own) && !is_owned_by(std::process::id(), own + 1));
    }

    #[test]
    fn recognises_only_serving_envoys_with_our_file() {
        let line = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let ours = Path::new("/run/p/bootstrap.json");
        let serving = line("envoy -c /run/p/bootstrap.json --base-id 7 --restart-epoch 2");
        assert_eq!(parse_arguments(&serving, ours), Some((7, 2)));
        assert_eq!(
            parse_arguments(&serving, Path::new("/run/q/bootstrap.json")),
            None
        );
        let validating = line("envoy --mode validate -c /run/p/bootstrap.json --base-id 7 --restart-epoch 2");
        assert_eq!(parse_arguments(&validating, ours), None);
        assert_eq!(parse_arguments(&line("vi -c"), ours), None);

        let run = line("envoy -c /run/p/bootstrap.json --disable-hot-restart --drain-time-s 20");
        assert!(is_of_run(&run, ours) && !is_of_run(&run, Path::new("/run/q/bootstrap.json")));
        assert_eq!(parse_arguments(&run, ours), None);
        assert!(!is_of_run(&serving, ours));
    }
}
