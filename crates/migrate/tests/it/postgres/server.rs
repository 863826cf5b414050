//! A PostgreSQL server of the test process: made with initdb in a temporary directory, reached by a Unix socket, gone with
//! the process however it ends. Tests take a database each.

use std::{
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use postgres::{Client, NoTls};
use rustix::process::{Pid, Signal, kill_process};

use crate::not_run::not_run;

/// Where the programs are: `pg_config`, `PATH`, Debian's place, newest first.
pub(crate) fn bindir() -> Option<PathBuf> {
    let has = |directory: &PathBuf| directory.join("initdb").exists() && directory.join("postgres").exists();
    let config = Command::new("pg_config").arg("--bindir").output().ok();
    let config = config.map(|out| PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()));
    if let Some(found) = config.filter(&has) {
        return Some(found);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) = std::env::split_paths(&path).find(&has) {
        return Some(found);
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut versions: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .filter(|(_, directory)| has(directory))
        .collect();
    versions.sort();
    versions.pop().map(|(_, directory)| directory)
}

/// Whether the server's programs are there. If not, says so where `cargo xtask test` looks, and fails where tests must not
/// be left out (`CI`).
pub(crate) fn have_server() -> bool {
    let found = bindir().is_some();
    if !found {
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        not_run(&format!("{test}: postgres is not installed (Debian: apt-get install postgresql)"));
        assert!(std::env::var_os("CI").is_none(), "in CI the server has to be there");
    }
    found
}

/// The user as whom a server runs when we are root: it refuses to run as root.
pub(crate) fn postgres_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").expect("users");
    let line = passwd.lines().find(|line| line.starts_with("postgres:")).expect("a user postgres");
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields[2].parse().expect("uid"), fields[3].parse().expect("gid")))
}

