//! What survives a restart of the agent: the documents in service and as Envoy last confirmed them, the endpoints last
//! known, the texts that Envoy refused. Never a private key: certificates keep their public part in a store of their own.
//!
//! Writes go through one thread, so that a slow or full disk delays nobody; the newest state wins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::inbox::{self, Inbox, Outbox, Waiting};
use super::withheld::WithheldResource;
use crate::config::Quarantine;
use crate::model::mesh::{Chain, ChainQuery, Interest, MeshLeaf, MeshRoots};
use crate::model::{Document, Instance, MeshUpdate, Observation, ServiceQuery};
use crate::sources::private_file;

const DOCUMENTS: TableDefinition<&str, &[u8]> = TableDefinition::new("documents");
/// The texts that an Envoy runs with: what a refusal goes back to, also when the agent died before it heard of it.
const CONFIRMED: TableDefinition<&str, &[u8]> = TableDefinition::new("confirmed");
const SERVICES: TableDefinition<&str, &[u8]> = TableDefinition::new("services");
const QUARANTINE: TableDefinition<&str, &[u8]> = TableDefinition::new("quarantine");
/// By gateway.
const WITHHELD: TableDefinition<&str, &[u8]> = TableDefinition::new("withheld");
const CHAINS: TableDefinition<&str, &[u8]> = TableDefinition::new("chains");
/// Two entries: who we are in the mesh, and whom we trust there.
const MESH: TableDefinition<&str, &[u8]> = TableDefinition::new("mesh");

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "{path}: cannot open the agent's state; if it is damaged, delete it: what it held comes again from its sources"
    )]
    Open {
        path: PathBuf,
        source: redb::DatabaseError,
    },
    #[error(
        "{path}: another agent uses it; stop that one first (its Envoy may stay: envoy.stop_with_agent), or give this \
         one a data_dir of its own. Do not delete the file"
    )]
    InUse { path: PathBuf },
    #[error(
        "{path}: cannot open the agent's state, which changes with every change: data_dir must be writable"
    )]
    Disk { path: PathBuf, source: std::io::Error },
    #[error("{path}: cannot make the agent's data directory")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error(
        "{path}: cannot read the agent's state; if it is damaged, delete it: what it held comes again from its sources"
    )]
    Read { path: PathBuf, source: redb::Error },
    #[error("cannot start the thread that writes the agent's state")]
    Thread { source: std::io::Error },
}

/// Who we were in the mesh, and whom we trusted there.
type MeshSecrets = (Arc<MeshLeaf>, Arc<MeshRoots>);

/// What the last run left.
#[derive(Debug, Default)]
pub struct Restored {
    /// In service, whether or not an Envoy has taken them.
    pub documents: Vec<Document>,
    pub confirmed: Vec<Document>,
    pub services: Vec<(ServiceQuery, Arc<[Instance]>)>,
    pub quarantined: Vec<Quarantine>,
    pub withheld: BTreeMap<Arc<str>, Vec<WithheldResource>>,
    pub chains: Vec<(ChainQuery, Arc<Chain>)>,
    pub mesh: Option<MeshSecrets>,
}

#[derive(Clone)]
pub struct Store {
    outbox: Arc<Outbox>,
}

