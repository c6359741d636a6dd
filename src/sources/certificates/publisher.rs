//! Turns what a watch finds into observations: each change once, the last good material never taken back.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::clock::WallClock;
use super::memory::Memory;
use super::pem::PemFault;
use super::timestamp;
use crate::model::{CertificateMaterial, CertificateQuery, CertificateUpdate, Observation, Problem};

/// How one certificate is doing, for status and metrics. Times are Unix seconds.
#[derive(Clone, Debug)]
pub struct CertificateFreshness {
    pub query: CertificateQuery,
    pub problem: Option<Problem>,
    /// When the source last confirmed or replaced the material.
    pub last_success: Option<i64>,
    pub serial: Option<Arc<str>>,
    pub not_after: Option<i64>,
    /// False after a restart, while only Envoy holds the key.
    pub holds_key: bool,
    /// When the next certificate is asked for (issued ones).
    pub renews_at: Option<i64>,
    pub issues: u64,
    pub failures: u64,
}

impl CertificateFreshness {
    pub(super) fn new(query: CertificateQuery) -> Self {
        Self {
            query,
            problem: None,
            last_success: None,
            serial: None,
            not_after: None,
            holds_key: false,
            renews_at: None,
            issues: 0,
            failures: 0,
        }
    }
}

/// The receiving end is gone: the process is shutting down.
#[derive(Debug)]
pub(super) struct Closed;

/// One watch's way out.
pub(super) struct Publisher {
    query: CertificateQuery,
    updates: mpsc::Sender<Observation>,
    clock: WallClock,
    freshness: Arc<Mutex<CertificateFreshness>>,
    good: Option<Arc<CertificateMaterial>>,
    /// The last observation was a problem: the next success is one too, even with the same material.
    problem: Option<Problem>,
    told: Told,
    memory: Option<Memory>,
}

/// The last material and the problem since: what there is to tell.
type Told = Arc<Mutex<(Option<Arc<CertificateMaterial>>, Option<Problem>)>>;

/// Tells again what a watch told last.
pub(super) struct Repeater {
    query: CertificateQuery,
    updates: mpsc::Sender<Observation>,
    told: Told,
}

impl Repeater {
    pub(super) async fn repeat(&self) {
        let (good, problem) = self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for result in good.map(Ok).into_iter().chain(problem.map(Err)) {
            let update = CertificateUpdate {
                query: self.query.clone(),
                result,
            };
            // Closed: the process is shutting down, which the watch sees by itself.
            let _ = self.updates.send(Observation::Certificate(update)).await;
        }
    }
}

impl Publisher {
    pub(super) fn new(
        query: CertificateQuery,
        updates: mpsc::Sender<Observation>,
        clock: WallClock,
        freshness: Arc<Mutex<CertificateFreshness>>,
    ) -> Self {
        Self {
            query,
            updates,
            clock,
            freshness,
            good: None,
            problem: None,
            told: Told::default(),
            memory: None,
        }
    }

    /// Falls back on what was in force before a restart where the source has a problem at first.
    pub(super) fn remembering(mut self, memory: Option<Memory>) -> Self {
        self.memory = memory;
        self
    }

    pub(super) fn repeater(&self) -> Repeater {
        Repeater {
            query: self.query.clone(),
            updates: self.updates.clone(),
            told: self.told.clone(),
        }
    }

    pub(super) fn query(&self) -> &CertificateQuery {
        &self.query
    }

    pub(super) fn now(&self) -> i64 {
        self.clock.now()
    }

    pub(super) fn good(&self) -> Option<&Arc<CertificateMaterial>> {
        self.good.as_ref()
    }

