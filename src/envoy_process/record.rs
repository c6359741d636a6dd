//! What outlives the agent: the lock that says one is there, and the record of the Envoy it left.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::error::Error;
use super::identity::{Identity, boot_id};

/// Room that Envoy's longest socket name needs behind the directory: `/hot_restart_udp_parent_2684354559`.
const LONGEST_SOCKET_NAME: usize = 34;
/// `sun_path` has 108 bytes, the last one is NUL.
const MAX_SOCKET_PATH: usize = 107;

/// A process that its holder is just starting has the lock too, until it becomes another program: moments, on a busy
/// machine more.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(1);
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The files of one Envoy.
#[derive(Clone, Debug)]
pub(super) struct RuntimeDirectory {
    root: PathBuf,
}

/// The file that names an Envoy as ours.
pub(super) const BOOTSTRAP: &str = "bootstrap.json";
const LOCK: &str = "envoy.lock";
pub(super) const LAST_RUN: &str = "last-run.json";

impl RuntimeDirectory {
    /// Makes it, for our user only: it holds sockets that can stop Envoy, and files that start it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let root = std::path::absolute(path).map_err(Error::file("resolve", path))?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .map_err(Error::file("make", &root))?;
        fs::set_permissions(&root, Permissions::from_mode(0o700)).map_err(Error::file("restrict", &root))?;
        // One spelling only: Envoy is recognised by the path on its command line.
        let root = root.canonicalize().map_err(Error::file("resolve", &root))?;
        let (length, limit) = (root.as_os_str().len(), MAX_SOCKET_PATH - LONGEST_SOCKET_NAME);
        if length > limit {
            return Err(Error::DirectoryTooLong {
                path: root,
                length,
                limit,
            });
        }
        Ok(Self { root })
    }

    pub fn path(&self) -> &Path {
        &self.root
    }

    pub fn bootstrap(&self) -> PathBuf {
        self.root.join(BOOTSTRAP)
    }

    /// A bootstrap on trial, before it takes the place of the one in use.
    pub fn next_bootstrap(&self) -> PathBuf {
        self.root.join("bootstrap.next.json")
    }

    pub fn log(&self) -> PathBuf {
        self.root.join("envoy.log")
    }

    /// The stem of the sockets over which two Envoys hand over. By Envoy's default they are abstract: then anyone on
    /// the machine could ask for our listeners.
    pub fn hot_restart_socket(&self) -> PathBuf {
        self.root.join("hot_restart")
    }

    /// Where the parent of this Envoy writes how it ended.
    pub fn status(&self, base_id: u32, epoch: u32) -> PathBuf {
        self.root.join(format!("exit-status-{base_id}-{epoch}"))
    }

    /// What `portreeve envoy run` started, for where its settings cannot be read.
    pub fn last_run(&self) -> PathBuf {
        self.root.join(LAST_RUN)
    }

    /// A supervisor is here: what it runs is no longer what was run then.
    pub fn forget_last_run(&self) {
        // Missing is the normal case.
        let _ = fs::remove_file(self.last_run());
    }

    fn record(&self) -> PathBuf {
        self.root.join("envoy-state.json")
    }

    /// Takes the lock, or says who has it. The kernel frees it when its holder dies, however it dies.
    pub fn lock(&self, holder: Holder) -> Result<Lock, Error> {
        let path = self.root.join(LOCK);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let directory = self.root.clone();
                return Err(match read_holder(&mut file) {
                    (Holder::Run, holder) => Error::TakenByRun { directory, holder },
                    (Holder::Agent, holder) => Error::Locked { directory, holder },
                });
            }
            Err(errno) => return Err(Error::file("lock", &path)(errno.into())),
        }
        let mark = match holder {
            Holder::Agent => "",
            Holder::Run => RUN_MARK,
        };
        // The same: on a full disk we start without.
        let _ = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}{mark}", std::process::id()));
        Ok(Lock { file })
    }

    /// What the lock says of a run that holds it.
    pub fn taken_by_run(&self, pid: u32) -> Error {
        Error::TakenByRun {
            directory: self.root.clone(),
            holder: pid.to_string(),
        }
    }

    /// The same, unless it is free within that time.
    pub async fn lock_within(&self, patience: Duration, holder: Holder) -> Result<Lock, Error> {
        let deadline = Instant::now() + patience;
        loop {
            match self.lock(holder) {
                Err(Error::Locked { .. } | Error::TakenByRun { .. }) if Instant::now() < deadline => {
                    sleep(LOOK_INTERVAL).await;
                }
                other => return other,
            }
        }
    }

    /// A record that cannot be read is as good as none: the process table is searched anyway.
    pub fn load(&self) -> Option<Record> {
        let bytes = fs::read(self.record()).ok()?;
        match serde_json::from_slice::<Record>(&bytes) {
            Ok(record) if record.boot_id == boot_id() => Some(record),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(path = %self.record().display(), %error, "ignoring an unreadable record of Envoy");
                None
            }
        }
    }

    pub fn save(&self, record: &Record) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(record)
            .map_err(|error| Error::file("encode", self.record())(error.into()))?;
        write_private(&self.record(), &text)
    }

    /// Removes what a dead Envoy leaves behind: its shared memory, and the sockets it handed over with.
    pub fn remove_leftovers(&self, base_id: u32) {
        // Envoy multiplies the base id by ten, and gives each of three epochs a number.
        let scaled = u64::from(base_id) * 10;
        let memory = PathBuf::from(format!("/dev/shm/envoy_shared_memory_{scaled}"));
        let mut paths = vec![memory];
        for epoch in 0..3 {
            for role in ["child", "parent", "udp_child", "udp_parent"] {
                paths.push(self.root.join(format!("hot_restart_{role}_{}", scaled + epoch)));
            }
        }
        let statuses = format!("exit-status-{base_id}-");
        for entry in fs::read_dir(&self.root)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
        {
            if entry.file_name().to_string_lossy().starts_with(&statuses) {
                paths.push(entry.path());
            }
        }
        for path in paths {
            // Missing is the normal case; another user's file is not ours to remove and stays.
            let _ = fs::remove_file(path);
        }
    }
}

