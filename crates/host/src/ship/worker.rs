//! One upload at a time, on a thread of its own.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender},
    },
};

use cutover_bundle::episode::HostKey;
use cutover_core::{admission::Statement, ship::Answer};
use tokio::sync::watch;

use super::{
    prepare::{bytes_path, open_bytes, packed_path, prepare},
    queue::{Item, Ready},
    release::Releases,
    spool::{EntryError, Kind, Spool},
    upload::{NoAnswer, Target, Upload, Uploader},
};
use crate::disk::Disk as _;

/// What a worker is told to do.
pub(super) enum Job {
    /// Make ready what is not, and send it, signed with this number if the host signs.
    Ship(Item, u64),
    /// Remove the local copy of what was shipped.
    Remove(Item),
}

/// What a worker tells.
pub(super) enum Event {
    /// An episode is ready to be sent.
    Ready(i64, Ready),
    /// A try ended.
    Ended(i64, Ended),
    /// The local copy is gone (true), or is not what was shipped any more (false).
    Removed(i64, Result<bool, EntryError>),
    /// An update ended.
    Updated(String),
}

/// How a try ended.
pub(super) enum Ended {
    /// With an answer.
    Answer(Answer),
    /// Without one.
    NoAnswer(NoAnswer),
    /// Before it began.
    Local(EntryError),
    /// We are to stop.
    Stopped,
}

/// What all workers share.
pub(super) struct Shared {
    pub(super) spool: Spool,
    pub(super) target: Arc<Target>,
    pub(super) zstd_level: i32,
    pub(super) host_key: Option<HostKey>,
    /// Where the release is found that a signature names.
    pub(super) releases: Option<Releases>,
    pub(super) stop: watch::Receiver<bool>,
}

/// Does jobs until there are no more.
pub(super) fn work(
    shared: &Shared,
    jobs: &Mutex<Receiver<Job>>,
    events: &Sender<Event>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut uploader = Uploader::new(Arc::clone(&shared.target));
    loop {
        let job = jobs.lock().expect("no holder panics").recv();
        let event = match job {
            Err(_) => return Ok(()),
            Ok(Job::Ship(item, sequence)) => {
                let number = item.number;
                let ended = ship(shared, &item, sequence, events, &runtime, &mut uploader);
                Event::Ended(number, ended.unwrap_or_else(Ended::Local))
            }
            Ok(Job::Remove(item)) => Event::Removed(item.number, remove(&shared.spool, &item)),
        };
        // Nobody listens any more: we are stopping.
        if events.send(event).is_err() {
            return Ok(());
        }
    }
}

fn ship(
    shared: &Shared,
    item: &Item,
    sequence: u64,
    events: &Sender<Event>,
    runtime: &tokio::runtime::Runtime,
    uploader: &mut Uploader,
) -> Result<Ended, EntryError> {
    let Shared { spool, zstd_level, .. } = shared;
    let place = bytes_path(&item.path, item.kind, item.number);
    let mut present = None;
    if let Some(ready) = &item.progress.ready
        && spool.print(&item.path, item.kind)?.strict == ready.print
    {
        present = open_bytes(spool, &place, ready.size_bytes)?.map(|file| (ready.clone(), file));
    }
    let (ready, file) = match present {
        Some(present) => present,
        None => {
            let prepared = prepare(spool, &item.path, item.kind, &item.key, item.number, *zstd_level)?;
            let ready = Ready::from(&prepared);
            // Nobody listens any more: we are stopping.
            let _ = events.send(Event::Ready(item.number, ready.clone()));
            let file = open_bytes(spool, &place, ready.size_bytes)?.ok_or(EntryError::Gone)?;
            (ready, file)
        }
    };
    let signed = shared.host_key.as_ref().zip(ready.commit.as_ref());
    let attestation = signed.map(|(key, commit)| {
        let release = shared.releases.as_ref().and_then(|releases| releases.of(commit));
        key.attest(&Statement { commit, key: &item.key, sha256: ready.sha256, sequence, release })
    });
    let upload = Upload {
        key: &item.key,
        sha256: ready.sha256,
        size_bytes: ready.size_bytes,
        commit: ready.commit.as_ref(),
        attestation,
    };
    let mut stop = shared.stop.clone();
    Ok(runtime.block_on(async {
        tokio::select! {
            answer = uploader.put(&upload, &file) => answer.map_or_else(Ended::NoAnswer, Ended::Answer),
            _ = stop.wait_for(|stop| *stop) => Ended::Stopped,
        }
    }))
}

fn remove(spool: &Spool, item: &Item) -> Result<bool, EntryError> {
    let Some(ready) = &item.progress.ready else { return Ok(false) };
    let gone = spool.remove(&item.path, item.kind, item.number, &ready.prepared().print)?;
    if item.kind == Kind::Folder {
        remove_packed(spool, item.number)?;
    }
    Ok(gone)
}

/// Removes what a folder was packed into, if it is there.
pub(super) fn remove_packed(spool: &Spool, number: i64) -> Result<(), EntryError> {
    let packed = packed_path(number);
    match spool.disk.remove_file(&packed) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(EntryError::io("remove", Path::new(&packed))(error))
        }
        _ => Ok(()),
    }
}
