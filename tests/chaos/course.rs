//! The course of one fault: a gateway under load, what is done to it, and the account at the end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hyper::Method;
use hyper::body::Bytes;
use serde_json::Value;

use crate::bars::Bars;
use crate::epochs::{self, Epochs};
use crate::loads::{Loads, WithoutEnvoy};
use crate::observer::Observer;
use crate::summary::{Figure, Row, least_requests, rate};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::line::{Line, Trouble};
use crate::support::network::FarNetwork;
use crate::support::stack::{self, Options, SOON, Stack, secure};
use crate::support::{program, wait_for};

/// After its end a fault may not last for ever either: a machine with much beside may be this slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// That a silent connection is none takes two pings of 20 s and a try to connect, before a word is said of it.
const UNTIL_SILENCE_IS_TOLD: Duration = Duration::from_secs(90);

const REST: Duration = Duration::from_secs(30);

/// A level that is so much higher is the same.
const NOISE_KIB: u64 = 2 * 1024;

pub struct Course {
    fault: &'static str,
    pub stack: Stack,
    pub line: Arc<Line>,
    /// The same to Vault, where there is one.
    vault_line: Option<Arc<Line>>,
    pub one: Backend,
    pub observer: Observer,
    load: Option<Loads>,
    begun: Instant,
    memory_before: u64,
    log_start: usize,
    epoch: u32,
    /// With Vault: the port of one more listener, while there is one.
    pub more: Option<u16>,
    /// With Vault: a client that trusts it, and what it was served before it asked for something else.
    https: Option<Client>,
    before: Option<Bytes>,
    epochs: Epochs,
    /// How many certificates were asked for, and since when the newest is waited for.
    asked: u32,
    asked_at: Option<Instant>,
    converge: Option<Duration>,
    without_envoy: Vec<WithoutEnvoy>,
    past_the_line: u64,
    once: u64,
    figures: Vec<Figure>,
}

/// The document under change: what `rule` holds decides who answers, and the epoch says which of them it was.
pub fn shop(epoch: u32, rule: &str) -> String {
    format!(
        "http_route \"shop\" {{\n  gateways  = [\"edge\"]\n  hostnames = [\"shop.example.com\"]\n\n  response_headers \
         {{\n    set = {{ \"x-epoch\" = \"{epoch}\" }}\n  }}\n\n{rule}\n}}\n"
    )
}

pub const PLAIN_RULE: &str = "  rule \"all\" {\n    backend \"consul\" \"orders\" {}\n  }";

impl Course {
    pub async fn begin(fault: &'static str) -> Course {
        Course::begin_with(fault, Options::default()).await
    }

    /// Consul over TLS: all polls share a few connections of HTTP/2.
    pub async fn begin_https(fault: &'static str) -> Course {
        let options = Options {
            line: Some(Line::start_tls().await),
            ..Options::default()
        };
        Course::begin_with(fault, options).await
    }

    /// Consul on a disk, one service, one route; with Vault also a certificate, and the load by https.
    pub async fn begin_with(fault: &'static str, options: Options) -> Course {
        let rate = rate(options.vault);
        Course::begin_at(fault, options, rate).await
    }

    /// The same with so many requests a second on new connections, and the line that is given, if one is.
    pub async fn begin_at(fault: &'static str, options: Options, rate: u32) -> Course {
        let line = match options.line.clone() {
            Some(line) => line,
            None => Line::start().await,
        };
        let (has_vault, vault_line) = (options.vault, options.vault_line.clone());
        let stack = Stack::start(Options {
            line: Some(line.clone()),
            ..options
        })
        .await;
        let one = Backend::start("one").await;
        stack.register("orders", &one).await;
        if has_vault {
            stack
                .put("www", &secure("backend \"consul\" \"orders\" {}"))
                .await;
        } else {
            stack.put("gateway", stack::GATEWAY).await;
        }
        stack.put("shop", &shop(0, PLAIN_RULE)).await;
        let request = Request::get("shop.example.com", "/");
        stack
            .until(&request, "the route", |reply| reply.status == 200)
            .await;
        let client = if has_vault {
            let secure = Request::get("www.example.com", "/");
            let client = stack.https_client().await;
            stack::until(&client, &secure, "https", |reply| reply.status == 200).await;
            Some((client, secure))
        } else {
            None
        };
        // Settled and on disk.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let observer = Observer::of(stack.agent.process.pid());
        line.busiest_second();
        if let Some(line) = &vault_line {
            line.busiest_second();
        }
        let begun = Instant::now();
        let https = client.as_ref().map(|(client, _)| client.clone());
        let load = match client {
            Some((client, secure)) => Loads::start(rate, client.timeout(PATIENCE), secure),
            None => Loads::start(rate, stack.client().timeout(PATIENCE), request),
        };
        let mut course = Course {
            fault,
            memory_before: observer.memory_kib(),
            epochs: Epochs::watch(stack.client()),
            log_start: stack.agent.process.log_length(),
            stack,
            line,
            vault_line,
            one,
            observer,
            load: Some(load),
            begun,
            epoch: 0,
            more: None,
            https,
            before: None,
            asked: 0,
            asked_at: None,
            converge: None,
            without_envoy: Vec::new(),
            past_the_line: 0,
            once: 0,
            figures: Vec::new(),
        };
        course.lasts(500).await;
        course
    }

