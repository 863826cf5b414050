//! The publisher's lock: a file that one publisher holds by renewing it, and that another takes over when nobody does.
//!
//! Every change of the file names the version it replaces, so exactly one of two who want it gets it. Whoever finds it held
//! watches it: a holder who lives renews it soon, and then there is somebody at work; one whose file stays the same for the
//! whole lease is dead, and its place is taken. No clock of one machine is compared with that of another. A holder that was
//! only slow finds out with its next renewal, which comes before everything it writes that others rely on.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex, task::AbortHandle, time::sleep};

use crate::{
    background::Background,
    bucket::{Bucket, Cached, Replaces, Written},
    error::S3Error,
};

/// Where the lock lies, as in a directory.
const LOCK: &str = ".publish/lock";
/// The entity tag of nothing that was ever written, in both forms.
const NO_VERSION: [&str; 2] = ["\"00000000000000000000000000000000\"", "00000000000000000000000000000000"];

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Always 1.
    format: u32,
    /// Whether somebody holds it.
    held: bool,
    /// Tells holders apart.
    token: String,
    /// Who it is, for people.
    owner: String,
    /// Counts renewals: no two versions of the file are the same.
    beat: u64,
}

impl Record {
    fn bytes(&self) -> Bytes {
        serde_json::to_vec(self).expect("a lock always serialises").into()
    }

    /// Who holds it; a file that is none of ours counts as held.
    fn parse(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_else(|_| Self {
            format: 1,
            held: true,
            token: String::new(),
            owner: "somebody unknown".to_owned(),
            beat: 0,
        })
    }
}

/// The lock is held, or was until it was lost.
pub(crate) struct Held {
    state: Mutex<State>,
}

struct State {
    record: Record,
    /// The version that is there.
    etag: String,
    /// Who took it over.
    lost_to: Option<String>,
}

impl Held {
    /// Renews it, which proves that it is held now.
    ///
    /// # Errors
    /// [`S3Error::LockLost`], now and ever after; or the storage cannot be asked.
    pub(crate) async fn renew(&self, bucket: &Bucket) -> Result<(), S3Error> {
        self.change(bucket, true).await
    }

    async fn change(&self, bucket: &Bucket, held: bool) -> Result<(), S3Error> {
        let mut state = self.state.lock().await;
        if let Some(by) = &state.lost_to {
            return Err(S3Error::LockLost { by: by.clone() });
        }
        let record = Record { held, beat: state.record.beat + 1, ..state.record.clone() };
        let seen = state.etag.clone();
        match bucket.write_in_place_of(LOCK, record.bytes(), seen, Cached::Never).await {
            Ok(etag) => {
                (state.record, state.etag) = (record, etag);
                Ok(())
            }
            Err(S3Error::Changed(_)) => {
                let there = bucket.read(LOCK).await?;
                let by = there.map_or_else(|| "nobody".to_owned(), |(bytes, _)| Record::parse(&bytes).owner);
                state.lost_to = Some(by.clone());
                Err(S3Error::LockLost { by })
            }
            Err(error) => Err(error),
        }
    }
}

/// What became of asking for the lock.
pub(crate) enum Asked {
    Held(Lease),
    /// This one is at work.
    InUse(String),
}

/// Holds the lock and renews it until it is dropped.
pub(crate) struct Lease {
    pub(crate) held: Arc<Held>,
    bucket: Arc<Bucket>,
    runtime: Arc<Background>,
    renewing: AbortHandle,
}

impl cutover_repo::Locked for Lease {}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewing.abort();
        match self.runtime.block_on(self.held.change(&self.bucket, false)) {
            Ok(()) | Err(S3Error::LockLost { .. }) => {}
            Err(error) => tracing::warn!(%error, "the publisher's lock stays until its time is over"),
        }
    }
}

