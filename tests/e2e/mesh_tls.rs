//! What the gateway says in its handshakes with the mesh, as the other side hears it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::Method;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use serde_json::json;

use crate::connect::{Meshed, document, mesh_stack, protocol};
use crate::stack::Stack;
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::http::install_tls_provider;
use crate::support::pki::Pair;
use crate::support::wait_for;

/// A service that speaks the mesh's TLS itself, as a member with a certificate of Consul's.
pub struct Native {
    pub backend: Backend,
    heard: Arc<Heard>,
}

/// Of every handshake: the server name, and the protocols that were offered. It takes any certificate of a client.
#[derive(Debug)]
struct Heard {
    shown: Mutex<Arc<CertifiedKey>>,
    handshakes: Mutex<Vec<(Option<String>, Vec<String>)>>,
    clients: Mutex<Vec<CertificateDer<'static>>>,
}

impl ClientCertVerifier for Heard {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.clients
            .lock()
            .unwrap()
            .push(certificate.clone().into_owned());
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    let provider = CryptoProvider::get_default().expect("a provider");
    provider.signature_verification_algorithms
}

impl ResolvesServerCert for Heard {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let offered = hello.alpn().into_iter().flatten();
        let offered = offered.map(|name| String::from_utf8_lossy(name).into_owned());
        self.handshakes
            .lock()
            .unwrap()
            .push((hello.server_name().map(str::to_owned), offered.collect()));
        Some(self.shown.lock().unwrap().clone())
    }
}

/// The certificate that Consul gives to this service.
async fn leaf_of(stack: &Stack, service: &str) -> Arc<CertifiedKey> {
    install_tls_provider();
    let leaf = stack
        .consul
        .expect(Method::GET, &format!("/v1/agent/connect/ca/leaf/{service}"), "")
        .await;
    let pem = |field: &str| leaf[field].as_str().expect("PEM").to_owned();
    let (chain, key) = Pair {
        certificate: pem("CertPEM"),
        key: pem("PrivateKeyPEM"),
    }
    .parsed();
    let provider = CryptoProvider::get_default().expect("a provider");
    Arc::new(CertifiedKey::from_der(chain, key, provider).expect("a key that fits"))
}

impl Native {
    pub async fn start(stack: &Stack, name: &str) -> Native {
        Native::showing(stack, name, name, leaf_of(stack, name).await).await
    }

    /// Another instance of the service, under a name of its own.
    pub async fn start_another(stack: &Stack, service: &str, name: &str) -> Native {
        Native::showing(stack, service, name, leaf_of(stack, service).await).await
    }

    /// An instance of this service that shows this certificate, be it the service's or not.
    async fn showing(stack: &Stack, service: &str, name: &str, shown: Arc<CertifiedKey>) -> Native {
        let heard = Arc::new(Heard {
            shown: Mutex::new(shown),
            handshakes: Mutex::default(),
            clients: Mutex::default(),
        });
        let mut config = rustls::ServerConfig::builder()
            .with_client_cert_verifier(heard.clone())
            .with_cert_resolver(heard.clone());
        // It would take any of these.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let backend = Backend::start_tls(name, Arc::new(config)).await;
        let mut definition = crate::support::consul::service(service, name, backend.port);
        definition["Connect"] = json!({ "Native": true });
        stack.consul.register(&definition).await;
        Native { backend, heard }
    }

    /// The certificates that clients showed, one for each handshake.
    pub fn clients(&self) -> Vec<CertificateDer<'static>> {
        self.heard.clients.lock().unwrap().clone()
    }

    /// The name that each handshake asked for.
    pub fn server_names(&self) -> Vec<Option<String>> {
        let handshakes = self.heard.handshakes.lock().unwrap();
        handshakes.iter().map(|(name, _)| name.clone()).collect()
    }

    /// In the handshakes to come.
    fn show(&self, certificate: Arc<CertifiedKey>) {
        *self.heard.shown.lock().unwrap() = certificate;
    }

    /// What each handshake offered, all of them alike.
    fn offered(&self) -> Vec<String> {
        let handshakes = self.heard.handshakes.lock().unwrap();
        let (name, offered) = &handshakes[0];
        let service = format!("{}.default.dc1.internal.", self.backend.name);
        assert!(
            name.as_ref().is_some_and(|name| name.starts_with(&service)),
            "{name:?}"
        );
        assert!(
            handshakes.iter().all(|other| *other == handshakes[0]),
            "{handshakes:?}"
        );
        offered.clone()
    }
}

const GATEWAY: &str = r#"
gateway "edge" {
  listener "web" {
    port = $HTTP
  }

  listener "bytes" {
    port     = $HTTPS
    protocol = "tcp"
  }
}

