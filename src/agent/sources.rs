//! Starts the sources that the settings name, and keeps them told what to watch.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::mesh_interests::{follow_mesh, say_no_mesh};
use super::service_interests::{Catalog, follow, say_not_connected};
use super::settings::{ConsulBlock, MeshBlock, NomadBlock, Settings, is_settings};
use super::supervisor::Tasks;
use crate::config::CATALOG;
use crate::model::mesh::{Interest, MeshLeaf};
use crate::model::{DocumentId, Interests, Observation, Problem, Redacted};
use crate::pipeline::{KeyWishes, Restored};
use crate::sources::agent_api::{ApiAddress, Lifetimes, Product, ServiceWatcher};
use crate::sources::certificates::{
    CertificateSettings, CertificateStore, CertificateWatcher, RedbCertificateStore, WallClock,
};
use crate::sources::consul::{
    ConsulClient, ConsulSettings, DocumentsWatch, ExposedWatch, MeshWatcher, follow_service_names,
};
use crate::sources::directory::DirectoryWatch;
use crate::sources::nomad::{NomadClient, NomadSettings};
use crate::sources::vault::{VaultClient, VaultSession};
use crate::sources::{HealthReading, SourceHealth};
use crate::status::SourceReading;

/// What is started before the pipeline, because the pipeline must know whom it waits for.
pub(super) struct Sources {
    documents: Vec<DocumentsWatch>,
    directories: Vec<DirectoryWatch>,
    consul: Option<ConsulClient>,
    exposed: Option<ExposedWatch>,
    /// The gateway's place in the mesh, and the client that may ask for its certificate.
    mesh: Option<(MeshBlock, ConsulClient)>,
    /// The gateway's certificate there, from before a restart.
    known_leaf: Option<Arc<MeshLeaf>>,
    nomad: Option<NomadClient>,
    vault: Option<(VaultClient, VaultSession)>,
    certificate_store: Arc<dyn CertificateStore>,
    observations: mpsc::Sender<Observation>,
    pub document_sources: BTreeSet<Arc<str>>,
    /// Documents from before a restart that no source speaks for any more: another directory, another prefix.
    pub ownerless: Vec<DocumentId>,
    health: Vec<(String, SourceHealth)>,
    pub facts: Vec<(&'static str, String)>,
}

/// What the rest of the agent keeps of the running sources.
pub(super) struct Handles {
    pub readings: Readings,
    /// Asks the polled sources to look now.
    pub refresh: Refresh,
}

#[derive(Clone)]
pub(super) struct Refresh {
    polled: Arc<Notify>,
    vault: Option<VaultClient>,
}

impl Refresh {
    pub fn all(&self) {
        self.log_in();
        self.polled.notify_one();
    }

