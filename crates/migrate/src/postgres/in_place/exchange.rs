//! The swap of a table that stays, and the way back: names change, columns are hidden, constraints come and go.

use super::{
    Before, FILLER, Reference, TOUCHER, add_columns, becoming_not_null, before, before_note, create_table,
    functions::untouched, here, is_filled, is_instant, not_null_check, note_table,
};
use crate::{
    change::{ColumnChange, ColumnFate, Fate, NewConstraint},
    engine::Task,
    error::Error,
    ir::Ident,
    postgres::{
        relation::Relation,
        session::{Session, ident},
        shape::{Shape, note},
        swap::definition,
        views::{self, Shown},
    },
};

/// Every column with its name until the swap and after it.
fn names<'s>(shape: &'s Shape<'_>) -> impl Iterator<Item = (&'s ColumnChange, &'s Ident, &'s Ident)> {
    shape
        .change
        .columns
        .iter()
        .filter_map(|column| Some((column, column.now.as_ref()?, column.then.as_ref()?)))
}

/// The statements of the swap.
pub(crate) fn swap_statements(
    session: &mut Session,
    task: &Task<'_>,
    shape: &Shape<'_>,
    source: Option<&Relation>,
) -> Result<Vec<String>, Error> {
    let art = &shape.artefacts;
    let table = here(shape);
    let then = shape.name_then();
    let mut sql = Vec::new();
    if !is_instant(shape) {
        sql.push(note(art, "primary", "target"));
    }
    if shape.change.fate == Fate::Create {
        if is_instant(shape) {
            sql.push(create_table(shape));
        }
        for index in &shape.change.add_indexes {
            sql.push(index_now(index, &table));
        }
        sql.extend(
            shape
                .change
                .add_constraints
                .iter()
                .map(|constraint| format!("ALTER TABLE {table} ADD {}", definition(shape, constraint))),
        );
        return Ok(sql);
    }
    let source = source.ok_or_else(|| Error::Damaged(format!("table `{}` is gone", shape.change.table)))?;
    if shape.change.fate == Fate::Drop {
        sql.extend(let_go(session, shape, source)?);
        sql.push(format!("ALTER TABLE {table} SET SCHEMA {}", ident(&art.old)));
        let shown: Vec<Shown> = source
            .columns
            .iter()
            .map(|column| Shown {
                column: column.name.clone(),
                name: column.name.clone(),
                default: None,
                like: Some(column.name.clone()),
            })
            .collect();
        let old = shape.retired();
        sql.extend(views::create_old(session, task.versions, shape.change, &old, source, &shown)?);
        sql.push(views::drop(&task.versions.new, shape.change.table.as_str()));
        return Ok(sql);
    }
    sql.extend(untouched(shape));
    if is_instant(shape) {
        if !shape.change.drop_constraints.is_empty() {
            sql.extend(note_table(shape));
            sql.push(before_note(shape, Some(source))?);
        }
        sql.extend(add_columns(shape));
        sql.extend(shape.change.add_indexes.iter().map(|index| index_now(index, &table)));
    }
    for name in &shape.change.drop_constraints {
        sql.push(format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {}", name.quoted()));
    }
    for name in becoming_not_null(shape).into_iter().filter(|_| !is_instant(shape)) {
        sql.push(format!("ALTER TABLE {table} ALTER COLUMN {} SET NOT NULL", name.quoted()));
        sql.push(format!("ALTER TABLE {table} DROP CONSTRAINT {}", ident(&not_null_check(name))));
    }
    for column in &shape.change.columns {
        match (&column.now, &column.then) {
            (Some(now), Some(_)) => {
                let now_quoted = now.quoted();
                if !column.nullable_now && column.nullable_then {
                    sql.push(format!("ALTER TABLE {table} ALTER COLUMN {now_quoted} DROP NOT NULL"));
                }
                if column.type_now != column.type_then {
                    sql.push(format!(
                        "ALTER TABLE {table} ALTER COLUMN {now_quoted} TYPE {}",
                        column.type_then.as_deref().unwrap_or("text")
                    ));
                }
                if column.default_now != column.default_then {
                    sql.push(default_statement(&table, &now_quoted, column.default_then.as_deref()));
                }
            }
            (Some(now), None) => {
                if !column.nullable_now && column.default_now.is_none() {
                    sql.push(format!("ALTER TABLE {table} ALTER COLUMN {} DROP NOT NULL", now.quoted()));
                }
            }
            (None, Some(added)) => {
                if let (true, Some(default), Some(_)) = (is_filled(column), &column.default_then, &column.up)
                {
                    sql.push(default_statement(&table, &added.quoted(), Some(default)));
                }
            }
            (None, None) => {}
        }
    }
    for constraint in &shape.change.add_constraints {
        if let NewConstraint::Unique { name, .. } = constraint {
            sql.push(format!("ALTER TABLE {table} ADD CONSTRAINT {0} UNIQUE USING INDEX {0}", name.quoted()));
        }
    }
    sql.extend(rename_columns(&table, names(shape).map(|(_, now, then)| (now.clone(), then.clone()))));
    if then != table {
        sql.push(format!("ALTER TABLE {table} RENAME TO {}", shape.change.name_then().quoted()));
    }
    if shape.change.needs_views() {
        let old: Vec<Shown> = source
            .columns
            .iter()
            .map(|column| {
                let then = names(shape)
                    .find(|(_, now, _)| now.as_str() == column.name)
                    .map(|(_, _, then)| then.as_str().to_owned());
                Shown {
                    column: then.unwrap_or_else(|| column.name.clone()),
                    name: column.name.clone(),
                    default: None,
                    like: Some(column.name.clone()),
                }
            })
            .filter(|shown| {
                !shape.change.columns.iter().any(|column| {
                    column.fate == ColumnFate::Add
                        && column.then.as_ref().is_some_and(|then| then.as_str() == shown.name)
                })
            })
            .collect();
        let new: Vec<Shown> = shape
            .change
            .columns
            .iter()
            .filter_map(|column| Some((column.then.as_ref()?, column.now.as_ref())))
            .map(|(then, now)| Shown {
                column: then.as_str().to_owned(),
                name: then.as_str().to_owned(),
                default: None,
                like: now.map(|now| now.as_str().to_owned()),
            })
            .collect();
        sql.extend(views::create_all(session, task.versions, shape.change, &then, source, &old, &new)?);
    }
    Ok(sql)
}

/// Takes those foreign keys off a table that is hidden by which its rows would keep clients from deleting others: nobody sees
/// them any more.
fn let_go(session: &mut Session, shape: &Shape<'_>, source: &Relation) -> Result<Vec<String>, Error> {
    let (table, hidden) = (here(shape), shape.retired());
    let rows = session.run(&format!(
        "SELECT con.conname, string_agg(format('h.%I IS NOT NULL', mine.attname), ' AND '), string_agg(format('o.%I = h.%I', theirs.attname, mine.attname), ' AND ') \
         FROM pg_constraint con CROSS JOIN LATERAL unnest(con.conkey, con.confkey) k(mine, theirs) \
         JOIN pg_attribute mine ON mine.attrelid = con.conrelid AND mine.attnum = k.mine \
         JOIN pg_attribute theirs ON theirs.attrelid = con.confrelid AND theirs.attnum = k.theirs \
         WHERE con.conrelid = {} AND con.contype = 'f' AND con.confdeltype IN ('a', 'r') AND con.confrelid <> con.conrelid GROUP BY con.oid, con.conname",
        source.oid
    ))?;
    let mut references = Vec::new();
    for row in rows {
        let [Some(name), Some(given), Some(same)] = &row[..] else { continue };
        let Some(key) = source.foreign_keys.iter().find(|key| key.name == *name) else { continue };
        let Some(other) = &key.target else { continue };
        references.push(Reference {
            name: name.clone(),
            definition: key.definition.clone(),
            valid: key.valid,
            orphans: format!(
                "SELECT count(*) FROM {hidden} AS h WHERE {given} AND NOT EXISTS (SELECT 1 FROM {other} AS o WHERE {same})"
            ),
        });
    }
    let mut sql: Vec<String> = references
        .iter()
        .map(|key| format!("ALTER TABLE {table} DROP CONSTRAINT {}", ident(&key.name)))
        .collect();
    let before = Before { references, ..Before::default() };
    let text = serde_json::to_string(&before).map_err(|error| Error::Damaged(error.to_string()))?;
    sql.push(note(&shape.artefacts, "before", &text));
    Ok(sql)
}

/// An index that is built while writers wait, as the migration says, or on a table that nobody knows yet.
fn index_now(index: &crate::change::NewIndex, table: &str) -> String {
    let unique = if index.unique { "UNIQUE " } else { "" };
    let filter = index.filter.as_ref().map(|filter| format!(" WHERE {filter}")).unwrap_or_default();
    format!(
        "CREATE {unique}INDEX {} ON {table} ({}){filter}",
        index.name.quoted(),
        crate::change::quoted(&index.columns)
    )
}

fn default_statement(table: &str, column: &str, default: Option<&str>) -> String {
    match default {
        Some(default) => format!("ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT {default}"),
        None => format!("ALTER TABLE {table} ALTER COLUMN {column} DROP DEFAULT"),
    }
}

/// Renames in two rounds, so that names may change places.
fn rename_columns(table: &str, pairs: impl Iterator<Item = (Ident, Ident)>) -> Vec<String> {
    let pairs: Vec<_> = pairs.filter(|(from, to)| from != to).collect();
    let crossing = |name: &Ident| pairs.iter().any(|(from, _)| from == name);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (at, (from, to)) in pairs.iter().enumerate() {
        if crossing(to) {
            let between = ident(&format!("_cutover_rename_{at}"));
            first.push(format!("ALTER TABLE {table} RENAME COLUMN {} TO {between}", from.quoted()));
            second.push(format!("ALTER TABLE {table} RENAME COLUMN {between} TO {}", to.quoted()));
        } else {
            first.push(format!("ALTER TABLE {table} RENAME COLUMN {} TO {}", from.quoted(), to.quoted()));
        }
    }
    first.extend(second);
    first
}

/// The statements of the way back after the swap. New columns go; what goes comes back.
pub(crate) fn swap_back_statements(
    session: &mut Session,
    task: &Task<'_>,
    shape: &Shape<'_>,
) -> Result<Vec<String>, Error> {
    let art = &shape.artefacts;
    let table = here(shape);
    let then = shape.name_then();
    let mut sql = Vec::new();
    if !is_instant(shape) {
        sql = vec![note(art, "primary", "source"), note(art, "rolled_back", "yes")];
    } else if !shape.change.drop_constraints.is_empty() {
        sql = vec![note(art, "rolled_back", "yes")];
    }
    match shape.change.fate {
        Fate::Create => {
            sql.push(format!("DROP TABLE {table}"));
            return Ok(sql);
        }
        Fate::Drop => {
            sql.extend(views::drop_old(session, task.versions, shape.change)?);
            sql.push(format!("ALTER TABLE {} SET SCHEMA {}", shape.retired(), ident(&shape.schema)));
            for key in before(session, shape)?.references {
                sql.push(format!(
                    "ALTER TABLE {table} ADD CONSTRAINT {} {} NOT VALID",
                    ident(&key.name),
                    key.definition
                ));
            }
            return Ok(sql);
        }
        Fate::Alter => {}
    }
    if shape.change.needs_views() {
        sql.extend(views::drop_old(session, task.versions, shape.change)?);
        sql.push(views::drop(&task.versions.new, shape.change.name_then().as_str()));
    }
    if then != table {
        sql.push(format!("ALTER TABLE {then} RENAME TO {}", shape.change.table.quoted()));
    }
    sql.extend(rename_columns(&table, names(shape).map(|(_, now, then)| (then.clone(), now.clone()))));
    for column in &shape.change.columns {
        if let (Some(now), Some(_)) = (&column.now, &column.then) {
            if column.nullable_now && !column.nullable_then {
                sql.push(format!("ALTER TABLE {table} ALTER COLUMN {} DROP NOT NULL", now.quoted()));
            }
            if column.default_now != column.default_then {
                sql.push(default_statement(&table, &now.quoted(), column.default_now.as_deref()));
            }
        }
    }
    sql.push(remove_added(shape, &table));
    let before = before(session, shape)?;
    for (name, definition, _) in &before.constraints {
        sql.push(format!("ALTER TABLE {table} ADD CONSTRAINT {} {definition} NOT VALID", ident(name)));
    }
    Ok(sql)
}

/// What was added to the table, taken away again; tolerates what never happened.
pub(super) fn remove_added(shape: &Shape<'_>, table: &str) -> String {
    let mut sql: Vec<String> = [FILLER, TOUCHER]
        .map(|trigger| format!("DROP TRIGGER IF EXISTS {} ON {table}", ident(trigger)))
        .into();
    for constraint in &shape.change.add_constraints {
        sql.push(format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {}", constraint.name().quoted()));
    }
    for name in becoming_not_null(shape) {
        sql.push(format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {}", ident(&not_null_check(name))));
    }
    for column in shape.change.columns.iter().filter(|column| column.fate == ColumnFate::Add) {
        if let Some(then) = &column.then {
            sql.push(format!("ALTER TABLE {table} DROP COLUMN IF EXISTS {}", then.quoted()));
        }
    }
    sql.join("; ")
}
