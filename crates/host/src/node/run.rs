//! One run of a plan in this process: what it holds, whom it talks to, and how it writes down what happens.

use std::sync::Arc;

use cutover_core::{
    causes::chain,
    event::{Event, Observer},
    execute::{Execution, Outcome, Record},
    lifecycle::State,
    model::{RestorePoint, RestorePointId, SeenTree},
    plan::{Plan, PlanKind},
};

use super::{
    error::NodeError,
    events::Events,
    history,
    journal::Journal,
    report::StepReport,
    root::{Node, NodeLock},
    state_log,
};
use crate::{
    catalog::HistoryRow,
    payload::Payload,
    probe::{ProbeReport, Prober},
    schema::SchemaManager,
    service::ServiceManager,
};

/// Whom an execution talks to.
pub struct Ports<'a> {
    /// Whoever runs the service.
    pub service: &'a dyn ServiceManager,
    /// Examines the release after the switch, exactly once.
    pub prober: &'a dyn Prober,
    /// Changes the schema of the service's database; `None` when none is configured, and then a release that carries
    /// migrations is not installed.
    pub schema: Option<&'a dyn SchemaManager>,
    /// Is told what happens. It runs on a thread of its own: a slow one delays nothing, a panicking one harms nothing.
    pub observer: Arc<dyn Observer>,
    /// Is called with a step's name in the execution's own thread, once the step's intent is durable and before it
    /// begins: the place where a test stops the process.
    pub before_step: Option<&'a dyn Fn(&'static str)>,
}

/// One run of the loop in this process.
pub(super) struct Run<'a> {
    pub(super) node: &'a Node,
    pub(super) lock: &'a NodeLock,
    pub(super) plan: Arc<Plan>,
    pub(super) payload: Option<&'a dyn Payload>,
    pub(super) ports: &'a Ports<'a>,
    pub(super) events: Events,
    pub(super) journal: Journal<'a>,
    pub(super) execution: Execution,
    /// Records that are not written yet.
    pub(super) pending: Vec<Record>,
    /// Events about them, told once they are durable: nobody hears of a success that could be lost.
    pub(super) untold: Vec<Event>,
    /// The release that is installed, as it was found when the execution began.
    pub(super) seen: Option<SeenTree>,
    pub(super) point: Option<Arc<RestorePoint>>,
    pub(super) steps: Vec<StepReport>,
    pub(super) warnings: Vec<String>,
    pub(super) probes: Option<ProbeReport>,
    pub(super) undo_error: Option<String>,
}

/// What a run starts from.
pub(super) struct Start<'a> {
    pub(super) payload: Option<&'a dyn Payload>,
    pub(super) journal: Journal<'a>,
    pub(super) execution: Execution,
    /// Records to be written with the first announcement; the execution has taken them in.
    pub(super) first: Vec<Record>,
    pub(super) seen: Option<SeenTree>,
}

impl<'a> Run<'a> {
    pub(super) fn new(node: &'a Node, lock: &'a NodeLock, ports: &'a Ports<'a>, start: Start<'a>) -> Self {
        let Start { payload, journal, execution, first, seen } = start;
        Self {
            node,
            lock,
            plan: Arc::clone(execution.plan()),
            payload,
            ports,
            events: Events::new(Arc::clone(&ports.observer)),
            journal,
            execution,
            pending: first,
            untold: Vec::new(),
            seen,
            point: None,
            steps: Vec::new(),
            warnings: Vec::new(),
            probes: None,
            undo_error: None,
        }
    }

    /// Takes a record in; it is written with the next announcement.
    pub(super) fn record(&mut self, record: Record) {
        self.execution
            .apply(&record)
            .expect("the loop does what the execution says, so every record follows");
        self.pending.push(record);
    }

    /// Makes all records durable.
    pub(super) fn flush(&mut self) -> Result<(), NodeError> {
        if !self.pending.is_empty() {
            let now = self.node.clock().now();
            self.journal
                .append(|out| Record::write_line(&self.pending, now, out))
                .map_err(NodeError::Stopped)?;
            self.pending.clear();
        }
        for event in self.untold.drain(..) {
            self.events.send(event);
        }
        Ok(())
    }

    pub(super) fn history_row(&self, outcome: &Outcome, error: Option<String>) -> HistoryRow {
        history::row(&self.plan, self.node.clock().now(), outcome, error, self.kept_point(outcome))
    }

    /// The restore point that stays after this end.
    pub(super) fn kept_point(&self, outcome: &Outcome) -> Option<RestorePointId> {
        let own = || Some(RestorePointId::of_execution(self.plan.number));
        match (outcome, self.plan.kind) {
            (Outcome::Confirmed, PlanKind::Update)
            | (Outcome::KeptUnconfirmed | Outcome::Stuck { .. }, _) => own(),
            (Outcome::Confirmed, PlanKind::Rollback)
            | (Outcome::Undone { .. } | Outcome::ProbeFailed { .. }, _) => None,
        }
    }

    /// The state log follows; it decides nothing, so a failure to write it is only a warning.
    pub(super) fn log_state(&mut self, to: State) {
        let version = self.plan.to.as_ref().map(|to| to.version.clone());
        let written = (|| {
            let mut log = self.node.state_log(self.lock)?;
            let path = state_log::path_to(log.lifecycle().state(), to);
            log.go_through(&path, version.as_ref()).map_err(NodeError::from)
        })();
        if let Err(error) = written {
            self.warnings.push(format!("the state log could not be written: {}", chain(&error)));
        }
    }
}
