//! Nomad's event stream, as a hint: it ends the turns of the watches without a connection of their own that it names.
//!
//! In: what those watches want to hear of ([`Hints`]). Out: names, to the same. It may drop events, lag, be refused or not
//! be there; nothing rests on it but promptness, because the turns go on. There is one stream, and only while some watch
//! takes turns.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::client::NomadClient;
use super::hints::{Hints, Place};
use super::services::read_rule;
use crate::model::{Problem, ProblemKind};
use crate::sources::agent_api::call::{Call, Scope};
use crate::sources::agent_api::lines::Line;
use crate::sources::agent_api::{ApiError, WatchTiming};
use crate::sources::retry::{Intervals, jittered};

/// Listens while somebody waits, until cancelled.
pub(super) async fn follow(
    client: NomadClient,
    hints: Hints,
    timing: WatchTiming,
    cancel: CancellationToken,
) {
    let mut listener = Listener {
        client,
        hints,
        last: None,
        lost: Intervals::new(timing.retry.0, timing.stream_refused.0),
        refused: Intervals::new(timing.stream_refused.0, timing.stream_refused.1),
        timing,
        told: false,
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = listener.run() => {}
    }
}

struct Listener {
    client: NomadClient,
    hints: Hints,
    timing: WatchTiming,
    /// The index of the last events, and of which region: what was missed since is asked for.
    last: Option<(Option<Arc<str>>, u64)>,
    lost: Intervals,
    refused: Intervals,
    /// That it is not to be had.
    told: bool,
}

/// How a stream ended.
enum End {
    /// It is not to be had, and will not be soon.
    Refused(Problem),
    Lost {
        lived: Duration,
        why: String,
    },
}

impl Listener {
    async fn run(&mut self) {
        let mut wanted = self.hints.wanted();
        let mut token = self.client.token().changes();
        loop {
            let Some(place) = wanted.borrow_and_update().clone() else {
                if wanted.changed().await.is_err() {
                    return;
                }
                continue;
            };
            // Many watches begin at once, and what they want together is known when they have.
            sleep(jittered(self.timing.retry.0)).await;
            if wanted.borrow().as_ref() != Some(&place) {
                continue;
            }
            token.mark_unchanged();
            let end = tokio::select! {
                end = self.listen(&place) => end,
                () = no_longer(&mut wanted, &place) => continue,
                // Nomad ends the stream of an identity that expires when there is something to say, unsaid.
                Ok(()) = token.changed() => continue,
            };
            let rest = self.rest_after(end);
            tokio::select! {
                () = sleep(rest) => {}
                () = no_longer(&mut wanted, &place) => {}
                Ok(()) = token.changed() => {}
            }
        }
    }

    fn rest_after(&mut self, end: End) -> Duration {
        match end {
            End::Refused(problem) => {
                let rest = self.refused.next_interval();
                if !std::mem::replace(&mut self.told, true) {
                    let fix = problem.fix.as_deref();
                    tracing::info!(%problem, fix, "no event stream: Nomad services without a connection are read in turns alone");
                }
                tracing::debug!(%problem, retry_in = ?rest, "event stream");
                rest
            }
            End::Lost { lived, why } => {
                if lived >= self.timing.stream_refused.0 {
                    self.lost.reset();
                }
                let rest = self.lost.next_interval();
                tracing::debug!(why, ?lived, retry_in = ?rest, "event stream lost");
                rest
            }
        }
    }

    fn call(&self, place: &Place) -> Call {
        let scope = Scope::default()
            .with("region", place.region.as_ref())
            .with("namespace", Some(&place.namespace));
        let call = Call::get("event/stream")
            .scope(scope)
            .query("topic", "Service:*")
            .needs(right(place));
        match &self.last {
            Some((region, index)) if *region == place.region => call.query("index", index),
            // From the oldest event that Nomad still has: a few reads too many.
            _ => call,
        }
    }

