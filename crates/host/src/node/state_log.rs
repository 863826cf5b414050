//! The state log: what the node as a whole is up to, one durable line per change, across executions.
//!
//! Which changes are allowed is decided by [`Lifecycle`]; here they are made durable and told to observers.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use cutover_core::{
    lifecycle::{Entry, Lifecycle, LifecycleError, State},
    model::{Instant, Version},
};

use super::{
    files::{Attempt as _, Files, FsError},
    place,
};
use crate::clock::Clock;

/// Is told of every change of state, after it is durable. A panic is contained and the others are still told.
pub type StateObserver = Arc<dyn Fn(&Lifecycle) + Send + Sync>;

/// Why a change of state did not happen.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It is not allowed.
    #[error(transparent)]
    Refused(#[from] LifecycleError),
    /// It could not be made durable.
    #[error(transparent)]
    Fs(#[from] FsError),
}

/// The state log of a root, open for changes. Made by [`Node::state_log`](super::Node::state_log).
pub struct StateLog<'n> {
    files: &'n Files,
    clock: &'n dyn Clock,
    lifecycle: Lifecycle,
    observers: Vec<StateObserver>,
    /// Bytes of good lines; `None` while the file has no durable name.
    size: Option<u64>,
    /// Whether more bytes than that may be there.
    torn: bool,
}

/// What a state log file holds.
struct Read {
    /// The entries of its good lines, up to the first that cannot be read.
    entries: Vec<(Instant, Entry)>,
    /// Bytes of these lines.
    whole: u64,
    /// Whether its last line was cut off.
    torn: bool,
    /// Its state, or why it makes no sense.
    lifecycle: Result<Lifecycle, String>,
}

/// Reads the log. Only its last line may be one that cannot be read: that is a write that was cut off.
fn read(files: &Files) -> Result<Read, FsError> {
    let bytes = files.read(place::STATE_LOG.as_ref())?.unwrap_or_default();
    let (mut entries, mut whole, mut torn, mut damage) = (Vec::new(), 0, false, None);
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        match line.strip_suffix(b"\n").map(Entry::from_line) {
            Some(Ok(entry)) => {
                whole += line.len() as u64;
                entries.push(entry);
            }
            Some(Err(_)) | None if lines.peek().is_none() => torn = true,
            Some(Err(_)) | None => {
                damage = Some(format!("line {} cannot be read", index + 1));
                break;
            }
        }
    }
    let fold = || Lifecycle::fold(entries.iter().map(|(_, entry)| entry.clone()));
    let lifecycle = damage.map_or_else(|| fold().map_err(|error| error.to_string()), Err);
    Ok(Read { entries, whole, torn, lifecycle })
}

/// The state as the log tells it, and its newest `limit` entries, newest first. Changes nothing.
pub(crate) fn look(files: &Files, limit: usize) -> Result<(Lifecycle, Vec<(Instant, Entry)>), FsError> {
    let read = read(files)?;
    let lifecycle = read.lifecycle.unwrap_or_else(|error| {
        tracing::warn!(%error, "the state log makes no sense");
        Lifecycle::default()
    });
    Ok((lifecycle, read.entries.into_iter().rev().take(limit).collect()))
}

impl<'n> StateLog<'n> {
    /// Opens the log, repairing a torn tail. A log that makes no sense is moved aside and a new one begun: it decides
    /// nothing about what is installed.
    pub(crate) fn open(files: &'n Files, clock: &'n dyn Clock) -> Result<Self, FsError> {
        let path = Path::new(place::STATE_LOG);
        let read = read(files)?;
        if read.torn {
            tracing::warn!("the last line of the state log was cut off and is dropped");
            files.disk.truncate(path, read.whole).attempt("repair", path)?;
        }
        let mut size = files.exists(path)?.then_some(read.whole);
        let lifecycle = match read.lifecycle {
            Ok(lifecycle) => lifecycle,
            Err(error) => {
                let aside = (1..)
                    .map(|n: u32| format!("{}.damaged-{n}", place::STATE_LOG))
                    .find(|name| !matches!(files.exists(name.as_ref()), Ok(true)))
                    .expect("some number is free");
                tracing::warn!(%error, %aside, "the state log makes no sense and is moved aside");
                files.rename(path, aside.as_ref())?;
                files.sync_parent(path)?;
                size = None;
                Lifecycle::default()
            }
        };
        Ok(Self { files, clock, lifecycle, observers: Vec::new(), size, torn: false })
    }