    /// Time in which the fault goes on: in the long form several times as much.
    pub async fn lasts(&mut self, milliseconds: u64) {
        let times = if crate::summary::is_long() { 4 } else { 1 };
        tokio::time::sleep(Duration::from_millis(milliseconds * times)).await;
    }

    /// How often something is done again.
    pub fn rounds(&self, short: u32) -> u32 {
        if crate::summary::is_long() {
            short * 5
        } else {
            short
        }
    }

    /// Writes a change past the bad line, for the agent to find when it can.
    pub async fn change(&mut self, rule: &str) -> u32 {
        let text = self.next(rule);
        self.stack.put("shop", &text).await;
        self.epoch
    }

    /// The next change, to be written at once.
    pub fn next(&mut self, rule: &str) -> String {
        self.epoch += 1;
        self.epochs.written(self.epoch);
        shop(self.epoch, rule)
    }

    /// Writes a change on the other side of a link, where Consul is.
    pub fn change_there(&mut self, rule: &str, network: &FarNetwork) {
        let text = self.next(rule);
        let consul = program("consul").display().to_string();
        let address = format!("-http-addr=http://127.0.0.1:{}", self.stack.consul.port);
        network.run(&consul, &["kv", "put", &address, "portreeve/config/shop", &text]);
    }

    /// Of which change the answers are now.
    pub async fn served_epoch(&self) -> Option<u32> {
        let reply = self.stack.client().send(&epochs::request()).await;
        epochs::epoch_of(&reply.expect("an answer"))
    }

    /// The dependency answers again, from now on: measures until the newest change is served.
    pub async fn recovers(&mut self) {
        if !self.epochs.is_due() {
            self.change(PLAIN_RULE).await;
        }
        let since = Instant::now();
        self.is_served().await;
        self.converged_since(since);
    }

    fn converged_since(&mut self, since: Instant) {
        self.converged(since.elapsed());
    }

    /// It took so long until requests met the new state.
    pub fn converged(&mut self, converge: Duration) {
        self.converge = Some(self.converge.map_or(converge, |before| before.max(converge)));
    }

    /// The account that is still open.
    pub fn load(&self) -> &Loads {
        self.load.as_ref().expect("an open account")
    }

    /// How many requests the backend of this name answered.
    pub fn answers_of(&self, backend: &str) -> u64 {
        self.load().answered_by(backend)
    }

    /// Waits until the newest change is served.
    pub async fn is_served(&self) {
        let request = epochs::request();
        let client = self.stack.client();
        wait_for("the newest change", PATIENCE, async || {
            let reply = client
                .send(&request)
                .await
                .map_err(|failure| anyhow::anyhow!("{failure}"))?;
            let epoch = epochs::epoch_of(&reply);
            anyhow::ensure!(
                reply.status == 200 && epoch == Some(self.epoch),
                "{} of epoch {epoch:?}, expected {}",
                reply.status,
                self.epoch
            );
            Ok(())
        })
        .await;
    }

    pub fn trouble(&self, trouble: Trouble) {
        self.line.go(trouble);
    }

    /// Starts the agent that was killed again, and waits until its socket is bound.
    pub async fn agent_returns(&mut self) {
        self.stack.agent.process.start_again();
        self.agent_is_back().await;
    }

    /// Waits until the agent's socket is bound.
    pub async fn agent_is_back(&mut self) {
        self.observer.follow(self.stack.agent.process.pid());
        let agent = &self.stack.agent;
        wait_for("the agent's API", PATIENCE, async || {
            agent.api(Method::GET, "/v1/status", "").await
        })
        .await;
    }

    /// Asks for a certificate of other parameters than before, by its document.
    pub async fn ask_for_another_certificate(&mut self) {
        self.next_certificate();
        let text = self.www();
        self.before = self.certificate().await;
        self.asked_at.get_or_insert_with(Instant::now);
        self.stack.put("www", &text).await;
    }

    /// From now on the document asks for a certificate of other parameters.
    pub fn next_certificate(&mut self) {
        self.asked += 1;
    }

