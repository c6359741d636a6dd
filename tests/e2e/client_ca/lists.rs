//! How Envoy takes revocation lists: what is documented about them is what it does.

use std::path::Path;
use std::time::Duration;

use hyper::Method;

use super::{closed, document, get, let_in, shut_out};
use crate::stack::{Options, SOON, Stack};
use crate::support::client::Client;
use crate::support::pki::{Ca, Pair};
use crate::support::{scratch_directory, wait_for};

const LONG: Duration = Duration::from_secs(24 * 3600);

struct Files {
    directory: tempfile::TempDir,
    stack: Stack,
    server: Ca,
}

impl Files {
    /// Authorities and lists from files, and so is the server's certificate.
    async fn start() -> Files {
        let directory = scratch_directory("client-ca");
        let stack = Stack::start(Options {
            kv_documents: Some(format!(
                "allow_loopback = true\n  files = [\"{}/\"]",
                directory.path().display()
            )),
            ..Options::default()
        })
        .await;
        let server = Ca::new("server");
        let files = Files {
            directory,
            stack,
            server,
        };
        let pair = files.server.issue(&["www.example.com"]);
        files.write("www.pem", &pair.certificate);
        files.write("www.key", &pair.key);
        files
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// As renewal tools do it.
    fn write(&self, name: &str, text: &str) {
        let beside = self.path(&format!("{name}.new"));
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, Path::new(&self.path(name))).unwrap();
    }

    async fn put(&self, crl: bool) {
        let list = match crl {
            true => format!("\n          crl         = {:?}", self.path("clients.crl")),
            false => String::new(),
        };
        let source = format!(
            "file {{\n          certificate = {:?}{list}\n        }}",
            self.path("clients.pem")
        );
        let own = format!(
            "  file {{\n    certificate = {:?}\n    private_key = {:?}\n  }}",
            self.path("www.pem"),
            self.path("www.key")
        );
        let text = document("required", &source);
        let (before, rest) = text
            .split_once("  vault_pki {\n    mount       = \"pki_int\"")
            .unwrap();
        let (_, after) = rest.split_once("\n  }\n").unwrap();
        self.stack.put("www", &format!("{before}{own}\n{after}")).await;
    }

