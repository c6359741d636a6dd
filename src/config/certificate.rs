use super::document::Decoder;
use super::objects::{Certificate, NotAllowed};
use super::permissions::nomad_variable;
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::{Block, BlockSchema, Occurs, Reader, Type};
use crate::model::{CertificateQuery, KeyType, KvVersion};

pub(super) fn schema() -> BlockSchema {
    BlockSchema::new(
        "certificate",
        &["name"],
        "A certificate with its key, and where it comes from.",
    )
    .block(
        BlockSchema::new(
            "vault_kv",
            &[],
            "PEM texts in a Vault KV secret. Read again when its version changes.",
        )
        .required(
            "mount",
            Type::String,
            "\"secret\"",
            "Where the KV engine is mounted.",
        )
        .required(
            "path",
            Type::String,
            "\"edge/www\"",
            "The secret's path below the mount, without `data/`.",
        )
        .attribute(
            "kv_version",
            Type::Integer(1, 2),
            None,
            "2",
            "1 or 2. Left out: the mount is asked, which needs a token that may see it.",
        )
        .attribute(
            "certificate",
            Type::String,
            Some("\"certificate\""),
            "\"tls.crt\"",
            "The field with the chain, leaf first.",
        )
        .attribute(
            "private_key",
            Type::String,
            Some("\"private_key\""),
            "\"tls.key\"",
            "The field with the key.",
        ),
        Occurs::Optional,
    )
    .block(
        BlockSchema::new(
            "vault_pki",
            &[],
            "Signed by a Vault PKI mount, renewed at two thirds of its life. The key is made by the agent and never touches a disk.",
        )
        .required(
            "mount",
            Type::String,
            "\"pki_int\"",
            "Where the PKI engine is mounted.",
        )
        .required("role", Type::String, "\"edge\"", "The role to sign with.")
        .attribute(
            "issuer",
            Type::String,
            None,
            "\"2026\"",
            "Name or id of the issuer. Left out: the role's own.",
        )
        .required(
            "common_name",
            Type::Hostname,
            "\"www.example.com\"",
            "The certificate's common name; also its first DNS name.",
        )
        .attribute(
            "alt_names",
            Type::List(&Type::Hostname),
            Some("[]"),
            "[\"example.com\"]",
            "Further DNS names.",
        )
        .attribute(
            "ip_sans",
            Type::List(&Type::IpAddress),
            Some("[]"),
            "[\"203.0.113.5\"]",
            "IP addresses.",
        )
        .attribute(
            "ttl",
            Type::Duration(60_000, 10 * 365 * 24 * 3_600_000),
            None,
            "\"72h\"",
            "Life asked for. Left out: the role's default.",
        )
        .attribute(
            "key_type",
            Type::Word(&["ec", "rsa"]),
            None,
            "\"rsa\"",
            "The kind of key. Left out: `ec`, or `rsa` where the role asks for it.",
        )
        .attribute(
            "key_bits",
            Type::Integer(256, 4096),
            None,
            "384",
            "Its size: 256 or 384 (`ec`), 2048, 3072 or 4096 (`rsa`). Left out: the smallest of `key_type`, or what the role asks for where that is left out too.",
        ),
        Occurs::Optional,
    )
    .block(
        BlockSchema::new("file", &[], "PEM files on the agent's machine, watched.")
            .required(
                "certificate",
                Type::String,
                "\"/etc/ssl/www.pem\"",
                "The chain, leaf first.",
            )
            .required("private_key", Type::String, "\"/etc/ssl/www.key\"", "The key."),
        Occurs::Optional,
    )
    .block(
        BlockSchema::new(
            "nomad_variable",
            &[],
            "PEM texts in a Nomad variable, watched. The agent's own job may read nomad/jobs/<job> without any policy.",
        )
        .required(
            "path",
            Type::String,
            "\"nomad/jobs/portreeve\"",
            "The variable's path.",
        )
        .attribute(
            "namespace",
            Type::Name,
            Some("the agent's own"),
            "\"edge\"",
            "A Nomad namespace.",
        )
        .attribute(
            "certificate",
            Type::String,
            Some("\"certificate\""),
            "\"www_pem\"",
            "The item with the chain, leaf first.",
        )
        .attribute(
            "private_key",
            Type::String,
            Some("\"private_key\""),
            "\"www_key\"",
            "The item with the key.",
        ),
        Occurs::Optional,
    )
    .exactly_one_of(&["vault_kv", "vault_pki", "nomad_variable", "file"])
}

