//! Named tasks under one token: a task that must not end ends the agent, and says which it was.

use std::collections::HashMap;
use std::future::Future;

use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

#[derive(Debug, Default)]
pub(super) struct Tasks {
    set: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let handle = self.set.spawn(task);
        self.names.insert(handle.id(), name);
    }

    /// For tasks whose end is no error.
    pub fn spawn_plain(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(name, async move {
            task.await;
            Ok(())
        });
    }

    /// The first task that ended while it should not have, with the reason.
    pub async fn failed(&mut self, stop: &CancellationToken) -> anyhow::Error {
        loop {
            let (id, reason) = match self.set.join_next_with_id().await {
                None => return anyhow::anyhow!("the agent has no task left"),
                Some(Ok((id, Ok(())))) if stop.is_cancelled() => {
                    self.names.remove(&id);
                    continue;
                }
                Some(Ok((id, Ok(())))) => (id, anyhow::anyhow!("it ended")),
                Some(Ok((id, Err(error)))) => (id, error),
                Some(Err(error)) => (error.id(), anyhow::anyhow!("it panicked: {error}")),
            };
            let name = self.names.remove(&id).unwrap_or("unnamed");
            return reason.context(format!("the task {name:?} must not end"));
        }
    }

    /// Waits for all tasks; they have been told to stop.
    pub async fn finish(&mut self) {
        while self.set.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn failure_of(task: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> String {
        let mut tasks = Tasks::default();
        tasks.spawn_plain("patient", std::future::pending());
        tasks.spawn("restless", task);
        let error = tasks.failed(&CancellationToken::new()).await;
        format!("{error:#}")
    }

    #[tokio::test]
    async fn a_task_that_must_not_end_is_named_with_its_reason() {
        let ended = failure_of(async { Ok(()) }).await;
        assert_eq!(ended, "the task \"restless\" must not end: it ended");
        let failed = failure_of(async { anyhow::bail!("no socket") }).await;
        assert_eq!(failed, "the task \"restless\" must not end: no socket");
        let panicked = failure_of(async { panic!("a slip") }).await;
        assert!(
            panicked.contains("restless") && panicked.contains("panicked"),
            "{panicked}"
        );
    }

    #[tokio::test]
    async fn what_ends_after_the_stop_is_no_failure() {
        let mut tasks = Tasks::default();
        tasks.spawn_plain("one", async {});
        let stop = CancellationToken::new();
        stop.cancel();
        let error = tasks.failed(&stop).await;
        assert_eq!(error.to_string(), "the agent has no task left");
    }
}
