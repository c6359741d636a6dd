//! Files that their owner alone may read, kept open for reading and writing.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

const LINK: &str = "it is a symbolic link, which is not followed: put the file itself in its place";

/// Opens it or makes it, mode 0600. A link is not followed: it would let whoever may write the directory choose the file.
pub fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::LOOP.raw_os_error() => io::Error::other(LINK),
        _ => error,
    })?;
    // An existing file keeps its mode when opened; one copied from a backup may be wider.
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_is_an_error_and_nothing_is_made_behind_it() {
        let directory = tempfile::tempdir().unwrap();
        let (path, target) = (directory.path().join("a"), directory.path().join("b"));
        symlink(&target, &path).unwrap();
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains("a symbolic link"), "{error}");
        assert!(!target.exists());
        std::fs::remove_file(&path).unwrap();
        open(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