pub(super) fn decode(decoder: &mut Decoder<'_>, block: &Block, reader: &Reader<'_>) -> Certificate {
    let problems = decoder.problems.len();
    let query = if let Some(kv) = reader.child("vault_kv") {
        let (mount, path) = (trimmed(&kv, "mount"), trimmed(&kv, "path"));
        decoder.require_vault(&kv, "path", &format!("{mount}/{path}"));
        decoder.doubt_kv_path(&kv, &mount, &path);
        CertificateQuery::VaultKv {
            mount,
            path,
            version: kv_version(&kv),
            certificate_field: kv.string("certificate").unwrap_or_else(|| "certificate".into()),
            private_key_field: kv.string("private_key").unwrap_or_else(|| "private_key".into()),
        }
    } else if let Some(pki) = reader.child("vault_pki") {
        let (mount, role) = (trimmed(&pki, "mount"), trimmed(&pki, "role"));
        // An issuer is part of the path that is asked.
        match pki.string("issuer") {
            None => decoder.require_vault(&pki, "role", &format!("{mount}/sign/{role}")),
            Some(issuer) => {
                decoder.require_vault(&pki, "issuer", &format!("{mount}/issuer/{issuer}/sign/{role}"));
            }
        }
        CertificateQuery::VaultPki {
            mount,
            role,
            issuer: pki.string("issuer"),
            common_name: pki.string("common_name").unwrap_or_default(),
            alt_names: pki.strings("alt_names"),
            ip_sans: pki.strings("ip_sans"),
            ttl: pki.duration("ttl").map(|ttl| ttl.as_secs()),
            key_type: decoder.key_type(&pki),
        }
    } else if let Some(variable) = reader.child("nomad_variable") {
        let (namespace, path) = (variable.string("namespace"), trimmed(&variable, "path"));
        decoder.require_variable(&variable, namespace.as_deref(), &path);
        CertificateQuery::NomadVariable {
            namespace,
            path,
            certificate_item: variable
                .string("certificate")
                .unwrap_or_else(|| "certificate".into()),
            private_key_item: variable
                .string("private_key")
                .unwrap_or_else(|| "private_key".into()),
        }
    } else {
        let file = reader.child("file").unwrap_or(*reader);
        for name in ["certificate", "private_key"] {
            decoder.require_file(&file, name);
        }
        CertificateQuery::File {
            certificate: file.string("certificate").unwrap_or_default(),
            private_key: file.string("private_key").unwrap_or_default(),
        }
    };
    let refusals = decoder.take_refusals(problems);
    Certificate {
        name: block.label(0).into(),
        origin: reader.origin(),
        query: match refusals.is_empty() {
            true => Ok(query),
            false => Err(NotAllowed {
                source: query.to_string().into(),
                problems: refusals.into(),
            }),
        },
    }
}

pub(super) fn kv_version(kv: &Reader<'_>) -> KvVersion {
    match kv.integer("kv_version") {
        Some(1) => KvVersion::V1,
        Some(_) => KvVersion::V2,
        None => KvVersion::Detect,
    }
}

/// Vault paths are written with and without slashes at their ends; `..` never.
pub(super) fn trimmed(reader: &Reader<'_>, name: &str) -> std::sync::Arc<str> {
    reader.string(name).unwrap_or_default().trim_matches('/').into()
}

impl Decoder<'_> {
    pub(super) fn require_vault(&mut self, reader: &Reader<'_>, attribute: &str, path: &str) {
        let clean = path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
            && path
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_./@ +=:".contains(&byte));
        if !clean {
            self.problems.push(
                Diagnostic::error(Code::InvalidValue, format!("{path:?} is not a Vault path"))
                    .at(reader.origin_of(attribute))
                    .because(
                        "a path that climbs or holds odd characters would reach another one than it seems to",
                    )
                    .fix("write mount and path as `vault list` and `vault secrets list` show them"),
            );
        } else if !self.permissions.vault_allowed(&self.source.document, path) {
            self.problems.push(
                Diagnostic::error(
                    Code::NotAllowed,
                    format!("a document from KV may not use the Vault path {path:?}"),
                )
                .at(reader.origin_of(attribute))
                .because("what may write KV is not trusted with every secret this agent's token can read")
                .fix("add the path to `kv_documents { vault_paths = [...] }` in the agent's settings"),
            );
        }
    }

    fn require_variable(&mut self, reader: &Reader<'_>, namespace: Option<&str>, path: &str) {
        let is_path = (1..=128).contains(&path.len())
            && path
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_~/".contains(&byte))
            && !path.contains("//");
        let named = nomad_variable(namespace, path);
        if !is_path {
            self.problems.push(
                Diagnostic::error(
                    Code::InvalidValue,
                    format!("{path:?} is not the path of a Nomad variable"),
                )
                .at(reader.origin_of("path"))
                .fix("letters, digits, '-', '_', '~' and '/', at most 128 of them"),
            );
        } else if !self
            .permissions
            .nomad_variable_allowed(&self.source.document, &named)
        {
            self.problems.push(
                Diagnostic::error(
                    Code::NotAllowed,
                    format!("a document from KV may not use the Nomad variable {named:?}"),
                )
                .at(reader.origin_of("path"))
                .because("what may write KV is not trusted with every variable this agent's token can read")
                .fix("add it to `kv_documents { nomad_variables = [...] }` in the agent's settings"),
            );
        }
    }

    /// None: the role decides.
    fn key_type(&mut self, pki: &Reader<'_>) -> Option<KeyType> {
        let (kind, bits) = (pki.string("key_type"), pki.integer("key_bits"));
        let (kind, at) = match (kind, bits) {
            (None, None) => return None,
            (Some(kind), None) => return KeyType::smallest(&kind),
            (Some(kind), Some(_)) => (kind, "key_bits"),
            (None, Some(bits)) => (if bits < 1024 { "ec" } else { "rsa" }.into(), "key_bits"),
        };
        let bits = bits.and_then(|bits| u64::try_from(bits).ok()).unwrap_or(0);
        let found = KeyType::of(&kind, bits);
        if found.is_none() {
            self.problems.push(
                Diagnostic::error(
                    Code::InvalidValue,
                    format!("there is no {kind} key of {bits} bits to be had"),
                )
                .at(pki.origin_of(at))
                .fix("use 256 or 384 with \"ec\", 2048, 3072 or 4096 with \"rsa\""),
            );
        }
        found
    }

    pub(super) fn require_file(&mut self, reader: &Reader<'_>, attribute: &str) {
        let path = reader.string(attribute).unwrap_or_default();
        if !self.permissions.file_allowed(&self.source.document, &path) {
            self.problems.push(
                Diagnostic::error(Code::NotAllowed, format!("a document from KV may not name the file {path:?}"))
                    .at(reader.origin_of(attribute))
                    .because("what may write KV is not trusted with this machine's files")
                    .fix("add it to `kv_documents { files = [...] }` in the agent's settings, or keep this document in a -config directory"),
            );
        }
    }
}
