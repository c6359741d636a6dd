use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use prost::Message;

use crate::envoy::{Resource, ResourceKind};
use crate::ir::{self, SecretContent};
use crate::model::CertificateMaterial;
use crate::model::mesh::MeshRoots;

pub(super) fn secret_resource(wanted: &ir::Secret) -> Resource {
    match &wanted.content {
        SecretContent::Certificate(material) => certificate(wanted, material),
        SecretContent::ClientCa(material) => client_ca(wanted, material),
        SecretContent::MeshLeaf(leaf) => certificate(wanted, &leaf.material),
        SecretContent::MeshRoots(roots) => authorities(wanted, roots),
    }
}

/// Whom to trust. Whose certificate it must be is said by each cluster.
fn authorities(wanted: &ir::Secret, roots: &MeshRoots) -> Resource {
    let message = Secret {
        name: wanted.name.to_string(),
        r#type: Some(secret::Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(inline(&roots.pem)),
            ..CertificateValidationContext::default()
        })),
    };
    let bytes = message.encode_to_vec();
    Resource::with_version(ResourceKind::Secret, wanted.name.clone(), roots.version(), &bytes)
}

fn certificate(wanted: &ir::Secret, material: &CertificateMaterial) -> Resource {
    let version = material.version();
    let resource = match &material.private_key {
        // Known from before our restart: only Envoy has the key.
        None => Resource::held_by_envoy(ResourceKind::Secret, wanted.name.clone(), version),
        Some(key) => {
            let message = Secret {
                name: wanted.name.to_string(),
                r#type: Some(secret::Type::TlsCertificate(TlsCertificate {
                    certificate_chain: Some(inline(&material.chain)),
                    private_key: Some(inline(key.expose())),
                    ..TlsCertificate::default()
                })),
            };
            Resource::with_version(
                ResourceKind::Secret,
                wanted.name.clone(),
                version,
                &message.encode_to_vec(),
            )
        }
    };
    resource.from_documents(wanted.origins.clone().into())
}

/// Nothing in it is secret; it comes the same way so that it changes without touching the listener.
fn client_ca(wanted: &ir::Secret, material: &CertificateMaterial) -> Resource {
    let message = Secret {
        name: wanted.name.to_string(),
        r#type: Some(secret::Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(inline(&material.chain)),
            crl: material.crl.as_deref().map(inline),
            // The authorities above the one that signed the client's certificate need not be among ours.
            only_verify_leaf_cert_crl: material.crl.is_some(),
            ..CertificateValidationContext::default()
        })),
    };
    Resource::with_version(
        ResourceKind::Secret,
        wanted.name.clone(),
        material.version(),
        &message.encode_to_vec(),
    )
    .from_documents(wanted.origins.clone().into())
}

fn inline(text: &str) -> DataSource {
    DataSource {
        specifier: Some(data_source::Specifier::InlineString(text.to_owned())),
        ..DataSource::default()
    }
}
