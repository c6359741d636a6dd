//! Ordinary work without end: instances, routes, names, certificates and listeners come and go under load, and now and then
//! Envoy makes way for another. Nothing may fail, and nothing may grow. `make soak` lets it last an hour; its short form is
//! over in seconds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use crate::course::{Course, PATIENCE, PLAIN_RULE};
use crate::epochs;
use crate::support::backend::Backend;
use crate::support::line::Line;
use crate::support::load::Load;
use crate::support::ports::free_port;
use crate::support::stack::{Options, route};
use crate::trend::Trend;

const STEP: Duration = Duration::from_millis(500);
/// Steps between two changes of the same kind.
const ROLL: u64 = 4;
const LISTENER: u64 = 20;
const CERTIFICATE: u64 = 40;
const ENVOY: u64 = 600;
/// Names that are served at a time. Each is used once: what is kept of a name that is gone shows as growth.
const NAMES: usize = 20;

/// Requests a second; each by https is a handshake.
const HTTP_RATE: u32 = 180;
const HTTPS_RATE: u32 = 20;

/// By `SOAK_MINUTES`.
fn length() -> Option<Duration> {
    let minutes: f64 = std::env::var("SOAK_MINUTES").ok()?.parse().expect("SOAK_MINUTES");
    Some(Duration::from_secs_f64(minutes * 60.0))
}

#[tokio::test(flavor = "multi_thread")]
async fn soak() {
    let options = Options {
        vault: true,
        line: Some(Line::start_tls().await),
        vault_line: Some(Line::start().await),
        ..Options::default()
    };
    let (rate, https_rate) = match length() {
        Some(_) => (HTTP_RATE, HTTPS_RATE),
        None => (40, 10),
    };
    let mut course = Course::begin_at("soak", options, https_rate).await;
    let client = course.stack.client().timeout(PATIENCE);
    let plain = Load::start(rate, client, epochs::request());
    let mut churn = Churn::begin(&course).await;
    let mut trend = Trend::begin();
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(STEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while begun.elapsed() < length().unwrap_or(Duration::from_secs(8)) {
        ticks.tick().await;
        churn.step(&mut course).await;
        trend.look(&course, &plain);
    }
    let lasted = begun.elapsed();
    course.recovers().await;
    let plain = plain.finish().await;
    if plain.lost() > 0 {
        println!("soak: {plain}");
    }
    let row = course.account().await;
    churn.end().await;
    trend.settle(lasted, row, &plain, churn.done(), &churn.envoys);
}

struct Churn {
    steps: u64,
    before: Backend,
    /// What was deregistered, and has a roll each to drain; a slow request takes half of that.
    draining: VecDeque<Backend>,
    names: VecDeque<String>,
    more: u16,
    certificates: u64,
    /// When Envoy made way for another: the beginning and the end of it, since the start.
    begun: Instant,
    envoys: Vec<(f64, f64)>,
}

impl Churn {
    async fn begin(course: &Course) -> Churn {
        let before = Backend::start("soak-0").await;
        course.stack.register("orders", &before).await;
        Churn {
            steps: 0,
            before,
            draining: VecDeque::new(),
            names: VecDeque::new(),
            more: free_port(),
            certificates: 0,
            begun: Instant::now(),
            envoys: Vec::new(),
        }
    }

    async fn step(&mut self, course: &mut Course) {
        self.steps += 1;
        course.change(PLAIN_RULE).await;
        self.another_name(course).await;
        if self.steps.is_multiple_of(ROLL) {
            self.roll(course).await;
        }
        if self.steps.is_multiple_of(LISTENER) {
            course.add_or_remove_listener(self.more);
            let text = course.www();
            course.stack.put("www", &text).await;
        }
        if self.steps % CERTIFICATE == CERTIFICATE / 4 {
            course.next_certificate();
            let text = course.www();
            course.stack.put("www", &text).await;
            self.certificates += 1;
        }
        // Once in the short form, too.
        if self.steps % ENVOY == CERTIFICATE / 3 {
            let from = self.begun.elapsed();
            course.restart_envoy().await;
            let until = self.begun.elapsed();
            self.envoys.push((from.as_secs_f64(), until.as_secs_f64()));
        }
    }

    /// A document, a host and a service that never were before; the oldest ones go.
    async fn another_name(&mut self, course: &Course) {
        let name = format!("soak-{}", self.steps);
        course.stack.register(&name, &course.one).await;
        let text = route(&name, &format!("{name}.example.com"), &name);
        course.stack.put(&name, &text).await;
        self.names.push_back(name);
        if self.names.len() > NAMES
            && let Some(oldest) = self.names.pop_front()
        {
            course.stack.delete(&oldest).await;
            course.stack.deregister(&oldest, &course.one).await;
        }
    }

    async fn roll(&mut self, course: &Course) {
        let next = Backend::start(&format!("soak-{}", self.steps)).await;
        course.stack.register("orders", &next).await;
        course.stack.deregister("orders", &self.before).await;
        let leaving = std::mem::replace(&mut self.before, next);
        self.draining.push_back(leaving);
        if self.draining.len() > 2
            && let Some(mut drained) = self.draining.pop_front()
        {
            drained.stop().await;
        }
    }

    async fn end(&mut self) {
        self.before.stop().await;
        for mut drained in self.draining.drain(..) {
            drained.stop().await;
        }
    }

    /// How often each kind of change was made.
    fn done(&self) -> Value {
        json!({
            "routes": self.steps,
            "names": self.steps,
            "instances": self.steps / ROLL,
            "listeners": self.steps / LISTENER,
            "certificates": self.certificates,
            "envoys": self.envoys.len(),
        })
    }
}
