//! Whether a file was replaced, without reading it.

use std::os::unix::fs::MetadataExt;

/// What tells one version of a file from the next: its inode as much as its time, because rotations rename.
pub(crate) type Stamp = (u64, i64, i64, u64);

pub(crate) fn stamp_of(metadata: &std::fs::Metadata) -> Stamp {
    (
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.len(),
    )
}
