//! A PostgreSQL server of our own, in a directory of the scene, reached by a socket.

use std::{
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use postgres::{Client, NoTls};

use super::stage::{Running, Stage, bound};

/// A server that ends when this is dropped.
pub(super) struct Server {
    bin: PathBuf,
    socket: tempfile::TempDir,
    _process: Running,
}

impl Server {
    /// Starts one; says so and returns `None` when PostgreSQL is not installed.
    pub(super) fn start(stage: &Stage) -> Result<Option<Self>> {
        let Some(bin) = bindir() else {
            println!("not run: PostgreSQL is not installed (Debian: apt-get install postgresql)");
            return Ok(None);
        };
        let user = postgres_user()?;
        // A socket's path may have 107 bytes only.
        let socket = tempfile::Builder::new().prefix("bench-schema-").tempdir()?;
        std::fs::set_permissions(socket.path(), std::fs::Permissions::from_mode(0o777))?;
        let data = stage.place.join("postgres");
        std::fs::create_dir_all(&data)?;
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700))?;
        if let Some((uid, gid)) = user {
            chown(&data, Some(uid), Some(gid))?;
            chown(socket.path(), Some(uid), Some(gid))?;
        }
        let made = bound(&bin.join("initdb"), user)
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", "-D"])
            .arg(&data)
            .output()?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let mut arguments: Vec<String> =
            ["-D", &data.to_string_lossy(), "-k", &socket.path().to_string_lossy()].map(str::to_owned).into();
        for setting in
            ["listen_addresses=", "shared_buffers=512MB", "max_wal_size=8GB", "checkpoint_timeout=15min"]
        {
            arguments.extend(["-c".to_owned(), setting.to_owned()]);
        }
        let process = Running::start(&bin.join("postgres"), &arguments, user)?;
        let server = Self { bin, socket, _process: process };
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Err(error) = server.connect() {
            ensure!(Instant::now() < deadline, "PostgreSQL does not answer: {error:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Some(server))
    }

    /// A connection of a client.
    pub(super) fn connect(&self) -> Result<Client> {
        let mut config = postgres::Config::new();
        config.host_path(self.socket()).user("postgres").dbname("postgres");
        config.connect(NoTls).context("failed to connect to PostgreSQL")
    }

    /// How `cutover` and peers reach it.
    pub(super) fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.socket().to_string_lossy().replace('/', "%2F"))
    }

    pub(super) fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// Runs SQL by psql, which shows what users would see; what it printed, without the last line break.
    pub(super) fn sql(&self, sql: &str) -> Result<String> {
        let out = Command::new(self.bin.join("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"])
            .arg(self.socket())
            .args(["-c", sql])
            .stdin(std::process::Stdio::null())
            .output()?;
        ensure!(out.status.success(), "{sql}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    /// The tool of this name.
    pub(super) fn tool(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// Throws everything away that a way left, and its state.
    pub(super) fn clear(&self) -> Result<()> {
        let ours = "nspname IN ('public', 'cutover', 'reshape') OR nspname LIKE '\\_cutover%' \
                    OR nspname LIKE 'app\\_v%' OR nspname LIKE 'migration\\_%'";
        for schema in self.sql(&format!("SELECT nspname FROM pg_namespace WHERE {ours}"))?.lines() {
            self.sql(&format!("DROP SCHEMA \"{schema}\" CASCADE"))?;
        }
        self.sql("CREATE SCHEMA public").map(drop)
    }

    /// A table `name` with ids from 1 to `rows`, analysed and on disk.
    pub(super) fn table(&self, name: &str, rows: u64) -> Result<()> {
        self.sql(&format!(
            "CREATE TABLE {name} (id bigserial PRIMARY KEY, customer int NOT NULL, amount bigint, country text, note text, \
             at timestamptz DEFAULT now())"
        ))?;
        self.sql(&format!(
            "INSERT INTO {name} (customer, amount, country, note) \
             SELECT g % 100000, g % 1000000, 'DE', 'note ' || g FROM generate_series(1, {rows}) g"
        ))?;
        self.sql(&format!("VACUUM ANALYZE {name}"))?;
        self.sql("CHECKPOINT").map(drop)
    }
}

fn bindir() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .filter(|(_, directory)| directory.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().map(|(_, directory)| directory)
}

/// The user as whom the server runs when we are root: it refuses to run as root.
fn postgres_user() -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let line =
        users.lines().find(|line| line.starts_with("postgres:")).context("there is no user `postgres`")?;
    let field = |at: usize| line.split(':').nth(at).and_then(|text| text.parse().ok());
    Ok(field(2).zip(field(3)))
}
