//! Changes that need no second table: instant DDL, concurrent indexes and constraints, columns filled in place, names
//! changed and columns hidden by views, tables that come or go.

mod checks;
mod exchange;
mod fill;
mod functions;

use serde::{Deserialize, Serialize};

use self::{
    checks::{restore_constraints, restore_references, restore_types},
    exchange::remove_added,
    functions::restore_rows,
};
use super::{
    PostgresEngine,
    build::drop_artefacts,
    copy::range_table,
    polite::{Locks, ddl, fence, unfence},
    relation::{IndexDef, Relation, find, foreign_order},
    session::{Session, ident, literal, qualified},
    shape::{Shape, note, read_note},
    views,
};
use crate::{
    change::{ColumnChange, ColumnFate, Fate, NewConstraint, Tactic},
    engine::Task,
    error::{Error, Refusal},
    ir::Ident,
};

pub(crate) use self::{
    checks::verify,
    exchange::{swap_back_statements, swap_statements},
    fill::backfill,
    functions::{drain_last, drain_touched},
};

/// The BEFORE trigger that fills a new column while the old version writes rows without it.
const FILLER: &str = "~cutover_fill";
/// The AFTER trigger that remembers rows which clients write while row functions run.
const TOUCHER: &str = "~cutover_touch";

/// What the way back has to know.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Before {
    /// Constraints that the swap drops: name, definition, whether it was valid.
    constraints: Vec<(String, String, bool)>,
    /// Constraints with an index that the swap drops: name, `PRIMARY KEY` or `UNIQUE`, the index after its table's name, and
    /// what follows in the constraint.
    #[serde(default)]
    keys: Vec<(String, String, String, String)>,
    /// Foreign keys that a hidden table does not have meanwhile.
    #[serde(default)]
    references: Vec<Reference>,
}

/// A foreign key that a table has no more while it is hidden.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Reference {
    name: String,
    definition: String,
    valid: bool,
    /// A query of how many rows have lost what they refer to.
    orphans: String,
}

/// Why the rows of a hidden table cannot come back as they are: what they refer to was deleted meanwhile.
pub(crate) fn orphans(session: &mut Session, shape: &Shape<'_>) -> Result<Vec<Refusal>, Error> {
    let mut found = Vec::new();
    for key in before(session, shape)?.references.iter().filter(|key| key.valid) {
        let count = session.value(&key.orphans)?.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        if count > 0 {
            found.push(Refusal::new(
                format!(
                    "{count} row(s) of `{}` refer by `{}` to rows that were deleted since",
                    shape.change.table, key.name
                ),
                "Delete them through the old version's view, or accept with `--accept-loss` that this foreign key stays NOT VALID.",
            ));
        }
    }
    Ok(found)
}

/// Whether a new column cannot be added with its values at once.
fn is_filled(column: &ColumnChange) -> bool {
    column.fate == ColumnFate::Add
        && !column.generated
        && (column.up.is_some() || (column.default_then.is_some() && !column.default_constant))
}

fn filled<'c>(shape: &'c Shape<'_>) -> Vec<&'c ColumnChange> {
    shape.change.columns.iter().filter(|column| is_filled(column)).collect()
}

/// Whether a chunked walk over the rows is needed.
pub(crate) fn has_walk(shape: &Shape<'_>) -> bool {
    !filled(shape).is_empty() || !shape.change.rows.is_empty()
}

/// Columns that become NOT NULL by way of a validated check.
fn becoming_not_null<'s>(shape: &'s Shape<'_>) -> Vec<&'s Ident> {
    let columns = shape.change.columns.iter().filter(|column| !column.nullable_then);
    let columns = columns.filter(|column| match column.fate {
        ColumnFate::Add => is_filled(column) || (column.default_then.is_none() && !column.generated),
        ColumnFate::Alter | ColumnFate::Keep => column.nullable_now,
        ColumnFate::Drop => false,
    });
    columns.filter_map(|column| column.now.as_ref().or(column.then.as_ref())).collect()
}

fn not_null_check(column: &Ident) -> String {
    crate::state::artefact("nn", &[column.as_str()])
}

/// The table as it is until the swap.
fn here(shape: &Shape<'_>) -> String {
    shape.name_now()
}

/// Whether everything happens in the swap's transaction, and nothing has to be kept for later.
fn is_instant(shape: &Shape<'_>) -> bool {
    shape.change.tactic == Tactic::Instant
}

