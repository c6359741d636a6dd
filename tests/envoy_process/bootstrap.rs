//! Every kind of bootstrap, judged by every Envoy at hand.

use std::path::PathBuf;
use std::process::Command;

use portreeve::envoy::bootstrap::{Bootstrap, Locality, ServerName, XdsEndpoint, XdsTls, XdsVariant};

use crate::gateway::all_envoys;

#[test]
fn every_envoy_accepts_every_bootstrap() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let certified = rcgen::generate_simple_self_signed(vec!["agent.example.com".to_owned()]).unwrap();
    let tls = XdsTls {
        ca_file: write("ca.pem", &certified.cert.pem()),
        certificate_file: write("cert.pem", &certified.cert.pem()),
        key_file: write("key.pem", &certified.signing_key.serialize_pem()),
        server_name: ServerName::Dns("agent.example.com".to_owned()),
        sds_directory: directory.path().to_owned(),
    };
    let remote = |address: &str, server_name| XdsEndpoint::Tcp {
        address: address.to_owned(),
        port: 8502,
        tls: XdsTls {
            server_name,
            ..tls.clone()
        },
    };
    let endpoints = [
        XdsEndpoint::Unix(directory.path().join("xds.sock")),
        remote(
            "agent.example.com",
            ServerName::Dns("agent.example.com".to_owned()),
        ),
        remote("127.0.0.1", ServerName::Uri("spiffe://example/agent".to_owned())),
        remote("::1", ServerName::Ip("::1".parse().unwrap())),
    ];
    for binary in binaries() {
        for xds in &endpoints {
            for variant in [XdsVariant::Delta, XdsVariant::StateOfTheWorld] {
                let admin = directory.path().join("admin.sock");
                let mut bootstrap = Bootstrap::new("node", "edge", xds.clone(), &admin);
                bootstrap.variant = variant;
                bootstrap.locality = Some(Locality {
                    region: "eu".to_owned(),
                    zone: "a".to_owned(),
                });
                let rendered = bootstrap.render().unwrap();
                for (path, content) in &rendered.files {
                    std::fs::write(path, content.to_string()).unwrap();
                }
                let path = write("bootstrap.json", &rendered.bootstrap.to_string());
                let output = Command::new(&binary)
                    .args(["--mode", "validate", "--log-level", "warning", "-c"])
                    .arg(&path)
                    .output()
                    .unwrap();
                let printed = String::from_utf8_lossy(&output.stderr);
                assert!(
                    output.status.success(),
                    "{binary:?} {xds:?} {variant:?}: {printed}"
                );
                assert!(!printed.contains("eprecated"), "{binary:?} {xds:?}: {printed}");
            }
        }
        println!("accepted by {}", binary.display());
    }
}

/// The one under test, and all others.
fn binaries() -> Vec<PathBuf> {
    let one = std::env::var_os("PORTREEVE_TEST_ENVOY").map_or_else(|| "envoy".into(), PathBuf::from);
    std::iter::once(one).chain(all_envoys()).collect()
}
