//! What is remembered of certificates over a restart: the public chain and, of issued ones, when one was last asked for.
//!
//! Without it every restart would issue every certificate again, which fills a PKI mount (Vault issue 32003), and
//! a crash loop would do so without end; and a restart while a source is away would take its certificates from Envoy.
//! Private keys are never written: after a restart Envoy still holds them.

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use redb::backends::{FileBackend, InMemoryBackend};
use redb::{Database, ReadableDatabase, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::model::{CertificateMaterial, CertificateQuery};

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
    /// Vault revokes it with the token that asked for it, which no later process renews.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leased: bool,
}

/// Keeps records over restarts. Calls may block on a disk: they are made from blocking threads.
pub trait CertificateStore: Send + Sync {
    fn load(&self, query: &CertificateQuery) -> Result<Option<StoredCertificate>, StoreError>;
    fn save(&self, query: &CertificateQuery, record: &StoredCertificate) -> Result<(), StoreError>;
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

    /// Drops what expired before `now`, so that renamed certificates do not pile up. Returns how many.
    pub fn prune(&self, now: i64) -> Result<usize, StoreError> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            let mut dropped = 0;
            transaction.open_table(TABLE)?.retain(|_, bytes| {
                let keep = serde_json::from_slice::<StoredCertificate>(bytes).is_ok_and(|record| {
                    let ends = record.certificate.map(|certificate| certificate.not_after);
                    // A record with an attempt alone matters for as long as an attempt is counted: a day is ample.
                    ends.or(record.last_attempt.map(|at| at + 86_400))
                        .is_some_and(|end| end > now)
                });
                dropped += usize::from(!keep);
                keep
            })?;
            transaction.commit()?;
            Ok(dropped)
        })
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

    fn save(&self, query: &CertificateQuery, record: &StoredCertificate) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(record).map_err(StoreError::Record)?;
        self.with(|database| {
            let transaction = database.begin_write()?;
            transaction
                .open_table(TABLE)?
                .insert(key(query)?.as_str(), bytes.as_slice())?;
            transaction.commit()?;
            Ok(())
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
    let opened = private_file(path).map_err(|source| StoreError::Open {
        path: path.display().to_string(),
        source,
    })?;
    Ok(Database::builder().create_with_backend(FileBackend::new(opened)?)?)
}

fn key(query: &CertificateQuery) -> Result<String, StoreError> {
    serde_json::to_string(query).map_err(StoreError::Record)
}

fn private_file(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    // An existing file keeps its mode when opened; one copied from a backup may be wider.
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
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
    fn prunes_what_expired() {
        let directory = tempfile::tempdir().unwrap();
        let store = RedbCertificateStore::open(&directory.path().join("c.redb")).unwrap();
        store.save(&query("old"), &record(100)).unwrap();
        store.save(&query("new"), &record(300)).unwrap();
        assert_eq!(store.prune(200).unwrap(), 1);
        assert_eq!(store.load(&query("old")).unwrap(), None);
        assert!(store.load(&query("new")).unwrap().is_some());
    }
}