/// A column's name until the swap, by its name afterwards.
fn name_until_swap(shape: &Shape<'_>, then: &Ident) -> String {
    let column = shape.change.columns.iter().find(|column| column.then.as_ref() == Some(then));
    column.and_then(|column| column.now.as_ref()).unwrap_or(then).as_str().to_owned()
}

fn before(session: &mut Session, shape: &Shape<'_>) -> Result<Before, Error> {
    let text =
        read_note(session, &shape.artefacts, "before")?.unwrap_or_else(|| "{\"constraints\":[]}".to_owned());
    serde_json::from_str(&text).map_err(|error| Error::Damaged(error.to_string()))
}

/// SHADOW_CREATE: new tables and columns.
pub(crate) fn expand(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
    source: Option<&Relation>,
) -> Result<(), Error> {
    let art = &shape.artefacts;
    let session = &mut engine.session;
    if is_instant(shape) || read_note(session, art, "expanded")?.is_some() {
        return Ok(());
    }
    if let (true, Some(source)) = (has_walk(shape), source)
        && let Some(refusal) = foreign_order(session, source)?
    {
        return Err(Error::Refused(vec![refusal]));
    }
    let table = here(shape);
    let mut sql = note_table(shape);
    sql.extend([
        format!("CREATE SCHEMA IF NOT EXISTS {}", ident(&art.old)),
        format!(
            "CREATE TABLE IF NOT EXISTS {} (step int, row_key text, before text NOT NULL, after text NOT NULL, PRIMARY KEY (step, row_key))",
            art.own("image")
        ),
        range_table(shape),
        note(art, "expanded", "yes"),
        note(art, "schema", &shape.schema),
    ]);
    sql.extend(source.map(|source| note(art, "source", &source.oid)));
    let mut locks = Locks::default();
    match shape.change.fate {
        Fate::Create => sql.push(create_table(shape)),
        Fate::Alter => {
            if let Some(statement) = add_columns(shape) {
                sql.push(statement);
                locks = Locks::exclusive(&table);
            }
            for column in filled(shape) {
                if let (Some(default), Some(then), None) = (&column.default_then, &column.then, &column.up) {
                    sql.push(format!(
                        "ALTER TABLE {table} ALTER COLUMN {} SET DEFAULT {default}",
                        then.quoted()
                    ));
                }
            }
            sql.push(before_note(shape, source)?);
        }
        Fate::Drop => {}
    }
    let statements = sql.join("; ");
    task.point("expand.before");
    ddl(session, task, &locks, &mut |_| Ok(statements.clone()))?;
    task.point("expand.after");
    Ok(())
}

fn create_table(shape: &Shape<'_>) -> String {
    let mut parts: Vec<String> =
        shape.change.columns.iter().filter_map(|column| column_text(column, true)).collect();
    if !shape.change.primary_key.is_empty() {
        parts.push(format!("PRIMARY KEY ({})", crate::change::quoted(&shape.change.primary_key)));
    }
    format!("CREATE TABLE {} ({})", here(shape), parts.join(", "))
}

/// New columns: whole when their values come at once, bare when they are filled in later.
fn add_columns(shape: &Shape<'_>) -> Option<String> {
    let later = becoming_not_null(shape);
    let columns: Vec<String> = shape
        .change
        .columns
        .iter()
        .filter(|column| column.fate == ColumnFate::Add)
        .filter_map(|column| {
            let whole = is_instant(shape) || (!is_filled(column) && !later.contains(&column.then.as_ref()?));
            column_text(column, whole)
        })
        .map(|text| format!("ADD COLUMN {text}"))
        .collect();
    if columns.is_empty() {
        None
    } else {
        Some(format!("ALTER TABLE {} {}", here(shape), columns.join(", ")))
    }
}

/// What the way back has to know of constraints that go.
fn before_note(shape: &Shape<'_>, source: Option<&Relation>) -> Result<String, Error> {
    let goes = |one: &str| shape.change.drop_constraints.iter().any(|name| name.as_str() == one);
    let key = |index: &IndexDef| match index.constraint.as_ref()? {
        ('p', rest) => Some((index.name.clone(), "PRIMARY KEY".to_owned(), index.tail.clone(), rest.clone())),
        ('u', rest) => Some((index.name.clone(), "UNIQUE".to_owned(), index.tail.clone(), rest.clone())),
        _ => None,
    };
    let before = Before {
        keys: source
            .iter()
            .flat_map(|source| &source.indexes)
            .filter(|index| goes(&index.name))
            .filter_map(key)
            .collect(),
        constraints: source
            .iter()
            .flat_map(|source| source.checks.iter().chain(&source.foreign_keys))
            .filter(|one| goes(&one.name))
            .map(|one| (one.name.clone(), one.definition.clone(), one.valid))
            .collect(),
        references: Vec::new(),
    };
    let text = serde_json::to_string(&before).map_err(|error| Error::Damaged(error.to_string()))?;
    Ok(note(&shape.artefacts, "before", &text))
}

