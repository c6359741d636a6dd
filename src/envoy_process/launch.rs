//! Starts an Envoy so that nothing ties its life to ours.
//!
//! Envoy ties itself: with hot restart enabled it asks the kernel (`PR_SET_PDEATHSIG`) for a SIGTERM when its parent
//! dies, and "parent" is the thread that forked it. Its parent must therefore be a process that outlives the agent and
//! does nothing else. A shell is at hand everywhere that an agent has children, has one thread and takes 1 MB; it also
//! learns how Envoy ended, and writes it down for whichever agent is there then.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::binary::Binary;
use super::error::{Error, RestartError};
use super::identity::Identity;
use super::process::Process;
use super::record::{RuntimeDirectory, is_private_with, write_private};
use super::settings::Settings;
use crate::envoy::bootstrap::Rendered;

/// What Envoy needs of our environment. The rest may hold tokens.
const ENVIRONMENT: [&str; 7] = [
    "PATH",
    "HOME",
    "LANG",
    "TZ",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Validation of a static file takes about 0.5 s; a cold disk makes it some more.
const VALIDATE_TIMEOUT: Duration = Duration::from_secs(30);

/// `$1` is where the exit status goes, the rest is Envoy's command line. Envoy's pid is told on stdout, which is then
/// given up. SIGPIPE: the agent may be dead before it reads that line, and this must not end Envoy's parent.
const KEEPER: &str = r#"
trap '' PIPE
status=$1
shift
"$@" >&2 &
umask 077
echo $!
exec >&2
wait $!
echo $? >"$status"
"#;

/// The shell only has to fork.
const PID_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything a start needs, made once.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    pub settings: Settings,
    pub runtime: RuntimeDirectory,
    pub binary: Binary,
    pub rendered: Rendered,
}

impl Launch {
    /// Finds the binary and renders the bootstrap. Writes nothing yet.
    pub async fn prepare(settings: Settings, runtime: RuntimeDirectory) -> Result<Self, Error> {
        let search_path = std::env::var_os("PATH");
        let binary = Binary::find(settings.binary.as_deref(), search_path.as_deref()).await?;
        if let Some(warning) = binary.version_warning() {
            tracing::warn!(binary = %binary.path.display(), "{warning}");
        }
        let rendered = settings.bootstrap.render()?;
        Ok(Self {
            settings,
            runtime,
            binary,
            rendered,
        })
    }

    /// Names the bootstrap by its content: an Envoy started with another one is outdated.
    pub fn bootstrap_hash(&self) -> String {
        bootstrap_hash(&self.rendered.bootstrap)
    }

    /// Puts the bootstrap and its files in place.
    pub fn write_bootstrap(&self) -> Result<(), Error> {
        self.write_as(&self.runtime.bootstrap())
    }

    fn write_as(&self, path: &Path) -> Result<(), Error> {
        for (file, content) in &self.rendered.files {
            write_private(file, format!("{content:#}").as_bytes())?;
        }
        write_private(path, self.bootstrap_text().as_bytes())
    }

    fn bootstrap_text(&self) -> String {
        format!("{:#}", self.rendered.bootstrap)
    }

    /// Lets the binary itself judge the bootstrap, before a running Envoy is told to make room.
    pub async fn validate(&self) -> Result<(), RestartError> {
        // Of one that is in place nothing is written: the disk may be full.
        let current = self.runtime.bootstrap();
        let is_in_place = is_private_with(&current, self.bootstrap_text().as_bytes());
        let path = match is_in_place {
            true => current,
            false => self.runtime.next_bootstrap(),
        };
        self.write_as(&path)?;
        let mut command = Command::new(&self.binary.path);
        command
            .args(["--mode", "validate", "--log-level", "error", "-c"])
            .arg(&path);
        restrict_environment(&mut command, &self.settings.pass_environment);
        let spawn = |source| Error::Spawn {
            binary: self.binary.path.clone(),
            source,
        };
        let output = match timeout(VALIDATE_TIMEOUT, command.kill_on_drop(true).output()).await {
            Ok(result) => result.map_err(spawn)?,
            Err(_) => return Err(RestartError::Refused("validation takes too long".to_owned())),
        };
        if !is_in_place {
            // The trial file has served; if it stays it is overwritten the next time.
            let _ = std::fs::remove_file(&path);
        }
        if output.status.success() {
            return Ok(());
        }
        Err(RestartError::Refused(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ))
    }