    /// The state now.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    /// Has `observer` told of every change from now on.
    pub fn subscribe(&mut self, observer: StateObserver) {
        self.observers.push(observer);
    }

    /// Moves to `to` with `version` in hand.
    ///
    /// # Errors
    /// [`StateError`]; the state is as it was.
    pub fn go(&mut self, to: State, version: Option<&Version>) -> Result<(), StateError> {
        self.go_through(&[to], version)
    }

    /// Moves through several states with one flush.
    ///
    /// # Errors
    /// [`StateError`]; the state is as it was.
    pub fn go_through(&mut self, path: &[State], version: Option<&Version>) -> Result<(), StateError> {
        let mut then = self.lifecycle.clone();
        let mut entries = Vec::with_capacity(path.len());
        for to in path {
            let entry = then.moved(*to, version)?;
            then.apply(&entry);
            entries.push(entry);
        }
        Ok(self.append(entries)?)
    }

    /// Leaves `failed`.
    ///
    /// # Errors
    /// [`StateError`]; the state is as it was.
    pub fn reset(&mut self) -> Result<(), StateError> {
        let entry = self.lifecycle.reset()?;
        Ok(self.append(vec![entry])?)
    }

    /// Remembers the present state and returns the checkpoint's id.
    ///
    /// # Errors
    /// [`FsError`]; nothing is remembered.
    pub fn checkpoint(&mut self) -> Result<u64, FsError> {
        let entry = self.lifecycle.checkpoint();
        self.append(vec![entry])?;
        Ok(self.lifecycle.checkpoints().last().map_or(0, |checkpoint| checkpoint.id))
    }

    /// Goes back to checkpoint `id`; says whether it was there already.
    ///
    /// # Errors
    /// [`StateError`]; the state is as it was.
    pub fn back_to(&mut self, id: u64) -> Result<Idempotent, StateError> {
        let entry = self.lifecycle.returned(id)?;
        let idempotent = match entry {
            Entry::Returned { idempotent: true, .. } => Idempotent::Yes,
            _ => Idempotent::No,
        };
        self.append(vec![entry])?;
        Ok(idempotent)
    }

    fn append(&mut self, entries: Vec<Entry>) -> Result<(), FsError> {
        let path = Path::new(place::STATE_LOG);
        let now = self.clock.now();
        let lines: Vec<u8> = entries.iter().flat_map(|entry| entry.to_line(now)).collect();
        if self.torn {
            self.files.disk.truncate(path, self.size.unwrap_or(0)).attempt("repair", path)?;
        }
        self.torn = true;
        let mut file = self.files.disk.append(path, 0o600).attempt("open", path)?;
        file.write_all(&lines).attempt("write", path)?;
        file.sync().attempt("flush", path)?;
        if self.size.is_none() {
            self.files.sync_parent(path)?;
        }
        self.size = Some(self.size.unwrap_or(0) + lines.len() as u64);
        self.torn = false;
        for entry in &entries {
            self.lifecycle.apply(entry);
            for observer in &self.observers {
                if catch_unwind(AssertUnwindSafe(|| observer(&self.lifecycle))).is_err() {
                    tracing::warn!("an observer of the state panicked");
                }
            }
        }
        Ok(())
    }
}

/// Whether a return to a checkpoint changed nothing, because the last change was the same return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idempotent {
    /// It changed nothing.
    Yes,
    /// It changed the state.
    No,
}

/// How the state log gets from one state to another; empty when it is there or cannot get there without a reset.
pub(crate) fn path_to(from: State, to: State) -> Vec<State> {
    let forward = [State::Idle, State::Downloading, State::Verifying, State::Applying];
    let at = |state: State| forward.iter().position(|known| *known == state);
    match (from, to) {
        (from, to) if from == to => Vec::new(),
        (State::Failed, _) => Vec::new(),
        (State::Downloading | State::Verifying, State::Idle) => vec![State::RollingBack, State::Idle],
        (State::Idle, State::RollingBack | State::Failed) => vec![State::Downloading, to],
        (State::RollingBack, State::Downloading | State::Verifying | State::Applying) => Vec::new(),
        (from, to) => match (at(from), at(to)) {
            (Some(from), Some(to)) if from < to => forward[from + 1..=to].to_vec(),
            _ => vec![to],
        },
    }
}
