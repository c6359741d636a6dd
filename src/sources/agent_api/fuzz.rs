//! What agents of Consul and Nomad answer both, and what is asked of them by address.

use super::error::{Block, is_bad_filter, is_unknown_token};
use super::lifetimes::{TokenAnswer, life_of_token, next_look};
use super::lines::Cutter;
use super::login::{Granted, Kept};
use super::{ApiAddress, Product};
use crate::fuzz::{Pieces, Target};
use crate::sources::identity::life_of;
use crate::sources::life::{GIVEN, unix_seconds};

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "api_answers",
        input: "tokens and refusals of Consul and Nomad, addresses of agents",
        run: answers,
    },
    Target {
        name: "identities",
        input: "identities (JWT) and times",
        run: identities,
    },
    Target {
        name: "lines",
        input: "streams of lines, wherever they are cut",
        run: lines,
    },
];

const NOW: i64 = 1_800_000_000;

fn answers(input: &[u8]) {
    // The secrets in them are read and go nowhere.
    let _ = serde_json::from_slice::<Granted>(input);
    let _ = serde_json::from_slice::<Kept>(input);
    if let Some(life) = serde_json::from_slice(input)
        .ok()
        .and_then(|answer: TokenAnswer| life_of_token(answer))
    {
        next_look([life.last(GIVEN), life.end].into_iter(), NOW);
        life.ending(NOW);
    }
    let text = String::from_utf8_lossy(input);
    let _ = Block::of(Product::Consul, &text).map(Block::fix);
    is_unknown_token(&text);
    is_bad_filter(&text);
    for product in [Product::Consul, Product::Nomad] {
        if let Ok(address) = ApiAddress::parse(product, &text, false) {
            assert!(!address.to_string().is_empty());
            address.is_local();
        }
    }
}

fn identities(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Some(life) = life_of(&text) {
        let dates = 0..253_402_300_800;
        assert!(dates.contains(&life.start) && dates.contains(&life.end));
        life.last(GIVEN);
        life.ending(NOW);
    }
    unix_seconds(&text);
}

/// However the lines arrive, they are those of the whole.
fn lines(input: &[u8]) {
    const LONGEST: usize = 24;
    let mut pieces = Pieces::of(input);
    let (mut by_chunk, mut whole) = (Cutter::new(LONGEST), Cutter::new(LONGEST));
    let (mut cut, mut all) = (Vec::new(), Vec::new());
    while !pieces.is_empty() {
        let chunk = pieces.bytes();
        all.extend_from_slice(chunk);
        by_chunk.push(chunk);
        cut.extend(std::iter::from_fn(|| by_chunk.line()));
    }
    whole.push(&all);
    assert_eq!(cut, Vec::from_iter(std::iter::from_fn(|| whole.line())));
}
