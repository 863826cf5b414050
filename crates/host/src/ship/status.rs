//! What an operator sees of a spool and does with it, beside whoever ships.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use cutover_core::ship::PASS_AFTER;
use serde::Serialize;

use super::{
    ShipError, Shipped, State,
    queue::{Item, Progress, Queue},
    run::{boot_id, boot_now, place},
    settings::ShipSettings,
    spool::{OWN, Spool},
    worker::remove_packed,
};
use crate::disk::{Disk as _, Locked, RealDisk};

/// What is in a spool and its queue.
#[derive(Clone, Debug, Serialize)]
pub struct ShipStatus {
    /// The spool.
    pub spool: String,
    /// Whether somebody ships from it now, and who.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shipper: Option<String>,
    /// Episodes that are to be sent.
    pub queued: usize,
    /// Episodes that are kept until somebody acts.
    pub parked: usize,
    /// Episodes that were shipped ever.
    pub shipped: u64,
    /// Every episode in the queue, oldest first.
    pub episodes: Vec<EpisodeStatus>,
    /// Entries that are not in the queue yet, because they are new or still written.
    pub settling: Vec<String>,
    /// Entries that are no episodes, with the reason.
    pub odd: BTreeMap<String, String>,
    /// The last that were shipped, newest first.
    pub last: Vec<Shipped>,
}

/// Where one episode stands, and why.
#[derive(Clone, Debug, Serialize)]
pub struct EpisodeStatus {
    /// Its host.
    pub host_id: String,
    /// Its id there.
    pub episode_id: String,
    /// Its stream; empty when there is only one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stream: String,
    /// Below the spool.
    pub path: String,
    /// Where it stands.
    pub state: State,
    /// Why it is there: what went wrong last, or what it waits for.
    pub reason: String,
    /// How often it was tried.
    pub tries: u32,
    /// Failures in a row.
    pub failures: u32,
    /// When it is tried again, in seconds from now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_try_in_s: Option<u64>,
    /// The status of the last answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What the receiver says is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remediation: Option<String>,
    /// The commit the receiver took it to be of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub your_commit: Option<String>,
    /// The newest commit the receiver knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_commit: Option<String>,
    /// The commit its `meta.json` names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The digest of what is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The size of what is sent, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// When it was taken in.
    pub queued_at: String,
}

/// Which episodes are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Every parked one.
    AllParked,
    /// Those named, as `HOST/EPISODE`, or as `EPISODE` where only one host has it.
    Named(Vec<String>),
}

/// How many of the last shipped episodes are shown.
const LAST: usize = 10;

/// What is in the spool and its queue, whoever ships from it.
///
/// # Errors
/// [`ShipError`]
pub fn status(settings: &ShipSettings, host_name: &str) -> Result<ShipStatus, ShipError> {
    let (path, host) = place(settings, host_name)?;
    let io = |source| ShipError::Io { attempt: "open the spool", path: path.clone(), source };
    let disk = Arc::new(RealDisk::open(&path).map_err(io)?);
    let shipper = match path.join(OWN).is_dir().then(|| disk.lock(&Path::new(OWN).join("lock"), "")) {
        Some(Ok(Locked::Held { note })) => Some(note),
        _ => None,
    };
    let listing = Spool::new(disk, settings.layout, host).list().map_err(|source| ShipError::Io {
        attempt: "list",
        path: path.clone(),
        source,
    })?;
    let (items, (shipped, last)) = match Queue::open_beside(&path)? {
        Some(queue) => (queue.items()?, queue.shipped(LAST)?),
        None => (BTreeMap::new(), (0, Vec::new())),
    };
    let known: std::collections::BTreeSet<&str> = items.values().map(|item| item.path.as_str()).collect();
    let settling = listing.entries.iter().map(|entry| entry.path.clone());
    let settling = settling.filter(|path| !known.contains(path.as_str())).collect();
    let count = |state| items.values().filter(|item| item.state == state).count();
    Ok(ShipStatus {
        spool: path.display().to_string(),
        shipper,
        queued: count(State::Queued),
        parked: count(State::Parked),
        shipped,
        episodes: described(&items),
        settling,
        odd: listing.odd,
        last,
    })
}

fn described(items: &BTreeMap<i64, Item>) -> Vec<EpisodeStatus> {
    let (boot, now) = (boot_id(), boot_now());
    let mut holders: BTreeMap<&str, &Item> = BTreeMap::new();
    let mut episodes = Vec::new();
    for item in items.values() {
        let progress = &item.progress;
        let left = progress.wait.as_ref().map(|wait| wait.left(&boot, now).as_secs_f32().ceil() as u64);
        let reason = match (&progress.reason, item.state, holders.get(item.stream.as_str())) {
            (Some(reason), ..) => reason.clone(),
            (None, State::Done, _) => "shipped; its local copy is to be removed".to_owned(),
            (None, _, Some(holder)) => format!("waits for its turn after {}", holder.key),
            (None, ..) => "is next, or under way".to_owned(),
        };
        if item.state == State::Queued && progress.failures < PASS_AFTER {
            holders.entry(item.stream.as_str()).or_insert(item);
        }
        let Progress { tries, failures, status, remediation, your_commit, head_commit, ready, .. } =
            progress.clone();
        let ready = ready.as_ref();
        episodes.push(EpisodeStatus {
            host_id: item.key.host.to_string(),
            episode_id: item.key.episode.to_string(),
            stream: item.stream.clone(),
            path: item.path.clone(),
            state: item.state,
            reason,
            tries,
            failures,
            next_try_in_s: left,
            status,
            remediation,
            your_commit,
            head_commit,
            commit: ready.and_then(|ready| ready.commit.as_ref()).map(ToString::to_string),
            sha256: ready.map(|ready| ready.sha256.to_string()),
            size_bytes: ready.map(|ready| ready.size_bytes),
            queued_at: item.queued_at.clone(),
        });
    }
    episodes
}

