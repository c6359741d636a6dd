//! A discovery chain's route behind a rule: what must hold of the request as it arrives, and what becomes of its path.
//!
//! The chain sees the path as the rule rewrote it. So its condition is carried back through the rewrite to the path that
//! Envoy matches, and put together with the rule's own. Plain prefixes of Consul are text (`/adm` takes `/admin`), those
//! of a rule are segments.

use std::sync::Arc;

use super::matching::{PATH_HEADER, normal_path};
use crate::model::http::{PathMatch, PathRewrite, RequestMatch, Rewrite, TextMatch, ValueMatch};
use crate::model::mesh::{ChainMatch, ChainPath};
use crate::model::regex::full_match;

/// What of a rule the chain's route stands behind.
#[derive(Clone, Debug)]
pub(super) struct Front<'a> {
    pub(super) path: &'a PathMatch,
    pub(super) rewrite: Option<&'a Rewrite>,
}

/// How the rule's rewrite changes the text at a path's beginning: `from` becomes `to`.
struct Shift {
    from: String,
    to: String,
    /// A path of its own that becomes `/`: the rule's prefix without a slash behind it, where the prefix is cut off.
    bare: Option<String>,
}

/// Why a chain's route cannot be done behind a rule.
pub(super) type Inexpressible = String;

impl Front<'_> {
    fn path_rewrite(&self) -> Option<&PathRewrite> {
        self.rewrite.and_then(|rewrite| rewrite.path.as_ref())
    }

    fn shift(&self) -> Shift {
        let plain = |from: &str, to: &str| Shift {
            from: from.to_owned(),
            to: to.to_owned(),
            bare: None,
        };
        match (self.path, self.path_rewrite()) {
            (PathMatch::Prefix(from), Some(PathRewrite::Prefix(to))) => match (&**from, &**to) {
                ("/", "/") => plain("", ""),
                ("/", to) => plain("/", &format!("{to}/")),
                (from, "/") => Shift {
                    from: format!("{from}/"),
                    to: "/".to_owned(),
                    bare: Some(from.to_owned()),
                },
                (from, to) => plain(from, to),
            },
            _ => plain("", ""),
        }
    }

    /// The conditions on the path as it arrives under which the chain's route takes it: any of them. None: never.
    pub(super) fn path_conditions(&self, route: &ChainMatch) -> Result<Vec<ChainPath>, Inexpressible> {
        let path = insensitive(route);
        if let Some(PathRewrite::Full(fixed)) = self.path_rewrite() {
            return Ok(if takes(&path, fixed)? {
                vec![ChainPath::Any]
            } else {
                Vec::new()
            });
        }
        let shift = self.shift();
        let back = |text: &str| {
            text.strip_prefix(&*shift.to)
                .map(|rest| format!("{}{rest}", shift.from))
        };
        Ok(match &path {
            ChainPath::Any => vec![ChainPath::Any],
            ChainPath::StartsWith(text) if shift.to.starts_with(&**text) => vec![ChainPath::Any],
            ChainPath::StartsWith(text) => back(text)
                .map(|text| ChainPath::StartsWith(text.into()))
                .into_iter()
                .collect(),
            ChainPath::Exact(text) => {
                let bare = shift.bare.as_ref().filter(|_| **text == *"/");
                let exact = back(text).into_iter().chain(bare.cloned());
                exact.map(|text| ChainPath::Exact(text.into())).collect()
            }
            ChainPath::Regex(_) if shift.from == shift.to => vec![path],
            ChainPath::Regex(regex) => match &shift.bare {
                Some(prefix) => {
                    let behind = format!("{}(?:{regex})", regex::escape(prefix));
                    let mut all = vec![ChainPath::Regex(behind.into())];
                    if takes(&path, "/")? {
                        all.push(ChainPath::Exact(prefix.as_str().into()));
                    }
                    all
                }
                None => {
                    return Err(format!(
                        "the chain matches the rewritten path by the regular expression {regex:?}, which cannot be carried back through a rewrite to {:?}",
                        shift.to
                    ));
                }
            },
        })
    }

    /// What becomes of the path in the end: the rule's rewrite, then the chain's.
    pub(super) fn rewrite(
        &self,
        route: Option<(&ChainMatch, &Arc<str>)>,
        matched: &PathMatch,
    ) -> Result<Option<Rewrite>, Inexpressible> {
        let hostname = self.rewrite.and_then(|rewrite| rewrite.hostname.clone());
        let path = match route {
            None => self.own_rewrite(matched),
            Some((route, with)) => Some(self.both_rewrites(route, with)?),
        };
        Ok((path.is_some() || hostname.is_some()).then_some(Rewrite { path, hostname }))
    }

    /// The rule's rewrite under a path condition that is no longer the rule's.
    fn own_rewrite(&self, matched: &PathMatch) -> Option<PathRewrite> {
        match self.path_rewrite()? {
            PathRewrite::Prefix(_) if matched != self.path => {
                let shift = self.shift();
                (shift.from != shift.to || shift.bare.is_some())
                    .then(|| substitute(&shift.pattern(), &shift.to))
            }
            own => Some(own.clone()),
        }
    }

    fn both_rewrites(&self, route: &ChainMatch, with: &str) -> Result<PathRewrite, Inexpressible> {
        let shift = self.shift();
        let text = match &route.path {
            // The whole path was matched, and all of it is replaced.
            ChainPath::Exact(_) | ChainPath::Regex(_) => return Ok(PathRewrite::Full(normal(with).into())),
            ChainPath::StartsWith(text) => &**text,
            ChainPath::Any => "/",
        };
        if let Some(PathRewrite::Full(fixed)) = self.path_rewrite() {
            let rest = fixed.get(text.len()..).unwrap_or_default();
            return Ok(PathRewrite::Full(normal(&format!("{with}{rest}")).into()));
        }
        if route.case_insensitive {
            if shift.from != shift.to {
                return Err("the chain ignores the case of a path that the rule rewrites".to_owned());
            }
            return Ok(replaced(&format!("^(?i:{})", regex::escape(text)), with));
        }
        match (shift.to.strip_prefix(text), text.strip_prefix(&*shift.to)) {
            (Some(rest), _) => Ok(replaced(&shift.pattern(), &format!("{with}{rest}"))),
            (None, Some(rest)) => {
                let start = format!("{}{rest}", shift.from);
                Ok(replaced(&format!("^{}", regex::escape(&start)), with))
            }
            (None, None) => Err("the chain's route never takes what the rule rewrites".to_owned()),
        }
    }
}