pub(super) enum Write {
    Document(Document),
    DocumentGone(String),
    Confirmed(Document),
    ConfirmedGone(String),
    Service(ServiceQuery, Arc<[Instance]>),
    ServiceGone(ServiceQuery),
    Chain(ChainQuery, Arc<Chain>),
    ChainGone(ChainQuery),
    MeshLeaf(Arc<MeshLeaf>),
    MeshRoots(Arc<MeshRoots>),
    MeshGone(&'static str),
    Quarantine(Box<Quarantine>),
    QuarantineOver(String),
    Withheld(Arc<str>, Vec<WithheldResource>),
}

impl Write {
    /// What it is about: the table and the key.
    fn entry(&self) -> (&'static str, String) {
        match self {
            Self::Document(document) => ("documents", document.id.as_str().to_owned()),
            Self::DocumentGone(id) => ("documents", id.clone()),
            Self::Confirmed(document) => ("confirmed", document.id.as_str().to_owned()),
            Self::ConfirmedGone(id) => ("confirmed", id.clone()),
            Self::Service(query, _) | Self::ServiceGone(query) => ("services", query.to_string()),
            Self::Chain(query, _) | Self::ChainGone(query) => ("chains", query.to_string()),
            Self::MeshLeaf(_) => ("mesh", LEAF.to_owned()),
            Self::MeshRoots(_) => ("mesh", ROOTS.to_owned()),
            Self::MeshGone(entry) => ("mesh", (*entry).to_owned()),
            Self::Quarantine(entry) => ("quarantine", entry.document.as_str().to_owned()),
            Self::QuarantineOver(document) => ("quarantine", document.clone()),
            Self::Withheld(gateway, _) => ("withheld", gateway.to_string()),
        }
    }
}

fn is_of_the_disk(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | StorageFull)
}

/// How often what could not be saved is tried again when nothing else is to be saved.
const RETRY: Duration = Duration::from_secs(5);

impl Store {
    /// Opens or makes `state.redb` below the data directory, mode 0600, and reads what it holds.
    pub fn open(data_directory: &Path) -> Result<(Self, Restored), StoreError> {
        std::fs::create_dir_all(data_directory).map_err(|source| StoreError::Directory {
            path: data_directory.to_owned(),
            source,
        })?;
        let path = data_directory.join("state.redb");
        let database = open_database(&path).map_err(|source| match source {
            redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.clone() },
            // Nothing is wrong with the file itself.
            redb::DatabaseError::Storage(redb::StorageError::Io(source)) if is_of_the_disk(&source) => {
                StoreError::Disk {
                    path: path.clone(),
                    source,
                }
            }
            source => StoreError::Open {
                path: path.clone(),
                source,
            },
        })?;
        let restored = read(&database).map_err(|source| StoreError::Read {
            path: path.clone(),
            source,
        })?;
        let (outbox, inbox) = inbox::new();
        let outbox = Arc::new(outbox);
        std::thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || write_all(&path, database, &inbox))
            .map_err(|source| StoreError::Thread { source })?;
        Ok((Self { outbox }, restored))
    }

    pub fn document(&self, document: &Document) {
        self.send(Write::Document(document.clone()));
    }

    pub fn confirmed(&self, document: &Document) {
        self.send(Write::Confirmed(document.clone()));
    }

    pub fn document_gone(&self, id: &str) {
        self.send(Write::DocumentGone(id.to_owned()));
        self.send(Write::ConfirmedGone(id.to_owned()));
    }

    pub fn service(&self, query: &ServiceQuery, instances: &Arc<[Instance]>) {
        self.send(Write::Service(query.clone(), instances.clone()));
    }

    /// What an observation brings that a restart should know.
    pub fn observed(&self, observation: &Observation) {
        match observation {
            Observation::Service(update) => {
                if let Ok(instances) = &update.result {
                    self.service(&update.query, instances);
                }
            }
            Observation::Chain(update) => {
                if let Ok(chain) = &update.result {
                    self.send(Write::Chain(update.query.clone(), chain.clone()));
                }
            }
            Observation::Mesh(MeshUpdate::Leaf(Ok(leaf))) => self.send(Write::MeshLeaf(leaf.clone())),
            Observation::Mesh(MeshUpdate::Roots(Ok(roots))) => self.send(Write::MeshRoots(roots.clone())),
            Observation::Mesh(_)
            | Observation::Intention(_)
            | Observation::Certificate(_)
            | Observation::ServiceNames(_)
            | Observation::Documents(_)
            | Observation::Exposed(_)
            | Observation::SharedPorts(_)
            | Observation::Accepted(_) => {}
        }
    }

    /// Nobody needs this watch any more.
    pub fn gone(&self, interest: &Interest) {
        match interest {
            Interest::Service(query) => self.send(Write::ServiceGone(query.clone())),
            Interest::Chain(query) => self.send(Write::ChainGone(ChainQuery::clone(query))),
            Interest::Mesh => [LEAF, ROOTS]
                .into_iter()
                .for_each(|entry| self.send(Write::MeshGone(entry))),
            Interest::Intention(_) => {}
        }
    }

    pub fn quarantine(&self, quarantine: &Quarantine) {
        self.send(Write::Quarantine(Box::new(quarantine.clone())));
    }

    /// All of a gateway.
    pub fn withheld(&self, gateway: &Arc<str>, all: Vec<WithheldResource>) {
        self.send(Write::Withheld(gateway.clone(), all));
    }

    pub fn quarantine_over(&self, document: &str) {
        self.send(Write::QuarantineOver(document.to_owned()));
    }

    /// Returns when everything handed over so far is on disk, or the writer has given up on it.
    pub fn flush(&self) {
        self.outbox.flush();
    }

    fn send(&self, write: Write) {
        self.outbox.send(write.entry(), write);
    }
}

