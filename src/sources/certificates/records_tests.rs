use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use super::*;
use crate::model::ClientCaQuery;
use crate::sources::certificates::store::{
    PublicCertificate, RedbCertificateStore, SHOWN_AFTER_ITS_END, StoreError,
};

fn read(name: &str) -> CertificateQuery {
    CertificateQuery::ClientCa(ClientCaQuery::File {
        certificate: name.into(),
        crl: None,
    })
}

fn issued(name: &str) -> CertificateQuery {
    CertificateQuery::VaultPki {
        mount: "pki".into(),
        role: "edge".into(),
        issuer: None,
        common_name: name.into(),
        alt_names: Vec::new(),
        ip_sans: Vec::new(),
        ttl: None,
        key_type: None,
    }
}

fn material(serial: &str, not_after: i64) -> CertificateMaterial {
    CertificateMaterial {
        chain: format!("chain of {serial}").into(),
        private_key: None,
        serial: serial.into(),
        names: Vec::new(),
        not_before: 0,
        not_after,
        crl: None,
    }
}

fn record(serial: &str, not_after: i64) -> StoredCertificate {
    StoredCertificate::read(&material(serial, not_after))
}

/// A disk that may be full, and counts its transactions.
struct Disk {
    kept: RedbCertificateStore,
    is_full: AtomicBool,
    writes: AtomicI64,
}

impl Disk {
    fn empty() -> Arc<Self> {
        Arc::new(Self {
            kept: RedbCertificateStore::in_memory().unwrap(),
            is_full: false.into(),
            writes: 0.into(),
        })
    }

    fn serial(&self, query: &CertificateQuery) -> Option<String> {
        let certificate: PublicCertificate = self.kept.load(query).unwrap()?.certificate?;
        Some(certificate.serial.to_string())
    }
}

impl CertificateStore for Disk {
    fn load(&self, query: &CertificateQuery) -> Result<Option<StoredCertificate>, StoreError> {
        self.kept.load(query)
    }

    fn write(&self, records: &[(CertificateQuery, Option<StoredCertificate>)]) -> Result<(), StoreError> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        match self.is_full.load(Ordering::Relaxed) {
            true => Err(StoreError::Stopped("full".to_owned())),
            false => self.kept.write(records),
        }
    }

    fn prune(
        &self,
        keeps: &dyn Fn(&CertificateQuery, &StoredCertificate) -> bool,
    ) -> Result<usize, StoreError> {
        self.kept.prune(keeps)
    }
}

fn on(disk: &Arc<Disk>, now: i64) -> Records {
    Records::new(disk.clone(), WallClock::new(move || now))
}

#[tokio::test]
async fn a_watch_writes_until_it_ends_and_never_over_its_successor() {
    let disk = Disk::empty();
    let records = on(&disk, 0);
    let query = read("a");
    let former = records.begin(&query, true).unwrap();
    former.keep(&material("1", 9));
    former.keep(&material("2", 9));
    assert!(records.write(false).await);
    assert_eq!(disk.serial(&query).as_deref(), Some("2"));
    assert_eq!(disk.writes.load(Ordering::Relaxed), 1, "one for all that came");
    records.end(&query);
    former.keep(&material("3", 9));
    assert!(records.write(false).await);
    assert_eq!(disk.serial(&query), None);
    let later = records.begin(&query, false).unwrap();
    later.keep(&material("4", 9));
    former.keep(&material("5", 9));
    assert!(records.write(false).await);
    assert_eq!(disk.serial(&query).as_deref(), Some("4"));
    assert!(later.recall(0).await.is_none(), "it is from before no restart");
    assert!(records.begin(&issued("a"), true).is_none());
}

#[tokio::test]
async fn what_finds_no_room_is_written_once_there_is_some() {
    let disk = Disk::empty();
    let records = on(&disk, 0);
    let (one, two) = (read("one"), read("two"));
    disk.kept.save(&two, &record("old", 9)).unwrap();
    disk.is_full.store(true, Ordering::Relaxed);
    let memory = records.begin(&one, true).unwrap();
    memory.keep(&material("1", 9));
    records.begin(&two, true).unwrap();
    records.end(&two);
    assert!(!records.write(false).await);
    memory.keep(&material("2", 9));
    assert!(!records.write(true).await);
    disk.is_full.store(false, Ordering::Relaxed);
    assert!(records.write(true).await);
    assert_eq!(disk.serial(&one).as_deref(), Some("2"), "the newest");
    assert_eq!(disk.serial(&two), None, "an end is not forgotten either");
}

/// At the start what nobody wanted when the last process ended goes, and each day what has ended since.
#[tokio::test]
async fn what_is_over_goes_at_the_start_and_each_day() {
    let disk = Disk::empty();
    let (wanted, unwanted) = (read("wanted"), read("unwanted"));
    let (young, old) = (issued("young"), issued("old"));
    for query in [&wanted, &unwanted] {
        disk.kept.save(query, &record("1", 100)).unwrap();
    }
    disk.kept.save(&young, &record("1", 500)).unwrap();
    disk.kept.save(&old, &record("1", 100)).unwrap();
    let now = Arc::new(AtomicI64::new(SHOWN_AFTER_ITS_END + 200));
    let ticking = now.clone();
    let clock = WallClock::new(move || ticking.load(Ordering::Relaxed));
    let records = Records::new(disk.clone(), clock);
    let memory = records.begin(&wanted, true);
    let first: Needed<CertificateQuery> = [(wanted.clone(), 1_u64), (young.clone(), 1)]
        .into_iter()
        .collect();
    let stop = CancellationToken::new();
    let writer = tokio::spawn(
        records
            .clone()
            .write_all(first, Duration::from_millis(20), stop.clone()),
    );
    let gone = async |query: &CertificateQuery| {
        let going = async {
            while disk.serial(query).is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, going).await.expect("it goes");
    };
    gone(&unwanted).await;
    gone(&old).await;
    // By the interest in them, not by their dates: a list of revocations may have run out.
    assert!(disk.serial(&wanted).is_some() && disk.serial(&young).is_some());
    now.store(SHOWN_AFTER_ITS_END + 600, Ordering::Relaxed);
    gone(&young).await;
    assert!(disk.serial(&wanted).is_some());
    drop(memory);
    stop.cancel();
    writer.await.unwrap();
}