upstream "raw" {
  connect {}
}

tcp_route "raw" {
  gateways  = ["edge"]
  listeners = ["bytes"]

  backend "upstream" "raw" {}
}
"#;

/// Until it is answered; the version of HTTP that the service was asked in.
async fn version(client: &Client, request: &Request) -> String {
    wait_for("an answer", Duration::from_secs(60), async || {
        let reply = client
            .send(request)
            .await
            .map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        anyhow::ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
        Ok(reply.json()["version"].as_str().unwrap().to_owned())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn alpn_h2_is_offered_to_services_that_speak_http2_and_to_no_others() {
    let stack = mesh_stack(GATEWAY).await;
    for (name, spoken, said, offered, asked_in) in [
        // Not ours: Envoy names what it is about to speak.
        ("plain", "http", "", "http/1.1", "HTTP/1.1"),
        ("modern", "http2", "", "h2", "HTTP/2.0"),
        ("calls", "grpc", "", "h2", "HTTP/2.0"),
        // Said by the document, of a service that is bytes to Consul.
        ("old", "tcp", "protocol = \"http\"", "http/1.1", "HTTP/1.1"),
        ("new", "tcp", "protocol = \"http2\"", "h2", "HTTP/2.0"),
    ] {
        protocol(&stack, name, spoken).await;
        stack.consul.intention("edge-gw", name, "allow").await;
        let native = Native::start(&stack, name).await;
        let host = format!("{name}.example.com");
        stack.put(name, &document(&host, name, said)).await;
        let asked = version(&stack.client(), &Request::get(&host, "/")).await;
        assert_eq!(
            (native.offered(), &*asked),
            (vec![offered.to_owned()], asked_in),
            "{spoken}"
        );
    }

    // Consul's own proxy, which passes bytes on, is none the worse for it.
    let bytes = Meshed::start(&stack, "bytes", "bytes", json!({})).await;
    stack.consul.intention("edge-gw", "bytes", "allow").await;
    let by_document = document("bytes.example.com", "bytes", "protocol = \"http2\"");
    stack.put("bytes", &by_document).await;
    let asked = version(&stack.client(), &Request::get("bytes.example.com", "/")).await;
    assert_eq!(asked, "HTTP/2.0");
    drop(bytes);

    // Of a connection that is passed on nothing is known: its bytes are between the client and the service.
    let raw = Native::start(&stack, "raw").await;
    stack.consul.intention("edge-gw", "raw", "allow").await;
    let asked = version(&Client::http(stack.https), &Request::get("raw.example.com", "/")).await;
    assert_eq!((raw.offered().len(), &*asked), (0, "HTTP/1.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_with_another_service_s_certificate_gets_no_request() {
    let stack = mesh_stack(GATEWAY).await;
    protocol(&stack, "cards", "http").await;
    stack.consul.intention("edge-gw", "cards", "allow").await;
    // A member of the mesh, signed by its authority and in date, registered as an instance of `cards`.
    let of_another = leaf_of(&stack, "thief").await;
    let instance = Native::showing(&stack, "cards", "cards", of_another).await;
    let host = "cards.example.com";
    stack.put("cards", &document(host, "cards", "")).await;
    let request = Request::get(host, "/").header("authorization", "Bearer secret");

    let refused = async || -> anyhow::Result<u64> {
        let stats = stack.envoy().get("/stats?filter=ssl.fail_verify_san").await?;
        let text = stats.ok()?.text();
        let counts = text.lines().filter_map(|line| line.rsplit(": ").next());
        Ok(counts.filter_map(|count| count.parse::<u64>().ok()).sum())
    };
    let reply = wait_for(
        "the certificate to be refused for its name",
        Duration::from_secs(60),
        async || {
            let reply = stack.client().send(&request).await;
            let reply = reply.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
            anyhow::ensure!(refused().await? > 0, "{} {}", reply.status, reply.text());
            Ok(reply)
        },
    )
    .await;
    println!("{} {:?} {}", reply.status, reply.headers, reply.text());
    let handshakes = instance.heard.handshakes.lock().unwrap().len();
    assert!(handshakes > 0, "it was never dialed");
    for _ in 0..5 {
        let reply = stack.client().send(&request).await.unwrap();
        assert_eq!(reply.status, 503, "{}", reply.text());
        let reason = reply.header("x-portreeve-reason");
        assert_eq!(reason, Some("upstream-connection-failed"), "{:?}", reply.headers);
    }
    assert_eq!(
        instance.backend.requests(),
        0,
        "a request of ours came to another"
    );

    // The same instance, as itself.
    instance.show(leaf_of(&stack, "cards").await);
    version(&stack.client(), &request).await;
    assert!(instance.backend.requests() > 0);
}