/// Where notes are kept.
fn note_table(shape: &Shape<'_>) -> Vec<String> {
    let art = &shape.artefacts;
    vec![
        format!("CREATE SCHEMA IF NOT EXISTS {}", ident(&art.base)),
        format!("CREATE TABLE IF NOT EXISTS {} (key text PRIMARY KEY, value text NOT NULL)", art.own("note")),
    ]
}

/// A column definition; `whole`: with NOT NULL and the default.
fn column_text(column: &ColumnChange, whole: bool) -> Option<String> {
    let then = column.then.as_ref()?;
    let mut text = format!("{} {}", then.quoted(), column.type_then.as_deref().unwrap_or("text"));
    if whole {
        if !column.nullable_then {
            text.push_str(" NOT NULL");
        }
        if let Some(default) = &column.default_then {
            text.push_str(&format!(" DEFAULT {default}"));
        }
    }
    Some(text)
}

/// DUAL_WRITE: rows that the old version writes get the new column's value.
pub(crate) fn dual_write(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
) -> Result<(), Error> {
    let ups: Vec<(&ColumnChange, &String)> = shape
        .change
        .columns
        .iter()
        .filter(|column| is_filled(column))
        .filter_map(|column| Some((column, column.up.as_ref()?)))
        .collect();
    let mut sql = functions::touch(shape);
    if (ups.is_empty() && sql.is_empty()) || is_instant(shape) || shape.change.fate != Fate::Alter {
        return Ok(());
    }
    let table = here(shape);
    if !ups.is_empty() {
        sql.extend(filler(shape, &ups));
    }
    let sql = sql.join("; ");
    let locks = Locks { gentle: vec![table.clone()], strong: vec![(table, "SHARE ROW EXCLUSIVE")] };
    ddl(&mut engine.session, task, &locks, &mut |_| Ok(sql.clone())).map(drop)
}

/// The trigger that gives new columns their values in rows of the old version.
fn filler(shape: &Shape<'_>, ups: &[(&ColumnChange, &String)]) -> Vec<String> {
    let table = here(shape);
    let row = shape.new_row_of_old();
    let fills: String = ups
        .iter()
        .filter_map(|(column, up)| {
            let name = column.then.as_ref()?.quoted();
            // A value that is taken away by an update was taken away on purpose: the old version does not know the column.
            Some(format!(
                "IF NEW.{name} IS NULL AND (TG_OP = 'INSERT' OR OLD.{name} IS NULL) THEN NEW.{name} := (SELECT ({up}) FROM {row}); END IF; "
            ))
        })
        .collect();
    // A value that cannot be computed must not fail the application: the column stays NULL, and the check finds the row.
    let body = format!(
        "#variable_conflict use_column\nBEGIN BEGIN {fills} EXCEPTION WHEN OTHERS THEN NULL; END; RETURN NEW; END"
    );
    let function = shape.artefacts.own("fill");
    let trigger = ident(FILLER);
    vec![
        format!(
            "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS {}",
            literal(&body)
        ),
        format!(
            "CREATE OR REPLACE TRIGGER {trigger} BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {function}()"
        ),
        format!("ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}"),
    ]
}

/// Takes back everything before the swap.
pub(crate) fn undo(engine: &mut PostgresEngine, task: &Task<'_>, shape: &Shape<'_>) -> Result<(), Error> {
    let table = here(shape);
    let session = &mut engine.session;
    if find(session, &shape.artefacts.base, "note")?.is_none() {
        return Ok(());
    }
    // From here on rows lose what the walk gave them: a run that finds this must not go on from its ranges.
    session
        .transaction(&format!("{}; {}", fence(task.epoch), note(&shape.artefacts, "undone", "yes")))
        .map_err(unfence(task.epoch))?;
    restore_rows(engine, task, shape)?;
    let session = &mut engine.session;
    match shape.change.fate {
        Fate::Create => {
            session
                .transaction(&format!("{}; DROP TABLE IF EXISTS {table}", fence(task.epoch)))
                .map_err(unfence(task.epoch))?;
        }
        Fate::Alter => {
            drop_indexes(
                session,
                task,
                shape,
                shape.change.add_indexes.iter().map(|index| index.name.as_str()),
            )?;
            let unique =
                shape.change.add_constraints.iter().filter(|one| matches!(one, NewConstraint::Unique { .. }));
            drop_indexes(session, task, shape, unique.map(|one| one.name().as_str()))?;
            let sql = remove_added(shape, &table);
            ddl(session, task, &Locks::exclusive(&table), &mut |_| Ok(sql.clone()))?;
        }
        Fate::Drop => {}
    }
    remove_artefacts(engine, task, shape)
}

