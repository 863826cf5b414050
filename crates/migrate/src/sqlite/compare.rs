//! Comparing every row of both tables, and repairing what clients touched meanwhile.

use rusqlite::types::Value as Cell;

use super::{
    Sqlite,
    keys::{placeholders, print_key, shown},
    shape::{Shape, key_name, quote},
    sql_error,
};
use crate::{
    change::{TableChange, quoted},
    engine::{ChunkDone, Pace, Task, Work},
    error::Error,
    state::sql::Sql,
};

/// Rows that one read transaction of the comparison covers.
const COMPARED: u64 = 20_000;

/// How often differences are repaired before they are final.
const REPAIRS: usize = 3;

/// What a chunk's comparison found: rows seen, the key it ended at (none at the end), the keys that differ.
type Compared = (u64, Option<Vec<Cell>>, Vec<Vec<Cell>>);

impl Sqlite {
    pub(super) fn compare_all(
        &mut self,
        task: &Task<'_>,
        change: &TableChange,
        pace: &dyn Pace,
    ) -> Result<Work, Error> {
        let shape = Shape::read(&self.connection, task, change, change.table.as_str())?;
        let mut work = Work::default();
        for attempt in 0.. {
            if shape.unstable && self.cookie_changed(task, change)? {
                self.start_again(task, change)?;
                let copied = self.copy_all(task, change, pace)?;
                work.add(&copied);
            }
            work.resynced += self.drain_all(task, &shape, pace)?;
            work.resynced += self.retry_aside(task, &shape, pace)?;
            let (seen, differing) = self.compare_once(task, &shape, pace)?;
            work.seen = seen;
            work.done = seen;
            if differing.is_empty() {
                break;
            }
            if attempt + 1 >= REPAIRS {
                let sample = differing.iter().take(task.policy.sample).map(|key| shown(key)).collect();
                return Err(Error::Differs {
                    table: change.table.clone(),
                    count: differing.len() as u64,
                    sample,
                });
            }
            task.watch.says(&format!(
                "{} row(s) of `{}` differ; syncing them again",
                differing.len(),
                change.table
            ));
            let log = quote(&shape.names.log);
            let insert =
                format!("INSERT INTO {log} VALUES ({})", placeholders(1, shape.key_now.len()).join(", "));
            self.fenced(task.epoch, |engine| {
                differing.iter().try_for_each(|key| engine.change_rows(&insert, key).map(drop))
            })?;
        }
        let shadow = quote(&shape.names.shadow);
        for check in change.checks() {
            let keys = shape.key_then.join(", ");
            let wrong = self.rows(
                &format!(
                    "SELECT {keys} FROM {shadow} WHERE NOT coalesce(({check}), 0) LIMIT {}",
                    task.policy.sample
                ),
                &[],
            )?;
            if !wrong.is_empty() {
                let count =
                    self.number(&format!("SELECT count(*) FROM {shadow} WHERE NOT coalesce(({check}), 0)"))?;
                let sample =
                    wrong.iter().map(|key| format!("{}: `{check}` does not hold", shown(key))).collect();
                return Err(Error::Rejected {
                    table: change.table.clone(),
                    count: u64::try_from(count).unwrap_or(0),
                    sample,
                });
            }
        }
        self.check_new_references(task, &shape)?;
        Ok(work)
    }

    /// Compares every row once, in short read transactions. Differences in keys that were touched meanwhile are not ones.
    fn compare_once(
        &mut self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        pace: &dyn Pace,
    ) -> Result<(u64, Vec<Vec<Cell>>), Error> {
        let change = shape.change;
        self.make_stored(shape)?;
        let (mut low, mut seen, mut number) = (None::<Vec<Cell>>, 0, 0);
        let mut differing: Vec<Vec<Cell>> = Vec::new();
        loop {
            self.execute("BEGIN", &[])?;
            let compared = self.compare_chunk(task, shape, low.as_deref());
            self.execute("COMMIT", &[])?;
            let (count, high, mut found) = compared?;
            seen += count;
            number += 1;
            differing.append(&mut found);
            differing.truncate(100_000);
            let done = ChunkDone { seen: count, copied: count, ..ChunkDone::default() };
            self.fenced(task.epoch, |engine| {
                engine.note_chunk(task, change, "verify", number, high.as_deref(), &done)
            })?;
            task.point("verify.after");
            pace.between(self, &change.table, &done)?;
            match high {
                Some(high) => low = Some(high),
                None => return Ok((seen, differing)),
            }
        }
    }

