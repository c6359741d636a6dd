//! Who we are in the mesh: the leaf that Consul's agent signs for us and keeps fresh, and the roots that we trust.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::mpsc;

use super::chain_answer::null_is_default;
use super::checks::bounded;
use crate::model::mesh::{MeshLeaf, MeshRoots};
use crate::model::{CertificateMaterial, MeshUpdate, Observation, Problem, ProblemKind, Redacted};
use crate::sources::agent_api::blocking_query::{Closed, Context, Verdict, Watched};
use crate::sources::agent_api::budget::Pass;
use crate::sources::agent_api::call::Call;
use crate::sources::certificates::{self, MAX_CHAIN_BYTES, PemFault, WallClock, timestamp};
use crate::sources::consul::ConsulError;
use crate::sources::consul::client::{Answer, ConsulClient};

/// The authorities of the mesh, old and new.
pub(super) struct RootsWatch {
    pub(super) observations: mpsc::Sender<Observation>,
    pub(super) known: Option<Arc<MeshRoots>>,
    pub(super) told: Option<Problem>,
}

pub(super) struct LeafWatch {
    pub(super) client: ConsulClient,
    pub(super) service: Arc<str>,
    pub(super) clock: WallClock,
    pub(super) observations: mpsc::Sender<Observation>,
    pub(super) known: Option<Arc<MeshLeaf>>,
    /// Of the one that was handed on last, for `status` and metrics.
    pub(super) life: Arc<Mutex<Option<LeafLife>>>,
    pub(super) told: Option<Problem>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRoots {
    trust_domain: Arc<str>,
    #[serde(default, deserialize_with = "null_is_default")]
    roots: Vec<RawRoot>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRoot {
    root_cert: String,
}

/// All of them: while the CA is rotated, instances have leafs of the old one and of the new one.
pub(super) fn roots(answer: &Answer) -> Result<MeshRoots, ConsulError> {
    let raw: RawRoots = answer.json()?;
    let mut pem = String::new();
    for root in raw.roots.iter().take(ROOTS) {
        pem.push_str(root.root_cert.trim());
        pem.push('\n');
    }
    if raw.roots.is_empty() || pem.len() > MAX_CHAIN_BYTES * ROOTS || raw.trust_domain.is_empty() {
        return Err(answer.unreadable(format!(
            "it has {} roots for the trust domain {:?}",
            raw.roots.len(),
            raw.trust_domain
        )));
    }
    for root in raw.roots.iter().take(ROOTS) {
        match certificates::parse_public(&root.root_cert, 0) {
            // Its dates are Envoy's to judge.
            Ok(_) | Err(PemFault::Expired(_) | PemFault::NotYetValid(_)) => {}
            Err(fault) => return Err(answer.unreadable(format!("a root is not usable: {fault}"))),
        }
    }
    Ok(MeshRoots {
        trust_domain: bounded(raw.trust_domain).map_err(|reason| answer.unreadable(reason))?,
        count: raw.roots.len().min(ROOTS),
        pem: pem.into(),
    })
}

fn roots_call() -> Call {
    Call::get("agent/connect/ca/roots").max_body(ROOTS_BYTES)
}

impl Watched for RootsWatch {
    fn call(&self) -> Call {
        roots_call()
    }

    async fn admit(&mut self, _: bool) -> Pass {
        Pass::granted()
    }

    async fn take(&mut self, answer: Answer, _: Context) -> Result<Verdict, ConsulError> {
        let roots = roots(&answer)?;
        if self.told.is_none() && self.known.as_deref() == Some(&roots) {
            return Ok(Verdict::Taken { news: false });
        }
        let roots = Arc::new(roots);
        self.known = Some(roots.clone());
        self.told = None;
        let update = Observation::Mesh(MeshUpdate::Roots(Ok(roots)));
        Ok(match self.observations.send(update).await {
            Ok(()) => Verdict::Taken { news: true },
            Err(_) => Verdict::Closed,
        })
    }

    async fn tell(&mut self, problem: Problem) -> Result<(), Closed> {
        if self.told.as_ref() == Some(&problem) {
            return Ok(());
        }
        self.told = Some(problem.clone());
        let update = Observation::Mesh(MeshUpdate::Roots(Err(problem)));
        self.observations.send(update).await.map_err(|_| Closed)
    }
}

#[derive(Deserialize)]
pub(super) struct RawLeaf {
    #[serde(rename = "CertPEM")]
    pub(super) certificate: String,
    #[serde(rename = "PrivateKeyPEM")]
    pub(super) private_key: String,
    #[serde(rename = "ServiceURI", default)]
    uri: Arc<str>,
}

/// The life of a leaf, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeafLife {
    pub(super) not_before: i64,
    pub(super) not_after: i64,
}

impl LeafLife {
    pub(super) fn of(material: &CertificateMaterial) -> Self {
        Self {
            not_before: material.not_before,
            not_after: material.not_after,
        }
    }