impl Shift {
    fn pattern(&self) -> String {
        match &self.bare {
            Some(prefix) => format!("^{}/*", regex::escape(prefix)),
            None => format!("^{}", regex::escape(&self.from)),
        }
    }
}

fn substitute(pattern: &str, with: &str) -> PathRewrite {
    PathRewrite::Substitute {
        pattern: pattern.into(),
        with: with.into(),
    }
}

/// A path's beginning in place of what the pattern takes. Consul's prefixes are text, so a segment may begin in what is
/// taken and end behind it: what is left of it after a slash must not be a doubled slash or `..`, because paths were
/// normalised before, and the destination's intentions compare text.
fn replaced(pattern: &str, with: &str) -> PathRewrite {
    let with = normal(with);
    match with.ends_with('/') {
        true => substitute(&format!("{pattern}{NO_SEGMENT}"), &with),
        false => substitute(pattern, &with),
    }
}

/// Slashes and dot segments, where a segment begins.
const NO_SEGMENT: &str = r"(?:/|\.{1,2}(?:/|$))*";

/// As Envoy would have normalised it, had a client sent it.
fn normal(path: &str) -> String {
    normal_path(&format!("/{}", path.trim_start_matches('/')))
}

fn insensitive(route: &ChainMatch) -> ChainPath {
    match &route.path {
        path if !route.case_insensitive => path.clone(),
        ChainPath::Any => ChainPath::Any,
        ChainPath::Exact(text) => ChainPath::Regex(format!("(?i:{})", regex::escape(text)).into()),
        ChainPath::StartsWith(text) => ChainPath::Regex(format!("(?i:{}).*", regex::escape(text)).into()),
        ChainPath::Regex(_) => route.path.clone(),
    }
}

