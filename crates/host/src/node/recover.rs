//! Taking up what dead processes left.

use std::path::Path;

use cutover_core::{causes::chain, execute::Record, lifecycle::State};

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
    /// execution to end. Runs at the start of every command that changes something, so only an execution that cannot be taken
    /// up is an error: housekeeping that fails is a warning.
    ///
    /// # Errors
    /// As [`Node::execute`]; [`NodeError::InSet`] when the root is part of a set, which only [`recover_set`](super::recover_set) can end.
    pub fn recover(&self, lock: &NodeLock, ports: &Ports<'_>) -> Result<Option<Report>, NodeError> {
        let files = &self.files;
        if let Some(mark) = self.mark()? {
            return Err(NodeError::InSet(mark.set));
        }
        let mut report = match self.unfinished()? {
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
        let mut warnings = Vec::new();
        match report.as_ref().map_or(Ok(None), |_| self.unfinished()) {
            Ok(None) => self.tidy(lock, &mut warnings),
            Ok(Some(_)) => {}
            // What was done is told all the same; whoever looks next is told of this.
            Err(error) => warnings.push(chain(&error)),
        }
        self.keep_reserve(&mut warnings);
        match &mut report {
            Some(report) => report.warnings.append(&mut warnings),
            None => warnings.iter().for_each(|warning| tracing::warn!("{warning}")),
        }
        Ok(report)
    }

    /// Removes what dead processes left: journals that never began, staged files, trash, buried releases. What cannot be
    /// removed is in nobody's way and stays for the next run: it must not keep anybody from recovering or going back.
    pub(super) fn tidy(&self, lock: &NodeLock, warnings: &mut Vec<String>) {
        let mut attempt = |what: &str, done: Result<(), NodeError>| {
            if let Err(error) = done {
                warnings.push(format!("{what} until the next run: {}", chain(&error)));
            }
        };
        attempt("a journal that never began remains", self.remove_empty_journals());
        attempt("what dead processes left remains", self.empty_trash());
        attempt("what is left of removed releases remains", self.bury_the_rest());
        attempt("the state log is not up to date", self.settle_state(lock));
    }

    /// Sets room aside for the journal of the next execution.
    pub(super) fn keep_reserve(&self, warnings: &mut Vec<String>) {
        if let Err(error) = journal::keep_reserve(&self.files) {
            warnings.push(format!("no room is kept back for the journal: {}", chain(&error)));
        }
    }

    fn remove_empty_journals(&self) -> Result<(), NodeError> {
        for number in journal::numbers(&self.files)?.into_iter().rev() {
            match journal::end(&self.files, number)? {
                journal::End::Empty => self.files.discard(&place::journal(number))?,
                journal::End::Ended | journal::End::Open => break,
            }
        }
        Ok(())
    }

    /// Removes everything there is in staging and in the trash, as far as it can be.
    fn empty_trash(&self) -> Result<(), NodeError> {
        let files = &self.files;
        if !files.list(place::TRASH.as_ref())?.is_empty() {
            // What a dead process moved there must not come back under its old name with parts missing.
            files.sync_all()?;
        }
        let mut first_error = Ok(());
        for directory in [place::STAGING, place::TRASH] {
            for (name, _) in files.list(directory.as_ref())? {
                first_error = first_error.and(files.remove_tree(&Path::new(directory).join(name)));
            }
        }
        Ok(first_error?)
    }

    /// Ends removals of releases that were cut off.
    fn bury_the_rest(&self) -> Result<(), NodeError> {
        let Some(catalog) = self.catalog_if_any()? else { return Ok(()) };
        let mut first_error = Ok(());
        for tombstone in catalog.tombstones()? {
            first_error = first_error.and(garbage::bury(&self.files, &catalog, &tombstone));
        }
        first_error
    }

    fn settle_state(&self, lock: &NodeLock) -> Result<(), NodeError> {
        let mut log = self.state_log(lock)?;
        if log.lifecycle().state() == State::Failed {
            log.reset()?;
        }
        let path = state_log::path_to(log.lifecycle().state(), State::Idle);
        Ok(log.go_through(&path, None)?)
    }
}
