//! Looking for rows that the new shape cannot hold, before anything is changed.

use super::{
    Sqlite,
    keys::shown,
    shape::{Shape, key_name},
};
use crate::{
    change::{ColumnFate, Fate, NewConstraint, RowStep, TableChange, Tactic, quoted},
    engine::Task,
    error::Error,
    ir::Ident,
};

impl Sqlite {
    pub(super) fn scan(&mut self, task: &Task<'_>, change: &TableChange) -> Result<(), Error> {
        if change.fate != Fate::Alter {
            return Ok(());
        }
        let table = change.table.quoted();
        let reject = |engine: &Self, sql: &str, why: &str| -> Result<(), Error> {
            let rows = engine.rows(&format!("{sql} LIMIT {}", task.policy.sample + 1), &[])?;
            if rows.is_empty() {
                return Ok(());
            }
            let sample =
                rows.iter().take(task.policy.sample).map(|row| format!("{}: {why}", shown(row))).collect();
            Err(Error::Rejected { table: change.table.clone(), count: rows.len() as u64, sample })
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
            reject(self, &sql, "more than one row has it")?;
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
                reject(self, &sql, &format!("`{then}` would be NULL"))?;
            }
        }
        for constraint in &change.add_constraints {
            if let NewConstraint::Check { name, expr } = constraint {
                reject(
                    self,
                    &format!("SELECT {keys} FROM ({up}) WHERE NOT coalesce(({expr}), 1)"),
                    &format!("`{name}` does not hold"),
                )?;
            }
        }
        // Values that would not come back: what the migration says about them must be true, or a cast loses something.
        let lossy: Vec<_> = change
            .columns
            .iter()
            .filter(|column| {
                column.fate == ColumnFate::Alter && column.down.is_some() && column.then.is_some()
            })
            .filter(|column| {
                column.reversible || column.up.as_deref().is_some_and(|up| up.starts_with("CAST("))
            })
            .filter_map(|column| column.now.as_ref())
            .collect();
        if lossy.is_empty() || !change.rows.is_empty() {
            return Ok(());
        }
        let down = change.down_query(&format!("({up}) AS _cutover_up"), &shape.passed());
        let here: Vec<String> = (0..shape.key_now.len())
            .map(|at| format!("_cutover_s.{} IS _cutover_d.{}", shape.key_now[at], key_name(at)))
            .collect();
        for column in lossy {
            let name = column.quoted();
            let shown =
                shape.key_now.iter().map(|key| format!("_cutover_s.{key}")).collect::<Vec<_>>().join(", ");
            let sql = format!(
                "SELECT {shown} FROM {table} AS _cutover_s JOIN ({down}) AS _cutover_d ON {} WHERE _cutover_s.{name} IS NOT NULL AND \
                 _cutover_d.{name} IS NOT _cutover_s.{name}",
                here.join(" AND ")
            );
            reject(self, &sql, &format!("`{column}` would not come back as it was"))?;
        }
        Ok(())
    }
}
