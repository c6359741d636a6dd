use std::sync::Arc;

use imbl::OrdSet;

use super::mesh::{Chain, ChainQuery, Intention, IntentionQuery, Interest, MeshLeaf, MeshRoots};
use super::{CertificateMaterial, CertificateQuery, Document, DocumentId, Instance, Problem, ServiceQuery};

/// One change from one source, already in model types. Equal content is never sent twice.
#[derive(Clone, Debug)]
pub enum Observation {
    Documents(DocumentsUpdate),
    Service(ServiceUpdate),
    Certificate(CertificateUpdate),
    Chain(ChainUpdate),
    Intention(IntentionUpdate),
    Mesh(MeshUpdate),
    Accepted(AcceptedText),
    /// Every name in the catalog that the token may see, sorted: what a service that is not there may have meant.
    ServiceNames(Arc<[Arc<str>]>),
}

/// What became of one source's documents, taken whole: one Consul transaction is one update.
#[derive(Clone, Debug, Default)]
pub struct DocumentsUpdate {
    /// Which source speaks: a KV prefix or a directory.
    pub source: Arc<str>,
    pub changed: Vec<Document>,
    pub removed: Vec<DocumentId>,
    /// The source has answered once: "no documents" is now known, not assumed.
    pub complete: bool,
    /// None: the source is fine. Some: it is not, and what it said before stands.
    pub problem: Option<Problem>,
}

impl DocumentsUpdate {
    pub fn from_source(source: impl Into<Arc<str>>) -> Self {
        Self {
            source: source.into(),
            ..Self::default()
        }
    }
}

/// What the replicas last accepted of a document whose present text is bad here. None: nobody keeps one.
#[derive(Clone, Debug)]
pub struct AcceptedText {
    pub document: DocumentId,
    pub text: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
pub struct ServiceUpdate {
    pub query: ServiceQuery,
    /// Ok: the instances, sorted. Err: the last known ones stand.
    pub result: Result<Arc<[Instance]>, Problem>,
}

#[derive(Clone, Debug)]
pub struct CertificateUpdate {
    pub query: CertificateQuery,
    /// Err: the last known material stands.
    pub result: Result<Arc<CertificateMaterial>, Problem>,
}

#[derive(Clone, Debug)]
pub struct ChainUpdate {
    pub query: ChainQuery,
    /// Err: the last known chain stands.
    pub result: Result<Arc<Chain>, Problem>,
}

#[derive(Clone, Debug)]
pub struct IntentionUpdate {
    pub query: IntentionQuery,
    /// Err: what was last known stands, and only what is said about it depends on it.
    pub result: Result<Arc<Intention>, Problem>,
}

/// The gateway's place in the mesh. Err: the last known one stands.
#[derive(Clone, Debug)]
pub enum MeshUpdate {
    Roots(Result<Arc<MeshRoots>, Problem>),
    Leaf(Result<Arc<MeshLeaf>, Problem>),
}

/// What must be watched. Computed from the configuration, never stored in it. The sets are persistent: two of them are
/// compared at the price of their difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interests {
    pub services: OrdSet<ServiceQuery>,
    pub certificates: OrdSet<CertificateQuery>,
    /// Some service is not registered: the names of those that are would help.
    pub service_names: bool,
    /// Chains, intentions, the gateway's identity.
    pub mesh: OrdSet<Interest>,
}

impl Interests {
    /// Whether it is new.
    pub fn insert(&mut self, interest: &Interest) -> bool {
        match interest {
            Interest::Service(query) => self.services.insert(query.clone()).is_none(),
            other => self.mesh.insert(other.clone()).is_none(),
        }
    }

    /// Whether it was there.
    pub fn remove(&mut self, interest: &Interest) -> bool {
        match interest {
            Interest::Service(query) => self.services.remove(query).is_some(),
            other => self.mesh.remove(other).is_some(),
        }
    }
}
