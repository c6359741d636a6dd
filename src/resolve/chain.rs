//! A rule whose backends are in the mesh: the routes that it becomes, in the order in which they are tried.
//!
//! Each backend is a list of choices: one without a condition for a plain one, the routes of the service router for one
//! in the mesh. Envoy chooses a route before it chooses a cluster, so the rule becomes one route for each combination of
//! choices, in order: the first that matches takes the choice of each backend that matches first there.

use std::sync::Arc;

use super::chain_match::{Front, Inexpressible, both_paths, both_requests};
use super::destination::Destination;
use super::mesh::resolver_of;
use crate::ir::{ChainSettings, Unavailable};
use crate::model::Policies;
use crate::model::http::{HeaderEdits, RequestMatch, Rewrite};
use crate::model::mesh::{Chain, ChainNode, ChainRoute};

/// One backend of a rule, ready to be combined.
pub(super) struct Choices<'a> {
    pub(super) weight: u32,
    pub(super) all: Vec<Choice<'a>>,
}

/// Where a backend's share goes under one condition.
pub(super) struct Choice<'a> {
    pub(super) route: Option<&'a ChainRoute>,
    pub(super) legs: Vec<Leg>,
    /// Why some of its legs were left out.
    pub(super) left_out: Option<Unavailable>,
    pub(super) settings: ChainSettings,
}

impl Choice<'_> {
    /// All of the share to one destination, whatever the request.
    pub(super) fn whole(destination: Destination) -> Self {
        Self {
            route: None,
            legs: vec![Leg::whole(destination)],
            left_out: None,
            settings: ChainSettings::default(),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Leg {
    pub(super) destination: Destination,
    /// Of the backend's share, from 0 to 1.
    pub(super) share: f64,
    pub(super) request_headers: HeaderEdits,
    pub(super) response_headers: HeaderEdits,
    /// What stands on the backend.
    pub(super) policies: Policies,
}

impl Leg {
    pub(super) fn whole(destination: Destination) -> Self {
        Self {
            destination,
            share: 1.0,
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
            policies: Policies::default(),
        }
    }
}

/// One of the routes that a rule becomes.
pub(super) struct Composed {
    pub(super) matching: RequestMatch,
    pub(super) outcome: Result<Outcome, Inexpressible>,
}

pub(super) struct Outcome {
    pub(super) rewrite: Option<Rewrite>,
    pub(super) legs: Vec<(Leg, f64)>,
    /// Why there is no leg, if there is none.
    pub(super) left_out: Option<Unavailable>,
    pub(super) settings: ChainSettings,
}

/// The choices of a mesh backend.
pub(super) fn choices_of<'a>(chain: &'a Chain, upstream: &Arc<str>) -> Result<Vec<Choice<'a>>, String> {
    let mut walk = Walk {
        chain,
        upstream,
        nodes: 0,
        bytes: 0,
    };
    let mut walk = |from: &Arc<str>, headers: (&HeaderEdits, &HeaderEdits)| {
        let mut choice = Choice {
            route: None,
            legs: Vec::new(),
            left_out: None,
            settings: ChainSettings::default(),
        };
        let first = Step {
            share: 1.0,
            request_headers: headers.0.clone(),
            response_headers: headers.1.clone(),
            depth: 0,
        };
        walk.follow(from, first, &mut choice)?;
        Ok::<_, String>(choice)
    };
    match chain.nodes.get(&chain.start) {
        Some(ChainNode::Router(routes)) => routes
            .iter()
            .map(|route| {
                let mut choice = walk(&route.next, (&route.request_headers, &route.response_headers))?;
                choice.route = Some(route);
                let settings = &mut choice.settings;
                settings.timeout = route.timeout.or(settings.timeout);
                settings.idle_timeout = route.idle_timeout;
                settings.retry.clone_from(&route.retry);
                Ok(choice)
            })
            .collect(),
        _ => {
            let none = HeaderEdits::default();
            Ok(vec![walk(&chain.start, (&none, &none))?])
        }
    }
}

#[derive(Clone)]
struct Step {
    share: f64,
    request_headers: HeaderEdits,
    response_headers: HeaderEdits,
    depth: usize,
}

/// Through one chain, by way of all routes of its router.
struct Walk<'a> {
    chain: &'a Chain,
    upstream: &'a Arc<str>,
    /// Followed, each as often as it was.
    nodes: usize,
    /// Of the header edits that the legs carry.
    bytes: usize,
}