    /// Starts a process. The first of its line has epoch 0 and a base id of its own.
    pub async fn spawn(&self, base_id: u32, epoch: u32) -> Result<Process, Error> {
        let log = self.open_log()?;
        let status_file = self.runtime.status(base_id, epoch);
        // Of an earlier Envoy with this number, if a record was lost.
        let _ = std::fs::remove_file(&status_file);
        let spawn = |source| Error::Spawn {
            binary: self.binary.path.clone(),
            source,
        };
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", KEEPER, "portreeve-envoy"])
            .arg(&status_file)
            .arg(&self.binary.path)
            .args(self.arguments(base_id, epoch))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // Its own group: Ctrl-C in a terminal is meant for us, and we then say what happens to Envoy.
            .process_group(0)
            .kill_on_drop(false);
        restrict_environment(&mut command, &self.settings.pass_environment);
        // Dropped at the end of this function: the runtime reaps the shell when it ends.
        let mut keeper = command.spawn().map_err(|source| Error::Shell { source })?;
        let watched = match told_pid(&mut keeper).await {
            Ok(pid) => {
                // One that is dead already has no start time. It can still be waited for, and says why.
                let identity = Identity::of(pid).unwrap_or(Identity { pid, start_time: 0 });
                Process::open(identity, base_id, epoch, status_file)
                    .map_err(|source| Error::Watch { pid, source })
            }
            Err(error) => Err(spawn(error)),
        };
        if watched.is_err() {
            end_group(&keeper);
        }
        watched
    }

    fn arguments(&self, base_id: u32, epoch: u32) -> Vec<String> {
        let settings = &self.settings;
        let path = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        let mut arguments: Vec<String> = [
            ("-c", path(self.runtime.bootstrap())),
            ("--base-id", base_id.to_string()),
            ("--restart-epoch", epoch.to_string()),
            ("--socket-path", path(self.runtime.hot_restart_socket())),
            ("--socket-mode", "600".to_owned()),
            (
                "--parent-shutdown-time-s",
                settings.parent_shutdown_time().as_secs().to_string(),
            ),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        arguments.extend(self.common_arguments());
        arguments
    }

    /// The flags that do not depend on who supervises.
    pub fn common_arguments(&self) -> Vec<String> {
        let settings = &self.settings;
        let mut arguments = vec![
            "--drain-time-s".to_owned(),
            settings.drain_time.as_secs().to_string(),
            "--log-level".to_owned(),
            settings.log_level.clone(),
        ];
        // A message of many lines stays one, and hostile input cannot forge lines.
        arguments.push("--log-format-escaped".to_owned());
        if let Some(concurrency) = settings.concurrency {
            arguments.extend([CONCURRENCY.to_owned(), concurrency.to_string()]);
        }
        arguments.extend(settings.extra_arguments.iter().cloned());
        arguments
    }

    /// What of a running Envoy's command line is another in ours: it holds until that Envoy is replaced.
    pub fn changed_arguments(&self, running: &[String]) -> Option<String> {
        changed_arguments(running, &self.common_arguments())
    }

    fn open_log(&self) -> Result<File, Error> {
        let path = self.runtime.log();
        // Append: after we cut the file, Envoy's next line must land at its start and not behind a hole.
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(Error::file("open", path))
    }
}

fn changed_arguments(running: &[String], own: &[String]) -> Option<String> {
    // A script in Envoy's place may add to them, before and behind: no restart would change that.
    let start = running.windows(own.len()).position(|part| part == own);
    // Ours would be the last one, and stand there.
    let is_followed_by_ours = |start: usize| {
        running
            .get(start + own.len())
            .is_some_and(|next| next == CONCURRENCY)
    };
    if start.is_some_and(|start| !is_followed_by_ours(start)) {
        return None;
    }
    let value = |arguments: &[String], flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1).cloned()
    };
    let changed: Vec<&str> = [
        ("--drain-time-s", "drain_time"),
        (CONCURRENCY, "concurrency"),
        ("--log-level", "log_level"),
    ]
    .into_iter()
    .filter(|(flag, _)| value(running, flag) != value(own, flag))
    .map(|(_, setting)| setting)
    .collect();
    Some(match changed[..] {
        // As an agent of another version does.
        [] => "other arguments".to_owned(),
        _ => format!("another {}", changed.join(", another ")),
    })
}