fn read(database: &Database) -> Result<Restored, redb::Error> {
    let mut restored = Restored::default();
    // The tables are made here, so that reading needs no special case for a new file.
    let transaction = database.begin_write()?;
    for table in [DOCUMENTS, CONFIRMED, SERVICES, QUARANTINE, WITHHELD, CHAINS, MESH] {
        transaction.open_table(table)?;
    }
    transaction.commit()?;
    let transaction = database.begin_read()?;
    // An entry that does not decode is from another version of ours: left out, its source will bring it again.
    for entry in transaction.open_table(DOCUMENTS)?.iter()? {
        restored
            .documents
            .extend(serde_json::from_slice::<Document>(entry?.1.value()).ok());
    }
    for entry in transaction.open_table(CONFIRMED)?.iter()? {
        restored
            .confirmed
            .extend(serde_json::from_slice::<Document>(entry?.1.value()).ok());
    }
    for entry in transaction.open_table(SERVICES)?.iter()? {
        restored.services.extend(
            serde_json::from_slice::<(ServiceQuery, Vec<Instance>)>(entry?.1.value())
                .ok()
                .map(|(query, mut instances)| {
                    Instance::share_among(&mut instances);
                    (query, Arc::from(instances))
                }),
        );
    }
    for entry in transaction.open_table(CHAINS)?.iter()? {
        restored.chains.extend(
            serde_json::from_slice::<(ChainQuery, Chain)>(entry?.1.value())
                .ok()
                .map(|(query, chain)| (query, Arc::new(chain))),
        );
    }
    restored.mesh = mesh(&transaction.open_table(MESH)?)?;
    for entry in transaction.open_table(QUARANTINE)?.iter()? {
        restored
            .quarantined
            .extend(serde_json::from_slice::<Quarantine>(entry?.1.value()).ok());
    }
    for entry in transaction.open_table(WITHHELD)?.iter()? {
        let (gateway, all) = entry?;
        let all = serde_json::from_slice(all.value()).unwrap_or_default();
        restored.withheld.insert(gateway.value().into(), all);
    }
    Ok(restored)
}

/// The key is not among it: Envoy holds it, or nobody does until Consul answers.
fn mesh(
    table: &impl redb::ReadableTable<&'static str, &'static [u8]>,
) -> Result<Option<MeshSecrets>, redb::Error> {
    let leaf = table
        .get(LEAF)?
        .and_then(|entry| serde_json::from_slice::<MeshLeaf>(entry.value()).ok());
    let roots = table
        .get(ROOTS)?
        .and_then(|entry| serde_json::from_slice::<MeshRoots>(entry.value()).ok());
    Ok(leaf
        .zip(roots)
        .map(|(leaf, roots)| (Arc::new(leaf), Arc::new(roots))))
}

const LEAF: &str = "leaf";
const ROOTS: &str = "roots";

