//! A network of a test's own, and another one beside it, which can be cut off: every packet between them vanishes.
//!
//! Takes root with CAP_SYS_ADMIN and CAP_NET_ADMIN. Nothing of it is seen in the machine's own network.

use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use super::process::{Launch, Process};
use super::{START_LIMIT, scratch_directory, wait_for};

/// Says that this process runs in a network of its own.
const OWN: &str = "PORTREEVE_TEST_OWN_NETWORK";

/// For documentation (RFC 5737), so nobody's: this side, and the other.
const HERE: &str = "192.0.2.1/30";
const THERE: &str = "192.0.2.2/30";

/// Whether this process runs in a network of its own.
pub fn is_own() -> bool {
    std::env::var_os(OWN).is_some()
}

/// Why this machine has no network of its own for us. None: it has.
pub fn lacking() -> Option<String> {
    let tried = Command::new("unshare")
        .args(["--net", "sh", "-c"])
        .arg("ip link set lo up && ip link add here type veth peer name there")
        .output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "networks of its own take ip (iproute2) and root with CAP_SYS_ADMIN: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

/// Runs one test of this program in a network of its own, where [`is_own`] says so. Returns what it prints.
pub fn run_within(test: &str) -> String {
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env(OWN, "1")
        .stdin(Stdio::null())
        .output()
        .expect("unshare");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{test}:\n{text}"
    );
    text.into_owned()
}

/// The network on the other side of a link. It lives as long as the process that holds it.
pub struct FarNetwork {
    holder: Process,
    _directory: TempDir,
}

impl FarNetwork {
    /// The address of the other side, for programs that were started there.
    pub const ADDRESS: &'static str = "192.0.2.2";

    /// Only within a network of the test's own.
    pub async fn join() -> FarNetwork {
        assert!(is_own(), "no interface for the machine's own network");
        let directory = scratch_directory("network");
        let holder = Launch::new("network", "unshare", directory.path())
            .args(["--net", "sleep", "infinity"])
            .start();
        let network = FarNetwork {
            holder,
            _directory: directory,
        };
        let own = std::fs::read_link("/proc/self/ns/net").expect("the own network");
        wait_for("the other network", START_LIMIT, async || {
            anyhow::ensure!(std::fs::read_link(network.path())? != own, "not yet");
            Ok(())
        })
        .await;
        let pid = network.holder.pid().to_string();
        run(
            "ip",
            &[
                "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", &pid,
            ],
        );
        run("ip", &["address", "add", HERE, "dev", "near"]);
        run("ip", &["link", "set", "near", "up"]);
        network.ip(&["link", "set", "lo", "up"]);
        network.ip(&["address", "add", THERE, "dev", "far"]);
        network.ip(&["link", "set", "far", "up"]);
        network
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.pid())
    }

    /// To be started there.
    pub fn launch(&self, mut launch: Launch) -> Launch {
        let program = std::mem::replace(&mut launch.program, "nsenter".into());
        let within = [format!("--net={}", self.path()).into(), program.into_os_string()];
        launch.args.splice(0..0, within);
        launch
    }

    /// Runs a program there, to its end.
    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        let enter = format!("--net={}", self.path());
        run("nsenter", &[&[&*enter, program], args].concat())
    }

    /// The far end goes down: on this side packets still have a way, and nothing says that it leads nowhere.
    pub fn cut(&self) {
        self.ip(&["link", "set", "far", "down"]);
    }

    pub fn mend(&self) {
        self.ip(&["link", "set", "far", "up"]);
    }

    fn ip(&self, args: &[&str]) {
        self.run("ip", args);
    }
}

fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    output
}
