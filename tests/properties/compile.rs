//! Order independence, and the memo against the plain form.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portreeve::diagnostics::Diagnostic;
use portreeve::envoy::{ResourceKind, ResourceSet, render_resource};
use portreeve::model::mesh::{ChainQuery, Intention, IntentionQuery, IntentionRule, Interest};
use portreeve::model::{
    CertificateQuery, CertificateUpdate, ChainUpdate, DocumentsUpdate, Health, Instance, IntentionUpdate,
    Lookup, MeshUpdate, Narrowing, Observation, Problem, ProblemKind, ServiceQuery, ServiceUpdate,
};
use portreeve::snapshot::{Changes, Snapshot};
use portreeve::translate::{Compiler, UnitKey};
use proptest::prelude::*;
use proptest::sample::select;

use super::chains::{Shape, chain, shape};
use super::generate::{DOCUMENTS, MESH_SERVICES, SERVICES, as_document, text};
use super::world;

#[derive(Clone, Debug)]
enum Step {
    Put(BTreeMap<usize, String>, Vec<usize>),
    Service(&'static str, Lookup, Answer),
    Chain(&'static str, Option<Shape>),
    Mesh(bool),
    Intention(&'static str, bool),
    Certificate(&'static str, Renewal),
    StopWaiting,
}

#[derive(Clone, Copy, Debug)]
enum Renewal {
    Same,
    /// Of another key, for the same hosts.
    NextSerial,
    OtherHosts,
    Failed,
}

#[derive(Clone, Debug)]
enum Answer {
    Instances(Vec<(u16, Health)>),
    Problem(&'static str),
}

const RENEWALS: [Renewal; 4] = [
    Renewal::Same,
    Renewal::NextSerial,
    Renewal::OtherHosts,
    Renewal::Failed,
];

fn step() -> impl Strategy<Value = Step> {
    let index = 0..DOCUMENTS.len();
    let put = (
        proptest::collection::btree_map(index.clone(), text(), 0..3),
        proptest::collection::vec(index, 0..2),
    );
    let health = select(&[Health::Passing, Health::Warning, Health::Critical][..]);
    let answer = prop_oneof![
        4 => proptest::collection::vec((1..5u16, health), 0..3).prop_map(Answer::Instances),
        1 => select(&["no leader", "permission denied"][..]).prop_map(Answer::Problem),
    ];
    prop_oneof![
        5 => put.prop_map(|(changed, removed)| Step::Put(changed, removed)),
        4 => (select(&SERVICES[..]), select(&[Lookup::Service, Lookup::Connect][..]), answer)
            .prop_map(|(name, lookup, answer)| Step::Service(name, lookup, answer)),
        3 => (select(&MESH_SERVICES[..]), proptest::option::weighted(0.9, shape()))
            .prop_map(|(name, shape)| Step::Chain(name, shape)),
        1 => any::<bool>().prop_map(Step::Mesh),
        1 => (select(&MESH_SERVICES[..]), any::<bool>()).prop_map(|(name, allow)| Step::Intention(name, allow)),
        2 => (select(&["a.test", "b.test"][..]), select(&RENEWALS[..])).prop_map(|(name, renewal)| Step::Certificate(name, renewal)),
        1 => Just(Step::StopWaiting),
    ]
}

fn observe(snapshot: &mut Snapshot, step: &Step) -> Changes {
    match step {
        Step::Put(changed, removed) => snapshot.apply(Observation::Documents(DocumentsUpdate {
            source: "kv".into(),
            changed: changed
                .iter()
                .map(|(index, text)| as_document(*index, text))
                .collect(),
            removed: removed
                .iter()
                .filter(|index| !changed.contains_key(index))
                .map(|index| as_document(*index, "").id)
                .collect(),
            complete: true,
            problem: None,
        })),
        Step::Chain(name, shape) => snapshot.apply(Observation::Chain(ChainUpdate {
            query: chain_query(name),
            result: match shape {
                Some(shape) => Ok(chain(name, *shape).into()),
                None => Err(Problem::new(ProblemKind::Forbidden, "permission denied")),
            },
        })),
        Step::Mesh(true) => world::answer_mesh(snapshot, &Interest::Mesh),
        Step::Mesh(false) => snapshot.apply(Observation::Mesh(MeshUpdate::Leaf(Err(Problem::new(
            ProblemKind::Forbidden,
            "permission denied",
        ))))),
        Step::Intention(name, allow) => snapshot.apply(Observation::Intention(IntentionUpdate {
            query: IntentionQuery {
                destination: (*name).into(),
                namespace: None,
                partition: None,
            },
            result: Ok(std::sync::Arc::new(Intention {
                source: "edge-gw".into(),
                destination: (*name).into(),
                rule: if *allow {
                    IntentionRule::Allow
                } else {
                    IntentionRule::Deny
                },
                by: None,
            })),
        })),
        Step::Service(name, lookup, answer) => snapshot.apply(Observation::Service(ServiceUpdate {
            query: ServiceQuery::new(*lookup, (*name).into(), Narrowing::default()),
            result: match answer {
                Answer::Instances(list) => {
                    let mut instances: Vec<Instance> = list
                        .iter()
                        .map(|(n, health)| world::instance(name, *n, &format!("10.0.0.{n}"), *health))
                        .collect();
                    instances.sort();
                    Ok(instances.into())
                }
                Answer::Problem(why) => Err(Problem::new(ProblemKind::Unavailable, *why)),
            },
        })),
        Step::Certificate(name, renewal) => {
            let query = certificate(name);
            let mut material = world::material(&query);
            match renewal {
                Renewal::NextSerial => material.chain = format!("{}\n", material.chain).into(),
                Renewal::OtherHosts => material.names.push("other.test".into()),
                Renewal::Same | Renewal::Failed => {}
            }
            let result = match renewal {
                Renewal::Failed => Err(Problem::new(ProblemKind::Unavailable, "sealed")),
                _ => Ok(std::sync::Arc::new(material)),
            };
            snapshot.apply(Observation::Certificate(CertificateUpdate { query, result }))
        }
        Step::StopWaiting => Changes::default(),
    }
}

fn chain_query(service: &str) -> ChainQuery {
    ChainQuery {
        service: service.into(),
        datacenter: None,
        namespace: None,
        partition: None,
    }
}

fn certificate(name: &str) -> CertificateQuery {
    CertificateQuery::VaultPki {
        mount: "pki".into(),
        role: "edge".into(),
        issuer: None,
        common_name: name.into(),
        alt_names: Vec::new(),
        ip_sans: Vec::new(),
        ttl: None,
        key_type: None,
    }
}

/// All that a set is, bytes included.
fn contents(set: &ResourceSet) -> Vec<String> {
    let all = ResourceKind::ALL
        .into_iter()
        .flat_map(|kind| set.of_kind(kind).values());
    all.map(|resource| {
        let hash = blake3::hash(resource.delta_bytes().unwrap()).to_hex();
        format!(
            "{resource:?} {hash} needs {:?} from {:?}",
            resource.needs, resource.origins
        )
    })
    .collect()
}

/// Without the fixes: "did you mean" is a hint of its time, and a new name elsewhere does not remake a unit.
fn said(compiler: &Compiler) -> Vec<(UnitKey, Vec<Diagnostic>)> {
    let units = compiler.diagnostics().map(|(unit, diagnostics)| {
        let mut diagnostics = diagnostics.to_vec();
        diagnostics
            .iter_mut()
            .for_each(|diagnostic| diagnostic.fix = None);
        (unit.clone(), diagnostics)
    });
    units.collect()
}

fn assert_same(memo: &Compiler, fresh: &Compiler) -> Result<(), TestCaseError> {
    prop_assert_eq!(contents(memo.resources()), contents(fresh.resources()));
    prop_assert_eq!(said(memo), said(fresh));
    prop_assert_eq!(memo.interests(), fresh.interests());
    prop_assert_eq!(memo.certificates(), fresh.certificates());
    Ok(())
}

/// What a route or listener names is in the set: Envoy never has to wait for what does not come.
fn assert_consistent(set: &ResourceSet) -> Result<(), TestCaseError> {
    for kind in ResourceKind::ALL {
        for resource in set.of_kind(kind).values() {
            for need in resource.needs.iter() {
                let found = set.get(need.kind, &need.name).is_some();
                prop_assert!(found, "{:?} needs {:?}", resource, need);
            }
        }
    }
    Ok(())
}

/// Plays the steps as the pipeline does, and holds the memo against a compilation from nothing after each.
fn play(steps: &[Step], hold: bool) -> Result<(), TestCaseError> {
    let settings = if hold { world::holding() } else { world::settings() };
    let mut snapshot = world::empty();
    let mut memo = Compiler::new("edge", settings.clone());
    let mut watched: BTreeSet<Interest> = BTreeSet::new();
    for step in steps {
        let before = memo.resources().clone();
        let changes = observe(&mut snapshot, step);
        let compiled = match step {
            Step::StopWaiting => memo.stop_waiting(&snapshot),
            _ => memo.update(&snapshot, &changes),
        };
        for interest in &compiled.added {
            prop_assert!(watched.insert(interest.clone()), "added twice: {}", interest);
        }
        for interest in &compiled.dropped {
            prop_assert!(watched.remove(interest), "dropped twice: {}", interest);
            snapshot.forget(interest);
        }
        prop_assert_eq!(&watched, &memo.interests());
        let differs = contents(&before) != contents(memo.resources());
        prop_assert!(compiled.changed || !differs, "a change that is not told");
        assert_consistent(memo.resources())?;
        let serves_by_now = served(memo.resources());
        for name in served(&before).intersection(&to_serve("edge", &snapshot)) {
            prop_assert!(serves_by_now.contains(name), "no longer served: {:?}", name);
        }
        if matches!(step, Step::StopWaiting) {
            prop_assert!(!memo.is_waiting());
        }
        if !(hold && memo.is_waiting() || memo.has_stand_ins()) {
            assert_same(&memo, &Compiler::compile("edge", settings.clone(), &snapshot))?;
        }
    }
    let mut rebuilt = memo.clone();
    rebuilt.stop_waiting(&snapshot);
    assert_same(&rebuilt, &Compiler::compile("edge", settings.clone(), &snapshot))?;
    let again = rebuilt.rebuild(&snapshot);
    prop_assert!(again.added.is_empty() && again.dropped.is_empty());
    Ok(())
}

const NAMES: [&str; 5] = ["a.test", "b.test", "c.test", "other.test", "elsewhere"];

/// The names that some route of a listener is for, be it one for a wildcard.
fn to_serve(gateway: &str, snapshot: &Snapshot) -> BTreeSet<(String, &'static str)> {
    let compiler = Compiler::compile(gateway, world::settings(), snapshot);
    let named = |(listener, host): (&Arc<str>, &Arc<str>)| names_of(listener, host);
    compiler.hosts().flat_map(named).collect()
}

/// Those that Envoy has a route for.
fn served(set: &ResourceSet) -> BTreeSet<(String, &'static str)> {
    let scopes = set.of_kind(ResourceKind::ScopedRoute).keys();
    let scopes = scopes.map(|scope| scope.split_once('/').expect("listener and host"));
    let mut served: BTreeSet<_> = scopes
        .flat_map(|(listener, host)| names_of(listener, host))
        .collect();
    for (listener, table) in set.of_kind(ResourceKind::Route) {
        let table = render_resource(table);
        for host in table["virtual_hosts"].as_array().into_iter().flatten() {
            for domain in host["domains"].as_array().into_iter().flatten() {
                served.extend(names_of(listener, domain.as_str().expect("a host")));
            }
        }
    }
    served
}

fn names_of(listener: &str, host: &str) -> Vec<(String, &'static str)> {
    let covers = |name: &&str| match host.strip_prefix('*') {
        Some(below) => name.ends_with(below),
        None => *name == host,
    };
    let names = NAMES.into_iter().filter(covers);
    names.map(|name| (listener.to_owned(), name)).collect()
}

/// The state that matters after all documents have arrived.
fn outcome(snapshot: &Snapshot) -> (Vec<String>, Vec<String>, Vec<Diagnostic>) {
    let compiler = Compiler::compile("edge", world::settings(), snapshot);
    let holders = snapshot
        .config
        .keys()
        .map(|key| format!("{key} {:?}", snapshot.config.object(key)));
    let mut everything = snapshot.config.diagnostics();
    everything.extend(
        said(&compiler)
            .into_iter()
            .flat_map(|(_, diagnostics)| diagnostics),
    );
    (holders.collect(), contents(compiler.resources()), everything)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memo_equals_fresh(steps in proptest::collection::vec(step(), 1..14)) {
        play(&steps, false)?;
    }

    #[test]
    fn memo_equals_fresh_once_nothing_waits(steps in proptest::collection::vec(step(), 1..14)) {
        play(&steps, true)?;
    }

    #[test]
    fn the_order_of_arrival_does_not_matter(
        texts in proptest::collection::vec(text(), DOCUMENTS.len()),
        order in Just((0..DOCUMENTS.len()).collect::<Vec<_>>()).prop_shuffle(),
        detours in proptest::collection::vec((0..DOCUMENTS.len(), text()), 0..3),
        at_once in any::<bool>(),
    ) {
        let mut one = world::empty();
        let documents = texts.iter().enumerate().map(|(index, text)| as_document(index, text));
        world::put(&mut one, documents);
        let mut other = world::empty();
        // What was there and went leaves nothing behind.
        for (index, text) in &detours {
            world::put(&mut other, [as_document(*index, text)]);
        }
        let gone = detours.iter().map(|(index, _)| as_document(*index, "").id).collect();
        other.apply(Observation::Documents(DocumentsUpdate { removed: gone, ..DocumentsUpdate::default() }));
        let documents: Vec<_> = order.iter().map(|index| as_document(*index, &texts[*index])).collect();
        if at_once {
            world::put(&mut other, documents);
        } else {
            for document in documents {
                world::put(&mut other, [document]);
            }
        }
        for snapshot in [&mut one, &mut other] {
            world::answer_all(snapshot, "edge");
        }
        prop_assert_eq!(outcome(&one), outcome(&other));
    }

    /// A refused text goes back to what Envoy confirmed, and a new text ends it.
    #[test]
    fn quarantine_goes_back_and_ends(good in text(), refused in text(), next in text()) {
        use portreeve::config::{Quarantine, text_hash};
        use portreeve::diagnostics::Code;
        let mut snapshot = world::empty();
        let mut memo = Compiler::new("edge", world::settings());
        let document = |text: &str| as_document(0, text);
        let id = document("").id;
        let changes = world::put(&mut snapshot, [document(&good)]);
        memo.update(&snapshot, &changes);
        snapshot.config.confirm(&id);
        let confirmed = contents(memo.resources());
        let changes = world::put(&mut snapshot, [document(&refused)]);
        memo.update(&snapshot, &changes);
        let changes = snapshot.quarantine(Quarantine {
            document: id.clone(),
            text_hash: text_hash(&refused),
            diagnostic: Diagnostic::error(Code::EnvoyRejected, "no"),
            names: Default::default(),
            on_trial: false,
        });
        memo.update(&snapshot, &changes);
        prop_assert_eq!(contents(memo.resources()), confirmed.clone());
        prop_assert_eq!(snapshot.config.document(&id).unwrap().problems[0].code, Code::EnvoyRejected);
        // The same text again, as a poll or a reconnect brings it.
        let changes = world::put(&mut snapshot, [document(&refused)]);
        memo.update(&snapshot, &changes);
        prop_assert_eq!(contents(memo.resources()), confirmed);
        assert_same(&memo, &Compiler::compile("edge", world::settings(), &snapshot))?;
        if next != refused {
            let changes = world::put(&mut snapshot, [document(&next)]);
            memo.update(&snapshot, &changes);
            assert_same(&memo, &Compiler::compile("edge", world::settings(), &snapshot))?;
            let problems = &snapshot.config.document(&id).unwrap().problems;
            prop_assert!(problems.iter().all(|problem| problem.code != Code::EnvoyRejected));
        }
    }
}
