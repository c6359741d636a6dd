//! What a document says that never happens, or hardly what was meant: warnings, it is in service as written.

use super::document::Decoder;
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::Reader;
use crate::model::Origin;

/// A document that is whole and declares nothing.
pub(super) fn empty(at: Origin) -> Diagnostic {
    Diagnostic::warning(Code::NoEffect, "this document holds no blocks")
        .at(at)
        .because("it is empty, or all of it is comments: it declares nothing")
        .fix("write its blocks, or take the document away")
}

impl Decoder<'_> {
    fn doubt(&mut self, at: Origin, message: impl Into<String>, because: &str, fix: impl Into<String>) {
        let doubt = Diagnostic::warning(Code::NoEffect, message);
        self.problems.push(doubt.at(at).because(because).fix(fix));
    }

    /// A star in a path is a star, and a regular expression takes the whole path or nothing.
    pub(super) fn doubt_path(&mut self, reader: &Reader<'_>) {
        for attribute in ["path", "path_prefix"] {
            let Some(path) = reader.string(attribute).filter(|path| path.contains('*')) else {
                continue;
            };
            let before = path.split('*').next().unwrap_or_default();
            let fix = match (path.strip_suffix("/*"), path.ends_with('*')) {
                (Some(""), _) => "leave it out: without it every path matches".to_owned(),
                (Some(above), _) if !above.contains('*') => {
                    format!("write `path_prefix = {above:?}`: it takes {above} and all below")
                }
                (_, true) if before.len() + 1 == path.len() => {
                    format!(
                        "write `path_regex = {:?}`",
                        format!("{}.*", regex::escape(before))
                    )
                }
                _ => "write a `path_regex` with `.*`, or `[^/]*` within a segment".to_owned(),
            };
            self.doubt(
                reader.origin_of(attribute),
                format!("the \"*\" in {path:?} stands for itself"),
                "only requests whose path has a star there match",
                fix,
            );
        }
        let Some(regex) = reader.string("path_regex") else {
            return;
        };
        let inner = regex.trim_start_matches('^');
        let mut first = inner.chars();
        let is_letter = first.next().is_some_and(|c| c.is_ascii_alphanumeric());
        let must_stand = !first.next().is_some_and(|c| "*?{|".contains(c));
        if is_letter && must_stand && !regex.contains('|') {
            self.doubt(
                reader.origin_of("path_regex"),
                format!("the regular expression {regex:?} matches no path"),
                "every path begins with \"/\", and the expression takes the whole of it",
                format!("begin it with \"/\" (`{:?}`), or with `.*`", format!("/{inner}")),
            );
        } else {
            self.doubt_regex(reader, "path_regex", "path");
        }
    }

    /// Who writes where it begins, and not where it ends, takes it for a search.
    pub(super) fn doubt_regex(&mut self, reader: &Reader<'_>, attribute: &str, what: &str) {
        let Some(regex) = reader.string(attribute) else {
            return;
        };
        let Some(whole) = regex.strip_prefix('^') else {
            return;
        };
        // Whoever writes more than a beginning knows that it goes on, or where it ends.
        let mut escaped = false;
        let is_plain = whole.chars().all(|c| match escaped {
            true => {
                escaped = false;
                c.is_ascii_punctuation()
            }
            false => {
                escaped = c == '\\';
                !".*+?()[]{}|$^".contains(c)
            }
        });
        if is_plain {
            let open = format!("{whole}.*");
            self.doubt(
                reader.origin_of(attribute),
                format!("the regular expression {regex:?} takes nothing behind its end"),
                &format!("it matches the whole {what}, with \"^\" as without it"),
                format!("write {open:?} for all that begin so, or {whole:?} where that is all"),
            );
        }
    }

    /// `outer`: what holds where `inner` says nothing of its own.
    pub(super) fn doubt_tries(&mut self, inner: &Reader<'_>, outer: Option<&Reader<'_>>) {
        let own = inner.has("timeout") || inner.child("retry").is_some();
        let timeout = inner.duration("timeout").or_else(|| outer?.duration("timeout"));
        let retry = inner.child("retry").or_else(|| outer?.child("retry"));
        let (Some(timeout), Some(retry), true) = (timeout, retry, own) else {
            return;
        };
        let is_off = retry.boolean("disabled") == Some(true);
        let Some(one) = retry.duration("per_try_timeout").filter(|_| !is_off) else {
            return;
        };
        if one < timeout || timeout.is_zero() {
            return;
        }
        self.doubt(
            retry.origin_of("per_try_timeout"),
            "per_try_timeout is no shorter than the timeout of the whole request",
            "`timeout` bounds all tries together: it ends the request before a try is over its time",
            format!(
                "set it below {}, or lengthen `timeout`",
                humantime::format_duration(timeout)
            ),
        );
    }

    /// `vault kv get` shows a path that is not the one it is asked by.
    pub(super) fn doubt_kv_path(&mut self, reader: &Reader<'_>, mount: &str, path: &str) {
        if reader.integer("kv_version") == Some(1) {
            return;
        }
        let below = path
            .strip_prefix(mount)
            .and_then(|rest| rest.strip_prefix('/'))
            .unwrap_or(path);
        let (attribute, mount, path) = match (mount.strip_suffix("/data"), below.strip_prefix("data/")) {
            (Some(above), _) => ("mount", above, path),
            (None, Some(secret)) => ("path", mount, secret),
            (None, None) => return,
        };
        self.doubt(
            reader.origin_of(attribute),
            "this is a path of Vault's API, and the agent adds data/ itself",
            "`path` is the secret's path below the mount: of version 2 of KV, the agent reads <mount>/data/<path>",
            format!("write `mount = {mount:?}` and `path = {path:?}`; version 1 has no `data/`: `kv_version = 1`"),
        );
    }
}
