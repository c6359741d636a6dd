//! Consul's answers about keys and the catalog.

use std::sync::Arc;

use bytes::Bytes;

use super::document_ledger::DocumentLedger;
use super::health_answer::{parse, service_of_query};
use super::kv::{Row, TxnAnswer, check_key};
use crate::fuzz::{Target, exposed};
use crate::model::Lookup;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "consul_kv",
        input: "Consul's answers about keys: listings, parts of them, names, transactions",
        run: kv,
    },
    Target {
        name: "consul_health",
        input: "Consul's answers about instances, and the routes that their tags ask for",
        run: health,
    },
];

/// Two answers, one after the other, with a NUL between.
fn kv(input: &[u8]) {
    let mut ledger = DocumentLedger::default();
    for body in input.splitn(2, |byte| *byte == 0) {
        if let Ok(names) = ledger.names(body)
            && let Some(names) = names
        {
            assert!(names.new_keys().len() <= names.keys().len());
            names.are_known();
            ledger.newest_among(&names.keys());
            // Parts or not those of these names.
            let _ = ledger.compare_some([(Bytes::copy_from_slice(input), 1)], &names, 1);
        }
        if let Ok(listing) = ledger.compare(body, false) {
            let seen = listing.changed.len() + listing.rejected.len();
            assert!(seen <= listing.present);
            assert!(listing.vanished.len() <= ledger.len());
            ledger.apply(&listing.changed, &[]);
            let again = ledger.compare(body, true).expect("it was read before");
            // A key twice in one answer cannot settle; Consul's keys are unique.
            assert!(again.changed.len() <= listing.present);
        }
        for row in serde_json::from_slice::<Vec<Row>>(body).into_iter().flatten() {
            if let Ok(entry) = row.entry() {
                // A key or what is wrong with it.
                let _ = check_key(&entry.key);
            }
        }
        if let Ok(answer) = serde_json::from_slice::<TxnAnswer>(body) {
            answer.failures();
        }
    }
}

fn health(input: &[u8]) {
    service_of_query(input);
    for lookup in [
        Lookup::Service,
        Lookup::PreparedQuery,
        Lookup::Connect,
        Lookup::MeshGateway,
        Lookup::MeshGatewayWan,
    ] {
        let Ok(instances) = parse(input, lookup) else {
            continue;
        };
        assert!(instances.list.is_sorted());
        let odd = |text: &Arc<str>| text.is_empty() || text.contains(char::is_control);
        for instance in &instances.list {
            assert!(!odd(&instance.address), "{instance:?}");
        }
        if lookup == Lookup::Service {
            exposed(instances.list);
        }
    }
}
