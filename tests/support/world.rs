//! A small world for pure tests: documents, and an answer to whatever they ask for.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use portreeve::config::{Config, Permissions};
use portreeve::hcl::Limits;
use portreeve::model::http::HeaderEdits;
use portreeve::model::mesh::{
    Chain, ChainMatch, ChainPath, ChainQuery, ChainRoute, Interest, MeshLeaf, MeshRoots,
};
use portreeve::model::{
    CertificateMaterial, CertificateQuery, CertificateUpdate, ChainUpdate, Document, DocumentId,
    DocumentsUpdate, Health, Instance, MeshUpdate, Observation, Redacted, ServiceQuery, ServiceUpdate,
    Shared, Weights,
};
use portreeve::snapshot::{Changes, Snapshot};
use portreeve::translate::{Compiler, Settings};

pub const CHAIN: &str = include_str!("../golden/test-only.pem");
/// What the holder of the pair revoked: nothing.
pub const CRL: &str = include_str!("../golden/test-only.crl");
pub const KEY: &str = include_str!("../golden/test-only.key");

pub fn settings() -> Settings {
    Settings {
        bind_address: "127.0.0.1".parse().unwrap(),
        hold_pending: false,
        same_node: Default::default(),
    }
}

pub fn holding() -> Settings {
    Settings {
        hold_pending: true,
        ..settings()
    }
}

/// A document of a `-config` directory.
pub fn file(path: &str, text: &str) -> Document {
    Document {
        id: DocumentId::File(path.into()),
        text: text.into(),
        order: 0,
        version: 0,
    }
}

/// A document of Consul KV with its CreateIndex.
pub fn kv(key: &str, order: u64, text: &str) -> Document {
    Document {
        id: DocumentId::Kv(key.into()),
        text: text.into(),
        order,
        version: order,
    }
}

pub fn empty() -> Snapshot {
    Snapshot::new(
        Config::new(Permissions::default(), Limits::default()),
        Default::default(),
    )
}

pub fn put(snapshot: &mut Snapshot, documents: impl IntoIterator<Item = Document>) -> Changes {
    snapshot.apply(Observation::Documents(DocumentsUpdate {
        changed: documents.into_iter().collect(),
        complete: true,
        ..DocumentsUpdate::default()
    }))
}

pub fn answer_service(snapshot: &mut Snapshot, query: &ServiceQuery, instances: Vec<Instance>) -> Changes {
    snapshot.apply(Observation::Service(ServiceUpdate {
        query: query.clone(),
        result: Ok(instances.into()),
    }))
}

pub fn answer_certificate(snapshot: &mut Snapshot, query: &CertificateQuery) -> Changes {
    snapshot.apply(Observation::Certificate(CertificateUpdate {
        query: query.clone(),
        result: Ok(Arc::new(material(query))),
    }))
}

/// Answers every watch that a gateway asks for, until it asks for nothing new.
pub fn answer_all(snapshot: &mut Snapshot, gateway: &str) {
    loop {
        let compiler = Compiler::compile(gateway, settings(), snapshot);
        let services: Vec<_> = compiler
            .services()
            .into_iter()
            .filter(|query| !snapshot.service_answered(query))
            .collect();
        let certificates: Vec<_> = compiler
            .certificate_queries()
            .into_iter()
            .filter(|query| !snapshot.certificate_answered(query))
            .collect();
        let mesh: Vec<_> = compiler
            .interests()
            .into_iter()
            .filter(|interest| !matches!(interest, Interest::Service(_)) && !snapshot.answered(interest))
            .collect();
        for interest in &mesh {
            answer_mesh(snapshot, interest);
        }
        if services.is_empty() && certificates.is_empty() && mesh.is_empty() {
            return;
        }
        for query in &services {
            answer_service(snapshot, query, instances(&query.name));
        }
        for query in &certificates {
            answer_certificate(snapshot, query);
        }
    }
}

