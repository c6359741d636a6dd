//! Consul's answers about its mesh, as far as Envoy hears of them.

use std::sync::Arc;

use serde_json::Deserializer;

use super::checks::bounded;
use super::identity::{LeafLife, RawLeaf, roots};
use super::intention_source::Source;
use super::sidecar::{Check, listeners_for};
use super::{chain_answer, go_duration, intention_answer};
use crate::fuzz::{Target, through_chain, with_intention};
use crate::model::mesh::IntentionRule;
use crate::model::{Lookup, Narrowing, ServiceQuery};
use crate::sources::certificates;
use crate::sources::consul::client::Answer;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "consul_chains",
        input: "Consul's discovery chains, compiled into Envoy's configuration",
        run: chain,
    },
    Target {
        name: "consul_intentions",
        input: "Consul's intentions, and what is foretold by them",
        run: intentions,
    },
    Target {
        name: "consul_identity",
        input: "Consul's answers about the authorities of its mesh and our certificate there",
        run: identity,
    },
    Target {
        name: "consul_sidecars",
        input: "Consul's answers about the gateway's own sidecar",
        run: sidecar,
    },
];

/// Within the life of what the corpora hold.
const NOW: i64 = 1_800_000_000;

fn chain(input: &[u8]) {
    // What is none says so; the last good one stays.
    let _ = go_duration::optional(&mut Deserializer::from_slice(input));
    if let Ok(chain) = chain_answer::parse(input) {
        through_chain(chain);
    }
}

fn intentions(input: &[u8]) {
    for partition in [None, Some("edge")] {
        let source = Source {
            name: "edge-gw".into(),
            namespace: "default".into(),
            partition: partition.map(Arc::from),
            is_guessed: false,
        };
        if let Ok(Some((by, rule))) = intention_answer::parse(input, &source) {
            assert!(bounded(by.clone()).is_ok());
            let text = String::from_utf8_lossy(input);
            // Escapes hide the word.
            let may_allow = text.contains("allow") || text.contains('\\');
            assert!(
                rule != IntentionRule::Allow || may_allow,
                "let in without a word: {by}"
            );
            with_intention(by, rule);
        }
    }
}

fn identity(input: &[u8]) {
    // Authorities or what is wrong with them.
    let _ = roots(&Answer::of_consul(input));
    if let Ok(leaf) = serde_json::from_slice::<RawLeaf>(input)
        && let Ok(material) = certificates::parse(&leaf.certificate, &leaf.private_key, NOW)
    {
        LeafLife::of(&material).remark("edge-gw", NOW);
    }
}

fn sidecar(input: &[u8]) {
    if let Ok(check) = serde_json::from_slice::<Check>(input) {
        check.fails();
    }
    let elsewhere = Narrowing {
        datacenter: Some("dc2".into()),
        ..Narrowing::default()
    };
    for narrowing in [Narrowing::default(), elsewhere] {
        let query = ServiceQuery::new(Lookup::Sidecar, "web".into(), narrowing);
        if let Ok(listeners) = listeners_for(input, &"edge-gw-sidecar-proxy".into(), &query) {
            assert!(listeners.is_sorted());
        }
    }
}
