//! Where commands write. One writer each for results and for problems, so that tests can take both.

use std::io::{self, BufWriter, IsTerminal, Write};

/// Standard output and standard error, or what a test puts in their place.
pub struct Terminal {
    out: Box<dyn Write>,
    error: Box<dyn Write>,
    pub color: bool,
}

impl Terminal {
    pub fn standard() -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let out = io::stdout();
        Self {
            color: out.is_terminal() && !no_color,
            out: Box::new(BufWriter::new(out)),
            error: Box::new(io::stderr()),
        }
    }

    pub fn write(&mut self, text: &str) -> io::Result<()> {
        let written = self.out.write_all(text.as_bytes());
        self.read_or_not(written)
    }

    /// Whoever read our results may have left, as `head` does. What a command does, and how it ends, does not hang on that.
    fn read_or_not(&mut self, written: io::Result<()>) -> io::Result<()> {
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.out = Box::new(io::sink());
                Ok(())
            }
            written => written,
        }
    }

    pub fn line(&mut self, text: impl AsRef<str>) -> io::Result<()> {
        self.write(text.as_ref())?;
        self.write("\n")
    }

    pub fn json(&mut self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        Ok(self.line(text)?)
    }

    pub fn write_error(&mut self, text: &str) -> io::Result<()> {
        // Results first: on a terminal both go to one place.
        self.flush()?;
        self.error.write_all(text.as_bytes())
    }

    pub fn error_line(&mut self, text: impl AsRef<str>) -> io::Result<()> {
        self.write_error(&format!("{}\n", text.as_ref()))
    }

    pub fn flush(&mut self) -> io::Result<()> {
        let flushed = self.out.flush();
        self.read_or_not(flushed)
    }

    /// The text in a color, where colors are shown.
    pub fn paint(&self, color: Color, text: &str) -> String {
        if self.color {
            format!("\x1b[{}m{text}\x1b[0m", color as u8)
        } else {
            text.to_owned()
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Color {
    Bold = 1,
    Red = 31,
    Green = 32,
    Yellow = 33,
    Cyan = 36,
}
