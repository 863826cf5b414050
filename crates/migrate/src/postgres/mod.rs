//! The PostgreSQL engine: SCHEMA.md's protocol on a live server, 14 or later.
//!
//! Owns how each phase is carried out there; state, the driver and the planner are shared with the other engine. Read
//! [`PostgresEngine`] first, then `shape` (what becomes of a row), `sync` (dual write), `copy`, `verify`, `swap`.
//!
//! Why it is so, where the design had it otherwise: `docs/decisions/0033-postgresql-engine.md`.
//!
//! What is ours in the database: schema `cutover` (state), three schemas per changed table (`_cutover_base_..` functions and
//! notes, `_cutover_new_..` the table that comes, `_cutover_old_..` the one that goes), the version views `app_v<N>`, and
//! triggers named `~cutover_..`.

mod address;
mod build;
mod copy;
mod in_place;
mod observe;
mod polite;
mod port;
mod rejects;
mod relation;
mod session;
mod shape;
mod staging;
mod swap;
mod sync;
mod tls;
mod verify;
mod views;
mod walk;

use std::time::{Duration, Instant};

use postgres::Config;

use crate::{
    catalog::Catalog,
    change::{Fate, NewConstraint, TableChange, Tactic},
    engine::{Engine, ExprCheck, Loss, Pace, Task, Work},
    error::{Error, Refusal, SqlError},
    ir::{Dialect, Ident},
    state::{
        Phase, reject,
        sql::{Sql, Value},
    },
};

pub(crate) use observe::has_company;

use copy::{Walk, drain, is_walked, make_ranges, open_ranges};
use polite::{Locks, ddl, fence, locked, unfence};
use port::Port;
use relation::{Relation, find};
use session::{Session, ident, literal};
use shape::{Artefacts, Shape, note, read_note};
use sync::{Copying, Sync as Dual, Way};

/// The oldest server that is supported: `hash_record_extended` and `CREATE OR REPLACE TRIGGER` came with it.
const VERSION_MIN: u32 = 140_000;
/// How long the barrier waits for snapshots that are older than the triggers. What they write is remembered either way.
const BARRIER: Duration = Duration::from_secs(30);

/// How further connections are made: shared by workers.
#[derive(Clone)]
struct Dial {
    url: String,
    config: Config,
    tls: tls::Tls,
    /// The schemas in which unqualified tables are looked for, in order.
    schemas: Vec<String>,
}

impl Dial {
    /// A connection of its own.
    fn engine(&self) -> Result<PostgresEngine, Error> {
        let session = Session::open(&self.config, &self.tls)?;
        Ok(PostgresEngine { dial: self.clone(), session })
    }
}

/// How often rows that do not fit are tried again before they count as such.
const MISFIT_ATTEMPTS: u32 = 20;

/// A PostgreSQL database, on one connection; workers open more.
pub struct PostgresEngine {
    dial: Dial,
    session: Session,
}

impl std::fmt::Debug for PostgresEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresEngine").field("schemas", &self.dial.schemas).finish_non_exhaustive()
    }
}

/// Runs `work` again while the server says that a lock was not granted, until the policy's patience ends.
fn retry_busy<T>(task: &Task<'_>, mut work: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    let deadline = Instant::now() + Duration::from_millis(task.policy.lock_patience_ms);
    loop {
        match work() {
            Err(error) if error.is_busy() && Instant::now() < deadline => polite::give_way(),
            other => return other,
        }
    }
}

impl PostgresEngine {
    /// Connects. `url` is a connection string of libpq's: `postgresql://user@host/db`, or `host=/run/postgresql dbname=db`.
    /// In a URL, `sslmode`, `sslrootcert`, `sslcert`, `sslkey` and `passfile` mean what they mean there.
    ///
    /// # Errors
    /// [`Error::Url`] when it is none; what the server says.
    pub fn connect(url: &str) -> Result<Self, Error> {
        let (config, wish) = address::parse(url, &|name| std::env::var(name).ok())?;
        let tls = tls::Tls::new(&wish)?;
        let mut session = Session::open(&config, &tls)?;
        // As a client of this URL would find them; our own connections look nowhere.
        let schemas = session
            .run("RESET search_path; SELECT unnest(current_schemas(false)); SET search_path = ''")?
            .into_iter()
            .filter_map(|row| row.into_iter().next().flatten())
            .collect();
        Ok(Self { dial: Dial { url: url.to_owned(), config, tls, schemas }, session })
    }