fn write_all(path: &Path, database: Database, inbox: &Inbox) {
    let _ending = inbox.ending();
    let mut database = Some(database);
    let mut waiting = Waiting::new();
    let mut failing = false;
    loop {
        // Whatever has come meanwhile goes into the same transaction: one fsync for a burst.
        let retry = (!waiting.is_empty()).then_some(RETRY);
        let Some((writes, flushes)) = inbox.take(retry) else {
            return;
        };
        waiting.extend(writes);
        if !waiting.is_empty() {
            match write_waiting(path, &mut database, &waiting) {
                Ok(()) => {
                    waiting.clear();
                    if std::mem::take(&mut failing) {
                        tracing::info!("the agent's state is saved again");
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(
                            %error,
                            fix = "make room on the disk, or make it writable",
                            "cannot save the agent's state: a restart while Consul is away would serve an older one"
                        );
                    }
                    // After an error of the disk it takes nothing more until it is opened anew.
                    database = None;
                }
            }
        }
        for done in flushes {
            let _ = done.send(());
        }
    }
}

/// What redb keeps of the file in memory. Its own default is 1 GiB, which is as much as the file ever holds; and all that is
/// read of it is read once, at the start.
const CACHE_BYTES: usize = 4 << 20;

fn open_database(path: &Path) -> Result<Database, redb::DatabaseError> {
    let file = private_file::open(path)?;
    let backend = redb::backends::FileBackend::new(file)?;
    Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(backend)
}

fn write_waiting(path: &Path, database: &mut Option<Database>, waiting: &Waiting) -> Result<(), redb::Error> {
    if database.is_none() {
        *database = Some(open_database(path)?);
    }
    match database {
        Some(database) => write_batch(database, waiting.values()),
        None => Ok(()),
    }
}