    /// A login that was refused, and may be taken by now.
    pub fn log_in(&self) {
        if let Some(vault) = &self.vault {
            vault.log_in_now();
        }
    }
}

/// How fresh each source is and what it costs.
#[derive(Clone)]
pub(super) struct Readings {
    health: Vec<(String, SourceHealth)>,
    services: Vec<ServiceWatcher>,
    mesh: Option<MeshWatcher>,
    consul: Option<ConsulClient>,
    vault: Option<VaultClient>,
    /// Of what was given to the agent, by where it is shown.
    lifetimes: Vec<(&'static str, Lifetimes)>,
}

impl Readings {
    pub fn read(&self) -> Vec<SourceReading> {
        let watched = |name: String, reading: HealthReading| {
            let age = reading.last_success.map(|at| at.elapsed());
            SourceReading::new(name, reading.ok, age).counted(reading.requests_total, reading.errors_total)
        };
        let mut readings: Vec<SourceReading> = self
            .health
            .iter()
            .map(|(name, health)| watched(name.clone(), health.reading()))
            .collect();
        for services in &self.services {
            let each = services.health().into_iter();
            readings.extend(each.map(|(query, reading)| watched(format!("service {query}"), reading)));
        }
        if let Some(mesh) = &self.mesh {
            let leaf = mesh.leaf(WallClock::default().now());
            let each = mesh.health().into_iter();
            readings.extend(each.map(|(interest, reading)| {
                let reading = watched(interest.to_string(), reading);
                match (interest, &leaf) {
                    (Interest::Mesh, Some(leaf)) => reading
                        .with_problem(leaf.warning.as_ref().map(ToString::to_string))
                        .with_credentials(&[("mesh certificate", Some(leaf.ends))]),
                    _ => reading,
                }
            }));
        }
        if let Some(login) = self.consul.as_ref().and_then(|consul| consul.login_status()) {
            let is_ok = login.logins > 0 && login.problem.is_none();
            readings.push(
                SourceReading::new("consul login", is_ok, None)
                    .counted(login.logins + login.failures, login.failures)
                    .with_problem(login.problem.as_ref().map(ToString::to_string))
                    .with_credentials(&[("consul token", login.expires)]),
            );
        }
        for (name, lifetimes) in &self.lifetimes {
            let life = lifetimes.reading();
            let credentials = [
                (format!("{name} token"), life.token),
                (format!("{name} client certificate"), life.client_certificate),
                (format!("{name} login identity"), life.login_identity),
            ];
            if credentials.iter().all(|(_, end)| end.is_none()) && life.warnings.is_empty() {
                continue;
            }
            readings.push(
                SourceReading::new(format!("{name} credentials"), !life.is_token_file_bad, None)
                    .with_problem(together(life.warnings.iter()))
                    .with_credentials(&credentials),
            );
        }
        if let Some(vault) = &self.vault {
            let status = vault.status();
            let age = status
                .last_success
                .map(|at| Duration::from_secs((WallClock::default().now() - at).max(0) as u64));
            let credentials = [
                ("vault token", status.token_expires),
                ("vault client certificate", status.client_certificate_expires),
                ("vault login identity", status.login_identity_expires),
                ("vault secret id", status.secret_id_expires),
            ];
            readings.push(
                SourceReading::new("vault", status.is_ok(), age)
                    .counted(status.requests, status.errors)
                    .with_problem(together(status.notes()))
                    .with_credentials(&credentials),
            );
        }
        readings
    }
}

/// Several warnings, none of which hides another.
fn together<'a>(warnings: impl Iterator<Item = &'a Problem>) -> Option<String> {
    let said: Vec<String> = warnings.map(ToString::to_string).collect();
    Some(said.join("; ")).filter(|said| !said.is_empty())
}

pub(super) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Sources {
    pub fn prepare(
        settings: &Settings,
        restored: &Restored,
        observations: mpsc::Sender<Observation>,
    ) -> anyhow::Result<Self> {
        let known = restored.documents.as_slice();
        let consul = match &settings.consul {
            Some(block) => {
                Some(ConsulClient::new(&consul_settings(block)?).context("the consul settings do not work")?)
            }
            None => None,
        };
        let nomad = match &settings.nomad {
            Some(block) => {
                Some(NomadClient::new(&nomad_settings(block)?).context("the nomad settings do not work")?)
            }
            None => None,
        };
        let mesh = match (&settings.consul, &settings.mesh) {
            (Some(block), Some(mesh)) => {
                let client = match &consul {
                    Some(client) if mesh.token.is_none() && mesh.token_file.is_none() => client.clone(),
                    _ => ConsulClient::new(&mesh_settings(block, mesh)?)
                        .context("the mesh settings do not work")?,
                };
                Some((mesh.clone(), client))
            }
            (None, Some(_)) => anyhow::bail!(
                "the settings have a mesh block and this agent is not connected to Consul: add a consul block"
            ),
            (_, None) => None,
        };
        let vault = match &settings.vault {
            Some(block) => Some(
                VaultClient::new(block.settings(&environment)?).context("the vault settings do not work")?,
            ),
            None => None,
        };
        let certificate_store: Arc<dyn CertificateStore> = if !settings.keeps_state {
            Arc::new(RedbCertificateStore::in_memory().context("no store for certificates")?)
        } else {
            let path = settings.data_dir.join("certificates.redb");
            Arc::new(RedbCertificateStore::open(&path).with_context(|| {
                format!(
                    "{}: cannot be opened; if it is damaged, delete it: certificates are issued anew",
                    path.display()
                )
            })?)
        };
        let mut sources = Self {
            documents: Vec::new(),
            directories: Vec::new(),
            consul,
            exposed: None,
            mesh,
            known_leaf: restored.mesh.as_ref().map(|(leaf, _)| leaf.clone()),
            nomad,
            vault,
            certificate_store,
            observations,
            document_sources: BTreeSet::new(),
            ownerless: Vec::new(),
            health: Vec::new(),
            facts: Vec::new(),
        };
        for path in &settings.document_paths {
            let watch = DirectoryWatch::new(path.clone(), sources.observations.clone())
                .without(is_settings)
                .with_known(known);
            sources.document_sources.insert(watch.source());
            sources
                .health
                .push((format!("directory {}", path.display()), watch.health()));
            sources.facts.push(("Documents", path.display().to_string()));
            sources.directories.push(watch);
        }
        if let (Some(prefix), Some(client)) = (&settings.kv_prefix, &sources.consul) {
            let prefix = format!("{prefix}/config/");
            let watch =
                DocumentsWatch::new(client.clone(), &prefix, sources.observations.clone()).with_known(known);
            sources.document_sources.insert(watch.source());
            sources.health.push((format!("kv {prefix}"), watch.health()));
            sources.facts.push(("Documents", format!("Consul KV {prefix}")));
            sources.documents.push(watch);
        }
        let is_owned = |id: &DocumentId| {
            sources.directories.iter().any(|watch| watch.owns(id))
                || sources.documents.iter().any(|watch| watch.owns(id))
                || (id.service().is_some() && settings.permissions.exposure.is_some())
        };
        let ids = known.iter().map(|document| &document.id);
        sources.ownerless = ids.filter(|id| !is_owned(id)).cloned().collect();
        if let (Some(exposure), Some(client)) = (&settings.permissions.exposure, &sources.consul) {
            let observations = sources.observations.clone();
            let watch =
                ExposedWatch::new(client.clone(), exposure.opt_in.clone(), observations).with_known(known);
            sources.document_sources.insert(CATALOG.into());
            sources.health.push((CATALOG.to_owned(), watch.health()));
            sources.exposed = Some(watch);
        }
        anyhow::ensure!(
            !sources.document_sources.is_empty(),
            "no source of documents: give -config a directory with documents, or a consul block so that they are read from KV"
        );
        if let Some(client) = &sources.consul {
            sources.facts.push(("Consul", client.address().to_string()));
        }
        if let Some(client) = &sources.nomad {
            sources.facts.push(("Nomad", client.address().to_string()));
        }
        if let Some((mesh, _)) = &sources.mesh {
            sources.facts.push(("Mesh", format!("as {}", mesh.service)));
        }
        if let Some(block) = &settings.vault {
            sources
                .facts
                .push(("Vault", block.settings(&environment)?.address));
        }
        Ok(sources)
    }

    /// For what else talks to Consul.
    pub fn consul_client(&self) -> Option<ConsulClient> {
        self.consul.clone()
    }

    pub fn start(
        self,
        settings: &Settings,
        tasks: &mut Tasks,
        interests: watch::Receiver<Arc<Interests>>,
        wanted: KeyWishes,
        stop: &CancellationToken,
    ) -> Handles {
        // Before any source of documents is asked: what the documents of the last run wanted.
        let before_restart = interests.borrow().certificates.clone();
        let mut readings = Readings {
            health: self.health,
            services: Vec::new(),
            mesh: None,
            consul: self.consul.clone(),
            vault: None,
            lifetimes: Vec::new(),
        };
        let given = [
            ("consul", "consul credentials", self.consul.as_deref()),
            ("nomad", "nomad credentials", self.nomad.as_deref()),
            (
                "mesh",
                "mesh credentials",
                // With a token of its own.
                self.mesh
                    .as_ref()
                    .filter(|(mesh, _)| mesh.token.is_some() || mesh.token_file.is_some())
                    .map(|(_, client)| &**client),
            ),
        ];
        for (name, task, client) in given {
            if let Some(client) = client {
                let lifetimes = Lifetimes::new(client);
                readings.lifetimes.push((name, lifetimes.clone()));
                tasks.spawn_plain(task, lifetimes.follow(stop.clone()));
            }
        }
        let polled = Arc::new(Notify::new());
        for watch in self.documents {
            tasks.spawn_plain("documents in KV", watch.run(stop.clone()));
        }
        for watch in self.directories {
            tasks.spawn_plain("documents in a directory", watch.run(stop.clone()));
        }
        if let Some(client) = &self.consul {
            let names = follow_service_names(
                client.clone(),
                self.observations.clone(),
                interests.clone(),
                stop.clone(),
            );
            tasks.spawn_plain("service names", names);
        }
        if let Some(watch) = self.exposed {
            tasks.spawn_plain("catalog services", watch.run(stop.clone()));
        }
        let mut sidecar = None;
        match (self.consul.clone(), self.mesh) {
            (Some(client), Some((mesh, mesh_client))) => {
                let of_sidecar =
                    ServiceWatcher::of_sidecar(client.clone(), mesh.sidecar, self.observations.clone());
                sidecar = Some(of_sidecar);
                let (watcher, task) =
                    MeshWatcher::new(client, mesh_client, mesh.service, self.observations.clone());
                let watcher = watcher.with_known(self.known_leaf.as_deref());
                readings.mesh = Some(watcher.clone());
                tasks.spawn_plain("mesh", task.run(stop.clone()));
                let following = follow_mesh(watcher, interests.clone(), stop.clone());
                tasks.spawn_plain("mesh interests", following);
            }
            (_, _) => tasks.spawn_plain(
                "no mesh",
                say_no_mesh(self.observations.clone(), interests.clone(), stop.clone()),
            ),
        }
        let consul = self.consul.map(|client| match settings.permissions.exposure {
            Some(_) => ServiceWatcher::with_labels(client, self.observations.clone()),
            None => ServiceWatcher::new(client, self.observations.clone()),
        });
        let variables = self.nomad.clone();
        let nomad = self
            .nomad
            .map(|client| ServiceWatcher::of_nomad(client, self.observations.clone()));
        let catalogs = [
            (Catalog::Consul, consul),
            (Catalog::Nomad, nomad),
            (Catalog::Sidecar, sidecar),
        ];
        for (catalog, watching) in catalogs {
            let (interests, stop) = (interests.clone(), stop.clone());
            let (name, following) = catalog.task_names();
            let Some((watcher, task)) = watching else {
                let observations = self.observations.clone();
                tasks.spawn_plain(
                    following,
                    say_not_connected(catalog, observations, interests, stop),
                );
                continue;
            };
            readings.services.push(watcher.clone());
            tasks.spawn_plain(name, task.run(stop.clone()));
            tasks.spawn_plain(following, follow(catalog, watcher, interests, stop));
        }
        let client = self.vault.map(|(client, session)| {
            readings.vault = Some(client.clone());
            tasks.spawn_plain("vault session", session.run(stop.clone()));
            client
        });
        let poll = settings.vault.as_ref().map(|vault| vault.poll_interval);
        let certificates = CertificateSettings {
            kv_poll: poll.unwrap_or(CertificateSettings::default().kv_poll),
            ..CertificateSettings::default()
        };
        let mut watcher = CertificateWatcher::new(
            certificates,
            (client.clone(), variables),
            self.certificate_store,
            WallClock::default(),
            self.observations,
            stop.clone(),
        );
        watcher.set_interests(&before_restart);
        tasks.spawn(
            "certificates",
            follow_certificates(watcher, interests, wanted, polled.clone(), stop.clone()),
        );
        let refresh = Refresh {
            polled,
            vault: client,
        };
        Handles { readings, refresh }
    }
}

async fn follow_certificates(
    mut watcher: CertificateWatcher,
    mut interests: watch::Receiver<Arc<Interests>>,
    wanted: KeyWishes,
    refresh: Arc<Notify>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let queries = interests.borrow_and_update().certificates.clone();
        watcher.set_interests(&queries);
        tokio::select! {
            () = stop.cancelled() => break,
            changed = interests.changed() => if changed.is_err() { break },
            () = refresh.notified() => {
                for query in queries.keys() {
                    watcher.refresh(query);
                }
            }
            queries = wanted.take() => {
                for query in &queries {
                    watcher.want_key(query);
                }
            }
            stopped = watcher.next_stopped() => {
                anyhow::bail!("the watch of {} stopped: {}", stopped.query, stopped.reason);
            }
        }
    }
    watcher.shut_down().await;
    Ok(())
}

