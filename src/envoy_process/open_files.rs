//! How many files may be open at once. Envoy holds one for each connection, and raises its soft limit to the hard one by itself.

use rustix::process::{Resource, getrlimit};

/// What to tell the operator about an Envoy of so many clients, if anything.
pub fn open_files_warning(connections: u64) -> Option<OpenFilesWarning> {
    warning(getrlimit(Resource::Nofile).maximum, connections)
}

#[derive(Debug, PartialEq, Eq)]
pub struct OpenFilesWarning {
    pub message: String,
    pub fix: &'static str,
}

fn warning(most: Option<u64>, connections: u64) -> Option<OpenFilesWarning> {
    let most = most?;
    let needs = connections.saturating_mul(FILES_OF_A_CLIENT);
    (most < needs).then(|| OpenFilesWarning {
        message: format!(
            "at most {most} files may be open at once, and max_downstream_connections = {connections} takes {needs}: \
             before that many clients are there, connections will fail"
        ),
        fix: "raise the hard limit (LimitNOFILE of the systemd unit, under Nomad of Nomad's own; ulimits of the \
              container), or lower max_downstream_connections in the `envoy` block",
    })
}

/// Its connection, and the one to a backend.
const FILES_OF_A_CLIENT: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_takes_two_files() {
        assert_eq!(warning(None, 50_000), None);
        assert_eq!(warning(Some(100_000), 50_000), None);
        let told = warning(Some(65_536), 50_000).unwrap().message;
        assert!(
            told.contains("65536 files") && told.contains("takes 100000"),
            "{told}"
        );
        assert!(warning(Some(u64::MAX - 1), u64::MAX).is_some());
    }
}
