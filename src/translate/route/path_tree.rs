//! Which of a host's routes may take a path, told by how the path begins.
//!
//! Envoy asks a list of routes one after the other, 35 to 50 ns each. A host with many rules is cut into branches: the
//! longest branch that a path begins with holds every route that may take it, in the order of the host. There is no
//! fall-through to a shorter branch, so each also holds the routes whose paths it begins with: `/a/b` those of `/a`.
//!
//! The beginning of a route is a condition that its match implies, whatever else it asks for. Which branches there are
//! is therefore a matter of cost alone: any set of them takes the same requests.

use std::borrow::Cow;

use regex_syntax::ast::{self, Ast};

use crate::model::http::PathMatch;

/// Fewer routes than this are asked as fast in a list.
const LIST: usize = 16;
/// The branches of a host hold each route this often at most, on average: a regular expression without a fixed beginning
/// and a rule for all paths stand in every branch, and a copy costs Envoy a KiB.
const COPIES: usize = 4;

/// Routes by their place among the host's, ascending.
#[derive(Debug, PartialEq)]
pub(super) struct PathTree {
    /// Each begins differently; in no order that matters.
    pub branches: Vec<(String, Vec<usize>)>,
    /// Of a path that begins like none of them.
    pub rest: Vec<usize>,
}

impl PathTree {
    /// None: a list serves as well.
    pub(super) fn of<'a>(paths: impl ExactSizeIterator<Item = &'a PathMatch>) -> Option<Self> {
        if paths.len() < LIST {
            return None;
        }
        let beginnings: Vec<_> = paths.map(beginning).collect();
        let mut sorted: Vec<(&str, usize)> = beginnings.iter().map(|text| &**text).zip(0..).collect();
        sorted.sort_unstable();
        // A branch for each beginning, or for so many routes that the copies are few enough.
        std::iter::successors(Some(1), |routes| Some(routes * 4))
            .take_while(|routes| *routes < sorted.len())
            .find_map(|routes| Growing::new(routes, sorted.len() * COPIES).grow(&sorted))
            .filter(|tree| !tree.branches.is_empty())
    }
}

/// What the path of every request begins with that `path` takes.
fn beginning(path: &PathMatch) -> Cow<'_, str> {
    match path {
        PathMatch::Exact(text) | PathMatch::Prefix(text) | PathMatch::StartsWith(text) => Cow::Borrowed(text),
        PathMatch::Regex(regex) => Cow::Owned(regex_beginning(regex)),
    }
}

/// The letters that a full match starts with. The pattern was checked with its document: what Envoy's engine reads
/// otherwise than the parser here was refused.
fn regex_beginning(regex: &str) -> String {
    let Ok(tree) = ast::parse::Parser::new().parse(regex) else {
        return String::new();
    };
    let parts = match &tree {
        Ast::Concat(concat) => &concat.asts[..],
        one => std::slice::from_ref(one),
    };
    parts
        .iter()
        .skip_while(|part| matches!(part, Ast::Assertion(at) if at.kind == ast::AssertionKind::StartLine))
        .map_while(|part| match part {
            Ast::Literal(literal) if literal.c.is_ascii() => Some(literal.c),
            _ => None,
        })
        .collect()
}

/// The beginnings, sorted, pass from left to right: the stack holds those that the last one begins with.
struct Growing<'a> {
    /// So many routes make a branch.
    routes: usize,
    /// In all branches together, at most.
    room: usize,
    stack: Vec<Node<'a>>,
    branches: Vec<(String, Vec<usize>)>,
}

#[derive(Default)]
struct Node<'a> {
    text: &'a str,
    /// Begin with exactly this.
    own: Vec<usize>,
    /// Begin with more, too few of them for a branch.
    below: Vec<usize>,
}

impl<'a> Growing<'a> {
    fn new(routes: usize, room: usize) -> Self {
        Self {
            routes,
            room,
            stack: vec![Node::default()],
            branches: Vec::new(),
        }
    }

