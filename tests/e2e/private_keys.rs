//! A private key goes from the agent to Envoy over the socket, and nowhere else in clear.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use envoy_types::pb::envoy::config::core::v3::{Node, data_source};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use hyper::Method;
use portreeve::envoy::ResourceKind;
use prost::Message as _;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use tonic::transport::Endpoint;

use crate::stack::{Options, SOON, Stack, until};
use crate::support::agent;
use crate::support::client::{Client, Request};
use crate::support::nomad::NomadContract;
use crate::support::wait_for;

const DOCUMENT: &str = r#"
gateway "edge" {
  listener "secure" {
    port     = $HTTPS
    protocol = "https"
    tls { certificates = ["www", "kv", "nomad"] }
  }
}

certificate "www" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "www.example.com"
  }
}

certificate "kv" {
  vault_kv {
    mount = "secret"
    path  = "edge/kv"
  }
}

certificate "nomad" {
  nomad_variable {
    path = "nomad/jobs/portreeve"
  }
}

http_route "www" {
  gateways  = ["edge"]
  hostnames = ["www.example.com", "kv.example.com", "nomad.example.com"]

  rule "all" {
    direct_response {
      status = 200
    }
  }
}
"#;

/// What the agent gives to an Envoy: the name of each secret and its key, PEM.
async fn keys(data: &Path) -> Vec<(String, String)> {
    let socket = format!("unix://{}", data.join("xds.sock").display());
    let channel = Endpoint::from_shared(socket).unwrap().connect().await.unwrap();
    let request = DeltaDiscoveryRequest {
        node: Some(Node {
            id: "reader".to_owned(),
            cluster: "edge".to_owned(),
            ..Node::default()
        }),
        type_url: ResourceKind::Secret.type_url().to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    let requests = tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut responses = client
        .delta_aggregated_resources(requests)
        .await
        .unwrap()
        .into_inner();
    let response = tokio::time::timeout(SOON, responses.message()).await;
    let response = response.expect("an answer").unwrap().unwrap();
    let mut keys = Vec::new();
    for resource in &response.resources {
        let body = &resource.resource.as_ref().unwrap().value;
        let Some(secret::Type::TlsCertificate(pair)) = Secret::decode(&body[..]).unwrap().r#type else {
            continue;
        };
        if let Some(data_source::Specifier::InlineString(key)) = pair.private_key.unwrap().specifier {
            keys.push((resource.name.clone(), key));
        }
    }
    keys
}

/// Pieces of a key, in every form that it could leak in. Each is secret in itself, and none is found by chance.
fn pieces(pem: &str) -> Vec<(&'static str, Vec<u8>)> {
    let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    let der = der.secret_der();
    // Of a P-256 key: an octet string of 32 bytes.
    let start = der.windows(2).position(|pair| pair == [0x04, 0x20]).unwrap() + 2;
    let scalar = &der[start..start + 32];
    let hex: String = scalar.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut pieces = vec![
        ("the number itself", scalar.to_vec()),
        ("hexadecimal", hex[..40].into()),
        ("HEXADECIMAL", hex[..40].to_uppercase().into()),
    ];
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let from = start / 3 * 4 + 4; // over the end of a line: see `forms`
    pieces.push(("its PEM", body[from..from + 32].into()));
    // As base64 of whatever it stands in: what is around it moves it by 0, 1 or 2 bytes.
    for (bytes, what) in [(scalar, "base64"), (pem.as_bytes(), "base64 of its PEM")] {
        for skip in 0..3 {
            let whole = &bytes[skip..skip + (bytes.len() - skip) / 3 * 3];
            let text = STANDARD.encode(whole);
            // Past the header of a PEM and what all keys of its kind begin with.
            let from = if what == "base64" { 0 } else { 112 };
            let text = &text[from..(from + 36).min(text.len())];
            pieces.push((what, text.into()));
            pieces.push((what, text.replace('+', "-").replace('/', "_").into()));
        }
    }
    pieces
}

/// Without line ends, written or escaped: PEM is wrapped.
fn forms(bytes: &[u8]) -> [Vec<u8>; 2] {
    let mut unwrapped = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            b'\n' | b'\r' => {}
            b'\\' if matches!(rest.peek(), Some(b'n' | b'r')) => {
                rest.next();
            }
            _ => unwrapped.push(byte),
        }
    }
    [bytes.to_vec(), unwrapped]
}

struct Scan {
    pieces: Vec<(&'static str, Vec<u8>)>,
    any: regex::bytes::Regex,
}

impl Scan {
    fn new<'a>(keys: impl Iterator<Item = &'a str>) -> Scan {
        let pieces: Vec<_> = keys.flat_map(pieces).collect();
        let escaped = pieces.iter().map(|(_, piece)| {
            piece
                .iter()
                .map(|byte| format!("\\x{byte:02x}"))
                .collect::<String>()
        });
        let any = format!("(?-u){}", escaped.collect::<Vec<_>>().join("|"));
        Scan {
            pieces,
            any: regex::bytes::Regex::new(&any).unwrap(),
        }
    }

    /// In which form a key is there.
    fn find(&self, bytes: &[u8]) -> Option<&'static str> {
        let forms = forms(bytes);
        let found = forms.iter().find_map(|form| self.any.find(form))?;
        let same = |(_, piece): &&(_, Vec<u8>)| piece == found.as_bytes();
        self.pieces.iter().find(same).map(|(what, _)| *what)
    }
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else if path.is_file() {
            files.push(path);
        }
    }
    files
}

