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

/// Fewer routes of Envoy's than this are asked as fast in a list.
const LIST: usize = 16;
/// The branches of a host hold each route this often at most, on average: a regular expression without a fixed beginning
/// and a rule for all paths stand in every branch.
const COPIES: usize = 4;
/// What a copy costs Envoy at the least, in bytes.
const COPY: usize = 1024;

/// Routes by their place among the host's, ascending.
#[derive(Debug, PartialEq)]
pub(super) struct PathTree {
    /// Each begins differently; in no order that matters.
    pub branches: Vec<(String, Vec<usize>)>,
    /// Of a path that begins like none of them.
    pub rest: Vec<usize>,
}

impl PathTree {
    /// Fewer entries of a list are asked as fast there.
    pub(super) fn is_for(entries: usize) -> bool {
        entries >= LIST
    }

    /// Of each path, how long its route is: a route with long policies is not copied as often. None: a list serves as well.
    pub(super) fn of<'a>(
        paths: impl ExactSizeIterator<Item = &'a PathMatch>,
        bytes: impl Fn(usize) -> usize,
    ) -> Option<Self> {
        let costs: Vec<usize> = (0..paths.len()).map(|at| COPY + bytes(at)).collect();
        let room = costs.iter().sum::<usize>() * COPIES;
        let beginnings: Vec<_> = paths.map(beginning).collect();
        let mut sorted: Vec<(&str, usize)> = beginnings.iter().map(|text| &**text).zip(0..).collect();
        sorted.sort_unstable();
        // A branch for each beginning, or for so many routes that the copies are few enough.
        std::iter::successors(Some(1), |routes| Some(routes * 4))
            .take_while(|routes| *routes < sorted.len())
            .find_map(|routes| Growing::new(routes, &costs, room).grow(&sorted))
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
    costs: &'a [usize],
    /// Of all branches together, at most.
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
    fn new(routes: usize, costs: &'a [usize], room: usize) -> Self {
        Self {
            routes,
            costs,
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
        let cost = routes.iter().map(|at| self.costs[*at]).sum();
        self.room = self.room.checked_sub(cost)?;
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

    /// Of routes that are all short.
    fn tree(paths: &[PathMatch]) -> Option<PathTree> {
        PathTree::is_for(paths.len())
            .then(|| PathTree::of(paths.iter(), |_| 0))
            .flatten()
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
            if let Some(made) = tree(&paths) {
                let held: usize = made.branches.iter().map(|(_, routes)| routes.len()).sum();
                prop_assert!(held <= COPIES * paths.len());
                let takes: Vec<Taker> = paths.iter().map(takes).collect();
                for text in &asked {
                    let all: Vec<_> = (0..paths.len()).filter(|at| takes[*at](text)).collect();
                    let found: Vec<_> = branch(&made, text)
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
        let made = tree(&paths).unwrap();
        assert_eq!(branch(&made, "/p00007"), [7, 10_001]);
        assert_eq!(branch(&made, "/p00007?q=1"), [7, 10_001]);
        assert_eq!(branch(&made, "/p00007/below/x"), [7, 10_000, 10_001]);
        assert_eq!(branch(&made, "/q"), [10_001]);
        assert_eq!(branch(&made, "*"), [0; 0]);
    }

    #[test]
    fn what_stands_everywhere_makes_the_branches_wider_and_not_the_host_larger() {
        let mut paths = exact(10_000);
        paths.extend((0..20).map(|at| PathMatch::Regex(format!(".*/r{at}").into())));
        let made = tree(&paths).unwrap();
        let held: usize = made.branches.iter().map(|(_, routes)| routes.len()).sum();
        assert!(held <= COPIES * paths.len(), "{held}");
        let longest = made.branches.iter().map(|(_, routes)| routes.len()).max();
        assert!(longest < Some(100), "{longest:?}");
        // One below the other: every branch would hold all that are above.
        let nested: Vec<_> = (1..2_000)
            .map(|depth| PathMatch::Prefix("/a".repeat(depth).into()))
            .collect();
        let made = tree(&nested).unwrap();
        let held: usize = made.branches.iter().map(|(_, routes)| routes.len()).sum();
        assert!(held <= COPIES * nested.len(), "{held}");
    }

    #[test]
    fn a_long_route_that_stands_everywhere_is_not_copied_as_often() {
        let mut paths = exact(10_000);
        paths.push(PathMatch::Prefix("/".into()));
        let branches = [200, 10_000, 1_000_000].map(|long| {
            let bytes = |at: usize| if at == 10_000 { long } else { 200 };
            let made = PathTree::of(paths.iter(), bytes).unwrap();
            let held = made.branches.iter().flat_map(|(_, routes)| routes);
            let held: usize = held.map(|at| COPY + bytes(*at)).sum();
            assert!(held <= COPIES * (10_001 * COPY + 10_000 * 200 + long), "{held}");
            made.branches.len()
        });
        assert!(
            branches[0] > 2 * branches[1] && branches[1] > 2 * branches[2],
            "{branches:?}"
        );
        assert!(branches[2] > 2, "{branches:?}");
    }

    #[test]
    fn few_routes_or_routes_that_begin_alike_stay_a_list() {
        assert_eq!(tree(&exact(LIST - 1)), None);
        assert!(tree(&exact(LIST)).is_some());
        let alike: Vec<_> = (0..100)
            .map(|at| PathMatch::Regex(format!(".*{at}").into()))
            .collect();
        assert_eq!(tree(&alike), None);
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
