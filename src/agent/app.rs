//! Builds the running agent from its settings, and takes it down again in order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use futures::future::join_all;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::log_format::{self, LevelHandle, LogFormat, LogLevel};
use super::log_thread::{LogThread, UntilOut};
use super::notify_systemd::ServiceManager;
use super::reload::{self, LastReload};
use super::settings::{Flags, Settings, SettingsError, is_settings, without_tokens};
use super::signals::{SignalEvent, Signals};
use super::sources::{Refresh, Sources, environment};
use super::status_keys::StatusKeys;
use super::supervisor::Tasks;
use super::xds_certificate::XdsCertificate;
use super::{data_directory, envoys, other_users, problem_log, shared_ports, start_banner};
use crate::admin;
use crate::config::{ObjectKind, parse_document};
use crate::diagnostics::render;
use crate::envoy_process::{self, StopMode};
use crate::hcl::Limits;
use crate::pipeline::{Command, GatewaySettings, Outputs, Pipeline, PipelineSettings, Restored, Store, View};
use crate::sources::consul::ConsulClient;
use crate::translate;
use crate::xds;

/// Observations on their way to the pipeline: a source waits when the pipeline is this far behind.
const OBSERVATIONS: usize = 8192;
/// Events of Envoys on their way to the pipeline.
const EVENTS: usize = 8192;
/// After this the tasks that do not stop by themselves are dropped.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Runs until told to stop. Settings that do not work end it before anything is started.
pub async fn run(flags: Flags) -> anyhow::Result<ExitCode> {
    let mut settings = match load(&flags) {
        Ok(settings) => settings,
        Err(error) => {
            show_settings_error(&error)?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let level: LogLevel = settings.log_level.parse()?;
    let format = if settings.log_json {
        LogFormat::Json
    } else {
        LogFormat::Text
    };
    // A descriptor of its own: where it hangs, nobody waits for a lock that it holds.
    let stdout = std::io::stdout().as_fd().try_clone_to_owned();
    let stdout = File::from(stdout.context("standard output cannot be used")?);
    let log = LogThread::start(stdout, move |lost| log_format::lost_lines(format, lost))
        .context("the thread of the log cannot be started")?;
    // By the same way as the log: a full disk or a closed pipe is no reason for a gateway not to start.
    let show = |text: Vec<u8>| log.clone().write_all(&text);
    if format == LogFormat::Text {
        let mut banner = Vec::new();
        start_banner::write_starting(&mut banner)?;
        show(banner)?;
    }
    let _until_out = UntilOut(log.clone());
    let (subscriber, level_handle) = log_format::subscriber(format, level, log.clone());
    tracing::subscriber::set_global_default(subscriber).context("a second log in one process")?;
    data_directory::make(&settings.data_dir)?;
    if settings.gateways.is_empty() {
        settings.gateways = declared_gateways(&settings);
    }
    let mut signals = Signals::install().context("signal handlers cannot be installed")?;
    let service_manager = ServiceManager::new(environment("NOTIFY_SOCKET").map(Into::into));
    let stop = CancellationToken::new();
    let mut running = Running::start(&settings, &stop).await?;
    let facts = running.facts(&settings);
    match format {
        LogFormat::Text => {
            let mut banner = Vec::new();
            start_banner::write_started(&mut banner, &facts)?;
            show(banner)?;
        }
        // Whoever parses the log must not meet anything else on its stream.
        LogFormat::Json => start_banner::log_started(&facts),
    }
    let outcome = running
        .serve(
            &flags,
            &mut settings,
            &level_handle,
            &mut signals,
            &service_manager,
            &stop,
        )
        .await;
    service_manager.stopping("stopping");
    // When we fail, what serves goes on serving: the next agent takes it over.
    let mode = match settings.envoy.stop_with_agent && outcome.is_ok() {
        true => StopMode::Drain,
        false => StopMode::LeaveRunning,
    };
    let in_order = running.stop(mode, &mut signals, &stop).await;
    outcome.map(|code| if in_order { code } else { ExitCode::FAILURE })
}

/// For what reads files: whoever waits for it hears signals meanwhile.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn load(flags: &Flags) -> Result<Settings, SettingsError> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Settings::load(flags, &host)
}

fn show_settings_error(error: &SettingsError) -> anyhow::Result<()> {
    let mut out = std::io::stderr().lock();
    writeln!(out, "==> {error}")?;
    if let SettingsError::Invalid(problems) = error {
        for (problem, text) in problems {
            writeln!(out, "\n{}", render(problem, Some(&without_tokens(text)), false))?;
        }
    }
    Ok(())
}

/// Under -dev without names: what the documents declare at the start, or `edge`.
fn declared_gateways(settings: &Settings) -> Vec<Arc<str>> {
    let mut names = BTreeSet::new();
    for path in &settings.document_paths {
        let Ok(listing) = crate::sources::directory::read_documents(path, is_settings) else {
            continue;
        };
        for document in listing.documents {
            let Ok(parsed) = parse_document(&document, &settings.permissions, &Limits::default()) else {
                continue;
            };
            names.extend(
                parsed
                    .objects
                    .iter()
                    .map(|object| object.key())
                    .filter(|key| key.kind == ObjectKind::Gateway)
                    .map(|key| key.name),
            );
        }
    }
    if names.is_empty() {
        vec!["edge".into()]
    } else {
        names.into_iter().collect()
    }
}

/// Everything that was started.
struct Running {
    tasks: Tasks,
    view: watch::Receiver<Arc<View>>,
    envoys: Vec<envoy_process::Handle>,
    xds_certificate: Option<Arc<XdsCertificate>>,
    last_reload: Arc<LastReload>,
    refresh: Refresh,
    commands: mpsc::Sender<Command>,
    consul: Option<ConsulClient>,
    facts: Vec<(&'static str, String)>,
}

impl Running {
    async fn start(settings: &Settings, stop: &CancellationToken) -> anyhow::Result<Self> {
        let (store, restored) = if !settings.keeps_state {
            (None, Restored::default())
        } else {
            let (store, restored) =
                Store::open(&settings.data_dir).context("the agent's state cannot be used")?;
            (Some(store), restored)
        };
        let (observations, observed) = mpsc::channel(OBSERVATIONS);
        let sources = Sources::prepare(settings, &restored, observations.clone())?;
        let consul = sources.consul_client();
        let mut facts = sources.facts.clone();
        let gateways = xds::Gateways::default();
        let (server, events) = xds::Server::new(gateways.clone(), xds::Limits::default(), EVENTS);
        let (pipeline, outputs) = Pipeline::new(
            pipeline_settings(settings, &sources),
            restored,
            store,
            server.streams().clone(),
        );
        let (accepted_wanted, wanted_texts) = mpsc::unbounded_channel();
        let pipeline = match (&consul, &settings.kv_prefix) {
            (Some(_), Some(_)) => pipeline.with_accepted_texts(accepted_wanted),
            _ => pipeline,
        };
        let recorder = admin::Recorder::new();
        let pipeline = pipeline.with_meter(Arc::new(recorder.clone()));
        let Outputs {
            view,
            interests,
            wanted,
            resources,
        } = outputs;
        for (name, receiver) in resources {
            gateways.insert(name, receiver);
        }
        let mut tasks = Tasks::default();
        let wishes = wanted.clone();
        let handles = sources.start(settings, &mut tasks, interests, wanted, stop);
        let (commands, command_queue) = mpsc::channel(16);
        tasks.spawn_plain(
            "pipeline",
            pipeline.run(observed, events, command_queue, stop.clone()),
        );
        tasks.spawn_plain(
            "problem log",
            problem_log::follow(view.clone(), server.streams().clone(), stop.clone()),
        );
        let xds_certificate = serve_xds(settings, &server, &mut tasks, stop, &mut facts).await?;
        // Before any Envoy: what cannot listen must not leave one behind.
        let api_listeners = bind_api(settings, &mut facts).await?;
        let envoys = envoys::start(settings, &mut facts).await?;
        if !envoys.is_empty() {
            let watch = shared_ports::watch(
                envoys.clone(),
                settings.bind_addr,
                view.clone(),
                observations.clone(),
                stop.clone(),
            );
            tasks.spawn_plain("shared ports", watch);
        }
        if let (Some(client), Some(prefix)) = (&consul, &settings.status_prefix) {
            let keys = StatusKeys {
                client: client.clone(),
                prefix: prefix.clone(),
                reads_documents: settings.kv_prefix.is_some(),
                node: settings.node.clone(),
                version: env!("CARGO_PKG_VERSION"),
                view: view.clone(),
                streams: server.streams().clone(),
                observations,
            };
            tasks.spawn_plain("status keys", keys.run(wanted_texts, stop.clone()));
        }
        let (readings, of_xds) = (handles.readings, xds_certificate.clone());
        let last_reload = Arc::new(LastReload::default());
        let of_reload = last_reload.clone();
        let refresh = handles.refresh;
        let of_api = refresh.clone();
        let api = admin::Api {
            node: settings.node.as_str().into(),
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: SystemTime::now(),
            view: view.clone(),
            streams: server.streams().clone(),
            envoys: settings
                .gateways
                .iter()
                .cloned()
                .zip(envoys.iter().cloned())
                .collect(),
            wanted: wishes,
            readings: Arc::new(move || {
                let of_xds = of_xds.as_ref().map(|certificate| certificate.reading());
                let own = of_xds.into_iter().chain(of_reload.reading());
                readings.read().into_iter().chain(own).collect()
            }),
            refresh: Arc::new(move || of_api.all()),
            recorder,
        };
        for (task, listener) in api_listeners {
            tasks.spawn_plain(task, listener.serve(api.clone(), stop.clone()));
        }
        Ok(Self {
            tasks,
            view,
            envoys,
            xds_certificate,
            last_reload,
            refresh,
            commands,
            consul,
            facts,
        })
    }

    fn facts(&self, settings: &Settings) -> Vec<(&'static str, String)> {
        let mut facts = vec![
            ("Version", env!("CARGO_PKG_VERSION").to_owned()),
            ("Node", settings.node.clone()),
            ("Gateways", settings.gateways.join(", ")),
            ("Bind Addr", settings.bind_addr.to_string()),
            ("Data Dir", settings.data_dir.display().to_string()),
            ("Log Level", settings.log_level.to_uppercase()),
        ];
        facts.extend(self.facts.iter().cloned());
        facts
    }

    async fn serve(
        &mut self,
        flags: &Flags,
        settings: &mut Settings,
        level: &LevelHandle,
        signals: &mut Signals,
        service_manager: &ServiceManager,
        stop: &CancellationToken,
    ) -> anyhow::Result<ExitCode> {
        let mut is_ready = false;
        loop {
            tokio::select! {
                error = self.tasks.failed(stop) => {
                    tracing::error!("{error:#}");
                    return Err(error);
                }
                changed = self.view.changed() => {
                    let ready = changed.is_ok()
                        && self.view.borrow_and_update().gateways.iter().all(|gateway| gateway.published_at.is_some());
                    if ready && !is_ready {
                        is_ready = true;
                        tracing::info!("ready");
                        service_manager.ready("serving");
                    }
                }
                signal = signals.next() => match signal {
                    SignalEvent::Reload => {
                        // Before the start is done there is nothing to take back: the manager waits for READY still.
                        if is_ready {
                            service_manager.reloading();
                        }
                        if !self.reload_unless_told_to_stop(flags, settings, level, signals).await {
                            tracing::info!("told to stop");
                            return Ok(ExitCode::SUCCESS);
                        }
                        if is_ready {
                            service_manager.ready("serving");
                        }
                    }
                    SignalEvent::Terminate => {
                        tracing::info!("told to stop");
                        return Ok(ExitCode::SUCCESS);
                    }
                    SignalEvent::Abort => return Ok(ExitCode::SUCCESS),
                }
            }
        }
    }

    /// Files are read, and a file system may hang: the agent stops all the same. False: it is to.
    async fn reload_unless_told_to_stop(
        &self,
        flags: &Flags,
        settings: &mut Settings,
        level: &LevelHandle,
        signals: &mut Signals,
    ) -> bool {
        let mut again = true;
        while std::mem::take(&mut again) {
            let reload = self.reload(flags, settings, level);
            tokio::pin!(reload);
            loop {
                tokio::select! {
                    biased;
                    () = &mut reload => break,
                    signal = signals.next() => match signal {
                        // What was read may be older.
                        SignalEvent::Reload => again = true,
                        SignalEvent::Terminate | SignalEvent::Abort => return false,
                    }
                }
            }
        }
        true
    }

    async fn reload(&self, flags: &Flags, settings: &mut Settings, level: &LevelHandle) {
        self.refresh.log_in();
        let flags = flags.clone();
        let mut after = match blocking(move || load(&flags)).await {
            Ok(after) => after,
            Err(error) => {
                tracing::error!(%error, "reload: the settings are not usable, the old ones stay");
                self.last_reload.unusable(&error);
                if let SettingsError::Invalid(problems) = &error {
                    for (problem, _) in problems {
                        tracing::error!("{problem}");
                    }
                }
                return;
            }
        };
        if after.gateways.is_empty() {
            after.gateways.clone_from(&settings.gateways);
        }
        if let (Some(block), Some(certificate)) = (after.xds.tcp.clone(), self.xds_certificate.clone())
            && let Err(error) = blocking(move || certificate.take_up(&block)).await
        {
            tracing::error!(
                "reload: {error:#}; the old certificate and clients of the xDS port stay until the files fit"
            );
        }
        let restart = reload::needs_restart(settings, &after);
        reload::keep_opt_in(settings, &mut after);
        // The agent goes on listening where it did, whatever the settings say of that now.
        after.permissions.keep_own(&settings.permissions);
        if after.permissions != settings.permissions {
            let (done, taken_up) = oneshot::channel();
            let permit = Command::Permit(Box::new(after.permissions.clone()), done);
            // A pipeline that is gone ends the agent by itself.
            if self.commands.send(permit).await.is_ok() && taken_up.await.is_ok() {
                tracing::info!("reload: documents from KV are held to the new kv_documents");
                settings.permissions = after.permissions.clone();
            }
        }
        match after
            .log_level
            .parse::<LogLevel>()
            .map(|parsed| level.set(parsed))
        {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "reload: the log level cannot be set"),
            Err(error) => tracing::error!(%error, "reload: the old log level stays"),
        }
        if restart.is_empty() {
            tracing::info!("settings reloaded");
        } else {
            let and_envoy = match reload::needs_envoy_restart(settings, &after) {
                true => {
                    ", and what Envoy is started with after one of Envoy then: `portreeve envoy restart`, or its own unit's"
                }
                false => "",
            };
            tracing::warn!(
                settings = restart.join(", "),
                "settings reloaded; these take effect after a restart of the agent{and_envoy}"
            );
        }
        self.last_reload.taken_up(restart);
        settings.log_level = after.log_level;
    }

    /// Envoy first, while it can still be told things; then sources, streams and API. A second signal cuts it short: false.
    async fn stop(&mut self, mode: StopMode, signals: &mut Signals, stop: &CancellationToken) -> bool {
        let envoys = std::mem::take(&mut self.envoys);
        // All at once: what stops the agent waits no longer for several than for one.
        let all = |mode| join_all(envoys.iter().map(move |envoy| envoy.stop(mode)));
        // An Envoy that is to be left is left, however great the hurry.
        let hurry = match mode {
            StopMode::LeaveRunning => StopMode::LeaveRunning,
            StopMode::Drain | StopMode::Now => StopMode::Now,
        };
        let mut in_order = tokio::select! {
            // Two signals may have come together: the Envoys are told what the first one means before.
            biased;
            _ = all(mode) => true,
            () = signals.told_to_leave() => {
                all(hurry).await;
                false
            }
        };
        stop.cancel();
        tokio::select! {
            biased;
            finished = tokio::time::timeout(STOP_LIMIT, self.tasks.finish()) => if finished.is_err() {
                tracing::warn!(limit = ?STOP_LIMIT, "some tasks did not stop in time");
            },
            () = signals.told_to_leave() => in_order = false,
        }
        // Last, because what ended before used it.
        if let Some(client) = &self.consul {
            client.log_out().await;
        }
        tracing::info!("stopped");
        in_order
    }
}

fn pipeline_settings(settings: &Settings, sources: &Sources) -> PipelineSettings {
    let same_node: Arc<[Arc<str>]> = settings.gateways_of_this_node().into();
    PipelineSettings {
        gateways: settings
            .gateways
            .iter()
            .map(|name| GatewaySettings {
                name: name.clone(),
                compile: translate::Settings {
                    bind_address: settings.bind_addr,
                    hold_pending: true,
                    same_node: same_node.clone(),
                },
            })
            .collect(),
        permissions: settings.permissions.clone(),
        limits: Limits::default(),
        document_sources: sources.document_sources.clone(),
        ownerless: sources.ownerless.clone(),
    }
}

async fn serve_xds(
    settings: &Settings,
    server: &xds::Server,
    tasks: &mut Tasks,
    stop: &CancellationToken,
    facts: &mut Vec<(&'static str, String)>,
) -> anyhow::Result<Option<Arc<XdsCertificate>>> {
    let all = xds::GatewayAccess::Only(settings.gateways.iter().cloned().collect());
    let any = settings.xds.uids.iter().map(|uid| (*uid, all.clone()));
    let held = settings.xds.clients.iter();
    let held = held.map(|(uid, gateways)| (*uid, xds::GatewayAccess::Only(gateways.clone())));
    let uids: BTreeMap<u32, _> = any.chain(held).collect();
    other_users::warn(&settings.xds);
    let unix = xds::UnixSettings {
        path: settings.xds.socket.clone(),
        uids,
        gateways: all,
    };
    let listener = unix.bind().await.context("the xDS socket cannot be opened")?;
    facts.push(("xDS Socket", settings.xds.socket.display().to_string()));
    let (socket_server, socket_stop) = (server.clone(), stop.clone());
    tasks.spawn_plain("xds socket", async move {
        socket_server.serve(listener, socket_stop).await;
    });
    let Some(block) = &settings.xds.tcp else {
        return Ok(None);
    };
    let (certificate, tls) = XdsCertificate::read(block)?;
    let listener = xds::TcpSettings {
        address: block.address,
        tls,
    }
    .bind()
    .await
    .context("the xDS port cannot be opened")?;
    facts.push(("xDS Address", block.address.to_string()));
    let (tcp_server, tcp_stop) = (server.clone(), stop.clone());
    tasks.spawn_plain("xds port", async move {
        tcp_server.serve(listener, tcp_stop).await;
    });
    let certificate = Arc::new(certificate);
    tasks.spawn_plain("xds certificate", certificate.clone().follow(stop.clone()));
    Ok(Some(certificate))
}

/// By the name of the task that is to serve it.
async fn bind_api(
    settings: &Settings,
    facts: &mut Vec<(&'static str, String)>,
) -> anyhow::Result<Vec<(&'static str, admin::Listener)>> {
    facts.push(("API Socket", settings.api.socket.display().to_string()));
    let mut listeners = vec![("api", admin::Listener::unix(&settings.api.socket).await?)];
    if let Some(address) = settings.api.address {
        facts.push((
            "Ready and Metrics",
            format!("http://{address}/ready, http://{address}/metrics"),
        ));
        listeners.push(("ready and metrics", admin::Listener::tcp(address).await?));
    }
    Ok(listeners)
}
