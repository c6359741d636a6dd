//! An answer that has no end: lines as they come, none longer than its bound.

use bytes::{Bytes, BytesMut};

use super::client::{ApiClient, Reply};
use super::error::ApiError;

#[derive(Debug, PartialEq, Eq)]
pub(in crate::sources) enum Line {
    /// Without its end.
    Whole(Bytes),
    /// Read over, not kept.
    TooLong,
}

#[derive(Debug)]
pub(in crate::sources) struct Lines {
    client: ApiClient,
    asked: String,
    reply: Reply,
    cutter: Cutter,
}

impl Lines {
    pub(super) fn new(client: ApiClient, asked: String, reply: Reply, longest: usize) -> Self {
        Self {
            client,
            asked,
            reply,
            cutter: Cutter::new(longest),
        }
    }

    /// None: it ended after all. A line that its end cut off is none.
    pub(in crate::sources) async fn next(&mut self) -> Result<Option<Line>, ApiError> {
        loop {
            if let Some(line) = self.cutter.line() {
                return Ok(Some(line));
            }
            match self.reply.chunk().await {
                Ok(Some(chunk)) => self.cutter.push(&chunk),
                Ok(None) => return Ok(None),
                Err(error) => return Err(self.client.transport_error(&self.asked, error)),
            }
        }
    }
}

/// Cuts what arrives into lines. Holds one line and one chunk at most.
#[derive(Debug)]
pub(super) struct Cutter {
    longest: usize,
    held: BytesMut,
    /// How much of it has no end of a line.
    scanned: usize,
    /// The line that goes on is too long already.
    over: bool,
}

impl Cutter {
    pub(super) fn new(longest: usize) -> Self {
        Self {
            longest,
            held: BytesMut::new(),
            scanned: 0,
            over: false,
        }
    }

    pub(super) fn push(&mut self, chunk: &[u8]) {
        self.held.extend_from_slice(chunk);
    }

    pub(super) fn line(&mut self) -> Option<Line> {
        let fresh = self.held.get(self.scanned..).unwrap_or_default();
        if let Some(at) = fresh.iter().position(|byte| *byte == b'\n') {
            let mut line = self.held.split_to(self.scanned + at + 1);
            self.scanned = 0;
            line.truncate(line.len().saturating_sub(1));
            let is_over = std::mem::take(&mut self.over) || line.len() > self.longest;
            return Some(if is_over {
                Line::TooLong
            } else {
                Line::Whole(line.freeze())
            });
        }
        if self.held.len() > self.longest {
            self.over = true;
            self.held = BytesMut::new();
        }
        self.scanned = self.held.len();
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(longest: usize, chunks: &[&str]) -> Vec<Line> {
        let mut cutter = Cutter::new(longest);
        let mut lines = Vec::new();
        for chunk in chunks {
            cutter.push(chunk.as_bytes());
            lines.extend(std::iter::from_fn(|| cutter.line()));
            assert!(cutter.held.len() <= longest, "{} are held", cutter.held.len());
        }
        lines
    }

    #[test]
    fn lines_are_cut_wherever_chunks_end() {
        let whole = |text: &'static str| Line::Whole(Bytes::from_static(text.as_bytes()));
        assert_eq!(
            cut(8, &["{}\n\n{\"a", "\"", ":1}\n{", "}"]),
            [whole("{}"), whole(""), whole("{\"a\":1}")]
        );
    }

    #[test]
    fn a_line_that_is_too_long_is_read_over_and_not_held() {
        let whole = |text: &'static str| Line::Whole(Bytes::from_static(text.as_bytes()));
        let long = "x".repeat(7);
        assert_eq!(
            cut(8, &[&long, &long, &long, "y\n{}\n"]),
            [Line::TooLong, whole("{}")]
        );
        assert_eq!(
            cut(8, &["123456789\n12345678\n"]),
            [Line::TooLong, whole("12345678")]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Wherever chunks end the lines are those of the whole, and what is held stays within the bound.
        #[test]
        fn fuzz_lines(text in "[a\n{}]{0,60}", ends in prop::collection::vec(any::<prop::sample::Index>(), 0..5)) {
            let mut ends: Vec<usize> = ends.iter().map(|end| end.index(text.len() + 1)).collect();
            ends.extend([0, text.len()]);
            ends.sort_unstable();
            let chunks: Vec<&str> = ends.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let mut expected: Vec<Line> = Vec::new();
            if text.contains('\n') {
                expected.extend(whole.split('\n').map(|line| match line.len() > 8 {
                    true => Line::TooLong,
                    false => Line::Whole(Bytes::copy_from_slice(line.as_bytes())),
                }));
            }
            prop_assert_eq!(cut(8, &chunks), expected);
        }
    }
}