/// Who keeps, or is, the Envoy of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    Agent,
    /// `portreeve envoy run`.
    Run,
}

/// Behind the process id, where an agent writes nothing.
const RUN_MARK: &str = " envoy run";

/// Only to be shown, and to say what to do; the lock itself is the proof.
fn read_holder(file: &mut File) -> (Holder, String) {
    let mut text = String::new();
    let _ = file.read_to_string(&mut text);
    let text = text.trim();
    match text.strip_suffix(RUN_MARK) {
        Some(pid) => (Holder::Run, pid.to_owned()),
        None => (Holder::Agent, text.to_owned()),
    }
}

/// Who has the lock of a directory, which need not be there.
pub(super) fn lock_holder(directory: &Path) -> Option<(Holder, String)> {
    let mut file = File::open(directory.join(LOCK)).ok()?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => Some(read_holder(&mut file)),
        // Free, or nobody can have it there.
        _ => None,
    }
}

/// While this lives nobody else keeps an Envoy in the same directory. An agent's is not inherited by Envoy (close-on-exec).
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Lock {
    /// For a process that becomes Envoy: the lock is then held for as long as that lives.
    pub fn keep_over_exec(&self) -> io::Result<()> {
        Ok(rustix::io::fcntl_setfd(&self.file, rustix::io::FdFlags::empty())?)
    }
}