    /// The schema that has the table; the first one of the path when none has.
    fn schema_of(&mut self, table: &str) -> Result<String, Error> {
        for schema in self.dial.schemas.clone() {
            if find(&mut self.session, &schema, table)?.is_some() {
                return Ok(schema);
            }
        }
        Ok(self.dial.schemas.first().cloned().unwrap_or_else(|| "public".to_owned()))
    }

    /// The shape of a change. Before the swap its source is the table itself; afterwards the notes say which it was.
    fn shape<'c>(
        &mut self,
        task: &Task<'_>,
        change: &'c TableChange,
    ) -> Result<(Shape<'c>, Option<Relation>), Error> {
        let artefacts = Artefacts::of(task.migration, &change.table);
        let noted = read_note(&mut self.session, &artefacts, "source")?;
        let schema = match read_note(&mut self.session, &artefacts, "schema")? {
            Some(schema) => schema,
            None => self.schema_of(change.table.as_str())?,
        };
        let oid = match noted {
            Some(oid) => Some(oid),
            None => match find(&mut self.session, &schema, change.table.as_str())? {
                Some(oid) => Some(oid),
                None => find(&mut self.session, &schema, change.name_then().as_str())?,
            },
        };
        let source = oid.map(|oid| Relation::read(&mut self.session, &oid)).transpose()?;
        match source {
            Some(source) => Ok((Shape::new(task, change, &source, &schema)?, Some(source))),
            None => Ok((Shape::without_source(task, change, &schema), None)),
        }
    }

    /// As [`shape`](Self::shape), for a table that has to be there.
    fn shape_of<'c>(
        &mut self,
        task: &Task<'_>,
        change: &'c TableChange,
    ) -> Result<(Shape<'c>, Relation), Error> {
        let (shape, source) = self.shape(task, change)?;
        let source = source.ok_or_else(|| {
            Error::refused(
                format!("there is no table `{}`", change.table),
                "Check the name, and the search_path of the connection.",
            )
        })?;
        Ok((shape, source))
    }

    /// Another connection, if clients' rows of any of these tables are taken up to the end.
    fn beside(&self, shapes: &[&Shape<'_>]) -> Result<Option<Self>, Error> {
        let is_followed =
            |shape: &&Shape<'_>| is_shadow(shape.change) || !shape.change.functions().is_empty();
        shapes.iter().any(is_followed).then(|| self.dial.engine()).transpose()
    }

    fn is_swapped(&mut self, shape: &Shape<'_>) -> Result<bool, Error> {
        Ok(read_note(&mut self.session, &shape.artefacts, "primary")?.as_deref() == Some("target"))
    }

    fn is_rolled_back(&mut self, shape: &Shape<'_>) -> Result<bool, Error> {
        Ok(read_note(&mut self.session, &shape.artefacts, "rolled_back")?.is_some())
    }

    /// Whether a way back began here and was cut off: what lies here says nothing of the table any more.
    fn is_undone(&mut self, shape: &Shape<'_>) -> Result<bool, Error> {
        Ok(self.is_rolled_back(shape)? || read_note(&mut self.session, &shape.artefacts, "undone")?.is_some())
    }

    /// Everything that would make the migration fail later, before anything is created.
    fn check_shadow(&mut self, task: &Task<'_>, shape: &Shape<'_>, source: &Relation) -> Result<(), Error> {
        let mut refusals = swap::check_dependents(&mut self.session, task, shape, source)?;
        refusals.extend(shape.check_key());
        let renames = shape.targets.iter().any(|target| target.build != target.name);
        if renames && shape.change.add_indexes.iter().any(|index| index.filter.is_some()) {
            refusals.push(Refusal::new(
                "a partial index is added to a table that is copied and has columns renamed",
                "Add the index in a migration of its own, after this one.",
            ));
        }
        if refusals.is_empty() { Ok(()) } else { Err(Error::Refused(refusals)) }
    }

    /// Expressions have to mean the same at every moment and for every client: an index would have to accept them.
    fn check_immutable(&mut self, shape: &Shape<'_>) -> Result<(), Error> {
        let columns: Vec<String> = shape
            .old_columns
            .iter()
            .map(|column| format!("{} {}", ident(&column.name), column.kind))
            .collect();
        for column in &shape.change.columns {
            let Some(up) = &column.up else { continue };
            let sql = format!(
                "BEGIN; CREATE TEMPORARY TABLE _cutover_probe ({}) ON COMMIT DROP; CREATE INDEX ON pg_temp._cutover_probe (({up})); ROLLBACK",
                columns.join(", ")
            );
            if let Err(error) = self.session.run(&sql) {
                self.session.roll_back();
                let what = column.then.as_ref().map_or("", Ident::as_str);
                return Err(Error::refused(
                    format!("`up` of column `{what}` cannot be used: {error}"),
                    "Use immutable functions of the row's own columns only, and qualify those outside pg_catalog.",
                ));
            }
        }
        Ok(())
    }

    /// Waits for snapshots that are older than this moment, for a while; `consequence` is what it means to go on without.
    fn barrier(&mut self, task: &Task<'_>, consequence: &str) -> Result<(), Error> {
        let horizon = self.session.value("SELECT pg_current_xact_id()::text")?.unwrap_or_default();
        let deadline = Instant::now() + BARRIER.min(Duration::from_millis(task.policy.lock_patience_ms));
        loop {
            let older = self.session.value(&format!(
                "SELECT string_agg(pid::text, ', ') FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
                   AND backend_xmin IS NOT NULL AND age(backend_xmin) > age('{horizon}'::xid8::xid)"
            ))?;
            let Some(pids) = older else { return Ok(()) };
            if Instant::now() >= deadline {
                task.watch.says(&format!(
                    "went on without waiting for the transactions of pid {pids}: {consequence}"
                ));
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// New checks and foreign keys hold for every row as it will be.
    fn check_new_constraints(&mut self, task: &Task<'_>, shape: &Shape<'_>) -> Result<(), Error> {
        let kept = rejects::not_rejected(task, shape, &Dual::new(shape, Way::Forward));
        let rows =
            shape.forward(&format!("(SELECT s.* FROM {} AS s WHERE true{kept}) AS s", shape.name_now()));
        let mut conditions: Vec<String> =
            shape.change.checks().iter().map(|check| format!("({check}) IS NOT TRUE")).collect();
        for constraint in &shape.change.add_constraints {
            match constraint {
                NewConstraint::Check { expr, .. } => conditions.push(format!("({expr}) IS FALSE")),
                NewConstraint::ForeignKey { columns, references, .. } => {
                    conditions.push(shape.orphaned(columns, references));
                }
                NewConstraint::Unique { .. } => {}
            }
        }
        if conditions.is_empty() {
            return Ok(());
        }
        let bad = self
            .session
            .value(&format!("SELECT count(*) FROM ({rows}) AS n WHERE {}", conditions.join(" OR ")))?;
        let count: u64 = bad.and_then(|text| text.parse().ok()).unwrap_or(0);
        if count == 0 {
            return Ok(());
        }
        Err(Error::Rejected {
            table: shape.change.table.clone(),
            count,
            sample: conditions.into_iter().take(task.policy.sample).collect(),
        })
    }
}

/// Drains the keys of all tables that have a shadow, also those that did not fit before: whatever was in their way may be gone,
/// and they count among those that are left for the lock. How many.
fn drain_shadows(
    beside: &mut Option<PostgresEngine>,
    task: &Task<'_>,
    shapes: &[&Shape<'_>],
    way: Way,
) -> Result<u64, Error> {
    let Some(engine) = beside else { return Ok(0) };
    let mut total = 0;
    for shape in shapes.iter().filter(|shape| is_shadow(shape.change)) {
        total += drain(engine, task, &Dual::new(shape, way), true)?;
    }
    Ok(total)
}

fn is_shadow(change: &TableChange) -> bool {
    change.tactic == Tactic::Shadow && change.fate == Fate::Alter
}

impl Sql for PostgresEngine {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    fn execute(&mut self, sql: &str, parameters: &[Value]) -> Result<u64, SqlError> {
        Port(&mut self.session).execute(sql, parameters)
    }

    fn query(&mut self, sql: &str, parameters: &[Value]) -> Result<Vec<Vec<Value>>, SqlError> {
        Port(&mut self.session).query(sql, parameters)
    }
}

impl Engine for PostgresEngine {
    fn prepare(&mut self) -> Result<(), Error> {
        let version = self
            .session
            .value("SHOW server_version_num")?
            .and_then(|text| text.parse::<u32>().ok())
            .unwrap_or(0);
        if version < VERSION_MIN {
            return Err(Error::refused(
                format!("the server is PostgreSQL {}", version / 10_000),
                "PostgreSQL 14 or later is needed.",
            ));
        }
        // IF NOT EXISTS still asks for the right to create.
        if !find_schema(&mut self.session, "cutover")? {
            match self.session.run("CREATE SCHEMA IF NOT EXISTS cutover") {
                // Two at once.
                Err(Error::Sql(error)) if error.code == "23505" || error.code == "42P06" => {}
                other => drop(other?),
            }
        }
        for _ in 0..10 {
            match crate::state::install(self) {
                Err(Error::Sql(error)) if error.code == "23505" || error.code == "42P07" => {}
                other => return other,
            }
        }
        crate::state::install(self)
    }

    fn another(&self) -> Result<Box<dyn Sql + Send>, Error> {
        Ok(Box::new(self.dial.engine()?))
    }

    fn staging(&mut self, name: &str) -> Result<Box<dyn crate::run::Staging>, Error> {
        Ok(Box::new(staging::Copy::make(self, name)?))
    }

    fn observe(&mut self, tables: &[Ident]) -> Result<Catalog, Error> {
        observe::observe(self, tables)
    }

    fn validate(&mut self, checks: &[ExprCheck]) -> Result<(), Error> {
        observe::validate(self, checks)
    }

    fn pre_scan(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        observe::pre_scan(self, task, change)
    }

    fn expand(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        let (mut shape, mut source) = self.shape(task, change)?;
        if self.is_undone(&shape)? {
            self.undo_before_swap(task, change)?;
            (shape, source) = self.shape(task, change)?;
        }
        if !is_shadow(change) {
            return in_place::expand(self, task, &shape, source.as_ref());
        }
        if read_note(&mut self.session, &shape.artefacts, "target")?.is_some() {
            return Ok(());
        }
        let (shape, source) = self.shape_of(task, change)?;
        self.check_shadow(task, &shape, &source)?;
        self.check_immutable(&shape)?;
        task.point("expand.before");
        build::create(&mut self.session, task, &shape, &source)?;
        task.point("expand.after");
        Ok(())
    }

    fn dual_write(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        let (shape, source) = self.shape(task, change)?;
        if !is_shadow(change) {
            return in_place::dual_write(self, task, &shape);
        }
        if self.is_swapped(&shape)? {
            return Ok(());
        }
        let source = source.ok_or_else(|| Error::Damaged(format!("table `{}` is gone", change.table)))?;
        let dual = Dual::new(&shape, Way::Forward);
        if !self.session.is_true(&dual.has_triggers(&source.oid))? {
            let locks = Locks {
                gentle: vec![shape.name_now()],
                strong: vec![(shape.name_now(), "SHARE ROW EXCLUSIVE")],
            };
            let sql = dual.triggers();
            task.point("dual_write.before");
            ddl(&mut self.session, task, &locks, &mut |_| Ok(sql.clone()))?;
            task.point("dual_write.after");
        }
        self.barrier(task, "what they write is synced later")
    }

    fn backfill(&mut self, task: &Task<'_>, change: &TableChange, pace: &dyn Pace) -> Result<Work, Error> {
        if !is_shadow(change) && (change.tactic == Tactic::Instant || change.fate != Fate::Alter) {
            return Ok(Work::default());
        }
        let (shape, source) = self.shape_of(task, change)?;
        if self.is_swapped(&shape)? {
            return Ok(Work::default());
        }
        if !is_shadow(change) {
            return in_place::backfill(self, task, &shape, &source, pace);
        }
        let dual = Dual::new(&shape, Way::Forward);
        make_ranges(&mut self.session, task, &shape, &dual, source.rows_estimate)?;
        let ranges = open_ranges(&mut self.session, &shape, Walk::Copy)?;
        let work =
            if ranges.is_empty() { Work::default() } else { copy::copy(self, task, &shape, pace, ranges)? };
        // No chunk is under way any more that could hold what a client deletes.
        self.session
            .transaction(&format!("{}; {}", fence(task.epoch), dual.functions(Copying::Done)))
            .map_err(unfence(task.epoch))?;
        let target = read_note(&mut self.session, &shape.artefacts, "target")?.unwrap_or_default();
        build::indexes(self, task, &shape, &source, &target, pace)?;
        self.session
            .transaction(&format!("{}; {}", fence(task.epoch), note(&shape.artefacts, "built", "yes")))
            .map_err(unfence(task.epoch))?;
        Ok(work)
    }

    fn verify(&mut self, task: &Task<'_>, change: &TableChange, pace: &dyn Pace) -> Result<Work, Error> {
        if !is_shadow(change) && (change.tactic == Tactic::Instant || change.fate != Fate::Alter) {
            return Ok(Work::default());
        }
        let (shape, source) = self.shape_of(task, change)?;
        if self.is_swapped(&shape)? {
            return Ok(Work::default());
        }
        if !is_shadow(change) {
            let work = in_place::verify(self, task, &shape, &source, pace)?;
            self.session
                .transaction(&format!("{}; {}", fence(task.epoch), note(&shape.artefacts, "verified", "yes")))
                .map_err(unfence(task.epoch))?;
            return Ok(work);
        }
        let dual = Dual::new(&shape, Way::Forward);
        let mut work = Work { resynced: drain(self, task, &dual, true)?, ..Work::default() };
        work.resynced += self.retry_rejects(task, &shape)?;
        let target = read_note(&mut self.session, &shape.artefacts, "target")?.unwrap_or_default();
        let target = Relation::read(&mut self.session, &target)?;
        let ranges = open_ranges(&mut self.session, &shape, Walk::Verify)?;
        if !ranges.is_empty() {
            let compared = verify::verify(self, task, &shape, &target, pace, ranges)?;
            work.seen = compared.seen;
            work.done = compared.done;
            work.resynced += compared.resynced;
        }
        // A row may be in another's way for a moment, while a writer above READ COMMITTED has moved on.
        for _ in 0..MISFIT_ATTEMPTS {
            work.resynced += drain(self, task, &dual, true)?;
            if !self.session.is_true(&format!(
                "SELECT EXISTS (SELECT 1 FROM {} WHERE reason IS NOT NULL)",
                dual.dirty()
            ))? {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.settle_misfits(task, &shape, Way::Forward)?;
        self.check_new_constraints(task, &shape)?;
        Ok(work)
    }

    fn swap(
        &mut self,
        task: &Task<'_>,
        changes: &[TableChange],
        record: &mut dyn FnMut(&mut dyn Sql) -> Result<(), Error>,
    ) -> Result<Work, Error> {
        let mut shapes = Vec::new();
        for change in changes {
            shapes.push(self.shape(task, change)?);
        }
        let mut resynced = 0;
        for (shape, source) in &shapes {
            if let (true, Some(source)) = (is_shadow(shape.change), source) {
                resynced += self.retry_rejects(task, shape)?;
                self.check_rejects(task, shape, source)?;
            }
        }
        let mut locks = Locks::default();
        for (shape, _) in &shapes {
            for view in views::existing(&mut self.session, task.versions, shape.change)? {
                locks.strong.push((view, "ACCESS EXCLUSIVE"));
            }
        }
        let mut tables = Vec::new();
        for (shape, source) in &shapes {
            let Some(source) = source else { continue };
            locks.gentle.push(shape.name_now());
            tables.push(shape.name_now());
            if is_shadow(shape.change) || shape.change.fate == Fate::Drop {
                tables.extend(swap::neighbours(source));
            }
            if is_shadow(shape.change) {
                tables.push(shape.shadow());
            }
        }
        tables.dedup();
        locks.strong.extend(tables.into_iter().map(|table| (table, "ACCESS EXCLUSIVE")));
        task.point("swap.before");
        let mut prepare = |session: &mut Session| {
            let mut statements = Vec::new();
            for (shape, source) in &shapes {
                if is_shadow(shape.change) {
                    let reading = swap::read(session, task, shape)?;
                    statements.extend(swap::exchange(session, task, shape, &reading)?);
                } else {
                    statements.extend(in_place::swap_statements(session, task, shape, source.as_ref())?);
                }
            }
            Ok(statements.join("; "))
        };
        // Before each attempt, so that few keys are left when the locks are granted. On another connection, where row locks
        // end with each transaction, not with the swap.
        let all: Vec<&Shape<'_>> = shapes.iter().map(|(shape, _)| shape).collect();
        let mut beside = self.beside(&all)?;
        let mut ready = || {
            resynced += drain_shadows(&mut beside, task, &all, Way::Forward)?;
            if let Some(engine) = &mut beside {
                for shape in &all {
                    resynced += in_place::drain_touched(engine, task, shape)?;
                }
            }
            Ok(())
        };
        let mut body = |session: &mut Session, statements: &str| {
            for shape in &all {
                in_place::drain_last(session, task, shape)?;
            }
            session.run(statements)?;
            record(&mut Port(session))
        };
        let held = locked(&mut self.session, task, &locks, &mut prepare, &mut ready, &mut body)
            .map_err(|error| self.explain(task, changes, error))?;
        task.point("swap.after");
        let hold = u64::try_from(held.hold.as_micros()).unwrap_or(u64::MAX);
        Ok(Work { resynced, longest_hold_us: hold, ..Work::default() })
    }

    fn settle(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        if !is_shadow(change) {
            return Ok(());
        }
        let (shape, _) = self.shape(task, change)?;
        if !self.is_swapped(&shape)? {
            return Ok(());
        }
        let pending = swap::to_validate(&mut self.session, &shape, &shape.name_then())?;
        swap::validate(&mut self.session, task, &pending)
    }

    fn uses(&mut self, task: &Task<'_>, change: &TableChange) -> Result<Vec<String>, Error> {
        observe::uses(self, task, change)
    }

    fn contract(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        let (shape, _) = self.shape(task, change)?;
        if !is_shadow(change) {
            return in_place::contract(self, task, &shape);
        }
        if find(&mut self.session, &shape.artefacts.base, "note")?.is_none() {
            return Ok(());
        }
        let back = Dual::new(&shape, Way::Back);
        let table = shape.name_then();
        let mut sql = Vec::new();
        if change.needs_views() {
            sql.extend(views::drop_old(&mut self.session, task.versions, change)?);
        }
        sql.push(views::drop_triggers(&back, &table));
        let hidden: Vec<String> = shape
            .targets
            .iter()
            .filter(|target| target.hidden)
            .map(|target| format!("DROP COLUMN IF EXISTS {}", ident(&target.name)))
            .collect();
        if !hidden.is_empty() {
            sql.push(format!("ALTER TABLE {table} {}", hidden.join(", ")));
        }
        sql.push(note(&shape.artefacts, "contracted", "yes"));
        let mut locks = Locks::exclusive(&table);
        for view in views::existing(&mut self.session, task.versions, change)? {
            locks.strong.insert(0, (view, "ACCESS EXCLUSIVE"));
        }
        task.point("contract.before");
        let statements = sql.join("; ");
        ddl(&mut self.session, task, &locks, &mut |_| Ok(statements.clone()))?;
        task.point("contract.between");
        let rest = build::drop_artefacts(&shape, &[shape.retired()]);
        ddl(&mut self.session, task, &Locks::default(), &mut |_| Ok(rest.clone()))?;
        task.point("contract.after");
        Ok(())
    }

    fn undo_before_swap(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        let (shape, _) = self.shape(task, change)?;
        if self.is_swapped(&shape)? {
            return Err(Error::Damaged(format!("`{}` is swapped already", change.table)));
        }
        let is_rolled_back = self.is_rolled_back(&shape)?;
        if !is_shadow(change) {
            return match is_rolled_back {
                true => in_place::after_swap_back(self, task, &shape),
                false => in_place::undo(self, task, &shape),
            };
        }
        if find(&mut self.session, &shape.artefacts.base, "note")?.is_none() {
            return Ok(());
        }
        if is_rolled_back {
            self.barrier(task, "an update of theirs may pass by rows that were synced before the rollback")?;
            let pending: Vec<(String, String)> = swap::retired(&mut self.session, &shape)?
                .foreign_keys
                .into_iter()
                .filter(|(.., valid)| *valid)
                .map(|(table, name, ..)| (if table.is_empty() { shape.name_now() } else { table }, name))
                .collect();
            swap::validate(&mut self.session, task, &pending)?;
        }
        let forward = Dual::new(&shape, Way::Forward);
        let table = shape.name_now();
        // From here on T misses what clients write: a run that finds it must not go on with it.
        let sql = format!("{}; {}", note(&shape.artefacts, "undone", "yes"), forward.drop_triggers(&table));
        ddl(&mut self.session, task, &Locks::exclusive(&table), &mut |_| Ok(sql.clone()))?;
        task.point("undo.between");
        let rest = build::drop_artefacts(&shape, &[shape.shadow()]);
        ddl(&mut self.session, task, &Locks::default(), &mut |_| Ok(rest.clone())).map(drop)
    }

    fn losses(&mut self, task: &Task<'_>, changes: &[TableChange]) -> Result<Vec<Refusal>, Error> {
        observe::losses(self, task, changes)
    }

    fn undo_after_swap(
        &mut self,
        task: &Task<'_>,
        changes: &[TableChange],
        loss: Loss,
        record: &mut dyn FnMut(&mut dyn Sql) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut shapes = Vec::new();
        let mut locks = Locks::default();
        for change in changes {
            let (shape, _) = self.shape(task, change)?;
            if change.tactic == Tactic::Instant || self.is_swapped(&shape)? {
                for view in views::existing(&mut self.session, task.versions, change)? {
                    locks.strong.push((view, "ACCESS EXCLUSIVE"));
                }
                shapes.push(shape);
            }
        }
        let mut tables = Vec::new();
        for shape in &shapes {
            if is_shadow(shape.change) {
                let target = read_note(&mut self.session, &shape.artefacts, "target")?.unwrap_or_default();
                let target = Relation::read(&mut self.session, &target)?;
                tables.extend([shape.name_then(), shape.retired()]);
                tables.extend(swap::neighbours(&target));
            } else {
                tables.push(if shape.change.fate == Fate::Drop {
                    shape.retired()
                } else {
                    shape.name_then()
                });
            }
        }
        locks.gentle =
            shapes.iter().filter(|shape| shape.change.fate != Fate::Drop).map(Shape::name_then).collect();
        locks.strong.extend(tables.into_iter().map(|table| (table, "ACCESS EXCLUSIVE")));
        let mut prepare = |session: &mut Session| {
            let mut statements = vec!["SELECT 1".to_owned()];
            for shape in &shapes {
                if is_shadow(shape.change) {
                    statements.extend(swap::exchange_back(session, task, shape, loss)?);
                } else {
                    statements.extend(in_place::swap_back_statements(session, task, shape)?);
                }
            }
            Ok(statements.join("; "))
        };
        task.point("undo.before");
        let mut body = |session: &mut Session, statements: &str| {
            session.run(statements)?;
            record(&mut Port(session))
        };
        let all: Vec<&Shape<'_>> = shapes.iter().collect();
        let mut beside = self.beside(&all)?;
        let mut ready = || drain_shadows(&mut beside, task, &all, Way::Back).map(drop);
        locked(&mut self.session, task, &locks, &mut prepare, &mut ready, &mut body)
            .map_err(|error| self.explain(task, changes, error))?;
        task.point("undo.after");
        for shape in &shapes {
            if is_shadow(shape.change) {
                self.undo_before_swap(task, shape.change)?;
            } else {
                in_place::after_swap_back(self, task, shape)?;
            }
        }
        Ok(())
    }

    fn is_done(&mut self, task: &Task<'_>, phase: Phase, change: &TableChange) -> Result<bool, Error> {
        let artefacts = Artefacts::of(task.migration, &change.table);
        let exists = find(&mut self.session, &artefacts.base, "note")?.is_some();
        if matches!(phase, Phase::Cleanup | Phase::RolledBack) {
            return Ok(!exists);
        }
        let (shape, source) = self.shape(task, change)?;
        if exists && self.is_swapped(&shape)? {
            return Ok(true);
        }
        if exists && self.is_undone(&shape)? {
            return Ok(false);
        }
        let noted = |engine: &mut Self, key: &str| {
            Ok::<_, Error>(read_note(&mut engine.session, &shape.artefacts, key)?.is_some())
        };
        match phase {
            Phase::Idle | Phase::Cleanup | Phase::RolledBack => Ok(true),
            Phase::ShadowCreate => Ok(exists && (noted(self, "target")? || noted(self, "expanded")?)),
            Phase::DualWrite if is_shadow(change) => match source {
                Some(source) if exists => {
                    self.session.is_true(&Dual::new(&shape, Way::Forward).has_triggers(&source.oid))
                }
                _ => Ok(false),
            },
            Phase::Backfill if is_shadow(change) => {
                Ok(exists && is_walked(&mut self.session, &shape, Walk::Copy)? && noted(self, "built")?)
            }
            Phase::ConsistencyCheck if is_shadow(change) => {
                Ok(exists && is_walked(&mut self.session, &shape, Walk::Verify)?)
            }
            // In place the work itself is cheap to look at again.
            Phase::DualWrite | Phase::Backfill => Ok(false),
            Phase::ConsistencyCheck => noted(self, "verified"),
            Phase::AtomicSwap => Ok(false),
        }
    }
}

fn find_schema(session: &mut Session, name: &str) -> Result<bool, Error> {
    session.is_true(&format!("SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = {})", literal(name)))
}

impl PostgresEngine {
    /// Our own errors from under the lock, with the rows that they are about.
    fn explain(&mut self, task: &Task<'_>, changes: &[TableChange], error: Error) -> Error {
        match session::code(&error) {
            Some("CUT03") => {
                for change in changes {
                    let Ok((shape, _)) = self.shape(task, change) else { continue };
                    let way = if self.is_swapped(&shape).unwrap_or(false) { Way::Back } else { Way::Forward };
                    let settled = self.settle_misfits(task, &shape, way).and_then(|()| {
                        reject::demand_approval(self, task.migration, &change.table, task.policy.sample)
                    });
                    if let Err(error) = settled {
                        return error;
                    }
                }
                Error::Locked(vec![Refusal::new(
                    "rows came in that did not fit, and went again",
                    "Run `cutover schema apply` again.",
                )])
            }
            Some("CUT04") => Error::refused(
                "somebody removed or disabled a trigger of the migration",
                "Roll the migration back and apply it again: writes may have been missed.",
            ),
            _ => error,
        }
    }
}
