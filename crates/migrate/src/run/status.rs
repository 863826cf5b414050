//! Where the migrations of a database are, and what was done to it. Reads only.

use cutover_core::model::Digest;
use serde::Serialize;

use super::{
    Migrator,
    line::{self, grace_ms, version},
};
use crate::{
    error::Error,
    state::{
        self, Phase, history, lease,
        record::{self, LedgerLine, Passed},
        reject::{self, SetAside},
    },
};

/// Where the migrations of a database are.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The schema version: the position of the last migration that was applied; 0 without any.
    pub version: u64,
    /// Who is migrating now.
    pub holder: Option<String>,
    /// Every migration, by position.
    pub migrations: Vec<Progress>,
}

/// Where one migration is.
#[derive(Clone, Debug, Serialize)]
pub struct Progress {
    /// Its id.
    pub id: String,
    /// Its position.
    pub position: u64,
    /// Its hash.
    pub hash: Digest,
    /// Where it is.
    pub phase: Phase,
    /// The phases it went through.
    pub trail: Vec<Passed>,
    /// Whether it is paused.
    pub paused: bool,
    /// Why it failed, if it did and was not undone.
    pub failed: Option<String>,
    /// Whether contract is done.
    pub contracted: bool,
    /// Milliseconds of grace that have certainly passed since the swap.
    pub grace_passed_ms: u64,
    /// Milliseconds of grace that are asked for.
    pub grace_ms: u64,
    /// Who asked for it.
    pub author: String,
    /// Rows per second at most.
    pub rate: Option<u64>,
    /// Rows copied and verified.
    pub ledger: Vec<LedgerLine>,
    /// Rows that do not fit and were set aside; none of a migration that was rolled back.
    pub set_aside: SetAside,
    /// Rows that there are to copy, by the estimate of the plan's time.
    pub rows_expected: u64,
    /// Rows per second of the copy so far.
    pub rows_per_s: Option<u64>,
    /// Milliseconds until the copy ends, at that speed.
    pub eta_ms: Option<u64>,
}

impl Migrator<'_> {
    /// Where everything is.
    ///
    /// # Errors
    /// What the database says; [`Error::Damaged`].
    pub fn status(&mut self) -> Result<Status, Error> {
        let records = self.records_if_any()?;
        if records.is_empty() {
            return Ok(Status { version: 0, holder: None, migrations: Vec::new() });
        }
        let holder = lease::holder(&mut *self.engine)?;
        let mut migrations = Vec::new();
        for record in records.iter() {
            let ledger = record::ledger(&mut *self.engine, record.id())?;
            let rows_expected = record.plan.rows;
            let copied = ledger
                .iter()
                .filter(|line| line.kind == "copy")
                .fold((0, 0), |sum, line| (sum.0 + line.seen, sum.1 + line.took_ms));
            let set_aside = match record.phase {
                Phase::RolledBack => SetAside::default(),
                _ => reject::count(&mut *self.engine, record.id(), None)?,
            };
            let rows_per_s = (copied.1 > 0).then(|| copied.0 * 1000 / copied.1);
            let left = rows_expected.saturating_sub(copied.0);
            migrations.push(Progress {
                id: record.id().to_owned(),
                position: record.position,
                hash: record.hash,
                phase: record.phase,
                trail: record.trail.clone(),
                paused: record.paused,
                failed: record.failed.clone(),
                contracted: record.contracted,
                grace_passed_ms: record.ticks.passed_ms,
                grace_ms: grace_ms(&record.plan),
                author: record.author.clone(),
                rate: record.rate,
                rows_expected,
                rows_per_s,
                eta_ms: (record.phase == Phase::Backfill)
                    .then(|| rows_per_s.filter(|rate| *rate > 0).map(|rate| left * 1000 / rate))
                    .flatten(),
                ledger,
                set_aside,
            });
        }
        Ok(Status { version: version(&records), holder, migrations })
    }

    /// The lowest schema version whose code the database still serves: the last one whose contract took something away.
    ///
    /// # Errors
    /// What the database says.
    pub fn floor(&mut self) -> Result<u64, Error> {
        let records = self.records_if_any()?;
        let contracted = records.iter().filter(|record| record.contracted && !record.plan.additive);
        Ok(contracted.map(|record| record.position).max().unwrap_or(0))
    }

    /// The statements with which a connection sees the schema of one version of the code: see [`Engine::prelude`].
    ///
    /// # Errors
    /// A refusal of a version that no code has here; what the database says.
    pub fn prelude(&mut self, code: &str) -> Result<Vec<String>, Error> {
        let known = line::labels(&self.records_if_any()?);
        let code = line::of_code(code);
        if !known.contains(&code) {
            let way_out = format!("Give one of these: {}.", known.join(", "));
            return Err(Error::refused(format!("no code has version `{code}` here"), way_out));
        }
        self.engine.prelude(&code)
    }

    /// The history, after its chain was checked, also against the head that was kept elsewhere.
    ///
    /// # Errors
    /// [`Error::History`].
    pub fn history(&mut self) -> Result<Vec<history::Entry>, Error> {
        match (state::is_installed(&mut *self.engine)?, &self.settings.head) {
            (true, kept) => history::read(&mut *self.engine, kept.as_ref()),
            (false, Some(kept)) if kept.number > 0 => Err(history::cut_off(kept, 0)),
            (false, _) => Ok(Vec::new()),
        }
    }

    /// Where the history ends: what to keep elsewhere.
    ///
    /// # Errors
    /// What the database says.
    pub fn head(&mut self) -> Result<history::Head, Error> {
        match state::is_installed(&mut *self.engine)? {
            true => history::head(&mut *self.engine),
            false => Ok(history::Head::genesis()),
        }
    }
}