impl Walk<'_> {
    fn follow(&mut self, id: &Arc<str>, step: Step, choice: &mut Choice<'_>) -> Result<(), String> {
        self.nodes += 1;
        if step.depth > DEPTH || choice.legs.len() >= LEGS || self.nodes > FOLLOWED {
            return Err(format!(
                "the chain of {:?} is nested more than {DEPTH} deep, splits into more than {LEGS} or has more than {FOLLOWED} ways",
                self.chain.service
            ));
        }
        match self.chain.nodes.get(id) {
            Some(ChainNode::Splitter(splits)) => {
                for split in splits.iter().filter(|split| split.weight > 0) {
                    let next = Step {
                        share: step.share * f64::from(split.weight) / 10_000.0,
                        request_headers: merged(&step.request_headers, &split.request_headers),
                        response_headers: merged(&step.response_headers, &split.response_headers),
                        depth: step.depth + 1,
                    };
                    self.follow(&split.next, next, choice)?;
                }
                Ok(())
            }
            Some(ChainNode::Resolver(resolver)) => {
                let destination = if resolver.failover.is_empty() {
                    Destination::Mesh {
                        upstream: self.upstream.clone(),
                        target: resolver.target.clone(),
                    }
                } else {
                    Destination::Failover {
                        upstream: self.upstream.clone(),
                        resolver: id.clone(),
                    }
                };
                let settings = &mut choice.settings;
                // One route bounds every leg of a split: one without a bound must not be cut.
                settings.timeout = match choice.legs.is_empty() {
                    true => resolver.request_timeout,
                    false => settings
                        .timeout
                        .zip(resolver.request_timeout)
                        .map(|(one, other)| one.max(other)),
                };
                for hash in resolver.balancer.iter().flat_map(|balancer| &balancer.hash) {
                    if !settings.hash.contains(hash) {
                        settings.hash.push(hash.clone());
                    }
                }
                self.bytes += bytes_of(&step.request_headers) + bytes_of(&step.response_headers);
                if self.bytes > EDITS_BYTES {
                    return Err(format!(
                        "the ways through the chain of {:?} carry more than {} KiB of header edits",
                        self.chain.service,
                        EDITS_BYTES / 1024
                    ));
                }
                choice.legs.push(Leg {
                    destination,
                    share: step.share,
                    request_headers: step.request_headers,
                    response_headers: step.response_headers,
                    policies: Policies::default(),
                });
                Ok(())
            }
            // Only the first router of a chain counts; Consul never puts another one behind it.
            Some(ChainNode::Router(_)) => Err(format!(
                "the chain of {:?} has a router behind another node",
                self.chain.service
            )),
            None => Err(format!(
                "the chain of {:?} names the node {id:?}, which it does not have",
                self.chain.service
            )),
        }
    }
}

/// Edits further down the chain come later, and so win.
fn merged(first: &HeaderEdits, then: &HeaderEdits) -> HeaderEdits {
    let mut merged = first.clone();
    for (name, value) in &then.set {
        merged.set.retain(|(known, _)| known != name);
        merged.set.push((name.clone(), value.clone()));
    }
    merged.add.extend(then.add.iter().cloned());
    merged.remove.extend(then.remove.iter().cloned());
    merged
}

fn bytes_of(edits: &HeaderEdits) -> usize {
    let pairs = edits.set.iter().chain(&edits.add);
    let of_pairs: usize = pairs.map(|(name, value)| name.len() + value.len()).sum();
    of_pairs + edits.remove.iter().map(|name| name.len()).sum::<usize>()
}

/// Every target behind a leg, for which there must be a cluster.
pub(super) fn targets_behind(chain: &Chain, leg: &Destination) -> Vec<Destination> {
    let Destination::Failover { upstream, resolver } = leg else {
        return vec![leg.clone()];
    };
    let targets = resolver_of(chain, resolver)
        .into_iter()
        .flat_map(super::mesh::targets_in_order);
    let targets = targets.map(|target| Destination::Mesh {
        upstream: upstream.clone(),
        target: target.clone(),
    });
    std::iter::once(leg.clone()).chain(targets).collect()
}

