//! A root with releases, a supervisor process, and HTTP clients.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use cutover_core::model::{Digest, Listen, Ready, ReleaseRef, ServiceHints};
use cutover_host::service::{
    Activated, Activation, ServiceError, ServiceManager, ServiceSettings, ServiceState, ServiceStatus,
    SupervisorClient,
};

/// Longer than anything takes on a machine that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` gives something.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub(crate) fn fixture_program() -> PathBuf {
    env!("CARGO_BIN_EXE_service_fixture").into()
}

/// An installation and its supervisor.
pub(crate) struct Site {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) settings: ServiceSettings,
    pub(crate) supervisor: Option<Child>,
}

impl Site {
    /// An empty installation whose services listen on a port that the kernel chooses, with short waits.
    pub(crate) fn new(edit: impl FnOnce(&mut ServiceSettings)) -> Self {
        let mut settings = ServiceSettings {
            listen: Some(vec!["tcp:127.0.0.1:0".parse().expect("an address")]),
            ready_timeout_s: Some(60),
            drain_timeout_s: Some(60),
            restart_delay_ms: 10,
            restart_delay_max_s: 1,
            ..ServiceSettings::default()
        };
        edit(&mut settings);
        Self { directory: tempfile::tempdir().expect("a directory"), settings, supervisor: None }
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    /// Starts the supervisor with nothing installed, and waits until it answers.
    pub(crate) fn supervise(mut self) -> Self {
        self.start_supervisor(None);
        self
    }

    pub(crate) fn start_supervisor(&mut self, current: Option<&Activation>) {
        let write = |name: &str, text: String| std::fs::write(self.root().join(name), text).expect("written");
        write("settings.json", serde_json::to_string(&self.settings).expect("JSON"));
        write("current.json", serde_json::to_string(&current).expect("JSON"));
        self.supervisor = Some(self.supervisor_command().spawn().expect("started"));
        wait_for("the supervisor", || (self.status().state != ServiceState::NoSupervisor).then_some(()));
    }

    pub(crate) fn supervisor_command(&self) -> Command {
        let mut command = Command::new(fixture_program());
        // Not a terminal, where SIGHUP means something else.
        command.arg("supervisor").arg(self.root()).stdin(std::process::Stdio::null());
        command
    }

    /// A release whose service behaves as told.
    pub(crate) fn release(&self, version: &str, behaviour: &str) -> Activation {
        let tree = self.root().join("releases").join(version);
        std::fs::create_dir_all(&tree).expect("made");
        let program = tree.join("server");
        if !program.exists() {
            std::os::unix::fs::symlink(fixture_program(), program).expect("linked");
        }
        std::fs::write(tree.join("behaviour"), behaviour).expect("written");
        Activation {
            release: Some(ReleaseRef {
                package: "db".parse().expect("a name"),
                version: version.parse().expect("a version"),
                manifest: Digest::of(version.as_bytes()),
            }),
            tree,
            hints: Some(ServiceHints {
                command: vec!["server".to_owned(), "service".to_owned()],
                listen: Vec::new(),
                ready: Ready::Notify,
                ready_timeout_s: None,
                drain_timeout_s: None,
                env: BTreeMap::new(),
            }),
            anew: false,
        }
    }

    pub(crate) fn client(&self) -> SupervisorClient {
        SupervisorClient::new(&self.settings, self.root())
    }

    pub(crate) fn activate(&self, activation: &Activation) -> Result<Activated, ServiceError> {
        self.client().activate(activation)
    }

    pub(crate) fn status(&self) -> ServiceStatus {
        self.client().status().expect("a status")
    }

    pub(crate) fn wait_for_status(&self, what: &str, good: impl Fn(&ServiceStatus) -> bool) -> ServiceStatus {
        wait_for(what, || Some(self.status()).filter(&good))
    }

    /// Where the service really listens.
    pub(crate) fn address(&self) -> String {
        let status = self.status();
        let listen: Listen = status.listen.first().expect("a socket").parse().expect("an address");
        match listen {
            Listen::Tcp(address) => address.to_string(),
            Listen::Unix(path) => path,
        }
    }

    pub(crate) fn get(&self, path: &str) -> String {
        Client::connect(&self.address()).get(path).expect("an answer").0
    }

    pub(crate) fn supervisor_id(&self) -> u32 {
        self.supervisor.as_ref().expect("a supervisor").id()
    }

    /// Sends `signal` to the supervisor.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        signal_to(self.supervisor_id(), signal);
    }

    /// Waits for the supervisor's end; says whether it was a success.
    pub(crate) fn ended(&mut self) -> bool {
        let mut supervisor = self.supervisor.take().expect("a supervisor");
        wait_for("the supervisor's end", || supervisor.try_wait().expect("waited")).success()
    }

    pub(crate) fn log(&self, activation: &Activation) -> String {
        let name = activation.release.as_ref().expect("a release").name();
        std::fs::read_to_string(self.root().join(format!(".cutover/logs/{name}.log"))).unwrap_or_default()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(supervisor) = &mut self.supervisor {
            // Its services are told to end by the kernel.
            let _ = supervisor.kill();
            let _ = supervisor.wait();
        }
    }
}

pub(crate) fn signal_to(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("an id")).expect("an id");
    rustix::process::kill_process(pid, signal).expect("sent");
}

/// An HTTP client that keeps its connection.
pub(crate) struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    pub(crate) fn connect(address: &str) -> Self {
        Self::try_connect(address).expect("a connection")
    }

    pub(crate) fn try_connect(address: &str) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// The answer's body, and whether the server ends the connection with it.
    pub(crate) fn get(&mut self, path: &str) -> std::io::Result<(String, bool)> {
        let broken = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        write!(self.reader.get_mut(), "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut length = 0;
        let mut closes = false;
        let mut first = true;
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(broken());
            }
            if first && !line.contains(" 200 ") {
                return Err(std::io::Error::other(line));
            }
            first = false;
            match line.trim().split_once(": ") {
                Some(("Content-Length", text)) => length = text.parse().map_err(std::io::Error::other)?,
                Some(("Connection", text)) => closes = text == "close",
                Some(_) => {}
                None if line.trim().is_empty() => break,
                None => {}
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        Ok((String::from_utf8(body).map_err(std::io::Error::other)?, closes))
    }
}
