//! Lines in the log about what may come by the hundred thousand: the first ones are written, the others counted.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Lines of one window. An import of a hundred documents is told in full.
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
    lines: usize,
    untold: BTreeMap<K, usize>,
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
            lines: 0,
            untold: BTreeMap::new(),
        });
        if window.lines < LINES {
            window.lines += 1;
            return true;
        }
        *window.untold.entry(kind).or_default() += 1;
        false
    }

    /// When there is something to say of those that got no line.
    pub fn deadline(&self) -> Option<Instant> {
        let window = self.window.as_ref()?;
        (!window.untold.is_empty()).then_some(window.ends)
    }

    /// The counts of a window that is over.
    pub fn over(&mut self, now: Instant) -> BTreeMap<K, usize> {
        let window = self.window.take_if(|window| window.ends <= now);
        window.map(|window| window.untold).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_each_window_are_told_and_the_others_counted() {
        let mut flood = Flood::default();
        let start = Instant::now();
        for number in 0..LINES {
            assert!(flood.admits("a", start), "{number}");
        }
        assert_eq!(flood.deadline(), None, "each had its line");
        for kind in ["a", "b", "a"] {
            assert!(!flood.admits(kind, start + WINDOW / 2));
        }
        assert_eq!(flood.deadline(), Some(start + WINDOW));
        assert!(flood.over(start + WINDOW / 2).is_empty(), "it goes on");
        assert_eq!(flood.over(start + WINDOW), BTreeMap::from([("a", 2), ("b", 1)]));
        assert_eq!(flood.deadline(), None);
        assert!(flood.admits("b", start + WINDOW), "the next window");
        assert!(flood.over(start + 3 * WINDOW).is_empty(), "none was left out");
    }
}
