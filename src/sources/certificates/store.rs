//! What is remembered of certificates over a restart: the public chain and, of issued ones, when one was last asked for.
//!
//! Without it every restart would issue every certificate again, which fills a PKI mount (Vault issue 32003), and
//! a crash loop would do so without end; and a restart while a source is away would take its certificates from Envoy.
//! Private keys are never written: after a restart Envoy still holds them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use redb::backends::{FileBackend, InMemoryBackend};
use redb::{Database, ReadableDatabase, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::model::{CertificateMaterial, CertificateQuery};
use crate::sources::private_file;

/// Query (as JSON) to record (as JSON).
const TABLE: TableDefinition<&str, &[u8]> = TableDefinition::new("issued_certificates");

/// The public half of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicCertificate {
    /// Leaf first, PEM.
    pub chain: Arc<str>,
    pub version: String,
    pub serial: Arc<str>,
    /// Unix seconds.
    pub not_before: i64,
    pub not_after: i64,
    /// Of authorities: what they revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl: Option<Arc<str>>,
}

impl PublicCertificate {
    pub fn of(material: &CertificateMaterial) -> Self {
        Self {
            chain: material.chain.clone(),
            version: material.version(),
            serial: material.serial.clone(),
            not_before: material.not_before,
            not_after: material.not_after,
            crl: material.crl.clone(),
        }
    }
}

/// One query's record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredCertificate {
    pub certificate: Option<PublicCertificate>,
    /// When one was last asked for, in Unix seconds; written before the request is sent.
    pub last_attempt: Option<i64>,
    /// When the certificate came, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<i64>,
    /// Vault revokes it with the token that asked for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leased: bool,
}

impl StoredCertificate {
    /// Of one that is read: there is nothing to ask for.
    pub(super) fn read(material: &CertificateMaterial) -> Self {
        Self {
            certificate: Some(PublicCertificate::of(material)),
            ..Self::default()
        }
    }

    /// Of one that is issued, in Unix seconds. A certificate that has ended is shown until there is another: who restarts while
    /// Vault is away has to know it. An attempt matters for as long as attempts are counted: a day is ample.
    pub(super) fn matters_until(&self) -> Option<i64> {
        let certificate = self.certificate.as_ref();
        let ends = certificate.map(|certificate| certificate.not_after.saturating_add(SHOWN_AFTER_ITS_END));
        ends.max(self.last_attempt.map(|at| at.saturating_add(86_400)))
    }
}

/// A month: an outage that nobody minds for longer is none.
pub(super) const SHOWN_AFTER_ITS_END: i64 = 30 * 86_400;

/// Keeps records over restarts. Calls may block on a disk: they are made from blocking threads.
pub trait CertificateStore: Send + Sync {
    fn load(&self, query: &CertificateQuery) -> Result<Option<StoredCertificate>, StoreError>;

    /// All of them or none. None in place of a record: it goes.
    fn write(&self, records: &[(CertificateQuery, Option<StoredCertificate>)]) -> Result<(), StoreError>;

    /// Drops all that `keeps` does not want, and what cannot be read. Returns how many.
    fn prune(
        &self,
        keeps: &dyn Fn(&CertificateQuery, &StoredCertificate) -> bool,
    ) -> Result<usize, StoreError>;

    fn save(&self, query: &CertificateQuery, record: &StoredCertificate) -> Result<(), StoreError> {
        self.write(&[(query.clone(), Some(record.clone()))])
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the certificate store {path}")]
    Open { path: String, source: std::io::Error },
    #[error("the certificate store failed")]
    Database(#[source] Box<redb::Error>),
    #[error("a record of the certificate store cannot be read")]
    Record(#[source] serde_json::Error),
    #[error("the certificate store did not answer ({0})")]
    Stopped(String),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

/// One redb file, or none.
pub struct RedbCertificateStore {
    /// None: in memory.
    path: Option<PathBuf>,
    /// None after an error of the disk: redb takes nothing more until it is opened anew.
    database: Mutex<Option<Database>>,
}

impl RedbCertificateStore {
    /// Opens or creates a file that only its owner can read: it names what this gateway serves.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            path: Some(path.to_owned()),
            database: Mutex::new(Some(open(path)?)),
        })
    }

    /// Forgotten with the process.
    pub fn in_memory() -> Result<Self, StoreError> {
        Ok(Self {
            path: None,
            database: Mutex::new(Some(memory()?)),
        })
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        // What a panic left half done is a transaction that was never committed.
        let mut kept = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match kept.take() {
            Some(database) => database,
            None => self.path.as_deref().map_or_else(memory, open)?,
        };
        let result = work(&database);
        if !matches!(result, Err(StoreError::Database(_))) {
            *kept = Some(database);
        }
        result
    }
}

impl CertificateStore for RedbCertificateStore {
    fn load(&self, query: &CertificateQuery) -> Result<Option<StoredCertificate>, StoreError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let table = match transaction.open_table(TABLE) {
                Ok(table) => table,
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let Some(bytes) = table.get(key(query)?.as_str())? else {
                return Ok(None);
            };
            serde_json::from_slice(bytes.value())
                .map(Some)
                .map_err(StoreError::Record)
        })
    }

    fn write(&self, records: &[(CertificateQuery, Option<StoredCertificate>)]) -> Result<(), StoreError> {
        let mut differing = Vec::with_capacity(records.len());
        for (query, record) in records {
            // A record that cannot be read is one to be replaced.
            if !matches!(self.load(query), Ok(before) if before == *record) {
                let bytes = record.as_ref().map(serde_json::to_vec).transpose();
                differing.push((key(query)?, bytes.map_err(StoreError::Record)?));
            }
        }
        if differing.is_empty() {
            return Ok(());
        }
        self.with(|database| {
            let transaction = database.begin_write()?;
            {
                let mut table = transaction.open_table(TABLE)?;
                for (key, bytes) in &differing {
                    match bytes {
                        Some(bytes) => _ = table.insert(key.as_str(), bytes.as_slice())?,
                        None => _ = table.remove(key.as_str())?,
                    }
                }
            }
            transaction.commit()?;
            Ok(())
        })
    }

    fn prune(
        &self,
        keeps: &dyn Fn(&CertificateQuery, &StoredCertificate) -> bool,
    ) -> Result<usize, StoreError> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            let mut dropped = 0;
            transaction.open_table(TABLE)?.retain(|key, bytes| {
                let record = serde_json::from_str(key).ok();
                let record = record.zip(serde_json::from_slice(bytes).ok());
                // One that cannot be read is from another version of ours.
                let keep = record.is_some_and(|(query, record)| keeps(&query, &record));
                dropped += usize::from(!keep);
                keep
            })?;
            match dropped {
                // A restart where nothing has ended writes nothing.
                0 => transaction.abort()?,
                _ => transaction.commit()?,
            }
            Ok(dropped)
        })
    }
}

