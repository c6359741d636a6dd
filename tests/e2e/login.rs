//! The agent logs in to Consul with an identity that somebody else signed: rotated, forgotten, refused, given back.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use crate::credentials::an_identity_is_told_before_it_ends;
use crate::datacenters::{document, start_dc2};
use crate::stack::{GATEWAY, Options, Stack, route};
use crate::support::backend::{Backend, Behaviour};
use crate::support::client::Request;
use crate::support::consul::Consul;
use crate::support::load::Load;
use crate::support::ports::free_port;
use crate::support::rsa::RsaIssuer;
use crate::support::{START_LIMIT, wait_for};

const METHOD: &str = "workloads";

/// Tries to log in come up to 22 s apart, and those of a watch that is refused up to 45 s.
const TRIED_AGAIN: Duration = Duration::from_secs(120);
/// So long a token is not replaced because it is refused.
const NEW_TOKEN: Duration = Duration::from_secs(30);

/// A gateway whose agent was up before there was anything to log in at, and what it logs in with.
struct LoggingIn {
    stack: Stack,
    issuer: RsaIssuer,
    identity: PathBuf,
    _keys: Backend,
    _directory: tempfile::TempDir,
}

async fn start(token_life: &str) -> LoggingIn {
    start_with(token_life, Options::default()).await
}

async fn start_with(token_life: &str, options: Options) -> LoggingIn {
    let directory = tempfile::tempdir().unwrap();
    let identity = directory.path().join("identity.jwt");
    let issuer = RsaIssuer::new();
    std::fs::write(&identity, issuer.sign(claims("portreeve"))).unwrap();
    let keys = Backend::start("keys").await;
    keys.behave(Behaviour {
        body: Some(issuer.jwks().into()),
        ..Behaviour::default()
    });
    let rules = include_str!("../../docs/deploy/consul-acl-policy.hcl");
    let stack = Stack::start(Options {
        consul_policy: Some(rules.to_owned()),
        consul_login: Some((METHOD.to_owned(), identity.clone())),
        ..options
    })
    .await;
    let method = json!({
        "Name": METHOD, "Type": "jwt", "MaxTokenTTL": token_life,
        "Config": {
            "JWKSURL": format!("http://{}/jwks.json", keys.address()), "JWTSupportedAlgs": ["RS256"],
            "BoundAudiences": ["consul.io"], "ClaimMappings": { "job": "job" },
        },
    });
    stack
        .consul
        .expect(Method::PUT, "/v1/acl/auth-method", method.to_string())
        .await;
    let role = json!({ "Name": "portreeve", "Policies": [{ "Name": crate::stack::POLICY }] });
    stack
        .consul
        .expect(Method::PUT, "/v1/acl/role", role.to_string())
        .await;
    let rule = json!({
        "AuthMethod": METHOD, "BindType": "role", "BindName": "portreeve", "Selector": "value.job == \"portreeve\"",
    });
    stack
        .consul
        .expect(Method::PUT, "/v1/acl/binding-rule", rule.to_string())
        .await;
    // Until now there was nothing to log in at, and each try waits longer than the one before.
    wait_for("the login", TRIED_AGAIN, async || {
        let source = source(&stack).await?;
        anyhow::ensure!(source["ok"] == true, "{source}");
        Ok(())
    })
    .await;
    LoggingIn {
        stack,
        issuer,
        identity,
        _keys: keys,
        _directory: directory,
    }
}

fn claims(job: &str) -> Value {
    json!({ "aud": "consul.io", "job": job })
}

/// Accessors of the tokens that were got by logging in.
async fn tokens(consul: &Consul) -> Vec<String> {
    let all = consul
        .expect(Method::GET, &format!("/v1/acl/tokens?authmethod={METHOD}"), "")
        .await;
    let tokens = all.as_array().into_iter().flatten();
    tokens
        .map(|token| token["AccessorID"].as_str().unwrap().to_owned())
        .collect()
}

async fn revoke_all(consul: &Consul) {
    for accessor in tokens(consul).await {
        consul
            .expect(Method::DELETE, &format!("/v1/acl/token/{accessor}"), "")
            .await;
    }
}

