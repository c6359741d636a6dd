//! Documents and services by the thousand.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use portreeve::config::{Config, Permissions};
use portreeve::hcl::Limits;
use portreeve::model::{
    CertificateMaterial, CertificateQuery, CertificateUpdate, Document, DocumentId, DocumentsUpdate, Health,
    Instance, Observation, Redacted, ServiceQuery, ServiceUpdate, Shared, Weights,
};
use portreeve::snapshot::Snapshot;
use portreeve::translate::Settings;

pub const SOURCE: &str = "bench";
/// Routes (rules) of one host, where a row counts routes.
pub const RULES: usize = 10;

/// What a synthetic gateway is made of.
#[derive(Clone, Copy)]
pub struct Size {
    pub hosts: usize,
    pub rules: usize,
    pub services: usize,
    pub instances: usize,
}

impl Size {
    /// So many routes, ten to a host, over a thousand services (or as many as there are hosts).
    pub fn of_routes(routes: usize) -> Size {
        let hosts = routes / RULES;
        Size {
            hosts,
            rules: RULES,
            services: hosts.min(1000),
            instances: 2,
        }
    }

    /// One host with one route for each of so many services.
    pub fn of_services(services: usize, instances: usize) -> Size {
        Size {
            hosts: services,
            rules: 1,
            services,
            instances,
        }
    }

    pub fn documents(&self) -> Vec<Document> {
        let routes = (0..self.hosts).map(|host| self.route(host, 0));
        std::iter::once(document("gateway", &gateway(8080)))
            .chain(routes)
            .collect()
    }

    /// One host's document; another edition differs in a header.
    pub fn route(&self, host: usize, edition: usize) -> Document {
        let text = route(
            &format!("r{host}"),
            &format!("h{host}.example.com"),
            self.rules,
            &service_name(host % self.services),
            edition,
        );
        document(&format!("r{host}"), &text)
    }

    pub fn answers(&self) -> impl Iterator<Item = Observation> + '_ {
        (0..self.services).map(|service| answer(&service_name(service), self.instances, 0))
    }

    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = empty();
        snapshot.apply(documents(self.documents()));
        for answer in self.answers() {
            snapshot.apply(answer);
        }
        snapshot
    }
}

pub fn empty() -> Snapshot {
    Snapshot::new(
        Config::new(Permissions::default(), Limits::default()),
        BTreeSet::from([SOURCE.into()]),
    )
}

pub fn settings() -> Settings {
    Settings {
        bind_address: "127.0.0.1".parse().expect("an address"),
        hold_pending: true,
        same_node: Default::default(),
    }
}

pub fn service_name(service: usize) -> String {
    format!("s{service}")
}

pub fn gateway(port: u16) -> String {
    format!("gateway \"edge\" {{\n  listener \"web\" {{\n    port = {port}\n  }}\n}}\n")
}

pub fn route(name: &str, host: &str, rules: usize, service: &str, edition: usize) -> String {
    let mut text =
        format!("http_route \"{name}\" {{\n  gateways  = [\"edge\"]\n  hostnames = [\"{host}\"]\n\n");
    if edition > 0 {
        text.push_str(&format!(
            "  response_headers {{\n    set = {{ \"x-edition\" = \"{edition}\" }}\n  }}\n\n"
        ));
    }
    for rule in 0..rules {
        let path = if rule == 0 {
            "/".to_owned()
        } else {
            format!("/p{rule}")
        };
        text.push_str(&format!("  rule \"p{rule}\" {{\n    match {{ path_prefix = \"{path}\" }}\n    backend \"consul\" \"{service}\" {{}}\n  }}\n"));
    }
    text + "}\n"
}

/// Some of many rules of one host, each for a path of its own: every other one exact, the others prefixes of one length.
pub fn path_rules(name: &str, host: &str, rules: Range<usize>, service: &str) -> String {
    let mut text =
        format!("http_route \"{name}\" {{\n  gateways  = [\"edge\"]\n  hostnames = [\"{host}\"]\n\n");
    for rule in rules {
        let kind = if rule % 2 == 0 { "path" } else { "path_prefix" };
        let path = numbered_path(rule);
        text.push_str(&format!("  rule \"p{rule}\" {{\n    match {{ {kind} = \"{path}\" }}\n    backend \"consul\" \"{service}\" {{}}\n  }}\n"));
    }
    text + "}\n"
}

pub fn numbered_path(rule: usize) -> String {
    format!("/p{rule:05}")
}

pub fn document(name: &str, text: &str) -> Document {
    Document {
        id: DocumentId::File(format!("{name}.hcl").into()),
        text: text.into(),
        order: 0,
        version: 0,
    }
}

pub fn documents(changed: Vec<Document>) -> Observation {
    Observation::Documents(DocumentsUpdate {
        changed,
        complete: true,
        ..DocumentsUpdate::from_source(SOURCE)
    })
}

/// A watch's answer; another edition moves the first instance to another port.
pub fn answer(service: &str, instances: usize, edition: usize) -> Observation {
    let instance = |number: usize| Instance {
        node: format!("node-{number}").into(),
        id: format!("{service}-{number}").into(),
        destination: None,
        created: 0,
        address: format!("10.0.{}.{}", number / 250, number % 250 + 1).into(),
        port: 8000 + if number == 0 { edition % 1000 } else { 0 } as u16,
        ports: Shared::default(),
        tells_ports_apart: false,
        health: Health::Passing,
        weights: Weights::default(),
        tags: Shared::default(),
        meta: Shared::default(),
    };
    let instances: Arc<[Instance]> = (0..instances).map(instance).collect();
    Observation::Service(ServiceUpdate {
        query: ServiceQuery::named(service),
        result: Ok(instances),
    })
}

/// One listener with so many certificates, and a host.
pub fn certificate_documents(certificates: usize) -> Vec<Document> {
    let names: Vec<String> = (0..certificates).map(|number| format!("\"c{number}\"")).collect();
    let gateway = format!(
        "gateway \"edge\" {{\n  listener \"web\" {{\n    port = 8443\n    protocol = \"https\"\n    \
         tls {{ certificates = [{}] }}\n  }}\n}}\n",
        names.join(", ")
    );
    let blocks = (0..certificates).map(|number| {
        let text = format!(
            "certificate \"c{number}\" {{\n  vault_pki {{\n    mount = \"pki\"\n    role = \"edge\"\n    \
             common_name = \"c{number}.example.com\"\n  }}\n}}\n"
        );
        document(&format!("c{number}"), &text)
    });
    let host = route("r", "c0.example.com", 1, "s0", 0);
    [document("gateway", &gateway), document("r", &host)]
        .into_iter()
        .chain(blocks)
        .collect()
}

/// What Vault issued; another edition is a renewal.
pub fn certificate(query: &CertificateQuery, edition: usize) -> Observation {
    let CertificateQuery::VaultPki { common_name, .. } = query else {
        panic!("not one of ours: {query}");
    };
    let material = CertificateMaterial {
        chain: format!("chain {edition} of {common_name}").into(),
        private_key: Some(Arc::new(Redacted::new(format!("key {edition}")))),
        serial: edition.to_string().into(),
        names: vec![common_name.clone()],
        not_before: 0,
        not_after: 1,
        crl: None,
    };
    Observation::Certificate(CertificateUpdate {
        query: query.clone(),
        result: Ok(Arc::new(material)),
    })
}
