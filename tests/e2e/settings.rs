//! The agent's settings, flags, environment, banner and exit codes, as the running program takes them. No Envoy.

use std::path::PathBuf;

use hyper::Method;

use crate::stack::SOON;
use crate::support::agent::{Agent, AgentLaunch};
use crate::support::ports::free_port;
use crate::support::wait_for;

const GATEWAY: &str = "gateway \"edge\" {\n  listener \"web\" {\n    port = 8080\n  }\n}\n";

/// With a directory `conf` of one document and what is given.
fn prepare(files: &[(&str, &str)]) -> (AgentLaunch, PathBuf) {
    let launch = Agent::prepare();
    let conf = launch.file("conf/edge.hcl", GATEWAY).parent().unwrap().to_owned();
    for (name, text) in files {
        launch.file(name, text);
    }
    let data = launch.directory().join("data");
    let launch = launch.api_socket(data.join("api.sock")).arg("agent");
    let launch = launch
        .arg("-config")
        .arg(&conf)
        .arg(format!("-data-dir={}", data.display()));
    (launch, conf)
}

/// Ends by itself, with code 1 and everything of `said` in what it wrote.
fn fails(mut agent: Agent, said: &[&str]) {
    let status = agent.process.wait_exit(SOON).expect("an end");
    let log = agent.process.log();
    assert_eq!(status.code(), Some(1), "{log}");
    for said in said {
        assert!(log.contains(said), "{said:?} is not in:\n{log}");
    }
}