    /// The document with https: a gateway, its certificate and a route.
    pub fn www(&self) -> String {
        let hours = 24 + self.asked % 48;
        let text = secure("backend \"consul\" \"orders\" {}").replace(
            "common_name = \"www.example.com\"\n",
            &format!("common_name = \"www.example.com\"\n    ttl         = \"{hours}h\"\n"),
        );
        let Some(port) = self.more else { return text };
        let web = "  listener \"web\" {";
        text.replace(
            web,
            &format!("  listener \"more\" {{\n    port = {port}\n  }}\n\n{web}"),
        )
    }

    /// From now on the document has one more listener, or no longer.
    pub fn add_or_remove_listener(&mut self, port: u16) {
        self.more = match self.more {
            None => Some(port),
            Some(_) => None,
        };
    }

    /// What was served before another certificate was asked for.
    pub async fn serves_the_former_certificate(&self) {
        assert!(self.before.is_some());
        assert_eq!(self.certificate().await, self.before);
    }

    /// Vault answers again, from now on: measures until the certificate asked for is served.
    pub async fn certificate_arrives(&mut self) {
        let since = Instant::now();
        wait_for("another certificate", PATIENCE, async || {
            anyhow::ensure!(self.certificate().await != self.before, "still the old one");
            Ok(())
        })
        .await;
        if let Some(asked_at) = self.asked_at.take() {
            self.epochs.note(asked_at.elapsed());
        }
        self.converged_since(since);
    }

    /// What https serves now.
    pub async fn certificate(&self) -> Option<Bytes> {
        let client = self.https.as_ref().expect("a gateway with https");
        let reply = client.send(&Request::get("www.example.com", "/")).await;
        reply.expect("an answer by https").certificate
    }

    /// SIGKILL for Envoy; waits for the next one.
    pub async fn kill_envoy(&mut self) {
        let before = self.envoy_told().await.expect("an Envoy");
        let killed = self.begun.elapsed();
        stack::kill_and_wait(before).await;
        let gone = self.begun.elapsed();
        let (client, request) = (self.stack.client(), Request::get("shop.example.com", "/"));
        wait_for("the next Envoy", PATIENCE, async || {
            let reply = client
                .send(&request)
                .await
                .map_err(|failure| anyhow::anyhow!("{failure}"))?;
            anyhow::ensure!(reply.status == 200 && self.envoy_told().await? != before);
            Ok(())
        })
        .await;
        if let Some(client) = &self.https {
            let secure = Request::get("www.example.com", "/");
            stack::until(client, &secure, "https of the next Envoy", |reply| {
                reply.status == 200
            })
            .await;
        }
        let open = self.begun.elapsed();
        self.without_envoy.push(WithoutEnvoy { killed, gone, open });
    }