    /// Since the last material.
    pub(super) fn told_problem(&self) -> Option<&Problem> {
        self.problem.as_ref()
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut CertificateFreshness)) {
        change(&mut self.freshness.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The source has this now.
    pub(super) async fn material(&mut self, material: CertificateMaterial) -> Result<(), Closed> {
        let same = self.good.as_deref() == Some(&material);
        let material = if same { self.good.clone() } else { None }.unwrap_or_else(|| Arc::new(material));
        let now = self.now();
        self.note(|freshness| {
            freshness.problem = None;
            freshness.last_success = Some(now);
            freshness.serial = Some(material.serial.clone());
            freshness.not_after = Some(material.not_after);
            freshness.holds_key = material.private_key.is_some();
        });
        if same && self.problem.is_none() {
            return Ok(());
        }
        let place = self.place().await?;
        tracing::info!(
            certificate = %self.query, serial = %material.serial, not_after = %timestamp(material.not_after),
            holds_key = material.private_key.is_some(), "certificate"
        );
        self.problem = None;
        self.good = Some(material.clone());
        self.send(place, Ok(material.clone()));
        if let Some(memory) = &self.memory {
            memory.keep(&material);
        }
        Ok(())
    }

    /// The source has this now, and something of it cannot be used: both are told, each once.
    pub(super) async fn material_with(
        &mut self,
        material: CertificateMaterial,
        problem: Option<Problem>,
    ) -> Result<(), Closed> {
        let Some(problem) = problem else {
            return self.material(material).await;
        };
        if self.good.as_deref() != Some(&material) {
            self.material(material).await?;
        }
        self.problem(problem).await
    }

    /// The source still has what it had. An end of life that has passed since is a problem all the same.
    pub(super) async fn unchanged(&mut self) -> Result<(), Closed> {
        match self.good.clone() {
            Some(material) if material.not_after <= self.now() => {
                self.problem(PemFault::Expired(material.not_after).problem(&self.query.to_string()))
                    .await
            }
            Some(material) => {
                let now = self.now();
                self.note(|freshness| {
                    freshness.problem = None;
                    freshness.last_success = Some(now);
                });
                if self.problem.is_none() {
                    return Ok(());
                }
                let place = self.place().await?;
                self.problem = None;
                self.send(place, Ok(material));
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The source failed; what was published stands.
    pub(super) async fn problem(&mut self, problem: Problem) -> Result<(), Closed> {
        self.note(|freshness| {
            freshness.problem = Some(problem.clone());
            freshness.failures += 1;
        });
        if self.problem.as_ref() == Some(&problem) {
            return Ok(());
        }
        self.recall().await?;
        let place = self.place().await?;
        tracing::warn!(
            certificate = %self.query, kind = ?problem.kind, problem = %problem,
            fix = problem.fix.as_deref().unwrap_or_default(), "certificate not refreshed"
        );
        self.problem = Some(problem.clone());
        self.send(place, Err(problem));
        Ok(())
    }

    /// Nothing yet, and trouble: what was in force before the restart is what Envoy has, the key of a certificate too.
    /// The source has confirmed nothing of it.
    async fn recall(&mut self) -> Result<(), Closed> {
        let now = self.now();
        let (None, None, Some(memory)) = (&self.good, &self.problem, &self.memory) else {
            return Ok(());
        };
        let Some(material) = memory.recall(now).await.map(Arc::new) else {
            return Ok(());
        };
        let place = self.place().await?;
        self.note(|freshness| {
            freshness.serial = Some(material.serial.clone());
            freshness.not_after = Some(material.not_after);
        });
        let (query, serial, not_after) = (&self.query, &material.serial, timestamp(material.not_after));
        match query {
            CertificateQuery::ClientCa(_) => {
                tracing::info!(certificate = %query, %serial, %not_after, "authorities of clients as before the restart");
            }
            _ => tracing::info!(
                certificate = %query, %serial, %not_after,
                "certificate as before the restart, its key with Envoy alone"
            ),
        }
        self.good = Some(material.clone());
        self.send(place, Ok(material));
        Ok(())
    }

    /// A place in the channel, which may be full. It comes before any change of what was told: a watch whose wait is cut
    /// short here has told nothing, and finds the same news again.
    async fn place(&self) -> Result<mpsc::OwnedPermit<Observation>, Closed> {
        self.updates.clone().reserve_owned().await.map_err(|_| Closed)
    }

    fn send(&self, place: mpsc::OwnedPermit<Observation>, result: Result<Arc<CertificateMaterial>, Problem>) {
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            match &result {
                Ok(material) => *told = (Some(material.clone()), None),
                Err(problem) => told.1 = Some(problem.clone()),
            }
        }
        place.send(Observation::Certificate(CertificateUpdate {
            query: self.query.clone(),
            result,
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::model::ProblemKind;

    fn material(serial: &str, not_after: i64) -> CertificateMaterial {
        CertificateMaterial {
            chain: format!("chain of {serial}").into(),
            private_key: None,
            serial: serial.into(),
            names: Vec::new(),
            not_before: 0,
            not_after,
            crl: None,
        }
    }

    #[tokio::test]
    async fn tells_each_change_once_and_the_end_of_a_problem() {
        let query = CertificateQuery::File {
            certificate: "a".into(),
            private_key: "b".into(),
        };
        let (updates, mut received) = mpsc::channel(8);
        let now = Arc::new(AtomicI64::new(100));
        let ticking = now.clone();
        let clock = WallClock::new(move || ticking.load(Ordering::Relaxed));
        let freshness = Arc::new(Mutex::new(CertificateFreshness::new(query.clone())));
        let mut publisher = Publisher::new(query, updates, clock, freshness.clone());
        let mut next = || match received.try_recv() {
            Ok(Observation::Certificate(update)) => {
                Some(update.result.map(|material| material.serial.clone()))
            }
            _ => None,
        };

        publisher.material(material("1", 200)).await.unwrap();
        publisher.material(material("1", 200)).await.unwrap();
        assert_eq!(next(), Some(Ok("1".into())));
        assert_eq!(next(), None, "equal content is told once");

        let down = Problem::new(ProblemKind::Unavailable, "down");
        publisher.problem(down.clone()).await.unwrap();
        publisher.problem(down.clone()).await.unwrap();
        assert_eq!(next(), Some(Err(down)));
        assert_eq!(next(), None, "so is a problem");
        publisher.unchanged().await.unwrap();
        publisher.unchanged().await.unwrap();
        assert_eq!(
            next(),
            Some(Ok("1".into())),
            "its end is told with the same material"
        );
        assert_eq!(next(), None);

        now.store(200, Ordering::Relaxed);
        publisher.unchanged().await.unwrap();
        publisher.unchanged().await.unwrap();
        let expired = next().unwrap().unwrap_err();
        assert_eq!(expired.kind, ProblemKind::Expired);
        assert_eq!(next(), None);
        assert_eq!(
            publisher.good().unwrap().serial.as_ref(),
            "1",
            "the last good one stands"
        );
        assert_eq!(freshness.lock().unwrap().failures, 4);
    }

    /// A watch may be cut short while the channel is full, by a wish to look again: what it was about to tell is news
    /// still.
    #[tokio::test]
    async fn what_found_no_place_in_the_channel_is_told_the_next_time() {
        let query = CertificateQuery::File {
            certificate: "a".into(),
            private_key: "b".into(),
        };
        let (updates, mut received) = mpsc::channel(1);
        let freshness = Arc::new(Mutex::new(CertificateFreshness::new(query.clone())));
        let clock = WallClock::new(|| 100);
        let mut publisher = Publisher::new(query, updates, clock, freshness);
        let mut next = || match received.try_recv() {
            Ok(Observation::Certificate(update)) => {
                Some(update.result.map(|material| material.serial.clone()))
            }
            _ => None,
        };
        let down = || Problem::new(ProblemKind::Unavailable, "down");
        publisher.material(material("1", 200)).await.unwrap();
        tokio::select! {
            biased;
            _ = publisher.material(material("2", 200)) => panic!("the channel is full"),
            () = std::future::ready(()) => {}
        }
        tokio::select! {
            biased;
            _ = publisher.problem(down()) => panic!("the channel is full"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(publisher.good().unwrap().serial.as_ref(), "1");
        assert_eq!(next(), Some(Ok("1".into())));
        publisher.problem(down()).await.unwrap();
        assert_eq!(next(), Some(Err(down())));
        publisher.material(material("2", 200)).await.unwrap();
        assert_eq!(next(), Some(Ok("2".into())));
        assert_eq!(next(), None);
    }
}