    fn compare_chunk(
        &self,
        task: &Task<'_>,
        shape: &Shape<'_>,
        low: Option<&[Cell]>,
    ) -> Result<Compared, Error> {
        let change = shape.change;
        let width = shape.key_now.len();
        let above = |keys: &[String]| match low {
            Some(low) => Shape::compare(keys, ">", &placeholders(1, low.len())),
            None => "1".to_owned(),
        };
        let order: Vec<String> = (0..width).map(key_name).collect();
        let order = order.join(", ");
        let values = low.map(<[Cell]>::to_vec).unwrap_or_default();
        // The end of the chunk on the side of S; without one, both sides are read to their ends.
        let end = self.rows(
            &format!(
                "SELECT {0} FROM {1} WHERE {2} ORDER BY {0} LIMIT 1 OFFSET {COMPARED}",
                shape.key_now.join(", "),
                change.table.quoted(),
                above(&shape.key_now)
            ),
            &values,
        )?;
        let end = end.into_iter().next();
        let limited = |keys: &[String]| match &end {
            Some(end) => format!(
                "{} AND {}",
                above(keys),
                Shape::compare(keys, "<=", &placeholders(values.len() + 1, end.len()))
            ),
            None => above(keys),
        };
        let mut parameters = values.clone();
        parameters.extend(end.clone().unwrap_or_default());
        let touched: std::collections::BTreeSet<String> = self
            .rows(&format!("SELECT DISTINCT {order} FROM {}", quote(&shape.names.log)), &[])?
            .iter()
            .map(|key| print_key(key))
            .collect();
        let expected = limited(&shape.key_now) + &Self::is_settled(shape);
        let mut computed = None;
        if !change.functions().is_empty() {
            computed = Some(self.computed(task, shape, &expected, &parameters)?.into_iter());
        }
        let up = format!(
            "{} ORDER BY {order}",
            change.up_query(&shape.source_now(&change.table.quoted(), &expected), &shape.passed())
        );
        let then = quoted(change.written_then());
        let new = format!(
            "SELECT {order}, {then} FROM {} ORDER BY {order}",
            shape.source_then(&quote(&shape.names.shadow), &limited(&shape.key_then))
        );
        let failed = |error: rusqlite::Error| Error::Sql(sql_error(error, &up));
        let mut expected = self.connection.prepare_cached(&up).map_err(failed)?;
        let mut found = self.connection.prepare_cached(&new).map_err(failed)?;
        let total = width + change.written_then().len();
        let affinities = self.affinities(shape)?;
        let read = |row: &rusqlite::Row<'_>| -> rusqlite::Result<Vec<Cell>> {
            (0..total).map(|at| row.get(at)).collect()
        };
        let mut expected = expected.query(rusqlite::params_from_iter(&parameters)).map_err(failed)?;
        let mut found = found.query(rusqlite::params_from_iter(&parameters)).map_err(failed)?;
        let mut next_expected = || -> Result<Option<Vec<Cell>>, Error> {
            let row = match &mut computed {
                Some(rows) => rows.next().map(|(mut key, mut row)| {
                    key.append(&mut row);
                    key
                }),
                None => expected.next().map_err(failed)?.map(read).transpose().map_err(failed)?,
            };
            Ok(row.map(|mut row| {
                for (at, affinity) in affinities.iter().enumerate() {
                    let cell = std::mem::replace(&mut row[width + at], Cell::Null);
                    row[width + at] = affinity.apply(cell);
                }
                row
            }))
        };
        let mut next_found = || -> Result<Option<Vec<Cell>>, Error> {
            found.next().map_err(failed)?.map(read).transpose().map_err(failed)
        };
        let (mut a, mut b) = (next_expected()?, next_found()?);
        let (mut seen, mut differing) = (0, Vec::new());
        loop {
            let order = match (&a, &b) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(a), Some(b)) => key_order(&a[..width], &b[..width]),
            };
            let mut differs = |row: &Vec<Cell>| {
                if !touched.contains(&print_key(&row[..width])) {
                    differing.push(row[..width].to_vec());
                }
            };
            match order {
                std::cmp::Ordering::Equal => {
                    if let (Some(left), Some(right)) = (&a, &b)
                        && !same(&left[width..], &right[width..])
                        && !same(&self.stored(&left[width..])?, &right[width..])
                    {
                        differs(left);
                    }
                    seen += 1;
                    a = next_expected()?;
                    b = next_found()?;
                }
                std::cmp::Ordering::Less => {
                    if let Some(row) = &a {
                        differs(row);
                    }
                    seen += 1;
                    a = next_expected()?;
                }
                std::cmp::Ordering::Greater => {
                    if let Some(row) = &b {
                        differs(row);
                    }
                    b = next_found()?;
                }
            }
        }
        Ok((seen, end, differing))
    }

    /// What SQLite itself makes of values that are stored in columns of the new types: the judge where our own conversion and
    /// the table disagree.
    fn stored(&self, cells: &[Cell]) -> Result<Vec<Cell>, Error> {
        let table = "temp._cutover_stored";
        let insert = format!("INSERT INTO {table} VALUES ({})", placeholders(1, cells.len()).join(", "));
        let run = || -> rusqlite::Result<Vec<Cell>> {
            self.connection.execute(&format!("DELETE FROM {table}"), [])?;
            self.connection.execute(&insert, rusqlite::params_from_iter(cells))?;
            self.connection.query_row(&format!("SELECT * FROM {table}"), [], |row| {
                (0..cells.len()).map(|at| row.get(at)).collect()
            })
        };
        run().map_err(|error| Error::Sql(sql_error(error, &insert)))
    }

    /// Makes the table that [`stored`](Self::stored) uses, before any statement is open.
    fn make_stored(&self, shape: &Shape<'_>) -> Result<(), Error> {
        let kinds = shape.change.columns.iter().filter(|column| !column.generated && column.then.is_some());
        let columns: Vec<String> = kinds
            .enumerate()
            .map(|(at, column)| format!("c{at} {}", column.type_then.as_deref().unwrap_or("")))
            .collect();
        let table = "temp._cutover_stored";
        self.run(&format!("DROP TABLE IF EXISTS {table}; CREATE TABLE {table} ({})", columns.join(", ")))
    }

    /// The affinities of the written columns of T: how it converts what is stored (<https://www.sqlite.org/datatype3.html>, 3.1).
    fn affinities(&self, shape: &Shape<'_>) -> Result<Vec<Affinity>, Error> {
        let kinds = shape.change.columns.iter().filter(|column| !column.generated && column.then.is_some());
        Ok(kinds
            .map(|column| Affinity::of(column.type_then.as_deref().unwrap_or(""), shape.def.strict()))
            .collect())
    }
}

