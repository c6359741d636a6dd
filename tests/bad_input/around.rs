//! Cases that no document shows alone: what other documents, Consul, Vault and Envoy have to do with it.

use std::sync::Arc;

use portreeve::diagnostics::Code::*;
use portreeve::model::{
    CertificateMaterial, CertificateQuery, CertificateUpdate, Health, Instance, Lookup, Narrowing,
    Observation, Problem, ProblemKind, ServiceQuery, ServiceUpdate,
};
use portreeve::snapshot::Snapshot;
use portreeve::translate::Compiler;

use super::case::{Case, GATEWAY, SHOP, Stays, envoy_refuses, service};
use super::cases::{api_with, gateway, shop};
use super::world;

pub fn between_documents() -> Vec<Case> {
    vec![
        Case::new(
            "a name that another document holds",
            SHOP.replace("orders", "other"),
            &[DuplicateName],
            Stays::Older,
        )
        .in_document("younger"),
        Case::new(
            "a match that another document holds",
            SHOP.replace("\"shop\"", "\"younger\"").replace("orders", "other"),
            &[ShadowedRule, ShadowedRule],
            Stays::Older,
        )
        .in_document("younger"),
        Case::new(
            "an unknown gateway",
            shop("[\"edge\"]", "[\"egde\"]"),
            &[NotAttached],
            Stays::NotAttached,
        ),
        Case::new(
            "an unknown listener",
            shop("  hostnames", "  listeners = [\"webb\"]\n  hostnames"),
            &[NotAttached],
            Stays::NotAttached,
        ),
        Case::new(
            "an unknown upstream",
            shop("backend \"consul\" \"orders\"", "backend \"upstream\" \"orders\""),
            &[UnknownReference],
            Stays::ApiAnswers503("unknown-upstream"),
        ),
        Case::new(
            "an unknown upstream among others",
            api_with("    backend \"upstream\" \"next\" {}"),
            &[UnknownReference],
            Stays::ApiWithoutIt,
        ),
        Case::new(
            "every weight 0",
            shop(
                "backend \"consul\" \"orders\" {}",
                "backend \"consul\" \"orders\" { weight = 0 }",
            ),
            &[NoBackend],
            Stays::ApiAnswers503("no-backend"),
        ),
        Case::new(
            "an unknown policy bundle (it may hold a security policy)",
            api_with("    policies = [\"office-only\"]"),
            &[SecurityPolicyInvalid],
            Stays::ApiAnswers503("policy-unresolved"),
        ),
        Case::new(
            "an unknown certificate in place of the one in use (which stays)",
            gateway("[\"www\"]", "[\"wwww\"]"),
            &[UnknownReference],
            Stays::Everything,
        )
        .in_document("gateway"),
        Case::new(
            "an unknown certificate among others",
            gateway("[\"www\"]", "[\"www\", \"api\"]"),
            &[UnknownReference],
            Stays::ListenerWithoutIt,
        )
        .in_document("gateway"),
    ]
}