/// The block over the environment.
pub(crate) fn consul_settings(block: &ConsulBlock) -> anyhow::Result<ConsulSettings> {
    let mut settings =
        ConsulSettings::from_env(environment).context("the CONSUL_* environment does not work")?;
    if let Some(address) = &block.address {
        settings.address = ApiAddress::parse(
            Product::Consul,
            address,
            settings.address.is_tls() && !address.contains("://"),
        )?;
    }
    if let Some(token) = &block.token {
        settings.token = Some(token.clone());
        settings.token_file = None;
    }
    if block.login.is_some() {
        // What Nomad puts into the environment of a task is another identity's.
        (settings.token, settings.token_file) = (None, None);
        settings.login.clone_from(&block.login);
    }
    fn over<T: Clone>(into: &mut Option<T>, value: &Option<T>) {
        if value.is_some() {
            into.clone_from(value);
        }
    }
    if block.token_file.is_some() && block.token.is_none() {
        // Whatever the file holds: an operator's own token in the environment is no other choice.
        settings.token = None;
    }
    over(&mut settings.token_file, &block.token_file);
    over(&mut settings.ca_file, &block.ca_file);
    over(&mut settings.ca_path, &block.ca_path);
    over(&mut settings.client_cert, &block.client_cert);
    over(&mut settings.client_key, &block.client_key);
    over(&mut settings.tls_server_name, &block.tls_server_name);
    over(&mut settings.namespace, &block.namespace);
    over(&mut settings.partition, &block.partition);
    over(&mut settings.datacenter, &block.datacenter);
    over(&mut settings.max_connections, &block.max_connections);
    settings.tls_skip_verify = block.tls_skip_verify.unwrap_or(settings.tls_skip_verify);
    Ok(settings)
}

