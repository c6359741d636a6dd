//! Asks a running agent over its unix socket.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::failure::Failure;
use crate::agent::data_directory::{dev_data_directory, refuse_others};

/// A planned restart of Envoy waits for the new one to serve: a minute, by default.
const TIMEOUT: Duration = Duration::from_secs(90);

/// Which agent to ask.
#[derive(Clone, Debug, clap::Args)]
pub struct ApiArguments {
    /// The unix socket of the agent's API; that of the agent on this machine by default.
    #[arg(
        long,
        value_name = "PATH",
        env = "PORTREEVE_API_SOCKET",
        hide_env_values = true
    )]
    pub api_socket: Option<PathBuf>,
}

impl ApiArguments {
    /// The named one, or the first that is there: an installed agent's, then one under -dev.
    fn socket(&self) -> PathBuf {
        let installed = PathBuf::from(INSTALLED);
        let directory = dev_data_directory();
        let dev = directory.join("api.sock");
        // Whoever made that directory could have put a socket of theirs there.
        let is_ours = refuse_others(&directory).is_ok();
        match &self.api_socket {
            Some(socket) => socket.clone(),
            None if !installed.exists() && is_ours && dev.exists() => dev,
            None => installed,
        }
    }
}

/// In the default data directory.
const INSTALLED: &str = "/opt/portreeve/data/api.sock";

pub struct ApiClient {
    http: reqwest::Client,
    socket: PathBuf,
}

/// A query string; `url` does the escaping.
pub type Query<'a> = &'a [(&'a str, &'a str)];

impl ApiClient {
    pub fn new(arguments: &ApiArguments) -> anyhow::Result<Self> {
        let socket = arguments.socket();
        let http = reqwest::Client::builder()
            .unix_socket(socket.as_path())
            .no_proxy()
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| Failure::new("cannot set up the API's client").because(error))?;
        Ok(Self { http, socket })
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str, query: Query<'_>) -> anyhow::Result<T> {
        self.call(Method::GET, path, query, None).await
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        query: Query<'_>,
        body: Option<Value>,
    ) -> anyhow::Result<T> {
        self.call(Method::POST, path, query, body).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: Query<'_>,
        body: Option<Value>,
    ) -> anyhow::Result<T> {
        let mut request = self
            .http
            .request(method, format!("http://agent{path}"))
            .query(query);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| self.unreachable(error))?;
        if !status.is_success() {
            let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let said = |field: &str| answer["error"][field].as_str().map(str::to_owned);
            let message =
                said("message").unwrap_or_else(|| format!("the agent answered {path} with {status}"));
            let failure = Failure::new(message);
            return Err(match said("fix") {
                Some(fix) => failure.fix(fix).into(),
                None => failure.into(),
            });
        }
        let answer = serde_json::from_slice(&bytes).map_err(|error| {
            Failure::new(format!("the agent's answer to {path} cannot be read"))
                .because(error)
                .fix("use the portreeve program of the agent's version")
        })?;
        Ok(answer)
    }

    fn unreachable(&self, error: reqwest::Error) -> Failure {
        let failure = Failure::new(format!("no agent answers at {}", self.socket.display()));
        if error.is_timeout() {
            return failure.because(error).fix("look at the agent's log");
        }
        failure
            .because(innermost(&error))
            .fix("start the agent, or name its socket with -api-socket or PORTREEVE_API_SOCKET")
    }
}

fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
