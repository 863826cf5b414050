//! What tests of both engines share: migrations from text, a migrator over an engine, watches that record or break off.

use std::{collections::VecDeque, sync::Mutex};

pub(crate) use cutover_core::causes::chain;
use cutover_migrate::{
    Error, engine::Engine, engine::Unwatched, engine::Watch, file, ir::Migration, run::Applied,
    run::Cancelled, run::Migrator, run::Report, run::Settings, run::no_functions, state::Phase,
};

/// A migration from the text of a file without its head.
pub(crate) fn migration(id: &str, after: Option<&str>, body: &str) -> Migration {
    let after = after.map_or(String::new(), |after| format!("after = \"{after}\"\n"));
    file::parse(&format!("format = 1\nid = \"{id}\"\n{after}{body}")).unwrap()
}

/// Settings for tests: small chunks, so that several are made.
pub(crate) fn settings() -> Settings {
    let mut settings = Settings { author: "tester".to_owned(), ..Settings::default() };
    settings.policy.chunk_rows = 300;
    settings.probe = false;
    settings
}

/// Remembers phases and places.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) phases: Mutex<Vec<Phase>>,
    pub(crate) points: Mutex<Vec<String>>,
}

impl Watch for Recorder {
    fn phase(&self, phase: Phase) {
        self.phases.lock().unwrap().push(phase);
    }

    fn point(&self, name: &str) {
        self.points.lock().unwrap().push(name.to_owned());
    }
}

/// A migrator without row functions.
pub(crate) fn migrator<'a>(engine: Box<dyn Engine>, watch: &'a dyn Watch) -> Migrator<'a> {
    Migrator::new(engine, settings(), watch, &no_functions)
}

/// The report of an apply that did something.
pub(crate) fn done(applied: Result<Applied, Error>) -> Report {
    match applied {
        Ok(Applied::Done(report)) => *report,
        Ok(Applied::Already) => panic!("it had been applied before"),
        Err(error) => panic!("{}", chain(&error)),
    }
}

/// A row function from a closure over one row.
pub(crate) struct ByRow<F>(pub(crate) F);

impl<
    F: FnMut(
            &[cutover_migrate::state::sql::Value],
        ) -> Result<Vec<cutover_migrate::state::sql::Value>, String>
        + Send,
> cutover_migrate::engine::RowFunction for ByRow<F>
{
    fn name(&self) -> &str {
        "by-row"
    }

    fn apply(
        &mut self,
        rows: &cutover_migrate::engine::RowChunk,
    ) -> Result<cutover_migrate::engine::RowChunk, Error> {
        let new: Result<Vec<_>, String> = rows.rows.iter().map(|row| (self.0)(row)).collect();
        let rows = new.map_err(|says| Error::Custom { name: "by-row".to_owned(), says })?;
        Ok(cutover_migrate::engine::RowChunk { columns: vec!["name".to_owned()], rows })
    }
}

/// A row function that gives back the last column it got.
pub(crate) struct Idle;

impl cutover_migrate::engine::RowFunction for Idle {
    fn name(&self) -> &str {
        "idle"
    }

    fn apply(
        &mut self,
        rows: &cutover_migrate::engine::RowChunk,
    ) -> Result<cutover_migrate::engine::RowChunk, Error> {
        let last = rows.columns.len() - 1;
        Ok(cutover_migrate::engine::RowChunk {
            columns: vec![rows.columns[last].clone()],
            rows: rows.rows.iter().map(|row| vec![row[last].clone()]).collect(),
        })
    }
}
/// Does something at the first passing of a place.
pub(crate) struct At<F: Fn() + Sync> {
    pub(crate) point: &'static str,
    pub(crate) action: F,
    pub(crate) done: Mutex<bool>,
}

impl<F: Fn() + Sync> At<F> {
    pub(crate) fn new(point: &'static str, action: F) -> Self {
        Self { point, action, done: Mutex::new(false) }
    }
}

impl<F: Fn() + Sync> Watch for At<F> {
    fn point(&self, name: &str) {
        if name == self.point && !std::mem::replace(&mut *self.done.lock().unwrap(), true) {
            (self.action)();
        }
    }
}

/// What an operator does at a place.
pub(crate) type Order = fn(&mut Migrator<'_>);

/// An operator with a connection of its own, who acts when the run passes given places, once each and in their order.
pub(crate) struct Operator<E> {
    engine: E,
    orders: Mutex<VecDeque<(&'static str, Order)>>,
}

impl<E: Fn() -> Box<dyn Engine> + Sync> Operator<E> {
    pub(crate) fn new<const N: usize>(engine: E, orders: [(&'static str, Order); N]) -> Self {
        Self { engine, orders: Mutex::new(orders.into()) }
    }

    /// That the run came to all the places.
    pub(crate) fn assert_gave_all(&self) {
        let left: Vec<&str> = self.orders.lock().unwrap().iter().map(|(place, _)| *place).collect();
        assert!(left.is_empty(), "the run did not come to {left:?}");
    }
}

impl<E: Fn() -> Box<dyn Engine> + Sync> Watch for Operator<E> {
    fn point(&self, name: &str) {
        let order = self.orders.lock().unwrap().pop_front_if(|(place, _)| *place == name);
        if let Some((_, order)) = order {
            order(&mut migrator((self.engine)(), &Unwatched));
        }
    }
}

/// A cancellation and a pause that come after the run asked for the last time; and both once it is over.
pub(crate) fn orders_at_the_swap(engine: &(dyn Fn() -> Box<dyn Engine> + Sync), change: &Migration) {
    let cancelled = Operator::new(
        engine,
        [("swap.before", |operator| assert_eq!(operator.cancel("0001").unwrap(), Cancelled::Asked))],
    );
    let ended = migrator(engine(), &cancelled).apply(change, None);
    cancelled.assert_gave_all();
    assert!(
        matches!(&ended, Err(Error::RolledBack { cause, .. }) if matches!(**cause, Error::Cancelled)),
        "{ended:?}"
    );
    let paused = Operator::new(
        engine,
        [
            ("swap.before", |operator| operator.pause("0001", true).unwrap()),
            ("paused", |operator| operator.pause("0001", false).unwrap()),
        ],
    );
    done(migrator(engine(), &paused).apply(change, None));
    paused.assert_gave_all();
    let mut operator = migrator(engine(), &Unwatched);
    assert!(matches!(operator.pause("0001", true), Err(Error::Phase { .. })));
    assert_eq!(operator.cancel("0001").unwrap(), Cancelled::Undone);
}
