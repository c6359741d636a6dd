//! Two gateways, an agent for each, and one prefix of documents: each agent reads what its own gateway uses.

use hyper::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::stack::{Options, SOON, Stack, until};
use crate::support::client::{Client, Request};
use crate::support::nomad::NomadContract;
use crate::support::pki::{Ca, parse_certificates};
use crate::support::wait_for;

/// An agent with the identity of a job, which may read that job's variable and lets documents use it and no other.
struct Job {
    stack: Stack,
    nomad: NomadContract,
    variable: String,
    authority: Ca,
    _directory: TempDir,
}

impl Job {
    async fn start(gateway: &'static str, arguments: Vec<&'static str>, consul: Option<String>) -> Self {
        let nomad = NomadContract::start("identity").await;
        let directory = tempfile::tempdir().unwrap();
        let token = directory.path().join("nomad_token");
        std::fs::write(&token, "identity").unwrap();
        let variable = format!("nomad/jobs/{gateway}");
        let stack = Stack::start(Options {
            arguments,
            consul_block: consul.map(|address| format!("address = {address:?}")),
            kv_documents: Some(format!(
                "allow_loopback = true\n  nomad_variables = [{variable:?}]"
            )),
            more: format!(
                "nomad {{\n  address    = \"unix://{}\"\n  token_file = {token:?}\n}}\n",
                nomad.socket.display()
            ),
            ..Options::default()
        })
        .await;
        Self {
            stack,
            nomad,
            variable,
            authority: Ca::new(gateway),
            _directory: directory,
        }
    }

    /// A new pair in the job's variable; returns the certificate.
    fn put_certificate(&self, host: &str) -> Vec<u8> {
        let leaf = self.authority.issue(&[host]);
        let items = json!({ "certificate": leaf.certificate, "private_key": leaf.key });
        self.nomad.set_variable("default", &self.variable, Some(items));
        parse_certificates(&leaf.certificate)[0].to_vec()
    }

    async fn shows(&self, host: &str, certificate: &[u8], what: &str) {
        let client = Client::https(self.stack.https, &self.authority.certificate);
        until(&client, &Request::get(host, "/"), what, |reply| {
            reply.certificate.as_deref() == Some(certificate) && reply.status == 200
        })
        .await;
    }

    async fn said(&self) -> Vec<Value> {
        let answer = self.stack.agent.api(Method::GET, "/v1/diagnostics", "").await;
        let all: Value = answer.unwrap().ok().unwrap().json();
        all.as_array().unwrap().clone()
    }

    async fn until_refused(&self, what: &str) -> Value {
        wait_for(what, SOON, async || {
            let said = self.said().await;
            let refused = said.iter().find(|said| said["code"] == "not-allowed");
            refused.cloned().ok_or_else(|| anyhow::anyhow!("{said:?}"))
        })
        .await
    }

    async fn until_nothing_is_said(&self) {
        wait_for("an agent with nothing to say", SOON, async || {
            let said = self.said().await;
            anyhow::ensure!(said.is_empty(), "{said:?}");
            Ok(())
        })
        .await;
    }

    /// Which variables Nomad was asked for.
    fn asked(&self) -> Vec<String> {
        let asked = self.nomad.asked().into_iter();
        let mut variables: Vec<String> = asked
            .filter_map(|path| Some(path.strip_prefix("/v1/var/")?.split('?').next()?.to_owned()))
            .collect();
        variables.sort();
        variables.dedup();
        variables
    }
}

