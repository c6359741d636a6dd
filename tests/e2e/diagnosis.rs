//! One problem, told the same everywhere: by the API, the CLI, the status key in Consul and the log.

use hyper::Method;
use serde_json::{Value, json};

use crate::stack::{GATEWAY, Options, SOON, Stack, route};
use crate::support::agent::run;
use crate::support::backend::Backend;
use crate::support::client::Request;
use crate::support::wait_for;

async fn diagnostics_of(stack: &Stack) -> anyhow::Result<Vec<Value>> {
    let status = stack.agent.api(Method::GET, "/v1/status", "").await?;
    let status: Value = serde_json::from_str(&status.text())?;
    Ok(status["diagnostics"].as_array().cloned().unwrap_or_default())
}

async fn until_said(stack: &Stack, what: &str, expected: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    wait_for(what, SOON, async || {
        let said = diagnostics_of(stack).await?;
        anyhow::ensure!(expected(&said), "{said:#?}");
        Ok(said)
    })
    .await
}

/// The lines of a JSON log that tell of a diagnostic with this code.
fn logged(stack: &Stack, code: &str) -> Vec<Value> {
    let lines = stack.agent.process.log();
    let lines = lines.lines().filter_map(|line| {
        let start = line.find('{')?;
        serde_json::from_str::<Value>(&line[start..]).ok()
    });
    lines.filter(|line| line["code"] == code).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelt_service_is_told_alike_everywhere() {
    let stack = Stack::start(Options {
        arguments: vec!["-log-json"],
        ..Options::default()
    })
    .await;
    let orders = Backend::start("one").await;
    stack.register("orders", &orders).await;
    stack.put("gateway", GATEWAY).await;
    stack
        .put("shop", &route("shop", "shop.example.com", "ordres"))
        .await;
    // The hint comes from the catalog, which is asked only now.
    let said = until_said(&stack, "the name that was meant", |said| {
        said.len() == 1 && said[0]["fix"] == "did you mean \"orders\"?"
    })
    .await;
    assert_eq!(said[0]["code"], "unknown-service");
    assert_eq!(said[0]["origin"]["line"], 7, "{:#}", said[0]);
    assert_eq!(
        said[0]["origin"]["document"],
        json!({ "kv": "portreeve/config/shop" }),
        "{:#}",
        said[0]
    );

    let socket = format!("-api-socket={}", stack.agent.api.display());
    let folder = stack.data.parent().unwrap();
    let shown = run(folder, &["status", "-json", &socket]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["diagnostics"], Value::Array(said.clone()), "the CLI");
    let text = String::from_utf8(run(folder, &["status", &socket]).stdout).unwrap();
    assert!(
        text.contains("did you mean \"orders\"?") && text.contains("shop:7:5"),
        "{text}"
    );

    let first = said[0].clone();
    wait_for("the node's key", std::time::Duration::from_secs(60), async || {
        let key = stack.consul.get("portreeve/status/nodes/node-1").await;
        let key: Value = serde_json::from_str(&key.unwrap_or_default())?;
        anyhow::ensure!(key["diagnostics"] == json!([first]), "{key:#}");
        Ok(())
    })
    .await;

    let lines = wait_for("the log", SOON, async || {
        let lines = logged(&stack, "unknown-service");
        anyhow::ensure!(!lines.is_empty());
        Ok(lines)
    })
    .await;
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert_eq!(lines[0]["@level"], "warn");
    assert_eq!(lines[0]["document"], "portreeve/config/shop");
    assert_eq!(lines[0]["line"], 7);
    for part in [&first["message"], &first["reason"]] {
        let part = part.as_str().unwrap();
        assert!(
            lines[0]["@message"].as_str().unwrap().contains(part),
            "{:#}",
            lines[0]
        );
    }

    // Over: everywhere.
    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    stack
        .until(&Request::get("shop.example.com", "/"), "the service", |reply| {
            reply.status == 200
        })
        .await;
    until_said(&stack, "the end", <[Value]>::is_empty).await;
    wait_for("the end in the log", SOON, async || {
        let lines = logged(&stack, "unknown-service");
        anyhow::ensure!(lines.len() == 2, "{lines:#?}");
        anyhow::ensure!(
            lines[1]["@message"]
                .as_str()
                .unwrap()
                .starts_with("in order again")
        );
        Ok(())
    })
    .await;
}

/// What was never in the log before: each code once, with its place.
#[tokio::test(flavor = "multi_thread")]
async fn problems_between_documents_are_logged_with_their_place() {
    let stack = Stack::start(Options {
        arguments: vec!["-log-json"],
        ..Options::default()
    })
    .await;
    let https = "\ngateway \"edge\" {\n  listener \"web\" {\n    port = $HTTP\n  }\n\n  listener \"tls\" {\n    port     = $HTTPS\n    protocol = \"https\"\n    tls { certificates = [\"www\"] }\n  }\n}\n";
    stack.put("gateway", https).await;
    let respond = |name: &str, gateway: &str| {
        route(name, "shop.example.com", "x")
            .replace("\"edge\"", &format!("{gateway:?}"))
            .replace(
                "    backend \"consul\" \"x\" {}",
                "    direct_response {\n      status = 204\n    }",
            )
    };
    stack.put("one", &respond("one", "edge")).await;
    stack.put("two", &respond("one", "edge")).await;
    stack.put("three", &respond("three", "edge")).await;
    stack.put("four", &respond("four", "egde")).await;
    stack
        .put(
            "five",
            &route("five", "five.example.com", "x").replace("\"consul\" \"x\"", "\"upstream\" \"x\""),
        )
        .await;
    for (code, document, line) in [
        ("unknown-reference", "gateway", 10),
        ("listener-withheld", "gateway", 7),
        ("duplicate-name", "two", 2),
        ("shadowed-rule", "three", 6),
        ("not-attached", "four", 3),
        ("unknown-reference", "five", 7),
    ] {
        wait_for(code, SOON, async || {
            let found = logged(&stack, code);
            let document = format!("portreeve/config/{document}");
            let here: Vec<_> = found
                .iter()
                .filter(|said| said["document"] == *document)
                .collect();
            anyhow::ensure!(
                here.len() == 1 && here[0]["line"] == line,
                "{code} in {document}: {found:#?}"
            );
            Ok(())
        })
        .await;
    }
    until_said(&stack, "the same in the API", |said| said.len() == 6).await;
}