/// The routes that one match of a rule becomes.
pub(super) fn compose(
    request: &RequestMatch,
    rewrite: Option<&Rewrite>,
    backends: &[Choices<'_>],
) -> Result<Vec<Composed>, Inexpressible> {
    let of_each = backends.iter().map(|backend| backend.all.len());
    let combinations = of_each.fold(1, usize::saturating_mul);
    if combinations > COMBINATIONS {
        return Err(format!(
            "the service routers behind this rule combine to {combinations} routes; {COMBINATIONS} is the most"
        ));
    }
    let front = Front {
        path: &request.path,
        rewrite,
    };
    let mut composed: Vec<Composed> = Vec::new();
    for combination in 0..combinations {
        // The last backend's choice changes fastest.
        let mut rest = combination;
        let mut chosen: Vec<(&Choices<'_>, &Choice<'_>)> = Vec::with_capacity(backends.len());
        for backend in backends.iter().rev() {
            chosen.push((backend, &backend.all[rest % backend.all.len()]));
            rest /= backend.all.len();
        }
        chosen.reverse();
        let (matches, problem) = matches_of(request, &front, &chosen);
        for matching in matches {
            if composed.iter().any(|earlier| earlier.matching == matching) {
                continue;
            }
            let outcome = match &problem {
                Some(problem) => Err(problem.clone()),
                None => outcome(&front, &matching, &chosen),
            };
            let takes_all = matching == *request;
            composed.push(Composed { matching, outcome });
            if takes_all {
                return Ok(composed);
            }
        }
    }
    Ok(composed)
}

/// The conditions of one combination: any of them. With a problem: more than those, so that nothing that the chain's
/// route would take goes elsewhere.
fn matches_of(
    request: &RequestMatch,
    front: &Front<'_>,
    chosen: &[(&Choices<'_>, &Choice<'_>)],
) -> (Vec<RequestMatch>, Option<Inexpressible>) {
    let mut matches = vec![request.clone()];
    let mut problem = None;
    for route in chosen.iter().filter_map(|(_, choice)| choice.route) {
        let mut next = Vec::new();
        let paths = front.path_conditions(&route.matching).unwrap_or_else(|reason| {
            problem = Some(reason);
            vec![crate::model::mesh::ChainPath::Any]
        });
        for known in matches
            .iter()
            .filter_map(|known| both_requests(known, &route.matching))
        {
            next.extend(paths.iter().filter_map(|path| both_paths(&known, path)));
        }
        matches = next;
    }
    (matches, problem)
}

fn outcome(
    front: &Front<'_>,
    matching: &RequestMatch,
    chosen: &[(&Choices<'_>, &Choice<'_>)],
) -> Result<Outcome, Inexpressible> {
    let mut rewrites: Vec<Option<Rewrite>> = Vec::new();
    for (_, choice) in chosen {
        let by_chain = choice
            .route
            .and_then(|route| Some((&route.matching, route.prefix_rewrite.as_ref()?)));
        let rewrite = front.rewrite(by_chain, &matching.path)?;
        if !rewrites.contains(&rewrite) {
            rewrites.push(rewrite);
        }
    }
    if rewrites.len() > 1 {
        return Err(
            "its backends are to see different paths (a service router rewrites for one of them), and Envoy rewrites before it chooses one"
                .to_owned(),
        );
    }
    let mut settings = ChainSettings::default();
    let mut first = true;
    let mut legs = Vec::new();
    for (backend, choice) in chosen {
        let own = &choice.settings;
        if first {
            settings = own.clone();
        } else {
            // One without a bound must not be cut; another's retries are not for it.
            settings.timeout = settings
                .timeout
                .zip(own.timeout)
                .map(|(one, other)| one.max(other));
            settings.idle_timeout = settings
                .idle_timeout
                .zip(own.idle_timeout)
                .map(|(one, other)| one.max(other));
            if settings.retry != own.retry {
                settings.retry = None;
            }
            for hash in &own.hash {
                if !settings.hash.contains(hash) {
                    settings.hash.push(hash.clone());
                }
            }
        }
        first = false;
        let weight = f64::from(backend.weight);
        legs.extend(choice.legs.iter().map(|leg| (leg.clone(), weight * leg.share)));
    }
    Ok(Outcome {
        rewrite: rewrites.into_iter().next().flatten(),
        legs,
        left_out: chosen.iter().find_map(|(_, choice)| choice.left_out),
        settings,
    })
}

/// Shares as Envoy's whole numbers, whose sum must fit 32 bits.
pub(super) fn whole_weights(shares: &[f64]) -> Vec<u32> {
    let is_whole = |share: &f64| (share - share.round()).abs() < 1e-9 && *share >= 1.0;
    let sum: f64 = shares.iter().sum();
    let scale = if shares.iter().all(is_whole) && sum < f64::from(u32::MAX) {
        1.0
    } else {
        SCALE / sum
    };
    let weights: Vec<u32> = shares
        .iter()
        .map(|share| ((share * scale).round() as u32).max(1))
        .collect();
    let divisor = match scale {
        1.0 => 1,
        _ => weights.iter().copied().fold(0, greatest_common_divisor).max(1),
    };
    weights.into_iter().map(|weight| weight / divisor).collect()
}

fn greatest_common_divisor(one: u32, other: u32) -> u32 {
    if other == 0 {
        one
    } else {
        greatest_common_divisor(other, one % other)
    }
}

/// Nested splits of a hundredth of a percent each.
const SCALE: f64 = 100_000_000.0;

/// Consul's own entries nest by service; nobody has more.
const DEPTH: usize = 32;
const LEGS: usize = 256;

/// Nodes on all ways through a chain, and header edits at their ends: both are copied into each match of a rule.
const FOLLOWED: usize = 16_384;
const EDITS_BYTES: usize = 1024 * 1024;

/// Routes that one match of a rule may become.
const COMBINATIONS: usize = 512;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::mesh::{ChainQuery, ChainResolver, ChainSplit};

    fn empty_chain() -> Chain {
        Chain::plain(&ChainQuery {
            service: "web".into(),
            datacenter: None,
            namespace: None,
            partition: None,
        })
    }

    fn split(next: &str, request_headers: HeaderEdits) -> ChainSplit {
        ChainSplit {
            weight: 100,
            next: next.into(),
            request_headers,
            response_headers: HeaderEdits::default(),
        }
    }

    /// No Consul answers so: it merges splitters, and takes none without splits.
    #[test]
    fn splits_that_lead_nowhere_end() {
        let mut chain = empty_chain();
        for level in 0..DEPTH {
            let next = format!("splitter:{}", level + 1);
            let splits = vec![
                split(&next, HeaderEdits::default()),
                split(&next, HeaderEdits::default()),
            ];
            chain
                .nodes
                .insert(format!("splitter:{level}").into(), ChainNode::Splitter(splits));
        }
        let last = format!("splitter:{DEPTH}");
        chain.nodes.insert(last.into(), ChainNode::Splitter(Vec::new()));
        chain.start = "splitter:0".into();
        let refused = choices_of(&chain, &"web".into()).err().unwrap();
        assert!(refused.contains("more than 16384 ways"), "{refused}");
    }

    /// A router may lead to one splitter on many ways, and each leg takes its edits along.
    #[test]
    fn what_the_ways_through_a_chain_carry_is_bounded() {
        let value: Arc<str> = "v".repeat(1000).into();
        let with = |edits: usize| {
            let set = (0..edits).map(|at| (format!("x-{at}").into(), value.clone()));
            let edits = HeaderEdits {
                set: set.collect(),
                ..HeaderEdits::default()
            };
            let mut chain = empty_chain();
            let start = chain.start.clone();
            let splits = (0..100).map(|_| split(&start, edits.clone())).collect();
            chain.start = "splitter:web".into();
            chain
                .nodes
                .insert(chain.start.clone(), ChainNode::Splitter(splits));
            chain
        };
        assert_eq!(choices_of(&with(10), &"web".into()).unwrap()[0].legs.len(), 100);
        let refused = choices_of(&with(11), &"web".into()).err().unwrap();
        assert!(refused.contains("1024 KiB of header edits"), "{refused}");
    }

    /// The bound of a route whose chain splits between targets with these.
    fn bound_of_a_split(timeouts: &[Option<u64>]) -> Option<u64> {
        let mut chain = empty_chain();
        let splits = timeouts.iter().enumerate().map(|(index, timeout)| {
            let next: Arc<str> = format!("resolver:{index}").into();
            let resolver = ChainResolver {
                target: format!("target-{index}").into(),
                connect_timeout: None,
                request_timeout: timeout.map(Duration::from_secs),
                failover: Vec::new(),
                balancer: None,
            };
            chain.nodes.insert(next.clone(), ChainNode::Resolver(resolver));
            ChainSplit {
                weight: 100,
                next,
                request_headers: HeaderEdits::default(),
                response_headers: HeaderEdits::default(),
            }
        });
        let splits = splits.collect();
        chain.start = "splitter:web".into();
        chain
            .nodes
            .insert(chain.start.clone(), ChainNode::Splitter(splits));
        let choices = choices_of(&chain, &"web".into()).unwrap();
        choices[0].settings.timeout.map(|timeout| timeout.as_secs())
    }

    #[test]
    fn a_split_is_bounded_as_its_most_patient_leg() {
        assert_eq!(bound_of_a_split(&[Some(5)]), Some(5));
        assert_eq!(bound_of_a_split(&[Some(5), Some(60), Some(1)]), Some(60));
        for unbounded in [&[None, Some(5)], &[Some(5), None]] {
            assert_eq!(bound_of_a_split(unbounded), None);
        }
    }

    #[test]
    fn shares_become_the_smallest_whole_numbers() {
        assert_eq!(whole_weights(&[90.0, 10.0]), [90, 10]);
        assert_eq!(whole_weights(&[0.5, 0.5]), [1, 1]);
        assert_eq!(whole_weights(&[0.9999, 0.0001]), [9999, 1]);
        assert_eq!(whole_weights(&[50.0, 25.0, 12.5, 12.5]), [4, 2, 1, 1]);
        assert_eq!(whole_weights(&[1e-12, 1.0]), [1, 100_000_000]);
    }
}
