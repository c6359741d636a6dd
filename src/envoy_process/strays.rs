//! Envoys that an earlier agent of this data directory started and this one does not supervise. Those of gateways that it does
//! not serve go on with what they were told last, on their ports, until their certificates run out.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::identity::find_envoys;
use super::record::BOOTSTRAP;

pub struct Stray {
    pub gateway: String,
    pub pid: u32,
}

/// `directory` holds one directory for each gateway.
pub fn strays(directory: &Path, supervised: &[Arc<str>]) -> Vec<Stray> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut strays = Vec::new();
    for entry in entries {
        let Ok(gateway) = entry.file_name().into_string() else {
            continue;
        };
        if supervised.iter().any(|supervised| **supervised == *gateway) {
            continue;
        }
        // As its command line has it.
        let Ok(runtime) = entry.path().canonicalize() else {
            continue;
        };
        let envoys = find_envoys(&runtime.join(BOOTSTRAP));
        strays.extend(envoys.iter().map(|envoy| Stray {
            gateway: gateway.clone(),
            pid: envoy.identity.pid,
        }));
    }
    strays
}
