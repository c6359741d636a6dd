//! The agent's log, in the format of HashiCorp's agents, so that existing parsers read it.
//!
//! Input: tracing events. Output: `2006-01-02T15:04:05.000Z [INFO]  module.sub: message: key=value key2="quoted"`, or
//! one JSON object a line. The level can be changed while the agent runs.
//!
//! Names from the catalog reach the log, and whoever may register a service chooses them. Nothing in a field or a
//! message can therefore begin a new line, move the cursor or turn the reading direction.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;

/// Our own crate; Envoy's lines are told under `envoy`.
const OWN_TARGETS: [&str; 2] = ["portreeve", "envoy"];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// A level by the names that HashiCorp's agents take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLevel(LevelFilter);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown log level {0:?}: use trace, debug, info, warn, error or off")]
pub struct UnknownLevel(String);

impl FromStr for LogLevel {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(match text.to_ascii_lowercase().as_str() {
            "trace" => LevelFilter::TRACE,
            "debug" => LevelFilter::DEBUG,
            "info" => LevelFilter::INFO,
            "warn" | "warning" => LevelFilter::WARN,
            "error" | "err" => LevelFilter::ERROR,
            "off" => LevelFilter::OFF,
            _ => return Err(UnknownLevel(text.to_owned())),
        }))
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl LogLevel {
    /// Libraries speak up from WARN on: at DEBUG the HTTP stack alone buries everything else. TRACE shows them too.
    fn targets(self) -> Targets {
        let libraries = match self.0 {
            LevelFilter::TRACE => LevelFilter::DEBUG,
            own => own.min(LevelFilter::WARN),
        };
        Targets::new()
            .with_targets(OWN_TARGETS.map(|target| (target, self.0)))
            .with_default(libraries)
    }
}

/// Changes the level of a running log.
pub struct LevelHandle {
    change: Box<dyn Fn(LogLevel) -> Result<(), reload::Error> + Send + Sync>,
}

impl LevelHandle {
    /// Fails only when the subscriber is gone.
    pub fn set(&self, level: LogLevel) -> Result<(), reload::Error> {
        (self.change)(level)
    }
}

/// Makes the subscriber. The caller installs it, once, for the whole process.
pub fn subscriber<W: Write + Send + 'static>(
    format: LogFormat,
    level: LogLevel,
    out: W,
) -> (impl Subscriber + Send + Sync + 'static, LevelHandle) {
    let (filter, handle) = reload::Layer::new(level.targets());
    let layer = AgentLog {
        format,
        out: Mutex::new(out),
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(layer);
    let handle = LevelHandle {
        change: Box::new(move |level| handle.reload(level.targets())),
    };
    (subscriber, handle)
}

/// `text` without anything that a terminal or a line reader would act upon.
pub fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    escape_into(&mut shown, text, false);
    shown
}

struct AgentLog<W> {
    format: LogFormat,
    out: Mutex<W>,
}

/// The fields of a span, kept with it and told with each event inside of it.
struct SpanFields(Fields);

#[derive(Clone, Default)]
struct Fields {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl<S, W> Layer<S> for AgentLog<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Write + Send + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(SpanFields(fields));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(SpanFields(fields)) = span.extensions_mut().get_mut()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        // The nearest span last: what is closer to the event is told first.
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(SpanFields(outer)) = span.extensions().get() {
                for (name, value) in &outer.fields {
                    if fields.fields.iter().all(|(known, _)| known != name) {
                        fields.fields.push((name, value.clone()));
                    }
                }
            }
        }
        let now = SystemTime::now();
        let line = match self.format {
            LogFormat::Text => text_line(now, *event.metadata().level(), event.metadata().target(), &fields),
            LogFormat::Json => json_line(now, *event.metadata().level(), event.metadata().target(), &fields),
        };
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        // One write a line: two processes on one terminal do not mix inside of it. A full disk or a closed pipe is no
        // reason to end a gateway.
        let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    }
}

