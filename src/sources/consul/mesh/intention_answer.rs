//! An answer of `/v1/connect/intentions/match?by=destination` as the rule that holds for one source. Pure.
//!
//! Consul lists what could match a destination; the entry of highest precedence whose source is ours, or `*`, decides.
//! One with permissions (Consul 1.9 and newer) decides by request.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::chain_answer::{RawValueMatch, null_is_default};
use super::checks::{bounded, header_match, methods};
use super::intention_source::Source;
use crate::model::mesh::{IntentionRule, Permission, PermissionMatch, PermissionPath};

/// The deciding intention, in words, and what it says. None: none matches, the default decides.
pub(super) fn parse(body: &[u8], source: &Source) -> Result<Option<(Arc<str>, IntentionRule)>, String> {
    let answer: Option<BTreeMap<String, Option<Vec<RawIntention>>>> =
        serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let mut matching: Vec<RawIntention> = answer
        .unwrap_or_default()
        .into_values()
        .flatten()
        .flatten()
        .filter(|intention| intention.is_about(source))
        .collect();
    matching.sort_by_key(|intention| std::cmp::Reverse(intention.precedence));
    let Some(deciding) = matching.into_iter().next() else {
        return Ok(None);
    };
    let by = bounded(deciding.in_words().into())?;
    Ok(Some((by, deciding.rule()?)))
}

#[derive(Deserialize)]
#[serde(default, rename_all = "PascalCase")]
#[derive(Default)]
struct RawIntention {
    #[serde(rename = "ID")]
    id: String,
    source_name: String,
    #[serde(rename = "SourceNS")]
    source_namespace: String,
    source_partition: String,
    /// A peer's service of our name is not us.
    source_peer: String,
    source_type: String,
    destination_name: String,
    destination_partition: String,
    action: String,
    precedence: i64,
    #[serde(deserialize_with = "null_is_default")]
    permissions: Vec<RawPermission>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct RawPermission {
    #[serde(rename = "Action")]
    action: String,
    #[serde(rename = "HTTP", deserialize_with = "null_is_default")]
    http: RawHttp,
    #[serde(rename = "JWT")]
    jwt: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(default, rename_all = "PascalCase")]
#[derive(Default)]
struct RawHttp {
    path_exact: String,
    path_prefix: String,
    path_regex: String,
    #[serde(deserialize_with = "null_is_default")]
    methods: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    header: Vec<RawValueMatch>,
}

impl RawIntention {
    /// Namespaces and partitions may hold a service of our name each: only ours is us.
    fn is_about(&self, source: &Source) -> bool {
        let or_default = |text: &str| match text {
            "" => "default".to_owned(),
            text => text.to_owned(),
        };
        let is_ours = self.source_name == *source.name || self.source_name == "*";
        let is_here =
            matches!(&*self.source_namespace, "" | "*") || self.source_namespace == *source.namespace;
        let partition = source.partition.as_deref().unwrap_or(&self.destination_partition);
        let is_in_partition =
            self.source_partition == "*" || or_default(&self.source_partition) == or_default(partition);
        is_ours
            && is_here
            && is_in_partition
            && self.source_peer.is_empty()
            && matches!(&*self.source_type, "" | "consul")
    }

    fn in_words(&self) -> String {
        let says = match (&*self.action, self.permissions.len()) {
            (action, 0) => action.to_owned(),
            (_, 1) => "1 permission".to_owned(),
            (_, count) => format!("{count} permissions"),
        };
        let id = match &*self.id {
            "" => String::new(),
            id => format!(", id {id}"),
        };
        format!(
            "{} => {} ({says}, precedence {}{id})",
            self.source_name, self.destination_name, self.precedence
        )
    }

    fn rule(self) -> Result<IntentionRule, String> {
        if !self.permissions.is_empty() {
            let permissions = self
                .permissions
                .into_iter()
                .take(PERMISSIONS)
                .map(RawPermission::permission);
            return Ok(IntentionRule::Permissions(permissions.collect::<Result<_, _>>()?));
        }
        match &*self.action {
            "allow" => Ok(IntentionRule::Allow),
            "deny" => Ok(IntentionRule::Deny),
            other => Err(format!("an intention's action is {other:?}")),
        }
    }
}

impl RawPermission {
    fn permission(self) -> Result<Permission, String> {
        let http = self.http;
        let path = match (&*http.path_exact, &*http.path_prefix, &*http.path_regex) {
            ("", "", "") => PermissionPath::AnyPath,
            ("", "", regex) => PermissionPath::PathRegex(bounded(regex.into())?),
            ("", prefix, _) => PermissionPath::PathPrefix(bounded(prefix.into())?),
            (exact, _, _) => PermissionPath::PathExact(bounded(exact.into())?),
        };
        Ok(Permission {
            allow: self.action == "allow",
            matching: PermissionMatch {
                path,
                methods: methods(http.methods)?,
                headers: http
                    .header
                    .into_iter()
                    .map(header_match)
                    .collect::<Result<_, _>>()?,
            },
            needs_jwt: self.jwt.is_some(),
        })
    }
}

const PERMISSIONS: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sources::damage::damaged_json;

