//! `[ship]`: what is shipped, where to, and how.

use std::{path::PathBuf, time::Duration};

use cutover_core::{
    admission::HostId,
    ship::{Backoff, Limits},
};
use serde::{Deserialize, Serialize};

/// What is shipped, where to, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShipSettings {
    /// The receiver: `https://HOST[:PORT][/PREFIX]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The directory that episodes are put into.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spool: Option<PathBuf>,
    /// What the first level of the spool is.
    pub layout: SpoolLayout,
    /// The id of this host. Unset: its host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// An entry is taken when nothing in it changed for this long, in seconds. 0: at first sight, for recorders that rename
    /// whole episodes in.
    pub settle_s: u32,
    /// How hard folders are compressed: 1 to 19.
    pub zstd_level: i32,
    /// The request header that carries the commit.
    pub commit_header: String,
    /// Uploads at a time.
    pub in_flight: usize,
    /// Uploads at a time of one stream. With 1 its episodes arrive in their order.
    pub in_flight_per_stream: usize,
    /// Most bytes per second over all uploads. 0: no limit.
    pub bytes_per_s: u64,
    /// The longest wait before the first further try, in milliseconds; it doubles with each failure.
    pub retry_wait_ms: u32,
    /// The longest wait that the receiver does not ask for, in seconds.
    pub retry_wait_max_s: u32,
    /// Longest time to connect, in seconds.
    pub connect_timeout_s: u32,
    /// Longest time in which no byte is taken, in seconds; there is no limit on the whole.
    pub stall_timeout_s: u32,
    /// Longest time from the last byte to the answer, in seconds.
    pub answer_timeout_s: u32,
    /// A file whose first line is a bearer token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Certificates (PEM) that the receiver must lead to. Unset: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain (PEM), for receivers that ask for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<PathBuf>,
    /// Its private key (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
    /// This host's key (PEM), which signs what it says of each episode; `cutover ship key` makes one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attest_key: Option<PathBuf>,
    /// The root of the package that records. Once set, a signature names the release there that the commit's code came in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attest_root: Option<PathBuf>,
    /// What a refusal because of old code leads to.
    pub on_refused: OnRefused,
    /// `update`: program and arguments; `cutover` is this very program.
    pub update_command: Vec<String>,
    /// `update`: shortest time from one start to the next, in seconds.
    pub update_every_s: u32,
    /// `update`: longest time of one run, in seconds.
    pub update_timeout_s: u32,
}

/// What the first level of a spool is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpoolLayout {
    /// Episodes, all of one stream.
    #[default]
    Flat,
    /// A directory for each stream, with episodes in it.
    Streams,
    /// A directory for each host, with its episodes in it: for a machine that ships for others.
    Hosts,
}

/// What a refusal because of old code leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRefused {
    /// The episode is parked and somebody is told.
    #[default]
    Park,
    /// The episode is parked, and this host's update is run, so that what is recorded from then on is taken.
    Update,
}

impl Default for ShipSettings {
    fn default() -> Self {
        Self {
            url: None,
            spool: None,
            layout: SpoolLayout::default(),
            host: None,
            settle_s: 5,
            zstd_level: 3,
            commit_header: "X-Code-Commit".to_owned(),
            in_flight: 4,
            in_flight_per_stream: 1,
            bytes_per_s: 0,
            retry_wait_ms: 1000,
            retry_wait_max_s: 300,
            connect_timeout_s: 10,
            stall_timeout_s: 60,
            answer_timeout_s: 300,
            token_file: None,
            ca_file: None,
            client_certificate: None,
            client_key: None,
            attest_key: None,
            attest_root: None,
            on_refused: OnRefused::default(),
            update_command: Vec::new(),
            update_every_s: 600,
            update_timeout_s: 3600,
        }
    }
}

impl ShipSettings {
    /// The waits between tries.
    pub fn backoff(&self) -> Backoff {
        Backoff {
            first: Duration::from_millis(u64::from(self.retry_wait_ms.max(1))),
            longest: Duration::from_secs(u64::from(self.retry_wait_max_s.max(1))),
        }
    }

    /// How many uploads are under way at a time.
    pub fn limits(&self) -> Limits {
        Limits { in_flight: self.in_flight.max(1), per_stream: self.in_flight_per_stream.max(1) }
    }
}