/// What stands in the place of lines that nobody read in time.
pub fn lost_lines(format: LogFormat, lost: u64) -> String {
    let fields = Fields {
        message: "lines of the log are lost here: whoever reads it did not".to_owned(),
        fields: vec![("lost", lost.into())],
    };
    let now = SystemTime::now();
    match format {
        LogFormat::Text => text_line(now, Level::WARN, "agent.log", &fields),
        LogFormat::Json => json_line(now, Level::WARN, "agent.log", &fields),
    }
}

impl Fields {
    fn push(&mut self, field: &Field, value: Value) {
        // A value recorded later replaces the first one.
        match self.fields.iter_mut().find(|(name, _)| *name == field.name()) {
            Some((_, old)) => *old = value,
            None => self.fields.push((field.name(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            // The event's own words come first; a field of that name is a field like any other.
            "message" if self.message.is_empty() => self.message = text,
            _ => self.push(field, Value::String(text)),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" if self.message.is_empty() => self.message = value.to_owned(),
            _ => self.push(field, Value::String(value.to_owned())),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, value.into());
    }

    /// The whole chain: the cause is what helps.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Some errors print their cause themselves.
            if !text.contains(&cause_text) {
                let _ = write!(text, ": {cause_text}");
            }
            source = cause.source();
        }
        self.push(field, Value::String(text));
    }
}

fn text_line(now: SystemTime, level: Level, target: &str, fields: &Fields) -> String {
    let time = humantime::format_rfc3339_millis(now);
    let level = format!("[{level}]");
    let mut line = format!("{time} {level:7} {}: ", module(target));
    escape_into(&mut line, &fields.message, false);
    let mut separator = if fields.message.is_empty() { "" } else { ": " };
    for (name, value) in &fields.fields {
        let _ = write!(line, "{separator}{name}=");
        separator = " ";
        match value {
            Value::String(text) if is_plain(text) => line.push_str(text),
            Value::String(text) => {
                line.push('"');
                escape_into(&mut line, text, true);
                line.push('"');
            }
            other => {
                let _ = write!(line, "{other}");
            }
        }
    }
    line.push('\n');
    line
}

fn json_line(now: SystemTime, level: Level, target: &str, fields: &Fields) -> String {
    let mut object = Map::new();
    object.insert("@level".to_owned(), level.as_str().to_ascii_lowercase().into());
    object.insert("@message".to_owned(), fields.message.as_str().into());
    object.insert("@module".to_owned(), module(target).into());
    object.insert(
        "@timestamp".to_owned(),
        humantime::format_rfc3339_micros(now).to_string().into(),
    );
    for (name, value) in &fields.fields {
        object.insert((*name).to_owned(), value.clone());
    }
    // JSON escapes what is below a space; the line separators that some readers split at are left.
    let json = Value::Object(object).to_string();
    let mut line = String::with_capacity(json.len() + 1);
    for character in json.chars() {
        match is_active(character) {
            true => push_code(&mut line, character),
            false => line.push(character),
        }
    }
    line.push('\n');
    line
}

/// `portreeve::envoy_process::stop` is `agent.envoy_process.stop`.
fn module(target: &str) -> String {
    let own = target.strip_prefix("portreeve::").unwrap_or(target);
    own.replace("::", ".")
}

fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|character| {
            !character.is_whitespace() && !matches!(character, '"' | '=' | '\\') && !is_active(character)
        })
}

