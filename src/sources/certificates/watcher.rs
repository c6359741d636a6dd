//! One task per certificate that the configuration needs; started and stopped as the needs change.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::budget::Budget;
use super::client_ca::ClientCaWatch;
use super::clock::WallClock;
use super::issued::{IssuedWatch, Wishes};
use super::publisher::{CertificateFreshness, Closed, Publisher};
use super::records::{PRUNE_INTERVAL, Records};
use super::request::Names;
use super::store::CertificateStore;
use super::{file, kv, variable};
use crate::model::{CertificateQuery, Needed, Observation, Problem, ProblemKind};
use crate::sources::nomad::NomadClient;
use crate::sources::vault::VaultClient;

/// How much longer than the budget's interval a watch lingers.
const MARGIN: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
pub struct CertificateSettings {
    /// How often a KV secret is looked at. Vault Agent's default is 5 min; a poll of metadata is cheap enough for
    /// the 30 s that people wait for a certificate they just stored.
    pub kv_poll: Duration,
    /// At most one issue per certificate in this time.
    pub issue_interval: Duration,
}

impl Default for CertificateSettings {
    fn default() -> Self {
        Self {
            kv_poll: Duration::from_secs(30),
            issue_interval: Duration::from_secs(60),
        }
    }
}

/// Watches the certificates of the interests. Its owner calls `next_stopped` too: a watch that stopped is a bug.
pub struct CertificateWatcher {
    context: Arc<Context>,
    interests: Needed<CertificateQuery>,
    watches: BTreeMap<CertificateQuery, Watch>,
    /// Issued ones that nobody wants any more, with the end of their time: their keys are nowhere else, and the budget
    /// would let a certificate that is wanted again wait for another.
    lingering: BTreeMap<CertificateQuery, (Watch, Instant)>,
    tasks: JoinSet<()>,
    names: HashMap<Id, CertificateQuery>,
    cancel: CancellationToken,
    records: Records,
    /// Empty until the first interests are there.
    writer: JoinSet<()>,
    /// Once no watch has anything more to be written.
    written: CancellationToken,
}

/// A watch that ended though it was wanted: it panicked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the watch of {query} stopped: {reason}")]
pub struct StoppedWatch {
    pub query: CertificateQuery,
    pub reason: String,
}

struct Context {
    settings: CertificateSettings,
    vault: Option<VaultClient>,
    nomad: Option<variable::Variables>,
    store: Arc<dyn CertificateStore>,
    clock: WallClock,
    updates: mpsc::Sender<Observation>,
}

struct Watch {
    cancel: CancellationToken,
    wishes: Arc<Wishes>,
    freshness: Arc<Mutex<CertificateFreshness>>,
}

impl CertificateWatcher {
    /// `vault` is none where no Vault is configured: certificates from it are then a problem each. So with `nomad`.
    pub fn new(
        settings: CertificateSettings,
        (vault, nomad): (Option<VaultClient>, Option<NomadClient>),
        store: Arc<dyn CertificateStore>,
        clock: WallClock,
        updates: mpsc::Sender<Observation>,
        cancel: CancellationToken,
    ) -> Self {
        let records = Records::new(store.clone(), clock.clone());
        Self {
            context: Arc::new(Context {
                settings,
                vault,
                nomad: nomad.map(variable::Variables::new),
                store,
                clock,
                updates,
            }),
            interests: OrdMap::new(),
            watches: BTreeMap::new(),
            lingering: BTreeMap::new(),
            tasks: JoinSet::new(),
            names: HashMap::new(),
            cancel,
            records,
            writer: JoinSet::new(),
            written: CancellationToken::new(),
        }
    }

