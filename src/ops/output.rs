//! Standard output for data, standard error for words.

use std::{
    fmt::Display,
    io::{self, ErrorKind, StdoutLock, Write},
};

use serde::Serialize;

use super::failure::Failure;

/// Where data goes. A reader that went away (`| head -1`) is no failure: what follows is dropped, and a command that
/// changes something goes on with it.
#[derive(Debug, Default)]
pub(super) struct Output {
    closed: bool,
}

impl Output {
    /// Prints one line of data.
    pub(super) fn line(&mut self, line: impl Display) -> Result<(), Failure> {
        self.written(|out| writeln!(out, "{line}"))
    }

    /// Prints bytes as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.written(|out| out.write_all(bytes).and_then(|()| out.flush()))
    }

    fn written(
        &mut self,
        write: impl FnOnce(&mut StdoutLock<'static>) -> io::Result<()>,
    ) -> Result<(), Failure> {
        if self.closed {
            return Ok(());
        }
        match write(&mut io::stdout().lock()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            Err(error) => Err(Failure::failed(format!(
                "standard output cannot be written: {error}"
            ))),
        }
    }

    /// Prints one JSON object on a line of its own.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::failed(format!("cannot be written as JSON: {error}")))?;
        self.line(text)
    }

    /// Whether nobody reads any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }
}

/// Says something to the person, on standard error; that nobody reads it is no failure.
pub(super) fn note(words: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{words}");
}
