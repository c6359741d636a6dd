//! The certificate of the xDS port, its key, and the authorities of the Envoys: read from their files, and again whenever these
//! change. Certificates of today live for days, and an agent runs for months.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::settings::XdsTcpBlock;
use crate::model::{Problem, ProblemKind, Redacted};
use crate::sources::bounded_file;
use crate::sources::certificates::{PemFault, WallClock, parse_public};
use crate::sources::life::{GIVEN, Life};
use crate::sources::stamp::{Stamp, stamp_of};
use crate::status::SourceReading;
use crate::xds::{Identities, Identity, San, TlsSettings};

/// How often the files are looked at: a `stat` for each.
const LOOK: Duration = Duration::from_secs(1);

/// As the settings and the metrics name it.
const NAME: &str = "xds certificate";

type Stamps = [Option<Stamp>; 3];

pub(super) struct XdsCertificate {
    in_use: watch::Sender<Arc<TlsSettings>>,
    // A plain mutex: held across no await, and no file is read meanwhile.
    followed: Mutex<Followed>,
}

struct Followed {
    block: XdsTcpBlock,
    /// Of the files that are in use. None: those of the settings are not.
    stamps: Option<Stamps>,
    /// Of the last look: a file that changes still is being written.
    seen: Stamps,
    /// Said once: the files are looked at every second.
    failure: Option<String>,
    life: Option<Life>,
    ending: Option<Problem>,
}

impl XdsCertificate {
    /// At the start there is nothing else to serve with: files that do not fit are an error.
    pub fn read(block: &XdsTcpBlock) -> anyhow::Result<(Self, watch::Receiver<Arc<TlsSettings>>)> {
        let stamps = stamps(block);
        let tls = read(block)?;
        let life = life_of(&tls);
        let (in_use, receiver) = watch::channel(Arc::new(tls));
        let followed = Mutex::new(Followed {
            block: block.clone(),
            stamps: Some(stamps),
            seen: stamps,
            failure: None,
            life,
            ending: None,
        });
        Ok((Self { in_use, followed }, receiver))
    }

    /// What the settings say now, files and clients. Where the files do not fit, those in use stay until they do.
    pub fn take_up(&self, block: &XdsTcpBlock) -> anyhow::Result<()> {
        let stamps = stamps(block);
        let tls = self.read_next(block);
        let mut followed = self.lock();
        followed.block = block.clone();
        match tls {
            Ok(tls) => {
                self.put_in_use(&mut followed, stamps, tls);
                Ok(())
            }
            Err(error) => {
                followed.stamps = None;
                followed.failure = Some(format!("{error:#}"));
                Err(error)
            }
        }
    }

    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let this = self.clone();
            // Blocking: a file system may hang. A panic there is a bug of ours, and no reason to look no more.
            let looked = tokio::task::spawn_blocking(move || this.look());
            tokio::select! {
                () = stop.cancelled() => return,
                () = async { _ = looked.await; sleep(LOOK).await } => {}
            }
        }
    }

    pub fn reading(&self) -> SourceReading {
        let followed = self.lock();
        let ending = followed.ending.as_ref().map(ToString::to_string);
        SourceReading::new(NAME, followed.failure.is_none(), None)
            .with_problem(followed.failure.clone().or(ending))
            .with_credentials(&[(NAME, followed.life.map(|life| life.end))])
    }

    fn look(&self) {
        let (block, known, seen) = {
            let followed = self.lock();
            (followed.block.clone(), followed.stamps, followed.seen)
        };
        let stamps = stamps(&block);
        let is_known = known == Some(stamps);
        let tls = (!is_known && seen == stamps).then(|| self.read_next(&block));
        let mut followed = self.lock();
        followed.seen = stamps;
        // Otherwise SIGHUP has been there meanwhile.
        if followed.block == block {
            match tls {
                // Those in use are there again, after others or none.
                None if is_known => followed.failure = None,
                None => {}
                Some(Ok(tls)) => {
                    self.put_in_use(&mut followed, stamps, tls);
                    tracing::info!("the certificate of the xDS port was read again");
                }
                // Certificate and key are two files: between their two writes they do not fit.
                Some(Err(error)) => {
                    let failure = format!("{error:#}");
                    if followed.failure.as_ref() != Some(&failure) {
                        tracing::warn!(
                            error = failure,
                            fix = "put files there that fit together; they are taken up by themselves",
                            "changed files of the xDS port (xds.tcp) are not used, those before stay"
                        );
                        followed.failure = Some(failure);
                    }
                }
            }
        }
        followed.tell_of_its_end(WallClock::default().now());
    }

    fn read_next(&self, block: &XdsTcpBlock) -> anyhow::Result<TlsSettings> {
        let next = read(block)?;
        let now = WallClock::default().now();
        in_date(&self.in_use.borrow(), &next, now)
            .with_context(|| format!("{}: cannot be used (xds.tcp)", block.cert_file.display()))?;
        Ok(next)
    }

    fn put_in_use(&self, followed: &mut Followed, stamps: Stamps, tls: TlsSettings) {
        followed.stamps = Some(stamps);
        followed.failure = None;
        followed.life = life_of(&tls);
        self.in_use.send_replace(Arc::new(tls));
    }

    fn lock(&self) -> MutexGuard<'_, Followed> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Followed {
    fn tell_of_its_end(&mut self, now: i64) {
        let ending = self.life.filter(|life| life.last(GIVEN) <= now).map(|life| {
            let file = self.block.cert_file.display();
            let message = format!(
                "the certificate of the xDS port ({file}, xds.tcp) {}",
                life.ending(now)
            );
            let fix = format!(
                "put its successor into {file}, and the key beside it; both are taken up by themselves"
            );
            (life, Problem::new(ProblemKind::Expired, message).with_fix(fix))
        });
        let said = self.ending.take();
        if let Some((life, problem)) = &ending {
            life.log(problem, said.as_slice(), now);
        }
        self.ending = ending.map(|(_, problem)| problem);
    }
}