/// Another token than the one that was revoked may have to be got before that.
async fn until_served_by(stack: &Stack, request: &Request, what: &str, backend: &str) {
    wait_for(what, TRIED_AGAIN, async || {
        let reply = stack.client().send(request).await;
        let reply = reply.map_err(|failure| anyhow::anyhow!("{failure}"))?;
        anyhow::ensure!(
            reply.backend() == Some(backend),
            "{} of {:?}",
            reply.status,
            reply.backend()
        );
        Ok(())
    })
    .await;
}

async fn source(stack: &Stack) -> anyhow::Result<Value> {
    let status = stack.agent.api(Method::GET, "/v1/status", "").await?.ok()?.json();
    let sources = status["sources"].as_array().into_iter().flatten();
    let login = sources
        .into_iter()
        .find(|source| source["name"] == "consul login");
    login.cloned().ok_or_else(|| anyhow::anyhow!("{status:#}"))
}

/// The token of the last login hides for a while that there will be no other.
#[tokio::test(flavor = "multi_thread")]
async fn the_identity_that_a_login_shows_is_told_before_it_ends() {
    let test = start("24h").await;
    let (_backend, request) = test.stack.shop().await;
    let agent = &test.stack.agent;
    let sign = |start: i64, end: i64| {
        let mut claims = claims("portreeve");
        (claims["iat"], claims["nbf"], claims["exp"]) = (start.into(), start.into(), end.into());
        test.issuer.sign(claims)
    };
    let shown = ("Consul", "consul credentials");
    an_identity_is_told_before_it_ends(agent, shown, &test.identity, sign).await;
    // A new login takes the last of them.
    revoke_all(&test.stack.consul).await;
    let two = Backend::start("two").await;
    test.stack.register("orders", &two).await;
    until_served_by(&test.stack, &request, "an instance that came later", "two").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_serves_and_survives_what_may_happen_to_its_token() {
    let mut test = start("24h").await;
    let (stack, issuer, identity) = (&mut test.stack, &test.issuer, &test.identity);
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    stack.register("orders", &one).await;
    stack.put("gateway", GATEWAY).await;
    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    let request = Request::get("shop.example.com", "/");
    until_served_by(stack, &request, "the route", "one").await;
    assert_eq!(
        tokens(&stack.consul).await.len(),
        1,
        "one login for all that is watched"
    );
    let expires = source(stack).await.unwrap()["credentials"]["consul token"].as_i64();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    assert!(
        expires.is_some_and(|end| (end - now - 24 * 3600).abs() < 300),
        "{expires:?}"
    );

    // Forgotten: another login, and nobody notices.
    let load = Load::start(100, stack.client(), request.clone());
    revoke_all(&stack.consul).await;
    stack.register("orders", &two).await;
    until_served_by(stack, &request, "a change after that", "two").await;
    assert_eq!(tokens(&stack.consul).await.len(), 1);

    // Forgotten while the identity is one that no rule takes: told, everything is kept.
    std::fs::write(identity, issuer.sign(claims("other"))).unwrap();
    revoke_all(&stack.consul).await;
    stack.deregister("orders", &one).await;
    let line = stack
        .agent
        .wait_for_log("cannot log in with the auth method")
        .await;
    assert!(line.contains(METHOD) && line.contains("binding rule"), "{line}");
    wait_for("the failed login to be shown", crate::stack::SOON, async || {
        let source = source(stack).await?;
        anyhow::ensure!(
            source["ok"] == false && source["problem"].is_string(),
            "{source:#}"
        );
        Ok(())
    })
    .await;
    let mut seen = Vec::new();
    for _ in 0..20 {
        seen.extend(
            stack
                .client()
                .send(&request)
                .await
                .unwrap()
                .backend()
                .map(str::to_owned),
        );
    }
    assert!(
        seen.iter().any(|name| name == "one"),
        "what was known is kept: {seen:?}"
    );

    // A file that is gone is no worse; a good one mends it without a restart.
    std::fs::remove_file(identity).unwrap();
    stack.agent.wait_for_log("cannot log in: ").await;
    std::fs::write(identity, issuer.sign(claims("portreeve"))).unwrap();
    wait_for("the deregistration to be seen", TRIED_AGAIN, async || {
        for _ in 0..20 {
            let reply = stack
                .client()
                .send(&request)
                .await
                .map_err(|e| anyhow::anyhow!("{e:?}"))?;
            anyhow::ensure!(reply.backend() == Some("two"), "{:?}", reply.backend());
        }
        Ok(())
    })
    .await;
    let report = load.finish().await;
    println!("consul tokens forgotten: {report}");
    report.assert_none_lost();

    // At the end the token is given back.
    assert_eq!(tokens(&stack.consul).await.len(), 1);
    stack.agent.terminate();
    assert_eq!(tokens(&stack.consul).await, [""; 0]);
}

/// Consul asks the other datacenter without a local token, and with a global one; neither is one that a login would mend.
#[tokio::test(flavor = "multi_thread")]
async fn a_datacenter_that_does_not_know_the_token_makes_nobody_log_in() {
    let wan = free_port();
    let options = Options {
        consul_settings: Some(json!({ "ports": { "serf_wan": wan } })),
        ..Options::default()
    };
    let mut test = start_with("24h", options).await;
    let stack = &mut test.stack;
    let _other = start_dc2(&stack.consul, wan, true).await;
    let first = tokens(&stack.consul).await;
    assert_eq!(first.len(), 1);
    let one = Backend::start("one").await;
    stack.register("orders", &one).await;
    stack.put("gateway", GATEWAY).await;
    stack.put("shop", &document("[\"dc2\"]", "")).await;
    let request = Request::get("shop.example.com", "/");
    until_served_by(stack, &request, "the route", "one").await;
    let line = stack.agent.wait_for_log(&refusal("Permission denied")).await;
    for said in [METHOD, "-token-locality=global"] {
        assert!(line.contains(said), "{said}: {line}");
    }
    until_refused(stack, 2).await;
    assert_eq!(tokens(&stack.consul).await, first);

    // A global token: dc2 does not know it, as it has no primary datacenter but itself.
    let path = format!("/v1/acl/auth-method/{METHOD}");
    let mut method = stack.consul.expect(Method::GET, &path, "").await;
    method["TokenLocality"] = json!("global");
    stack.consul.expect(Method::PUT, &path, method.to_string()).await;
    let second = until_replaced(stack, &first).await;
    let line = stack.agent.wait_for_log(&refusal("ACL not found")).await;
    assert!(line.contains("primary_datacenter"), "{line}");
    // A new one would not be replaced in any case.
    tokio::time::sleep(NEW_TOKEN).await;
    until_refused(stack, 2).await;
    assert_eq!(tokens(&stack.consul).await, second);

    // Where its own datacenter does not know it either, another takes its place.
    let third = until_replaced(stack, &second).await;
    until_refused(stack, 2).await;
    assert_eq!(tokens(&stack.consul).await, third);
}

/// How dc2's refusal reads. The own datacenter uses the same words for a token that is being replaced.
fn refusal(words: &str) -> String {
    format!("dc=dc2 with 403: rpc error making call: {words}")
}

/// The tokens that are there, now that these are not.
async fn until_replaced(stack: &Stack, former: &[String]) -> Vec<String> {
    revoke_all(&stack.consul).await;
    wait_for("another token in its place", TRIED_AGAIN, async || {
        let now = tokens(&stack.consul).await;
        anyhow::ensure!(now.len() == 1 && now != former, "{now:?}");
        Ok(now)
    })
    .await
}

/// The watch in dc2 is refused so many times more.
async fn until_refused(stack: &Stack, times: u64) {
    let before = refusals(stack).await.unwrap();
    wait_for("the other datacenter to refuse", TRIED_AGAIN, async || {
        let now = refusals(stack).await?;
        anyhow::ensure!(now >= before + times, "{now}, and {before} before");
        Ok(())
    })
    .await;
}

async fn refusals(stack: &Stack) -> anyhow::Result<u64> {
    let status = stack.agent.api(Method::GET, "/v1/status", "").await?.ok()?.json();
    let sources = status["sources"].as_array().into_iter().flatten();
    let errors = sources
        .into_iter()
        .find(|source| {
            source["name"]
                .as_str()
                .is_some_and(|name| name.ends_with("dc=dc2"))
        })
        .and_then(|source| source["errors_total"].as_u64());
    errors.ok_or_else(|| anyhow::anyhow!("{status}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_replaced_before_it_ends() {
    // The shortest life that Consul grants: replaced after 40 s.
    let test = start("60s").await;
    let stack = &test.stack;
    let backend = Backend::start("one").await;
    stack.register("orders", &backend).await;
    stack.put("gateway", GATEWAY).await;
    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    let request = Request::get("shop.example.com", "/");
    until_served_by(stack, &request, "the route", "one").await;
    let first = tokens(&stack.consul).await;
    assert_eq!(first.len(), 1);
    // Those of the time when there was nothing to log in at.
    let failures = source(stack).await.unwrap()["errors_total"].clone();
    wait_for(
        "another token in its place",
        Duration::from_secs(120),
        async || {
            let now = tokens(&stack.consul).await;
            anyhow::ensure!(now.len() == 1 && now != first, "{now:?}");
            Ok(())
        },
    )
    .await;
    let source = source(stack).await.unwrap();
    assert_eq!(
        (&source["ok"], &source["errors_total"]),
        (&json!(true), &failures),
        "{source:#}"
    );
}

/// A killed agent cannot give its token back. The next one finds it in the file, however often that happens.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_s_token_is_taken_up_by_the_next() {
    // The token in a file beside the identity.
    let mut test = start_with(
        "24h",
        Options {
            keeps_consul_token: true,
            ..Options::default()
        },
    )
    .await;
    let sink = test.identity.with_file_name("token");
    let stack = &mut test.stack;
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    stack.register("orders", &one).await;
    stack.put("gateway", GATEWAY).await;
    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    let request = Request::get("shop.example.com", "/");
    until_served_by(stack, &request, "the route", "one").await;
    let first = tokens(&stack.consul).await;
    assert_eq!(first.len(), 1);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&sink).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    let load = Load::start(100, stack.client(), request.clone());
    for _ in 0..3 {
        restart_killed(stack, "goes on with the token of the last start").await;
        assert_eq!(tokens(&stack.consul).await, first);
    }
    stack.register("orders", &two).await;
    until_served_by(stack, &request, "a change with that token", "two").await;

    // Forgotten meanwhile, or damaged by a machine that lost its power: another takes its place.
    // Killed first: an agent that met the loss would log in anew and write down what it got.
    stack.agent.kill();
    revoke_all(&stack.consul).await;
    start_again(stack, "logged in to").await;
    let second = tokens(&stack.consul).await;
    assert!(second.len() == 1 && second != first, "{second:?}");
    std::fs::write(&sink, [0; 36]).unwrap();
    restart_killed(stack, "the token of the last start is damaged").await;
    assert_eq!(tokens(&stack.consul).await.len(), 2, "one was lost with its file");
    restart_killed(stack, "goes on with the token of the last start").await;
    let with_lost = tokens(&stack.consul).await;

    // None of this login's: whoever needs it finds it as it was.
    let other = stack.consul.create_token("other", "").await.secret;
    let own = std::fs::read_to_string(&sink).unwrap();
    std::fs::write(&sink, &other).unwrap();
    restart_killed(stack, "not of this auth method").await;
    assert_eq!(tokens(&stack.consul).await.len(), 3, "a token of its own");
    assert_eq!(std::fs::read_to_string(&sink).unwrap(), other);
    load.finish().await.assert_none_lost();
    stack.agent.terminate();
    assert_eq!(tokens(&stack.consul).await, with_lost, "given back");
    assert_eq!(std::fs::read_to_string(&sink).unwrap(), other);

    // Its own it takes away with the token.
    std::fs::write(&sink, own).unwrap();
    start_again(stack, "goes on with the token of the last start").await;
    stack.agent.terminate();
    assert!(!sink.exists());
    assert_eq!(tokens(&stack.consul).await, second);
}

async fn restart_killed(stack: &mut Stack, line: &str) {
    stack.agent.kill();
    start_again(stack, line).await;
}

async fn start_again(stack: &mut Stack, line: &str) {
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    let log = &mut stack.agent.process;
    log.wait_for_log_after(start, line, START_LIMIT).await;
    stack.agent.wait_ready().await;
}