    /// None: there is no room.
    fn grow(mut self, sorted: &[(&'a str, usize)]) -> Option<PathTree> {
        for (text, route) in sorted.iter().copied() {
            while let Some(node) = self.stack.pop_if(|top| !text.starts_with(top.text)) {
                let common = common_beginning(node.text, text);
                if self.stack.last().is_some_and(|top| top.text.len() < common.len()) {
                    self.stack.push(Node {
                        text: common,
                        ..Node::default()
                    });
                }
                self.close(node)?;
            }
            match self.stack.last_mut() {
                Some(top) if top.text == text => top.own.push(route),
                _ => self.stack.push(Node {
                    text,
                    own: vec![route],
                    below: Vec::new(),
                }),
            }
        }
        loop {
            let node = self.stack.pop()?;
            if self.stack.is_empty() {
                let mut rest = [node.own, node.below].concat();
                rest.sort_unstable();
                return Some(PathTree {
                    branches: self.branches,
                    rest,
                });
            }
            self.close(node)?;
        }
    }

    /// None of the beginnings to come begins with this one.
    fn close(&mut self, node: Node<'a>) -> Option<()> {
        let mut routes = [node.own, node.below].concat();
        if routes.len() < self.routes {
            self.stack.last_mut()?.below.append(&mut routes);
            return Some(());
        }
        for shorter in &self.stack {
            routes.extend(&shorter.own);
        }
        self.room = self.room.checked_sub(routes.len())?;
        routes.sort_unstable();
        self.branches.push((node.text.to_owned(), routes));
        Some(())
    }
}

fn common_beginning<'a>(one: &'a str, other: &str) -> &'a str {
    let letters = one.chars().zip(other.chars());
    let length = letters
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum();
    &one[..length]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Taker<'a> = Box<dyn Fn(&str) -> bool + 'a>;

