//! Sets: several packages of a host as one execution, over the executions of their roots.
//!
//! What to do next is the fold over the set's journal ([`cutover_core::set`]), which one of the roots keeps; here it is
//! recorded and handed to the engine of each root. Every root is marked while its set is open, so that nothing else
//! changes it and nothing that going back needs is pruned. Read [`coordinate`] first.

use std::{collections::BTreeSet, io::Write, path::PathBuf, sync::Arc};

use cutover_core::{
    causes::chain,
    execute::{Direction, Execution, Outcome, Record},
    lifecycle::State,
    model::{Instant, Name, RestorePointId, Version},
    plan::Plan,
    set::{Back, Next, Part, PartState, Set, SetId, SetRecord},
};
use serde::Serialize;

use super::{
    current,
    error::NodeError,
    journal::{self, Journal},
    place,
    report::{Driven, Observed, Report, StepReport},
    restore,
    root::{Node, NodeLock},
    run::{Ports, Run, Start},
    under_way::Mark,
};
use crate::payload::Payload;

/// Journals of sets that are kept, for the history.
const JOURNALS_KEPT: usize = 20;

/// One root of a set, locked.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    /// The root.
    pub node: &'a Node,
    /// Its lock.
    pub lock: &'a NodeLock,
    /// Whom its executions talk to.
    pub ports: &'a Ports<'a>,
}

/// Runs the execution of one part; says how it ended, or `None` when it waits for the set.
pub type Perform<'a> =
    dyn FnMut(Observed, &Arc<Plan>, Option<&dyn Payload>) -> Result<Option<Outcome>, NodeError> + 'a;

/// The roots of a set, and how its parts are planned.
pub trait Members {
    /// The root that a part changes.
    fn member(&self, part: usize) -> Member<'_>;

    /// Plans a part on its root as it is now, and has it run. It is called once for each part, in order, and never by a
    /// recovery.
    ///
    /// # Errors
    /// Why the part failed or was refused, for people; then everything is taken back.
    fn perform(&self, part: usize, run: &mut Perform<'_>) -> Result<(), String>;
}

/// What a set did. Made by [`coordinate`] and [`recover_set`], rendered by the program.
#[derive(Clone, Debug, Serialize)]
pub struct SetReport {
    /// Which set.
    pub set: SetId,
    /// The number of the earlier set that it takes back, if that is what it does.
    pub takes_back: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
    /// Its parts, in order.
    pub parts: Vec<PartReport>,
    /// Unusual things that are still safe.
    pub warnings: Vec<String>,
    /// One sentence for people; never empty.
    pub message: String,
}

/// What became of one part.
#[derive(Clone, Debug, Serialize)]
pub struct PartReport {
    /// The package.
    pub package: Name,
    /// Its root.
    pub root: String,
    /// What it had.
    pub from: Option<Version>,
    /// What it was to get; `None` when it was to go.
    pub to: Option<Version>,
    /// Where it stands.
    pub state: PartState,
    /// The number of its execution in its root, if it began.
    pub execution: Option<u64>,
    /// The restore point that leads back, when there is one.
    pub restore_point: Option<RestorePointId>,
    /// The steps that ran in this process, in order, undos included.
    pub steps: Vec<StepReport>,
    /// Where the output of the failed release is kept.
    pub failed_log: Option<PathBuf>,
}

/// A set that has not ended.
#[derive(Clone, Debug)]
pub struct OpenSet {
    /// Which.
    pub id: SetId,
    /// How far it got.
    pub set: Set,
}

/// A set of the past, or the open one.
#[derive(Clone, Debug, Serialize)]
pub struct PastSet {
    /// Its number.
    pub number: u64,
    /// When its first line was written.
    pub at: Instant,
    /// The number of the earlier set that it takes back, if that is what it does.
    pub takes_back: Option<u64>,
    /// What it changed, in order.
    pub parts: Vec<Part>,
    /// How it ended; `None` while it is open.
    pub outcome: Option<Outcome>,
}

/// Which way an execution that waits for its set goes.
enum Verdict<'a> {
    Confirm,
    Back(&'a str),
}

/// What became of an execution that its set decided.
enum Concluded {
    /// It never began.
    Never,
    /// It had ended before.
    Before(Outcome),
    /// It ended now.
    Now(Box<Report>),
}

impl Node {
    /// The set whose execution made restore point `id`, or the newest one when none is named; `None` when there is no such point,
    /// or it was made by an execution of its own.
    ///
    /// # Errors
    /// Damaged state.
    pub fn set_of_point(&self, id: Option<&RestorePointId>) -> Result<Option<SetId>, NodeError> {
        let ids = restore::ids(&self.files)?;
        let found = match id {
            Some(id) => ids.iter().find(|(_, known)| known == id),
            None => ids.last(),
        };
        let Some((number, _)) = found else { return Ok(None) };
        let records = journal::read(&self.files, *number)?.map(|read| read.records).unwrap_or_default();
        Ok(records.into_iter().find_map(|record| match record {
            Record::Planned { set, .. } => set,
            _ => None,
        }))
    }