    const OF_1_8_7: &[u8] = br#"{"web":[
        {"ID":"a1","SourceNS":"default","SourceName":"edge-gw","DestinationNS":"default","DestinationName":"web","SourceType":"consul","Action":"deny","Precedence":9},
        {"ID":"b2","SourceName":"*","DestinationName":"web","SourceType":"consul","Action":"allow","Precedence":8}]}"#;

    fn parse(body: &[u8], name: &str) -> Result<Option<(Arc<str>, IntentionRule)>, String> {
        super::parse(body, &source(name, None))
    }

    fn source(name: &str, partition: Option<&str>) -> Source {
        Source {
            name: name.into(),
            namespace: "default".into(),
            partition: partition.map(Arc::from),
            is_guessed: false,
        }
    }

    #[test]
    fn the_nearest_intention_decides() {
        let (by, rule) = parse(OF_1_8_7, "edge-gw").unwrap().unwrap();
        assert_eq!(rule, IntentionRule::Deny);
        assert_eq!(&*by, "edge-gw => web (deny, precedence 9, id a1)");
        let (by, rule) = parse(OF_1_8_7, "other").unwrap().unwrap();
        assert_eq!(rule, IntentionRule::Allow);
        assert!(by.starts_with("* => web"), "{by}");
    }

    #[test]
    fn none_null_and_a_peer_leave_it_to_the_default() {
        for body in [
            &br#"{"web":null}"#[..],
            br#"{"web":[]}"#,
            b"null",
            br#"{"web":[{"SourceName":"edge-gw","SourceNS":"other","DestinationName":"web","Action":"deny","Precedence":9}]}"#,
            br#"{"web":[{"SourceName":"edge-gw","SourcePeer":"west","DestinationName":"web","Action":"allow","Precedence":9}]}"#,
        ] {
            assert_eq!(parse(body, "edge-gw").unwrap(), None);
        }
        assert!(parse(b"[]", "edge-gw").is_err());
    }

    #[test]
    fn another_partition_s_service_of_our_name_is_not_us() {
        let body = |of: &str, to: &str| {
            format!(
                r#"{{"web":[{{"SourceName":"edge-gw","SourcePartition":{of:?},"DestinationName":"web","DestinationPartition":{to:?},"Action":"deny","Precedence":9}}]}}"#
            )
        };
        let denies = |own: Option<&str>, of: &str, to: &str| {
            super::parse(body(of, to).as_bytes(), &source("edge-gw", own))
                .unwrap()
                .is_some()
        };
        assert!(denies(Some("edge"), "edge", "default") && !denies(Some("edge"), "other", "default"));
        assert!(!denies(Some("edge"), "", "default") && !denies(Some("edge"), "default", "edge"));
        assert!(denies(Some("default"), "", "edge") && denies(Some("edge"), "*", "edge"));
        // Nobody named one: the destination was looked for where we are.
        assert!(denies(None, "edge", "edge") && !denies(None, "other", "edge"));
        assert!(denies(None, "default", "") && denies(None, "", "default") && !denies(None, "other", ""));
    }

    #[test]
    fn permissions_are_read() {
        let body = br#"{"web":[{"SourceName":"edge-gw","DestinationName":"web","SourceType":"consul","Precedence":9,"Permissions":[
            {"Action":"allow","HTTP":{"PathPrefix":"/api","Methods":["GET"],"Header":[{"Name":"X-A","Exact":"1"}]},"JWT":{"Providers":[{"Name":"okta"}]}},
            {"Action":"deny","HTTP":{"PathExact":"/x"}}]}]}"#;
        let (by, rule) = parse(body, "edge-gw").unwrap().unwrap();
        assert_eq!(&*by, "edge-gw => web (2 permissions, precedence 9)");
        let IntentionRule::Permissions(permissions) = rule else {
            panic!("{rule:?}")
        };
        assert!(permissions[0].allow && permissions[0].needs_jwt);
        assert_eq!(&*permissions[0].matching.headers[0].name, "x-a");
        assert!(!permissions[1].allow);
        assert_eq!(
            permissions[1].matching.path,
            PermissionPath::PathExact("/x".into())
        );
    }

    const PERMISSIONS: &str = r#"{"web":[
        {"ID":"a1","SourceNS":"default","SourceName":"edge-gw","DestinationName":"web","SourceType":"consul","Precedence":9,"Permissions":[
            {"Action":"allow","HTTP":{"PathPrefix":"/api","Methods":["GET"],"Header":[{"Name":"X-A","Exact":"1","Invert":true}]},"JWT":null},
            {"Action":"deny","HTTP":{"PathRegex":"/x.*"}}]},
        {"ID":"b2","SourceName":"*","DestinationName":"web","SourceType":"consul","Action":"deny","Precedence":8}]}"#;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// No answer that the intention denies is read as one that lets in without condition.
        #[test]
        fn fuzz_intentions(body in damaged_json(PERMISSIONS)) {
            let text = String::from_utf8_lossy(&body).into_owned();
            if let Ok(Some((by, rule))) = parse(&body, "edge-gw") {
                prop_assert!(bounded(by.clone()).is_ok());
                prop_assert!(rule != IntentionRule::Allow || text.contains(r#""allow""#), "{by}: {text}");
            }
        }
    }
}
