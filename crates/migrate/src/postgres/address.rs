//! Where a server is and how it is reached: a connection URL as libpq reads it (PostgreSQL manual, "Connection URIs"),
//! with passwords from where libpq takes them.

use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use postgres::{Config, config::Host};

use super::tls::Verify;
use crate::{error::Error, open::without_password};

/// The largest password file that is read, in bytes.
const PASSWORDS_MAX: u64 = 1 << 20;

/// What a URL says about TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsWish {
    pub(crate) verify: Verify,
    /// `sslrootcert`: PEM; those of the system without it.
    pub(crate) roots: Option<PathBuf>,
    /// `sslcert`: ours, PEM.
    pub(crate) certificate: Option<PathBuf>,
    /// `sslkey`: its key, PEM.
    pub(crate) key: Option<PathBuf>,
}

/// Reads a URL (or `key=value` pairs, which have no more than their reader knows). `variable` is the environment.
///
/// # Errors
/// [`Error::Url`]
pub(crate) fn parse(
    url: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<(Config, TlsWish), Error> {
    let wrong = |says: &str| Error::Url(format!("{}: {says}", without_password(url)));
    let mut wish = TlsWish::default();
    let mut password_file = variable("PGPASSFILE").map(PathBuf::from);
    let (start, query) = url.split_once('?').unwrap_or((url, ""));
    let is_url = start.contains("://");
    let mut kept = Vec::new();
    let mut mode = None;
    for pair in query.split('&').filter(|pair| is_url && !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| wrong("a parameter without a value"))?;
        let value =
            percent_decode_str(value).decode_utf8().map_err(|_| wrong("a parameter that is no text"))?;
        let path = || Some(PathBuf::from(value.as_ref()));
        match key {
            "sslmode" => mode = Some(value.into_owned()),
            "sslrootcert" if value == "system" => wish.roots = None,
            "sslrootcert" => wish.roots = path(),
            "sslcert" => wish.certificate = path(),
            "sslkey" => wish.key = path(),
            "passfile" => password_file = path(),
            _ => kept.push(pair.to_owned()),
        }
    }
    let mode = mode.or_else(|| variable("PGSSLMODE").filter(|_| is_url));
    if let Some(mode) = mode {
        wish.verify = match mode.as_str() {
            "disable" | "prefer" => Verify::Nothing,
            // As libpq: who names roots wants them asked.
            "require" if wish.roots.is_some() => Verify::Chain,
            "require" => Verify::Nothing,
            "verify-ca" => Verify::Chain,
            "verify-full" => Verify::ChainAndName,
            _ => {
                return Err(wrong(&format!(
                    "`sslmode={mode}` is not one of disable, prefer, require, verify-ca, verify-full"
                )));
            }
        };
        let known = if mode.starts_with("verify-") { "require" } else { mode.as_str() };
        kept.push(format!("sslmode={known}"));
    }
    let text = match is_url && !kept.is_empty() {
        true => format!("{start}?{}", kept.join("&")),
        false if is_url => start.to_owned(),
        false => url.to_owned(),
    };
    let mut config: Config = text.parse().map_err(|error: postgres::Error| {
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        wrong(&cause)
    })?;
    if config.get_password().is_none() {
        if let Some(password) = variable("PGPASSWORD") {
            config.password(password);
        } else {
            let home = || variable("HOME").map(|home| Path::new(&home).join(".pgpass"));
            if let Some(path) = password_file.or_else(home)
                && let Some(password) = from_file(&path, &config)?
            {
                config.password(password);
            }
        }
    }
    Ok((config, wish))
}

/// The password for an address in a file of lines `host:port:database:user:password` (PostgreSQL manual, "The Password
/// File"). A file that others can read is not used.
fn from_file(path: &Path, config: &Config) -> Result<Option<String>, Error> {
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |source| Error::Io { what: "read", path: path.to_owned(), source };
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if !found.is_file() || found.len() > PASSWORDS_MAX {
        return Ok(None);
    }
    if found.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the password file is not used: others than its owner may read it (chmod 600)");
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    Ok(password_in(&text, config))
}

fn password_in(text: &str, config: &Config) -> Option<String> {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        Some(Host::Unix(_)) | None => "localhost".to_owned(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432).to_string();
    let user = config.get_user().unwrap_or_default();
    let database = config.get_dbname().unwrap_or(user);
    let wanted = [host.as_str(), port.as_str(), database, user];
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut fields = fields(line).into_iter();
        let fits = wanted.iter().all(|wanted| {
            fields.next().is_some_and(|(field, escaped)| (field == "*" && !escaped) || field == *wanted)
        });
        fields.next().filter(|_| fits).map(|(password, _)| password)
    })
}

/// The fields of a line, with whether anything in them was escaped.
fn fields(line: &str) -> Vec<(String, bool)> {
    let mut fields = vec![(String::new(), false)];
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        let Some((field, escaped)) = fields.last_mut() else { break };
        match letter {
            '\\' => {
                *escaped = true;
                field.extend(letters.next());
            }
            ':' => fields.push((String::new(), false)),
            other => field.push(other),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    fn read(url: &str) -> (Config, TlsWish) {
        parse(url, &none).expect("a URL")
    }

    #[test]
    fn sslmode_says_what_is_verified() {
        for (query, verify) in [
            ("", Verify::Nothing),
            ("?sslmode=require", Verify::Nothing),
            ("?sslmode=require&sslrootcert=%2Fca.pem", Verify::Chain),
            ("?sslrootcert=%2Fca.pem&sslmode=verify-ca", Verify::Chain),
            ("?sslmode=verify-full&application_name=app", Verify::ChainAndName),
        ] {
            let (config, wish) = read(&format!("postgres://u@db/app{query}"));
            assert_eq!(wish.verify, verify, "{query}");
            assert_eq!(wish.roots.is_some(), query.contains("sslrootcert"), "{query}");
            assert_eq!(config.get_dbname(), Some("app"));
        }
    }

    #[test]
    fn unknown_sslmode_is_refused_without_showing_the_password() {
        let error = parse("postgres://u:secret@db/app?sslmode=always", &none).expect_err("no mode");
        assert!(error.to_string().contains("verify-full"), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn password_comes_from_the_url_then_the_environment() {
        let variable = |name: &str| (name == "PGPASSWORD").then(|| "env".to_owned());
        let (config, _) = parse("postgres://u:url@db/app", &variable).expect("a URL");
        assert_eq!(config.get_password(), Some("url".as_bytes()));
        let (config, _) = parse("postgres://u@db/app", &variable).expect("a URL");
        assert_eq!(config.get_password(), Some("env".as_bytes()));
    }

    #[test]
    fn password_file_is_matched_field_by_field_and_only_if_nobody_else_reads_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pgpass");
        std::fs::write(&path, "# a comment\ndb:5433:*:u:other\n*:*:app:u:a\\:b\\\\c:rest\n*:*:*:*:last\n")
            .expect("written");
        let variable = |name: &str| (name == "PGPASSFILE").then(|| path.display().to_string());
        let password = |url: &str| {
            let (config, _) = parse(url, &variable).expect("a URL");
            config.get_password().map(|password| String::from_utf8_lossy(password).into_owned())
        };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("set");
        assert_eq!(password("postgres://u@db/app"), None);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("set");
        assert_eq!(password("postgres://u@db/app").as_deref(), Some("a:b\\c"));
        assert_eq!(password("postgres://u@db:5433/app").as_deref(), Some("other"));
        assert_eq!(password("postgres://w@db/app").as_deref(), Some("last"));
    }
}