fn write_batch<'a>(database: &Database, batch: impl Iterator<Item = &'a Write>) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut documents = transaction.open_table(DOCUMENTS)?;
        let mut confirmed = transaction.open_table(CONFIRMED)?;
        let mut services = transaction.open_table(SERVICES)?;
        let mut quarantine = transaction.open_table(QUARANTINE)?;
        let mut withheld = transaction.open_table(WITHHELD)?;
        let mut chains = transaction.open_table(CHAINS)?;
        let mut mesh = transaction.open_table(MESH)?;
        for write in batch {
            match write {
                Write::Document(document) => {
                    documents.insert(document.id.as_str(), &*encoded(document))?;
                }
                Write::Confirmed(document) => {
                    confirmed.insert(document.id.as_str(), &*encoded(document))?;
                }
                Write::ConfirmedGone(id) => {
                    confirmed.remove(id.as_str())?;
                }
                Write::DocumentGone(id) => {
                    documents.remove(id.as_str())?;
                }
                Write::Service(query, instances) => {
                    services.insert(&*query.to_string(), &*encoded(&(query, instances)))?;
                }
                Write::ServiceGone(query) => {
                    services.remove(&*query.to_string())?;
                }
                Write::Chain(query, chain) => {
                    chains.insert(&*query.to_string(), &*encoded(&(query, &**chain)))?;
                }
                Write::ChainGone(query) => {
                    chains.remove(&*query.to_string())?;
                }
                Write::MeshLeaf(leaf) => {
                    mesh.insert(LEAF, &*encoded(&leaf.public()))?;
                }
                Write::MeshRoots(roots) => {
                    mesh.insert(ROOTS, &*encoded(&**roots))?;
                }
                Write::MeshGone(entry) => {
                    mesh.remove(*entry)?;
                }
                Write::Quarantine(entry) => {
                    quarantine.insert(entry.document.as_str(), &*encoded(entry))?;
                }
                Write::QuarantineOver(document) => {
                    quarantine.remove(document.as_str())?;
                }
                Write::Withheld(gateway, all) => {
                    withheld.insert(&**gateway, &*encoded(all))?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

fn encoded(value: &impl serde::Serialize) -> Vec<u8> {
    // Plain data of ours: it has no map with other keys than strings, nothing else can fail.
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::model::{CertificateMaterial, ChainUpdate, DocumentId, Redacted};

    fn of_the_mesh() -> Vec<Observation> {
        let query = ChainQuery {
            service: "web".into(),
            datacenter: None,
            namespace: None,
            partition: None,
        };
        let material = CertificateMaterial {
            chain: "pem".into(),
            private_key: Some(Arc::new(Redacted::new("hunter2".to_owned()))),
            serial: "1".into(),
            names: Vec::new(),
            not_before: 0,
            not_after: 1,
            crl: None,
        };
        let leaf = MeshLeaf {
            service: "edge-gw".into(),
            uri: "spiffe://x.consul".into(),
            material,
        };
        let roots = MeshRoots {
            trust_domain: "x.consul".into(),
            pem: "pem".into(),
            count: 1,
        };
        vec![
            Observation::Chain(ChainUpdate {
                result: Ok(Arc::new(Chain::plain(&query))),
                query,
            }),
            Observation::Mesh(MeshUpdate::Roots(Ok(Arc::new(roots)))),
            Observation::Mesh(MeshUpdate::Leaf(Ok(Arc::new(leaf)))),
        ]
    }

    #[test]
    fn keeps_what_it_was_given() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.redb");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let document = Document {
            id: DocumentId::Kv("portreeve/config/a".into()),
            text: "x".into(),
            order: 3,
            version: 9,
        };
        let older = Document {
            text: "w".into(),
            ..document.clone()
        };
        {
            let (store, restored) = Store::open(directory.path()).unwrap();
            assert!(restored.documents.is_empty());
            let second = Store::open(directory.path()).err();
            assert!(matches!(second, Some(StoreError::InUse { .. })), "{second:?}");
            store.document(&document);
            store.confirmed(&older);
            store.service(&ServiceQuery::named("web"), &Arc::from([]));
            for observation in of_the_mesh() {
                store.observed(&observation);
            }
            store.flush();
        }
        // The writer closes the file when the last handle is gone.
        let (_, restored) = (0..50)
            .find_map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(20));
                Store::open(directory.path()).ok()
            })
            .unwrap();
        assert_eq!(restored.documents, [document]);
        assert_eq!(restored.confirmed, [older], "apart from what is in service");
        assert_eq!(restored.services.len(), 1);
        assert_eq!(restored.chains.len(), 1);
        let (leaf, roots) = restored.mesh.unwrap();
        assert_eq!((&*leaf.service, &*roots.trust_domain), ("edge-gw", "x.consul"));
        assert_eq!(leaf.material.private_key, None);
        let file = std::fs::read(&path).unwrap();
        assert!(
            !file.windows(7).any(|window| window == b"hunter2"),
            "a key on disk"
        );
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_state_file_that_is_a_link_is_named_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        std::fs::write(&target, "").unwrap();
        std::fs::set_permissions(&target, Permissions::from_mode(0o644)).unwrap();
        let path = directory.path().join("state.redb");
        symlink(&target, &path).unwrap();
        let error = anyhow::Error::from(Store::open(directory.path()).err().unwrap());
        let said = format!("{error:#}");
        assert!(
            said.contains("state.redb") && said.contains("a symbolic link"),
            "{said}"
        );
        let metadata = std::fs::metadata(&target).unwrap();
        assert_eq!(
            (metadata.len(), metadata.permissions().mode() & 0o777),
            (0, 0o644)
        );
    }

    #[test]
    fn the_writer_says_that_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.redb");
        let database = Database::create(&path).unwrap();
        let (outbox, inbox) = inbox::new();
        let writer = std::thread::spawn({
            let inbox = inbox.clone();
            move || write_all(&path, database, &inbox)
        });
        drop(outbox);
        writer.join().unwrap();
        assert!(inbox.has_ended(), "a flush would wait for it");
    }
}