    /// Makes the root part of a set, durably, unless it is.
    fn join(&self, set: &SetId) -> Result<(), NodeError> {
        if self.mark()?.is_some_and(|mark| mark.set == *set) {
            return Ok(());
        }
        let mark = Mark { set: set.clone(), first: self.next_number()? };
        let bytes = serde_json::to_vec(&mark).expect("text and numbers");
        Ok(self.files.replace(place::SET_MARK.as_ref(), &bytes, 0o600)?)
    }

    /// Ends what [`Node::join`] began, and removes what dead processes left, as far as that can be done now. A run that was cut
    /// off may have left before: what began here since is left alone.
    fn leave(&self, lock: &NodeLock, set: &SetId, warnings: &mut Vec<String>) -> Result<(), NodeError> {
        match self.mark()? {
            Some(mark) if mark.set != *set => return Ok(()),
            Some(_) => self.files.remove_file(place::SET_MARK.as_ref())?,
            None => {}
        }
        self.files.remove_file(place::SET_MARK_NEW.as_ref())?;
        self.files.sync_dir(place::META.as_ref())?;
        if matches!(self.unfinished(), Ok(None)) {
            self.tidy(lock, warnings);
        }
        self.keep_reserve(warnings);
        Ok(())
    }

    /// Whether a part of `set` may begin here: nothing is under way but parts of it that wait.
    fn must_be_free_for(&self, set: &SetId) -> Result<(), NodeError> {
        match (self.mark()?, self.unfinished()?) {
            (Some(mark), _) if mark.set != *set => Err(NodeError::InSet(mark.set)),
            (_, Some((_, execution, _))) if execution.is_held() && execution.set() == Some(set) => Ok(()),
            (_, Some((number, ..))) => Err(NodeError::Unfinished(number)),
            (_, None) => Ok(()),
        }
    }

