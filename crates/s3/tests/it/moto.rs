//! S3-compatible storage for a test: moto's server from PyPI.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdin, Command, Stdio},
};

use crate::pypi::environment;

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
        let check = "import moto.moto_server.threaded_moto_server, flask";
        let environment = environment("moto-5.2.3", &[MOTO], check)?;
        let mut child = Command::new(environment.join("bin/python"))
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
