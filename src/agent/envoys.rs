//! The Envoys that this agent supervises, and those that a former one left behind.

use std::sync::Arc;

use anyhow::Context as _;

use super::settings::Settings;
use crate::envoy::bootstrap::{Bootstrap, XdsEndpoint, XdsVariant};
use crate::envoy_process;

pub(super) async fn start(
    settings: &Settings,
    facts: &mut Vec<(&'static str, String)>,
) -> anyhow::Result<Vec<envoy_process::Handle>> {
    let mut envoys = Vec::new();
    warn_of_strays(settings);
    if !settings.envoy.supervise {
        return Ok(envoys);
    }
    let connections = u64::from(settings.envoy.max_downstream_connections);
    if let Some(warning) = envoy_process::open_files_warning(connections) {
        tracing::warn!(fix = warning.fix, "{}", warning.message);
    }
    for gateway in &settings.gateways {
        let envoy = settings_of(settings, gateway);
        let directory = envoy.runtime_directory.display().to_string();
        let handle = envoy_process::start_or_adopt(envoy)
            .await
            .with_context(|| format!("the Envoy of gateway {gateway:?} cannot be started"))?;
        facts.push(("Envoy", format!("supervised, files in {directory}")));
        envoys.push(handle);
    }
    Ok(envoys)
}

/// A gateway taken out of the settings leaves its Envoy running where that outlives the agent, and so does `supervise`.
fn warn_of_strays(settings: &Settings) {
    let supervised: &[Arc<str>] = match settings.envoy.supervise {
        true => &settings.gateways,
        false => &[],
    };
    let directory = settings.data_dir.join("envoy");
    for stray in envoy_process::strays(&directory, supervised) {
        if settings.gateways.iter().any(|served| **served == *stray.gateway) {
            let (gateway, pid, runtime) = (&stray.gateway, stray.pid, directory.join(&stray.gateway));
            tracing::warn!(
                %gateway,
                pid,
                fix = format!(
                    "set `envoy {{ supervise = true }}` again, or end that Envoy before another is started: \
                     `portreeve envoy drain -gateway {gateway} -runtime-dir {}`, then `kill {pid}`",
                    runtime.display()
                ),
                "an Envoy that a former agent supervised is still running: nobody starts it again when it ends, and another \
                 one would share its ports"
            );
            continue;
        }
        tracing::warn!(
            gateway = %stray.gateway,
            pid = stray.pid,
            fix = "serve the gateway again, or end that Envoy (`kill` and its pid; `portreeve envoy drain -gateway` and its name before)",
            "an Envoy of a gateway that this agent does not serve is still running, with what it was told last"
        );
    }
}

/// The Envoy of one gateway, as supervised by this agent.
fn settings_of(settings: &Settings, gateway: &str) -> envoy_process::Settings {
    let runtime = settings.data_dir.join("envoy").join(gateway);
    let mut bootstrap = Bootstrap::new(
        &format!("{}/{gateway}", settings.node),
        gateway,
        XdsEndpoint::Unix(settings.xds.socket.clone()),
        &runtime.join("admin.sock"),
    );
    bootstrap.max_downstream_connections = u64::from(settings.envoy.max_downstream_connections);
    if settings.envoy.state_of_the_world {
        bootstrap.variant = XdsVariant::StateOfTheWorld;
    }
    let mut envoy = envoy_process::Settings::new(runtime, bootstrap);
    envoy.binary.clone_from(&settings.envoy.binary);
    envoy.concurrency = settings.envoy.concurrency;
    envoy.log_level.clone_from(&settings.envoy.log_level);
    envoy.drain_time = settings.envoy.drain_time;
    envoy
}
