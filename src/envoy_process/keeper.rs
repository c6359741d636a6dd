//! Who keeps the Envoy of a directory, asked by somebody who does not want to keep it.

use std::path::Path;

use tokio::time::{Instant, sleep};

use super::identity::find_run;
use super::record::{BOOTSTRAP, Holder, LOCK_PATIENCE, LOOK_INTERVAL, lock_holder};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// An agent, with its process id.
    Agent(String),
    /// The unit or task of a `portreeve envoy run`.
    Run,
    /// Nobody who can be seen: it may have been left by an agent, which the next one takes over.
    Unknown,
}

/// Makes nothing, and keeps nobody away.
pub async fn keeper(directory: &Path) -> Keeper {
    let deadline = Instant::now() + LOCK_PATIENCE;
    let agent = loop {
        match lock_holder(directory) {
            Some((Holder::Run, _)) => return Keeper::Run,
            // What an agent that has ended was just starting, or one that looks whether it may begin.
            Some((Holder::Agent, _)) if Instant::now() < deadline => sleep(LOOK_INTERVAL).await,
            Some((Holder::Agent, agent)) => break Some(agent),
            None => break None,
        }
    };
    match agent {
        Some(agent) if !agent.is_empty() => Keeper::Agent(agent),
        // On a full disk the lock does not say who has it.
        _ if has_run(directory) => Keeper::Run,
        Some(agent) => Keeper::Agent(agent),
        None => Keeper::Unknown,
    }
}

fn has_run(directory: &Path) -> bool {
    // As its command line has it.
    let directory = directory.canonicalize();
    directory.is_ok_and(|directory| find_run(&directory.join(BOOTSTRAP)).is_some())
}