fn life_of(tls: &TlsSettings) -> Option<Life> {
    Life::of_certificate(&tls.certificate, WallClock::default().now())
}

/// A certificate out of date is of use only where the one before it is, too: last month's that was put back is none.
fn in_date(before: &TlsSettings, next: &TlsSettings, now: i64) -> anyhow::Result<()> {
    match parse_public(&next.certificate, now) {
        Err(fault @ (PemFault::Expired(_) | PemFault::NotYetValid(_)))
            if parse_public(&before.certificate, now).is_ok() =>
        {
            Err(fault.into())
        }
        _ => Ok(()),
    }
}

/// None for one that is away.
fn stamps(block: &XdsTcpBlock) -> Stamps {
    [&block.ca_file, &block.cert_file, &block.key_file]
        .map(|path| std::fs::metadata(path).ok().map(|metadata| stamp_of(&metadata)))
}

/// Reads the files, and sees to it that they can be used together.
fn read(block: &XdsTcpBlock) -> anyhow::Result<TlsSettings> {
    let read = |path: &Path| {
        bounded_file::read_text(path, bounded_file::PEM_BYTES)
            .with_context(|| format!("{}: cannot be read (xds.tcp)", path.display()))
    };
    let identities = block.clients.iter().map(|(san, gateways)| Identity {
        san: if san.contains("://") {
            San::Uri(san.as_str().into())
        } else {
            San::Dns(san.as_str().into())
        },
        gateways: gateways.iter().cloned().collect(),
    });
    let tls = TlsSettings {
        client_ca: read(&block.ca_file)?.into(),
        certificate: read(&block.cert_file)?.into(),
        private_key: Arc::new(Redacted::new(read(&block.key_file)?)),
        identities: Identities(identities.collect()),
    };
    tls.check().with_context(|| {
        let files = [&block.ca_file, &block.cert_file, &block.key_file];
        let files = files.map(|path| path.display().to_string());
        format!("{}: cannot be used (xds.tcp)", files.join(", "))
    })?;
    Ok(tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(life: Life, now: i64) -> Option<String> {
        let mut followed = Followed {
            block: XdsTcpBlock {
                address: ([127, 0, 0, 1], 7482).into(),
                ca_file: "/ca.pem".into(),
                cert_file: "/agent.pem".into(),
                key_file: "/agent.key".into(),
                clients: Vec::new(),
            },
            stamps: None,
            seen: [None; 3],
            failure: None,
            life: Some(life),
            ending: None,
        };
        followed.tell_of_its_end(now);
        followed.ending.map(|problem| problem.to_string())
    }

    #[test]
    fn its_end_is_told_in_the_last_third_of_its_life() {
        let life = Life { start: 0, end: 900 };
        assert_eq!(problem(life, 599), None);
        let told = problem(life, 600).unwrap();
        assert!(told.contains("/agent.pem") && told.contains("ends at"), "{told}");
        let told = problem(life, 900).unwrap();
        assert!(told.contains("ended at"), "{told}");
    }
}