fn takes(condition: &ChainPath, path: &str) -> Result<bool, Inexpressible> {
    Ok(match condition {
        ChainPath::Any => true,
        ChainPath::Exact(text) => **text == *path,
        ChainPath::StartsWith(text) => path.starts_with(&**text),
        ChainPath::Regex(regex) => full_match(regex, path)
            .ok_or_else(|| format!("{regex:?} is not a regular expression that Envoy takes"))?,
    })
}

/// Both conditions on the path at once. None: no path meets both.
pub(super) fn both_paths(request: &RequestMatch, condition: &ChainPath) -> Option<RequestMatch> {
    let mut both = request.clone();
    // What Envoy has one place for goes there, the other to a condition on `:path`, which is the path with its query.
    let also = |text: TextMatch| ValueMatch {
        name: PATH_HEADER.into(),
        text,
        invert: false,
    };
    let with_query = |regex: &str| TextMatch::Regex(format!("(?:{regex})(?:\\?.*)?").into());
    match (&request.path, condition) {
        (_, ChainPath::Any) => {}
        (PathMatch::Exact(path), condition) => {
            if !takes(condition, path).unwrap_or(false) {
                return None;
            }
        }
        (known, ChainPath::Exact(path)) => {
            let fits = match known {
                PathMatch::Prefix(prefix) => is_under(path, prefix),
                PathMatch::StartsWith(text) => path.starts_with(&**text),
                PathMatch::Regex(regex) => full_match(regex, path).unwrap_or(false),
                PathMatch::Exact(_) => false,
            };
            if !fits {
                return None;
            }
            both.path = PathMatch::Exact(path.clone());
        }
        (PathMatch::Prefix(prefix), ChainPath::StartsWith(text)) => {
            if prefix.starts_with(&**text) {
                // The rule's is the narrower one.
            } else if is_under(text, prefix) {
                both.path = PathMatch::StartsWith(text.clone());
            } else {
                return None;
            }
        }
        (PathMatch::StartsWith(known), ChainPath::StartsWith(text)) => {
            if text.starts_with(&**known) {
                both.path = PathMatch::StartsWith(text.clone());
            } else if !known.starts_with(&**text) {
                return None;
            }
        }
        (PathMatch::Regex(_), ChainPath::StartsWith(text)) => {
            both.headers.push(also(TextMatch::Prefix(text.clone())));
        }
        (PathMatch::Prefix(prefix), ChainPath::Regex(regex)) => {
            both.path = PathMatch::Regex(regex.clone());
            if **prefix != *"/" {
                let under = format!("{}(?:/.*)?", regex::escape(prefix));
                both.headers.push(also(with_query(&under)));
            }
        }
        (PathMatch::StartsWith(text), ChainPath::Regex(regex)) => {
            both.headers.push(also(TextMatch::Prefix(text.clone())));
            both.path = PathMatch::Regex(regex.clone());
        }
        (PathMatch::Regex(_), ChainPath::Regex(regex)) => both.headers.push(also(with_query(regex))),
    }
    Some(both)
}

/// The conditions that are not about the path. None: no request meets both.
pub(super) fn both_requests(request: &RequestMatch, route: &ChainMatch) -> Option<RequestMatch> {
    let mut both = request.clone();
    if both.methods.is_empty() {
        both.methods.clone_from(&route.methods);
    } else if !route.methods.is_empty() {
        both.methods.retain(|method| route.methods.contains(method));
        if both.methods.is_empty() {
            return None;
        }
    }
    let add = |all: &mut Vec<ValueMatch>, more: &[ValueMatch]| {
        for condition in more {
            if !all.contains(condition) {
                all.push(condition.clone());
            }
        }
    };
    add(&mut both.headers, &route.headers);
    add(&mut both.query, &route.query);
    Some(both)
}

/// By segments.
fn is_under(path: &str, prefix: &str) -> bool {
    prefix == "/"
        || path
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
#[path = "chain_match_tests.rs"]
mod tests;