/// A member of the mesh, every service of which is reached in the plain way.
pub fn answer_mesh(snapshot: &mut Snapshot, interest: &Interest) -> Changes {
    match interest {
        Interest::Chain(query) => answer_chain(snapshot, query, Chain::plain(query)),
        Interest::Mesh => {
            let query = CertificateQuery::File {
                certificate: "mesh".into(),
                private_key: "mesh".into(),
            };
            let leaf = MeshLeaf {
                service: "edge-gw".into(),
                uri: "spiffe://example.consul/ns/default/dc/dc1/svc/edge-gw".into(),
                material: material(&query),
            };
            let roots = MeshRoots {
                trust_domain: "example.consul".into(),
                pem: CHAIN.into(),
                count: 1,
            };
            let mut changes = snapshot.apply(Observation::Mesh(MeshUpdate::Roots(Ok(roots.into()))));
            changes.merge(snapshot.apply(Observation::Mesh(MeshUpdate::Leaf(Ok(leaf.into())))));
            changes
        }
        Interest::Service(_) | Interest::Intention(_) => Changes::default(),
    }
}

pub fn answer_chain(snapshot: &mut Snapshot, query: &ChainQuery, chain: Chain) -> Changes {
    snapshot.apply(Observation::Chain(ChainUpdate {
        query: query.clone(),
        result: Ok(chain.into()),
    }))
}

/// A route of a service router that asks for this path alone and changes nothing.
pub fn plain_route(path: ChainPath, next: &str) -> ChainRoute {
    ChainRoute {
        matching: ChainMatch {
            path,
            case_insensitive: false,
            methods: Vec::new(),
            headers: Vec::new(),
            query: Vec::new(),
        },
        next: next.into(),
        prefix_rewrite: None,
        timeout: None,
        idle_timeout: None,
        retry: None,
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
    }
}

/// Three instances that serve, by name always the same, and one that does not.
pub fn instances(service: &str) -> Vec<Instance> {
    let last = service.bytes().fold(0u8, u8::wrapping_add);
    let mut instances = vec![
        instance(service, 1, &format!("10.0.1.{last}"), Health::Passing),
        instance(service, 2, &format!("10.0.2.{last}"), Health::Warning),
        instance(service, 3, &format!("10.0.3.{last}"), Health::Critical),
        instance(service, 4, "2001:db8::7", Health::Passing),
    ];
    instances.sort();
    instances
}

pub fn instance(service: &str, number: u16, address: &str, health: Health) -> Instance {
    Instance {
        node: format!("node-{number}").into(),
        id: format!("{service}-{number}").into(),
        destination: None,
        created: 0,
        address: address.into(),
        port: 8000 + number,
        ports: BTreeMap::from([("grpc".into(), 9000 + number)]).into(),
        tells_ports_apart: false,
        health,
        weights: Weights::default(),
        tags: Shared::default(),
        meta: Shared::default(),
    }
}

/// The one checked-in pair, under the names that were asked for.
pub fn material(query: &CertificateQuery) -> CertificateMaterial {
    let names = match query {
        CertificateQuery::VaultPki {
            common_name,
            alt_names,
            ..
        } => std::iter::once(common_name).chain(alt_names).cloned().collect(),
        CertificateQuery::VaultKv { path, .. } | CertificateQuery::NomadVariable { path, .. } => {
            vec![format!("{}.example.com", path.rsplit('/').next().unwrap()).into()]
        }
        CertificateQuery::ClientCa(_) => Vec::new(),
        CertificateQuery::File { certificate, .. } => {
            let name = certificate.rsplit('/').next().unwrap();
            vec![format!("{}.example.com", name.trim_end_matches(".pem")).into()]
        }
    };
    CertificateMaterial {
        chain: CHAIN.into(),
        private_key: Some(Arc::new(Redacted::new(KEY.to_owned()))),
        serial: "01".into(),
        names,
        not_before: 0,
        not_after: 4_000_000_000,
        crl: match query {
            CertificateQuery::ClientCa(source) if source.checks_revocation() => Some(CRL.into()),
            _ => None,
        },
    }
}