/// Asks for the lock. Takes as long as it takes to see whether a present holder lives: at most `lease`.
pub(crate) fn take(
    bucket: &Arc<Bucket>,
    runtime: &Arc<Background>,
    (owner, lease): (&str, Duration),
) -> Result<Asked, S3Error> {
    let held = match runtime.block_on(acquire(bucket, owner, lease))? {
        Ok(held) => Arc::new(held),
        Err(by) => return Ok(Asked::InUse(by)),
    };
    let (kept, at) = (Arc::clone(&held), Arc::clone(bucket));
    let renewing = runtime.spawn(async move {
        loop {
            sleep(lease / 4).await;
            match kept.renew(&at).await {
                Ok(()) => {}
                Err(S3Error::LockLost { .. }) => break,
                Err(error) => tracing::warn!(%error, "the publisher's lock is not renewed"),
            }
        }
    });
    let (bucket, runtime) = (Arc::clone(bucket), Arc::clone(runtime));
    let lease = Lease { held, bucket, runtime, renewing: renewing.abort_handle() };
    lease.runtime.block_on(async {
        // Settles how this storage wants versions named.
        lease.held.renew(&lease.bucket).await?;
        prove_conditions(&lease.bucket).await
    })?;
    Ok(Asked::Held(lease))
}

async fn acquire(bucket: &Bucket, owner: &str, lease: Duration) -> Result<Result<Held, String>, S3Error> {
    let token = format!("{:032x}", rand::random::<u128>());
    loop {
        let (seen, beat) = match bucket.read(LOCK).await? {
            None => (None, 0),
            Some((bytes, etag)) => {
                let there = Record::parse(&bytes);
                // Its answer was lost, or this loop would not look again.
                if there.token == token && there.held {
                    return Ok(Ok(held(there, etag)));
                }
                if there.held {
                    tracing::info!(
                        owner = there.owner,
                        "somebody holds the publisher's lock; looking whether they live"
                    );
                    match watch(bucket, &etag, lease).await? {
                        Watched::Renewed => return Ok(Err(there.owner)),
                        Watched::GivenUp => continue,
                        Watched::Dead => tracing::warn!(
                            owner = there.owner,
                            "the publisher's lock is taken over: it was not renewed"
                        ),
                    }
                }
                (Some(etag), there.beat)
            }
        };
        let record =
            Record { format: 1, held: true, token: token.clone(), owner: owner.to_owned(), beat: beat + 1 };
        let written = match seen {
            None => bucket.put(LOCK, record.bytes(), &Replaces::Nothing, Cached::Never).await?,
            Some(etag) => bucket.put_in_place_of(LOCK, record.bytes(), &etag, Cached::Never).await?,
        };
        match written {
            Written::Done(etag) => return Ok(Ok(held(record, etag))),
            // Another one was first, or has come back to life.
            Written::Otherwise => {}
        }
    }
}

fn held(record: Record, etag: String) -> Held {
    Held { state: Mutex::new(State { record, etag, lost_to: None }) }
}

/// What happened to a lock that somebody holds.
enum Watched {
    Renewed,
    GivenUp,
    /// Nothing, for the whole lease.
    Dead,
}

async fn watch(bucket: &Bucket, etag: &str, lease: Duration) -> Result<Watched, S3Error> {
    /// How often it is looked at.
    const LOOKS: u32 = 10;
    for _ in 0..LOOKS {
        sleep(lease / LOOKS).await;
        match bucket.read(LOCK).await? {
            Some((bytes, now)) if now != etag => {
                let is_held = Record::parse(&bytes).held;
                return Ok(if is_held { Watched::Renewed } else { Watched::GivenUp });
            }
            Some(_) => {}
            None => return Ok(Watched::GivenUp),
        }
    }
    Ok(Watched::Dead)
}

/// Makes sure that the storage refuses what it has to, or the lock means nothing.
async fn prove_conditions(bucket: &Bucket) -> Result<(), S3Error> {
    let versions = NO_VERSION.map(|etag| (Replaces::Version(etag.to_owned()), "If-Match"));
    for (replaces, header) in versions.into_iter().chain([(Replaces::Nothing, "If-None-Match")]) {
        let other = Bytes::from_static(b"{}");
        if bucket.put(LOCK, other, &replaces, Cached::Never).await? != Written::Otherwise {
            return Err(bucket.unconditional(header));
        }
    }
    Ok(())
}