    fn takes(path: &PathMatch) -> Taker<'_> {
        match path {
            PathMatch::Exact(exact) => Box::new(|text| **exact == *text),
            PathMatch::Prefix(prefix) | PathMatch::StartsWith(prefix) => {
                Box::new(|text| text.starts_with(&**prefix))
            }
            PathMatch::Regex(regex) => {
                let regex = regex::Regex::new(&format!("^(?:{regex})$")).unwrap();
                Box::new(move |text| regex.is_match(text))
            }
        }
    }

    fn branch<'a>(tree: &'a PathTree, text: &str) -> &'a [usize] {
        let branches = tree
            .branches
            .iter()
            .filter(|(beginning, _)| text.starts_with(beginning));
        branches
            .max_by_key(|(beginning, _)| beginning.len())
            .map_or(&tree.rest, |(_, routes)| routes)
    }

    fn a_path() -> impl Strategy<Value = PathMatch> {
        let text = "/[ab/ä]{0,6}";
        prop_oneof![
            text.prop_map(|text| PathMatch::Exact(text.into())),
            text.prop_map(|text| PathMatch::Prefix(text.into())),
            text.prop_map(|text| PathMatch::StartsWith(text.into())),
            "\\^?/[ab]{0,3}(|a*|[ab]|\\.|(a|b)|b\\?|a\\{2\\}|.*)[ab/]{0,2}"
                .prop_filter("valid", |text| regex::Regex::new(text).is_ok())
                .prop_map(|text| PathMatch::Regex(text.into())),
            Just(PathMatch::Regex("(?i)/A.*".into())),
            Just(PathMatch::Regex("/a|/b/.*".into())),
        ]
    }

    proptest! {
        #[test]
        fn a_branch_holds_what_the_list_would_find(
            paths in prop::collection::vec(a_path(), 1..80),
            asked in prop::collection::vec("/[ab/ä.?]{0,8}", 20),
        ) {
            if let Some(tree) = PathTree::of(paths.iter()) {
                let held: usize = tree.branches.iter().map(|(_, routes)| routes.len()).sum();
                prop_assert!(held <= COPIES * paths.len());
                let takes: Vec<Taker> = paths.iter().map(takes).collect();
                for text in &asked {
                    let all: Vec<_> = (0..paths.len()).filter(|at| takes[*at](text)).collect();
                    let found: Vec<_> = branch(&tree, text)
                        .iter()
                        .copied()
                        .filter(|at| takes[*at](text))
                        .collect();
                    prop_assert_eq!(all, found, "{}", text);
                }
            } else {
                prop_assert!(paths.len() < LIST || few_beginnings(&paths));
            }
        }
    }

    /// Nothing to branch at.
    fn few_beginnings(paths: &[PathMatch]) -> bool {
        let mut all: Vec<_> = paths.iter().map(beginning).collect();
        all.sort();
        all.dedup();
        all.len() * 2 < paths.len()
    }

    fn exact(count: usize) -> Vec<PathMatch> {
        (0..count)
            .map(|at| PathMatch::Exact(format!("/p{at:05}").into()))
            .collect()
    }

    #[test]
    fn each_of_many_paths_has_a_branch_with_what_is_above_it() {
        let mut paths = exact(10_000);
        paths.push(PathMatch::Prefix("/p00007/below".into()));
        paths.push(PathMatch::Prefix("/".into()));
        let tree = PathTree::of(paths.iter()).unwrap();
        assert_eq!(branch(&tree, "/p00007"), [7, 10_001]);
        assert_eq!(branch(&tree, "/p00007?q=1"), [7, 10_001]);
        assert_eq!(branch(&tree, "/p00007/below/x"), [7, 10_000, 10_001]);
        assert_eq!(branch(&tree, "/q"), [10_001]);
        assert_eq!(branch(&tree, "*"), [0; 0]);
    }

    #[test]
    fn what_stands_everywhere_makes_the_branches_wider_and_not_the_host_larger() {
        let mut paths = exact(10_000);
        paths.extend((0..20).map(|at| PathMatch::Regex(format!(".*/r{at}").into())));
        let tree = PathTree::of(paths.iter()).unwrap();
        let held: usize = tree.branches.iter().map(|(_, routes)| routes.len()).sum();
        assert!(held <= COPIES * paths.len(), "{held}");
        let longest = tree.branches.iter().map(|(_, routes)| routes.len()).max();
        assert!(longest < Some(100), "{longest:?}");
        // One below the other: every branch would hold all that are above.
        let nested: Vec<_> = (1..2_000)
            .map(|depth| PathMatch::Prefix("/a".repeat(depth).into()))
            .collect();
        let tree = PathTree::of(nested.iter()).unwrap();
        let held: usize = tree.branches.iter().map(|(_, routes)| routes.len()).sum();
        assert!(held <= COPIES * nested.len(), "{held}");
    }

    #[test]
    fn few_routes_or_routes_that_begin_alike_stay_a_list() {
        assert_eq!(PathTree::of(exact(LIST - 1).iter()), None);
        assert!(PathTree::of(exact(LIST).iter()).is_some());
        let alike: Vec<_> = (0..100)
            .map(|at| PathMatch::Regex(format!(".*{at}").into()))
            .collect();
        assert_eq!(PathTree::of(alike.iter()), None);
    }

    #[test]
    fn of_a_regular_expression_only_what_every_match_begins_with_counts() {
        for (regex, expected) in [
            ("/api/v[0-9]+/x", "/api/v"),
            ("^/api$", "/api"),
            ("/a\\.b", "/a.b"),
            ("/ab?", "/a"),
            ("/ab*c", "/a"),
            ("/a{2}", "/"),
            ("/a|/b", ""),
            ("(/a)", ""),
            ("(?i)/a", ""),
            ("/a(?i)b", "/a"),
            ("/ä", "/"),
            ("", ""),
            ("/", "/"),
            ("[", ""),
        ] {
            assert_eq!(regex_beginning(regex), expected, "{regex}");
        }
    }
}