pub fn world_around() -> Vec<Case> {
    let orders_are =
        |what, then: fn(&mut Snapshot), codes| Case::new(what, SHOP, codes, Stays::Everything).then(then);
    vec![
        orders_are(
            "a service that nobody registered (requests answer 503)",
            |snapshot| drop(world::answer_service(snapshot, &service("orders"), vec![])),
            &[UnknownService],
        ),
        orders_are(
            "a service of nearly that name is registered",
            |snapshot| {
                world::answer_service(snapshot, &service("orders"), vec![]);
                let names = ["order-archive", "orderz", "pages"].map(Arc::from);
                snapshot.apply(Observation::ServiceNames(names.into()));
            },
            &[UnknownService],
        ),
        orders_are(
            "a service whose instances are all critical (requests answer 503, no gamble)",
            |snapshot| {
                let one = world::instance("orders", 1, "10.0.0.1", Health::Critical);
                world::answer_service(snapshot, &service("orders"), vec![one]);
            },
            &[NoHealthyInstance],
        ),
        orders_are(
            "an instance whose address is a host name (left out)",
            |snapshot| {
                let one = world::instance("orders", 1, "node-1.internal", Health::Passing);
                let two = world::instance("orders", 2, "10.0.0.2", Health::Passing);
                world::answer_service(snapshot, &service("orders"), vec![one, two]);
            },
            &[UnusableInstance],
        ),
        orders_are(
            "Consul refuses to tell (the last known instances stay)",
            |snapshot| {
                let problem = Problem::new(
                    ProblemKind::Forbidden,
                    "Consul answered 403 for the service \"orders\"",
                )
                .with_fix("give the agent's token service:read on it and node:read");
                snapshot.apply(Observation::Service(ServiceUpdate {
                    query: service("orders"),
                    result: Err(problem),
                }));
            },
            &[SourceProblem],
        ),
        orders_are(
            "a service that the token may not read (the last known instances stay)",
            |snapshot| {
                let problem = Problem::new(
                    ProblemKind::MissingPermission,
                    "Consul at http://127.0.0.1:8500 answered GET /v1/health/service/orders with 403: Permission denied",
                )
                .with_fix("grant the token: service \"orders\" { policy = \"read\" } and node_prefix \"\" { policy = \"read\" }");
                snapshot.apply(Observation::Service(ServiceUpdate {
                    query: service("orders"),
                    result: Err(problem),
                }));
            },
            &[MissingPermission],
        ),
        orders_are(
            "a service that Consul's ACLs show to nobody without a token, and the agent has none (the last known instances stay)",
            |snapshot| {
                let problem = Problem::new(
                    ProblemKind::NoToken,
                    "Consul at http://127.0.0.1:8500 answered GET /v1/health/service/orders without a token with 403: Permission denied",
                )
                .with_fix("no token is set; put one into CONSUL_HTTP_TOKEN (or `token` in the agent's settings; either is read at its start). It needs: service \"orders\" { policy = \"read\" } and node_prefix \"\" { policy = \"read\" }");
                snapshot.apply(Observation::Service(ServiceUpdate {
                    query: service("orders"),
                    result: Err(problem),
                }));
            },
            &[NoToken],
        ),
        orders_are(
            "a service that the settings of the Consul agent keep out of reach (the last known instances stay)",
            |snapshot| {
                let problem = Problem::new(
                    ProblemKind::Blocked,
                    "Consul at http://127.0.0.1:8500 answered GET /v1/health/service/orders with 403: Endpoint is blocked by agent configuration",
                )
                .with_fix("take it out of http_config.block_endpoints of that Consul agent, or name another agent (CONSUL_HTTP_ADDR); no right of a token mends it");
                snapshot.apply(Observation::Service(ServiceUpdate {
                    query: service("orders"),
                    result: Err(problem),
                }));
            },
            &[RequestBlocked],
        ),
        orders_are(
            "a token that Consul does not know, or no longer (the last known instances stay)",
            |snapshot| {
                let problem = Problem::new(
                    ProblemKind::TokenNotAccepted,
                    "Consul at http://127.0.0.1:8500 answered GET /v1/health/service/orders with 403: ACL not found",
                )
                .with_fix("Consul does not know this token (mistyped, deleted or expired): put a valid one into /etc/portreeve/consul-token");
                snapshot.apply(Observation::Service(ServiceUpdate {
                    query: service("orders"),
                    result: Err(problem),
                }));
            },
            &[TokenNotAccepted],
        ),
        Case::new(
            "a prepared query that Consul does not have",
            prepared_query("orders-nearest"),
            &[SourceProblem],
            Stays::ApiWithoutAddress,
        )
        .then(|snapshot| {
            let problem = Problem::new(
                ProblemKind::NotFound,
                "Consul has no prepared query \"orders-nearest\"",
            )
            .with_fix("create it (/v1/query), or correct `prepared_query` of the upstream");
            tell_query(snapshot, "orders-nearest", Err(problem));
        }),
        Case::new(
            "a prepared query that finds nobody",
            prepared_query("orders-nobody"),
            &[NoHealthyInstance],
            Stays::ApiWithoutAddress,
        )
        .then(|snapshot| tell_query(snapshot, "orders-nobody", Ok([].into()))),
        Case::new(
            "a prepared query whose service the agent's token may not read",
            prepared_query("orders-secret"),
            &[MissingPermission],
            Stays::ApiWithoutAddress,
        )
        .then(|snapshot| {
            let problem = Problem::new(
                ProblemKind::MissingPermission,
                "the token may not see instances of orders-secret (prepared query)",
            )
            .with_fix("grant the token: service \"orders\" { policy = \"read\" }");
            tell_query(snapshot, "orders-secret", Err(problem));
        }),
        Case::new(
            "a certificate that is not there yet, the only one",
            another_certificate("pki4"),
            &[NotYetKnown, ListenerWithheld],
            Stays::OtherListeners,
        )
        .in_document("gateway")
        .unanswered(),
        Case::new(
            "a certificate that cannot be renewed (the one that is here stays)",
            SHOP,
            &[CertificateProblem],
            Stays::Everything,
        )
        .then(|snapshot| {
            let queries = Compiler::compile("edge", world::settings(), snapshot).certificate_queries();
            for query in queries {
                snapshot.apply(Observation::Certificate(CertificateUpdate {
                    query,
                    result: Err(Problem::new(ProblemKind::Unavailable, "Vault is sealed")),
                }));
            }
        }),
        Case::new(
            "a certificate that Vault refuses",
            another_certificate("pki2"),
            &[CertificateProblem, ListenerWithheld],
            Stays::OtherListeners,
        )
        .in_document("gateway")
        .then(|snapshot| {
            refuse_certificates(
                snapshot,
                Err(
                    Problem::new(ProblemKind::Refused, "Vault answered 400: unknown role: edge")
                        .with_fix("create the role, or name another one"),
                ),
            )
        }),
        Case::new(
            "a Nomad variable that is not there, as the only certificate",
            in_a_variable(&another_certificate("pki"), "nomad/jobs/portreeve"),
            &[CertificateProblem, ListenerWithheld],
            Stays::OtherListeners,
        )
        .in_document("gateway")
        .then(|snapshot| {
            let problem = Problem::new(
                ProblemKind::NotFound,
                "nomad_variable nomad/jobs/portreeve: Nomad has no such variable in the namespace \"default\"",
            );
            let fix = "nomad var put -namespace=default nomad/jobs/portreeve certificate=@www.pem private_key=@www.key";
            refuse_certificates(snapshot, Err(problem.with_fix(fix)));
        }),
        Case::new(
            "a Nomad variable without the item that is named",
            in_a_variable(&another_certificate("pki"), "nomad/jobs/portreeve/other"),
            &[CertificateProblem, ListenerWithheld],
            Stays::OtherListeners,
        )
        .in_document("gateway")
        .then(|snapshot| {
            let problem = Problem::new(
                ProblemKind::Invalid,
                "nomad_variable nomad/jobs/portreeve/other: it has no item \"private_key\", but \"certificate\"",
            );
            let fix = "store the PEM text under that name, or name the items in the document";
            refuse_certificates(snapshot, Err(problem.with_fix(fix)));
        }),
        Case::new(
            "a Nomad variable whose key does not fit (the certificate of before stays)",
            in_a_variable(GATEWAY, "nomad/jobs/portreeve"),
            &[CertificateKeyMismatch],
            Stays::Everything,
        )
        .in_document("gateway")
        .then(|snapshot| {
            let problem = Problem::new(
                ProblemKind::KeyMismatch,
                "nomad_variable nomad/jobs/portreeve: the private key does not belong to any certificate of the chain",
            );
            refuse_certificates(snapshot, Err(problem));
        }),
        Case::new(
            "a certificate whose new parameters bring nothing (the former one stays)",
            GATEWAY.replace("\"pki\"", "\"pki2\""),
            &[CertificateProblem],
            Stays::Everything,
        )
        .in_document("gateway")
        .then(|snapshot| {
            refuse_certificates(
                snapshot,
                Err(
                    Problem::new(ProblemKind::Refused, "Vault answered 400: unknown role: edge")
                        .with_fix("create the role, or name another one"),
                ),
            )
        }),
        Case::new(
            "a certificate whose names those before it in the list have (one of RSA beside one of EC)",
            beside_one_of_rsa(),
            &[CertificateProblem],
            Stays::Everything,
        )
        .in_document("gateway")
        .then(|snapshot| refuse_certificates(snapshot, Ok(vec!["shop.example.com".into()]))),
        Case::new(
            "a certificate that names no host",
            another_certificate("pki3"),
            &[CertificateProblem, ListenerWithheld],
            Stays::OtherListeners,
        )
        .in_document("gateway")
        .then(|snapshot| {
            refuse_certificates(snapshot, Ok(vec!["10.0.0.1".into()]));
        }),
        Case::new(
            "authorities of clients that are not there yet",
            asking_clients(),
            &[ListenerWithheld],
            Stays::OtherListeners,
        )
        .in_document("gateway")
        .unanswered(),
        Case::new(
            "authorities of clients that cannot be used: no certificate, no authority, another's revocation list, \
             nothing at the path, no right",
            asking_clients(),
            &[ListenerWithheld],
            Stays::OtherListeners,
        )
        .in_document("gateway")
        .then(|snapshot| {
            let said = "client_ca vault_kv secret/clients: the revocation list of \"CN=another\" is signed by none of the authorities";
            let problem = Problem::new(ProblemKind::Invalid, said)
                .with_fix("Store only revocation lists that were signed by the authorities stored here.");
            let compiler = Compiler::compile("edge", world::settings(), snapshot);
            let queries = compiler.certificate_queries();
            for query in queries.into_iter().filter(|query| matches!(query, CertificateQuery::ClientCa(_))) {
                snapshot.apply(Observation::Certificate(CertificateUpdate {
                    query,
                    result: Err(problem.clone()),
                }));
            }
        }),
        Case::new(
            "a text that Envoy refuses",
            api_with("    timeout = \"7s\""),
            &[EnvoyRejected],
            Stays::LastAccepted,
        )
        .then(envoy_refuses),
    ]
}