/// What a terminal or a line reader acts upon: controls, line separators, marks that turn the reading direction.
fn is_active(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{feff}'
            | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape_into(line: &mut String, text: &str, quoted: bool) {
    for character in text.chars() {
        match character {
            '"' if quoted => line.push_str("\\\""),
            '\\' if quoted => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            active if is_active(active) => push_code(line, active),
            plain => line.push(plain),
        }
    }
}

/// All active characters lie in the basic plane: four digits, which JSON reads too.
fn push_code(line: &mut String, character: char) {
    let _ = write!(line, "\\u{:04x}", u32::from(character));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: &str, run: impl FnOnce(&LevelHandle)) -> String {
        let captured = Captured::default();
        let (subscriber, handle) = subscriber(format, level.parse().unwrap(), captured.clone());
        tracing::subscriber::with_default(subscriber, || run(&handle));
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_is_hashicorps() {
        let line = logged(LogFormat::Text, "info", |_| {
            let span = tracing::info_span!("gateway", gateway = "edge", pid = 1);
            let _entered = span.enter();
            tracing::info!(target: "portreeve::agent::stop", pid = 7, reason = "by hand", empty = "", "drained");
        });
        let (time, rest) = line.split_at(24);
        assert!(humantime::parse_rfc3339(time).is_ok(), "{time}");
        assert_eq!(
            rest,
            " [INFO]  agent.stop: drained: pid=7 reason=\"by hand\" empty=\"\" gateway=edge\n"
        );
        let line = logged(
            LogFormat::Text,
            "info",
            |_| tracing::warn!(target: "envoy", "no limit"),
        );
        assert_eq!(&line[24..], " [WARN]  envoy: no limit\n");
    }

    #[test]
    fn a_field_called_message_does_not_hide_the_events_own_words() {
        let run = || tracing::warn!(target: "portreeve", message = "no such name", "refused");
        let line = logged(LogFormat::Text, "info", |_| run());
        assert_eq!(
            &line[24..],
            " [WARN]  portreeve: refused: message=\"no such name\"\n"
        );
        let line = logged(LogFormat::Json, "info", |_| run());
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&value["@message"], &value["message"]),
            (&"refused".into(), &"no such name".into())
        );
    }

    #[test]
    fn json_is_hashicorps() {
        let line = logged(LogFormat::Json, "debug", |_| {
            tracing::debug!(target: "portreeve::xds", nodes = 3, ok = true, name = "a\nb\u{2028}", "pushed");
        });
        assert_eq!(line.lines().count(), 1);
        assert!(!line.contains('\u{2028}'));
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["@level"], "debug");
        assert_eq!(value["@message"], "pushed");
        assert_eq!(value["@module"], "xds");
        assert!(value["@timestamp"].is_string());
        assert_eq!((&value["nodes"], &value["ok"]), (&3.into(), &true.into()));
        assert_eq!(value["name"], "a\nb\u{2028}");
    }

    #[test]
    fn hostile_names_stay_inside_their_value() {
        let name = "x\" admin=true\n2006-01-02T15:04:05.000Z [INFO]  forged\u{1b}[2J\u{202e}\u{85}";
        let line = logged(LogFormat::Text, "info", |_| {
            tracing::info!(target: "portreeve", service = name, shown = %name, debugged = ?name, "seen {name}");
        });
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(
            line.trim_end().chars().all(|character| !is_active(character)),
            "{line:?}"
        );
        assert!(line.contains(r#"service="x\" admin=true\n2006"#), "{line}");
    }

    #[test]
    fn errors_are_told_with_their_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the file")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk on fire"));
        let line = logged(LogFormat::Text, "info", |_| {
            tracing::error!(target: "portreeve", error = &error as &dyn std::error::Error, "failed");
        });
        assert!(
            line.ends_with("failed: error=\"cannot read the file: disk on fire\"\n"),
            "{line}"
        );
    }

    #[test]
    fn the_level_changes_at_run_time() {
        let lines = logged(LogFormat::Text, "info", |handle| {
            tracing::debug!(target: "portreeve::a", "one");
            handle.set("debug".parse().unwrap()).unwrap();
            tracing::debug!(target: "portreeve::a", "two");
            tracing::info!(target: "hyper", "three");
            handle.set("error".parse().unwrap()).unwrap();
            tracing::warn!(target: "portreeve::a", "four");
            tracing::error!(target: "hyper", "five");
        });
        let told: Vec<&str> = lines
            .lines()
            .filter_map(|line| line.rsplit(": ").next())
            .collect();
        assert_eq!(told, ["two", "five"]);
        assert_eq!("loud".parse::<LogLevel>(), Err(UnknownLevel("loud".to_owned())));
    }
}
