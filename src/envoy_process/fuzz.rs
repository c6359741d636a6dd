//! What Envoy, the kernel and a former agent say of the Envoy beside us.

use super::admin_client::ServerInfo;
use super::binary::Version;
use super::record::Record;
use super::{identity, listening_sockets, log_tail};
use crate::fuzz::Target;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "envoy_answers",
        input: "answers of Envoy's admin API, its version, its log, the record of a former agent",
        run: answers,
    },
    Target {
        name: "kernel_tables",
        input: "the kernel's tables of sockets and processes",
        run: tables,
    },
];

fn answers(input: &[u8]) {
    if let Ok(info) = serde_json::from_slice::<ServerInfo>(input) {
        info.is(0, 0);
        Version::from_build(&info.version);
    }
    if let Ok(record) = serde_json::from_slice::<Record>(input) {
        serde_json::to_vec(&record).expect("what was read can be written");
    }
    let text = String::from_utf8_lossy(input);
    Version::from_build(&text);
    for line in text.lines() {
        log_tail::parse(line);
    }
}

fn tables(input: &[u8]) {
    let listening = listening_sockets::listening_of(input);
    assert!(listening.len() <= input.len());
    let text = String::from_utf8_lossy(input);
    identity::parse_stat(&text);
    identity::all_ids_are(&text, 0);
}
