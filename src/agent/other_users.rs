//! Users of this machine beside the agent's own and root that may have gateways, and what keeps them from it all the same.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::settings::XdsBlock;

/// Said at the start. None of it stops the agent: its own Envoys get what they need.
pub(super) fn warn(xds: &XdsBlock) {
    let own = rustix::process::geteuid().as_raw();
    if xds.clients.contains_key(&own) {
        tracing::warn!(
            uid = own,
            fix = "let that Envoy run as another user, and name its uid",
            "`client` of the xds settings holds nobody back here: its uid is the agent's own, which may have any gateway"
        );
    }
    let listed = xds.uids.iter().chain(xds.clients.keys()).copied();
    let others: BTreeSet<u32> = listed.filter(|uid| *uid != own && *uid != 0).collect();
    for uid in others {
        if let Some((directory, mode)) = closed_to(uid, &xds.socket) {
            tracing::warn!(
                uid,
                socket = %xds.socket.display(),
                directory = %directory.display(),
                mode = format!("{mode:04o}"),
                fix = "name another place as `xds { socket }`, in a directory that this user may enter, such as one of mode 0711",
                "the settings (xds) list a user that cannot reach the socket: nobody but its owner may enter this directory"
            );
        }
    }
}

/// A directory on the way to the socket that this user cannot enter, whatever its groups: where a group may, it may be
/// one of that user's.
fn closed_to(uid: u32, socket: &Path) -> Option<(PathBuf, u32)> {
    let socket = std::path::absolute(socket).ok()?;
    socket.ancestors().skip(1).find_map(|directory| {
        let metadata = std::fs::metadata(directory).ok()?;
        let is_closed = metadata.mode() & 0o011 == 0 && metadata.uid() != uid;
        is_closed.then(|| (directory.to_owned(), metadata.mode() & 0o7777))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_directory_for_its_owner_alone_is_closed_to_others() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("data");
        std::fs::create_dir(&directory).unwrap();
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let socket = directory.join("xds.sock");
        let own = rustix::process::geteuid().as_raw();
        set(base.path(), 0o711);
        set(&directory, 0o700);
        assert_eq!(closed_to(own + 1, &socket), Some((directory.clone(), 0o700)));
        assert_eq!(closed_to(own, &socket), None, "its owner's");
        for open in [0o711, 0o710, 0o755] {
            set(&directory, open);
            assert_eq!(closed_to(own + 1, &socket), None, "{open:o}");
        }
        set(base.path(), 0o700);
        assert_eq!(
            closed_to(own + 1, &socket),
            Some((base.path().to_owned(), 0o700)),
            "one further up"
        );
    }
}
