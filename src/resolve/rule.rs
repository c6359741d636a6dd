//! One rule of a route: its policies, its backends, and the routes that it becomes.

use std::fmt::Write as _;
use std::sync::Arc;

use super::backend::{Backends, Plain, Usable, choices};
use super::chain::{Choices, Composed, Outcome, compose};
use super::policies::effective;
use super::redirect::Place;
use super::virtual_host::Placed;
use crate::config::{Backend, HttpRoute, RouteRef, Rule, RuleAction};
use crate::diagnostics::{Code, Diagnostic};
use crate::ir::{Action, ChainSettings, Route, Unavailable, WeightedCluster};
use crate::model::Policies;
use crate::model::http::{RequestMatch, Rewrite};
use crate::snapshot::Snapshot;

pub(super) struct Builder<'a> {
    place: Place<'a>,
    pub(super) backends: Backends<'a>,
    /// Where names are put together.
    text: String,
}

/// What a rule does, before its matches are looked at.
enum Plan<'a> {
    Same(Action),
    /// A backend in the mesh may make several routes of each match.
    Mesh(Vec<Choices<'a>>),
}

/// One of the routes that a match becomes.
struct Part {
    matching: RequestMatch,
    rewrite: Option<Rewrite>,
    action: Action,
    chain: Option<ChainSettings>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, place: Place<'a>) -> Self {
        Self {
            place,
            backends: Backends::new(snapshot),
            text: String::new(),
        }
    }

    pub(super) fn rule(
        &mut self,
        route: &Arc<HttpRoute>,
        rule: &Rule,
        inherited: Option<&Policies>,
        routes: &mut Vec<Placed>,
    ) {
        let own = effective(&self.backends.snapshot.config, &rule.scope).map_err(|problem| {
            self.backends
                .diagnostics
                .push(problem.about("http_route", &route.name))
        });
        let (policies, plan) = match (inherited, own) {
            (Some(inherited), Ok(own)) => (inherited.overlaid_by(&own), self.plan(route, rule)),
            _ => {
                let closed = Action::Unavailable(Unavailable::PolicyUnresolved);
                (Policies::default(), Plan::Same(closed))
            }
        };
        let mut text = std::mem::take(&mut self.text);
        let mut name = |index: usize, part: Option<usize>| -> Arc<str> {
            text.clear();
            text.extend([&*route.name, "/", &*rule.name]);
            if index > 0 {
                _ = write!(text, "#{}", index + 1);
            }
            if let Some(part) = part {
                _ = write!(text, "~{}", part + 1);
            }
            (*text).into()
        };
        let matches = rule.matches.iter().enumerate();
        match plan {
            Plan::Same(action) => {
                // One copy fewer than there are matches, of which most rules have one.
                let same = std::iter::repeat_n((policies, action), rule.matches.len());
                for ((index, matching), (policies, action)) in matches.zip(same) {
                    routes.push(Placed::new(Route {
                        name: name(index, None),
                        matching: matching.clone(),
                        rewrite: rule.rewrite.clone(),
                        action,
                        chain: None,
                        policies,
                        origin: rule.origin.clone(),
                    }));
                }
            }
            Plan::Mesh(backends) => {
                for (index, matching) in matches {
                    let parts = self.mesh_parts(route, rule, matching, &backends);
                    let several = parts.len() > 1;
                    for (number, part) in parts.into_iter().enumerate() {
                        let made = Route {
                            name: name(index, several.then_some(number)),
                            matching: part.matching,
                            rewrite: part.rewrite,
                            action: part.action,
                            chain: part.chain.map(Box::new),
                            policies: policies.clone(),
                            origin: rule.origin.clone(),
                        };
                        routes.push(match several {
                            true => Placed::as_part_of(matching, made),
                            false => Placed::new(made),
                        });
                    }
                }
            }
        }
        self.text = text;
    }

    fn plan(&mut self, route: &Arc<HttpRoute>, rule: &Rule) -> Plan<'a> {
        let backends = match &rule.action {
            RuleAction::Redirect(written) => {
                let (redirect, said) = self.place.redirect(written, rule);
                self.backends
                    .diagnostics
                    .extend(said.map(|said| said.at(rule.origin.clone()).about("http_route", &route.name)));
                return Plan::Same(Action::Redirect(Box::new(redirect)));
            }
            RuleAction::Respond(response) => return Plan::Same(Action::Respond(Box::new(response.clone()))),
            RuleAction::Forward(backends) => backends,
        };
        let mut usable: Vec<(&Backend, Usable<'a>)> = Vec::with_capacity(backends.len());
        let mut why = Unavailable::NoBackend;
        for backend in backends.iter().filter(|backend| backend.weight > 0) {
            match self.backends.usable(RouteRef::Http(route), backend) {
                Ok(how) => usable.push((backend, how)),
                Err(reason) => why = reason,
            }
        }
        if usable.is_empty() {
            if why == Unavailable::NoBackend {
                self.backends.diagnostics.push(
                    Diagnostic::warning(
                        Code::NoBackend,
                        format!("every backend of the rule {:?} has weight 0", rule.name),
                    )
                    .at(rule.origin.clone())
                    .about("http_route", &route.name)
                    .because("it answers 503: nobody is left to take its requests")
                    .fix("give one backend a weight above 0, or answer with `direct_response`"),
                );
            }
            return Plan::Same(Action::Unavailable(why));
        }
        if usable.iter().any(|(_, how)| matches!(how, Usable::Mesh(_))) {
            let choices = usable.into_iter().map(|(backend, how)| choices(backend, how));
            return Plan::Mesh(choices.collect());
        }
        if let [(backend, Usable::Plain(plain))] = &usable[..]
            && backend.policies.is_empty()
            && plain.alone.iter().all(|alone| alone.weight == backend.weight)
        {
            return Plan::Same(Action::Forward(plain.alone.clone()));
        }
        let mut clusters: Vec<WeightedCluster> = Vec::with_capacity(usable.len());
        for (backend, how) in usable {
            let Usable::Plain(Plain { cluster, .. }) = how else {
                continue;
            };
            let same =
                |other: &&mut WeightedCluster| other.cluster == cluster && other.policies == backend.policies;
            match clusters.iter_mut().find(same) {
                Some(other) => other.weight = other.weight.saturating_add(backend.weight),
                None => clusters.push(WeightedCluster {
                    policies: backend.policies.clone(),
                    ..WeightedCluster::plain(cluster, backend.weight)
                }),
            }
        }
        Plan::Same(Action::Forward(clusters.into()))
    }

    fn mesh_parts(
        &mut self,
        route: &Arc<HttpRoute>,
        rule: &Rule,
        matching: &RequestMatch,
        backends: &[Choices<'a>],
    ) -> Vec<Part> {
        let closed = |why| Part {
            matching: matching.clone(),
            rewrite: None,
            action: Action::Unavailable(why),
            chain: None,
        };
        let composed = match compose(matching, rule.rewrite.as_ref(), backends) {
            Ok(composed) => composed,
            Err(reason) => {
                self.not_expressible(route, rule, &reason);
                return vec![closed(Unavailable::NotExpressible)];
            }
        };
        let takes_all = composed.iter().any(|part| part.matching == *matching);
        let mut parts: Vec<Part> = Vec::with_capacity(composed.len() + 1);
        for Composed { matching, outcome } in composed {
            let part = match outcome {
                Ok(Outcome {
                    rewrite,
                    legs,
                    left_out,
                    settings,
                }) => Part {
                    matching,
                    rewrite,
                    action: if legs.is_empty() {
                        Action::Unavailable(left_out.unwrap_or(Unavailable::NoBackend))
                    } else {
                        Action::Forward(self.backends.forward(&legs).into())
                    },
                    chain: Some(settings).filter(|settings| *settings != ChainSettings::default()),
                },
                Err(reason) => {
                    self.not_expressible(route, rule, &reason);
                    Part {
                        matching,
                        ..closed(Unavailable::NotExpressible)
                    }
                }
            };
            parts.push(part);
        }
        if !takes_all {
            // What the chain does not take is not for another rule either.
            parts.push(closed(Unavailable::NoBackend));
        }
        parts
    }

    fn not_expressible(&mut self, route: &Arc<HttpRoute>, rule: &Rule, reason: &str) {
        let diagnostic = Diagnostic::error(Code::NotExpressible, reason.to_owned())
            .at(rule.origin.clone())
            .about("http_route", &route.name)
            .because("what the discovery chain asks for cannot be done behind this rule: those requests answer 503")
            .fix("give the service a rule of its own without a rewrite, or change its service-router");
        if !self.backends.diagnostics.contains(&diagnostic) {
            self.backends.diagnostics.push(diagnostic);
        }
    }
}
