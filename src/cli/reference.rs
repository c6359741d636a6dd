//! The reference page of the command line, from clap's own help.

use std::fmt::Write as _;

use clap::Command;

use super::{arguments, single_dash};

/// `docs/reference/cli.md`.
pub fn reference() -> String {
    let mut root = arguments::command();
    root.build();
    let mut page = String::from(
        "# Command line\n\n<!-- Made from the source: UPDATE_REFERENCE=1 cargo test --test cli reference -->\n\n\
         Long flags take one dash or two. Results go to standard output, problems to standard error.\n\n\
         | Exit code | Meaning |\n|---|---|\n\
         | 0 | done; for `plan`: no change; for `status`: ready; for `explain`: a rule takes the request |\n\
         | 1 | not done, or not valid; for `plan`: there are changes; for `agent`: it could not start, a part of it died, or a \
         second signal cut its stop short |\n\
         | 78 | `envoy run`: the settings say that the agent starts this Envoy, and another start would end the same way |\n\
         | 255 | `plan` could not say |\n\n\
         | Environment | Meaning |\n|---|---|\n\
         | `PORTREEVE_API_SOCKET` | the unix socket of the agent's API, as `-api-socket` |\n\
         | `CONSUL_HTTP_ADDR`, `CONSUL_HTTP_TOKEN`, `CONSUL_HTTP_TOKEN_FILE`, `CONSUL_CACERT`, ... | how to reach Consul, as Consul's own tools read them |\n\
         | `VAULT_ADDR`, `NOMAD_ADDR` and their kin | how `agent` and `setup` reach Vault and Nomad, as their own tools read them |\n\
         | `NO_COLOR` | no colors |\n",
    );
    section(&mut root, &mut page);
    page
}

fn section(command: &mut Command, page: &mut String) {
    let name = command.get_bin_name().unwrap_or("portreeve").to_owned();
    let help = single_dash::shown(&command.render_long_help().to_string());
    let lines: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    let _ = write!(page, "\n## {name}\n\n```text\n{}\n```\n", lines.join("\n"));
    let names: Vec<String> = command
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .collect();
    for sub in names.iter().filter(|sub| *sub != "help") {
        if let Some(sub) = command.find_subcommand_mut(sub) {
            section(sub, page);
        }
    }
}
