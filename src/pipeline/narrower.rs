//! A certificate that lacks hosts which the one in service covers does not take its place.
//!
//! Whoever puts a good certificate for other names where a listener's is read from takes its hosts away: each of their
//! handshakes would be refused. The one in service stays while it is in date, and the new one is taken when that ends, when
//! no route needs these hosts any more, or when the agent starts anew: then the former key is not here to go on with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::core::Pipeline;
use crate::model::{
    CertificateMaterial, CertificateQuery, CertificateUpdate, Observation, Problem, ProblemKind, is_covered,
};
use crate::snapshot::Changes;

/// How often what is kept out is looked at again, besides after each change.
const LOOK: Duration = Duration::from_secs(10);
/// Hosts that are named in one message.
const SHOWN: usize = 8;

/// What sources brought and was not taken.
#[derive(Debug, Default)]
pub(super) struct Narrower {
    kept_out: BTreeMap<CertificateQuery, Arc<CertificateMaterial>>,
    look_at: Option<Instant>,
}

impl Narrower {
    pub fn deadline(&self) -> Option<Instant> {
        self.look_at.filter(|_| !self.kept_out.is_empty())
    }
}

impl Pipeline {
    /// What a source brings, or in its place why it is not taken.
    pub(super) fn admit(&mut self, observation: Observation) -> Observation {
        let Observation::Certificate(update) = observation else {
            return observation;
        };
        let Ok(material) = &update.result else {
            return Observation::Certificate(update);
        };
        let query = update.query.clone();
        let lost = self.lost_by(&query, material);
        if lost.is_empty() {
            self.narrower.kept_out.remove(&query);
            return Observation::Certificate(update);
        }
        let problem = problem(&query, material, &lost);
        self.narrower.kept_out.insert(query.clone(), material.clone());
        self.narrower.look_at.get_or_insert_with(|| Instant::now() + LOOK);
        Observation::Certificate(CertificateUpdate {
            query,
            result: Err(problem),
        })
    }

    /// Takes what costs no host by now.
    pub(super) fn take_narrower(&mut self) {
        if self.narrower.kept_out.is_empty() {
            return;
        }
        self.narrower.look_at = Some(Instant::now() + LOOK);
        let mut changes = Changes::default();
        for (query, material) in std::mem::take(&mut self.narrower.kept_out) {
            // Nobody shows it any more.
            if self.snapshot.certificate(&query).is_none() {
                continue;
            }
            if !self.lost_by(&query, &material).is_empty() {
                self.narrower.kept_out.insert(query, material);
                continue;
            }
            tracing::info!(source = %query, serial = %material.serial, "a certificate of fewer hosts is taken: nothing needs them any more, or the former has ended");
            changes.merge(self.snapshot.apply(Observation::Certificate(CertificateUpdate {
                query,
                result: Ok(material),
            })));
        }
        self.take_up(&changes);
    }

    /// Hosts with routes that only the certificate in service covers, and this one in its place would not.
    fn lost_by(&self, query: &CertificateQuery, material: &CertificateMaterial) -> BTreeSet<Arc<str>> {
        let none = BTreeSet::new();
        let before = self
            .snapshot
            .certificate(query)
            .and_then(|known| known.value.as_ref());
        let Some(before) = before.filter(|before| before.private_key.is_some() && is_in_date(before)) else {
            return none;
        };
        let had: BTreeSet<Arc<str>> = before.host_names().collect();
        let has: BTreeSet<Arc<str>> = material.host_names().collect();
        // As nearly always.
        if had.is_subset(&has) {
            return none;
        }
        let config = &self.snapshot.config;
        let is_it = |name: &Arc<str>| {
            let declared = config.certificate(name);
            declared.and_then(|declared| declared.allowed()) == Some(query)
        };
        let mut lost = none;
        for gateway in &self.gateways {
            let declared = config.gateway(gateway.name());
            for listener in declared.iter().flat_map(|declared| &declared.listeners) {
                let shown = || listener.tls.iter().flat_map(|tls| &tls.certificates);
                if !shown().any(|(name, _)| is_it(name)) {
                    continue;
                }
                let others = shown()
                    .filter(|(name, _)| !is_it(name))
                    .filter_map(|(name, _)| self.snapshot.serving(name)?.value.as_ref());
                let others: BTreeSet<Arc<str>> = others.flat_map(|other| other.host_names()).collect();
                let hosts = gateway.compiler.hosts();
                let hosts = hosts
                    .filter(|(of, _)| **of == listener.name)
                    .map(|(_, host)| host);
                let is_lost = |host: &&Arc<str>| {
                    is_covered(&had, host) && !is_covered(&has, host) && !is_covered(&others, host)
                };
                lost.extend(hosts.filter(is_lost).cloned());
            }
        }
        lost
    }
}

fn is_in_date(material: &CertificateMaterial) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    (material.not_before..material.not_after).contains(&now)
}

fn problem(query: &CertificateQuery, material: &CertificateMaterial, lost: &BTreeSet<Arc<str>>) -> Problem {
    let shown = lost.iter().take(SHOWN).map(|host| format!("{host:?}"));
    let mut shown = shown.collect::<Vec<_>>().join(", ");
    if let more @ 1.. = lost.len().saturating_sub(SHOWN) {
        shown.push_str(&format!(" and {more} more"));
    }
    let names = material.names.iter().take(SHOWN).map(|name| format!("{name:?}"));
    let names = names.collect::<Vec<_>>().join(", ");
    let message = format!(
        "{query}: the new certificate (serial {}, for {names}) does not cover hosts that are served with the one of before: {shown}",
        material.serial
    );
    Problem::new(ProblemKind::Invalid, message).with_fix(
        "put one there with these names; if they are to go, take them out of the routes, or restart the agent, which takes it as it is",
    )
}
