//! Brings Envoy's log into ours.
//!
//! Envoy writes to a file, because it must not die with the reader of a pipe. We follow the file and cut it when it
//! has grown: it is a buffer. While no agent lives nobody cuts it; Envoy's own level keeps that small.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// A person who watches the log sees no delay; five `fstat`s a second cost nothing.
const INTERVAL: Duration = Duration::from_millis(200);
/// Read in one go at most, so that a flood cannot take our memory.
const CHUNK: u64 = 256 << 10;
/// A line without an end is shown in pieces of this size.
const LONGEST_LINE: usize = 32 << 10;
/// Told with a death: Envoy's fatal messages are one to three lines, a crash's backtrace begins with two.
const REMEMBERED: usize = 5;

#[derive(Clone, Debug)]
pub(super) struct LogTail {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    limit_bytes: u64,
    file: Option<File>,
    offset: u64,
    partial: Vec<u8>,
    level: Level,
    /// Lines at warning and above, or in no known format.
    remembered: VecDeque<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Trace,
    Debug,
    Warn,
    Error,
}

impl LogTail {
    /// Follows from the present end: what stands before was told by a former agent, or was written without one.
    pub fn new(path: &Path, limit_bytes: u64) -> Self {
        let offset = std::fs::metadata(path).map(|meta| meta.len()).unwrap_or(0);
        let inner = Inner {
            path: path.to_owned(),
            limit_bytes,
            file: None,
            offset,
            partial: Vec::new(),
            level: Level::Debug,
            remembered: VecDeque::new(),
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// Follows until dropped.
    pub async fn follow(self) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.catch_up();
        }
    }

    /// Tells all that was written so far.
    pub fn catch_up(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = inner.read_and_cut() {
            // Also on a full disk: the gateway serves on, only its messages are missing.
            if error.kind() != io::ErrorKind::NotFound {
                tracing::debug!(path = %inner.path.display(), %error, "cannot read Envoy's log");
            }
        }
    }

    /// The last telling lines since the last call.
    pub fn take_last_lines(&self) -> String {
        self.catch_up();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<String> = inner.remembered.drain(..).collect();
        lines.join(" | ")
    }
}

impl Inner {
    fn read_and_cut(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(OpenOptions::new().read(true).write(true).open(&self.path)?);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let length = file.metadata()?.len();
        if length < self.offset {
            // Someone else has cut it.
            self.offset = 0;
        }
        let mut chunk = Vec::new();
        if length > self.offset {
            file.seek(SeekFrom::Start(self.offset))?;
            file.take(CHUNK).read_to_end(&mut chunk)?;
            self.offset += chunk.len() as u64;
        }
        // What Envoy writes between the read and the cut is lost to us: microseconds, once in 16 MiB.
        if self.offset >= self.limit_bytes {
            file.set_len(0)?;
            self.offset = 0;
        }
        for byte in chunk {
            if byte == b'\n' || self.partial.len() >= LONGEST_LINE {
                let line = std::mem::take(&mut self.partial);
                self.tell(&String::from_utf8_lossy(&line));
            }
            if byte != b'\n' {
                self.partial.push(byte);
            }
        }
        Ok(())
    }

    fn tell(&mut self, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        let (logger, message) = match parse(line) {
            Some(parsed) => {
                self.level = parsed.level;
                (Some(parsed.logger), parsed.message)
            }
            // Not by Envoy's logger: a crash, the loader, a wrapper. It goes on at the level of what stands before.
            None => (None, line),
        };
        if logger.is_none() || matches!(self.level, Level::Warn | Level::Error) {
            if self.remembered.len() == REMEMBERED {
                self.remembered.pop_front();
            }
            self.remembered.push_back(message.trim().to_owned());
        }
        let is_told_elsewhere = logger.is_some() && is_told_by_xds(message);
        let logger = logger.unwrap_or("stderr");
        match self.level {
            Level::Warn | Level::Error if is_told_elsewhere => {
                tracing::debug!(target: "envoy", logger, "{message}");
            }
            Level::Trace => tracing::trace!(target: "envoy", logger, "{message}"),
            Level::Debug => tracing::debug!(target: "envoy", logger, "{message}"),
            Level::Warn => tracing::warn!(target: "envoy", logger, "{message}"),
            Level::Error => tracing::error!(target: "envoy", logger, "{message}"),
        }
    }
}

/// What Envoy says to its xDS server too, which tells it with the document behind it, and once: Envoy repeats it at each
/// try, in up to three lines.
fn is_told_by_xds(message: &str) -> bool {
    let of_config = ["lds: ", "cds: ", "gRPC config for ", "delta config for "];
    let is_rejection =
        message.contains(" rejected: ") && of_config.iter().any(|start| message.starts_with(start));
    is_rejection || message.contains("failed to bind or apply socket options")
}

pub(super) struct Line<'a> {
    level: Level,
    logger: &'a str,
    message: &'a str,
}

/// Reads `[date time][thread][level][logger] [file:line] message`.
pub(super) fn parse(line: &str) -> Option<Line<'_>> {
    let mut rest = line;
    let mut bracket = || {
        let inside = rest.trim_start().strip_prefix('[')?;
        let (content, after) = inside.split_once(']')?;
        rest = after;
        Some(content)
    };
    let date = bracket()?;
    let thread = bracket()?;
    if !date.starts_with(|first: char| first.is_ascii_digit()) || thread.parse::<u64>().is_err() {
        return None;
    }
    let level = match bracket()? {
        "trace" => Level::Trace,
        // Envoy tells 130 lines at info when it starts (its extensions, its flags): detail to an operator of ours.
        "debug" | "info" => Level::Debug,
        "warning" => Level::Warn,
        "error" | "critical" => Level::Error,
        _ => return None,
    };
    let logger = bracket()?;
    let _source = bracket()?;
    Some(Line {
        level,
        logger,
        message: rest.trim_start(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn reads_envoys_format() {
        let line =
            "[2026-11-23 19:18:06.291][18484][warning][main] [source/server/server.cc:1028] caught [x] SIG";
        let parsed = parse(line).unwrap();
        assert_eq!(
            (parsed.level, parsed.logger, parsed.message),
            (Level::Warn, "main", "caught [x] SIG")
        );
        assert!(parse("error initializing configuration").is_none());
        assert!(parse("[not][an][envoy] line").is_none());
    }

    #[test]
    fn follows_cuts_and_remembers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("envoy.log");
        std::fs::write(&path, "told before\n").unwrap();
        let tail = LogTail::new(&path, 1000);
        let mut writer = OpenOptions::new().append(true).open(&path).unwrap();
        write!(
            writer,
            "[2026-11-23 19:18:06.291][1][info][main] [a.cc:1] started\nhalf a "
        )
        .unwrap();
        tail.catch_up();
        writeln!(writer, "line").unwrap();
        assert_eq!(tail.take_last_lines(), "half a line");
        assert_eq!(tail.take_last_lines(), "");
        for number in 0..100 {
            writeln!(writer, "line {number:020}").unwrap();
        }
        tail.catch_up();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        writeln!(writer, "after the cut").unwrap();
        let last = tail.take_last_lines();
        assert!(last.ends_with("00099 | after the cut"), "{last}");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 14);
    }
}
