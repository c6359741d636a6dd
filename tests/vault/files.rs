use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use portreeve::model::{CertificateQuery, ProblemKind};

use super::rig::{Rig, self_signed, token};

fn query(certificate: &Path, private_key: &Path) -> CertificateQuery {
    CertificateQuery::File {
        certificate: certificate.display().to_string().into(),
        private_key: private_key.display().to_string().into(),
    }
}

fn rig(directory: &Path) -> Rig {
    Rig::start("http://127.0.0.1:1", token("unused"), directory)
}

#[tokio::test]
async fn follows_renames_and_waits_for_the_second_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mut rig = rig(directory.path());
    let query = query(&path("tls.crt"), &path("tls.key"));
    rig.watch(&[&query]);
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::NotFound, "{problem}");

    let (certificate, key) = self_signed("one.example", 5);
    std::fs::write(path("tls.crt"), certificate).unwrap();
    std::fs::write(path("tls.key"), key).unwrap();
    assert_eq!(rig.material().await.names[0].as_ref(), "one.example");

    let (certificate, key) = self_signed("two.example", 5);
    std::fs::write(path("new.crt"), certificate).unwrap();
    std::fs::write(path("new.key"), key).unwrap();
    let started = Instant::now();
    std::fs::rename(path("new.crt"), path("tls.crt")).unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    std::fs::rename(path("new.key"), path("tls.key")).unwrap();
    // No problem in between: a pair that does not fit is half written.
    assert_eq!(rig.material().await.names[0].as_ref(), "two.example");
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "by events: {:?}",
        started.elapsed()
    );

    std::fs::write(path("tls.key"), "rubbish").unwrap();
    let problem = rig.problem().await;
    assert!(
        problem.message.contains("tls.crt") && problem.message.contains("no PRIVATE KEY"),
        "{problem}"
    );
    rig.stop().await;
}

#[tokio::test]
async fn follows_a_swapped_directory_link() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for (folder, name) in [("v1", "one.example"), ("v2", "two.example")] {
        std::fs::create_dir(path(folder)).unwrap();
        let (certificate, key) = self_signed(name, 5);
        std::fs::write(path(folder).join("tls.crt"), certificate).unwrap();
        std::fs::write(path(folder).join("tls.key"), key).unwrap();
    }
    // As container platforms mount secrets: files link into "..data", which is swapped as a whole.
    symlink("v1", path("..data")).unwrap();
    symlink("..data/tls.crt", path("tls.crt")).unwrap();
    symlink("..data/tls.key", path("tls.key")).unwrap();
    let mut rig = rig(directory.path());
    rig.watch(&[&query(&path("tls.crt"), &path("tls.key"))]);
    assert_eq!(rig.material().await.names[0].as_ref(), "one.example");
    let started = Instant::now();
    symlink("v2", path("..next")).unwrap();
    std::fs::rename(path("..next"), path("..data")).unwrap();
    assert_eq!(rig.material().await.names[0].as_ref(), "two.example");
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    rig.stop().await;
}