/// After the swap was taken back: indexes that were built go, artefacts go.
pub(crate) fn after_swap_back(
    engine: &mut PostgresEngine,
    task: &Task<'_>,
    shape: &Shape<'_>,
) -> Result<(), Error> {
    if !is_instant(shape) && find(&mut engine.session, &shape.artefacts.base, "note")?.is_none() {
        return Ok(());
    }
    if shape.change.fate == Fate::Alter {
        restore_rows(engine, task, shape)?;
        restore_constraints(engine, task, shape)?;
        restore_types(engine, task, shape)?;
        drop_indexes(
            &mut engine.session,
            task,
            shape,
            shape.change.add_indexes.iter().map(|index| index.name.as_str()),
        )?;
    }
    if shape.change.fate == Fate::Drop {
        restore_references(engine, task, shape)?;
    }
    remove_artefacts(engine, task, shape)
}

fn remove_artefacts(engine: &mut PostgresEngine, task: &Task<'_>, shape: &Shape<'_>) -> Result<(), Error> {
    let sql = format!("{}; {}", fence(task.epoch), drop_artefacts(shape, &[]));
    engine.session.transaction(&sql).map(drop).map_err(unfence(task.epoch))
}

fn drop_indexes<'n>(
    session: &mut Session,
    task: &Task<'_>,
    shape: &Shape<'_>,
    names: impl Iterator<Item = &'n str>,
) -> Result<(), Error> {
    for name in names {
        session.run(&fence(task.epoch)).map_err(unfence(task.epoch))?;
        let of_constraint = session.is_true(&format!(
            "SELECT EXISTS (SELECT 1 FROM pg_constraint con JOIN pg_class c ON c.oid = con.conindid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = {} AND c.relname = {} AND con.contype <> 'f')",
            literal(&shape.schema),
            literal(name)
        ))?;
        if !of_constraint {
            session.run("SET lock_timeout = 0")?;
            let dropped =
                session.run(&format!("DROP INDEX CONCURRENTLY IF EXISTS {}", qualified(&shape.schema, name)));
            session.run("SET lock_timeout = '5s'")?;
            dropped?;
        }
    }
    Ok(())
}

/// Contract: what goes, goes.
pub(crate) fn contract(engine: &mut PostgresEngine, task: &Task<'_>, shape: &Shape<'_>) -> Result<(), Error> {
    let session = &mut engine.session;
    if find(session, &shape.artefacts.base, "note")?.is_none() {
        return Ok(());
    }
    let then = shape.name_then();
    match shape.change.fate {
        Fate::Create => {}
        Fate::Drop => {
            let old = shape.retired();
            let mut sql = views::drop_old(session, task.versions, shape.change)?;
            sql.push(format!("DROP TABLE IF EXISTS {old}"));
            let sql = sql.join("; ");
            let exists = find(session, &shape.artefacts.old, shape.change.table.as_str())?.is_some();
            let locks = if exists { Locks::exclusive(&old) } else { Locks::default() };
            ddl(session, task, &locks, &mut |_| Ok(sql.clone()))?;
        }
        Fate::Alter => {
            drop_indexes(session, task, shape, shape.change.drop_indexes.iter().map(Ident::as_str))?;
            let mut sql = Vec::new();
            if shape.change.needs_views() {
                sql.extend(views::drop_old(session, task.versions, shape.change)?);
            }
            sql.push(format!("DROP TRIGGER IF EXISTS {} ON {then}", ident(FILLER)));
            for column in shape.change.columns.iter().filter(|column| column.fate == ColumnFate::Drop) {
                if let Some(now) = &column.now {
                    sql.push(format!("ALTER TABLE {then} DROP COLUMN IF EXISTS {}", now.quoted()));
                }
            }
            let mut locks = Locks::exclusive(&then);
            let views = views::existing(session, task.versions, shape.change)?;
            for view in views {
                locks.strong.insert(0, (view, "ACCESS EXCLUSIVE"));
            }
            let sql = sql.join("; ");
            ddl(session, task, &locks, &mut |_| Ok(sql.clone()))?;
        }
    }
    remove_artefacts(engine, task, shape)
}
