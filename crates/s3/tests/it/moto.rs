//! S3-compatible storage for a test: moto's server from PyPI, in a virtual environment that is made once for each build.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

/// What is installed from PyPI.
const MOTO: &str = "moto[server]==5.2.3";
/// Says where it listens, and ends when its standard input does: a test that dies leaves nothing running.
const SERVER: &str = "
import logging, sys
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
logging.getLogger('werkzeug').setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
";

/// A Python with moto; `None` when it cannot be had here.
fn python() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("moto-5.2.3");
    let python = dir.join("bin/python");
    let works = |python: &Path| {
        let check = "import moto.moto_server.threaded_moto_server, flask";
        Command::new(python).args(["-c", check]).output().is_ok_and(|output| output.status.success())
    };
    // Test processes run beside each other: one makes it, the others wait.
    let lock = std::fs::File::create(dir.with_extension("lock")).expect("a file");
    lock.lock().expect("locked");
    if works(&python) {
        return Some(python);
    }
    let run = |program: &Path, arguments: &[&str]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    let made = run(Path::new("python3"), &["-m", "venv", dir.to_str().expect("UTF-8")])
        && run(&python, &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", MOTO]);
    if made && works(&python) {
        return Some(python);
    }
    let note = format!("tests of S3: python3 with venv and {MOTO} from PyPI cannot be had");
    if let Some(path) = std::env::var_os("XTASK_NOT_RUN") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).expect("a file");
        writeln!(file, "{note}").expect("written");
    }
    eprintln!("not run: {note}");
    None
}

/// A server that runs until this is dropped.
pub(crate) struct Moto {
    child: Child,
    /// Closed when the test ends, however it does.
    _input: ChildStdin,
    /// Such as `http://127.0.0.1:34567`.
    pub(crate) endpoint: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who may read a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Everybody.
    Public,
    /// Only who signs requests.
    Private,
}

impl Moto {
    /// Starts one; `None` when there is no moto here.
    pub(crate) fn start() -> Option<Self> {
        let mut child = Command::new(python()?)
            .args(["-c", SERVER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let input = child.stdin.take().expect("piped");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it says its port");
        let endpoint = format!("http://127.0.0.1:{}", line.trim());
        Some(Self { child, _input: input, endpoint })
    }

    /// Makes a bucket.
    pub(crate) fn make_bucket(&self, name: &str, readers: Readers) {
        let acl = match readers {
            Readers::Public => "public-read",
            Readers::Private => "private",
        };
        let request = reqwest::blocking::Client::new().put(format!("{}/{name}", self.endpoint));
        let answer = request.header("x-amz-acl", acl).send().expect("answered");
        assert!(answer.status().is_success(), "{answer:?}");
    }
}
