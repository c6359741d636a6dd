//! Nomad's answers about services, and its events.

use super::answer::{namespaces_of, parse};
use super::event_stream::Batch;
use crate::fuzz::Target;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "nomad_services",
        input: "Nomad's answers about instances and namespaces",
        run: services,
    },
    Target {
        name: "nomad_events",
        input: "Nomad's event stream",
        run: events,
    },
];

fn services(input: &[u8]) {
    if let Ok(instances) = parse(input) {
        assert!(instances.list.is_sorted());
        for instance in &instances.list {
            let odd = |text: &str| text.is_empty() || text.contains(char::is_control);
            assert!(!odd(&instance.id) && !odd(&instance.address), "{instance:?}");
            assert!(!instance.address.contains(char::is_whitespace), "{instance:?}");
        }
    }
    if let Ok((namespaces, _)) = namespaces_of(input, "web") {
        assert!(namespaces.is_sorted());
    }
}

fn events(input: &[u8]) {
    for line in input.split(|byte| *byte == b'\n') {
        if let Ok(batch) = serde_json::from_slice::<Batch>(line) {
            assert!(batch.named().count() <= line.len());
        }
    }
}