    /// Ends execution `number` of a set, as the set decided. Can be called again after it was cut off anywhere.
    fn conclude(
        &self,
        lock: &NodeLock,
        ports: &Ports<'_>,
        set: &SetId,
        number: u64,
        verdict: &Verdict<'_>,
    ) -> Result<Concluded, NodeError> {
        let path = place::journal(number);
        if journal::end(&self.files, number)? == journal::End::Empty {
            self.files.discard(&path)?;
            return Ok(Concluded::Never);
        }
        let Some(read) = journal::read(&self.files, number)? else { return Ok(Concluded::Never) };
        let mut execution = Execution::fold(read.records.iter().cloned())
            .map_err(|source| NodeError::Journal { path: path.display().to_string(), source })?;
        if execution.set() != Some(set) {
            return Err(current::damaged(path, "it belongs to another set, or to none"));
        }
        if let Some(outcome) = execution.outcome() {
            return Ok(Concluded::Before(outcome.clone()));
        }
        let mut first = Vec::new();
        match (verdict, execution.direction()) {
            (Verdict::Confirm, Direction::Forward) if execution.is_released() => {}
            (Verdict::Confirm, _) => first.push(Record::Released),
            (Verdict::Back(reason), Direction::Forward) => {
                first.push(Record::TurnedBack { reason: (*reason).to_owned() });
            }
            (Verdict::Back(_), Direction::Back { .. }) => {}
        }
        first.push(Record::Resumed);
        for record in &first {
            execution.apply(record).map_err(|what| current::damaged(&path, what))?;
        }
        let journal = Journal::resume(&self.files, path, &read)?;
        let start = Start { payload: None, journal, execution, first, seen: None };
        let mut run = Run::new(self, lock, ports, start);
        if matches!(verdict, Verdict::Back(_)) {
            run.log_state(State::RollingBack);
        }
        match run.drive()? {
            Driven::Ended(report) => Ok(Concluded::Now(report)),
            Driven::Held(held) => Err(NodeError::Unfinished(held.number)),
        }
    }
}

/// The set that `coordinator` keeps the journal of and that has not ended.
///
/// # Errors
/// Damaged state.
pub fn open_set(coordinator: &Node) -> Result<Option<OpenSet>, NodeError> {
    Ok(unfinished(coordinator)?.map(|(id, set, _)| OpenSet { id, set }))
}

/// The sets whose journals `coordinator` still keeps, newest first.
///
/// # Errors
/// Damaged state.
pub fn sets(coordinator: &Node) -> Result<Vec<PastSet>, NodeError> {
    let mut found = Vec::new();
    for number in numbers(coordinator)?.into_iter().rev() {
        if let Some((set, read)) = fold(coordinator, number)?
            && let Some((at, _)) = read.written
        {
            let (parts, outcome) = (set.parts().to_vec(), set.outcome().cloned());
            found.push(PastSet { number, at, takes_back: set.takes_back(), parts, outcome });
        }
    }
    Ok(found)
}

/// What takes set `number` of `coordinator` back; `None` when its journal is not kept any more, or it did not end confirmed.
///
/// # Errors
/// Damaged state.
pub fn way_back(coordinator: &Node, number: u64) -> Result<Option<Vec<Back>>, NodeError> {
    Ok(fold(coordinator, number)?.and_then(|(set, _)| set.way_back()))
}

/// Runs a set that has not begun to its end: every part confirmed, or every one that was started taken back. The journal is
/// kept by the root `coordinator`, which is one of the members and locked.
///
/// # Errors
/// Refusals before anything is done, or [`NodeError::Stopped`] and [`NodeError::NotConfirmed`], after which
/// [`recover_set`] takes it up; how the set itself ended is in the report.
pub fn coordinate(coordinator: &Node, set: Set, members: &dyn Members) -> Result<SetReport, NodeError> {
    if let Some((id, ..)) = unfinished(coordinator)? {
        return Err(NodeError::InSet(id));
    }
    for part in 0..set.parts().len() {
        members.member(part).node.must_be_idle()?;
    }
    let files = &coordinator.files;
    files.ensure_dir(place::SETS.as_ref(), 0o700)?;
    files.sync_dir(place::META.as_ref())?;
    journal::keep_reserve(files)?;
    let known = numbers(coordinator)?;
    for old in known.iter().rev().skip(JOURNALS_KEPT) {
        files.remove_file(&place::set_journal(*old))?;
    }
    let number = known.last().map_or(1, |last| last + 1);
    let journal = Journal::create(files, place::set_journal(number))?;
    let id = id_of(coordinator, number);
    let beginning = set.beginning();
    let mut run = Coordination::new(coordinator, members, journal, id, set);
    run.pending.push(beginning);
    run.drive()
}

/// Takes up the open set of `coordinator`: finishes it when every part was switched and probed, else takes everything
/// back. `None` when there is none.
///
/// # Errors
/// As [`coordinate`].
pub fn recover_set(coordinator: &Node, members: &dyn Members) -> Result<Option<SetReport>, NodeError> {
    let Some((id, mut set, read)) = unfinished(coordinator)? else { return Ok(None) };
    // What the dead process did is seen, but perhaps not on disk: a power cut must not take back what this run builds on.
    coordinator.files.sync_all()?;
    for part in 0..set.parts().len() {
        members.member(part).node.files.sync_all()?;
    }
    let path = place::set_journal(id.number);
    set.apply(&SetRecord::Resumed).map_err(|what| current::damaged(&path, what))?;
    let journal = Journal::resume(&coordinator.files, path, &read)?;
    let mut run = Coordination::new(coordinator, members, journal, id, set);
    run.pending.push(SetRecord::Resumed);
    run.drive().map(Some)
}

fn id_of(coordinator: &Node, number: u64) -> SetId {
    SetId { coordinator: coordinator.files.disk.root().display().to_string(), number }
}

/// The numbers of all journals of sets, ascending.
fn numbers(coordinator: &Node) -> Result<Vec<u64>, NodeError> {
    let listed = coordinator.files.list(place::SETS.as_ref())?;
    let mut numbers: Vec<u64> = listed.iter().filter_map(|(name, _)| place::journal_number(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

type Folded = (Set, journal::Read<SetRecord>);

/// A set by its journal; `None` when nothing of it was ever durable.
fn fold(coordinator: &Node, number: u64) -> Result<Option<Folded>, NodeError> {
    let path = place::set_journal(number);
    let Some(read) = journal::read_lines(&coordinator.files, &path, SetRecord::from_line)? else {
        return Ok(None);
    };
    if read.records.is_empty() {
        return Ok(None);
    }
    let set = Set::fold(read.records.iter().cloned())
        .map_err(|source| NodeError::SetJournal { path: path.display().to_string(), source })?;
    Ok(Some((set, read)))
}

/// The set that has not ended: only the newest can be one, because none begins before the last has ended.
fn unfinished(coordinator: &Node) -> Result<Option<(SetId, Set, journal::Read<SetRecord>)>, NodeError> {
    for number in numbers(coordinator)?.into_iter().rev() {
        if let Some((set, read)) = fold(coordinator, number)? {
            let open = set.outcome().is_none();
            return Ok(open.then(|| (id_of(coordinator, number), set, read)));
        }
    }
    Ok(None)
}

/// One run of the loop in this process.
struct Coordination<'a> {
    coordinator: &'a Node,
    members: &'a dyn Members,
    journal: Journal<'a>,
    id: SetId,
    set: Set,
    /// Records that are not written yet.
    pending: Vec<SetRecord>,
    steps: Vec<Vec<StepReport>>,
    failed_logs: Vec<Option<PathBuf>>,
    warnings: Vec<String>,
    undo_error: Option<String>,
}

impl<'a> Coordination<'a> {
    fn new(
        coordinator: &'a Node,
        members: &'a dyn Members,
        journal: Journal<'a>,
        id: SetId,
        set: Set,
    ) -> Self {
        let count = set.parts().len();
        Self {
            coordinator,
            members,
            journal,
            id,
            set,
            pending: Vec::new(),
            steps: vec![Vec::new(); count],
            failed_logs: vec![None; count],
            warnings: Vec::new(),
            undo_error: None,
        }
    }

    fn drive(mut self) -> Result<SetReport, NodeError> {
        // Before anything is done under its name: what finds a mark finds the set.
        self.flush()?;
        if !matches!(self.set.next(), Next::Finish(_)) {
            for part in 0..self.set.parts().len() {
                self.members.member(part).node.join(&self.id)?;
            }
        }
        loop {
            match self.set.next() {
                Next::Perform(part) => self.perform(part)?,
                Next::Commit => {
                    // Durable by itself: from here on an interruption finishes the set instead of taking it back.
                    self.flush()?;
                    let member = self.members.member(0);
                    if let Some(before_step) = member.ports.before_step {
                        before_step("commit");
                    }
                    self.record(SetRecord::Committed);
                    self.flush()?;
                    tracing::info!(set = self.id.number, "committed");
                }
                Next::Confirm(part) => self.confirm(part)?,
                Next::Undo(part) => self.undo(part)?,
                Next::Finish(outcome) | Next::Ended(outcome) => return self.finish(outcome),
            }
        }
    }

    /// Takes a record in; it is written with the next announcement.
    fn record(&mut self, record: SetRecord) {
        self.set.apply(&record).expect("the loop does what the set says, so every record follows");
        self.pending.push(record);
    }

    /// Makes all records durable.
    fn flush(&mut self) -> Result<(), NodeError> {
        if !self.pending.is_empty() {
            let line = SetRecord::to_line(&self.pending, self.coordinator.clock().now());
            let append = |out: &mut dyn Write| out.write_all(&line).map(|()| line.len() as u64);
            self.journal.append(append).map_err(NodeError::Stopped)?;
            self.pending.clear();
        }
        Ok(())
    }

    fn perform(&mut self, part: usize) -> Result<(), NodeError> {
        let (members, member, id) = (self.members, self.members.member(part), self.id.clone());
        let (mut ended, mut stopped) = (None, None);
        let said = members.perform(part, &mut |observed, plan, payload| {
            let began = member.node.must_be_free_for(&id).and_then(|()| {
                self.record(SetRecord::Started { part, execution: plan.number });
                self.flush()?;
                member.node.begin(observed, member.lock, plan, payload, member.ports, Some(id.clone()))
            });
            match began {
                Ok(Driven::Held(held)) => {
                    self.steps[part].extend(held.steps);
                    self.warnings.extend(held.warnings);
                    Ok(None)
                }
                Ok(Driven::Ended(report)) => {
                    let outcome = report.outcome.clone();
                    self.take_in(part, *report);
                    ended = Some(outcome.clone());
                    Ok(Some(outcome))
                }
                Err(error @ NodeError::Stopped(_)) => {
                    let again = NodeError::Changed;
                    stopped = Some(error);
                    Err(again)
                }
                Err(error) => Err(error),
            }
        });
        if let Some(stopped) = stopped {
            return Err(stopped);
        }
        let named = |reason: String| format!("{}: {reason}", self.set.parts()[part].package);
        match (said, ended) {
            (Ok(()), None) if self.set.states()[part] == PartState::Started => {
                self.record(SetRecord::Held { part });
            }
            (Ok(()), None) => {
                let reason = named("nothing was run".to_owned());
                self.record(SetRecord::Failed { part, outcome: Outcome::Undone { reason } });
            }
            (said, outcome) => {
                let reason = said.err();
                let outcome = match outcome {
                    None | Some(Outcome::Confirmed | Outcome::KeptUnconfirmed) => {
                        Outcome::Undone { reason: named(reason.unwrap_or_default()) }
                    }
                    Some(Outcome::Undone { reason: own }) => {
                        Outcome::Undone { reason: named(reason.unwrap_or(own)) }
                    }
                    Some(Outcome::ProbeFailed { reason }) => Outcome::ProbeFailed { reason: named(reason) },
                    Some(Outcome::Stuck { reason }) => Outcome::Stuck { reason: named(reason) },
                };
                self.record(SetRecord::Failed { part, outcome });
            }
        }
        Ok(())
    }

    fn confirm(&mut self, part: usize) -> Result<(), NodeError> {
        match self.conclude(part, &Verdict::Confirm)? {
            Concluded::Before(Outcome::Confirmed) => {}
            Concluded::Now(report) if report.outcome == Outcome::Confirmed => self.take_in(part, *report),
            Concluded::Never | Concluded::Before(_) | Concluded::Now(_) => {
                let path = place::set_journal(self.id.number);
                return Err(current::damaged(path, "it is committed, but a part of it is not there"));
            }
        }
        self.record(SetRecord::Confirmed { part });
        Ok(())
    }

    fn undo(&mut self, part: usize) -> Result<(), NodeError> {
        // What goes back is decided before it goes back.
        self.flush()?;
        let reason = format!("set {}: {}", self.id.number, self.set.back().unwrap_or_default());
        let problem = match self.conclude(part, &Verdict::Back(&reason)) {
            Err(error @ NodeError::Stopped(_)) => return Err(error),
            Err(error) => Some(chain(&error)),
            Ok(Concluded::Never) => None,
            Ok(Concluded::Before(outcome)) => problem_of(&outcome, None),
            Ok(Concluded::Now(report)) => {
                let problem = problem_of(&report.outcome, Some(&report.message));
                self.take_in(part, *report);
                problem
            }
        };
        match problem {
            None => self.record(SetRecord::Undone { part }),
            Some(error) => {
                self.undo_error = Some(format!("{}: {error}", self.set.parts()[part].package));
                self.record(SetRecord::UndoFailed { part, error });
            }
        }
        Ok(())
    }

    fn conclude(&self, part: usize, verdict: &Verdict<'_>) -> Result<Concluded, NodeError> {
        let Some(execution) = self.set.execution(part) else { return Ok(Concluded::Never) };
        let member = self.members.member(part);
        member.node.conclude(member.lock, member.ports, &self.id, execution, verdict)
    }

    fn take_in(&mut self, part: usize, report: Report) {
        self.steps[part].extend(report.steps);
        self.warnings.extend(report.warnings);
        self.failed_logs[part] = report.failed_log.or_else(|| self.failed_logs[part].take());
    }

    fn finish(mut self, outcome: Outcome) -> Result<SetReport, NodeError> {
        self.flush()?;
        if !matches!(outcome, Outcome::Stuck { .. }) {
            let mut left = BTreeSet::new();
            for part in 0..self.set.parts().len() {
                if left.insert(self.set.parts()[part].root.clone()) {
                    let member = self.members.member(part);
                    member.node.leave(member.lock, &self.id, &mut self.warnings)?;
                }
            }
            self.record(SetRecord::Finished { outcome: outcome.clone() });
            self.flush()?;
        }
        Ok(self.report(outcome))
    }

    fn report(self, outcome: Outcome) -> SetReport {
        let message = message(&self.set, &outcome, self.undo_error.as_deref());
        let leads_back = outcome == Outcome::Confirmed && self.set.takes_back().is_none();
        let mut parts = Vec::new();
        let told = self.steps.into_iter().zip(self.failed_logs);
        for (index, (part, (steps, failed_log))) in self.set.parts().iter().zip(told).enumerate() {
            let execution = self.set.execution(index);
            let Part { package, root, from, to } = part.clone();
            parts.push(PartReport {
                package,
                root,
                from,
                to,
                state: self.set.states()[index],
                execution,
                // A rollback uses its own up.
                restore_point: execution.filter(|_| leads_back).map(RestorePointId::of_execution),
                steps,
                failed_log,
            });
        }
        let takes_back = self.set.takes_back();
        SetReport { set: self.id, takes_back, outcome, parts, warnings: self.warnings, message }
    }
}

/// Why a part is not as before, if it is not.
fn problem_of(outcome: &Outcome, message: Option<&str>) -> Option<String> {
    match outcome {
        Outcome::Undone { .. } | Outcome::ProbeFailed { .. } => None,
        Outcome::Confirmed | Outcome::KeptUnconfirmed => Some("it was confirmed by itself".to_owned()),
        Outcome::Stuck { reason } => Some(message.unwrap_or(reason).to_owned()),
    }
}

/// One sentence about an end. Nothing but a confirmed end reads like a success (I15).
fn message(set: &Set, outcome: &Outcome, undo_error: Option<&str>) -> String {
    match outcome {
        Outcome::Confirmed => {
            let changes: Vec<String> = set.parts().iter().map(Part::to_string).collect();
            let what = if set.takes_back().is_some() { "rolled back" } else { "updated" };
            format!("{what} together: {}", changes.join(", "))
        }
        Outcome::Undone { reason } => format!("not done, every package is as it was: {reason}"),
        Outcome::ProbeFailed { reason } => format!("{reason}; every package was restored"),
        Outcome::KeptUnconfirmed => "a package stays, unconfirmed".to_owned(),
        Outcome::Stuck { reason } => {
            let problem = undo_error.map_or_else(String::new, |error| format!(" ({error})"));
            format!("restoring every package failed, act now: {reason}{problem}; then run `cutover recover`")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cutover_core::{
        execute::Record,
        model::Digest,
        plan::{Layout, OnProbeFailure, Plan, PlanBytes, PlanKind},
    };

    use super::*;
    use crate::{
        clock::Clock,
        disk::RealDisk,
        node::{CatalogPort, NodeOptions, NodePorts},
    };

    struct Epoch;

    impl Clock for Epoch {
        fn now(&self) -> Instant {
            Instant::from_unix(0).expect("the epoch")
        }
    }

    fn open(directory: &tempfile::TempDir) -> (Node, NodeLock) {
        let disk = Arc::new(RealDisk::open(directory.path()).expect("a disk"));
        let ports = NodePorts { disk, catalog: CatalogPort::OnDisk, clock: Arc::new(Epoch) };
        let node = Node::open(ports, NodeOptions::default()).expect("a node");
        let lock = node.lock().expect("the lock");
        (node, lock)
    }

    fn set(number: u64) -> SetId {
        SetId { coordinator: "/srv/query".to_owned(), number }
    }

    #[test]
    fn set_that_leaves_a_root_again_leaves_what_began_there_since_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let (node, lock) = open(&directory);
        let staged = directory.path().join(place::STAGING).join("staged");
        std::fs::write(&staged, "by the later set").expect("written");
        node.join(&set(2)).expect("joined");
        node.leave(&lock, &set(1), &mut Vec::new()).expect("left");
        assert_eq!(node.mark().expect("read").map(|mark| mark.set), Some(set(2)));
        assert!(staged.exists());
        node.leave(&lock, &set(2), &mut Vec::new()).expect("left");
        assert!(node.mark().expect("read").is_none() && !staged.exists());
    }

    #[test]
    fn set_that_leaves_a_root_again_tidies_nothing_of_an_execution_under_way() {
        let directory = tempfile::tempdir().expect("a directory");
        let (node, lock) = open(&directory);
        let plan = Plan {
            format: 1,
            number: 1,
            kind: PlanKind::Update,
            layout: Layout::Versioned,
            from: None,
            to: None,
            planned_at: Epoch.now(),
            based_on: Digest::of(b"nothing"),
            on_probe_failure: OnProbeFailure::Restore,
            bytes: PlanBytes { new: 0, reused: 0, need: 0 },
            steps: Vec::new(),
        };
        let planned = Record::Planned { plan: Arc::new(plan), set: None };
        let journal = directory.path().join(place::journal(1));
        std::fs::write(journal, Record::to_line(&[planned], Epoch.now())).expect("written");
        let staged = directory.path().join(place::STAGING).join("staged");
        std::fs::write(&staged, "by the execution").expect("written");
        node.leave(&lock, &set(1), &mut Vec::new()).expect("left");
        assert!(staged.exists());
    }
}
