//! Where the agent keeps its sockets, its state and Envoy's files.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::sources::environment;

/// Where an agent under -dev keeps its sockets and Envoy's files: the next run, and the CLI, must find them again.
pub fn dev_data_directory() -> PathBuf {
    let base = environment("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, Into::into);
    base.join(format!("portreeve-dev-{}", rustix::process::getuid().as_raw()))
}

pub(super) fn make(path: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| {
            format!(
                "{}: the data directory cannot be made; choose another with -data-dir",
                path.display()
            )
        })?;
    // Its name is known to everybody, and it may stand where everybody may write.
    if path == dev_data_directory() {
        return refuse_others(path);
    }
    let shared = environment("NOMAD_ALLOC_DIR").map(PathBuf::from);
    // Not refused: whoever runs it so is not to be without a gateway after an upgrade.
    if let Some(reason) = open_to_writers(path, shared.as_deref()) {
        tracing::warn!(
            directory = %path.display(),
            reason,
            fix = "give it to the agent's user and say `chmod go-w`, or name another directory as data_dir",
            "other users may write the data directory, and what stands in it is believed at the next start"
        );
    }
    Ok(())
}

/// How others than we and root can put things there. Not told of what the tasks of a Nomad group share: Nomad makes it 0777,
/// as each of them may have a user of its own.
fn open_to_writers(path: &Path, shared: Option<&Path>) -> Option<String> {
    if shared.is_some_and(|shared| shared.is_absolute() && path.starts_with(shared)) {
        return None;
    }
    let metadata = std::fs::metadata(path).ok()?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if owner != rustix::process::geteuid().as_raw() && owner != 0 {
        return Some(format!("it belongs to user {owner}"));
    }
    let is_of_another_group = metadata.gid() != rustix::process::getegid().as_raw();
    let is_open = mode & 0o002 != 0 || mode & 0o020 != 0 && is_of_another_group;
    is_open.then(|| format!("its mode {mode:04o} lets other users write there"))
}

/// Whether nobody else can have put anything there: what stands in it hands out private keys, and is believed.
pub fn refuse_others(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let metadata =
        std::fs::symlink_metadata(path).with_context(|| format!("{shown}: cannot be looked at"))?;
    let (own, owner) = (rustix::process::getuid().as_raw(), metadata.uid());
    anyhow::ensure!(
        metadata.is_dir(),
        "{shown}: not a directory of its own; remove it, or choose another with -data-dir"
    );
    anyhow::ensure!(
        owner == own,
        "{shown}: belongs to user {owner}, who could read private keys there; choose another with -data-dir"
    );
    let mode = metadata.mode() & 0o777;
    anyhow::ensure!(
        mode & 0o077 == 0,
        "{shown}: its mode {mode:03o} lets other users in, and private keys are handed out there; remove it or say `chmod 700`"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_directory_that_others_may_use_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("data");
        make(&path).unwrap();
        refuse_others(&path).unwrap();
        for mode in [0o750, 0o707, 0o777, 0o701] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = refuse_others(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("mode {mode:03o}")), "{error}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        let link = base.path().join("link");
        symlink(&path, &link).unwrap();
        let error = refuse_others(&link).unwrap_err().to_string();
        assert!(error.contains("not a directory"), "{error}");
        // Somebody else's: /proc/1 is root's, and root's tests look at a user's.
        let others = if rustix::process::getuid().is_root() {
            rustix::fs::chown(&path, Some(rustix::fs::Uid::from_raw(65534)), None).unwrap();
            path
        } else {
            "/proc/1".into()
        };
        let error = refuse_others(&others).unwrap_err().to_string();
        assert!(error.contains("belongs to user"), "{error}");
    }

    #[test]
    fn a_directory_that_others_may_write_is_told() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("data");
        make(&path).unwrap();
        let set = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        for mode in [0o700, 0o755, 0o711] {
            set(mode);
            assert_eq!(open_to_writers(&path, None), None, "{mode:o}");
        }
        for mode in [0o777, 0o1777] {
            set(mode);
            let reason = open_to_writers(&path, None).unwrap();
            assert!(reason.contains(&format!("mode {mode:04o}")), "{reason}");
            assert_eq!(open_to_writers(&path, Some(base.path())), None, "Nomad's");
            assert!(open_to_writers(&path, Some(Path::new(""))).is_some());
        }
        set(0o775);
        assert_eq!(open_to_writers(&path, None), None, "our own group");
        // To give it to others takes root.
        if rustix::process::getuid().is_root() {
            rustix::fs::chown(&path, None, Some(rustix::fs::Gid::from_raw(65534))).unwrap();
            let reason = open_to_writers(&path, None).unwrap();
            assert!(reason.contains("mode 0775"), "{reason}");
            set(0o700);
            rustix::fs::chown(&path, Some(rustix::fs::Uid::from_raw(65534)), None).unwrap();
            let reason = open_to_writers(&path, None).unwrap();
            assert!(reason.contains("user 65534"), "{reason}");
        }
    }
}
