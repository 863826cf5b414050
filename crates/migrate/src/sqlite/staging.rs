//! A copy of the database file for rehearsals, and what connections of an old version run first.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Sqlite, catalog, shape::quote, sql_error};
use crate::{engine::Engine, error::Error, run::Staging};

/// A copied database file.
pub(super) struct Copy {
    path: PathBuf,
}

impl Copy {
    /// Copies the database to a file beside it, as it is at one moment; writers go on.
    pub(super) fn make(of: &Sqlite, name: &str) -> Result<Self, Error> {
        let mut file = of.path.file_name().unwrap_or_default().to_owned();
        file.push(format!(".rehearsal-{name}"));
        let path = of.path.with_file_name(file);
        let copy = Self { path };
        // What an earlier rehearsal left behind is of no use any more.
        copy.remove()?;
        let run = || -> rusqlite::Result<()> {
            let mut into = rusqlite::Connection::open(&copy.path)?;
            rusqlite::backup::Backup::new(&of.connection, &mut into)?.run_to_completion(
                4096,
                std::time::Duration::from_millis(1),
                None,
            )?;
            into.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
        };
        run().map_err(|error| Error::Sql(sql_error(error, "backup")))?;
        Ok(copy)
    }

    fn remove(&self) -> Result<(), Error> {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let mut name = self.path.clone().into_os_string();
            name.push(suffix);
            remove(Path::new(&name))?;
        }
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a database file that only rehearsals use: SQLite made it, nothing depends on its removal"
)]
fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io { what: "remove", path: path.to_owned(), source }),
    }
}

impl Staging for Copy {
    fn place(&self) -> String {
        format!("sqlite:{}", self.path.display())
    }

    fn engine(&self) -> Result<Box<dyn Engine>, Error> {
        Ok(Box::new(Sqlite::open(&self.path)?))
    }

    fn discard(self: Box<Self>) -> Result<(), Error> {
        self.remove()
    }
}

impl Sqlite {
    /// TEMP views with the names that the code of a version uses, over the views of that version.
    pub(super) fn prelude_of(&self, version: &str) -> Result<Vec<String>, Error> {
        let suffix = format!("_v{version}");
        let views = catalog::texts(
            &self.connection,
            "SELECT name FROM main.sqlite_schema WHERE type = 'view' ORDER BY name",
            &[],
        )?;
        let mut statements = Vec::new();
        for view in views.into_iter().filter_map(|row| row.into_iter().next().flatten()) {
            let Some(table) = view.strip_suffix(&suffix) else { continue };
            let triggers = catalog::texts(
                &self.connection,
                "SELECT sql FROM main.sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1",
                &[&view],
            )?;
            let columns = catalog::texts(
                &self.connection,
                "SELECT name FROM pragma_table_info(?1) ORDER BY cid",
                &[&view],
            )?;
            let columns: Vec<String> =
                columns.into_iter().filter_map(|row| row[0].as_deref().map(quote)).collect();
            let (here, there) = (quote(table), quote(&view));
            statements.push(format!("CREATE TEMP VIEW {here} AS SELECT * FROM main.{there}"));
            let all = columns.join(", ");
            let new: Vec<String> = columns.iter().map(|column| format!("NEW.{column}")).collect();
            let trigger = |when: &str, body: String| {
                let name = quote(&format!("_cutover_{}_{table}", when.to_ascii_lowercase()));
                format!("CREATE TEMP TRIGGER {name} INSTEAD OF {when} ON {here} BEGIN {body}; END")
            };
            let can = |when: &str| {
                triggers.iter().any(|row| {
                    row[0].as_deref().is_some_and(|sql| sql.contains(&format!("INSTEAD OF {when}")))
                })
            };
            let old: Vec<String> = columns.iter().map(|column| format!("{column} IS OLD.{column}")).collect();
            if can("INSERT") {
                statements.push(trigger(
                    "INSERT",
                    format!("INSERT INTO {there} ({all}) VALUES ({})", new.join(", ")),
                ));
            }
            if can("UPDATE") {
                let set: Vec<String> =
                    columns.iter().map(|column| format!("{column} = NEW.{column}")).collect();
                statements.push(trigger(
                    "UPDATE",
                    format!("UPDATE {there} SET {} WHERE {}", set.join(", "), old.join(" AND ")),
                ));
            }
            if can("DELETE") {
                statements
                    .push(trigger("DELETE", format!("DELETE FROM {there} WHERE {}", old.join(" AND "))));
            }
        }
        Ok(statements)
    }
}
