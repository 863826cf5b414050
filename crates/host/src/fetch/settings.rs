//! `[source]`: where releases come from, and how they are fetched.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use cutover_core::fetch::retry::RetryPolicy;
use serde::{Deserialize, Serialize};

use super::FetchError;

/// Where releases come from, and how they are fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceSettings {
    /// What kind of source it is.
    pub kind: SourceKind,
    /// `repository`: base URLs or directories that hold the same repository, tried in order of measured speed.
    pub urls: Vec<String>,
    /// `file`: a bundle, or a directory with bundles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// `github`: `OWNER/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub github: Option<String>,
    /// `github`: where its REST API answers.
    pub github_api: String,
    /// A file whose first line is a bearer token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The environment variable that holds a bearer token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_variable: Option<String>,
    /// Certificates (PEM) that servers must lead to. Unset: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain (PEM), for servers that ask for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<PathBuf>,
    /// Its private key (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
    /// A proxy's URL; `none` for no proxy. Unset: what `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// Objects fetched at the same time; at least 1.
    pub parallel: usize,
    /// Most bytes per second over all connections. 0: no limit.
    pub bytes_per_s: u64,
    /// Go on with what an interrupted download left.
    pub resume: bool,
    /// Further tries of one object at one place that bring nothing new.
    pub retries: u32,
    /// The longest wait before the first retry, in milliseconds; it doubles with each further one.
    pub retry_wait_ms: u32,
    /// The longest wait before a retry, in seconds, also when the server asks for it.
    pub retry_wait_max_s: u32,
    /// Longest time without progress (1 KiB), in seconds; there is no limit on the whole.
    pub stall_timeout_s: u32,
    /// Longest time to connect, in seconds.
    pub connect_timeout_s: u32,
}

/// What kind of source it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// A release repository, at URLs or in directories.
    #[default]
    Repository,
    /// The releases of a GitHub repository.
    Github,
    /// A bundle, or a directory with bundles.
    File,
}

impl Default for SourceSettings {
    fn default() -> Self {
        Self {
            kind: SourceKind::default(),
            urls: Vec::new(),
            path: None,
            github: None,
            github_api: "https://api.github.com".to_owned(),
            token_file: None,
            token_variable: None,
            ca_file: None,
            client_certificate: None,
            client_key: None,
            proxy: None,
            parallel: 8,
            bytes_per_s: 0,
            resume: true,
            retries: 5,
            retry_wait_ms: 500,
            retry_wait_max_s: 60,
            stall_timeout_s: 30,
            connect_timeout_s: 10,
        }
    }
}

impl SourceSettings {
    /// How often and how slowly failed requests are tried again.
    pub fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy {
            retries_max: self.retries,
            first: Duration::from_millis(u64::from(self.retry_wait_ms)),
            longest: Duration::from_secs(u64::from(self.retry_wait_max_s)),
        }
    }

    /// Objects fetched at the same time.
    ///
    /// # Errors
    /// [`FetchError::Setting`] for 0. (W1)
    pub fn parallel(&self) -> Result<NonZeroUsize, FetchError> {
        NonZeroUsize::new(self.parallel)
            .ok_or_else(|| FetchError::Setting { key: "parallel", reason: "it is at least 1".to_owned() })
    }
}

/// A bearer token. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(********)")
    }
}

/// The longest token, in bytes.
const TOKEN_MAX: u64 = 16 << 10;

impl Token {
    /// Takes `text`, without white space around it.
    ///
    /// # Errors
    /// [`FetchError::Setting`] when it is empty or has characters that no header may have; the token is not shown.
    pub fn new(text: &str, key: &'static str) -> Result<Self, FetchError> {
        let text = text.trim();
        let sound = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let reason = "the token is empty or has characters that a token cannot have".to_owned();
        if sound { Ok(Self(text.to_owned())) } else { Err(FetchError::Setting { key, reason }) }
    }

    /// The token the settings name, if they name one. `variable` reads the environment.
    ///
    /// # Errors
    /// [`FetchError::Setting`]: the file cannot be read, the variable is not set, or both are given.
    pub fn of(
        settings: &SourceSettings,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, FetchError> {
        let setting = |key, reason: String| FetchError::Setting { key, reason };
        match (&settings.token_file, &settings.token_variable) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => {
                Err(setting("token_variable", "`source.token_file` is set as well".to_owned()))
            }
            (Some(path), None) => Self::read(path, "token_file").map(Some),
            (None, Some(name)) => match variable(name) {
                Some(text) => Self::new(&text, "token_variable").map(Some),
                None => Err(setting("token_variable", format!("the variable `{name}` is not set"))),
            },
        }
    }

    /// The first line of a file.
    ///
    /// # Errors
    /// [`FetchError::Setting`] when it cannot be read or is no token.
    pub(crate) fn read(path: &Path, key: &'static str) -> Result<Self, FetchError> {
        let bytes = read_small(path, TOKEN_MAX)
            .map_err(|error| FetchError::Setting { key, reason: format!("`{}`: {error}", path.display()) })?;
        Self::new(String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default(), key)
    }

    /// The value of `Authorization`.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

/// Reads an operator's file of at most `limit` bytes.
pub(crate) fn read_small(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "it is too large"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    // W1
    #[test]
    fn zero_parallel_downloads_are_refused_and_the_default_is_at_least_one() {
        let settings = SourceSettings::default();
        assert!(settings.parallel().unwrap().get() >= 1);
        let four = SourceSettings { parallel: 4, ..settings.clone() };
        assert_eq!(four.parallel().unwrap().get(), 4);
        let none = SourceSettings { parallel: 0, ..settings };
        assert!(none.parallel().unwrap_err().to_string().contains("source.parallel"));
    }

    #[test]
    fn tokens_come_from_a_file_or_a_variable_and_are_never_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "canary-token\nsecond line\n").unwrap();
        let unset = |_: &str| None;
        let from_file = SourceSettings { token_file: Some(path.clone()), ..SourceSettings::default() };
        let token = Token::of(&from_file, &unset).unwrap().unwrap();
        assert_eq!(token.header(), "Bearer canary-token");
        assert!(!format!("{token:?}").contains("canary"));

        let from_variable =
            SourceSettings { token_variable: Some("TOKEN".to_owned()), ..SourceSettings::default() };
        let set = |name: &str| (name == "TOKEN").then(|| "canary-other\n".to_owned());
        assert_eq!(Token::of(&from_variable, &set).unwrap().unwrap().header(), "Bearer canary-other");
        assert!(Token::of(&from_variable, &unset).unwrap_err().to_string().contains("`TOKEN` is not set"));
        let both = SourceSettings { token_file: Some(path), ..from_variable.clone() };
        assert!(Token::of(&both, &set).is_err());
        let split = |_: &str| Some("canary\r\nX-Evil: 1".to_owned());
        let refused = Token::of(&from_variable, &split).unwrap_err().to_string();
        assert!(!refused.contains("canary"), "{refused}");
        assert_eq!(Token::of(&SourceSettings::default(), &set).unwrap(), None);
    }
}
