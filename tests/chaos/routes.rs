//! Routes, listeners and policies change while requests pass.

use std::time::Duration;

use crate::course::{Course, PLAIN_RULE};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::ports::free_port;
use crate::support::stack::SOON;
use crate::support::wait_for;

/// Path, weight, header, backend and policy, ten edits a second.
#[tokio::test(flavor = "multi_thread")]
async fn routes_edited() {
    let mut course = Course::begin("routes_edited").await;
    let two = Backend::start("two").await;
    course.stack.register("orders-next", &two).await;
    let rules = [
        "  rule \"all\" {\n    match { path_prefix = \"/\" }\n    backend \"consul\" \"orders\" {}\n  }\n\n  rule \"api\" \
         {\n    match { path_prefix = \"/api\" }\n    backend \"consul\" \"orders-next\" {}\n  }",
        "  rule \"all\" {\n    backend \"consul\" \"orders\" { weight = 90 }\n    backend \"consul\" \"orders-next\" { \
         weight = 10 }\n  }",
        "  rule \"all\" {\n    backend \"consul\" \"orders\" { weight = 10 }\n    backend \"consul\" \"orders-next\" { \
         weight = 90 }\n  }",
        "  rule \"all\" {\n    backend \"consul\" \"orders\" {}\n  }\n\n  rule \"preview\" {\n    match {\n      header \
         \"x-preview\" { exact = \"yes\" }\n    }\n    backend \"consul\" \"orders-next\" {}\n  }",
        "  rule \"all\" {\n    backend \"consul\" \"orders-next\" {}\n  }",
        "  timeout = \"9s\"\n\n  retry {\n    attempts = 2\n    on       = [\"connect-failure\"]\n  }\n\n  rule \"all\" \
         {\n    backend \"consul\" \"orders\" {}\n  }",
        PLAIN_RULE,
    ];
    for round in 0..course.rounds(30) {
        course.change(rules[round as usize % rules.len()]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    course.change(PLAIN_RULE).await;
    course.recovers().await;
    course.end().await;
}

/// A second listener comes and goes, beside the one that serves.
#[tokio::test(flavor = "multi_thread")]
async fn listeners_added_and_removed() {
    let course = Course::begin("listeners_added_and_removed").await;
    let port = free_port();
    let with = format!(
        "gateway \"edge\" {{\n  listener \"web\" {{\n    port = $HTTP\n  }}\n\n  listener \"more\" {{\n    port = \
         {port}\n  }}\n}}\n"
    );
    for round in 0..course.rounds(8) {
        let text = if round % 2 == 0 {
            &with
        } else {
            crate::support::stack::GATEWAY
        };
        course.stack.put("gateway", text).await;
        let added = Client::http(port);
        wait_for("the second listener to follow", SOON, async || {
            let answer = added.send(&Request::get("shop.example.com", "/")).await;
            anyhow::ensure!(answer.is_ok() == (round % 2 == 0), "{answer:?}");
            Ok(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    course.end().await;
}
