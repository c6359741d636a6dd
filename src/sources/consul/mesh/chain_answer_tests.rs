use super::*;
use crate::model::http::TextMatch;

/// As Consul 1.8.7 answers, with what newer ones add: text and whole numbers as durations, header edits, floats.
const ANSWER: &str = r#"{"Chain":{"ServiceName":"web","Namespace":"default","Datacenter":"dc1","Protocol":"http","StartNode":"router:web.default",
 "Nodes":{
  "router:web.default":{"Type":"router","Name":"web.default","Routes":[
    {"Definition":{"Match":{"HTTP":{"PathPrefix":"/admin","Header":[{"Name":"X-A","Present":true,"Invert":true}],"QueryParam":[{"Name":"q","Exact":"1"}],"Methods":["GET","PUT"]}},
      "Destination":{"RequestTimeout":"15s","Service":"admin","Namespace":"default","PrefixRewrite":"/","NumRetries":5,"RetryOnConnectFailure":true,"RetryOnStatusCodes":[502,503],
        "RequestHeaders":{"Set":{"X-From":"50%"},"Remove":["X-Drop"]},"ResponseHeaders":{"Add":{"x-to":"b"}}}},
     "NextNode":"resolver:admin.default.dc1"},
    {"Definition":{"Match":{"HTTP":{"PathPrefix":"/"}},"Destination":{"Service":"web","Namespace":"default"}},"NextNode":"splitter:web.default"}]},
  "splitter:web.default":{"Type":"splitter","Name":"web.default","Splits":[{"Weight":99.99,"NextNode":"resolver:v1.web.default.dc1"},{"Weight":0.01,"NextNode":"resolver:v2.web.default.dc1"}]},
  "resolver:v1.web.default.dc1":{"Type":"resolver","Name":"v1.web.default.dc1","Resolver":{"ConnectTimeout":"7s","RequestTimeout":15000000000,"Target":"v1.web.default.dc1","Failover":{"Targets":["backup.default.dc2"]}},
     "LoadBalancer":{"Policy":"ring_hash","RingHashConfig":{"MinimumRingSize":64},"HashPolicies":[{"Field":"header","FieldValue":"X-User"},{"SourceIP":true,"Terminal":true}]}},
  "resolver:v2.web.default.dc1":{"Type":"resolver","Name":"v2.web.default.dc1","Resolver":{"ConnectTimeout":"5s","Target":"v2.web.default.dc1"}},
  "resolver:admin.default.dc1":{"Type":"resolver","Name":"admin.default.dc1","Resolver":{"ConnectTimeout":"5s","Default":true,"Target":"admin.default.dc1"}}},
 "Targets":{
  "v1.web.default.dc1":{"ID":"v1.web.default.dc1","Service":"web","ServiceSubset":"v1","Namespace":"default","Datacenter":"dc1","MeshGateway":{},"Subset":{"Filter":"Service.Meta.version == v1"},
     "SNI":"v1.web.default.dc1.internal.bad68daa.consul","Name":"v1.web.default.dc1.internal.bad68daa.consul"},
  "v2.web.default.dc1":{"ID":"v2.web.default.dc1","Service":"web","Namespace":"default","Datacenter":"dc1","MeshGateway":{},"Subset":{"Filter":"Service.Meta.version == v2","OnlyPassing":true},"SNI":"v2.x"},
  "admin.default.dc1":{"ID":"admin.default.dc1","Service":"admin","Namespace":"default","Datacenter":"dc1","MeshGateway":{},"Subset":{},"SNI":"admin.x"},
  "backup.default.dc2":{"Service":"backup","Datacenter":"dc2","MeshGateway":{"Mode":"remote"},"SNI":"backup.default.dc2.internal.x"}}}}"#;

fn router(chain: &Chain) -> &[ChainRoute] {
    match &chain.nodes["router:web.default"] {
        ChainNode::Router(routes) => routes,
        other => panic!("{other:?}"),
    }
}

