//! go-control-plane, the library that most others serve xDS with: one endpoint change to many streams, from its linear and
//! from its snapshot cache.
//!
//! It is a library: `PEER_GCP_BIN` names a server that somebody made of it. What that must do stands in docs/performance.md; it is
//! what our own server does in the rows `fanout_*`.

use super::proxy::program;
use crate::Plan;
use crate::clock::quantile;
use crate::fanout::{ads, served_by};
use crate::report::Report;

const VARIABLE: &str = "PEER_GCP_BIN";
const CACHES: [(&str, &str); 2] = [("gcp_linear", "linear"), ("gcp_snapshot", "snapshot")];

pub async fn run(plan: &Plan, report: &mut Report) {
    let program = match program(VARIABLE) {
        Ok(program) => program,
        Err(why) => {
            report.absent("gcp", &why);
            return;
        }
    };
    let sizes: &[(usize, usize, &str)] = if plan.quick {
        &[(100, 100, "100")]
    } else {
        &[(100, 1_000, "100"), (1_000, 1_000, "1k"), (100, 10_000, "10k")]
    };
    let changes = if plan.quick { 5 } else { 10 };
    for _ in 0..plan.rounds {
        for &(streams, clusters, label) in sizes {
            let ours = ads(streams, clusters, changes).await;
            for (peer, kind) in CACHES {
                let theirs = served_by(&program, kind, [streams, clusters, changes]).await;
                report.add_peer(
                    peer,
                    &format!("fanout_us_per_stream_{label}"),
                    "us CPU",
                    theirs.cpu_per_stream,
                    ours.cpu_per_stream,
                );
                report.add_peer(
                    peer,
                    &format!("fanout_last_ms_{label}"),
                    "ms",
                    quantile(&theirs.last, 0.5),
                    quantile(&ours.last, 0.5),
                );
            }
        }
    }
}
