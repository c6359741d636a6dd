//! What the agent holds for routes alone, a thousand to a hundred thousand of them, ten to a host, over a thousand
//! services. One agent grows: what it once needed for less is part of what it has then.

use crate::Plan;
use crate::live::Live;
use crate::report::Report;
use crate::synthetic::{RULES, route, service_name};

const SERVICES: usize = 1_000;
const SIZES: [(usize, &str); 3] = [
    (1_000, "rss_1k_routes_mib"),
    (10_000, "rss_10k_routes_mib"),
    (100_000, "rss_100k_mib"),
];

pub fn run(_plan: &Plan, report: &mut Report) {
    let runtime = crate::runtime();
    runtime.block_on(async {
        let live = Live::start().await;
        live.register_all(SERVICES, 2).await;
        let mut written = 0;
        for (routes, name) in SIZES {
            let hosts = routes / RULES;
            let documents = (written..hosts).map(|at| {
                let name = format!("r{at}");
                let service = service_name(at % SERVICES);
                let text = route(&name, &host(at), RULES, &service, 0);
                (name, text)
            });
            live.put_all(documents).await;
            // Nobody listens where the instances are said to be.
            live.until_status(&host(hosts - 1), 503).await;
            live.until_quiet().await;
            report.add(name, "MiB", live.resident_mib());
            written = hosts;
        }
    });
}

fn host(at: usize) -> String {
    format!("h{at}.example.com")
}