fn resolver<'a>(chain: &'a Chain, id: &str) -> &'a ChainResolver {
    match &chain.nodes[id] {
        ChainNode::Resolver(resolver) => resolver,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_chain_with_everything_is_read() {
    let chain = parse(ANSWER.as_bytes()).unwrap();
    assert_eq!((chain.protocol, &*chain.datacenter), (ChainProtocol::Http, "dc1"));
    let routes = router(&chain);
    let admin = &routes[0];
    assert_eq!(admin.matching.path, ChainPath::StartsWith("/admin".into()));
    assert_eq!(&*admin.matching.headers[0].name, "x-a");
    assert_eq!(admin.matching.headers[0].text, TextMatch::Present);
    assert!(admin.matching.headers[0].invert);
    assert_eq!(admin.matching.methods, ["GET".into(), "PUT".into()]);
    assert_eq!(admin.timeout, Some(Duration::from_secs(15)));
    assert_eq!(admin.prefix_rewrite.as_deref(), Some("/"));
    let retry = admin.retry.as_ref().unwrap();
    assert_eq!((retry.attempts, &retry.status_codes[..]), (5, &[502, 503][..]));
    assert_eq!(
        retry.on,
        ["connect-failure".into(), "retriable-status-codes".into()]
    );
    // A percent sign is Envoy's command operator.
    assert_eq!(admin.request_headers.set, [("x-from".into(), "50%%".into())]);
    assert_eq!(admin.request_headers.remove, ["x-drop".into()]);
    assert_eq!(admin.response_headers.add, [("x-to".into(), "b".into())]);
    assert_eq!(routes[1].matching.path, ChainPath::Any);
    assert_eq!(routes[1].retry, None);
    match &chain.nodes["splitter:web.default"] {
        ChainNode::Splitter(splits) => assert_eq!((splits[0].weight, splits[1].weight), (9999, 1)),
        other => panic!("{other:?}"),
    }
    let v1 = resolver(&chain, "resolver:v1.web.default.dc1");
    assert_eq!(v1.connect_timeout, Some(Duration::from_secs(7)));
    assert_eq!(v1.request_timeout, Some(Duration::from_secs(15)));
    assert_eq!(v1.failover, ["backup.default.dc2".into()]);
    let balancer = v1.balancer.as_ref().unwrap();
    assert_eq!(
        balancer.policy,
        BalancerPolicy::RingHash {
            minimum: 64,
            maximum: 0
        }
    );
    assert_eq!(balancer.hash[0].on, HashOn::Header("x-user".into()));
    assert_eq!(balancer.hash[1].on, HashOn::SourceIp);
    assert!(balancer.hash[1].terminal);
    let backup = &chain.targets["backup.default.dc2"];
    assert_eq!(backup.mesh_gateway, MeshGatewayMode::Remote);
    assert!(chain.targets["v2.web.default.dc1"].only_passing);
}

#[test]
fn what_envoy_would_refuse_is_refused_here() {
    for (from, to, reason) in [
        ("\"X-A\"", "\"x a\"", "header name"),
        ("\"GET\"", "\"G ET\"", "method"),
        ("\"X-From\":\"50%\"", "\"host\":\"a\"", "host"),
        ("\"50%\"", "\"a\\nb\"", "control"),
        ("99.99", "-1", "weight"),
        ("\"http\"", "\"smoke\"", "speaks"),
        ("\"Type\":\"splitter\"", "\"Type\":\"guess\"", "guess"),
        ("\"ring_hash\"", "\"dice\"", "dice"),
        (
            "\"NextNode\":\"splitter:web.default\"",
            "\"NextNode\":\"gone\"",
            "gone",
        ),
        ("[\"backup.default.dc2\"]", "[\"gone\"]", "gone"),
        ("\"7s\"", "\"7\"", "duration"),
    ] {
        assert!(ANSWER.contains(from), "{from}");
        let error = parse(ANSWER.replacen(from, to, 1).as_bytes()).unwrap_err();
        assert!(error.contains(reason), "{to}: {error}");
    }
    assert!(parse(b"{}").is_err());
    assert!(parse(b"null").is_err());
}

#[test]
fn ids_are_opaque_and_nulls_are_empty() {
    let renamed = ANSWER.replace("v1.web.default.dc1", "v1.web.default.default.dc1");
    let chain = parse(renamed.as_bytes()).unwrap();
    assert!(chain.targets.contains_key("v1.web.default.default.dc1"));
    let null = ANSWER.replace("\"Methods\":[\"GET\",\"PUT\"]", "\"Methods\":null");
    assert!(
        router(&parse(null.as_bytes()).unwrap())[0]
            .matching
            .methods
            .is_empty()
    );
    let no_match = ANSWER.replace("{\"HTTP\":{\"PathPrefix\":\"/\"}}", "null");
    assert_eq!(
        router(&parse(no_match.as_bytes()).unwrap())[1].matching.path,
        ChainPath::Any
    );
}

/// Consul compiles none of them.
#[test]
fn a_chain_with_a_regular_expression_that_envoy_refuses_is_refused() {
    let path = |regex: &str| ANSWER.replace("\"PathPrefix\":\"/admin\"", &format!("\"PathRegex\":{regex:?}"));
    let header = |regex: &str| ANSWER.replace("\"Present\":true", &format!("\"Regex\":{regex:?}"));
    let query = |regex: &str| ANSWER.replace("\"Exact\":\"1\"", &format!("\"Regex\":{regex:?}"));
    for bad in ["/a{1001}", "[a&&b]", "/\\u{61}", "v("] {
        for answer in [path(bad), header(bad), query(bad)] {
            let refused = parse(answer.as_bytes()).unwrap_err();
            assert!(
                refused.contains(&format!("the regular expression {bad:?} of a route")),
                "{refused}"
            );
        }
    }
    for answer in [path("/v[12]"), header("/v[12]"), query("/v[12]")] {
        assert!(parse(answer.as_bytes()).is_ok());
    }
}

#[test]
fn what_a_chain_repeats_is_taken_once_and_what_it_asks_for_is_bounded() {
    let repeated = ANSWER
        .replace("[502,503]", &format!("[{}503,99]", "502,".repeat(10_000)))
        .replace(
            "[\"backup.default.dc2\"]",
            &format!(
                "[{}\"backup.default.dc2\"]",
                "\"backup.default.dc2\",".repeat(10_000)
            ),
        );
    let chain = parse(repeated.as_bytes()).unwrap();
    let retry = router(&chain)[0].retry.as_ref().unwrap();
    assert_eq!(retry.status_codes, [502, 503]);
    assert_eq!(
        resolver(&chain, "resolver:v1.web.default.dc1").failover,
        [Arc::from("backup.default.dc2")]
    );
    let conditions = |count: usize| {
        let all = vec![r#"{"Name":"q","Exact":"1"}"#; count].join(",");
        ANSWER.replace(r#"{"Name":"q","Exact":"1"}"#, &all)
    };
    assert!(parse(conditions(63).as_bytes()).is_ok());
    assert!(
        parse(conditions(64).as_bytes())
            .unwrap_err()
            .contains("65 headers and parameters")
    );
}

/// Whatever Consul, or whoever answers in its place, says: a chain that is whole, or a reason.
mod fuzz {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn damaged_answers_are_whole_or_refused(from in 0usize..2000, to in 0usize..40, text in "[\\x20-\\x7e]{0,12}") {
            let mut answer = ANSWER.to_owned();
            let from = from.min(answer.len());
            let to = (from + to).min(answer.len());
            answer.replace_range(from..to, &text);
            if let Ok(chain) = parse(answer.as_bytes()) {
                prop_assert!(is_whole(&chain).is_ok());
            }
        }

        #[test]
        fn bytes_are_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse(&body).is_err());
        }
    }
}
