//! `portreeve setup nomad`.

use serde_json::{Value, json};

use super::Common;
use super::desired::{Desired, Server};
use super::job::{Holders, Job};
use crate::cli::failure::Failure;
use crate::cli::terminal::Terminal;
use crate::sources::agent_api::Product;

/// A policy to read Nomad's services, bound to the agent's job
///
/// Only where Nomad's ACLs are on. A task may read the services of a namespace that an upstream names without it; it is for
/// `namespace = "*"` and for the event stream.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// The namespace whose services upstreams may name; * for all.
    #[arg(long, value_name = "NAME", default_value = "*")]
    services_of: String,
    /// Also read the variables under this path, such as portreeve/*, for certificates. The agent's job may read
    /// nomad/jobs/<its name> in any case.
    #[arg(long, value_name = "PATH")]
    variables: Option<String>,
    /// The namespace of those variables; * for all. Left out: that of the agent's job.
    #[arg(long, value_name = "NAME", requires = "variables")]
    variables_of: Option<String>,
    #[command(flatten)]
    job: Job,
}

const NEEDS: &str = "a management token";

pub(super) async fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<()> {
    let common = &arguments.common;
    let client = common.client(Product::Nomad)?;
    let mut server = Server::new(&client, common.dry_run, terminal, NEEDS);
    let variables_of = arguments
        .variables_of
        .as_ref()
        .unwrap_or(&arguments.job.nomad_namespace);
    let variables = arguments.variables.as_deref().map(|path| (&**variables_of, path));
    let rules = rules(&arguments.services_of, variables)?;
    let path = format!("acl/policy/{}", common.name);
    let found = server.read(&path).await?;
    if let Some(found) = &found {
        let what = format!("policy {} of Nomad", common.name);
        arguments.job.may_have(&what, &holders(&found["JobACL"]))?;
    }
    let wanted = json!({
        "Name": common.name,
        "Description": "Portreeve's agent reads services",
        "Rules": rules,
        "JobACL": { "Namespace": arguments.job.nomad_namespace, "JobID": arguments.job.nomad_job },
    });
    let what = format!("policy {}", common.name);
    server
        .ensure(Desired {
            what,
            found,
            wanted,
            path: &path,
        })
        .await?;
    server.finish()
}

/// A policy may be bound to no job.
fn holders(bound: &Value) -> Holders {
    let named = |field: &str| bound[field].as_str().filter(|name| !name.is_empty());
    let one = |name: Option<&str>| name.into_iter().map(str::to_owned).collect();
    Holders {
        namespaces: one(named("JobID").and(named("Namespace"))),
        jobs: one(named("JobID")),
    }
}

/// Variables are a namespace and a path.
fn rules(services_of: &str, variables: Option<(&str, &str)>) -> anyhow::Result<String> {
    // All stand in a rule: they must not become another one.
    let is_plain = |text: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_~/.*".contains(&byte);
        !text.is_empty() && text.bytes().all(plain)
    };
    let parts = variables.map(|(namespace, path)| [namespace, path]);
    let mut named = std::iter::once(services_of).chain(parts.into_iter().flatten());
    if let Some(odd) = named.find(|text| !is_plain(text)) {
        let failure = Failure::new(format!("{odd:?} can stand in no rule"));
        return Err(failure.fix("letters, digits and -_~/.*").into());
    }
    const SERVICES: &str = "  capabilities = [\"read-job\"]\n";
    let rule = |namespace: &str, rights: String| format!("namespace \"{namespace}\" {{\n{rights}}}\n");
    let Some((namespace, path)) = variables else {
        return Ok(rule(services_of, SERVICES.to_owned()));
    };
    let variables =
        format!("  variables {{\n    path \"{path}\" {{\n      capabilities = [\"read\"]\n    }}\n  }}\n");
    if namespace == services_of {
        return Ok(rule(services_of, format!("{SERVICES}\n{variables}")));
    }
    // Of the rules for a namespace Nomad takes the nearest alone.
    let of_variables = match matches_namespace(services_of, namespace) {
        true => format!("{SERVICES}\n{variables}"),
        false => variables,
    };
    Ok(format!(
        "{}\n{}",
        rule(services_of, SERVICES.to_owned()),
        rule(namespace, of_variables)
    ))
}

/// As Nomad matches: `*` stands for any text.
fn matches_namespace(pattern: &str, namespace: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else {
        return pattern == namespace;
    };
    let Some(rest) = namespace.strip_prefix(head) else {
        return false;
    };
    let mut ends = rest.char_indices().map(|(index, _)| index).chain([rest.len()]);
    ends.any(|index| matches_namespace(tail, &rest[index..]))
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    #[test]
    fn rules_hold_what_is_asked_and_nothing_else() {
        assert_eq!(
            rules("*", None).unwrap(),
            "namespace \"*\" {\n  capabilities = [\"read-job\"]\n}\n"
        );
        let variables =
            "  variables {\n    path \"portreeve/*\" {\n      capabilities = [\"read\"]\n    }\n  }\n";
        let services = "  capabilities = [\"read-job\"]\n";
        let with = |services_of, namespace| rules(services_of, Some((namespace, "portreeve/*"))).unwrap();
        assert_eq!(
            with("*", "default"),
            format!(
                "namespace \"*\" {{\n{services}}}\n\nnamespace \"default\" {{\n{services}\n{variables}}}\n"
            )
        );
        assert_eq!(
            with("shop", "default"),
            format!("namespace \"shop\" {{\n{services}}}\n\nnamespace \"default\" {{\n{variables}}}\n"),
            "no right to read the jobs of the other one"
        );
        assert_eq!(
            with("shop", "shop"),
            format!("namespace \"shop\" {{\n{services}\n{variables}}}\n")
        );
        assert!(rules("*\" { policy = \"write\" } #", None).is_err());
        assert!(rules("*", Some(("default", "a\" {"))).is_err());
        assert!(rules("*", Some(("a\" {", "a"))).is_err());
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, namespace, matches) in [
            ("*", "default", true),
            ("default", "default", true),
            ("default", "default-2", false),
            ("shop-*", "shop-eu", true),
            ("shop-*", "shop", false),
            ("*-eu", "shop-eu", true),
            ("*-eu", "shop-eu-2", false),
            ("a*b*", "a-b-c", true),
        ] {
            assert_eq!(
                matches_namespace(pattern, namespace),
                matches,
                "{pattern} {namespace}"
            );
        }
    }

    /// Each rule that is written, and no other, has its row on the page about security.
    #[test]
    fn every_permission_is_explained() {
        let page = include_str!("../../../docs/security.md");
        let table = page.split("\nNomad, made by ").nth(1).unwrap();
        let rows: Vec<&str> = table
            .split("\n\n")
            .nth(1)
            .unwrap()
            .lines()
            .skip(2)
            .filter_map(|row| row.split(" | ").next())
            .collect();
        let rule = Regex::new(r#"(?m)^ *(\w+) "([^"]*)" \{\n *capabilities = \["([^"]*)"\]$"#).unwrap();
        let rules = rules("*", Some(("*", "portreeve/*"))).unwrap();
        let mut written: Vec<String> = rule
            .captures_iter(&rules)
            .map(|found| match &found[1] {
                "path" => format!("| variables `{}` `{}`", &found[2], &found[3]),
                kind => format!("| `{kind} \"{}\"` `{}`", &found[2], &found[3]),
            })
            .collect();
        written.dedup();
        assert_eq!(written.len(), rules.matches("capabilities").count(), "{rules}");
        assert_eq!(rows, written);
    }
}
