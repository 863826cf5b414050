//! Looking for rows that the new shape cannot hold, before anything is changed.

use rusqlite::types::Value as Cell;

use super::{
    Sqlite,
    aside::{WOULD_CHANGE, is_misfit},
    keys::shown,
    shape::{Shape, key_name},
};
use crate::{
    change::{ColumnFate, Fate, NewConstraint, RowStep, TableChange, Tactic, quoted},
    engine::Task,
    error::Error,
    ir::{Ident, OnReject},
};

impl Sqlite {
    pub(super) fn scan(&self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        if change.fate != Fate::Alter {
            return Ok(());
        }
        match self.scan_rows(task, change) {
            // The new values of a row cannot even be computed.
            Err(error) if is_misfit(&error) && change.on_reject == OnReject::Quarantine => {
                task.watch.says(&format!("rows of `{}` will be set aside: {error}", change.table));
                Ok(())
            }
            other => other,
        }
    }

    fn scan_rows(&self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        let table = change.table.quoted();
        let rejected = |found: Vec<String>| {
            let count = found.len() as u64;
            let sample = found.into_iter().take(task.policy.sample).collect();
            match count {
                0 => Ok(()),
                _ => Err(Error::Rejected { table: change.table.clone(), count, sample }),
            }
        };
        let look = |sql: &str, why: &str| -> Result<Vec<String>, Error> {
            let rows = self.rows(&format!("{sql} LIMIT {}", task.policy.sample + 1), &[])?;
            Ok(rows.iter().map(|row| format!("{}: {why}", shown(row))).collect())
        };
        // What is wrong with single rows stops it, or is told: the copy sets them aside.
        let not_fitting = |found: Vec<String>| match (change.on_reject, found.first()) {
            (OnReject::Quarantine, Some(first)) => {
                task.watch.says(&format!("rows of `{}` will be set aside, such as {first}", change.table));
                Ok(())
            }
            _ => rejected(found),
        };
        // Duplicates for what becomes unique. Row functions may still change the columns; then the copy finds out.
        let computed: Vec<&Ident> = change
            .rows
            .iter()
            .flat_map(|step| match step {
                RowStep::Function { write, .. } => write.iter().collect::<Vec<_>>(),
                RowStep::Sql { .. } => Vec::new(),
            })
            .collect();
        let up = change.up_query(&table, &[]);
        let unique_indexes = change
            .add_indexes
            .iter()
            .filter(|index| index.unique)
            .map(|index| (&index.columns, index.filter.as_deref()));
        let uniques = change.add_constraints.iter().filter_map(|added| match added {
            NewConstraint::Unique { columns, .. } => Some((columns, None)),
            _ => None,
        });
        for (columns, filter) in unique_indexes.chain(uniques) {
            if columns.iter().any(|column| computed.contains(&column)) {
                continue;
            }
            let names = quoted(columns);
            let given: Vec<String> =
                columns.iter().map(|column| format!("{} IS NOT NULL", column.quoted())).collect();
            let filter = filter.map_or(String::new(), |filter| format!(" AND ({filter})"));
            let sql = format!(
                "SELECT {names} FROM ({up}) WHERE {}{filter} GROUP BY {names} HAVING count(*) > 1",
                given.join(" AND ")
            );
            rejected(look(&sql, "more than one row has it")?)?;
        }
        if change.tactic != Tactic::Shadow {
            return Ok(());
        }
        let shape = Shape::read(&self.connection, task, change, change.table.as_str())?;
        let keys = (0..shape.key_now.len()).map(key_name).collect::<Vec<_>>().join(", ");
        let up = change.up_query(&shape.source_now(&table, "1"), &shape.passed());
        for column in &change.columns {
            let Some(then) = &column.then else { continue };
            if !column.nullable_then
                && (column.nullable_now || column.up.is_some())
                && column.fate != ColumnFate::Keep
                && !computed.contains(&then)
            {
                let sql = format!("SELECT {keys} FROM ({up}) WHERE {} IS NULL", then.quoted());
                not_fitting(look(&sql, &format!("`{then}` would be NULL"))?)?;
            }
        }
        for constraint in &change.add_constraints {
            if let NewConstraint::Check { name, expr } = constraint {
                let sql = format!("SELECT {keys} FROM ({up}) WHERE NOT coalesce(({expr}), 1)");
                not_fitting(look(&sql, &format!("`{name}` does not hold"))?)?;
            }
        }
        if let Some(lossy) = shape.lossy("1") {
            let found = self.rows(&format!("{lossy} LIMIT {}", task.policy.sample + 1), &[])?;
            let says = |row: &Vec<Cell>| match row.split_last() {
                Some((column, key)) => {
                    format!("{}: `{}` {WOULD_CHANGE}", shown(key), shown(std::slice::from_ref(column)))
                }
                None => String::new(),
            };
            not_fitting(found.iter().map(says).collect())?;
        }
        Ok(())
    }
}
