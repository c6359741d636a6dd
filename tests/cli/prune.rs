//! What `apply -prune` deletes, and what it does not.

use crate::apply::{Bench, EDGE, route, upstream};

/// What a tree merely cannot show is not gone from it, and one file is not all of them.
#[tokio::test(flavor = "multi_thread")]
async fn prune_deletes_nothing_of_which_it_cannot_be_told_that_it_is_gone() {
    let bench = Bench::start().await;
    bench.file("conf/edge.hcl", EDGE);
    bench.consul.put("portreeve/config/edge", EDGE).await;
    let shop = "portreeve/config/teams/shop";
    bench.consul.put(shop, upstream("shop", 80)).await;
    let teams = bench.path().join("conf/teams");
    let refused = async |path: &str, why: &str| {
        for command in [&["plan"][..], &["apply", "-y"]] {
            let arguments: Vec<&str> = command.iter().copied().chain([path, "-prune"]).collect();
            let outcome = bench.run(&arguments);
            assert_ne!(outcome.code, 0, "{}", outcome.shown(&[]));
            assert!(outcome.error.contains(why), "{}", outcome.shown(&[]));
        }
        assert!(bench.consul.get(shop).await.is_some());
    };
    std::os::unix::fs::symlink(bench.path().join("nowhere"), &teams).unwrap();
    refused("conf", "conf/teams are gone cannot be told: No such file").await;
    std::fs::remove_file(&teams).unwrap();
    std::fs::create_dir(&teams).unwrap();
    refused("conf", "conf/teams are gone cannot be told: it is empty").await;
    std::fs::remove_dir(&teams).unwrap();
    refused("conf/edge.hcl", "which is no directory").await;

    let applied = bench.run(&["apply", "conf", "-y", "-prune"]);
    assert_eq!(applied.code, 0, "{}", applied.shown(&[]));
    assert_eq!(bench.consul.get(shop).await, None);
}

/// A part of a tree looks like one from which the rest was deleted.
#[tokio::test(flavor = "multi_thread")]
async fn prune_takes_no_part_of_a_tree_for_the_whole() {
    let bench = Bench::start().await;
    bench.file("conf/edge.hcl", EDGE);
    for name in ["a", "b", "c"] {
        let text = route(name, name) + &upstream(name, 80);
        bench.file(&format!("conf/shop/{name}.hcl"), &text);
    }
    assert_eq!(bench.run(&["apply", "conf", "-y"]).code, 0);
    let all = bench.consul.keys("portreeve/config").await;
    assert_eq!(all.len(), 4);

    let refused = bench.run(&["apply", "conf/shop", "-y", "-prune"]);
    assert_eq!(refused.code, 1, "{}", refused.shown(&[]));
    for said in [
        "-prune would delete 1 of 4 stored documents, with the gateway \"edge\": portreeve/config/edge",
        "no file in conf/shop has them",
        "name the directory that holds all documents; if they are to go, apply with -prune-all",
    ] {
        assert!(refused.error.contains(said), "{}", refused.shown(&[]));
    }
    assert_eq!(bench.consul.keys("portreeve/config").await, all);

    // Without a gateway, more than half.
    bench.file("few/edge.hcl", EDGE);
    let refused = bench.run(&["apply", "few", "-y", "-prune"]);
    assert_eq!(refused.code, 1, "{}", refused.shown(&[]));
    assert!(
        refused.error.contains("would delete 3 of 4 stored documents: "),
        "{}",
        refused.shown(&[])
    );
    bench.file("few/shop/a.hcl", &(route("a", "a") + &upstream("a", 80)));
    let half = bench.run(&["apply", "few", "-y", "-prune"]);
    assert_eq!(half.code, 0, "{}", half.shown(&[]));
    let done = "Transaction of 2 documents written.";
    assert!(half.out.contains(done), "deletions have no index: {}", half.out);

    // What only has another key is not lost, and what is meant is done.
    std::fs::create_dir(bench.path().join("new")).unwrap();
    std::fs::rename(bench.path().join("few"), bench.path().join("new/few")).unwrap();
    let moved = bench.run(&["apply", "new", "-y", "-prune"]);
    assert_eq!(moved.code, 0, "{}", moved.shown(&[]));
    assert_eq!(
        bench.consul.keys("portreeve/config").await,
        ["portreeve/config/few/edge", "portreeve/config/few/shop/a"]
    );
    let meant = bench.run(&["apply", "conf/shop", "-y", "-prune-all"]);
    assert_eq!(meant.code, 0, "{}", meant.shown(&[]));
    assert_eq!(bench.consul.keys("portreeve/config").await.len(), 3);
}
