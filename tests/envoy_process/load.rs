//! Open-loop load: requests begin on time, however long earlier ones take. Each on a connection of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::gateway::{get, is_served};

#[derive(Debug, Default)]
pub struct Outcome {
    pub requests: u32,
    pub failed: BTreeMap<String, u32>,
    /// When those that failed began, and ended.
    pub failed_at: Vec<(Instant, Instant)>,
    pub slowest: Duration,
}

impl Outcome {
    pub fn failures(&self) -> u32 {
        self.failed.values().sum()
    }
}

pub async fn run(port: u16, per_second: u32, length: Duration) -> Outcome {
    let start = Instant::now();
    let total = per_second * u32::try_from(length.as_secs()).unwrap();
    let mut running = JoinSet::new();
    for number in 0..total {
        let due = start + Duration::from_secs(1) * number / per_second;
        sleep_until(due).await;
        running.spawn(async move {
            let result = timeout(Duration::from_secs(10), get(port, "/", "")).await;
            let failure = match result {
                Ok(response) if is_served(&response) => None,
                Ok(Ok(response)) => Some(format!("response {:?}", response.lines().next())),
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("timeout".to_owned()),
            };
            (failure, due, Instant::now())
        });
    }
    let mut outcome = Outcome {
        requests: total,
        ..Outcome::default()
    };
    while let Some(result) = running.join_next().await {
        let (failure, due, ended) = result.unwrap();
        outcome.slowest = outcome.slowest.max(ended - due);
        if let Some(failure) = failure {
            outcome.failed_at.push((due, ended));
            *outcome.failed.entry(failure).or_default() += 1;
        }
    }
    outcome
}
