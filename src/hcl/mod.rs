//! HCL and JSON text to one spanned tree, and a schema to check it against.
//!
//! What the blocks mean is not known here: `config` and `features` bring the schemas and read the checked tree.

mod check;
mod format;
mod json;
mod parse;
mod read;
mod readable;
mod render;
mod schema;
mod syntax_hint;
#[cfg(test)]
mod tests;
mod tree;
mod value_types;

pub use check::check;
pub use format::format;
pub use parse::{Limits, NotHcl, parse};
pub use read::Reader;
pub use render::to_hcl;
pub use schema::{AttributeSchema, BlockSchema, Occurs, Type};
pub use tree::{Attribute, Block, Body, Source, Value, ValueKind};
pub use value_types::{check_text, parse_duration, parse_hostname};