    async fn listen(&mut self, place: &Place) -> End {
        let begun = Instant::now();
        let lost = |why: String| End::Lost {
            lived: begun.elapsed(),
            why,
        };
        let silence = self.timing.stream_silence;
        let client = self.client.api();
        let opening = async {
            let mut lines = client.lines(self.call(place), LINE_BYTES).await?;
            let first = lines.next().await?;
            Ok::<_, ApiError>((lines, first))
        };
        // The first heartbeat comes at once. Newer versions answer 200 before they look at the token; a refusal is then
        // a stream that ends, or never begins.
        let (mut lines, first) = match timeout(silence.min(BEGINS_WITHIN), opening).await {
            Ok(Ok((lines, Some(line)))) => (lines, line),
            Ok(Err(error)) if error.kind() == ProblemKind::Unavailable => return lost(error.to_string()),
            Ok(Err(error)) => return End::Refused(error.problem()),
            Ok(Ok((_, None))) => return End::Refused(self.never_begun(place, "ends before its first line")),
            Err(_) => return End::Refused(self.never_begun(place, "does not begin")),
        };
        let mut line = first;
        loop {
            if let Err(reason) = self.heed(place, &line) {
                let message = format!(
                    "Nomad at {} sends something else than events: {reason}",
                    self.client.address()
                );
                return End::Refused(Problem::new(ProblemKind::Invalid, message));
            }
            self.has_begun(place);
            line = match timeout(silence, lines.next()).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) => return lost("ended".to_owned()),
                Ok(Err(error)) => return lost(error.to_string()),
                Err(_) => return lost(format!("silent for {silence:?}")),
            };
        }
    }

    fn has_begun(&mut self, place: &Place) {
        self.refused.reset();
        if std::mem::take(&mut self.told) {
            tracing::info!(namespace = %place.namespace, "the event stream is there: Nomad services without a connection are read when it names them");
        }
    }

    fn never_begun(&self, place: &Place, how: &str) -> Problem {
        let message = format!(
            "Nomad's event stream at {} {how}, as it does where a right is missing",
            self.client.address()
        );
        let fix = format!("grant the token: {}", right(place));
        Problem::new(ProblemKind::Forbidden, message).with_fix(fix)
    }

    fn heed(&mut self, place: &Place, line: &Line) -> Result<(), serde_json::Error> {
        let batch: Batch = match line {
            Line::Whole(text) => serde_json::from_slice(text)?,
            // A node full of services that goes is one line. Everybody looks.
            Line::TooLong => {
                self.hints.name_all(place.region.as_ref());
                return Ok(());
            }
        };
        if let Some(index) = batch.index {
            self.last = Some((place.region.clone(), index));
        }
        for service in batch.named() {
            let at = Place {
                region: place.region.clone(),
                namespace: service.namespace.clone(),
            };
            self.hints.name(&service.service_name, &at);
        }
        Ok(())
    }
}

/// A heartbeat is one without anything.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Batch {
    index: Option<u64>,
    events: Option<Vec<Event>>,
}

impl Batch {
    pub(super) fn named(&self) -> impl Iterator<Item = &Service> {
        let events = self.events.iter().flatten();
        events.filter_map(|event| event.payload.as_ref()?.service.as_ref())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    payload: Option<Payload>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Payload {
    service: Option<Service>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Service {
    service_name: Arc<str>,
    namespace: Arc<str>,
}

/// For `*`, Nomad wants it in each namespace that there is.
fn right(place: &Place) -> String {
    read_rule(&place.namespace)
}

/// Ends when something else is wanted.
async fn no_longer(wanted: &mut watch::Receiver<Option<Place>>, place: &Place) {
    let differs = |now: &Option<Place>| now.as_ref() != Some(place);
    // Its sender is ours, too.
    let _ = wanted.wait_for(differs).await;
}

/// Also a refusal takes newer versions seconds.
const BEGINS_WITHIN: Duration = Duration::from_secs(20);

/// A node's end is one line, some 600 bytes for each of its services.
const LINE_BYTES: usize = 1024 * 1024;