fn document(gateway: &str, port: u16, certificates: &str, variable: &str) -> String {
    format!(
        r#"
gateway "{gateway}" {{
  listener "secure" {{
    port     = {port}
    protocol = "https"
    tls {{ certificates = [{certificates}] }}
  }}
}}

certificate "{gateway}" {{
  nomad_variable {{ path = "{variable}" }}
}}

http_route "{gateway}" {{
  gateways  = ["{gateway}"]
  hostnames = ["{gateway}.example.com"]

  rule "all" {{
    direct_response {{
      status = 200
    }}
  }}
}}
"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn each_agent_judges_and_reads_what_its_own_gateway_uses() {
    let mut edge = Job::start("edge", Vec::new(), None).await;
    let consul = Some(edge.stack.consul.address());
    let inner = Job::start("inner", vec!["-gateway=inner", "-node=node-2"], consul).await;
    let first = edge.put_certificate("edge.example.com");
    let inners = inner.put_certificate("inner.example.com");
    let of_edge =
        |certificates: &str, variable: &str| document("edge", edge.stack.https, certificates, variable);
    let own = of_edge("\"edge\"", "nomad/jobs/edge");
    let of_inner = document("inner", inner.stack.https, "\"inner\"", "nomad/jobs/inner");
    let put = async |name: &str, text: &str| {
        let key = format!("portreeve/config/{name}");
        edge.stack.consul.put(&key, text.to_owned()).await;
    };
    put("inner", &of_inner).await;
    put("edge", &own).await;
    edge.shows("edge.example.com", &first, "the certificate").await;
    inner.shows("inner.example.com", &inners, "the other's").await;
    edge.until_nothing_is_said().await;
    inner.until_nothing_is_said().await;
    for agent in [&edge, &inner] {
        let metrics = agent.stack.agent.api(Method::GET, "/metrics", "").await;
        let metrics = metrics.unwrap().text();
        assert!(
            metrics.contains("portreeve_documents{phase=\"in_service\"} 2"),
            "{metrics}"
        );
    }

    // Beforehand `plan` says what this agent will: nothing of the other's, and its own.
    let files = tempfile::tempdir().unwrap();
    let plan = async |name: &str, text: &str| {
        let file = files.path().join(format!("{name}.hcl"));
        std::fs::write(&file, text).unwrap();
        let arguments = [
            "plan".to_owned(),
            "-agent".to_owned(),
            file.display().to_string(),
            format!("-consul-address={}", edge.stack.consul.address()),
            format!("-api-socket={}", edge.stack.agent.api.display()),
        ];
        let directory = files.path().to_owned();
        let output = tokio::task::spawn_blocking(move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            crate::support::agent::run(&directory, &arguments)
        });
        String::from_utf8_lossy(&output.await.unwrap().stdout).into_owned()
    };
    let said = plan("inner", &(of_inner.clone() + "# edited\n")).await;
    assert!(
        said.contains("1 to update") && !said.contains("not-allowed"),
        "{said}"
    );
    let stolen = of_edge("\"edge\"", "nomad/jobs/inner");
    let said = plan("edge", &stolen).await;
    assert!(said.contains("error[not-allowed]"), "{said}");

    // A listener that names the other's certificate goes on without it, and says where that is asked for.
    put("edge", &of_edge("\"edge\", \"inner\"", "nomad/jobs/edge")).await;
    let refused = edge.until_refused("the other's certificate to be refused").await;
    let text = refused.to_string();
    for part in [
        "portreeve/config/inner",
        "nomad/jobs/inner",
        "goes on without it",
        "nomad_variables",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    edge.shows("edge.example.com", &first, "its own").await;
    put("edge", &own).await;
    edge.until_nothing_is_said().await;

    // An edit that asks for what may not be used is not taken: the last good version stays, and is followed, over a restart too.
    put("edge", &stolen).await;
    let refused = edge.until_refused("the edit to be refused").await;
    assert!(
        refused.to_string().contains("last good version stays"),
        "{refused}"
    );
    let second = edge.put_certificate("edge.example.com");
    edge.shows("edge.example.com", &second, "the next one").await;
    edge.stack.agent.kill();
    let start = edge.stack.agent.process.log_length();
    edge.stack.agent.process.start_again();
    let log = &mut edge.stack.agent.process;
    log.wait_for_log_after(start, "Envoy connected", SOON).await;
    let third = edge.put_certificate("edge.example.com");
    edge.shows("edge.example.com", &third, "the one after the restart")
        .await;
    edge.until_refused("the edit to be refused again").await;
    inner.until_nothing_is_said().await;

    assert_eq!(edge.asked(), ["nomad/jobs/edge"]);
    assert_eq!(inner.asked(), ["nomad/jobs/inner"]);
}