/// Column affinity.
enum Affinity {
    Integer,
    Text,
    Blob,
    Real,
    Numeric,
}

impl Affinity {
    fn of(kind: &str, strict: bool) -> Self {
        let upper = kind.to_ascii_uppercase();
        if strict && upper == "ANY" {
            Self::Blob
        } else if upper.contains("INT") {
            Self::Integer
        } else if ["CHAR", "CLOB", "TEXT"].iter().any(|word| upper.contains(word)) {
            Self::Text
        } else if upper.is_empty() || upper.contains("BLOB") {
            Self::Blob
        } else if ["REAL", "FLOA", "DOUB"].iter().any(|word| upper.contains(word)) {
            Self::Real
        } else {
            Self::Numeric
        }
    }

    /// What is read back after this value was stored, for the common cases; `stored` settles the others.
    fn apply(&self, cell: Cell) -> Cell {
        match (self, cell) {
            (Self::Real, Cell::Integer(value)) => Cell::Real(value as f64),
            (Self::Integer | Self::Numeric, Cell::Real(value))
                if value.fract() == 0.0 && value.abs() < 9.0e15 =>
            {
                #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
                Cell::Integer(value as i64)
            }
            (Self::Integer | Self::Numeric | Self::Real, Cell::Text(text)) => {
                match (text.trim().parse::<i64>(), text.trim().parse::<f64>()) {
                    (Ok(value), _) if !matches!(self, Self::Real) => Cell::Integer(value),
                    (_, Ok(value))
                        if text
                            .trim()
                            .starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) =>
                    {
                        self.apply(Cell::Real(value))
                    }
                    _ => Cell::Text(text),
                }
            }
            (Self::Text, Cell::Integer(value)) => Cell::Text(value.to_string()),
            (_, cell) => cell,
        }
    }
}

fn same(a: &[Cell], b: &[Cell]) -> bool {
    a.iter().zip(b).all(|(a, b)| match (a, b) {
        (Cell::Real(a), Cell::Real(b)) => a == b || a.to_bits() == b.to_bits(),
        (a, b) => a == b,
    })
}

/// The order of keys as SQLite has it under the BINARY collation: NULL, numbers, text, blobs. Other collations only make a
/// difference look like two, which is one still.
fn key_order(a: &[Cell], b: &[Cell]) -> std::cmp::Ordering {
    use std::cmp::Ordering;
    let class = |cell: &Cell| match cell {
        Cell::Null => 0,
        Cell::Integer(_) | Cell::Real(_) => 1,
        Cell::Text(_) => 2,
        Cell::Blob(_) => 3,
    };
    for (a, b) in a.iter().zip(b) {
        let order = match (a, b) {
            (Cell::Integer(a), Cell::Integer(b)) => a.cmp(b),
            (Cell::Text(a), Cell::Text(b)) => a.cmp(b),
            (Cell::Blob(a), Cell::Blob(b)) => a.cmp(b),
            (Cell::Real(a), Cell::Real(b)) => a.total_cmp(b),
            (Cell::Integer(a), Cell::Real(b)) => (*a as f64).total_cmp(b),
            (Cell::Real(a), Cell::Integer(b)) => a.total_cmp(&(*b as f64)),
            (a, b) => class(a).cmp(&class(b)),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}
