//! Lives as tokens, answers and certificates tell them, and what a look that fails leaves standing.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::*;
use crate::sources::agent_api::{ApiAddress, ApiSettings, Product};

#[test]
fn a_life_is_looked_at_when_its_last_third_begins_when_it_ends_and_seldom_otherwise() {
    let moments = [600, 900];
    let pause = |now| next_look(moments.into_iter(), now).as_secs();
    assert_eq!(pause(0), 300, "far off");
    assert_eq!(pause(590), 10, "until the last third");
    assert_eq!(pause(599), 5, "never more often");
    assert_eq!(pause(600), 300, "in it, until the end");
    assert_eq!(pause(880), 20, "until the end");
    assert_eq!(pause(900), 300, "ended");
    assert_eq!(pause(100_000), 300);
    let with_another = [600, 900, 500, 750];
    assert_eq!(next_look(with_another.into_iter(), 610).as_secs(), 140);
    assert_eq!(next_look(std::iter::empty(), 0), LONGEST_PAUSE);
}

#[test]
fn a_token_s_answer_tells_its_life() {
    let answer = |end: Option<&str>| {
        let (create_time, expiration_time) = ("2026-11-26T02:00:00Z".to_owned(), end.map(str::to_owned));
        life_of_token(TokenAnswer {
            create_time,
            expiration_time,
        })
    };
    assert_eq!(answer(None), None);
    let life = answer(Some("2026-11-26T03:00:00.5Z")).unwrap();
    assert_eq!(life.end - life.start, 3600);
}

/// Answers one request after the other, until its thread runs out of answers.
fn answering(answers: Vec<(u16, String)>) -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        for (status, body) in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            )
            .unwrap();
        }
    });
    (address, thread)
}

fn rfc3339(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .unwrap()
        .format(&Rfc3339)
        .unwrap()
}

#[tokio::test]
async fn what_a_look_does_not_find_out_stays_known_of_the_same_token() {
    let now = unix_now();
    let end = now + 600;
    let life = format!(
        r#"{{"CreateTime":"{}","ExpirationTime":"{}"}}"#,
        rfc3339(now - 3600),
        rfc3339(end)
    );
    let (address, thread) = answering(vec![
        (200, life),
        (500, "No cluster leader".to_owned()),
        (200, "half an ans".to_owned()),
        (403, "ACL not found".to_owned()),
        (500, "No cluster leader".to_owned()),
    ]);
    let client = ApiClient::new(&ApiSettings {
        address: ApiAddress::parse(Product::Consul, &address, false).unwrap(),
        token: Some(Redacted::new("one".to_owned())),
        ..ApiSettings::of(Product::Consul)
    })
    .unwrap();
    let lifetimes = Lifetimes::new(&client);
    let mut known = Known::default();
    lifetimes.look(&mut known).await;
    let told = lifetimes.reading();
    assert_eq!(told.token, Some(end));
    let [warning] = told.warnings.as_slice() else {
        panic!("{told:?}");
    };
    assert!(
        warning.message.starts_with("the Consul token ends at"),
        "{warning:?}"
    );
    // An answer that says nothing, one that cannot be read, and that of a Consul that knows it no more.
    for _ in 0..3 {
        lifetimes.look(&mut known).await;
        assert_eq!(lifetimes.reading(), told, "nothing new to tell");
    }
    // Of another token nothing is known yet.
    client
        .token()
        .replace(Some(Arc::new(Redacted::new("two".to_owned()))));
    lifetimes.look(&mut known).await;
    assert_eq!(lifetimes.reading(), LifetimesReading::default());
    thread.join().unwrap();
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_known_and_half_a_file_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("client.pem");
    let now = unix_now();
    let write = |from: i64, to: i64| {
        let mut params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
        let at = |seconds: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds.unsigned_abs());
        (params.not_before, params.not_after) = (at(from), at(to));
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        std::fs::write(&path, certificate.pem()).unwrap();
    };
    write(now - 600, now + 300);
    let life = certificate_life(&path, None).await.unwrap();
    assert_eq!((life.start, life.end), (now - 600, now + 300));
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
    assert_eq!(certificate_life(&path, Some(life)).await, Some(life));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(certificate_life(&path, Some(life)).await, Some(life));
    write(now - 600, now - 10);
    let ended = certificate_life(&path, Some(life)).await.unwrap();
    assert_eq!(ended.end, now - 10);
    assert!(ended.last(GIVEN) <= now && ended.has_ended(now));
}
