//! How a release's service wants to be run.

use std::{collections::BTreeMap, fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// How a release's service wants to be run; an operator's settings go before these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceHints {
    /// Program (a path in the release) and arguments.
    pub command: Vec<String>,
    /// Sockets that are opened before it starts and passed to it in this order (`LISTEN_FDS`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<Listen>,
    /// How it says that it is ready.
    #[serde(default)]
    pub ready: Ready,
    /// How long it may take to become ready, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_timeout_s: Option<u32>,
    /// How long it may take to finish its open connections once it is told to stop, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_timeout_s: Option<u32>,
    /// Environment variables added for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
}

/// A listening socket, written `tcp:ADDRESS:PORT` or `unix:/ABSOLUTE/PATH`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listen {
    /// A TCP socket.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(String),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let tcp = text.strip_prefix("tcp:").and_then(|address| address.parse().ok()).map(Self::Tcp);
        let unix = text
            .strip_prefix("unix:")
            .filter(|path| path.starts_with('/') && path.len() < 108 && !path.contains('\0'));
        tcp.or_else(|| unix.map(|path| Self::Unix(path.to_owned()))).ok_or_else(|| {
            format!("`{}` is no listen address: write tcp:ADDRESS:PORT or unix:/PATH", text.escape_default())
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// How a service says that it is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ready {
    /// It sends `READY=1` to `NOTIFY_SOCKET` (sd_notify(3)).
    #[default]
    Notify,
    /// It counts as ready once it has run for a second.
    Running,
}