/// Everything that is left of a run for others to see.
async fn traces(stack: &Stack) -> Vec<(String, Vec<u8>)> {
    let mut traces = vec![("the log".to_owned(), stack.agent.process.log().into_bytes())];
    for file in walk(stack.data.parent().unwrap()) {
        let bytes = std::fs::read(&file).unwrap_or_default();
        traces.push((file.display().to_string(), bytes));
    }
    for key in stack.consul.keys("").await {
        let value = stack.consul.get(&key).await.unwrap_or_default();
        traces.push((format!("KV {key}"), value.into_bytes()));
    }
    let socket = format!("-api-socket={}", stack.agent.api.display());
    for arguments in [
        &["proxy", "config", "-dump"][..],
        &["proxy", "config"],
        &["status", "-json"],
    ] {
        let arguments: Vec<&str> = arguments.iter().copied().chain([&*socket]).collect();
        let output = agent::run(&stack.data, &arguments);
        assert!(!output.stdout.is_empty(), "{arguments:?}: {output:?}");
        traces.push((arguments.join(" "), [output.stdout, output.stderr].concat()));
    }
    for path in ["/config_dump?include_eds", "/certs", "/server_info"] {
        let answer = stack.envoy().get(path).await.unwrap();
        traces.push((format!("Envoy's {path}"), answer.body.to_vec()));
    }
    for path in ["/v1/resources", "/v1/status", "/metrics"] {
        let answer = stack.agent.api(Method::GET, path, "").await.unwrap();
        traces.push((format!("the API's {path}"), answer.body.to_vec()));
    }
    traces
}

#[tokio::test(flavor = "multi_thread")]
async fn private_keys_are_nowhere_in_clear() {
    let nomad = NomadContract::start("").await;
    let kept = crate::support::pki::Ca::new("nomad").issue(&["nomad.example.com"]);
    let items = serde_json::json!({ "certificate": kept.certificate, "private_key": kept.key });
    nomad.set_variable("default", "nomad/jobs/portreeve", Some(items));
    let mut stack = Stack::start(Options {
        vault: true,
        more: format!(
            "nomad {{\n  address = \"unix://{}\"\n}}\n",
            nomad.socket.display()
        ),
        arguments: vec!["-log-level=trace"],
        envoy_settings: r#"log_level = "debug""#,
        ..Options::default()
    })
    .await;
    let vault = stack.vault.as_ref().unwrap();
    let pair = crate::support::pki::Ca::new("kv").issue(&["kv.example.com"]);
    let data = serde_json::json!({ "certificate": pair.certificate, "private_key": pair.key });
    vault.put_kv2("secret", "edge/kv", data).await;
    stack.put("www", DOCUMENT).await;
    let root = vault.read("pki_int/cert/ca").await["data"]["certificate"].clone();
    let client = Client::https(stack.https, root.as_str().unwrap());
    let request = Request::get("www.example.com", "/");
    until(&client, &request, "https", |reply| reply.status == 200).await;
    stack.agent.wait_ready().await;

    let keys = wait_for("the keys of all certificates", SOON, async || {
        let keys = keys(&stack.data).await;
        anyhow::ensure!(keys.len() == 3, "{} of 3", keys.len());
        Ok(keys)
    })
    .await;
    for pair in [&pair, &kept] {
        assert!(keys.iter().any(|(_, key)| key.trim() == pair.key.trim()));
    }
    let scan = Scan::new(keys.iter().map(|(_, key)| &**key));
    for (_, key) in &keys {
        let der = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let escaped = serde_json::to_string(key).unwrap();
        for (what, leak) in [
            ("PEM", key.clone().into_bytes()),
            ("JSON", escaped.into_bytes()),
            ("DER", der.secret_der().to_vec()),
            ("base64", STANDARD.encode(key).into_bytes()),
            ("behind others", STANDARD.encode(format!("xy{key}")).into_bytes()),
        ] {
            assert!(scan.find(&leak).is_some(), "the scan would not find it as {what}");
        }
    }

    let clean = |traces: Vec<(String, Vec<u8>)>| {
        for (place, bytes) in &traces {
            assert_eq!(scan.find(bytes), None, "a key in {place}");
            let word = bytes.windows(11).any(|window| window == b"PRIVATE KEY");
            assert!(!word, "a key in {place}");
        }
        traces
    };
    let all = clean(traces(&stack).await);
    let dump = all.iter().find(|(place, _)| place.contains("config -dump"));
    let dump = String::from_utf8_lossy(&dump.unwrap().1).into_owned();
    assert!(
        dump.contains("[redacted]") && dump.contains("inline_string"),
        "Envoy does hold the keys: {dump}"
    );
    println!("{} places, {} pieces of keys", all.len(), scan.pieces.len());

    // What an agent left and the next one reads.
    stack.agent.kill();
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    stack
        .agent
        .process
        .wait_for_log_after(start, "Envoy connected", SOON)
        .await;
    stack.agent.wait_ready().await;
    assert_eq!(client.send(&request).await.unwrap().status, 200);
    clean(traces(&stack).await);
}
