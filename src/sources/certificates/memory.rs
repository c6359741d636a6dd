//! What was in force before a restart, for one watch: the public half of certificates that are read, and the authorities
//! of clients. While their source does not answer, Envoy shows what it has, and lets in whom it let in.

use super::authorities;
use super::pem;
use super::records::Records;
use crate::model::{CertificateMaterial, CertificateQuery};

pub(super) struct Memory {
    records: Records,
    query: CertificateQuery,
    /// Of the watch, among those of this query.
    number: u64,
    recalls: bool,
}

impl Memory {
    pub(super) fn new(records: Records, query: CertificateQuery, number: u64, recalls: bool) -> Self {
        Self {
            records,
            query,
            number,
            recalls,
        }
    }

    /// Checked as if it came now. Authorities that have ended since are not believed; a certificate that has is what Envoy shows.
    pub(super) async fn recall(&self, now: i64) -> Option<CertificateMaterial> {
        if !self.recalls {
            return None;
        }
        let stored = self.records.load(&self.query).await?.certificate?;
        let parsed = match &self.query {
            CertificateQuery::ClientCa(_) => authorities::parse(&stored.chain, stored.crl.as_deref(), now)
                .map(|authorities| authorities.material)
                .map_err(|fault| fault.to_string()),
            _ => pem::parse_held(&stored.chain).map_err(|fault| fault.to_string()),
        };
        parsed
            .inspect_err(
                |fault| tracing::info!(certificate = %self.query, %fault, "stored certificate not used"),
            )
            .ok()
    }

    /// On disk soon. A disk that takes nothing costs the next restart, not this certificate.
    pub(super) fn keep(&self, material: &CertificateMaterial) {
        self.records.keep(&self.query, self.number, material);
    }
}