/// A server.
pub(crate) struct Server {
    pub(crate) directory: PathBuf,
    bin: PathBuf,
    user: Option<(u32, u32)>,
    /// Settings beyond those of every server, as `name=value`.
    settings: Vec<String>,
    process: Mutex<Option<Child>>,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Server {
    /// Makes and starts a server; `fsync` only where a test kills it.
    pub(crate) fn start() -> Self {
        Self::start_with(|_| Vec::new())
    }

    /// As [`start`](Self::start), with settings of its own; `make` may put files for the server into its directory.
    pub(crate) fn start_with(make: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let bin = bindir().expect("postgres is installed");
        let user = postgres_user();
        let base = tempfile::Builder::new().prefix("cutover-pg-").tempdir().expect("a directory").keep();
        std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o755)).expect("open to postgres");
        if let Some((uid, gid)) = user {
            chown(&base, Some(uid), Some(gid)).expect("owned by postgres");
        }
        let settings = make(&base);
        let server = Self { directory: base, bin, user, settings, process: Mutex::new(None) };
        let copied =
            Command::new("cp").arg("-a").arg(server.template()).arg(server.directory.join("data")).status();
        assert!(copied.expect("cp runs").success(), "the template cannot be copied");
        server.launch();
        server
    }

    /// What initdb makes, made once for all test processes and kept beside the build.
    fn template(&self) -> PathBuf {
        let version = Command::new(self.bin.join("postgres")).arg("--version").output().expect("a version");
        let version =
            String::from_utf8_lossy(&version.stdout).replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        let place =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("initdb_{}", version.trim_end_matches('_')));
        let lock = std::fs::File::create(place.with_extension("lock")).expect("a lock");
        lock.lock().expect("locked");
        if !place.exists() {
            let data = self.directory.join("data");
            let done = self
                .command("initdb")
                .args([
                    "--no-sync",
                    "--auth=trust",
                    "--username=postgres",
                    "--encoding=UTF8",
                    "--locale=C.UTF-8",
                    "-D",
                ])
                .arg(&data)
                .stdout(Stdio::null())
                .output()
                .expect("initdb runs");
            assert!(done.status.success(), "initdb: {}", String::from_utf8_lossy(&done.stderr));
            let unfinished = place.with_extension("new");
            let _ = std::fs::remove_dir_all(&unfinished);
            let copied = Command::new("cp").arg("-a").arg(&data).arg(&unfinished).status().expect("cp runs");
            assert!(copied.success());
            std::fs::rename(&unfinished, &place).expect("in place");
            std::fs::remove_dir_all(&data).expect("removed");
        }
        place
    }

    /// A program of the server's, as the right user, that dies with us.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=KILL");
        if let Some((uid, gid)) = self.user {
            command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
        }
        command.arg("--").arg(self.bin.join(program)).current_dir(&self.directory).stdin(Stdio::null());
        command
    }

    /// Starts the server on its data, and waits until it answers.
    pub(crate) fn launch(&self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.join("log"))
            .expect("a log");
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.directory.join("data")).arg("-k").arg(&self.directory);
        for setting in [
            "listen_addresses=",
            "fsync=off",
            "full_page_writes=off",
            "shared_buffers=64MB",
            "max_connections=60",
            "max_prepared_transactions=10",
            "max_wal_size=2GB",
            "wal_level=logical",
            "autovacuum_naptime=1s",
        ] {
            command.arg("-c").arg(setting);
        }
        for setting in &self.settings {
            command.arg("-c").arg(setting);
        }
        command.stdout(Stdio::null()).stderr(log);
        // The death signal is bound to the thread that starts the process: one that ends with the process.
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = send.send(command.spawn());
            loop {
                std::thread::park();
            }
        });
        let child = receive.recv().expect("a thread").expect("postgres starts");
        *self.process.lock().expect("lock") = Some(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        while Client::connect(&self.url("postgres"), NoTls).is_err() {
            let ended = self
                .process
                .lock()
                .expect("lock")
                .as_mut()
                .is_some_and(|child| child.try_wait().expect("a child").is_some());
            assert!(!ended && Instant::now() < deadline, "postgres does not answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the server said.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Kills the server and all its children, as a power cut would: one that lived on would answer for a moment, and hold the
    /// memory that the next start has to have for itself.
    pub(crate) fn kill(&self) {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = process {
            // A server that is stopped starts no more children.
            signal(child.id(), Signal::STOP);
            let children = format!("/proc/{0}/task/{0}/children", child.id());
            let children = std::fs::read_to_string(children).unwrap_or_default();
            let children: Vec<u32> = children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
            child.kill().expect("killed");
            child.wait().expect("gone");
            children.iter().for_each(|pid| signal(*pid, Signal::KILL));
            let deadline = Instant::now() + Duration::from_secs(60);
            while children.iter().any(|pid| is_alive(*pid)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let pid_file = self.directory.join("data/postmaster.pid");
        let _ = std::fs::remove_file(pid_file);
    }

    /// Ends the server at once, which gives its shared memory back.
    fn stop(&self) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(child) = process.as_mut() {
            signal(child.id(), Signal::QUIT);
            let deadline = Instant::now() + Duration::from_secs(10);
            let has_ended = |child: &mut Child| child.try_wait().is_ok_and(|ended| ended.is_some());
            while !has_ended(child) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            if has_ended(child) {
                *process = None;
            }
        }
        drop(process);
        self.kill();
        let _ = std::fs::remove_dir_all(&self.directory);
    }

    /// A connection string.
    pub(crate) fn url(&self, database: &str) -> String {
        let port = self.settings.iter().find_map(|setting| setting.strip_prefix("port=")).unwrap_or("5432");
        format!("host={} port={port} user=postgres dbname={database}", self.directory.display())
    }

    /// The schema of a database as pg_dump prints it.
    pub(crate) fn dump(&self, database: &str) -> String {
        let out = self
            .command("pg_dump")
            .args(["--schema-only", "--no-sync", "-U", "postgres", "-h"])
            .arg(&self.directory)
            .arg(database)
            .output()
            .expect("pg_dump runs");
        assert!(out.status.success(), "pg_dump: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("text")
    }
}

/// Sends a signal to a process, unless it has ended.
fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = pid.try_into().ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process is there and no zombie.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The server of this process, for tests that do not kill it. Its directory is removed by the last database dropped.
fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(Server::start)
}

static USERS: Mutex<u32> = Mutex::new(0);

/// A database of a test's own.
pub(crate) struct Database<'s> {
    server: &'s Server,
    pub(crate) name: String,
    /// Whether it lies on the server that the tests of this process share.
    is_shared: bool,
}

impl Server {
    /// An empty database on this server.
    pub(crate) fn database(&self) -> Database<'_> {
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut client = Client::connect(&self.url("postgres"), NoTls).expect("connected");
        client.batch_execute(&format!("CREATE DATABASE {name}")).expect("a database");
        Database { server: self, name, is_shared: false }
    }
}

impl Database<'static> {
    /// An empty database.
    pub(crate) fn new() -> Self {
        *USERS.lock().expect("lock") += 1;
        let mut database = shared().database();
        database.is_shared = true;
        database
    }

    /// An empty database in which `sql` was run.
    pub(crate) fn with(sql: &str) -> Self {
        let database = Self::new();
        database.run(sql);
        database
    }
}

impl Database<'_> {
    pub(crate) fn url(&self) -> String {
        self.server.url(&self.name)
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.url(), NoTls).expect("connected")
    }

    pub(crate) fn run(&self, sql: &str) {
        if let Err(error) = self.client().batch_execute(sql) {
            panic!("{:?} in {}", error.as_db_error(), sql.chars().take(200).collect::<String>());
        }
    }

    /// The first value of a query, as text.
    pub(crate) fn value(&self, sql: &str) -> String {
        let mut client = self.client();
        let messages =
            client.simple_query(sql).unwrap_or_else(|error| panic!("{:?} in {sql}", error.as_db_error()));
        messages
            .iter()
            .find_map(|message| match message {
                postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
                _ => None,
            })
            .unwrap_or_else(|| "nothing".to_owned())
    }

    pub(crate) fn dump(&self) -> String {
        self.server.dump(&self.name)
    }
}

impl Drop for Database<'_> {
    fn drop(&mut self) {
        if !self.is_shared {
            return;
        }
        // The process that had the last database also ends the server, so that nothing stays in the temporary directory.
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        *users -= 1;
        if *users == 0 && std::env::var_os("NEXTEST").is_some() {
            self.server.stop();
        }
    }
}