/// The https listener is another one, with another certificate: nothing that served before stands in for it.
pub fn another_certificate(mount: &str) -> String {
    GATEWAY
        .replace("\"tls\"", "\"secure\"")
        .replace("\"www\"", "\"new\"")
        .replace("\"pki\"", &format!("\"{mount}\""))
}

/// For clients that know no other.
fn beside_one_of_rsa() -> String {
    let listed = GATEWAY.replace("[\"www\"]", "[\"www\", \"www-rsa\"]");
    let (_, certificate) = GATEWAY.split_once("certificate \"www\"").unwrap();
    let rsa = certificate.replace("role        = \"edge\"", "role        = \"edge-rsa\"");
    format!("{listed}\ncertificate \"www-rsa\"{rsa}")
}

/// The https listener lets in clients of an authority.
fn asking_clients() -> String {
    GATEWAY.replace(
        "    tls { certificates = [\"www\"] }\n",
        "    tls {\n      certificates = [\"www\"]\n\n      client_ca {\n        vault_kv {\n          mount = \"secret\"\n          \
         path  = \"clients\"\n          crl   = \"crl\"\n        }\n      }\n    }\n",
    )
}

/// The certificate out of a Nomad variable.
fn in_a_variable(gateway: &str, path: &str) -> String {
    let from = gateway.find("  vault_pki").expect("the certificate's source");
    format!(
        "{}  nomad_variable {{\n    path = {path:?}\n  }}\n}}\n",
        &gateway[..from]
    )
}

/// The rule for /api leads to an upstream of this prepared query.
fn prepared_query(name: &str) -> String {
    let shop = shop("backend \"consul\" \"orders\"", "backend \"upstream\" \"orders\"");
    format!("{shop}\nupstream \"orders\" {{\n  consul {{ prepared_query = {name:?} }}\n}}\n")
}

fn tell_query(snapshot: &mut Snapshot, name: &str, result: Result<Arc<[Instance]>, Problem>) {
    let query = ServiceQuery::new(Lookup::PreparedQuery, name.into(), Narrowing::default());
    snapshot.apply(Observation::Service(ServiceUpdate { query, result }));
}

/// Every certificate asked for and not answered yet gets this.
pub fn refuse_certificates(snapshot: &mut Snapshot, result: Result<Vec<Arc<str>>, Problem>) {
    let compiler = Compiler::compile("edge", world::settings(), snapshot);
    for query in &compiler.certificate_queries() {
        let material = |names| CertificateMaterial {
            names,
            ..world::material(query)
        };
        snapshot.apply(Observation::Certificate(CertificateUpdate {
            query: query.clone(),
            result: result.clone().map(|names| Arc::new(material(names))),
        }));
    }
}
