//! A receiver in this process with a git repository of its own, and a client that sends exactly the bytes it is told to.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use cutover_bundle::episode::ArchiveWriter;
use cutover_core::model::Digest;
use cutover_server::{
    ingest::Bucket,
    receiver::{Ports, Receiver},
    settings::{GateSettings, GitSettings},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The longest a test waits for anything before it fails.
const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const REMEDIATION: &str = "1. git pull --ff-only\n2. \"restart\" the recorder";

pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// A git repository with commits.
pub(crate) struct Repository {
    pub(crate) path: PathBuf,
}

impl Repository {
    pub(crate) fn new(path: impl Into<PathBuf>, options: &[&str]) -> Self {
        let repository = Self { path: path.into() };
        std::fs::create_dir_all(&repository.path).unwrap();
        repository.git(&[&["init", "--quiet", "--initial-branch=main"], options].concat());
        repository
    }

    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("git");
        command.current_dir(&self.path).args(["-c", "user.name=t", "-c", "user.email=t@example.org"]);
        command.args(["-c", "commit.gpgSign=false", "-c", "protocol.file.allow=always"]).args(arguments);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("GIT_")) {
            command.env_remove(name);
        }
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn commit(&self, text: &str) -> String {
        self.git(&["commit", "--quiet", "--allow-empty", "-m", text]);
        self.git(&["rev-parse", "HEAD"])
    }

    pub(crate) fn commits(&self, count: usize) -> Vec<String> {
        (0..count).map(|number| self.commit(&number.to_string())).collect()
    }
}

/// A running receiver.
pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) repository: Repository,
    pub(crate) settings: GateSettings,
    ports: Ports,
    runtime: Runtime,
    receiver: Option<Receiver>,
    pub(crate) address: SocketAddr,
}

/// The settings of tests: a socket of its own, a short TTL.
pub(crate) fn settings(root: &Path, repository: &Path) -> GateSettings {
    GateSettings {
        listen: vec!["tcp:127.0.0.1:0".to_owned()],
        root: root.join("gate"),
        remediation: REMEDIATION.to_owned(),
        git: GitSettings { repository: Some(repository.to_owned()), ttl_s: 1, ..GitSettings::default() },
        ..GateSettings::default()
    }
}

