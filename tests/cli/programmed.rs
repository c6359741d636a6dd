//! "Programmed, n of m Envoys", with a real Envoy.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::ensure;
use portreeve::envoy::bootstrap::{Bootstrap, XdsEndpoint};
use portreeve::status::{Programmed, Status};
use portreeve::xds::{GatewayAccess, Gateways, Limits, Server, UnixSettings};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::view;
use crate::support::envoy::Envoy;
use crate::support::{scratch_directory, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn counts_envoys_that_acknowledged() {
    let directory = scratch_directory("programmed");
    let socket = directory.path().join("xds.sock");
    let view = plain_view();
    let (set, receiver) = watch::channel(Some(Arc::new(view.gateways[0].compiler.resources().clone())));
    let gateways = Gateways::default();
    gateways.insert("edge", receiver);
    let (server, _events) = Server::new(gateways, Limits::default(), 1024);
    let listener = UnixSettings {
        path: socket.clone(),
        uids: BTreeMap::new(),
        gateways: GatewayAccess::All,
    };
    let listener = listener.bind().await.unwrap();
    let (serving, stop) = (server.clone(), CancellationToken::new());
    tokio::spawn(async move { serving.serve(listener, stop).await });
    let status = || Status::of(&view, &server.streams().snapshot(), Vec::new(), SystemTime::now());
    let of_document = |status: &Status| {
        let found = status
            .documents
            .iter()
            .find(|document| document.document.ends_with("/edge"));
        found.unwrap().programmed
    };
    assert_eq!(
        of_document(&status()),
        Programmed {
            acknowledged: 0,
            of: 0
        }
    );

    let admin = directory.path().join("admin.sock");
    let bootstrap = Bootstrap::new("n1", "edge", XdsEndpoint::Unix(socket), &admin);
    let mut envoy = Envoy::start(&bootstrap.render().unwrap().bootstrap);
    envoy.wait_ready().await;
    wait_for("the acknowledgement", Duration::from_secs(20), async || {
        let status = status();
        ensure!(
            of_document(&status)
                == Programmed {
                    acknowledged: 1,
                    of: 1
                },
            "{:?}",
            status.envoys
        );
        ensure!(
            status.gateways[0].programmed.is_complete(),
            "{:?}",
            status.gateways
        );
        Ok(())
    })
    .await;
    let seen = status();
    assert_eq!(seen.envoys.len(), 1);
    assert!(
        seen.envoys[0].settled && seen.envoys[0].node == "n1",
        "{:?}",
        seen.envoys
    );
    let objects: BTreeMap<&str, Programmed> = seen
        .objects
        .iter()
        .map(|object| (object.name.as_str(), object.programmed))
        .collect();
    assert_eq!(
        objects["shop"],
        Programmed {
            acknowledged: 1,
            of: 1
        }
    );
    assert_eq!(
        objects["p"],
        Programmed {
            acknowledged: 0,
            of: 0
        },
        "a policy that nobody uses reaches no Envoy"
    );

    // What is published and not yet sent is not programmed: the stream gets an older set than the status compares with.
    let mut older = view.gateways[0].compiler.resources().clone();
    older.remove(
        portreeve::envoy::ResourceKind::ScopedRoute,
        "web/shop.example.com",
    );
    set.send_replace(Some(Arc::new(older)));
    wait_for("Envoy to fall behind", Duration::from_secs(20), async || {
        let behind = of_document(&status());
        ensure!(
            behind
                == Programmed {
                    acknowledged: 0,
                    of: 1
                },
            "{behind}"
        );
        Ok(())
    })
    .await;
}

/// Without TLS: the certificate of the other tests is none that Envoy would take.
fn plain_view() -> portreeve::pipeline::View {
    let mut view = view(true);
    let without =
        |text: &str| text.replace("protocol = \"https\"\n\n    tls { certificates = [\"www\"] }", "");
    let edge = view.snapshot.config.documents().next().unwrap().document.clone();
    let mut update = portreeve::model::DocumentsUpdate::from_source("kv");
    update.changed = vec![portreeve::model::Document {
        text: without(&edge.text).into(),
        ..edge
    }];
    update.complete = true;
    let changes = view
        .snapshot
        .apply(portreeve::model::Observation::Documents(update));
    view.gateways[0].compiler.update(&view.snapshot, &changes);
    view
}
