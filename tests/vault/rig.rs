//! A client and a watcher on a server, and what they said.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use portreeve::model::{CertificateMaterial, CertificateQuery, KvVersion, Observation, Problem, Redacted};
use portreeve::sources::certificates::{
    CertificateSettings, CertificateStore, CertificateWatcher, RedbCertificateStore, WallClock,
};
use portreeve::sources::vault::{SecretId, VaultAuth, VaultClient, VaultSettings};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::bao::Bao;

pub struct Rig {
    pub vault: VaultClient,
    pub watcher: CertificateWatcher,
    updates: mpsc::Receiver<Observation>,
    cancel: CancellationToken,
    session: JoinHandle<()>,
}

/// As fast as tests want it; the rules are the same.
pub fn fast() -> CertificateSettings {
    CertificateSettings {
        kv_poll: Duration::from_millis(200),
        issue_interval: Duration::from_secs(2),
    }
}

impl Rig {
    pub fn start(address: &str, auth: VaultAuth, store: &Path) -> Self {
        Self::with(address, auth, store, fast())
    }

    pub fn with(address: &str, auth: VaultAuth, store: &Path, settings: CertificateSettings) -> Self {
        Self::of(VaultSettings::new(address, auth), store, settings)
    }

    pub fn of(vault: VaultSettings, store: &Path, settings: CertificateSettings) -> Self {
        let store = RedbCertificateStore::open(&store.join("certificates.redb")).unwrap();
        Self::on(vault, Arc::new(store), settings)
    }

    /// What certificates say of dates is compared with this clock.
    pub fn by_clock(bao: &Bao, store: &Path, clock: WallClock) -> Self {
        let store = RedbCertificateStore::open(&store.join("certificates.redb")).unwrap();
        let settings = VaultSettings::new(&bao.address, token(&bao.root_token));
        Self::put_together(settings, Arc::new(store), fast(), clock)
    }

    pub fn on(vault: VaultSettings, store: Arc<dyn CertificateStore>, settings: CertificateSettings) -> Self {
        Self::put_together(vault, store, settings, WallClock::default())
    }

    fn put_together(
        vault: VaultSettings,
        store: Arc<dyn CertificateStore>,
        settings: CertificateSettings,
        clock: WallClock,
    ) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (vault, session) = VaultClient::new(vault).unwrap();
        let cancel = CancellationToken::new();
        let session = tokio::spawn(session.run(cancel.clone()));
        let (sender, updates) = mpsc::channel(64);
        let watcher = CertificateWatcher::new(
            settings,
            (Some(vault.clone()), None),
            store,
            clock,
            sender,
            CancellationToken::new(),
        );
        Self {
            vault,
            watcher,
            updates,
            cancel,
            session,
        }
    }

    pub fn watch(&mut self, queries: &[&CertificateQuery]) {
        let queries: OrdMap<CertificateQuery, u64> =
            queries.iter().map(|query| ((*query).clone(), 0u64)).collect();
        self.watcher.set_interests(&queries);
    }

    /// The next observation, within 15 s.
    pub async fn next(&mut self) -> Result<Arc<CertificateMaterial>, Problem> {
        let update = tokio::time::timeout(Duration::from_secs(15), self.updates.recv()).await;
        match update.expect("an observation in time").expect("the watcher runs") {
            Observation::Certificate(update) => update.result,
            other => panic!("{other:?}"),
        }
    }

    /// The next material, without a problem before it.
    pub async fn material_within(&mut self, limit: Duration) -> Arc<CertificateMaterial> {
        let update = tokio::time::timeout(limit, self.updates.recv()).await;
        match update.expect("an observation in time").expect("the watcher runs") {
            Observation::Certificate(update) => update.result.expect("material, no problem"),
            other => panic!("{other:?}"),
        }
    }

    pub async fn material(&mut self) -> Arc<CertificateMaterial> {
        self.next().await.expect("material, no problem")
    }

    /// After a restart, while the source does not give it: the public half, for Envoy that has the key.
    pub async fn remembered(&mut self) -> Arc<CertificateMaterial> {
        let material = self.material().await;
        assert!(material.private_key.is_none(), "a key outlived a restart");
        material
    }

    pub async fn problem(&mut self) -> Problem {
        self.next().await.expect_err("a problem, no material")
    }

    /// The next material, whatever problems come before it.
    pub async fn eventually(&mut self) -> Arc<CertificateMaterial> {
        loop {
            if let Ok(material) = self.next().await {
                return material;
            }
        }
    }

    /// The same, where pauses have grown.
    pub async fn eventually_within(&mut self, limit: Duration) -> Arc<CertificateMaterial> {
        let material = async {
            loop {
                match self.updates.recv().await.expect("the watcher runs") {
                    Observation::Certificate(update) => {
                        if let Ok(material) = update.result {
                            return material;
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
        };
        let found = tokio::time::timeout(limit, material).await;
        found.expect("material in time")
    }

    pub async fn silence(&mut self, time: Duration) {
        if let Ok(update) = tokio::time::timeout(time, self.updates.recv()).await {
            panic!("unexpected: {update:?}");
        }
    }

    pub async fn stop(self) {
        self.watcher.shut_down().await;
        self.cancel.cancel();
        self.session.await.unwrap();
    }
}

pub fn token(text: &str) -> VaultAuth {
    VaultAuth::Token(Arc::new(Redacted::new(text.to_owned())))
}

pub fn app_role(role_id: &str, secret_id: &str) -> VaultAuth {
    VaultAuth::AppRole {
        mount: "approle".to_owned(),
        role_id: role_id.to_owned(),
        secret_id: SecretId::Value(Arc::new(Redacted::new(secret_id.to_owned()))),
    }
}

pub fn kv(version: KvVersion, mount: &str, path: &str) -> CertificateQuery {
    CertificateQuery::VaultKv {
        mount: mount.into(),
        path: path.into(),
        version,
        certificate_field: "certificate".into(),
        private_key_field: "private_key".into(),
    }
}

pub fn pki(common_name: &str, ttl: u64) -> CertificateQuery {
    CertificateQuery::VaultPki {
        mount: "pki_int".into(),
        role: "edge".into(),
        issuer: None,
        common_name: common_name.into(),
        alt_names: Vec::new(),
        ip_sans: Vec::new(),
        ttl: Some(ttl),
        key_type: None,
    }
}

/// A self-signed certificate and its key, ending in `days`.
pub fn self_signed(name: &str, days: i64) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let now = std::time::SystemTime::now();
    let day = Duration::from_secs(86_400);
    params.not_before = (now - 10 * day).into();
    let end = if days < 0 {
        now - day * days.unsigned_abs() as u32
    } else {
        now + day * days as u32
    };
    params.not_after = end.into();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// With a certificate for `one.example` in KV, and a policy that reads it.
pub async fn with_secret() -> Bao {
    let bao = Bao::start().await;
    bao.mount_kv().await;
    bao.reader().await;
    store(&bao, "one.example").await;
    bao
}

pub async fn store(bao: &Bao, name: &str) {
    let (certificate, key) = self_signed(name, 5);
    let fields = json!({"certificate": certificate, "private_key": key});
    bao.write("secret/data/portreeve/www", json!({"data": fields}))
        .await;
}
