//! The reference of the settings, written from their schema.

use super::schema::settings_schema;
use crate::config::{DURATIONS, write_attribute, write_block};

/// `docs/reference/settings.md`.
pub fn settings_markdown() -> String {
    let mut text = format!(
        "# Settings of the agent\n\n\
         Generated from the schema (`UPDATE_REFERENCE=1 cargo test --test golden reference`): do not edit.\n\n\
         `portreeve agent -config PATH` reads a file, or every `.hcl` and `.json` file of a directory; it may be given several \
         times, and what stands in a later file wins. Flags win over files; what neither says is read from the environment \
         (`CONSUL_*`, `VAULT_*`, `NOMAD_*`), as HashiCorp's own tools read it. An unknown key is an error with a suggestion, and a file \
         that may be settings and is damaged stops the start: the agent does not run without its bounds. SIGHUP reads the \
         files again and keeps the old settings on an error; what needs a restart is named in the log.\n\n\
         {DURATIONS}\n\n\
         ## At the top\n\n",
    );
    let schema = settings_schema();
    for attribute in &schema.attributes {
        write_attribute(&mut text, attribute);
    }
    text.push('\n');
    for (block, _) in &schema.blocks {
        write_block(&mut text, block, &[]);
    }
    format!("{}\n", text.trim_end())
}
