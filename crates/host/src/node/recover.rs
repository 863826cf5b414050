//! Taking up what dead processes left.

use std::path::Path;

use cutover_core::{execute::Record, lifecycle::State};

use super::{
    current,
    error::NodeError,
    garbage,
    journal::{self, Journal},
    place,
    report::Report,
    root::{Node, NodeLock},
    run::{Ports, Run, Start},
    state_log,
};

impl Node {
    /// Takes up what an interrupted process left: its execution, removals and staged files. `None` when there was no
    /// execution to end. Runs at the start of every command that changes something.
    ///
    /// # Errors
    /// As [`Node::execute`]; [`NodeError::InSet`] when the root is part of a set, which only [`recover_set`](super::recover_set) can end.
    pub fn recover(&self, lock: &NodeLock, ports: &Ports<'_>) -> Result<Option<Report>, NodeError> {
        let files = &self.files;
        if let Some(mark) = self.mark()? {
            return Err(NodeError::InSet(mark.set));
        }
        let report = match self.unfinished()? {
            None => None,
            Some((number, mut execution, read)) => {
                if let Some(set) = execution.set().filter(|_| !execution.is_released()) {
                    // Its mark was removed by hand; what the set came to is not known here.
                    return Err(NodeError::InSet(set.clone()));
                }
                // What the dead process did is seen, but perhaps not on disk: a power cut must not take back what this
                // run builds on.
                files.sync_all()?;
                let first = Record::Resumed;
                execution.apply(&first).map_err(|what| current::damaged(place::journal(number), what))?;
                let journal = Journal::resume(files, place::journal(number), &read)?;
                let start = Start { payload: None, journal, execution, first: vec![first], seen: None };
                Some(Run::new(self, lock, ports, start).drive()?.ended()?)
            }
        };
        if self.unfinished()?.is_none() {
            self.tidy(lock)?;
        }
        journal::keep_reserve(files)?;
        Ok(report)
    }

    /// Removes what dead processes left: journals that never began, staged files, trash, buried releases.
    pub(super) fn tidy(&self, lock: &NodeLock) -> Result<(), NodeError> {
        let files = &self.files;
        for number in journal::numbers(files)?.into_iter().rev() {
            match journal::end(files, number)? {
                journal::End::Empty => files.discard(&place::journal(number))?,
                journal::End::Ended | journal::End::Open => break,
            }
        }
        if !files.list(place::TRASH.as_ref())?.is_empty() {
            // What a dead process moved there must not come back under its old name with parts missing.
            files.sync_all()?;
        }
        for directory in [place::STAGING, place::TRASH] {
            for (name, _) in files.list(directory.as_ref())? {
                files.remove_tree(&Path::new(directory).join(name))?;
            }
        }
        if let Some(catalog) = self.catalog_if_any()? {
            for tombstone in catalog.tombstones()? {
                garbage::bury(files, &catalog, &tombstone)?;
            }
        }
        let mut log = self.state_log(lock)?;
        if log.lifecycle().state() == State::Failed {
            log.reset()?;
        }
        let path = state_log::path_to(log.lifecycle().state(), State::Idle);
        log.go_through(&path, None)?;
        Ok(())
    }
}
