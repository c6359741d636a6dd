//! Vault's answers: tokens, secrets, certificates, mounts, refusals.

use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use super::answer::{Answer, Fields, TokenData};
use super::authorities::{CrlData, IssuerData, Issuers};
use super::aws::MetadataKeys;
use super::detect::Mount;
use super::fault::{Reason, VaultFault};
use super::kv::{V2Metadata, V2Secret};
use super::pki::{SignedData, StoredData};
use super::schedule::{after_renewal, first_step};
use super::wrapped::{SecretIdData, Wrapping};
use super::{login, session, wrapped};
use crate::fuzz::Target;
use crate::model::KeyType;
use crate::sources::life::{GIVEN, unix_seconds};

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "vault_answers",
        input: "Vault's answers about secrets, certificates, authorities and mounts, and its refusals",
        run: answers,
    },
    Target {
        name: "vault_tokens",
        input: "Vault's answers about tokens and secret ids, and when to renew them",
        run: tokens,
    },
];

const NOW: i64 = 1_800_000_000;

fn answer(input: &[u8]) -> Answer {
    Answer {
        status: 400,
        body: Zeroizing::new(input.to_vec()),
    }
}

fn answers(input: &[u8]) {
    let answer = answer(input);
    let errors = answer.errors();
    assert!(!errors.contains(char::is_control), "{errors:?}");
    answer.parse::<Fields>();
    answer.parse::<V2Secret>();
    answer.parse::<V2Metadata>();
    answer.parse::<StoredData>();
    answer.parse::<SignedData>();
    answer.parse::<Issuers>();
    answer.parse::<IssuerData>();
    answer.parse::<CrlData>();
    answer.parse::<Mount>();
    let _ = serde_json::from_slice::<MetadataKeys>(input);
    let fault = VaultFault {
        asked: "POST".into(),
        path: "pki_int/sign/edge".into(),
        capability: "update",
        reason: Reason::Refused { status: 400, errors },
        not_sent: false,
        told_apart: false,
    };
    fault.key_demanded(KeyType::Ec256);
    fault.problem();
}

fn tokens(input: &[u8]) {
    let answer = answer(input);
    if let Some(data) = answer.parse::<TokenData>().and_then(|envelope| envelope.data) {
        let life = login::life_of(&data);
        first_step(life, 1.0);
        session::end_of(life, NOW);
    }
    if let Some(auth) = answer.parse::<IgnoredAny>().and_then(|envelope| envelope.auth) {
        let life = login::life_of_new(&auth);
        first_step(life, -1.0);
        after_renewal(life, auth.lease_duration, auth.renewable, 1.0);
        session::end_of(life, NOW);
    }
    answer.parse::<Wrapping>();
    if let Some(data) = answer.parse::<SecretIdData>().and_then(|envelope| envelope.data) {
        // Made when the servers of the world count from, and before.
        for made in ["2026-11-26T02:03:04Z", "0001-01-01T00:00:00Z"] {
            if let Some(life) = wrapped::life_of(unix_seconds(made), &data) {
                life.last(GIVEN);
                life.ending(NOW);
            }
        }
    }
}
