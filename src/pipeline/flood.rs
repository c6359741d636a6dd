//! Lines in the log about what may come by the hundred thousand: the first ones are written, the others counted.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Lines of one kind in one window: a flood of bad documents does not hide the good one. An import of a hundred is told in
/// full.
const LINES: usize = 100;

/// What the counts are of.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// Counts what gets no line, by its kind.
#[derive(Debug)]
pub(super) struct Flood<K> {
    window: Option<Window<K>>,
}

#[derive(Debug)]
struct Window<K> {
    ends: Instant,
    count: BTreeMap<K, usize>,
}

impl<K> Default for Flood<K> {
    fn default() -> Self {
        Self { window: None }
    }
}

impl<K: Ord> Flood<K> {
    /// Whether it gets a line. `over` is to be called before, and at the deadline.
    pub fn admits(&mut self, kind: K, now: Instant) -> bool {
        let window = self.window.get_or_insert_with(|| Window {
            ends: now + WINDOW,
            count: BTreeMap::new(),
        });
        let count = window.count.entry(kind).or_default();
        *count += 1;
        *count <= LINES
    }

    /// When there is something to say of those that got no line.
    pub fn deadline(&self) -> Option<Instant> {
        let window = self.window.as_ref()?;
        let left_out = window.count.values().any(|count| *count > LINES);
        left_out.then_some(window.ends)
    }

    /// How many got no line, of a window that is over.
    pub fn over(&mut self, now: Instant) -> BTreeMap<K, usize> {
        let window = self.window.take_if(|window| window.ends <= now);
        window.map(Window::untold).unwrap_or_default()
    }

    /// The same of one that nobody will wait for.
    pub fn rest(&mut self) -> BTreeMap<K, usize> {
        self.window.take().map(Window::untold).unwrap_or_default()
    }
}

impl<K: Ord> Window<K> {
    fn untold(self) -> BTreeMap<K, usize> {
        let left_out = self.count.into_iter().filter(|(_, count)| *count > LINES);
        left_out.map(|(kind, count)| (kind, count - LINES)).collect()
    }
}

/// What comes again word for word is told this often.
const REPEATED: Duration = Duration::from_secs(60);
/// Of so many at once; others are told each time, as far as a [`Flood`] lets them.
const KNOWN: usize = 256;

/// What comes again and again, such as the same Envoy every second: told the first time, then at times with how often.
#[derive(Debug)]
pub(super) struct Repeats<K> {
    told: BTreeMap<K, (Instant, usize)>,
}

impl<K> Default for Repeats<K> {
    fn default() -> Self {
        Self {
            told: BTreeMap::new(),
        }
    }
}

impl<K: Ord> Repeats<K> {
    /// Whether it gets a line, and how many got none since its last one.
    pub fn admits(&mut self, what: K, now: Instant) -> Option<usize> {
        let is_recent = |at: Instant, pause: Duration| now.duration_since(at) < pause;
        if let Some((at, untold)) = self.told.get_mut(&what) {
            if is_recent(*at, REPEATED) {
                *untold += 1;
                return None;
            }
            *at = now;
            return Some(std::mem::take(untold));
        }
        if self.told.len() >= KNOWN {
            self.told.retain(|_, (at, _)| is_recent(*at, 2 * REPEATED));
        }
        if self.told.len() < KNOWN {
            self.told.insert(what, (now, 0));
        }
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_each_kind_and_window_are_told_and_the_others_counted() {
        let mut flood = Flood::default();
        let start = Instant::now();
        for number in 0..LINES {
            assert!(flood.admits("bad", start), "{number}");
        }
        assert_eq!(flood.deadline(), None, "each had its line");
        assert!(!flood.admits("bad", start + WINDOW / 2));
        assert!(!flood.admits("bad", start + WINDOW / 2));
        assert!(flood.admits("good", start + WINDOW / 2), "another kind");
        assert_eq!(flood.deadline(), Some(start + WINDOW));
        assert!(flood.over(start + WINDOW / 2).is_empty(), "it goes on");
        assert_eq!(flood.over(start + WINDOW), BTreeMap::from([("bad", 2)]));
        assert_eq!(flood.deadline(), None);
        assert!(flood.admits("bad", start + WINDOW), "the next window");
        assert!(flood.over(start + 3 * WINDOW).is_empty(), "none was left out");
        for _ in 0..LINES + 3 {
            flood.admits("bad", start);
        }
        assert_eq!(flood.rest(), BTreeMap::from([("bad", 3)]), "at the end");
    }

    #[test]
    fn what_comes_every_second_is_told_once_a_minute_with_how_often() {
        let mut repeats = Repeats::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(repeats.admits("a", at(0)), Some(0));
        assert_eq!(repeats.admits("b", at(0)), Some(0), "another");
        for seconds in 1..60 {
            assert_eq!(repeats.admits("a", at(seconds)), None, "{seconds}");
        }
        assert_eq!(repeats.admits("a", at(60)), Some(59));
        assert_eq!(repeats.admits("a", at(61)), None);
        assert_eq!(repeats.admits("b", at(61)), Some(0), "none was left out");
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mut repeats = Repeats::default();
        let start = Instant::now();
        for number in 0..2 * KNOWN {
            assert_eq!(repeats.admits(number, start), Some(0));
        }
        assert_eq!(repeats.told.len(), KNOWN);
        assert_eq!(repeats.admits(0, start), None);
        repeats.admits(3 * KNOWN, start + 3 * REPEATED);
        assert_eq!(repeats.told.len(), 1, "those of long ago are forgotten");
    }
}
