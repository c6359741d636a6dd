//! Where a login keeps its token for the agent's next start, if its settings say so: a file like the one of Consul's own
//! `-token-sink-file`.
//!
//! An agent that is killed cannot give its token back. Without such a file each start adds a token, which lives until its
//! end: a crash loop adds one a second. The file belongs beside the signed identity, on which the same rights hang.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::model::Redacted;
use crate::sources::bounded_file::{self, TOKEN_BYTES};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenSink(PathBuf);

/// What a sink holds.
#[derive(Debug)]
pub(super) enum Kept {
    Token(Arc<Redacted<String>>),
    /// No file, an empty one, or a token that was damaged on disk.
    Nothing,
    /// Something else than a token: somebody else's file, which is not touched.
    Other,
}

/// As the tokens are that Consul gives for a login.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

impl TokenSink {
    pub(super) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// None: there is none, or what is there cannot be used, which is said.
    pub(super) async fn read(&self) -> Kept {
        let path = self.0.clone();
        match on_disk(move || bounded_file::read_text(&path, TOKEN_BYTES).map(Redacted::new)).await {
            Ok(text) => {
                let token = text.expose().trim();
                if token.is_empty() {
                    return Kept::Nothing;
                }
                // A disk that lost its power in the middle of a write leaves zeros.
                if token.contains('\0') {
                    tracing::warn!(
                        file = %self.0.display(),
                        "the token of the last start is damaged (it holds what no token holds): another is asked for"
                    );
                    return Kept::Nothing;
                }
                // Another secret of one line is neither sent to Consul nor written over.
                if !is_uuid(token) {
                    return Kept::Other;
                }
                Kept::Token(Arc::new(Redacted::new(token.to_owned())))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::Nothing,
            Err(error) => {
                tracing::warn!(file = %self.0.display(), %error, "the token of the last start cannot be read");
                Kept::Other
            }
        }
    }

    /// At once or not at all, and readable to nobody else at any moment. A file that cannot be written costs only what
    /// it is for.
    pub(super) async fn write(&self, token: &Arc<Redacted<String>>) {
        let (path, token) = (self.0.clone(), token.clone());
        if let Err(error) = on_disk(move || write(&path, token.expose())).await {
            tracing::warn!(
                file = %self.0.display(), %error,
                "the token is not kept for the next start: if this agent is killed, it lives until its end"
            );
        }
    }

    pub(super) async fn remove(&self) {
        let path = self.0.clone();
        match on_disk(move || std::fs::remove_file(path)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file = %self.0.display(), %error, "the token that was given back stays in its file");
            }
            _ => {}
        }
    }
}

fn write(path: &Path, token: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // What an agent that was killed here left behind, or a link that somebody else put there.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(token.as_bytes())?;
    // Else the new name may outlive a loss of power that its content does not.
    file.sync_all()?;
    std::fs::rename(&new, path)
}

async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
        .and_then(std::convert::identity)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn keeps_one_token_that_nobody_else_can_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let sink = TokenSink::at(path.clone());
        assert!(matches!(sink.read().await, Kept::Nothing));
        let token = |text: &str| Arc::new(Redacted::new(text.to_owned()));
        // Left by one that was killed in between, open to all.
        std::fs::write(directory.path().join("token.new"), "half").unwrap();
        for text in [
            "b1a2c3d4-0000-1111-2222-333344445555",
            "B1A2C3D4-0000-1111-2222-333344445556",
        ] {
            sink.write(&token(text)).await;
            assert!(matches!(sink.read().await, Kept::Token(kept) if kept == token(text)));
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        sink.remove().await;
        sink.remove().await;
        assert!(matches!(sink.read().await, Kept::Nothing));
        std::fs::write(&path, " \n").unwrap();
        assert!(
            matches!(sink.read().await, Kept::Nothing),
            "an empty file is no token"
        );
        for damaged in ["\0\0\0\0", "b1a2c3d4-\0\0\0\0"] {
            std::fs::write(&path, damaged).unwrap();
            let read = sink.read().await;
            assert!(matches!(read, Kept::Nothing), "{damaged:?} would fit no header");
        }
        for others in [
            "one\ntwo",
            "-----BEGIN PRIVATE KEY-----\nMC4C\n",
            &"x\n".repeat(70_000),
            // Of one line, too.
            "hvs.CAESIJ",
            "b1a2c3d4-0000-1111-2222-33334444555\u{e9}",
            "b1a2c3d4-0000-1111-2222-3333444455556",
        ] {
            std::fs::write(&path, others).unwrap();
            assert!(matches!(sink.read().await, Kept::Other), "{} bytes", others.len());
        }
    }
}
