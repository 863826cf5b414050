//! Constraints of a table that stays: what the rows have to hold, added without blocking anybody.

use super::{
    becoming_not_null, before, fill::fill_chunk, functions::drain_touched, has_walk, here, is_instant,
    name_until_swap, not_null_check,
};
use crate::{
    change::{Fate, NewConstraint},
    engine::{Pace, Task, Work},
    error::{Error, SqlErrorKind},
    ir::Ident,
    postgres::{
        PostgresEngine,
        build::{concurrently, duplicates},
        copy::{Range, each_chunk, moved},
        polite::{Locks, ddl},
        relation::{Relation, find},
        session::{Session, ident, literal, qualified},
        shape::Shape,
        swap::{definition, validate},
        sync::{Sync as Dual, Way},
    },
};

/// CONSISTENCY_CHECK: the migration's own checks hold for every row; constraints are added and validated.
pub(crate) fn verify(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    source: &Relation,
    pace: &dyn Pace,
) -> Result<Work, Error> {
    let table = here(shape);
    let mut work = Work::default();
    if is_instant(shape) || shape.change.fate != Fate::Alter {
        return Ok(work);
    }
    work.resynced += drain_touched(engine, task, shape)?;
    hold(&mut engine.session, task, shape, "true")?;
    let conditions: Vec<String> =
        becoming_not_null(shape).iter().map(|name| format!("{} IS NULL", name.quoted())).collect();
    let all = conditions.join(" OR ");
    if !conditions.is_empty() {
        // Rows that clients wrote behind the walk get another pass, twice; what is left then does not fit.
        for pass in 0..3 {
            let bad = engine.session.value(&format!(
                "SELECT count(*) FROM (SELECT 1 FROM {table} AS s WHERE {all} LIMIT 100000) AS x"
            ))?;
            let bad: u64 = bad.and_then(|text| text.parse().ok()).unwrap_or(0);
            if bad == 0 {
                break;
            }
            if pass == 2 || !has_walk(shape) {
                return Err(misfits(&mut engine.session, task, shape, &all, bad)?);
            }
            let dual = Dual::new(shape, Way::Forward);
            let whole = vec![Range { number: u64::MAX >> 1, low: None, high: None, at: None }];
            let again = each_chunk(engine, task, shape, pace, whole, &|engine, range, go| {
                let stepped = fill_chunk(engine, task, shape, &dual, range, go.rows, Some(&all));
                moved(range, stepped)
            })?;
            work.resynced += again.done;
        }
        work.done = source.rows_estimate;
    }
    let mut constraints = Vec::new();
    for name in becoming_not_null(shape) {
        constraints.push((table.clone(), add_not_null(engine, task, &table, name)?));
    }
    for constraint in &shape.change.add_constraints {
        let others = match constraint {
            NewConstraint::Unique { .. } => continue,
            NewConstraint::ForeignKey { references, .. } => {
                vec![qualified(&shape.schema, references.table.as_str())]
            }
            NewConstraint::Check { .. } => Vec::new(),
        };
        let text = before_swap(shape, constraint);
        add_constraint(engine, task, &table, &others, constraint.name().as_str(), &definition(shape, &text))?;
        constraints.push((table.clone(), constraint.name().as_str().to_owned()));
    }
    validate(&mut engine.session, task, &constraints).map_err(|error| match error {
        Error::Sql(error) if error.kind == SqlErrorKind::Data => {
            Error::Rejected { table: shape.change.table.clone(), count: 1, sample: vec![error.message] }
        }
        other => other,
    })?;
    Ok(work)
}