fn nomad_settings(block: &NomadBlock) -> anyhow::Result<NomadSettings> {
    let mut settings =
        NomadSettings::from_env(environment).context("the NOMAD_* environment does not work")?;
    if let Some(address) = &block.address {
        settings.address = ApiAddress::parse(Product::Nomad, address, false)?;
    }
    fn over<T: Clone>(into: &mut Option<T>, value: &Option<T>) {
        if value.is_some() {
            into.clone_from(value);
        }
    }
    if block.token_file.is_some() {
        settings.token = None;
    }
    over(&mut settings.token_file, &block.token_file);
    over(&mut settings.region, &block.region);
    over(&mut settings.namespace, &block.namespace);
    over(&mut settings.ca_file, &block.ca_file);
    over(&mut settings.ca_path, &block.ca_path);
    over(&mut settings.client_cert, &block.client_cert);
    over(&mut settings.client_key, &block.client_key);
    over(&mut settings.tls_server_name, &block.tls_server_name);
    settings.tls_skip_verify = block.tls_skip_verify.unwrap_or(settings.tls_skip_verify);
    Ok(settings)
}

/// The consul block's, with the mesh's own token.
fn mesh_settings(consul: &ConsulBlock, mesh: &MeshBlock) -> anyhow::Result<ConsulSettings> {
    Ok(ConsulSettings {
        token: mesh.token.clone().map(Redacted::new),
        token_file: mesh.token_file.clone(),
        login: None,
        ..consul_settings(consul)?
    })
}