fn open_queue(settings: &ShipSettings, host_name: &str) -> Result<(Arc<RealDisk>, Option<Queue>), ShipError> {
    let (path, _) = place(settings, host_name)?;
    let io = |source| ShipError::Io { attempt: "open the spool", path: path.clone(), source };
    let disk = Arc::new(RealDisk::open(&path).map_err(io)?);
    Ok((disk, Queue::open_beside(&path)?))
}

fn find(items: &BTreeMap<i64, Item>, name: &str) -> Result<Item, ShipError> {
    let is_meant = |item: &&Item| {
        item.key.to_string() == name || (!name.contains('/') && item.key.episode.as_str() == name)
    };
    let mut found = items.values().filter(is_meant);
    match (found.next(), found.next()) {
        (Some(item), None) => Ok(item.clone()),
        _ => Err(ShipError::Unknown(name.to_owned())),
    }
}

/// Queues episodes again, as if they were new: parked ones, and those that wait. Returns their names.
///
/// # Errors
/// [`ShipError::Unknown`] before anything is changed, or the queue cannot be used.
pub fn retry(settings: &ShipSettings, host_name: &str, which: &Which) -> Result<Vec<String>, ShipError> {
    let (_, queue) = open_queue(settings, host_name)?;
    let Some(queue) = queue else {
        return match which {
            Which::Named(names) => {
                names.first().map_or(Ok(Vec::new()), |name| Err(ShipError::Unknown(name.clone())))
            }
            Which::AllParked => Ok(Vec::new()),
        };
    };
    let items = queue.items()?;
    let chosen: Vec<Item> = match which {
        Which::AllParked => items.values().filter(|item| item.state == State::Parked).cloned().collect(),
        Which::Named(names) => names.iter().map(|name| find(&items, name)).collect::<Result<_, _>>()?,
    };
    let mut queued = Vec::new();
    for mut item in chosen.into_iter().filter(|item| item.state != State::Done) {
        item.state = State::Queued;
        // The bytes that were made ready are sent again, unless the episode changed since.
        item.progress =
            Progress { tries: item.progress.tries, ready: item.progress.ready, ..Progress::default() };
        queue.update(&item)?;
        queued.push(item.key.to_string());
    }
    Ok(queued)
}

/// Gives parked episodes up: removes their local copies and their rows. Returns their names.
///
/// # Errors
/// [`ShipError::Unknown`] and [`ShipError::NotParked`] before anything is removed; [`ShipError::Dropped`] when one of them
/// cannot be removed, whose row is still there then.
pub fn drop_episodes(
    settings: &ShipSettings,
    host_name: &str,
    names: &[String],
) -> Result<Vec<String>, ShipError> {
    let (disk, queue) = open_queue(settings, host_name)?;
    let Some(mut queue) = queue else {
        return names.first().map_or(Ok(Vec::new()), |name| Err(ShipError::Unknown(name.clone())));
    };
    let items = queue.items()?;
    let mut chosen = BTreeMap::new();
    for name in names {
        let item = find(&items, name)?;
        match item.state {
            State::Parked => chosen.insert(item.number, item),
            State::Queued => return Err(ShipError::NotParked(item.key.to_string(), "to be sent")),
            State::Done => return Err(ShipError::NotParked(item.key.to_string(), "shipped")),
        };
    }
    let (_, host) = place(settings, host_name)?;
    let spool = Spool::new(disk, settings.layout, host);
    let mut dropped = Vec::new();
    for item in chosen.values() {
        match drop_one(&spool, &mut queue, item) {
            Ok(()) => dropped.push(item.key.to_string()),
            Err(error) if dropped.is_empty() => return Err(error),
            Err(error) => return Err(ShipError::Dropped(dropped, Box::new(error))),
        }
    }
    Ok(dropped)
}

fn drop_one(spool: &Spool, queue: &mut Queue, item: &Item) -> Result<(), ShipError> {
    let disk = &spool.disk;
    let (from, to) = (Path::new(&item.path), Path::new(OWN).join("trash").join(item.number.to_string()));
    let io = |attempt, path: &Path| {
        let path = disk.root().join(path);
        move |source| ShipError::Io { attempt, path, source }
    };
    // Moved first: what is half removed must never look like an episode.
    match disk.rename(from, &to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        moved => moved.map_err(io("move", from))?,
    }
    spool.remove_tree(&to).map_err(io("remove", &to))?;
    if let Err(error) = remove_packed(spool, item.number) {
        tracing::warn!(%error, "a packed file stays until the next start");
    }
    queue.remove(item, None)?;
    Ok(())
}
