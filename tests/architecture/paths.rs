//! What the code of a file names and calls, outside its tests.

use std::collections::BTreeSet;
use std::path::PathBuf;

use syn::punctuated::Punctuated;
use syn::visit::Visit;

use super::{rust_files, shown};

fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || (attribute.path().is_ident("cfg")
                && attribute
                    .parse_args::<syn::Meta>()
                    .is_ok_and(|condition| is_of_tests(&condition)))
    })
}

/// `test`, and `any(test, fuzzing)`: no program of ours is built with either.
fn is_of_tests(condition: &syn::Meta) -> bool {
    let names = |list: &syn::MetaList| {
        list.parse_args_with(Punctuated::<syn::Path, syn::Token![,]>::parse_terminated)
            .is_ok_and(|names| {
                names
                    .iter()
                    .all(|name| name.is_ident("test") || name.is_ident("fuzzing"))
            })
    };
    match condition {
        syn::Meta::Path(path) => path.is_ident("test"),
        syn::Meta::List(list) => list.path.is_ident("any") && names(list),
        syn::Meta::NameValue(_) => false,
    }
}

/// Every path that a file's code outside tests names, `use` trees written out.
#[derive(Default)]
pub struct Paths {
    pub found: BTreeSet<String>,
    pub methods: BTreeSet<String>,
    test_files: BTreeSet<String>,
}

impl Paths {
    fn tree(&mut self, prefix: &str, tree: &syn::UseTree) {
        let join = |name: &dyn std::fmt::Display| match prefix {
            "" => name.to_string(),
            prefix => format!("{prefix}::{name}"),
        };
        match tree {
            syn::UseTree::Path(path) => self.tree(&join(&path.ident), &path.tree),
            syn::UseTree::Name(name) => drop(self.found.insert(join(&name.ident))),
            syn::UseTree::Rename(name) => drop(self.found.insert(join(&name.ident))),
            syn::UseTree::Glob(_) => drop(self.found.insert(join(&"*"))),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.tree(prefix, item)),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if is_test_only(&item.attrs) {
            self.test_files.insert(item.ident.to_string());
        } else {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test_only(&item.attrs) {
            syn::visit::visit_item_fn(self, item);
        }
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.methods.insert(call.method.to_string());
        syn::visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_await(&mut self, expression: &'ast syn::ExprAwait) {
        self.methods.insert("await".to_owned());
        syn::visit::visit_expr_await(self, expression);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree("", &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        self.found.insert(segments.join("::"));
        syn::visit::visit_path(self, path);
    }

    /// Macros take tokens: what they hold is looked at as paths where it reads as expressions.
    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.visit_path(&item.path);
        let parser = Punctuated::<syn::Expr, syn::Token![,]>::parse_terminated;
        if let Ok(arguments) = item.parse_body_with(parser) {
            for argument in arguments.iter() {
                // Parsed here, so shorter-lived than the file: a visitor of its own.
                let mut inner = Paths::default();
                inner.visit_expr(argument);
                self.found.extend(inner.found);
                self.methods.extend(inner.methods);
            }
        }
    }
}

/// Each source file with the paths it names, without files of tests.
pub fn sources() -> Vec<(PathBuf, BTreeSet<String>)> {
    let read = visited().into_iter();
    read.map(|(path, paths)| (path, paths.found)).collect()
}

pub fn visited() -> Vec<(PathBuf, Paths)> {
    let mut read = Vec::new();
    let mut of_tests = BTreeSet::new();
    for path in rust_files("src") {
        let text = std::fs::read_to_string(&path).unwrap();
        let file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", shown(&path)));
        let mut paths = Paths::default();
        paths.visit_file(&file);
        let folder = match path.file_stem().unwrap().to_str().unwrap() {
            "mod" | "lib" | "main" => path.parent().unwrap().to_owned(),
            stem => path.with_file_name(stem),
        };
        of_tests.extend(
            paths
                .test_files
                .iter()
                .flat_map(|name| [folder.join(format!("{name}.rs")), folder.join(name)]),
        );
        read.push((path, paths));
    }
    // A folder of tests is one with all that is in it.
    read.retain(|(path, _)| !path.ancestors().any(|part| of_tests.contains(part)));
    read
}