    /// Starts what is new and stops what is no longer wanted. What is wanted anew tells again what it knows. Must be
    /// called within a tokio runtime.
    ///
    /// The first interests are those from before a restart: what was in force then, and is remembered, is what there is
    /// until their sources answer. What is wanted later waits for its source: what was in force when it was wanted the
    /// last time may have been taken back since.
    pub fn set_interests(&mut self, interests: &Needed<CertificateQuery>) {
        let is_first = self.writer.is_empty();
        if is_first {
            let writing = self.records.clone();
            self.writer
                .spawn(writing.write_all(interests.clone(), PRUNE_INTERVAL, self.written.clone()));
        }
        let before = std::mem::replace(&mut self.interests, interests.clone());
        for item in before.diff(interests) {
            match item {
                DiffItem::Add(query, _) => self.begin(query, is_first),
                DiffItem::Update { old, new } => {
                    self.end(old.0);
                    self.begin(new.0, false);
                }
                DiffItem::Remove(query, _) => self.end(query),
            }
        }
    }

    fn begin(&mut self, query: &CertificateQuery, recalls: bool) {
        match self.lingering.remove(query) {
            Some((watch, _)) => {
                watch.wishes.again.notify_one();
                self.watches.insert(query.clone(), watch);
            }
            None => self.start(query.clone(), recalls),
        }
    }

    fn end(&mut self, query: &CertificateQuery) {
        let Some(watch) = self.watches.remove(query) else {
            return;
        };
        match query {
            CertificateQuery::VaultPki { .. } => {
                let until = Instant::now() + self.context.settings.issue_interval + MARGIN;
                self.lingering.insert(query.clone(), (watch, until));
            }
            CertificateQuery::VaultKv { .. }
            | CertificateQuery::NomadVariable { .. }
            | CertificateQuery::File { .. }
            | CertificateQuery::ClientCa(_) => {
                watch.cancel.cancel();
                self.records.end(query);
            }
        }
    }

    fn end_lingering(&mut self) {
        let now = Instant::now();
        self.lingering.retain(|_, (watch, until)| {
            if *until <= now {
                watch.cancel.cancel();
            }
            *until > now
        });
    }

    /// Looks at the source now: KV and files are read again, a failed issue is tried again (within its budget). False:
    /// nobody watches it.
    pub fn refresh(&self, query: &CertificateQuery) -> bool {
        self.watches
            .get(query)
            .map(|watch| watch.wishes.refresh.notify_one())
            .is_some()
    }

    /// An Envoy needs the private key. Where only the public half is known (after a restart), another certificate is
    /// issued, within the budget. False: nobody watches it.
    pub fn want_key(&self, query: &CertificateQuery) -> bool {
        self.watches
            .get(query)
            .map(|watch| watch.wishes.key.notify_one())
            .is_some()
    }

    /// In the order of the queries.
    pub fn freshness(&self) -> Vec<CertificateFreshness> {
        let read = |watch: &Watch| {
            watch
                .freshness
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        };
        self.watches.values().map(read).collect()
    }

    /// Waits for a watch that ends though it is wanted. Never returns while all is well.
    pub async fn next_stopped(&mut self) -> StoppedWatch {
        loop {
            let lingers = self.lingering.values().map(|(_, until)| *until).min();
            let far = Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => match ended {
                    Ok((id, ())) => _ = self.names.remove(&id),
                    Err(error) => {
                        if let Some(query) = self.names.remove(&error.id()) {
                            return StoppedWatch {
                                query,
                                reason: error.to_string(),
                            };
                        }
                    }
                },
                () = sleep_until(lingers.unwrap_or(far)) => self.end_lingering(),
            }
        }
    }

    /// Stops all watches and waits until they are gone.
    pub async fn shut_down(mut self) {
        self.cancel.cancel();
        let lingering = self.lingering.values().map(|(watch, _)| watch);
        for watch in self.watches.values().chain(lingering) {
            watch.cancel.cancel();
        }
        while self.tasks.join_next().await.is_some() {}
        self.written.cancel();
        while self.writer.join_next().await.is_some() {}
    }

    fn start(&mut self, query: CertificateQuery, recalls: bool) {
        let watch = Watch {
            cancel: self.cancel.child_token(),
            wishes: Arc::default(),
            freshness: Arc::new(Mutex::new(CertificateFreshness::new(query.clone()))),
        };
        let (context, cancel, wishes) = (self.context.clone(), watch.cancel.clone(), watch.wishes.clone());
        let publisher = Publisher::new(
            query.clone(),
            context.updates.clone(),
            context.clock.clone(),
            watch.freshness.clone(),
        )
        .remembering(self.records.begin(&query, recalls));
        let task_query = query.clone();
        let task = async move {
            let repeater = publisher.repeater();
            let watching = run(&context, &task_query, &wishes, publisher);
            tokio::pin!(watching);
            loop {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    Closed = &mut watching => return,
                    // In this task, so that nothing newer can come in between.
                    () = wishes.again.notified() => repeater.repeat().await,
                }
            }
        };
        let handle = self.tasks.spawn(task);
        self.names.insert(handle.id(), query.clone());
        self.watches.insert(query, watch);
    }
}

