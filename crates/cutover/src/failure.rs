//! Failures: an exit code, a message with its causes, and what to do next.
//!
//! Every error of the crates below is classified here, by exhaustive matches: a new error kind does not build before it
//! has an exit code. The messages stay where the errors are; this module adds codes and hints only.

use std::{error::Error, fmt, io, path::Path};

use crate::exit::Exit;

/// An error kind that knows how a run ends because of it and what the operator can do.
pub trait Classify: Error + Send + Sync + 'static {
    /// The exit code.
    fn exit(&self) -> Exit;

    /// A stable word for machines where one exit code has several reasons, such as `trust.expired`.
    fn code(&self) -> Option<&'static str> {
        None
    }

    /// Whole sentences, each ending in something to do; most useful first.
    fn hints(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    code: Option<&'static str>,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
    hints: Vec<String>,
}

impl Failure {
    /// A failure with a message of its own.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, code: None, message: message.into(), source: None, hints: Vec::new() }
    }

    /// Wrong usage.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// A file-system error: what was attempted on which path.
    pub fn io(what: &str, path: &Path, source: io::Error) -> Self {
        Self::new(Exit::Failed, format!("failed to {what} `{}`", path.display())).because(source)
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Names the subject in front of the message.
    #[must_use]
    pub fn of(mut self, subject: impl fmt::Display) -> Self {
        self.message = format!("{subject}: {}", self.message);
        self
    }

    /// What went wrong, with its causes.
    pub fn in_one_line(&self) -> String {
        std::iter::once(self.to_string()).chain(self.causes()).collect::<Vec<_>>().join(": ")
    }

    /// Adds something to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Names the subject in front: the classified error becomes the cause.
    #[must_use]
    pub fn about(error: impl Classify, message: impl Into<String>) -> Self {
        Self {
            exit: error.exit(),
            code: error.code(),
            message: message.into(),
            hints: error.hints(),
            source: Some(Box::new(error)),
        }
    }

    /// The commands to run next name the root that this was about.
    #[must_use]
    pub(crate) fn naming_root(mut self, root: Option<&Path>) -> Self {
        if let Some(root) = root {
            self.hints.iter_mut().for_each(|hint| *hint = crate::output::naming_root(hint, root));
        }
        self
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// What to do, most useful first.
    pub fn hints(&self) -> &[String] {
        &self.hints
    }

    /// The causes, outermost first, without the message itself and without repetitions.
    pub fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next = self.source.as_deref().map(|source| source as &dyn Error);
        let mut last = self.message.clone();
        while let Some(error) = next {
            let text = error.to_string();
            if !last.ends_with(&text) {
                causes.push(text.clone());
            }
            last = text;
            next = error.source();
        }
        causes
    }

    /// The form of `--json`.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "format": crate::output::FORMAT,
            "error": {
                "exit_code": self.exit.code(),
                "kind": self.exit.word(),
                "code": self.code,
                "message": self.message,
                "causes": self.causes(),
                "hints": self.hints,
            }
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &dyn Error)
    }
}

impl<E: Classify> From<E> for Failure {
    fn from(error: E) -> Self {
        let (exit, code, message, hints) = (error.exit(), error.code(), error.to_string(), error.hints());
        Self { exit, code, message, source: Some(Box::new(error)), hints }
    }
}

mod bundle;
mod host;
mod kinds;
mod migrate;
mod repo;
#[cfg(feature = "s3")]
mod s3;
mod server;

pub(crate) use kinds::exit_of_outcome;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_listed_once_each() {
        let failure =
            Failure::io("read", Path::new("/x"), io::Error::from(io::ErrorKind::NotFound)).hint("run `y`");
        assert_eq!(failure.to_string(), "failed to read `/x`");
        assert_eq!(failure.causes(), ["entity not found"]);
        assert_eq!(failure.exit(), Exit::Failed);
    }
}