/// What a following agent must know of the Envoy we leave, and cannot read from the process table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub boot_id: String,
    #[serde(flatten)]
    pub identity: Identity,
    pub base_id: u32,
    pub epoch: u32,
    /// Hash of the bootstrap it was started with.
    pub bootstrap: String,
    /// It has been told to drain: not to be taken over as if it served.
    pub leaving: bool,
    /// Others of which the same is true.
    #[serde(default)]
    pub others_leaving: Vec<Identity>,
    /// Those that serve without an admin API, since a hot restart from them failed: they answer no question.
    #[serde(default)]
    pub spoiled: Vec<Identity>,
}

impl Record {
    /// Whether the one that was to take over from this Envoy is recorded as the newest.
    pub fn is_of_successor_of(&self, base_id: u32, epoch: u32) -> bool {
        self.base_id == base_id && self.epoch > epoch
    }
}

/// Replaces a file as a whole, readable by our user only. A reader sees the old or the new content, never a part.
///
/// One that holds this already is left: on a full disk, Envoy starts again with what it was started with.
pub(super) fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    if is_private_with(path, content) {
        return Ok(());
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    // A leftover could have another mode or be a link.
    let _ = fs::remove_file(&new);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(content)?;
        // A record lost to a power cut is no loss: the processes are gone as well. No fsync.
        fs::rename(&new, path)
    };
    write().map_err(Error::file("write", path))
}

pub(super) fn is_private_with(path: &Path, content: &[u8]) -> bool {
    let Ok(found) = fs::symlink_metadata(path) else {
        return false;
    };
    found.is_file()
        && found.uid() == rustix::process::geteuid().as_raw()
        && found.mode() & 0o7777 == 0o600
        && found.len() == content.len() as u64
        && fs::read(path).is_ok_and(|held| held == content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_told_who_holds_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = RuntimeDirectory::open(&directory.path().join("run")).unwrap();
        let lock = runtime.lock(Holder::Agent).unwrap();
        let error = runtime.lock(Holder::Run).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(lock);
        // A child that another test is just starting holds the lock, too, until it is another program.
        let patience = Instant::now() + Duration::from_secs(5);
        while let Err(error) = runtime.lock(Holder::Agent) {
            assert!(Instant::now() < patience, "{error}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_record_survives_and_one_from_another_boot_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = RuntimeDirectory::open(directory.path()).unwrap();
        assert_eq!(runtime.load(), None);
        let mut record = Record {
            boot_id: boot_id(),
            identity: Identity {
                pid: 7,
                start_time: 9,
            },
            base_id: 5,
            epoch: 1,
            bootstrap: "ab".to_owned(),
            leaving: false,
            others_leaving: Vec::new(),
            spoiled: Vec::new(),
        };
        runtime.save(&record).unwrap();
        assert_eq!(runtime.load().as_ref(), Some(&record));
        let mode = fs::metadata(runtime.record()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        record.boot_id = "another".to_owned();
        runtime.save(&record).unwrap();
        assert_eq!(runtime.load(), None);
        fs::write(runtime.record(), "{").unwrap();
        assert_eq!(runtime.load(), None);
    }

    #[test]
    fn a_file_is_written_where_it_is_another_one() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("a"), directory.path().join("b"));
        let inode = || fs::symlink_metadata(&path).unwrap().ino();
        let is_written = |content: &str| {
            let before = inode();
            write_private(&path, content.as_bytes()).unwrap();
            let found = fs::symlink_metadata(&path).unwrap();
            assert_eq!((found.mode() & 0o7777, found.is_file()), (0o600, true));
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            inode() != before
        };
        write_private(&path, b"one").unwrap();
        assert!(!is_written("one"));
        assert!(is_written("two"));
        assert!(!is_written("two"));
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(is_written("two"));
        fs::rename(&path, &other).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(is_written("two"));
    }

    #[test]
    fn a_directory_too_long_for_sockets_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = RuntimeDirectory::open(&directory.path().join("x".repeat(80))).unwrap_err();
        assert!(matches!(error, Error::DirectoryTooLong { .. }), "{error}");
    }
}
