//! The shipper: hands the episodes in a spool to a receiver, each exactly once in effect, whatever crashes in between.
//!
//! An episode is taken when nobody writes it any more, gets a durable row in the queue, is packed if it is a folder, hashed, and
//! offered until the receiver repeats the hash in a 2xx answer. Only then is the local copy removed, and only if it still is
//! what was sent. A PUT may be repeated, so a crash anywhere costs at most a second one. What an answer means, when the next
//! try is and which episode it is for is decided in `cutover_core::ship`; nothing here decides it.
//!
//! One thread has the queue and gives out work; each upload has a thread of its own. Read [`ShipSettings`] first, then
//! [`Shipper`].

mod prepare;
mod queue;
mod release;
mod run;
mod settings;
mod spool;
mod status;
mod update;
mod upload;
mod worker;

use std::{io, path::PathBuf};

pub use queue::{QueueError, Shipped, State};
pub use run::{ShipPorts, Shipper, Summary, Until};
pub use settings::{OnRefused, ShipSettings, SpoolLayout};
pub use status::{EpisodeStatus, ShipStatus, Which, drop_episodes, retry, status};

/// Why nothing can be shipped.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// A setting that cannot be used.
    #[error("`ship.{key}`: {reason}")]
    Setting {
        /// Its key within `[ship]`.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Another process ships from the same spool.
    #[error("another process ships from this spool{}", if .0.is_empty() { String::new() } else { format!(" ({})", .0) })]
    Busy(String),
    /// The queue cannot be used.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A file-system error.
    #[error("failed to {attempt} `{}`", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no such episode in the queue.
    #[error("there is no episode `{0}` in the queue")]
    Unknown(String),
    /// The episode is not parked, so giving it up would lose what is about to be sent.
    #[error("`{0}` is not parked: it is {1}")]
    NotParked(String, &'static str),
    /// Some of several episodes were given up before one could not be.
    #[error("{} dropped, then one could not be", .0.join(", "))]
    Dropped(Vec<String>, #[source] Box<ShipError>),
    /// No threads or no runtime.
    #[error("failed to start the uploads")]
    Runtime(#[source] io::Error),
}

impl ShipError {
    /// What the operator can do about it.
    pub fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Setting { key, .. } => format!("set `ship.{key}` right; docs/reference/settings.md has every key"),
            Self::Busy(_) => "stop the other one, or let it go on; `cutover ship status` shows what it does".to_owned(),
            Self::Queue(QueueError::Newer(_)) => "use the newer cutover, or drain the spool with it first".to_owned(),
            Self::Queue(_) => {
                "make room and check the disk; episodes are safe in the spool, and the queue is filled from it again"
                    .to_owned()
            }
            Self::Unknown(_) => "`cutover ship status` lists every episode in the queue as HOST/EPISODE".to_owned(),
            Self::NotParked(..) => {
                "only parked episodes are dropped; `cutover ship status` says what each one waits for".to_owned()
            }
            Self::Dropped(_, source) => return source.remedy(),
            Self::Io { .. } | Self::Runtime(_) => return None,
        };
        Some(text)
    }
}
