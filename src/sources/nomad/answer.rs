//! An answer of `/v1/service/<name>` as instances. Pure.

use std::sync::Arc;

use serde::Deserialize;

use crate::model::{Health, Instance, Shared, Weights};

/// Instances, sorted, and how many were left out: unusable, or beyond the bound.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Instances {
    pub(super) list: Vec<Instance>,
    pub(super) unusable: usize,
    pub(super) cut: usize,
}

#[derive(Deserialize)]
struct Registration {
    #[serde(rename = "ID", default)]
    id: Arc<str>,
    #[serde(rename = "NodeID", default)]
    node: Arc<str>,
    #[serde(rename = "Address", default)]
    address: Arc<str>,
    #[serde(rename = "Port", default)]
    port: i64,
    #[serde(rename = "Tags", default)]
    tags: Option<Vec<Arc<str>>>,
    #[serde(rename = "CreateIndex", default)]
    created: u64,
}

pub(super) fn parse(body: &[u8]) -> Result<Instances, serde_json::Error> {
    let registrations: Option<Vec<Registration>> = serde_json::from_slice(body)?;
    let registrations = registrations.unwrap_or_default();
    let total = registrations.len();
    let mut list: Vec<Instance> = registrations
        .into_iter()
        .filter_map(Registration::instance)
        .collect();
    let unusable = total - list.len();
    list.sort();
    list.dedup();
    let cut = list.len().saturating_sub(INSTANCES);
    list.truncate(INSTANCES);
    Instance::share_among(&mut list);
    Ok(Instances { list, unusable, cut })
}

/// The namespaces in which a service of this name is registered, from `/v1/services?namespace=*`, and how many more there
/// are than are taken.
pub(super) fn namespaces_of(body: &[u8], service: &str) -> Result<(Vec<Arc<str>>, usize), serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Namespace {
        namespace: Arc<str>,
        services: Option<Vec<Listed>>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Listed {
        service_name: Arc<str>,
    }
    let all: Option<Vec<Namespace>> = serde_json::from_slice(body)?;
    let mut found: Vec<Arc<str>> = all
        .unwrap_or_default()
        .into_iter()
        .filter(|namespace| {
            let mut services = namespace.services.iter().flatten();
            services.any(|listed| *listed.service_name == *service)
        })
        .map(|namespace| namespace.namespace)
        .collect();
    found.sort();
    let cut = found.len().saturating_sub(NAMESPACES);
    found.truncate(NAMESPACES);
    Ok((found, cut))
}

impl Registration {
    fn instance(self) -> Option<Instance> {
        let usable =
            |text: &str| !text.is_empty() && text.len() <= NAME_BYTES && !text.contains(char::is_control);
        let port = u16::try_from(self.port).ok()?;
        if !usable(&self.id) || !usable(&self.address) || self.address.contains(char::is_whitespace) {
            return None;
        }
        let mut tags = self.tags.unwrap_or_default();
        tags.retain(|tag| tag.len() <= TAG_BYTES);
        tags.truncate(TAGS);
        Some(Instance {
            node: self.node,
            id: self.id,
            destination: None,
            address: self.address,
            port,
            ports: Shared::default(),
            tells_ports_apart: false,
            // Nomad does not say: a failing check leaves the registration as it is.
            health: Health::Passing,
            weights: Weights::default(),
            tags: tags.into(),
            meta: Shared::default(),
            created: self.created,
        })
    }
}

/// As for Consul.
pub(super) const INSTANCES: usize = 10_000;

pub(super) const NAMESPACES: usize = 64;
const NAME_BYTES: usize = 512;
const TAG_BYTES: usize = 512;
const TAGS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_nomad() {
        let body = br#"[{"ID":"_nomad-task-17-group-web-http","ServiceName":"web","Namespace":"default","Address":"127.0.0.1","Port":29702,
            "Tags":["v1"],"AllocID":"17","NodeID":"74","JobID":"web","Datacenter":"dc1","CreateIndex":14,"ModifyIndex":24},
            {"ID":"b","Address":"","Port":1,"Tags":null}, {"ID":"c","Address":"10.0.0.1","Port":70000}]"#;
        let found = parse(body).unwrap();
        assert_eq!((found.list.len(), found.unusable), (1, 2));
        let instance = &found.list[0];
        assert_eq!((&*instance.address, instance.port), ("127.0.0.1", 29702));
        assert_eq!((instance.health, instance.created), (Health::Passing, 14));
        assert!(parse(b"null").unwrap().list.is_empty());
        assert!(parse(b"{}").is_err());
    }

    /// Whoever registers chooses all of it.
    #[test]
    fn hostile_registrations_of_nomad_are_bounded_or_left_out() {
        let long = "x".repeat(NAME_BYTES + 1);
        let registration =
            |id: &str, address: &str| serde_json::json!([{ "ID": id, "Address": address, "Port": 80 }]);
        for (id, address) in [
            ("a", "10.0.0.1\n10.0.0.2"),
            ("a\u{0}b", "10.0.0.1"),
            ("a", &*long),
            (&*long, "10.0.0.1"),
            ("a", "10.0.0.1 10.0.0.2"),
            ("a", "\u{3000}"),
        ] {
            let found = parse(registration(id, address).to_string().as_bytes()).unwrap();
            assert!(found.list.is_empty(), "{id:?} {address:?}");
            assert_eq!(found.unusable, 1, "{id:?} {address:?}");
        }
        let longest = &long[1..];
        let found = parse(registration(longest, longest).to_string().as_bytes()).unwrap();
        assert_eq!((found.list.len(), found.unusable), (1, 0));

        let tags: Vec<String> = (0..200).map(|number| format!("tag-{number}")).collect();
        let tags = [vec![long.clone()], tags].concat();
        let tagged = serde_json::json!([{ "ID": "a", "Address": "10.0.0.1", "Port": 80, "Tags": tags }]);
        let found = parse(tagged.to_string().as_bytes()).unwrap();
        assert_eq!(found.list[0].tags.len(), TAGS);
        assert_eq!(&*found.list[0].tags[0], "tag-0");
    }

    #[test]
    fn namespaces_that_have_the_service() {
        let body = br#"[{"Namespace":"shop","Services":[{"ServiceName":"web","Tags":[]}]},
            {"Namespace":"default","Services":[{"ServiceName":"web","Tags":null},{"ServiceName":"db","Tags":[]}]},
            {"Namespace":"empty","Services":null}]"#;
        assert_eq!(
            namespaces_of(body, "web").unwrap(),
            (vec!["default".into(), "shop".into()], 0)
        );
        let many: Vec<_> = (0..NAMESPACES + 3)
            .map(
                |at| serde_json::json!({"Namespace": format!("n{at}"), "Services": [{"ServiceName": "web"}]}),
            )
            .collect();
        let (taken, cut) = namespaces_of(serde_json::json!(many).to_string().as_bytes(), "web").unwrap();
        assert_eq!((taken.len(), cut), (NAMESPACES, 3));
    }
}
