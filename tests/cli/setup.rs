//! `portreeve setup` against the real Consul and OpenBao: a dry run changes nothing, a run creates what is missing, a
//! second one finds nothing to do, and what it made lets the agent's job log in and nobody else.

use hyper::Method;
use serde_json::{Value, json};

use crate::run::{Outcome, portreeve};
use crate::support::backend::{Backend, Behaviour};
use crate::support::consul::Consul;
use crate::support::nomad::NomadContract;
use crate::support::rsa::RsaIssuer;
use crate::support::vault::Vault;

fn setup(product: &str, address: &str, token: &str, more: &[&str]) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), token).unwrap();
    let address = format!("-address={address}");
    let mut arguments = vec!["setup", product, &address, "-token-file=token"];
    arguments.extend(more);
    portreeve(directory.path(), &arguments)
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_gets_what_the_job_needs_and_no_more() {
    let consul = Consul::start_with_acl().await;
    let issuer = RsaIssuer::new();
    let keys = Backend::start("keys").await;
    keys.behave(Behaviour {
        body: Some(issuer.jwks().into()),
        ..Behaviour::default()
    });
    let url = format!("-nomad-jwks-url=http://{}/jwks.json", keys.address());
    let token = consul.token().unwrap();
    let run = |more: &[&str]| {
        setup(
            "consul",
            &consul.address(),
            token,
            &[&[url.as_str()], more].concat(),
        )
    };

    let dry = run(&["-dry-run"]);
    assert_eq!(dry.code, 0, "{}", dry.error);
    // Without a job that logs in, a token is made by hand; and whoever has no rights hears where a token goes.
    let by_hand = setup("consul", &consul.address(), token, &["-dry-run"]);
    let command = "consul acl token create -role-name=portreeve -description=portreeve";
    assert!(by_hand.out.contains(command), "{}", by_hand.out);
    assert!(!dry.out.contains(command), "{}", dry.out);
    let nowhere = tempfile::tempdir().unwrap();
    let address = format!("-address={}", consul.address());
    let refused = portreeve(nowhere.path(), &["setup", "consul", &address]);
    assert_eq!(refused.code, 1, "{}", refused.shown(&[]));
    assert!(
        refused
            .error
            .contains("name that as -token-file, or set CONSUL_HTTP_TOKEN"),
        "{}",
        refused.error
    );
    assert!(
        dry.out.contains("+ policy portreeve would be created"),
        "{}",
        dry.out
    );
    assert!(dry.out.contains("6 to do"), "{}", dry.out);
    let policies = consul.expect(Method::GET, "/v1/acl/policies", "").await;
    assert!(
        !policies.to_string().contains("portreeve"),
        "a dry run changed {policies}"
    );

    let done = run(&[]);
    assert_eq!(done.code, 0, "{}", done.error);
    assert!(done.out.contains("6 done"), "{}", done.out);
    let again = run(&[]);
    assert!(again.out.contains("Nothing to do"), "{}", again.out);

    let claims = |job: &str, kind: &str| json!({ "nomad_namespace": "default", "nomad_job_id": job, kind: "web", "aud": "consul.io" });
    let login = async |method: &str, claims: Value| {
        let body = json!({ "AuthMethod": method, "BearerToken": issuer.sign(claims) }).to_string();
        consul
            .call_as("", Method::POST, "/v1/acl/login", body)
            .await
            .unwrap()
    };
    let agent = login("portreeve", claims("portreeve", "nomad_task")).await;
    assert_eq!(agent.status, 200, "{}", agent.text());
    let secret = agent.json()["SecretID"].as_str().unwrap().to_owned();
    let own = consul
        .call_as(&secret, Method::PUT, "/v1/kv/portreeve/status/nodes/n1", "{}")
        .await
        .unwrap();
    assert_eq!(own.status, 200, "{}", own.text());
    let foreign = consul
        .call_as(&secret, Method::PUT, "/v1/kv/portreeve/config/shop", "x")
        .await
        .unwrap();
    assert_eq!(foreign.status, 403);
    let other = login("portreeve", claims("other", "nomad_task")).await;
    assert_eq!(other.status, 403, "another job gets no token: {}", other.text());
    let service = login("nomad-services", claims("other", "nomad_service")).await;
    assert_eq!(service.status, 200, "{}", service.text());

    // The mesh's policy comes with the name of the service, and nothing else comes in with it.
    let meshed = run(&["-mesh-service=front-door"]);
    assert!(
        meshed.out.contains("+ policy portreeve-mesh created"),
        "{}",
        meshed.out
    );
    assert!(
        meshed.out.contains("~ role portreeve changed: Policies"),
        "{}",
        meshed.out
    );
    let agent = login("portreeve", claims("portreeve", "nomad_task")).await;
    let secret = agent.json()["SecretID"].as_str().unwrap().to_owned();
    for (service, status) in [("front-door", 200), ("orders", 403)] {
        let path = format!("/v1/agent/connect/ca/leaf/{service}");
        let leaf = consul.call_as(&secret, Method::GET, &path, "").await.unwrap();
        assert_eq!(leaf.status, status, "{service}: {}", leaf.text());
    }
    let hostile = run(&["-mesh-service=a\" { policy = \"write\" } operator = \"write\" #"]);
    assert_eq!(hostile.code, 1);
    assert!(
        hostile.error.contains("not the name of a service"),
        "{}",
        hostile.error
    );
    // Left out again, the role is as it was before.
    assert!(run(&[]).out.contains("~ role portreeve changed: Policies"));

    // Another job's gateway gets a login of its own, and takes nobody's.
    let (job, named) = ("-nomad-job=internal", "-name=internal");
    for more in [&[job][..], &[job, "-dry-run"], &["-nomad-namespace=ingress"]] {
        let refused = run(more);
        assert_eq!((refused.code, &*refused.out), (1, ""), "{more:?}");
        for said in [
            "auth method portreeve belongs to the job \"portreeve\"",
            "-name",
            "-replace-job",
        ] {
            assert!(refused.error.contains(said), "{said}: {}", refused.error);
        }
    }
    assert!(
        run(&[]).out.contains("Nothing to do"),
        "it was refused before anything was written"
    );
    assert_eq!(
        login("portreeve", claims("portreeve", "nomad_task")).await.status,
        200
    );
    let second = run(&[job, named]);
    assert!(second.out.contains("4 done"), "{} {}", second.out, second.error);
    assert!(run(&[]).out.contains("Nothing to do"));
    for (method, job, status) in [
        ("portreeve", "portreeve", 200),
        ("portreeve", "internal", 403),
        ("internal", "internal", 200),
        ("internal", "portreeve", 403),
    ] {
        let answer = login(method, claims(job, "nomad_task")).await;
        assert_eq!(answer.status, status, "{method} {job}: {}", answer.text());
    }
    // A job of another name than before.
    let renamed = run(&[named, "-nomad-job=inner", "-replace-job"]);
    assert!(
        renamed
            .out
            .contains("~ binding rule of internal to the role internal changed: Selector"),
        "{} {}",
        renamed.out,
        renamed.error
    );
    assert_eq!(login("internal", claims("inner", "nomad_task")).await.status, 200);

    // What somebody changed by hand is put right, and named.
    let role = consul
        .expect(Method::GET, "/v1/acl/role/name/portreeve", "")
        .await;
    let path = format!("/v1/acl/role/{}", role["ID"].as_str().unwrap());
    let stripped = json!({ "ID": role["ID"], "Name": "portreeve", "Description": role["Description"] });
    consul.expect(Method::PUT, &path, stripped.to_string()).await;
    let mended = run(&[]);
    assert!(
        mended.out.contains("~ role portreeve changed: Policies"),
        "{}",
        mended.out
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_gets_policies_and_a_login_for_the_job_alone() {
    let vault = Vault::start().await;
    vault.enable_pki("pki_edge", "example.com").await;
    let issuer = RsaIssuer::new();
    let keys = Backend::start("keys").await;
    keys.behave(Behaviour {
        body: Some(issuer.jwks().into()),
        ..Behaviour::default()
    });
    let url = format!("-nomad-jwks-url=http://{}/jwks.json", keys.address());
    let run = |more: &[&str]| {
        let fixed = [url.as_str(), "-pki-mount=pki_edge"];
        setup(
            "vault",
            &vault.address(),
            &vault.root_token,
            &[&fixed[..], more].concat(),
        )
    };
    let dry = run(&["-dry-run"]);
    assert_eq!(dry.code, 0, "{}", dry.error);
    assert!(dry.out.contains("5 to do"), "{}", dry.out);
    let policies = async || vault.read("sys/policies/acl?list=true").await["data"]["keys"].to_string();
    let (made, mounts) = (policies().await, vault.read("sys/auth").await.to_string());
    assert!(!made.contains("portreeve"), "a dry run changed {made}");
    assert!(!mounts.contains("jwt-nomad"), "a dry run changed {mounts}");
    let done = run(&[]);
    assert_eq!(done.code, 0, "{}", done.error);
    assert!(done.out.contains("5 done"), "{}", done.out);
    let again = run(&[]);
    assert!(again.out.contains("Nothing to do"), "{}", again.out);

    let login = async |job: &str| {
        let claims =
            json!({ "nomad_namespace": "default", "nomad_job_id": job, "aud": "vault.io", "sub": job });
        let body = json!({ "role": "portreeve", "jwt": issuer.sign(claims) });
        vault
            .call_as("", Method::POST, "auth/jwt-nomad/login", body)
            .await
            .unwrap()
    };
    let agent = login("portreeve").await;
    assert_eq!(agent.status, 200, "{}", agent.text());
    let policies = &agent.json()["auth"]["token_policies"];
    assert_eq!(*policies, json!(["portreeve-kv", "portreeve-pki"]));
    assert!(login("other").await.status.as_u16() >= 400);

    // Another job's gateway gets a role of its own, and takes nobody's.
    let job = "-nomad-job=internal";
    for more in [&[job][..], &[job, "-dry-run"], &["-nomad-namespace=ingress"]] {
        let refused = run(more);
        assert_eq!((refused.code, &*refused.out), (1, ""), "{more:?}");
        for said in [
            "role portreeve of Vault's auth mount jwt-nomad belongs to the job \"portreeve\"",
            "-name",
        ] {
            assert!(refused.error.contains(said), "{said}: {}", refused.error);
        }
    }
    let bound = async |role: &str| {
        let role = vault.read(&format!("auth/jwt-nomad/role/{role}")).await;
        role["data"]["bound_claims"]["nomad_job_id"].clone()
    };
    let second = run(&[job, "-name=internal"]);
    assert!(second.out.contains("3 done"), "{} {}", second.out, second.error);
    assert_eq!(bound("portreeve").await, "portreeve");
    assert_eq!(bound("internal").await, "internal");
    let renamed = run(&["-name=internal", "-nomad-job=inner", "-replace-job"]);
    assert!(
        renamed
            .out
            .contains("~ role internal of jwt-nomad changed: bound_claims"),
        "{} {}",
        renamed.out,
        renamed.error
    );
    assert_eq!(bound("internal").await, "inner");

    // What somebody changed by hand is named, left alone by a dry run, and put right.
    let weak = json!({ "policy": "path \"pki_edge/*\" { capabilities = [\"read\"] }" });
    vault.write("sys/policies/acl/portreeve-pki", weak.clone()).await;
    let rules = async || vault.read("sys/policies/acl/portreeve-pki").await["data"]["policy"].clone();
    let dry = run(&["-dry-run"]);
    assert!(
        dry.out
            .contains("~ policy portreeve-pki would be changed: policy")
            && dry.out.contains("1 to do"),
        "{}",
        dry.out
    );
    assert_eq!(rules().await, weak["policy"]);
    let mended = run(&[]);
    assert!(mended.out.contains("1 done"), "{}", mended.out);
    assert!(rules().await.as_str().unwrap().contains("pki_edge/sign/edge"));
}

/// A policy for a mistyped mount is right in form, and of no use.
#[tokio::test(flavor = "multi_thread")]
async fn vault_names_the_mounts_and_roles_that_are_missing() {
    let vault = Vault::start().await;
    let warnings = |token: &str, more: &[&str]| -> Vec<String> {
        let run = setup("vault", &vault.address(), token, more);
        assert_eq!(run.code, 0, "{}", run.shown(&[]));
        let lines = run.out.lines().filter_map(|line| line.strip_prefix("! "));
        lines.map(str::to_owned).collect()
    };
    let root = vault.root_token.clone();
    let begins = |warnings: &[String], with: &[&str]| {
        let matches = warnings
            .iter()
            .zip(with)
            .all(|(said, with)| said.starts_with(with));
        assert!(
            matches && warnings.len() == with.len(),
            "{warnings:?}, not {with:?}"
        );
    };
    vault.enable_pki("pki_int", "example.com").await;
    let kv = |version: &str| json!({ "type": "kv", "options": { "version": version } });
    vault.write("sys/mounts/old", kv("1")).await;
    vault.write("sys/mounts/new", kv("2")).await;
    begins(&warnings(&root, &["-kv-mount=new"]), &[]);
    begins(
        &warnings(&root, &["-kv-mount=old"]),
        &["mount old is not KV version 2"],
    );
    begins(
        &warnings(&root, &["-kv-mount=gone"]),
        &["`vault_kv` has no mount gone"],
    );
    let mistyped = warnings(&root, &["-kv-mount=new", "-pki-role=egde", "-dry-run"]);
    begins(&mistyped, &["mount pki_int has no role egde"]);
    let no_pki = warnings(&root, &["-kv-mount=new", "-pki-mount=old"]);
    begins(&no_pki, &["mount old is of type kv, not pki"]);
    let gone = warnings(&root, &["-kv-mount=new", "-pki-mount=gone"]);
    begins(&gone, &["`vault_pki` has no mount gone"]);
    // Who may write policies and nothing else is not kept from it.
    let rules = "path \"sys/policies/acl/*\" { capabilities = [\"create\", \"read\", \"update\"] }";
    vault.policy("writer", rules).await;
    let writer = vault.create_token(&["writer"], "1h").await;
    begins(&warnings(&writer, &[]), &["sys/mounts cannot be read"]);
}

/// Documents that name an issuer need a right at a path of its own.
#[tokio::test(flavor = "multi_thread")]
async fn vault_gets_a_policy_for_the_issuers_that_are_named_and_keeps_it() {
    let vault = Vault::start().await;
    let named = ["-pki-issuer=g2", "-pki-issuer=g3"];
    let run = |more: &[&str]| setup("vault", &vault.address(), &vault.root_token, more);
    // Not asked for, not made.
    let first = run(&[]);
    assert!(
        first.out.contains("2 done") && !first.out.contains("issuer"),
        "{}",
        first.out
    );

    let dry = run(&[&named[..], &["-dry-run"]].concat());
    assert!(
        dry.out.contains("+ policy portreeve-pki-issuer would be created") && dry.out.contains("1 to do"),
        "{}",
        dry.out
    );
    let policies = vault.read("sys/policies/acl?list=true").await.to_string();
    assert!(
        !policies.contains("portreeve-pki-issuer"),
        "a dry run changed {policies}"
    );
    let done = run(&named);
    assert!(done.out.contains("1 done"), "{}", done.out);
    assert!(run(&named).out.contains("Nothing to do"));

    // With it, and no more than it, a certificate may be had from both.
    assert!(
        first.out.contains("! `vault_pki` has no mount pki_int"),
        "{}",
        first.out
    );
    vault.enable_pki("pki_int", "example.com").await;
    let issuers = async || vault.read("pki_int/issuers?list=true").await["data"]["keys"].clone();
    let root = issuers().await[0].as_str().unwrap().to_owned();
    vault
        .write(&format!("pki_int/issuer/{root}"), json!({ "issuer_name": "g2" }))
        .await;
    let more = json!({ "common_name": "g3", "ttl": "8760h", "key_type": "ec", "key_bits": 256, "issuer_name": "g3" });
    vault.write("pki_int/root/generate/internal", more).await;
    let token = vault.create_token(&["portreeve-pki-issuer"], "5m").await;
    let mut request = rcgen::CertificateParams::new(vec!["www.example.com".to_owned()]).unwrap();
    request.distinguished_name = rcgen::DistinguishedName::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = request.serialize_request(&key).unwrap().pem().unwrap();
    let sign = async |path: &str| {
        let body = json!({ "csr": csr, "common_name": "www.example.com" });
        vault.call_as(&token, Method::POST, path, body).await.unwrap()
    };
    for (path, status) in [
        ("pki_int/issuer/g2/sign/edge", 200),
        ("pki_int/issuer/g3/sign/edge", 200),
        ("pki_int/issuer/default/sign/edge", 403),
        ("pki_int/sign/edge", 403),
    ] {
        let answer = sign(path).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
    }

    let keys = Backend::start("keys").await;
    keys.behave(Behaviour {
        body: Some(RsaIssuer::new().jwks().into()),
        ..Behaviour::default()
    });
    let url = format!("-nomad-jwks-url=http://{}/jwks.json", keys.address());
    let policies = async || {
        let role = vault.read("auth/jwt-nomad/role/portreeve").await;
        role["data"]["token_policies"].to_string()
    };
    // The policy may be there for somebody else.
    let role = run(&[url.as_str()]);
    assert!(role.out.contains("3 done"), "{} {}", role.out, role.error);
    let held = policies().await;
    assert!(!held.contains("portreeve-pki-issuer"), "{held}");
    // A role that has it keeps it when it is set up again by somebody who does not name the issuers.
    let role = run(&[&named[..], &[url.as_str()]].concat());
    assert!(role.out.contains("1 done"), "{} {}", role.out, role.error);
    for _ in 0..2 {
        let held = policies().await;
        assert!(held.contains("portreeve-pki-issuer"), "{held}");
        assert!(run(&[url.as_str()]).out.contains("Nothing to do"));
    }
}

/// Nomad's side is `support::nomad`; the real one is asked by `tests/nomad`.
#[tokio::test(flavor = "multi_thread")]
async fn nomad_gets_a_policy_that_is_bound_to_the_job() {
    let nomad = NomadContract::start("management").await;
    let address = format!("unix://{}", nomad.socket.display());
    let run = |more: &[&str]| setup("nomad", &address, "management", more);
    let dry = run(&["-dry-run"]);
    assert_eq!(dry.code, 0, "{}", dry.error);
    assert!(
        dry.out.contains("+ policy portreeve would be created") && dry.out.contains("1 to do"),
        "{}",
        dry.out
    );
    assert_eq!(nomad.policy("portreeve"), None, "a dry run changed something");

    let done = run(&[]);
    assert_eq!(done.code, 0, "{}", done.error);
    assert!(
        done.out.contains("+ policy portreeve created") && done.out.contains("1 done"),
        "{}",
        done.out
    );
    let made = nomad.policy("portreeve").unwrap();
    let job = json!({ "Namespace": "default", "JobID": "portreeve", "Group": "", "Task": "" });
    assert_eq!(made["JobACL"], job);
    assert_eq!(
        made["Rules"],
        "namespace \"*\" {\n  capabilities = [\"read-job\"]\n}\n"
    );
    let again = run(&[]);
    assert!(
        again.out.contains("= policy portreeve is there") && again.out.contains("Nothing to do"),
        "{}",
        again.out
    );
    assert_eq!(nomad.policy("portreeve").unwrap(), made);

    // Variables on top, for a job of another name and namespace.
    let job = [
        "-variables=portreeve/*",
        "-nomad-namespace=ingress",
        "-nomad-job=edge",
        "-services-of=shop",
    ];
    let refused = run(&job);
    assert_eq!((refused.code, &*refused.out), (1, ""));
    assert!(
        refused
            .error
            .contains("policy portreeve of Nomad belongs to the job \"portreeve\""),
        "{}",
        refused.error
    );
    assert_eq!(nomad.policy("portreeve").unwrap(), made);
    let job = [&job[..], &["-replace-job"]].concat();
    let dry = run(&[&job[..], &["-dry-run"]].concat());
    assert!(
        dry.out
            .contains("~ policy portreeve would be changed: Rules, JobACL"),
        "{}",
        dry.out
    );
    assert_eq!(
        nomad.policy("portreeve").unwrap(),
        made,
        "a dry run changed something"
    );
    let changed = run(&job);
    assert!(
        changed.out.contains("~ policy portreeve changed: Rules, JobACL"),
        "{}",
        changed.out
    );
    let policy = nomad.policy("portreeve").unwrap();
    assert_eq!(policy["JobACL"]["JobID"], "edge");
    let rules = policy["Rules"].as_str().unwrap();
    assert!(
        rules.contains("namespace \"ingress\"") && rules.contains("path \"portreeve/*\""),
        "{rules}"
    );
    assert!(run(&job).out.contains("Nothing to do"));

    // What somebody changed by hand is put right, and named.
    let mut weakened = policy.clone();
    weakened["Rules"] = "".into();
    nomad.set_policy("portreeve", weakened);
    let mended = run(&job);
    assert!(
        mended.out.contains("~ policy portreeve changed: Rules"),
        "{}",
        mended.out
    );
    assert_eq!(nomad.policy("portreeve").unwrap()["Rules"], policy["Rules"]);

    let refused = setup("nomad", &address, "a task's own", &[]);
    assert_eq!(refused.code, 1);
    assert!(refused.error.contains("403"), "{}", refused.error);
    assert!(
        refused.error.contains("needs a management token"),
        "{}",
        refused.error
    );
}

/// A token that is good for something, though not for this.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_says_what_is_needed() {
    let consul = Consul::start_with_acl().await;
    let weak = consul
        .create_token("weak", "key_prefix \"\" { policy = \"write\" }")
        .await;
    let policies = async || consul.expect(Method::GET, "/v1/acl/policies", "").await;
    let before = policies().await;
    let refused = setup("consul", &consul.address(), &weak.secret, &[]);
    assert_eq!(refused.code, 1, "{}", refused.out);
    for said in ["GET /v1/acl/policies", "Permission denied", "acl = \"write\""] {
        assert!(refused.error.contains(said), "{said}: {}", refused.error);
    }
    assert!(!refused.error.contains(&weak.secret), "{}", refused.error);
    assert_eq!(policies().await, before);

    // To read is enough for a dry run, and not for the rest.
    let reader = consul.create_token("reader", "acl = \"read\"").await;
    let dry = setup("consul", &consul.address(), &reader.secret, &["-dry-run"]);
    assert_eq!(dry.code, 0, "{}", dry.error);
    let refused = setup("consul", &consul.address(), &reader.secret, &[]);
    assert_eq!(refused.code, 1, "{}", refused.out);
    for said in ["PUT /v1/acl/policy", "Permission denied", "acl = \"write\""] {
        assert!(refused.error.contains(said), "{said}: {}", refused.error);
    }

    let vault = Vault::start().await;
    vault
        .policy("weak", "path \"secret/*\" { capabilities = [\"read\"] }")
        .await;
    let weak = vault.create_token(&["weak"], "1h").await;
    let refused = setup("vault", &vault.address(), &weak, &[]);
    assert_eq!(refused.code, 1, "{}", refused.out);
    for said in [
        "/v1/sys/policies/acl/portreeve-pki",
        "permission denied",
        "`sys/policies/acl/*`",
    ] {
        assert!(refused.error.contains(said), "{said}: {}", refused.error);
    }
    assert!(!refused.error.contains(&weak), "{}", refused.error);
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let refused = setup("consul", "127.0.0.1:1", "x", &[]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.error.contains("Consul at http://127.0.0.1:1"),
        "{}",
        refused.error
    );
}
