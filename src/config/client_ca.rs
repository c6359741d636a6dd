use std::sync::Arc;

use super::certificate::{kv_version, trimmed};
use super::document::Decoder;
use super::objects::ClientCa;
use super::permissions::issuers_path;
use crate::hcl::{BlockSchema, Occurs, Reader, Type};
use crate::model::{CertificateQuery, ClientCaQuery};

const PREFIX: &str = "client_ca/";

/// The name that a listener's authorities go by, beside those of certificates. A certificate's has no slash: the two
/// cannot clash.
pub fn client_ca_name(listener: &str) -> Arc<str> {
    format!("{PREFIX}{listener}").into()
}

/// The other way round. None: it names a certificate.
pub fn listener_of_client_ca(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)
}

pub(super) fn schema() -> BlockSchema {
    BlockSchema::new(
        "client_ca",
        &[],
        "Clients must show a certificate by one of these authorities (mutual TLS). The listener is not opened before \
         they are known; later the last good ones stay.",
    )
    .attribute(
        "mode",
        Type::Word(&["required", "optional"]),
        Some("\"required\""),
        "\"optional\"",
        "`optional`: a client may come without a certificate; one that it shows must be good all the same.",
    )
    .attribute(
        "forward_client_cert",
        Type::Bool,
        Some("false"),
        "true",
        "Tell backends whose certificate it was, in the header `x-forwarded-client-cert` (hash, subject, URI and DNS \
         names). What a client sends in that header is removed either way.",
    )
    .block(pki(), Occurs::Optional)
    .block(kv(), Occurs::Optional)
    .block(file(), Occurs::Optional)
    .exactly_one_of(&["vault_pki", "vault_kv", "file"])
}

fn pki() -> BlockSchema {
    BlockSchema::new(
        "vault_pki",
        &[],
        "The issuers of a Vault PKI mount that have a key there; a root above them is not trusted.",
    )
    .required(
        "mount",
        Type::String,
        "\"pki_clients\"",
        "Where the PKI engine is mounted.",
    )
    .attribute(
        "issuer",
        Type::String,
        None,
        "\"2026\"",
        "Name or id of the only issuer trusted. Left out: all, so that a rotation has both for a while.",
    )
    .attribute(
        "crl",
        Type::Bool,
        Some("false"),
        "true",
        "Refuse what the issuers revoked. Their lists are read with every poll. Have Vault make them \
         anew in time (auto_rebuild, auto_rebuild_grace_period at the mount's config/crl): with a list that has run out no client is \
         let in.",
    )
}

fn kv() -> BlockSchema {
    BlockSchema::new("vault_kv", &[], "PEM texts in a Vault KV secret.")
        .required(
            "mount",
            Type::String,
            "\"secret\"",
            "Where the KV engine is mounted.",
        )
        .required(
            "path",
            Type::String,
            "\"portreeve/clients\"",
            "The secret's path below the mount, without `data/`.",
        )
        .attribute(
            "kv_version",
            Type::Integer(1, 2),
            None,
            "2",
            "1 or 2. Left out: the mount is asked.",
        )
        .attribute(
            "certificate",
            Type::String,
            Some("\"certificate\""),
            "\"ca.pem\"",
            "The field with the authorities.",
        )
        .attribute(
            "crl",
            Type::String,
            None,
            "\"crl\"",
            "The field with their revocation lists. Left out: nothing is taken as revoked.",
        )
}

fn file() -> BlockSchema {
    BlockSchema::new("file", &[], "PEM files on the agent's machine, watched.")
        .required(
            "certificate",
            Type::String,
            "\"/etc/ssl/clients.pem\"",
            "The authorities.",
        )
        .attribute(
            "crl",
            Type::String,
            None,
            "\"/etc/ssl/clients.crl\"",
            "Their revocation lists. Left out: nothing is taken as revoked.",
        )
}

pub(super) fn decode(decoder: &mut Decoder<'_>, reader: &Reader<'_>) -> ClientCa {
    let query = if let Some(pki) = reader.child("vault_pki") {
        let (mount, issuer) = (trimmed(&pki, "mount"), pki.string("issuer"));
        // An issuer is part of the path that is asked.
        let named = if issuer.is_some() { "issuer" } else { "mount" };
        decoder.require_vault(&pki, named, &issuers_path(&mount, issuer.as_deref()));
        ClientCaQuery::VaultPki {
            mount,
            issuer,
            crl: pki.boolean("crl").unwrap_or(false),
        }
    } else if let Some(kv) = reader.child("vault_kv") {
        let (mount, path) = (trimmed(&kv, "mount"), trimmed(&kv, "path"));
        decoder.require_vault(&kv, "path", &format!("{mount}/{path}"));
        decoder.doubt_kv_path(&kv, &mount, &path);
        ClientCaQuery::VaultKv {
            mount,
            path,
            version: kv_version(&kv),
            certificate_field: kv.string("certificate").unwrap_or_else(|| "certificate".into()),
            crl_field: kv.string("crl"),
        }
    } else {
        let file = reader.child("file").unwrap_or(*reader);
        decoder.require_file(&file, "certificate");
        if file.has("crl") {
            decoder.require_file(&file, "crl");
        }
        ClientCaQuery::File {
            certificate: file.string("certificate").unwrap_or_default(),
            crl: file.string("crl"),
        }
    };
    ClientCa {
        query: CertificateQuery::ClientCa(query),
        require: reader.string("mode").as_deref() != Some("optional"),
        forward: reader.boolean("forward_client_cert").unwrap_or(false),
        origin: reader.origin(),
    }
}
