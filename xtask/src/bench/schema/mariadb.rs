//! A MariaDB server of our own, in a directory of the scene, reached by a socket.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::stage::{Running, Stage};

/// A server that ends when this is dropped.
pub(super) struct Server {
    socket: tempfile::TempDir,
    _process: Running,
}

impl Server {
    /// Starts one; says so and returns `None` when MariaDB is not installed.
    pub(super) fn start(stage: &Stage) -> Result<Option<Self>> {
        let Some(program) = ["/usr/sbin/mariadbd", "/usr/bin/mariadbd", "/usr/libexec/mariadbd"]
            .iter()
            .map(PathBuf::from)
            .find(|path| path.exists())
        else {
            println!("not run: MariaDB is not installed (Debian: apt-get install mariadb-server)");
            return Ok(None);
        };
        let socket = tempfile::Builder::new().prefix("bench-schema-").tempdir()?;
        let data = stage.place.join("mariadb");
        let user = String::from_utf8(Command::new("id").arg("-un").output()?.stdout)?.trim().to_owned();
        let made = Command::new("mariadb-install-db")
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .arg(format!("--user={user}"))
            .arg(format!("--datadir={}", data.display()))
            .stdin(Stdio::null())
            .output()?;
        ensure!(made.status.success(), "mariadb-install-db: {}", String::from_utf8_lossy(&made.stderr));
        let mut arguments: Vec<String> = [
            "--no-defaults",
            "--skip-networking",
            "--innodb-buffer-pool-size=512M",
            "--innodb-log-file-size=1G",
        ]
        .map(str::to_owned)
        .into();
        arguments.push(format!("--user={user}"));
        arguments.push(format!("--datadir={}", data.display()));
        arguments.push(format!("--socket={}", socket.path().join("s").display()));
        arguments.push(format!("--pid-file={}", data.join("pid").display()));
        let process = Running::start(&program, &arguments, None)?;
        let server = Self { socket, _process: process };
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Err(error) = server.sql("CREATE DATABASE IF NOT EXISTS bench") {
            ensure!(Instant::now() < deadline, "MariaDB does not answer: {error:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Some(server))
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.socket.path().join("s")
    }

    /// Runs SQL by the server's own client; what it printed, without the last line break.
    pub(super) fn sql(&self, sql: &str) -> Result<String> {
        let out = self.client().args(["-e", sql]).output()?;
        ensure!(out.status.success(), "{sql}: {}", String::from_utf8_lossy(&out.stderr).trim());
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    /// A fresh table of the same shape as the PostgreSQL one, with ids from 1 to `rows`.
    pub(super) fn table(&self, rows: u64) -> Result<()> {
        self.sql(&format!(
            "USE bench; DROP TABLE IF EXISTS orders, copy; \
             CREATE TABLE orders (id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY, customer int NOT NULL, amount bigint, \
             country text, note text, at timestamp DEFAULT now()); \
             INSERT INTO orders (customer, amount, country, note) \
             SELECT seq % 100000, seq % 1000000, 'DE', concat('note ', seq) FROM seq_1_to_{rows}; ANALYZE TABLE orders"
        ))
        .map(drop)
    }

    fn client(&self) -> Command {
        let mut command = Command::new("mariadb");
        command.args(["--no-defaults", "-u", "root", "-N", "-B"]).stdin(Stdio::null());
        command.arg(format!("--socket={}", self.socket().display()));
        command
    }
}

/// Whether a program is in the search path.
pub(super) fn installed(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|at| Path::new(&at).join(name).exists()))
}