/// A new constraint by the names that columns have until the swap. The text of a check is the migration's own.
fn before_swap(shape: &Shape<'_>, constraint: &NewConstraint) -> NewConstraint {
    match constraint {
        NewConstraint::ForeignKey { name, columns, references, on_delete, on_update } => {
            NewConstraint::ForeignKey {
                name: name.clone(),
                columns: columns
                    .iter()
                    .filter_map(|name| Ident::ours(name_until_swap(shape, name)).ok())
                    .collect(),
                references: references.clone(),
                on_delete: on_delete.clone(),
                on_update: on_update.clone(),
            }
        }
        other => other.clone(),
    }
}

/// The rows that satisfy `which` (over `s`) hold what the row steps say of them.
///
/// # Errors
/// [`Error::Rejected`] with those that do not.
pub(super) fn hold(
    session: &mut Session,
    task: &Task<'_>,
    shape: &Shape<'_>,
    which: &str,
) -> Result<(), Error> {
    let checks: Vec<String> =
        shape.change.checks().iter().map(|check| format!("({check}) IS NOT TRUE")).collect();
    if checks.is_empty() {
        return Ok(());
    }
    let failing = format!("({which}) AND ({})", checks.join(" OR "));
    let count = session.value(&format!("SELECT count(*) FROM {} AS s WHERE {failing}", here(shape)))?;
    match count.and_then(|text| text.parse().ok()).unwrap_or(0) {
        0 => Ok(()),
        count => Err(misfits(session, task, shape, &failing, count)?),
    }
}

/// The rows that fail, as an error.
fn misfits(
    session: &mut Session,
    task: &Task<'_>,
    shape: &Shape<'_>,
    condition: &str,
    count: u64,
) -> Result<Error, Error> {
    let key = Dual::new(shape, Way::Forward).key_text("s");
    let key = if key.is_empty() { "s.ctid::text".to_owned() } else { key };
    let rows = session.run(&format!(
        "SELECT json_build_array({key})::text FROM {} AS s WHERE {condition} LIMIT {}",
        here(shape),
        task.policy.sample
    ))?;
    Ok(Error::Rejected {
        table: shape.change.table.clone(),
        count,
        sample: rows
            .into_iter()
            .filter_map(|row| row.into_iter().next().flatten())
            .map(|key| format!("{} = {key}", shape.key.join(", ")))
            .collect(),
    })
}

/// The check by which a column becomes NOT NULL, not validated yet; its name.
fn add_not_null(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    table: &str,
    column: &Ident,
) -> Result<String, Error> {
    let name = not_null_check(column);
    let text = format!("CONSTRAINT {} CHECK ({} IS NOT NULL)", ident(&name), column.quoted());
    add_constraint(engine, task, table, &[], &name, &text)?;
    Ok(name)
}

fn add_constraint(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    table: &str,
    others: &[String],
    name: &str,
    text: &str,
) -> Result<(), Error> {
    if constraint_exists(&mut engine.session, table, name)? {
        return Ok(());
    }
    let mode = if others.is_empty() { "ACCESS EXCLUSIVE" } else { "SHARE ROW EXCLUSIVE" };
    let mut locks = Locks { gentle: vec![table.to_owned()], strong: vec![(table.to_owned(), mode)] };
    locks.strong.extend(others.iter().map(|other| (other.clone(), mode)));
    let sql = format!("ALTER TABLE {table} ADD {text} NOT VALID");
    ddl(&mut engine.session, task, &locks, &mut |_| Ok(sql.clone())).map(drop)
}

fn constraint_exists(session: &mut Session, table: &str, name: &str) -> Result<bool, Error> {
    session.is_true(&format!(
        "SELECT EXISTS (SELECT 1 FROM pg_constraint WHERE conrelid = {}::regclass AND conname = {})",
        literal(table),
        literal(name)
    ))
}