    /// A client that resumes no session of another.
    fn client(&self, identity: Option<&Pair>) -> Client {
        Client::https_as(self.stack.https, &self.server.certificate, identity)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_has_run_out_lets_in_nobody_until_there_is_a_newer_one() {
    let files = Files::start().await;
    let authority = Ca::new("clients");
    let (good, bad) = (
        authority.issue(&["good.example"]),
        authority.issue(&["bad.example"]),
    );
    files.write("clients.pem", &authority.certificate);
    files.write("clients.crl", &authority.revocation_list(&[&bad], LONG));
    files.put(true).await;
    let_in(&files.client(Some(&good))).await;
    shut_out(&files.client(Some(&bad)), "revoked").await;
    shut_out(&files.client(None), "no certificate").await;

    files.write(
        "clients.crl",
        &authority.revocation_list(&[&bad], Duration::from_secs(20)),
    );
    let status = async |what: &str, expected: &str| {
        wait_for(what, 4 * SOON, async || {
            let status = files.stack.agent.api(Method::GET, "/v1/status", "").await?.text();
            anyhow::ensure!(status.contains(expected), "{status}");
            Ok(())
        })
        .await;
    };
    // Its end is told before it comes. The last one that was let in began its session with this list.
    let (mut known, mut is_told) = (None, false);
    wait_for("the list to run out", 8 * SOON, async || {
        let status = files.stack.agent.api(Method::GET, "/v1/status", "").await?.text();
        is_told |= status.contains(" end at ");
        let fresh = files.client(Some(&good));
        if fresh.send(&get()).await.is_ok() {
            known = Some(fresh);
            anyhow::bail!("let in still");
        }
        Ok(())
    })
    .await;
    assert!(is_told, "nothing said that the list would end");
    let known = known.expect("somebody whom the list let in");
    shut_out(&files.client(Some(&good)), "a list that has run out").await;
    // It was checked when its session began.
    let_in(&known).await;
    status(
        "the diagnostic",
        "clients whose authority, or its revocation list, has run out are refused",
    )
    .await;

    files.write("clients.crl", &authority.revocation_list(&[&bad], LONG));
    let_in(&files.client(Some(&good))).await;
    shut_out(&files.client(Some(&bad)), "revoked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_counts_for_what_its_authority_signed_itself() {
    let files = Files::start().await;
    let root = Ca::new("root");
    let below = root.intermediate("below");
    let below_chain = |pair: Pair| Pair {
        certificate: format!("{}{}", pair.certificate, below.certificate),
        ..pair
    };
    let (direct, indirect) = (
        root.issue(&["direct.example"]),
        below_chain(below.issue(&["indirect.example"])),
    );
    let bad = below_chain(below.issue(&["bad.example"]));
    // Without lists the root lets in whatever is below it.
    files.write("clients.pem", &root.certificate);
    files.put(false).await;
    let_in(&files.client(Some(&direct))).await;
    let_in(&files.client(Some(&indirect))).await;

    // With its list alone, only what it signed itself: of the others it is not known what was revoked.
    files.write("clients.crl", &root.revocation_list(&[], LONG));
    files.put(true).await;
    shut_out(&files.client(Some(&indirect)), "no list of the authority below").await;
    let_in(&files.client(Some(&direct))).await;

    // The authority below, named by itself with its own list.
    files.write("clients.pem", &below.certificate);
    files.write("clients.crl", &below.revocation_list(&[&bad], LONG));
    let_in(&files.client(Some(&indirect))).await;
    shut_out(&files.client(Some(&bad)), "revoked").await;
    shut_out(&files.client(Some(&direct)), "of the root, which is not named").await;

    // Both, each with its own: the order in the files is of no account.
    files.write(
        "clients.pem",
        &format!("{}{}", below.certificate, root.certificate),
    );
    let lists = [
        root.revocation_list(&[], LONG),
        below.revocation_list(&[&bad], LONG),
    ];
    files.write("clients.crl", &lists.concat());
    let_in(&files.client(Some(&direct))).await;
    let_in(&files.client(Some(&indirect))).await;
    shut_out(&files.client(Some(&bad)), "revoked").await;
}

/// What one authority revokes is taken up though another one's list has run out.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_has_run_out_holds_up_no_revocation_by_another_authority() {
    let files = Files::start().await;
    let (stale, lively) = (Ca::new("stale"), Ca::new("lively"));
    let of_stale = stale.issue(&["stale.example"]);
    let (good, bad) = (lively.issue(&["good.example"]), lively.issue(&["bad.example"]));
    let lists = |of_stale: Duration, revoked: &[&Pair]| {
        let lists = [
            stale.revocation_list(&[], of_stale),
            lively.revocation_list(revoked, LONG),
        ];
        files.write("clients.crl", &lists.concat());
    };
    files.write(
        "clients.pem",
        &format!("{}{}", stale.certificate, lively.certificate),
    );
    lists(LONG, &[]);
    files.put(true).await;
    let_in(&files.client(Some(&of_stale))).await;
    let_in(&files.client(Some(&bad))).await;

    lists(Duration::ZERO, &[&bad]);
    shut_out(&files.client(Some(&bad)), "revoked").await;
    shut_out(&files.client(Some(&of_stale)), "a list that has run out").await;
    let_in(&files.client(Some(&good))).await;
    wait_for("the problem beside it", SOON, async || {
        let status = files.stack.agent.api(Method::GET, "/v1/status", "").await?.text();
        let said = "the revocation list of \\\"CN=stale\\\" expired at";
        anyhow::ensure!(
            status.contains(said) && status.contains("certificate-expired"),
            "{status}"
        );
        Ok(())
    })
    .await;

    lists(LONG, &[&bad]);
    let_in(&files.client(Some(&of_stale))).await;
    shut_out(&files.client(Some(&bad)), "revoked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_wrong_from_the_start_keeps_the_port_closed() {
    let files = Files::start().await;
    let (authority, another) = (Ca::new("clients"), Ca::new("another"));
    let good = authority.issue(&["good.example"]);
    files.write("clients.pem", &authority.certificate);
    files.write("clients.crl", &another.revocation_list(&[], LONG));
    files.put(true).await;
    let said = "is signed by none of the authorities";
    wait_for("the reason", SOON, async || {
        let status = files.stack.agent.api(Method::GET, "/v1/status", "").await?.text();
        anyhow::ensure!(
            status.contains(said) && status.contains("listener-withheld"),
            "{status}"
        );
        Ok(())
    })
    .await;
    closed(&files.client(Some(&good)), "a list of another authority").await;
    files.write("clients.crl", &authority.revocation_list(&[], LONG));
    let_in(&files.client(Some(&good))).await;
}