/// A fact of the banner.
fn fact(log: &str, key: &str) -> String {
    let prefix = format!("{key}: ");
    let line = log.lines().find(|line| line.trim_start().starts_with(&prefix));
    let line = line.unwrap_or_else(|| panic!("no {key} in:\n{log}"));
    line.trim_start()[prefix.len()..].to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slip_in_a_settings_file_is_never_left_out() {
    for (text, said) in [
        (
            "kv_document {\n  vault_paths = [\"secret/edge/\"]\n}\n",
            "did you mean \"kv_documents\"?",
        ),
        (
            "kv_documents {\n  vault_paths = [\"secret/edge/\"\n}\n",
            "must not be left out",
        ),
        (
            "kv_documents {\n  vault_path = [\"secret/edge/\"]\n}\n",
            "did you mean \"vault_paths\"?",
        ),
        (
            "{\"kv_document\": {\"vault_paths\": [\"secret/edge/\"]}}",
            "did you mean \"kv_documents\"?",
        ),
    ] {
        let (launch, _) = prepare(&[("conf/limits.hcl", text)]);
        fails(launch.arg("-gateway=edge").start(), &["conf/limits.hcl:", said]);
    }

    // Once it runs, the same slip changes nothing.
    let good = "kv_documents {\n  vault_paths = [\"secret/edge/\"]\n}\n";
    let (launch, conf) = prepare(&[("conf/limits.hcl", good)]);
    let mut agent = launch.arg("-gateway=edge").start_ready().await;
    let start = agent.process.log_length();
    std::fs::write(
        conf.join("limits.hcl"),
        good.replace("kv_documents", "kv_document"),
    )
    .unwrap();
    agent.reload();
    agent
        .process
        .wait_for_log_after(start, "the old ones stay", SOON)
        .await;
    let line = agent
        .process
        .wait_for_log_after(start, "did you mean", SOON)
        .await;
    assert!(line.contains("limits.hcl:1"), "{line}");
    let log = agent.process.log();
    assert!(!log[start..].contains("held to the new kv_documents"), "{log}");
    agent.terminate();

    // A document with a slip stops nothing, neither broken nor misspelt.
    for text in ["http_rout \"x\" {}\n", "http_route \"x\" {\n"] {
        let (launch, _) = prepare(&[("conf/odd.hcl", text)]);
        let mut agent = launch.arg("-gateway=edge").start_ready().await;
        agent.wait_for_log("conf/odd.hcl:1").await;
        agent.terminate();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_to_listen_is_said_by_address() {
    for text in [
        "api {\n  address = \"localhost:7480\"\n}\n",
        "xds {\n  tcp {\n    address   = \"xds.example.com:7482\"\n    ca_file   = \"/a\"\n    cert_file = \"/b\"\n    key_file  = \"/c\"\n    client {\n      san      = \"a.example.com\"\n      gateways = [\"edge\"]\n    }\n  }\n}\n",
    ] {
        let (launch, _) = prepare(&[("conf/agent.hcl", text)]);
        fails(
            launch.arg("-gateway=edge").start(),
            &["is a host name", "conf/agent.hcl:"],
        );
    }
    let (launch, _) = prepare(&[("conf/agent.hcl", "api {\n  address = \"0.0.0.0:7480\"\n}\n")]);
    fails(
        launch.arg("-gateway=edge").start(),
        &["neither TLS nor authentication"],
    );
}

/// A user that is held to some gateways is held, or the agent does not start.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_is_held_to_gateways_and_may_have_any_stops_the_start() {
    let client = |uid: u32| format!("client {{\n    uid      = {uid}\n    gateways = [\"edge\"]\n  }}");
    for (text, said) in [
        (
            format!("xds {{\n  uids = [7, 8]\n\n  {}\n}}\n", client(8)),
            ["user 8 is held to some gateways here", "`uids`"],
        ),
        (
            format!("xds {{\n  {}\n}}\n", client(0)),
            ["root cannot be held", "a user of its own"],
        ),
    ] {
        let (launch, _) = prepare(&[("conf/agent.hcl", text.as_str())]);
        let agent = launch.arg("-gateway=edge").start();
        fails(agent, &[said[0], said[1], "conf/agent.hcl:"]);
    }
}

#[test]
fn a_token_that_would_replace_its_identity_stops_the_start() {
    let text = "consul {\n  login {\n    method            = \"nomad\"\n    bearer_token_file = \"secrets/a.jwt\"\n    \
                token_sink_file   = \"secrets/a.jwt\"\n  }\n}\n";
    let (launch, _) = prepare(&[("conf/agent.hcl", text)]);
    let agent = launch.arg("-gateway=edge").start();
    fails(
        agent,
        &["file of the identity", "name another file", "conf/agent.hcl:5:"],
    );
}

/// Listeners of documents that say no address take this one.
#[tokio::test(flavor = "multi_thread")]
async fn listeners_are_public_unless_under_dev() {
    for (flag, expected) in [(None, "0.0.0.0"), (Some("-dev"), "127.0.0.1")] {
        let (launch, _) = prepare(&[("conf/agent.hcl", "envoy {\n  supervise = false\n}\n")]);
        let launch = launch.arg("-gateway=edge").args(flag);
        let mut agent = launch.start_ready().await;
        assert_eq!(fact(&agent.process.log(), "Bind Addr"), expected);
        agent.terminate();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn later_files_win_over_earlier_ones_and_flags_over_files() {
    let (launch, _) = prepare(&[
        (
            "conf/a.hcl",
            "node_name = \"of-a\"\nbind_addr = \"127.0.0.1\"\nenvoy {\n  drain_time = \"7s\"\n}\n",
        ),
        ("conf/b.hcl", "node_name = \"of-b\"\ngateways = [\"edge\"]\n"),
        (
            "c.hcl",
            "node_name = \"of-c\"\nlog_level = \"warn\"\nenvoy {\n  concurrency = 1\n}\n",
        ),
    ]);
    let last = launch.directory().join("c.hcl");
    let mut agent = launch.arg("-config").arg(&last).start();
    agent.wait_for_log("agent started!").await;
    let log = agent.process.log();
    let facts = |log: &str| ["Node", "Gateways", "Bind Addr", "Log Level"].map(|key| fact(log, key));
    assert_eq!(facts(&log), ["of-c", "edge", "127.0.0.1", "WARN"]);
    assert_eq!(fact(&log, "Version"), env!("CARGO_PKG_VERSION"));
    assert!(log.starts_with("==> Starting Portreeve agent...\n"), "{log}");
    agent.terminate();

    let flags = [
        "-node=of-flag",
        "-gateway=inner",
        "-bind=127.0.0.2",
        "-log-level=error",
    ];
    agent.process.launch_mut().args.extend(flags.map(Into::into));
    let start = agent.process.log_length();
    agent.process.start_again();
    agent
        .process
        .wait_for_log_after(start, "agent started!", SOON)
        .await;
    assert_eq!(
        facts(&agent.process.log()[start..]),
        ["of-flag", "inner", "127.0.0.2", "ERROR"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_json_is_nothing_but_json() {
    for by_flag in [true, false] {
        let settings = if by_flag { "" } else { "log_json = true\n" };
        let (launch, _) = prepare(&[("conf/a.hcl", &format!("gateways = [\"edge\"]\n{settings}"))]);
        let launch = if by_flag { launch.arg("-log-json") } else { launch };
        let mut agent = launch.start_ready().await;
        agent.reload();
        agent.wait_for_log("settings reloaded").await;
        agent.terminate();
        let log = agent.process.log();
        let lines: Vec<serde_json::Value> = log
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
            .collect();
        let started = lines
            .iter()
            .find(|line| line.to_string().contains("agent started"));
        let facts = started.unwrap()["configuration"].as_str().unwrap();
        assert!(
            facts.contains("Gateways: edge") && facts.contains("API Socket: "),
            "{facts}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why_and_exits_1() {
    let (launch, _) = prepare(&[]);
    fails(launch.start(), &["which gateways to serve", "-gateway=edge"]);
    let (launch, _) = prepare(&[("conf/a.hcl", "log_levle = \"info\"\n")]);
    fails(
        launch.arg("-gateway=edge").start(),
        &["unknown attribute", "did you mean \"log_level\"?"],
    );
    let (launch, _) = prepare(&[("data", "a file stands here")]);
    fails(
        launch.arg("-gateway=edge").start(),
        &["the data directory cannot be made", "-data-dir"],
    );

    // Another agent holds the socket.
    let (launch, conf) = prepare(&[]);
    let xds = launch.directory().join("xds.sock");
    std::fs::write(conf.join("a.hcl"), format!("xds {{\n  socket = {xds:?}\n}}\n")).unwrap();
    let mut first = launch.arg("-gateway=edge").start_ready().await;
    let (second, _) = prepare(&[("conf/a.hcl", &format!("xds {{\n  socket = {xds:?}\n}}\n"))]);
    fails(
        second.arg("-gateway=edge").start(),
        &["the xDS socket cannot be opened", "xds.sock"],
    );
    assert!(first.process.is_running());
    first.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dev_directory_that_others_may_use_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let launch = Agent::prepare();
    let conf = launch.file("conf/edge.hcl", GATEWAY).parent().unwrap().to_owned();
    let uid = rustix::process::getuid().as_raw();
    let data = launch.directory().join(format!("portreeve-dev-{uid}"));
    let settings = launch.file("agent.hcl", "envoy {\n  supervise = false\n}\n");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
    let base = launch.directory().to_owned();
    let mut agent = launch
        .api_socket(data.join("api.sock"))
        .args(["agent", "-dev", "-config"])
        .arg(&conf)
        .arg("-config")
        .arg(&settings)
        .env("TMPDIR", &base)
        .start();
    let status = agent.process.wait_exit(SOON).expect("an end");
    assert_eq!(status.code(), Some(1));
    agent.wait_for_log("its mode 755 lets other users in").await;

    std::fs::remove_dir(&data).unwrap();
    agent.process.start_again();
    agent.wait_ready().await;
    let mode = std::fs::metadata(&data).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700);
    // Nothing of what it knows is on disk.
    let names: Vec<String> = std::fs::read_dir(&data)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert!(names.iter().all(|name| !name.ends_with(".redb")), "{names:?}");
}

mod environment {
    //! Whom the agent asks, and with which token: a server that answers nothing of use, and remembers.

    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::support::wait_for;

    struct Recorder {
        address: String,
        requests: Arc<Mutex<String>>,
    }

    impl Recorder {
        async fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let requests = Arc::new(Mutex::new(String::new()));
            let seen = requests.clone();
            tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let mut buffer = vec![0; 16 * 1024];
                    let length = stream.read(&mut buffer).await.unwrap_or(0);
                    let text = String::from_utf8_lossy(&buffer[..length]).to_lowercase();
                    seen.lock().unwrap().push_str(&text);
                    let answer = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
            Self { address, requests }
        }

        fn text(&self) -> String {
            self.requests.lock().unwrap().clone()
        }

        async fn hears(&self, what: &str) {
            wait_for(what, SOON, async || {
                let text = self.text();
                anyhow::ensure!(text.contains(what), "{what:?} is not in:\n{text}");
                Ok(())
            })
            .await;
        }
    }

    async fn with_environment(consul: &Recorder, vault: &Recorder, settings: &str, flags: &[&str]) -> Agent {
        let route = "http_route \"shop\" {\n  gateways  = [\"edge\"]\n  hostnames = [\"a.example.com\"]\n  rule \"all\" {\n    backend \"consul\" \"orders\" {}\n  }\n}\n\
                     certificate \"www\" {\n  vault_kv {\n    mount = \"secret\"\n    path  = \"www\"\n  }\n}\n\
                     gateway \"tls\" {\n  listener \"tls\" {\n    port     = 8443\n    protocol = \"https\"\n    tls { certificates = [\"www\"] }\n  }\n}\n";
        let (launch, _) = prepare(&[("conf/shop.hcl", route), ("conf/agent.hcl", settings)]);
        let mut agent = launch
            .args(["-gateway=edge", "-gateway=tls"])
            .args(flags)
            .env("CONSUL_HTTP_ADDR", &consul.address)
            .env("CONSUL_HTTP_TOKEN", "consul-of-environment")
            .env("VAULT_ADDR", format!("http://{}", vault.address))
            .env("VAULT_TOKEN", "vault-of-environment")
            .start();
        agent.wait_for_log("agent started!").await;
        agent
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn flags_of_dev_attach_what_the_environment_names() {
        let (consul, vault) = (Recorder::start().await, Recorder::start().await);
        let flags = ["-dev", "-dev-consul", "-dev-vault"];
        let settings = "envoy {\n  supervise = false\n}\n";
        let agent = with_environment(&consul, &vault, settings, &flags).await;
        consul.hears("x-consul-token: consul-of-environment").await;
        consul.hears("/v1/health/service/orders").await;
        vault.hears("x-vault-token: vault-of-environment").await;
        let log = agent.process.log();
        assert!(fact(&log, "Consul").contains(&consul.address));
        assert!(fact(&log, "Vault").contains(&vault.address));
        drop(agent);

        // Without the flags, nobody is asked, whatever the environment says.
        let (consul, vault) = (Recorder::start().await, Recorder::start().await);
        let mut agent = with_environment(&consul, &vault, settings, &["-dev"]).await;
        agent.wait_for_log("not connected to Consul").await;
        assert_eq!((consul.text(), vault.text()), (String::new(), String::new()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn blocks_win_over_the_environment() {
        let (other_consul, other_vault) = (Recorder::start().await, Recorder::start().await);
        let (consul, vault) = (Recorder::start().await, Recorder::start().await);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("vault-token");
        std::fs::write(&file, "vault-of-block\n").unwrap();
        let settings = format!(
            "consul {{\n  address = \"{}\"\n  token   = \"consul-of-block\"\n}}\nvault {{\n  address    = \"http://{}\"\n  token_file = {file:?}\n}}\n",
            consul.address, vault.address
        );
        let agent = with_environment(&other_consul, &other_vault, &settings, &[]).await;
        consul.hears("x-consul-token: consul-of-block").await;
        vault.hears("x-vault-token: vault-of-block").await;
        assert!(!consul.text().contains("of-environment") && !vault.text().contains("of-environment"));
        assert_eq!(
            (other_consul.text(), other_vault.text()),
            (String::new(), String::new())
        );
        assert!(!agent.process.log().contains("of-block"), "a token in the log");
        drop(agent);

        // What a block leaves out is the environment's.
        let (consul, vault) = (Recorder::start().await, Recorder::start().await);
        let _agent = with_environment(&consul, &vault, "consul {}\nvault {}\n", &[]).await;
        consul.hears("x-consul-token: consul-of-environment").await;
        vault.hears("x-vault-token: vault-of-environment").await;
    }
}

mod service_manager {
    //! `Type=notify`, with a real socket.

    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    use super::*;

    struct Systemd {
        socket: UnixDatagram,
        path: PathBuf,
        _directory: tempfile::TempDir,
    }

    impl Systemd {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("notify");
            let socket = UnixDatagram::bind(&path).unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
            Self {
                socket,
                path,
                _directory: directory,
            }
        }

        fn next(&self) -> String {
            let mut buffer = [0; 1024];
            let length = self.socket.recv(&mut buffer).expect("a word");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        }

        fn is_silent(&self) -> bool {
            self.socket.set_nonblocking(true).unwrap();
            let silent = self.socket.recv(&mut [0; 16]).is_err();
            self.socket.set_nonblocking(false).unwrap();
            silent
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn systemd_hears_ready_reloading_and_stopping() {
        let systemd = Systemd::new();
        let (launch, _) = prepare(&[]);
        let launch = launch.arg("-gateway=edge").env("NOTIFY_SOCKET", &systemd.path);
        let mut agent = launch.start();
        assert!(systemd.next().starts_with("READY=1\n"));
        agent.wait_ready().await;
        agent.reload();
        let word = systemd.next();
        assert!(word.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{word}");
        assert!(systemd.next().starts_with("READY=1\n"));
        agent.terminate();
        assert!(systemd.next().starts_with("STOPPING=1\n"));
        assert!(systemd.is_silent());
    }

    /// Ready means published, and a reload does not make it so.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_reload_before_it_is_ready_does_not_say_ready() {
        let systemd = Systemd::new();
        let away = format!(
            "consul {{\n  address = \"127.0.0.1:{}\"\n}}\nkv_documents {{}}\n",
            free_port()
        );
        let (launch, _) = prepare(&[("conf/agent.hcl", &away)]);
        let launch = launch.arg("-gateway=edge").env("NOTIFY_SOCKET", &systemd.path);
        let mut agent = launch.start();
        agent.wait_for_log("agent started!").await;
        agent.reload();
        agent.wait_for_log("settings reloaded").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(systemd.is_silent(), "it said something before it was ready");
        agent.terminate();
        assert!(systemd.next().starts_with("STOPPING=1\n"));
    }
}

/// A disk without room under it, and a pipe that nobody reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_takes_keeps_no_agent_from_starting() {
    for place in ["/dev/full", ">(exec true)"] {
        let (launch, _conf) = prepare(&[("conf/agent.hcl", "gateways = [\"edge\"]\n")]);
        let mut agent = launch.output_to(place).start();
        wait_for("its API", SOON, async || {
            agent.process.check_running()?;
            agent.api(Method::GET, "/v1/status", "").await?.ok()
        })
        .await;
        agent.terminate();
    }
}

/// What a reload takes over, and what it names as needing a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_names_what_needs_a_restart() {
    let (launch, conf) = prepare(&[(
        "conf/agent.hcl",
        "gateways = [\"edge\"]\nconsul {\n  token = \"one\"\n}\n",
    )]);
    let mut agent = launch.start();
    agent.wait_for_log("agent started!").await;
    let settings = |text: &str| std::fs::write(conf.join("agent.hcl"), text).unwrap();
    let tcp = "xds {\n  tcp {\n    address   = \"127.0.0.1:7482\"\n    ca_file   = \"/a\"\n    cert_file = \"/b\"\n    key_file  = \"/c\"\n    client {\n      san      = \"a.example.com\"\n      gateways = [\"edge\"]\n    }\n  }\n}\n";
    for (text, named) in [
        (
            "gateways = [\"edge\", \"inner\"]\nconsul {\n  token = \"one\"\n}\n",
            "gateways",
        ),
        (
            "gateways = [\"edge\"]\nconsul {\n  token = \"two\"\n}\n",
            "consul",
        ),
        (
            &*format!("gateways = [\"edge\"]\nconsul {{\n  token = \"one\"\n}}\n{tcp}"),
            "xds.tcp",
        ),
        (
            "gateways = [\"edge\"]\nconsul {\n  token = \"one\"\n}\nxds {\n  uids = [7]\n}\n",
            "xds.uids",
        ),
        (
            "gateways = [\"edge\"]\nconsul {\n  token = \"one\"\n}\nmesh {\n  service = \"edge-gw\"\n}\n",
            "mesh",
        ),
        (
            "gateways = [\"edge\"]\nconsul {\n  token = \"one\"\n}\nenvoy {\n  concurrency = 3\n}\n",
            "`portreeve envoy restart`",
        ),
    ] {
        let start = agent.process.log_length();
        settings(text);
        agent.reload();
        let line = agent
            .process
            .wait_for_log_after(start, "after a restart of the agent", SOON)
            .await;
        assert!(line.contains(named), "{named} is not in {line}");
    }
}
