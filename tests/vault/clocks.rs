//! This machine's clock and Vault's differ.

use std::time::{Duration, SystemTime};

use portreeve::sources::certificates::WallClock;
use serde_json::json;

use super::bao::Bao;
use super::rig::{Rig, pki};

/// Seconds from the right time.
fn apart(seconds: i64) -> WallClock {
    WallClock::new(move || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        i64::try_from(now.as_secs()).unwrap() + seconds
    })
}

/// A certificate of ten minutes, by such a clock: it is served, and nothing is issued after it.
async fn one_is_issued(seconds: i64) {
    let bao = Bao::start().await;
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h", "key_type": "ec"}))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::by_clock(&bao, directory.path(), apart(seconds));
    rig.watch(&[&pki("www.example.com", 600)]);
    let material = rig.material().await;
    assert_eq!(material.names[0].as_ref(), "www.example.com");
    // The interval of the rig is 2 s.
    rig.silence(Duration::from_secs(5)).await;
    rig.stop().await;
    assert_eq!(bao.issued().await, 1);

    // The next process knows it.
    let mut rig = Rig::by_clock(&bao, directory.path(), apart(seconds));
    rig.watch(&[&pki("www.example.com", 600)]);
    assert_eq!(rig.remembered().await.serial, material.serial);
    rig.silence(Duration::from_secs(3)).await;
    rig.stop().await;
    assert_eq!(bao.issued().await, 1);
}

#[tokio::test]
async fn a_certificate_of_a_clock_that_is_ahead_is_served() {
    one_is_issued(-300).await;
}

#[tokio::test]
async fn by_a_clock_that_is_ahead_a_life_begins_with_the_receipt() {
    one_is_issued(500).await;
}