    /// Consul's agent renews it at 60 to 90 % of its life. What is left below that means it does not.
    pub(super) fn remark(self, service: &str, now: i64) -> Option<Problem> {
        let (life, left) = (self.not_after - self.not_before, self.not_after - now);
        (left * 20 < life).then(|| {
            let ends = if left > 0 { "ends" } else { "has ended" };
            let message = format!(
                "the mesh certificate of {service:?} {ends} at {} and Consul's agent has not renewed it",
                timestamp(self.not_after)
            );
            Problem::new(ProblemKind::Unavailable, message)
                .with_fix("look for errors about the Connect CA in the logs of Consul's servers")
        })
    }
}

impl LeafWatch {
    fn material(&self, answer: &Answer, raw: &RawLeaf) -> Result<CertificateMaterial, ConsulError> {
        let key = Redacted::new(raw.private_key.clone());
        certificates::parse(&raw.certificate, key.expose(), self.clock.now())
            .map_err(|fault| answer.unreadable(format!("the leaf is not usable: {fault}")))
    }

    async fn hand_on(&mut self, leaf: Arc<MeshLeaf>) -> Result<Verdict, ConsulError> {
        // Whoever has this leaf's root may show one of the same: trust it before we show ours.
        let answer = self.client.call(roots_call()).await?;
        let roots = Arc::new(roots(&answer)?);
        for update in [MeshUpdate::Roots(Ok(roots)), MeshUpdate::Leaf(Ok(leaf.clone()))] {
            if self.observations.send(Observation::Mesh(update)).await.is_err() {
                return Ok(Verdict::Closed);
            }
        }
        self.known = Some(leaf);
        self.told = None;
        Ok(Verdict::Taken { news: true })
    }

    async fn say(&mut self, problem: Problem) -> Result<(), Closed> {
        if self.told.as_ref() == Some(&problem) {
            return Ok(());
        }
        self.told = Some(problem.clone());
        let update = Observation::Mesh(MeshUpdate::Leaf(Err(problem)));
        self.observations.send(update).await.map_err(|_| Closed)
    }
}

impl Watched for LeafWatch {
    fn call(&self) -> Call {
        Call::get("agent/connect/ca/leaf")
            .segment(&self.service)
            .max_body(2 * MAX_CHAIN_BYTES)
            .needs(format!("service {:?} {{ policy = \"write\" }}", self.service))
    }

    async fn admit(&mut self, _: bool) -> Pass {
        Pass::granted()
    }

    async fn take(&mut self, answer: Answer, _: Context) -> Result<Verdict, ConsulError> {
        let raw: RawLeaf = answer.json()?;
        let material = self.material(&answer, &raw)?;
        let life = LeafLife::of(&material);
        let remark = life.remark(&self.service, self.clock.now());
        let same = self
            .known
            .as_ref()
            .is_some_and(|known| known.material == material);
        let news = !same || (self.told.is_some() && remark.is_none());
        if news {
            let leaf = MeshLeaf {
                service: self.service.clone(),
                uri: bounded(raw.uri).map_err(|reason| answer.unreadable(reason))?,
                material,
            };
            if let Verdict::Closed = self.hand_on(Arc::new(leaf)).await? {
                return Ok(Verdict::Closed);
            }
            *self.life.lock().unwrap_or_else(PoisonError::into_inner) = Some(life);
        }
        Ok(match remark {
            // Doubted, so that it is asked for again soon.
            Some(problem) => Verdict::Doubted(problem),
            None => Verdict::Taken { news },
        })
    }

    async fn tell(&mut self, problem: Problem) -> Result<(), Closed> {
        self.say(problem).await
    }
}

const ROOTS: usize = 32;
const ROOTS_BYTES: usize = 4 * 1024 * 1024;

/// The leaf's own end is looked at whenever a poll returns: this bounds how late.
pub(super) const IDENTITY_WAIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::LeafLife;

    const HOUR: i64 = 3600;
    /// As Consul gives them, from 2026-01-01 on.
    const LEAF: LeafLife = LeafLife {
        not_before: 1_767_225_600,
        not_after: 1_767_225_600 + 72 * HOUR,
    };

    fn remark(hours: i64) -> Option<String> {
        let problem = LEAF.remark("edge-gw", LEAF.not_before + hours * HOUR)?;
        assert!(problem.fix.is_some_and(|fix| fix.contains("Connect CA")));
        Some(problem.message.to_string())
    }

    #[test]
    fn a_leaf_is_remarked_on_once_it_should_have_been_renewed() {
        // Consul's agent renews it at 90 % of its life at the latest: 64.8 h.
        for hours in [0, 43, 65, 68] {
            assert_eq!(remark(hours), None, "{hours} h");
        }
        let said = remark(69).unwrap();
        assert_eq!(
            said,
            "the mesh certificate of \"edge-gw\" ends at 2026-01-04T00:00:00Z and Consul's agent has not renewed it"
        );
        assert!(
            remark(72)
                .unwrap()
                .contains("\"edge-gw\" has ended at 2026-01-04")
        );
        // A clock that is behind sees a life that has not begun.
        assert_eq!(remark(-1), None);
    }
}
