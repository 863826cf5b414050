//! Rehearsals: the whole migration on a copy of the database first.

use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::{Applied, Migrator, Settings};
use crate::{
    engine::{Engine, Loss},
    error::Error,
    ir::Migration,
    plan::Plan,
    state::{self, reject, sql::in_transaction},
};

/// A copy of a database, made for a rehearsal.
pub trait Staging {
    /// What it is called, so that it can be looked at after a failure.
    fn place(&self) -> String;

    /// Connects to it.
    ///
    /// # Errors
    /// What the database says.
    fn engine(&self) -> Result<Box<dyn Engine>, Error>;

    /// Removes it.
    ///
    /// # Errors
    /// What the database says.
    fn discard(self: Box<Self>) -> Result<(), Error>;
}

/// What a rehearsal found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rehearsal {
    /// The migration.
    pub id: String,
    /// Where it ran.
    pub place: String,
    /// How long the whole took, in milliseconds.
    pub took_ms: u64,
    /// Rows copied.
    pub rows: u64,
    /// Rows that do not fit and were set aside. On the copy they were approved; on the database somebody has to.
    pub set_aside: u64,
    /// How long the swap held its lock, in microseconds.
    pub swap_hold_us: u64,
}

/// Applies on the copy, and approves there what would have to be approved.
fn apply_approving(there: &mut Migrator<'_>, migration: &Migration) -> Result<Applied, Error> {
    loop {
        match there.apply(migration, None) {
            Err(Error::Stopped { cause, .. })
                if matches!(*cause, Error::Locked(_)) && there.approve(&migration.id)? > 0 => {}
            other => return other,
        }
    }
}

impl Migrator<'_> {
    /// Applies the migration to a copy, rolls it back and applies it again there, so that both ways are known to work; then
    /// remembers the figures, by the migration's hash, for `plan` and `apply --rehearsed`. A copy made for this is kept on
    /// failure and dropped on success; one that was given is kept.
    ///
    /// # Errors
    /// What the migration did there; the message names the copy.
    pub fn rehearse(
        &mut self,
        migration: &Migration,
        on: Option<Box<dyn Engine>>,
    ) -> Result<Rehearsal, Error> {
        self.plan(migration)?;
        let (staging, engine) = match on {
            Some(engine) => (None, engine),
            None => {
                let staging = self.engine.staging(&migration.id)?;
                let engine = staging.engine()?;
                (Some(staging), engine)
            }
        };
        let place =
            staging.as_ref().map_or_else(|| "the copy that was given".to_owned(), |staging| staging.place());
        let mut there =
            Migrator::new(engine, Settings { head: None, ..self.settings.clone() }, self.watch, self.make);
        let began = Instant::now();
        let run = |there: &mut Migrator<'_>| -> Result<Option<(super::Report, u64)>, Error> {
            let mut report = match apply_approving(there, migration)? {
                Applied::Already => return Ok(None),
                Applied::Done(report) => *report,
            };
            report.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let set_aside = reject::count(&mut *there.engine, &migration.id, None)?.rows;
            there.rollback(&migration.id, Loss::Accept)?;
            apply_approving(there, migration)?;
            Ok(Some((report, set_aside)))
        };
        let report = match run(&mut there) {
            Ok(report) => report,
            Err(error) => {
                self.watch.says(&format!("the copy is kept for you to look at: {place}"));
                return Err(error);
            }
        };
        let (report, set_aside) = report.ok_or_else(|| {
            Error::refused(
                "the copy has this migration already",
                "Rehearse on a copy of the present database.",
            )
        })?;
        drop(there);
        let rehearsal = Rehearsal {
            id: migration.id.clone(),
            place,
            took_ms: report.took_ms,
            rows: report.ledger.iter().filter(|line| line.kind == "copy").map(|line| line.seen).sum(),
            set_aside,
            swap_hold_us: report.swap_hold_us,
        };
        if let Some(staging) = staging {
            staging.discard()?;
        }
        self.engine.prepare()?;
        let text = json!({ "took_ms": rehearsal.took_ms, "rows": rehearsal.rows, "swap_hold_us": rehearsal.swap_hold_us });
        in_transaction(&mut *self.engine, |sql| {
            let table = state::table(sql.dialect(), "rehearsal");
            let hash = migration.hash().to_string();
            sql.execute(&format!("DELETE FROM {table} WHERE hash = $1"), &[hash.as_str().into()])?;
            let insert = format!("INSERT INTO {table} (hash, figures) VALUES ($1, $2)");
            sql.execute(&insert, &[hash.into(), text.to_string().into()])?;
            Ok(())
        })?;
        Ok(rehearsal)
    }

    /// The figures of the last rehearsal of this very migration.
    fn figures(&mut self, migration: &Migration) -> Result<Option<serde_json::Value>, Error> {
        if !state::is_installed(&mut *self.engine)? {
            return Ok(None);
        }
        let query = format!(
            "SELECT figures FROM {} WHERE hash = $1",
            state::table(self.engine.dialect(), "rehearsal")
        );
        let rows = self.engine.query(&query, &[migration.hash().to_string().into()])?;
        let text = rows.first().map(|row| row[0].text()).transpose()?;
        text.map(|text| serde_json::from_str(text).map_err(|error| Error::Damaged(error.to_string())))
            .transpose()
    }

    /// Refuses unless a rehearsal of this very migration succeeded (case X18).
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn demand_rehearsal(&mut self, migration: &Migration) -> Result<(), Error> {
        match self.figures(migration)? {
            Some(_) => Ok(()),
            None => Err(Error::refused(
                format!("`{}` has not been rehearsed in this form", migration.id),
                "Run `cutover schema rehearse` with the same file first.",
            )),
        }
    }

    /// Puts measured figures in the place of estimates.
    pub(super) fn with_figures(&mut self, migration: &Migration, plan: &mut Plan) -> Result<(), Error> {
        let Some(figures) = self.figures(migration)? else { return Ok(()) };
        let (Some(took_ms), Some(rows)) = (figures["took_ms"].as_u64(), figures["rows"].as_u64()) else {
            return Ok(());
        };
        if rows == 0 {
            return Ok(());
        }
        let scaled = took_ms.saturating_mul(plan.rows) / rows;
        for step in plan.steps.iter_mut().filter(|step| step.rewrite) {
            step.estimate_ms = scaled.max(1);
        }
        Ok(())
    }
}
