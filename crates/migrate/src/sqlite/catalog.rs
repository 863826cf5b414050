//! Reading SQLite's catalog.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _};

use super::{
    ddl::{self, Rule},
    sql_error,
};
use crate::{
    catalog::{
        Catalog, Column, Constraint, ConstraintKind, Dependent, Facts, Index, Reference, Size, Table,
        TableKind,
    },
    error::{Error, Refusal},
    ir::{Dialect, Ident},
};

/// The least that a row takes in a table: its place in the page and its header.
const ROW_BYTES_MIN: u64 = 4;

pub(super) fn read(connection: &Connection, path: &Path, names: &[Ident]) -> Result<Catalog, Error> {
    let mut tables = std::collections::BTreeMap::new();
    for name in names {
        if let Some(table) = table(connection, name)? {
            tables.insert(name.clone(), table);
        }
    }
    let free = rustix::fs::statvfs(path).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    Ok(Catalog {
        dialect: Dialect::Sqlite,
        server_version: rusqlite::version().to_owned(),
        tables,
        facts: Facts { disk_free_bytes: free, oldest_transaction: None, obstacles: Vec::new() },
    })
}

/// Runs a query of text columns and returns all rows.
pub(super) fn texts(
    connection: &Connection,
    sql: &str,
    parameters: &[&str],
) -> Result<Vec<Vec<Option<String>>>, Error> {
    let run = || -> rusqlite::Result<_> {
        let mut statement = connection.prepare_cached(sql)?;
        let width = statement.column_count();
        let rows = statement.query_map(rusqlite::params_from_iter(parameters), |row| {
            (0..width)
                .map(|at| row.get::<_, Option<rusqlite::types::Value>>(at))
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.collect::<rusqlite::Result<Vec<_>>>()
    };
    let rows = run().map_err(|error| Error::Sql(sql_error(error, sql)))?;
    let text = |value: Option<rusqlite::types::Value>| match value {
        Some(rusqlite::types::Value::Text(text)) => Some(text),
        Some(rusqlite::types::Value::Integer(number)) => Some(number.to_string()),
        Some(rusqlite::types::Value::Real(number)) => Some(number.to_string()),
        _ => None,
    };
    Ok(rows.into_iter().map(|row| row.into_iter().map(text).collect()).collect())
}

/// The statement that made a table; `None` when there is no such table.
pub(super) fn definition(connection: &Connection, name: &str) -> Result<Option<String>, Error> {
    let sql = "SELECT sql FROM main.sqlite_schema WHERE type = 'table' AND name = ?1";
    let found = connection.query_row(sql, [name], |row| row.get::<_, String>(0)).optional();
    found.map_err(|error| Error::Sql(sql_error(error, sql)))
}

/// What is known of an index: name, unique, origin, the rows it holds when they are not all, and its key columns with collations
/// (an expression has no name).
pub(super) struct IndexInfo {
    pub(super) name: String,
    pub(super) unique: bool,
    pub(super) origin: String,
    pub(super) filter: Option<String>,
    pub(super) columns: Vec<(Option<String>, String)>,
    pub(super) sql: Option<String>,
}

pub(super) fn indexes(connection: &Connection, table: &str) -> Result<Vec<IndexInfo>, Error> {
    let list = texts(
        connection,
        "SELECT l.name, l.\"unique\", l.origin, l.partial, s.sql FROM pragma_index_list(?1) AS l LEFT JOIN main.sqlite_schema AS s \
         ON s.type = 'index' AND s.name = l.name ORDER BY l.seq DESC",
        &[table],
    )?;
    let mut found = Vec::new();
    for row in list {
        let name = row[0].clone().unwrap_or_default();
        let columns = texts(
            connection,
            "SELECT name, coll FROM pragma_index_xinfo(?1) WHERE \"key\" = 1 ORDER BY seqno",
            &[&name],
        )?;
        let filter =
            match row[3].as_deref() {
                Some("1") => Some(row[4].as_deref().and_then(ddl::index_filter).ok_or_else(|| {
                    Error::Damaged(format!("the definition of index `{name}` cannot be read"))
                })?),
                _ => None,
            };
        found.push(IndexInfo {
            unique: row[1].as_deref() == Some("1"),
            origin: row[2].clone().unwrap_or_default(),
            filter,
            columns: columns
                .into_iter()
                .map(|row| (row[0].clone(), row[1].clone().unwrap_or_default()))
                .collect(),
            sql: row[4].clone(),
            name,
        });
    }
    Ok(found)
}

/// Whether a name is one of those that people do not give.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with("_cutover_")
}

/// A foreign key that points to a table: whose it is, and its columns with those they point to.
pub(super) struct ReferenceTo {
    pub(super) table: String,
    pub(super) columns: Vec<(String, String)>,
}

/// The foreign keys that point to a table, of itself and of others that are not ours.
pub(super) fn references_to(connection: &Connection, table: &str) -> Result<Vec<ReferenceTo>, Error> {
    let rows = texts(
        connection,
        "SELECT m.name, f.id, f.\"from\", coalesce(f.\"to\", (SELECT name FROM pragma_table_info(?1) WHERE pk = f.seq + 1)) \
         FROM main.sqlite_schema AS m JOIN pragma_foreign_key_list(m.name) AS f WHERE m.type = 'table' \
         AND m.name NOT LIKE '\\_cutover\\_%' ESCAPE '\\' AND lower(f.\"table\") = lower(?1) ORDER BY m.name, f.id, f.seq",
        &[table],
    )?;
    let mut found: Vec<(Option<String>, ReferenceTo)> = Vec::new();
    for row in rows {
        let [Some(child), id, Some(from), Some(to)] = &row[..] else { continue };
        let column = (from.clone(), to.clone());
        match found.last_mut() {
            Some((last, reference)) if *last == *id && reference.table == *child => {
                reference.columns.push(column);
            }
            _ => found.push((id.clone(), ReferenceTo { table: child.clone(), columns: vec![column] })),
        }
    }
    Ok(found.into_iter().map(|(_, reference)| reference).collect())
}

/// The name by which people know an index: copies carry `__c` and the position of the migration that copied them.
pub(super) fn logical(name: &str) -> &str {
    match name.rfind("__c") {
        Some(at) if at > 0 && name[at + 3..].chars().all(|c| c.is_ascii_digit()) && name.len() > at + 3 => {
            &name[..at]
        }
        _ => name,
    }
}

fn ident(name: &str) -> Result<Ident, Error> {
    Ident::ours(name)
        .map_err(|error| Error::refused(error.to_string(), "Rename it with your own statements first."))
}

fn table(connection: &Connection, name: &Ident) -> Result<Option<Table>, Error> {
    let rows = texts(
        connection,
        "SELECT type, sql FROM main.sqlite_schema WHERE type IN ('table', 'view') AND name = ?1",
        &[name.as_str()],
    )?;
    let Some(row) = rows.into_iter().next() else { return Ok(None) };
    let sql = row[1].clone().unwrap_or_default();
    let upper = sql.trim_start().to_ascii_uppercase();
    let kind = match row[0].as_deref() {
        Some("view") => TableKind::View,
        _ if upper.starts_with("CREATE VIRTUAL") => TableKind::Virtual,
        _ => TableKind::Ordinary,
    };
    let mut obstacles = Vec::new();
    let def = if kind == TableKind::Ordinary { ddl::table(&sql) } else { None };
    if def.is_none() {
        obstacles.push(Refusal::new(
            format!("the definition of `{name}` could not be read completely"),
            "Rewrite its CREATE TABLE in the documented grammar, or change it with your own tools.",
        ));
    }
    let declared = |column: &str| {
        def.as_ref().and_then(|def| def.columns.iter().find(|found| found.name.eq_ignore_ascii_case(column)))
    };
    let info = texts(
        connection,
        "SELECT name, type, \"notnull\", dflt_value, pk, hidden FROM pragma_table_xinfo(?1) ORDER BY cid",
        &[name.as_str()],
    )?;
    let mut columns = Vec::new();
    let mut key: Vec<(u32, Ident)> = Vec::new();
    for row in &info {
        let column = row[0].clone().unwrap_or_default();
        let rule = |rule: Rule| {
            declared(&column).and_then(|found| {
                found.rules.iter().find(|found| found.rule == rule).map(|found| found.inner.clone())
            })
        };
        let position: u32 = row[4].as_deref().unwrap_or("0").parse().unwrap_or(0);
        if position > 0 {
            key.push((position, ident(&column)?));
        }
        columns.push(Column {
            name: ident(&column)?,
            kind: row[1].clone().unwrap_or_default(),
            nullable: row[2].as_deref() != Some("1"),
            default: row[3].clone(),
            generated: matches!(row[5].as_deref(), Some("2" | "3"))
                .then(|| rule(Rule::Generated).unwrap_or_default()),
            numbered: false,
            collation: rule(Rule::Collate),
        });
    }
    key.sort();
    let primary_key: Vec<Ident> = key.into_iter().map(|(_, name)| name).collect();
    let without_rowid = def.as_ref().is_some_and(ddl::TableDef::without_rowid);
    let mut found_indexes = Vec::new();
    for index in indexes(connection, name.as_str())?.into_iter().filter(|index| !is_ours(&index.name)) {
        if index.unique && index.columns.iter().any(|(name, _)| name.is_none()) {
            obstacles.push(Refusal::new(
                format!("the unique index `{}` is on an expression", index.name),
                "Put the expression into a generated column and index that, or drop the index before the migration.",
            ));
        }
        let public = ident(logical(&index.name))?;
        found_indexes.push(Index {
            physical: (public.as_str() != index.name).then(|| index.name.clone()),
            of_constraint: (index.origin != "c").then(|| public.clone()),
            name: public,
            columns: index
                .columns
                .iter()
                .map(|(name, _)| name.as_deref().map(ident).transpose())
                .collect::<Result<_, _>>()?,
            unique: index.unique,
            partial: index.filter.is_some(),
            definition: index.sql.clone().unwrap_or_default(),
        });
    }
    let mut constraints = Vec::new();
    let mentioned = |text: &str| -> Vec<Ident> {
        columns
            .iter()
            .map(|column| column.name.clone())
            .filter(|column| ddl::mentions(text, column.as_str()))
            .collect()
    };
    if let Some(def) = &def {
        let of_columns = def
            .columns
            .iter()
            .flat_map(|column| column.rules.iter().map(move |rule| (Some(&column.name), rule)));
        for (column, rule) in of_columns.chain(def.constraints.iter().map(|rule| (None, rule))) {
            let kind = match rule.rule {
                Rule::PrimaryKey => ConstraintKind::PrimaryKey,
                Rule::Unique => ConstraintKind::Unique,
                Rule::Check => ConstraintKind::Check,
                Rule::References => ConstraintKind::ForeignKey,
                _ => continue,
            };
            let mut about = mentioned(&rule.inner);
            if let Some(column) = column {
                let column = ident(column)?;
                if !about.contains(&column) {
                    about.push(column);
                }
            }
            constraints.push(Constraint {
                name: rule.name.as_deref().map(ident).transpose()?,
                kind,
                columns: about,
                definition: rule.text.clone(),
            });
        }
    }
    let hanging = texts(
        connection,
        "SELECT type, name, sql, tbl_name FROM main.sqlite_schema WHERE type IN ('trigger', 'view') AND name NOT LIKE '\\_cutover\\_%' \
         ESCAPE '\\' ORDER BY rowid",
        &[],
    )?;
    let (mut triggers, mut dependents) = (Vec::new(), Vec::new());
    for row in hanging {
        let (kind, hanging, text) = (
            row[0].clone().unwrap_or_default(),
            row[1].clone().unwrap_or_default(),
            row[2].clone().unwrap_or_default(),
        );
        let own = kind == "trigger"
            && row[3].as_deref().is_some_and(|table| table.eq_ignore_ascii_case(name.as_str()));
        if !own && !ddl::mentions(&text, name.as_str()) {
            continue;
        }
        let columns = Some(mentioned(&text));
        let dependent = Dependent { kind, name: hanging, definition: text, columns };
        if own { triggers.push(dependent) } else { dependents.push(dependent) }
    }
    let referencing = texts(
        connection,
        "SELECT t.name, f.\"to\" FROM main.sqlite_schema AS t, pragma_foreign_key_list(t.name) AS f WHERE t.type = 'table' AND \
         t.name NOT LIKE '\\_cutover\\_%' ESCAPE '\\' AND lower(f.\"table\") = lower(?1) ORDER BY t.name, f.id, f.seq",
        &[name.as_str()],
    )?;
    let mut referenced_by = Vec::new();
    for row in referencing {
        let columns = match &row[1] {
            Some(column) => vec![ident(column)?],
            None => primary_key.clone(),
        };
        referenced_by.push(Reference {
            table: ident(row[0].as_deref().unwrap_or_default())?,
            name: None,
            columns,
        });
    }
    let journal = texts(connection, "SELECT journal_mode FROM pragma_journal_mode", &[])?;
    if journal.first().and_then(|row| row[0].as_deref()) != Some("wal") {
        obstacles.push(Refusal::new(
            "the database is not in WAL mode: readers would wait for every chunk",
            "Run `PRAGMA journal_mode=WAL` once.",
        ));
    }
    let mut size = Size::default();
    if kind == TableKind::Ordinary {
        let count = match without_rowid {
            true => format!("SELECT count(*), 0 FROM {}", name.quoted()),
            // An upper bound that costs two steps in the tree.
            false => format!(
                "SELECT coalesce(max(rowid), 0), coalesce((SELECT min(rowid) FROM {0}), 1) FROM {0}",
                name.quoted()
            ),
        };
        let row = texts(connection, &count, &[])?;
        let number = |at: usize| {
            row.first()
                .and_then(|row| row[at].as_deref())
                .and_then(|text| text.parse::<i64>().ok())
                .unwrap_or(0)
        };
        size.rows =
            u64::try_from(if without_rowid { number(0) } else { number(0).saturating_sub(number(1)) + 1 })
                .unwrap_or(0);
        let pages =
            texts(connection, "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size", &[])?;
        size.bytes =
            pages.first().and_then(|row| row[0].as_deref()).and_then(|text| text.parse().ok()).unwrap_or(0);
        // Row numbers may be far apart, as those made of times are.
        size.rows = size.rows.min(size.bytes / ROW_BYTES_MIN);
    }
    let mut other = std::collections::BTreeMap::new();
    if let Some(def) = &def {
        other.insert("options".to_owned(), def.options.clone());
    }
    let numbered = primary_key.len() == 1
        && !without_rowid
        && columns
            .iter()
            .any(|column| column.name == primary_key[0] && column.kind.eq_ignore_ascii_case("integer"));
    if numbered {
        for column in columns.iter_mut().filter(|column| column.name == primary_key[0]) {
            column.numbered = true;
        }
    }
    Ok(Some(Table {
        name: name.clone(),
        kind,
        row_key: if without_rowid { primary_key.clone() } else { Vec::new() },
        has_row_number: !without_rowid,
        columns,
        primary_key,
        indexes: found_indexes,
        constraints,
        triggers,
        dependents,
        referenced_by,
        obstacles,
        other,
        size,
    }))
}