pub(super) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::Stopped(error.to_string())),
    }
}

/// With what is behind it.
pub(super) fn cause(error: &StoreError) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn memory() -> Result<Database, StoreError> {
    Ok(Database::builder().create_with_backend(InMemoryBackend::new())?)
}

fn open(path: &Path) -> Result<Database, StoreError> {
    let opened = private_file::open(path).map_err(|source| StoreError::Open {
        path: path.display().to_string(),
        source,
    })?;
    Ok(Database::builder().create_with_backend(FileBackend::new(opened)?)?)
}

fn key(query: &CertificateQuery) -> Result<String, StoreError> {
    serde_json::to_string(query).map_err(StoreError::Record)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn query(name: &str) -> CertificateQuery {
        CertificateQuery::VaultPki {
            mount: "pki".into(),
            role: "edge".into(),
            issuer: None,
            common_name: name.into(),
            alt_names: Vec::new(),
            ip_sans: Vec::new(),
            ttl: None,
            key_type: None,
        }
    }

    fn record(not_after: i64) -> StoredCertificate {
        StoredCertificate {
            certificate: Some(PublicCertificate {
                chain: "chain".into(),
                version: "v".to_owned(),
                serial: "01".into(),
                not_before: 0,
                not_after,
                crl: None,
            }),
            last_attempt: Some(7),
            received: None,
            leased: false,
        }
    }

    #[test]
    fn remembers_over_a_reopen_in_a_private_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("certificates.redb");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        {
            let store = RedbCertificateStore::open(&path).unwrap();
            assert_eq!(store.load(&query("a")).unwrap(), None);
            store.save(&query("a"), &record(100)).unwrap();
        }
        let store = RedbCertificateStore::open(&path).unwrap();
        assert_eq!(store.load(&query("a")).unwrap(), Some(record(100)));
        assert_eq!(store.load(&query("b")).unwrap(), None);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn writes_all_or_nothing_and_only_what_differs() {
        let store = RedbCertificateStore::in_memory().unwrap();
        store
            .write(&[(query("a"), Some(record(1))), (query("b"), Some(record(2)))])
            .unwrap();
        store
            .write(&[
                (query("a"), None),
                (query("c"), None),
                (query("b"), Some(record(3))),
            ])
            .unwrap();
        assert_eq!(store.load(&query("a")).unwrap(), None);
        assert_eq!(store.load(&query("b")).unwrap(), Some(record(3)));
    }

    #[test]
    fn prunes_what_is_not_wanted_and_what_cannot_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.redb");
        let store = RedbCertificateStore::open(&path).unwrap();
        store.save(&query("old"), &record(100)).unwrap();
        store.save(&query("new"), &record(300)).unwrap();
        let written = store.with(|database| {
            let transaction = database.begin_write()?;
            transaction
                .open_table(TABLE)?
                .insert("a key of another version", b"{}".as_slice())?;
            transaction.commit()?;
            Ok(())
        });
        written.unwrap();
        assert_eq!(store.prune(&|query_, _| *query_ != query("old")).unwrap(), 2);
        assert_eq!(store.load(&query("old")).unwrap(), None);
        assert!(store.load(&query("new")).unwrap().is_some());
        assert_eq!(store.prune(&|_, _| true).unwrap(), 0);
    }

    #[test]
    fn a_certificate_is_shown_after_its_end_and_an_attempt_remembered_for_a_day() {
        let ended = StoredCertificate {
            last_attempt: Some(1000),
            ..record(500)
        };
        assert_eq!(ended.matters_until(), Some(500 + SHOWN_AFTER_ITS_END));
        let attempt_alone = StoredCertificate {
            certificate: None,
            ..ended
        };
        assert_eq!(attempt_alone.matters_until(), Some(1000 + 86_400));
        assert_eq!(record(500).matters_until(), Some(500 + SHOWN_AFTER_ITS_END));
        assert_eq!(StoredCertificate::default().matters_until(), None);
    }
}