async fn run(
    context: &Context,
    query: &CertificateQuery,
    wishes: &Wishes,
    mut publisher: Publisher,
) -> Closed {
    let publisher = &mut publisher;
    match (query, &context.vault) {
        (
            CertificateQuery::File {
                certificate,
                private_key,
            },
            _,
        ) => {
            let (certificate, private_key) = (Path::new(&**certificate), Path::new(&**private_key));
            file::watch(certificate, private_key, &wishes.refresh, publisher).await
        }
        (
            CertificateQuery::NomadVariable {
                namespace,
                path,
                certificate_item,
                private_key_item,
            },
            _,
        ) => {
            let variable = variable::VariableQuery {
                namespace: namespace.as_deref(),
                path,
                certificate_item,
                private_key_item,
            };
            match &context.nomad {
                Some(nomad) => variable::watch(variable, nomad, &wishes.refresh, publisher).await,
                None => not_connected(query, "Nomad", publisher).await,
            }
        }
        (
            CertificateQuery::VaultKv {
                mount,
                path,
                version,
                certificate_field,
                private_key_field,
            },
            Some(vault),
        ) => {
            let query = kv::KvQuery {
                mount,
                path,
                version: *version,
                certificate_field,
                private_key_field,
            };
            kv::watch(query, vault, context.settings.kv_poll, &wishes.refresh, publisher).await
        }
        (
            CertificateQuery::VaultPki {
                mount,
                role,
                issuer,
                common_name,
                alt_names,
                ip_sans,
                ttl,
                key_type,
            },
            Some(vault),
        ) => {
            let names = Names {
                common_name: common_name.clone(),
                alt_names: alt_names.clone(),
                ip_sans: ip_sans.clone(),
            };
            let budget = Budget {
                interval: context.settings.issue_interval,
            };
            IssuedWatch {
                query,
                mount,
                role,
                issuer: issuer.as_deref(),
                names,
                ttl: *ttl,
                key_type: *key_type,
                vault,
                store: context.store.clone(),
                budget,
                poll: context.settings.kv_poll,
            }
            .run(wishes, publisher)
            .await
        }
        (CertificateQuery::ClientCa(source), vault) => {
            ClientCaWatch {
                query,
                source,
                vault: vault.as_ref(),
                poll: context.settings.kv_poll,
                kv_version: Mutex::default(),
            }
            .run(&wishes.refresh, publisher)
            .await
        }
        (_, None) => not_connected(query, "Vault", publisher).await,
    }
}

async fn not_connected(query: &CertificateQuery, product: &str, publisher: &mut Publisher) -> Closed {
    let problem = Problem::new(
        ProblemKind::Refused,
        format!("{query}: no {product} is configured"),
    )
    .with_fix(format!(
        "Add a {} block to the agent's settings.",
        product.to_ascii_lowercase()
    ));
    match publisher.problem(problem).await {
        Ok(()) => std::future::pending().await,
        Err(closed) => closed,
    }
}