const CONCURRENCY: &str = "--concurrency";

pub(super) fn bootstrap_hash(bootstrap: &Value) -> String {
    blake3::hash(bootstrap.to_string().as_bytes()).to_hex()[..16].to_owned()
}

/// A number for a new line of Envoys. Envoy multiplies it by ten into 32 bits, which leaves 28.
///
/// Chosen here and not by `--use-dynamic-base-id`: so it stands on the command line, where a following agent finds it
/// even if we are killed before writing it down. The sockets lie in our own directory, so that only the name in
/// /dev/shm is shared with other Envoys: one chance in 268 million to meet one.
pub(super) fn new_base_id() -> u32 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&now.to_le_bytes())
        .update(&std::process::id().to_le_bytes());
    let hash = hasher.finalize();
    let [a, b, c, d, ..] = *hash.as_bytes();
    u32::from_le_bytes([a, b, c, d]) & 0x0fff_ffff
}

async fn told_pid(keeper: &mut Child) -> io::Result<u32> {
    let mut line = String::new();
    if let Some(stdout) = keeper.stdout.take() {
        let told = BufReader::new(stdout);
        timeout(PID_TIMEOUT, told.take(32).read_line(&mut line))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    }
    let pid = line.trim().parse();
    pid.map_err(|_| io::Error::other("its shell told no process id"))
}

/// The shell and what it started: an Envoy that nobody watches would share the ports of the next one.
fn end_group(keeper: &Child) {
    let group = keeper.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(group) = group {
        // Gone already is as well.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

fn restrict_environment(command: &mut Command, also: &[String]) {
    command.env_clear().envs(allowed_environment(also));
}

pub(super) fn allowed_environment(also: &[String]) -> impl Iterator<Item = (&str, OsString)> {
    let names = ENVIRONMENT.into_iter().chain(also.iter().map(String::as_str));
    names.filter_map(|name| Some((name, std::env::var_os(name)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_script_adds_to_the_arguments_is_no_change() {
        let changed = |running: &str, own: &str| {
            let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
            changed_arguments(&words(running), &words(own))
        };
        let own = "--drain-time-s 20 --log-level info --log-format-escaped";
        let with_workers = format!("{own} --concurrency 2");
        for own in [own, &with_workers] {
            for line in [
                format!("envoy -c /b --base-id 7 {own}"),
                format!("envoy -c /b {own} --component-log-level http:debug"),
                format!("envoy --cpuset-threads -c /b {own} --use-dynamic-base-id"),
            ] {
                assert_eq!(changed(&line, own), None, "{line}");
            }
        }
        let is = |text: &str| Some(text.to_owned());
        let running = format!("envoy -c /b {with_workers} --cpuset-threads");
        assert_eq!(
            changed(&running, own),
            is("another concurrency"),
            "left out since"
        );
        let other = with_workers.replace(" 20 ", " 9 ");
        assert_eq!(changed(&running, &other), is("another drain_time"));
        let former = running.replace("--log-format-escaped ", "");
        assert_eq!(changed(&former, &with_workers), is("other arguments"));
    }

    #[test]
    fn base_ids_fit_and_differ() {
        let ids: std::collections::BTreeSet<u32> = (0..100).map(|_| new_base_id()).collect();
        assert!(ids.len() > 95);
        assert!(
            ids.iter()
                .all(|id| id.checked_mul(10).and_then(|id| id.checked_add(2)).is_some())
        );
    }
}