impl World {
    /// Starts with a repository of three commits.
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut GateSettings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let repository = Repository::new(directory.path().join("clone"), &[]);
        repository.commits(3);
        Self::of(directory, repository, change)
    }

    pub(crate) fn of(
        directory: TempDir,
        repository: Repository,
        change: impl FnOnce(&mut GateSettings),
    ) -> Self {
        Self::given(Ports::new(now), directory, repository, change)
    }

    /// Starts with episodes in a bucket.
    pub(crate) fn in_bucket(bucket: Arc<dyn Bucket>, change: impl FnOnce(&mut GateSettings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let repository = Repository::new(directory.path().join("clone"), &[]);
        repository.commits(3);
        let ports = Ports { bucket: Some(bucket), ..Ports::new(now) };
        Self::given(ports, directory, repository, |settings| {
            settings.storage.url = Some("s3://bucket/episodes".to_owned());
            change(settings);
        })
    }

    fn given(
        ports: Ports,
        directory: TempDir,
        repository: Repository,
        change: impl FnOnce(&mut GateSettings),
    ) -> Self {
        let mut settings = settings(directory.path(), &repository.path);
        change(&mut settings);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let receiver = runtime.block_on(Receiver::start(settings.clone(), ports.clone())).unwrap();
        let address = receiver.addresses()[0];
        Self { directory, repository, settings, ports, runtime, receiver: Some(receiver), address }
    }

    pub(crate) fn stop(&mut self) {
        if let Some(receiver) = self.receiver.take() {
            self.runtime.block_on(receiver.stop());
        }
    }

    pub(crate) fn restart(&mut self) {
        self.stop();
        let start = Receiver::start(self.settings.clone(), self.ports.clone());
        let receiver = self.runtime.block_on(start).unwrap();
        self.address = receiver.addresses()[0];
        self.receiver = Some(receiver);
    }

    /// Changes the settings of the running receiver.
    pub(crate) fn set(&mut self, change: impl FnOnce(&mut GateSettings)) {
        change(&mut self.settings);
        self.receiver.as_ref().unwrap().set(self.settings.clone(), None).unwrap();
    }

    pub(crate) fn try_set(&self, settings: GateSettings) -> Result<(), cutover_server::receiver::StartError> {
        self.receiver.as_ref().unwrap().set(settings, None)
    }

    pub(crate) fn head(&self) -> String {
        self.repository.git(&["rev-parse", "HEAD"])
    }

    pub(crate) fn put(&self, key: &str, body: &[u8]) -> Answer {
        self.put_of(key, body, &self.head())
    }

    pub(crate) fn put_of(&self, key: &str, body: &[u8], commit: &str) -> Answer {
        self.put_with(key, body, &[("X-Code-Commit", commit)])
    }

    pub(crate) fn put_with(&self, key: &str, body: &[u8], headers: &[(&str, &str)]) -> Answer {
        let length = body.len().to_string();
        let headers = [&[("Content-Length", length.as_str())], headers].concat();
        self.send(&request("PUT", &format!("/v1/episodes/{key}"), &headers, body))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send(&request("GET", path, &[("Connection", "close")], b""))
    }

    /// Sends bytes, and reads until the receiver closes or has answered.
    pub(crate) fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        // A refusal may come, and the connection end, before all is sent.
        let _ = stream.write_all(bytes);
        Answer::read(&mut stream)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(crate) fn root(&self) -> &Path {
        &self.settings.root
    }

    pub(crate) fn index(&self) -> String {
        std::fs::read_to_string(self.root().join("index.jsonl")).unwrap()
    }

    pub(crate) fn rows(&self) -> Vec<Value> {
        self.index().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Every file below `episodes/`, by its path there.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for host in std::fs::read_dir(self.root().join("episodes")).unwrap() {
            let host = host.unwrap();
            for file in std::fs::read_dir(host.path()).unwrap() {
                let file = file.unwrap();
                let name =
                    format!("{}/{}", host.file_name().to_str().unwrap(), file.file_name().to_str().unwrap());
                files.insert(name, std::fs::read(file.path()).unwrap());
            }
        }
        files
    }

    /// What a metric says.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line =
            text.lines().find(|line| line.starts_with(name) && line[name.len()..].starts_with([' ', '{']));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
    }

    /// Waits until something holds.
    pub(crate) fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: gate\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut bytes = (text + "\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// One answer, and all that came before and with it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
    /// Interim answers, such as 100.
    pub(crate) interim: Vec<u16>,
}

impl Answer {
    /// Reads one answer; status 0 when the connection ended without one.
    pub(crate) fn read(stream: &mut TcpStream) -> Self {
        let mut answer =
            Self { status: 0, headers: BTreeMap::new(), body: String::new(), interim: Vec::new() };
        let mut bytes = Vec::new();
        loop {
            let Some(head) = until_blank_line(stream, &mut bytes) else { return answer };
            let mut lines = head.split("\r\n");
            let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
            if status < 200 {
                answer.interim.push(status);
                continue;
            }
            answer.status = status;
            let pairs = lines.filter_map(|line| line.split_once(": "));
            answer.headers =
                pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
            let length: usize =
                answer.headers.get("content-length").map_or(0, |length| length.parse().unwrap());
            while bytes.len() < length && read_more(stream, &mut bytes) {}
            answer.body = String::from_utf8(bytes[..length.min(bytes.len())].to_vec()).unwrap();
            return answer;
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks the status.
    #[track_caller]
    pub(crate) fn must(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
}

fn until_blank_line(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head: Vec<u8> = bytes.drain(..end + 4).collect();
            return Some(String::from_utf8(head[..end].to_vec()).unwrap());
        }
        if !read_more(stream, bytes) {
            return None;
        }
    }
}

fn read_more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 16 << 10];
    match stream.read(&mut buffer) {
        Ok(read @ 1..) => {
            bytes.extend_from_slice(&buffer[..read]);
            true
        }
        Ok(_) | Err(_) => false,
    }
}

/// An archive whose `meta.json` says this commit.
pub(crate) fn archive(commit: &str) -> Vec<u8> {
    let meta = format!(r#"{{"code_version":{{"commit":"{commit}"}}}}"#);
    let mut writer = ArchiveWriter::new(Vec::new(), 1).unwrap();
    writer.file(b"e/meta.json", false, meta.len() as u64, &mut meta.as_bytes()).unwrap();
    writer.finish().unwrap()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}
