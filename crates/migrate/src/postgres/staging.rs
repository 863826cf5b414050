//! A copy of the database beside it, for rehearsals: `pg_dump` into a database of its own on the same server.
//!
//! A database cannot be cloned by the server while anybody is connected to it; `pg_dump` reads it in one snapshot while
//! clients go on.

use std::{
    io::Read as _,
    process::{Child, Command, Stdio},
};

use super::{PostgresEngine, session::ident};
use crate::{
    engine::Engine,
    error::{Error, Refusal},
    open::without_password,
    run::Staging,
};

/// The longest name of a database, in bytes (`NAMEDATALEN` - 1).
const NAME_MAX: usize = 63;
/// As much of what a program says on its standard error is kept, in bytes.
const SAID_MAX: u64 = 4096;

/// A copied database.
pub(super) struct Copy {
    /// How the copy is reached, with the password.
    url: String,
    /// How the database that was copied is reached: by its connection the copy is removed.
    of: String,
    name: String,
}

impl Copy {
    /// Copies the database as it is at one moment; writers go on. What an earlier rehearsal left behind is removed.
    pub(super) fn make(of: &mut PostgresEngine, name: &str) -> Result<Self, Error> {
        let mut database = format!("cutover_rehearsal_{name}");
        database.truncate(database.floor_char_boundary(NAME_MAX));
        let copy =
            Self { url: with_database(&of.dial.url, &database), of: of.dial.url.clone(), name: database };
        copy.remove(of)?;
        // The same encoding and collations: template0 allows to ask for them.
        let like = of
            .session
            .value(
                "SELECT format('ENCODING %L LC_COLLATE %L LC_CTYPE %L', pg_encoding_to_char(encoding), datcollate, datctype) \
                 FROM pg_database WHERE datname = current_database()",
            )?
            .unwrap_or_default();
        of.session.run(&format!("CREATE DATABASE {} TEMPLATE template0 {like}", ident(&copy.name)))?;
        match copy.fill(of) {
            Ok(()) => Ok(copy),
            Err(error) => {
                copy.remove(of)?;
                Err(error)
            }
        }
    }

    fn fill(&self, of: &PostgresEngine) -> Result<(), Error> {
        let password =
            of.dial.config.get_password().map(|password| String::from_utf8_lossy(password).into_owned());
        let command = |program: &str, url: &str| {
            let mut command = Command::new(program);
            // A password in an argument could be read by everybody on this machine.
            command.args(["--dbname", &hidden(url)]).stdin(Stdio::null()).stderr(Stdio::piped());
            if let Some(password) = &password {
                command.env("PGPASSWORD", password);
            }
            command
        };
        let mut dump = command("pg_dump", &self.of);
        dump.args(["--no-publications", "--no-subscriptions"]).stdout(Stdio::piped());
        let mut dump = start("pg_dump", &mut dump)?;
        let mut restore = command("psql", &self.url);
        restore.args(["--no-psqlrc", "--quiet", "--single-transaction", "--set", "ON_ERROR_STOP=1"]);
        restore.stdout(Stdio::null());
        if let Some(stream) = dump.stdout.take() {
            restore.stdin(stream);
        }
        let restore = match start("psql", &mut restore) {
            Ok(restore) => restore,
            Err(error) => {
                // Nobody reads what it writes: it ends by itself.
                drop(restore);
                let _ = dump.wait();
                return Err(error);
            }
        };
        // psql first: pg_dump ends when nobody reads on, and then says only that.
        let (restored, dumped) = std::thread::scope(|scope| {
            let dumped = scope.spawn(move || end("pg_dump", dump));
            let restored = end("psql", restore);
            let ended = || Err(Error::refused("pg_dump was not watched to its end", "Try again."));
            (restored, dumped.join().unwrap_or_else(|_| ended()))
        });
        restored.and(dumped)
    }

    fn remove(&self, by: &mut PostgresEngine) -> Result<(), Error> {
        by.session.run(&format!("DROP DATABASE IF EXISTS {} (FORCE)", ident(&self.name))).map(drop)
    }
}

impl Staging for Copy {
    fn place(&self) -> String {
        without_password(&self.url)
    }

    fn engine(&self) -> Result<Box<dyn Engine>, Error> {
        Ok(Box::new(PostgresEngine::connect(&self.url)?))
    }

    fn discard(self: Box<Self>) -> Result<(), Error> {
        self.remove(&mut PostgresEngine::connect(&self.of)?)
    }
}

fn start(program: &str, command: &mut Command) -> Result<Child, Error> {
    command.spawn().map_err(|error| {
        Error::Refused(vec![Refusal::new(
            format!("`{program}` cannot be run ({error}), which makes the copy"),
            "Install PostgreSQL's client programs, or make a copy with tools of your own and give it with `--on URL`.",
        )])
    })
}

/// Waits for a program; its first words if it failed.
fn end(program: &'static str, mut child: Child) -> Result<(), Error> {
    let mut said = Vec::new();
    if let Some(stream) = &mut child.stderr {
        let _ = stream.take(SAID_MAX).read_to_end(&mut said);
        // The rest, so that it does not wait for us.
        let _ = std::io::copy(stream, &mut std::io::sink());
    }
    let io = |source| Error::Io { what: "wait for", path: program.into(), source };
    let status = child.wait().map_err(io)?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    Err(Error::refused(
        format!(
            "`{program}` could not make the copy: {}",
            said.lines().next().unwrap_or("it did not say why")
        ),
        "Mend that, or make a copy with tools of your own and give it with `--on URL`.",
    ))
}

/// The URL of another database of the same server.
fn with_database(url: &str, database: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return format!("{url} dbname={database}");
    };
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let server = address.split('/').next().unwrap_or_default();
    let query = if query.is_empty() { String::new() } else { format!("?{query}") };
    let name = percent_encoding::utf8_percent_encode(database, percent_encoding::NON_ALPHANUMERIC);
    format!("{scheme}://{server}/{name}{query}")
}

/// The URL without its password.
fn hidden(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (server, more) = rest.split_at(end);
    let (path, parameters) = more.split_once('?').unwrap_or((more, ""));
    let shown: Vec<&str> = parameters
        .split('&')
        .filter(|one| !one.is_empty() && !one.starts_with("password=") && !one.starts_with("sslpassword="))
        .collect();
    let parameters = if shown.is_empty() { String::new() } else { format!("?{}", shown.join("&")) };
    let server = match server.rsplit_once('@') {
        Some((user, host)) => format!("{}@{host}", user.split(':').next().unwrap_or_default()),
        None => server.to_owned(),
    };
    format!("{scheme}://{server}{path}{parameters}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_of_another_database_keeps_all_else() {
        assert_eq!(
            with_database("postgres://u:p@%2Frun%2Fpg:5433/app?sslmode=require", "a_b"),
            "postgres://u:p@%2Frun%2Fpg:5433/a%5Fb?sslmode=require"
        );
        assert_eq!(with_database("postgres://u@h", "b"), "postgres://u@h/b");
        assert_eq!(with_database("host=/run user=u dbname=app", "b"), "host=/run user=u dbname=app dbname=b");
    }

    #[test]
    fn password_is_no_argument() {
        assert_eq!(hidden("postgres://u:p@h:1/app?sslmode=require"), "postgres://u@h:1/app?sslmode=require");
        assert_eq!(hidden("postgres://h/app"), "postgres://h/app");
        assert_eq!(
            hidden("postgres://u@h/app?password=p&sslmode=require"),
            "postgres://u@h/app?sslmode=require"
        );
    }
}