    /// The supervised Envoy makes way for another.
    pub async fn restart_envoy(&self) {
        let before = self.envoy_told().await.expect("an Envoy");
        // Refused (409) while the one before last still drains. Each try looks through all processes: not fifty a second.
        wait_for("a planned restart", SOON * 3, async || {
            let agent = &self.stack.agent;
            let answer = agent.api(Method::POST, "/v1/envoy/restart", "").await?;
            if !answer.status.is_success() {
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            answer.ok()
        })
        .await;
        assert_ne!(self.envoy_told().await.expect("an Envoy"), before);
    }

    /// The pid of the supervised Envoy, as the agent tells it: its record may be older, where the disk is full.
    pub async fn envoy_told(&self) -> anyhow::Result<i32> {
        let answer = self.stack.agent.api(Method::GET, "/v1/status", "").await?;
        let status: Value = serde_json::from_str(&answer.text())?;
        let pid = status.pointer("/agent/envoys/0/pid").and_then(Value::as_i64);
        Ok(i32::try_from(
            pid.with_context(|| format!("no pid in {}", status["agent"]))?,
        )?)
    }

    /// Requests of its sources, as the agent counts them: the line does not see those that go past it.
    pub async fn requests_made(&self) -> f64 {
        let metrics = self.stack.agent.api(Method::GET, "/v1/metrics", "").await;
        let metrics = metrics.expect("the agent's metrics").text();
        let made = metrics.lines().filter_map(|line| {
            let (_, count) = line
                .strip_prefix("portreeve_source_requests_total{")?
                .rsplit_once(' ')?;
            count.parse::<f64>().ok()
        });
        made.sum()
    }

    /// One great change may cost so many requests, once.
    pub fn may_ask_once(&mut self, requests: u64) {
        // What came before is held to the bar of all.
        let before = self.line.busiest_second();
        assert!(
            before <= Bars::of(self.fault).consul,
            "{before} requests of Consul in one second"
        );
        self.past_the_line = self.past_the_line.max(before);
        self.once = requests;
    }

    /// So many requests a second went past the line.
    pub fn asked_past_the_line(&mut self, per_second: f64) {
        self.past_the_line = self.past_the_line.max(per_second.ceil() as u64);
    }

    /// Something of this fault alone took so long. The longest is told, and in the long form held to this bar.
    pub fn held_to(&mut self, name: &'static str, took: Duration, bar: Duration) {
        match self.figures.iter_mut().find(|figure| figure.name == name) {
            Some(figure) => figure.took = figure.took.max(took),
            None => self.figures.push(Figure { name, took, bar }),
        }
    }

    /// What status says of problems, as text.
    pub async fn status(&self) -> String {
        let answer = self.stack.agent.api(Method::GET, "/v1/status", "").await;
        answer.map(|answer| answer.text()).unwrap_or_default()
    }

    /// Waits until the agent's log says so, since the fault began.
    pub async fn log_says(&mut self, text: &str) {
        let start = self.log_start;
        self.stack
            .agent
            .process
            .wait_for_log_after(start, text, PATIENCE)
            .await;
    }

    /// Waits until one line of the agent's log has all of these, since the fault began. Called while it goes on, so that it is told
    /// in time to be of use.
    pub async fn is_told(&self, all: &[&str]) {
        self.is_told_since(self.log_start, all).await;
    }

    pub fn log_length(&self) -> usize {
        self.stack.agent.process.log_length()
    }

    /// The same, of what the log says after that much.
    pub async fn is_told_since(&self, start: usize, all: &[&str]) {
        self.is_told_within(PATIENCE, start, all).await;
    }

    /// The same, of a server that is there and silent.
    pub async fn silence_is_told_since(&self, start: usize, all: &[&str]) {
        self.is_told_within(UNTIL_SILENCE_IS_TOLD, start, all).await;
    }

    async fn is_told_within(&self, limit: Duration, start: usize, all: &[&str]) {
        let process = &self.stack.agent.process;
        wait_for(&format!("{all:?} in the agent's log"), limit, async || {
            let log = process.log();
            let since = log.get(start..).unwrap_or_default();
            let found = since
                .lines()
                .any(|line| all.iter().all(|part| line.contains(*part)));
            anyhow::ensure!(
                found,
                "it ends with {:?}",
                since.lines().last().unwrap_or_default()
            );
            Ok(())
        })
        .await;
    }

    /// Waits until status says so.
    pub async fn status_says(&self, text: &str) {
        wait_for(&format!("{text:?} in status"), SOON * 3, async || {
            let status = self.status().await;
            anyhow::ensure!(status.contains(text), "{status}");
            Ok(())
        })
        .await;
    }

    /// Sends on until there are enough requests, closes the account, and holds it to the bars.
    pub async fn end(mut self) {
        self.account().await.settle();
    }

    /// What is freed goes back to the system within ten seconds of rest. No longer than three times that: what is still held then
    /// is kept.
    async fn gives_memory_back(&self) {
        let slack = if crate::summary::is_long() {
            NOISE_KIB
        } else {
            Bars::of(self.fault).memory_kib
        };
        let begun = Instant::now();
        while self.observer.memory_kib() > self.memory_before + slack && begun.elapsed() < REST {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Sends on until there are enough requests, and closes the account.
    pub async fn account(&mut self) -> Row {
        if self.converge.is_none() {
            self.recovers().await;
        }
        let load = self.load.take().expect("an open account");
        while load.sent() < least_requests() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let accounts = load.finish(&self.without_envoy).await;
        // Before the agent rests: that is no part of the fault.
        let (cpu, busiest_cpu) = (self.observer.cpu(), self.observer.busiest_cpu());
        self.gives_memory_back().await;
        Row {
            fault: self.fault,
            accounts,
            figures: self.figures.clone(),
            converge: self.converge,
            stale: self.epochs.longest(),
            cpu,
            busiest_cpu,
            busiest_second: self.line.busiest_second().max(self.past_the_line),
            asked_once: self.once,
            vault_busiest_second: self.vault_line.as_ref().map(|line| line.busiest_second()),
            memory_before_kib: self.memory_before,
            memory_after_kib: self.observer.memory_kib(),
            told: told(&self.stack.agent.process.log()[self.log_start..]),
        }
    }
}

/// Warnings and errors, without their times, each kind of line once: figures in it do not make it another.
fn told(log: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut told = Vec::new();
    for line in log.lines() {
        let Some(at) = line.find("[WARN]").or_else(|| line.find("[ERROR]")) else {
            continue;
        };
        let text: String = line[at..].trim().chars().take(300).collect();
        let kind: String = text.chars().filter(|c| !c.is_ascii_digit()).take(80).collect();
        if seen.insert(kind) && told.len() < 20 {
            told.push(text);
        }
    }
    told
}