/// After the way back: NOT NULL and constraints that were taken off are put on again without blocking anybody.
pub(crate) fn restore_constraints(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
) -> Result<(), Error> {
    if shape.change.fate != Fate::Alter {
        return Ok(());
    }
    let table = here(shape);
    let before = before(&mut engine.session, shape)?;
    let mut pending: Vec<(String, String)> = before
        .constraints
        .iter()
        .filter(|(_, _, valid)| *valid)
        .map(|(name, ..)| (table.clone(), name.clone()))
        .collect();
    let mut not_null: Vec<&Ident> = Vec::new();
    for column in &shape.change.columns {
        let lost = match (&column.now, &column.then) {
            (Some(_), Some(_)) => !column.nullable_now && column.nullable_then,
            (Some(_), None) => !column.nullable_now && column.default_now.is_none(),
            _ => false,
        };
        if let (true, Some(now)) = (lost, &column.now) {
            pending.push((table.clone(), add_not_null(engine, task, &table, now)?));
            not_null.push(now);
        }
    }
    validate(&mut engine.session, task, &pending)?;
    for (name, kind, tail, rest) in &before.keys {
        let exists = constraint_exists(&mut engine.session, &table, name)?;
        let oid = find(&mut engine.session, &shape.schema, shape.change.table.as_str())?;
        if let (false, Some(oid)) = (exists, oid) {
            concurrently(
                engine,
                task,
                &shape.schema,
                &oid,
                name,
                &|| format!("CREATE UNIQUE INDEX CONCURRENTLY {} ON {table} {tail}", ident(name)),
                None,
            )
            .map_err(|error| duplicates(error, shape.change.table.clone()))?;
            let sql =
                format!("ALTER TABLE {table} ADD CONSTRAINT {0} {kind} USING INDEX {0}{rest}", ident(name));
            ddl(&mut engine.session, task, &Locks::exclusive(&table), &mut |_| Ok(sql.clone()))?;
        }
    }
    if !not_null.is_empty() {
        let sql: Vec<String> = not_null
            .iter()
            .map(|name| format!("ALTER TABLE {table} ALTER COLUMN {} SET NOT NULL; ALTER TABLE {table} DROP CONSTRAINT {}", name.quoted(), ident(&not_null_check(name))))
            .collect();
        ddl(&mut engine.session, task, &Locks::exclusive(&table), &mut |_| Ok(sql.join("; ")))?;
    }
    Ok(())
}

/// After the way back of a table that was hidden: its foreign keys hold for every row again. One for which that is not so stays as
/// it is; who was not to lose anything was told before ([`orphans`](super::orphans)).
pub(super) fn restore_references(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
) -> Result<(), Error> {
    let table = here(shape);
    for key in before(&mut engine.session, shape)?.references.iter().filter(|key| key.valid) {
        match validate(&mut engine.session, task, &[(table.clone(), key.name.clone())]) {
            Err(Error::Sql(error)) if error.kind == SqlErrorKind::Data => {
                task.watch.says(&format!("foreign key `{}` stays NOT VALID: {}", key.name, error.message));
            }
            other => other?,
        }
    }
    Ok(())
}

/// After the way back: columns that were widened in place are as narrow as before, if that takes no longer than clients may wait.
pub(super) fn restore_types(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
) -> Result<(), Error> {
    let table = here(shape);
    for column in shape.change.columns.iter().filter(|column| column.type_now != column.type_then) {
        let (Some(now), Some(_), Some(kind)) = (&column.now, &column.then, &column.type_now) else {
            continue;
        };
        let narrow = format!("ALTER TABLE {table} ALTER COLUMN {} TYPE {kind}", now.quoted());
        let sql = format!("SET LOCAL statement_timeout = '{}ms'; {narrow}", task.policy.hold_ms);
        match ddl(&mut engine.session, task, &Locks::exclusive(&table), &mut |_| Ok(sql.clone())) {
            Err(Error::Sql(error)) if error.kind != SqlErrorKind::Connection => {
                task.watch.says(&format!(
                    "`{}.{now}` stays as wide as it was made ({}); when nobody is at work, run: {narrow}",
                    shape.change.table, error.message
                ));
            }
            other => _ = other?,
        }
    }
    Ok(())
}
