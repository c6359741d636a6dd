use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::*;
use crate::model::{CertificateQuery, Observation};
use crate::sources::certificates::WallClock;
use crate::sources::certificates::publisher::CertificateFreshness;
use crate::sources::nomad::NomadSettings;

/// Gives these answers, one after the other.
struct Nomad {
    variables: Variables,
    _server: JoinSet<()>,
}

impl Nomad {
    async fn answering(namespace: Option<&str>, answers: &[(u16, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let mut answers: VecDeque<(u16, String)> = answers
            .iter()
            .map(|(status, body)| (*status, (*body).to_owned()))
            .collect();
        let mut server = JoinSet::new();
        server.spawn(async move {
            while let Some((status, body)) = answers.pop_front() {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    stream.read_buf(&mut head).await.unwrap();
                }
                let length = body.len();
                let text = format!(
                    "HTTP/1.1 {status} X\r\nX-Nomad-Index: 7\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                stream.write_all(text.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        });
        let settings = NomadSettings::from_env(|name| match name {
            "NOMAD_ADDR" => Some(address.clone()),
            "NOMAD_NAMESPACE" => namespace.map(str::to_owned),
            _ => None,
        });
        let client = NomadClient::new(&settings.unwrap()).unwrap();
        Self {
            variables: Variables::new(client),
            _server: server,
        }
    }

    async fn ask(&self, watch: &VariableWatch<'_>) -> Result<Answer, ApiError> {
        self.variables.client.call(watch.call()).await
    }
}

fn publisher() -> (Publisher, mpsc::Receiver<Observation>) {
    let query = CertificateQuery::NomadVariable {
        namespace: None,
        path: "edge/www".into(),
        certificate_item: "certificate".into(),
        private_key_item: "private_key".into(),
    };
    let (updates, received) = mpsc::channel(8);
    let freshness = Arc::new(Mutex::new(CertificateFreshness::new(query.clone())));
    let publisher = Publisher::new(query, updates, WallClock::default(), freshness);
    (publisher, received)
}

fn query(namespace: Option<&str>) -> VariableQuery<'_> {
    VariableQuery {
        namespace,
        path: "edge/www",
        certificate_item: "certificate",
        private_key_item: "private_key",
    }
}

/// A variable as Nomad shows it.
fn variable() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["www.example.com".to_owned()]).unwrap();
    let items = serde_json::json!({
        "certificate": params.self_signed(&key).unwrap().pem(),
        "private_key": key.serialize_pem(),
    });
    serde_json::json!({ "Items": items }).to_string()
}

#[tokio::test]
async fn what_is_missing_is_said_of_the_namespace_that_was_asked() {
    for (own, named, asked) in [
        (None, None, "default"),
        (Some("shop"), None, "shop"),
        (Some("shop"), Some("edge"), "edge"),
    ] {
        let nomad = Nomad::answering(own, &[(404, ""), (403, "Permission denied")]).await;
        let (mut publisher, mut received) = publisher();
        let mut watch = VariableWatch::new(query(named), &nomad.variables, &mut publisher);
        let absent = nomad.ask(&watch).await.unwrap();
        watch.take(absent, Context::default()).await.unwrap();
        let Some(Observation::Certificate(update)) = received.recv().await else {
            panic!("told")
        };
        let problem = update.result.unwrap_err();
        assert!(
            problem.message.ends_with(&format!("in the namespace {asked:?}")),
            "{problem}"
        );
        let fix = problem.fix.unwrap();
        assert!(
            fix.starts_with(&format!("nomad var put -namespace={asked} edge/www ")),
            "{fix}"
        );
        let refused = nomad.ask(&watch).await.unwrap_err().problem();
        let fix = refused.fix.unwrap();
        assert!(
            fix.contains(&format!("namespace {asked:?} {{ variables {{ path \"edge/www\"")),
            "{fix}"
        );
    }
}

/// Nomad may wake a watch for nothing: what is answered then is not paid for as news.
#[tokio::test]
async fn only_what_differs_is_news() {
    let (one, two) = (variable(), variable());
    let empty = "{\"Items\": {}}";
    let steps = [
        (&*one, true),
        (&*one, false),
        (&*two, true),
        (empty, true),
        (empty, false),
        (&*two, true),
        (&*two, false),
    ];
    let nomad = Nomad::answering(None, &steps.map(|(body, _)| (200, body))).await;
    let (mut publisher, _received) = publisher();
    let mut watch = VariableWatch::new(query(None), &nomad.variables, &mut publisher);
    for (step, (_, expected)) in steps.iter().enumerate() {
        let answer = nomad.ask(&watch).await.unwrap();
        match watch.take(answer, Context::default()).await.unwrap() {
            Verdict::Taken { news } => assert_eq!(news, *expected, "step {step}"),
            other => panic!("{other:?}"),
        }
    }
}
