//! The measured servers: the pipeline with its ADS server, and bare sockets.

use std::collections::BTreeMap;
use std::io::Write as _;

use portreeve::model::Observation;
use portreeve::pipeline::{Command, Pipeline, Restored};
use portreeve::xds::{GatewayAccess, Gateways, Limits, Server, UnixSettings};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::{monotonic, process_cpu};
use crate::one_change::pipeline_settings;
use crate::synthetic::{Size, answer, documents, service_name};

/// What a bare client sends back for each message: an ACK of a delta stream is about as long.
pub const RAW_ACK: usize = 110;

fn say(nanoseconds: u128) {
    println!("{nanoseconds}");
    std::io::stdout().flush().expect("a pipe");
}

/// Documents, services and every change go through the pipeline, as in the agent; ACKs go back to it.
pub fn ads(socket: &str, services: usize) {
    crate::runtime().block_on(async {
        let size = Size::of_services(services, 10);
        let (server, events) = Server::new(Gateways::default(), Limits::default(), 8192);
        let (pipeline, outputs) = Pipeline::new(
            pipeline_settings(),
            Restored::default(),
            None,
            server.streams().clone(),
        );
        for (name, resources) in &outputs.resources {
            server.gateways().insert(name.clone(), resources.clone());
        }
        let stop = CancellationToken::new();
        let (observations, receiver) = mpsc::channel::<Observation>(8192);
        let (commands, command_receiver) = mpsc::channel(16);
        tokio::spawn(pipeline.run(receiver, events, command_receiver, stop.clone()));
        let settings = UnixSettings {
            path: socket.into(),
            uids: BTreeMap::new(),
            gateways: GatewayAccess::All,
        };
        let listener = settings.bind().await.expect("a socket");
        tokio::spawn({
            let stop = stop.clone();
            async move { server.serve(listener, stop).await }
        });
        observations
            .send(documents(size.documents()))
            .await
            .expect("a pipeline");
        for answer in size.answers() {
            observations.send(answer).await.expect("a pipeline");
        }
        let (done, wait) = oneshot::channel();
        commands
            .send(Command::Permit(Box::default(), done))
            .await
            .expect("a pipeline");
        wait.await.expect("a pipeline");
        say(0);
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line == "cpu" {
                say(process_cpu().as_nanos());
            } else {
                let edition: usize = line.parse().expect("the number of a change");
                let change = answer(&service_name(edition * 7919 % services), size.instances, edition);
                let sent = monotonic();
                observations.send(change).await.expect("a pipeline");
                say(sent.as_nanos());
            }
        }
    });
}

/// Writes so many bytes to every connection at once, and reads a short answer from each.
pub fn raw(socket: &str, bytes: usize) {
    crate::runtime().block_on(async {
        let listener = UnixListener::bind(socket).expect("a socket");
        let (change, changes) = watch::channel(0usize);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut changes = changes.clone();
                changes.borrow_and_update();
                tokio::spawn(async move {
                    let payload = vec![7; bytes];
                    let mut answer = [0; RAW_ACK];
                    // A client that is there before the first change is told by this byte.
                    stream.write_all(&[1]).await.ok();
                    while changes.changed().await.is_ok() {
                        if stream.write_all(&payload).await.is_err()
                            || stream.read_exact(&mut answer).await.is_err()
                        {
                            break;
                        }
                    }
                });
            }
        });
        say(0);
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line == "cpu" {
                say(process_cpu().as_nanos());
            } else {
                let sent = monotonic();
                change.send_modify(|edition| *edition += 1);
                say(sent.as_nanos());
            }
        }
    });
}
