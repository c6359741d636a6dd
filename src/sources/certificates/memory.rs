//! The public half of certificates that are read, kept over a restart: while their source does not answer, Envoy shows
//! what it has. Issued ones keep theirs themselves, with the time of the last request, and so do authorities of clients.

use std::sync::Arc;

use super::pem;
use super::store::{CertificateStore, PublicCertificate, StoredCertificate, cause, on_disk};
use crate::model::{CertificateMaterial, CertificateQuery};

pub(super) struct Memory {
    store: Arc<dyn CertificateStore>,
    query: CertificateQuery,
    /// What the disk holds, as far as it was looked at.
    kept: Option<PublicCertificate>,
}

impl Memory {
    /// None: its watch does it itself.
    pub(super) fn of(query: &CertificateQuery, store: &Arc<dyn CertificateStore>) -> Option<Self> {
        query.is_read().then(|| Self {
            store: store.clone(),
            query: query.clone(),
            kept: None,
        })
    }

    /// What was served before the restart, if it has not ended since.
    pub(super) async fn recall(&mut self, now: i64) -> Option<CertificateMaterial> {
        let (store, query) = (self.store.clone(), self.query.clone());
        let record = on_disk(move || store.load(&query)).await.unwrap_or_else(|error| {
            tracing::error!(certificate = %self.query, error = %cause(&error), "certificate store not read");
            None
        });
        self.kept = record?.certificate;
        match pem::parse_public(&self.kept.as_ref()?.chain, now) {
            Ok(material) => Some(material),
            Err(fault) => {
                tracing::info!(certificate = %self.query, %fault, "stored certificate not used");
                None
            }
        }
    }

    /// A disk that takes nothing costs the next restart, not this certificate.
    pub(super) async fn keep(&mut self, material: &CertificateMaterial) {
        let public = PublicCertificate::of(material);
        if self.kept.as_ref() == Some(&public) {
            return;
        }
        self.kept = Some(public.clone());
        let (store, query) = (self.store.clone(), self.query.clone());
        let record = StoredCertificate {
            certificate: Some(public),
            ..StoredCertificate::default()
        };
        let saved = on_disk(move || match store.load(&query)? {
            Some(before) if before == record => Ok(()),
            _ => store.save(&query, &record),
        });
        if let Err(error) = saved.await {
            tracing::error!(certificate = %self.query, error = %cause(&error), "certificate store not written");
        }
    }
}
