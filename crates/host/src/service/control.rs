//! The control socket: what is asked of a running supervisor, and what it answers.
//!
//! Lines of JSON, one request and one or two replies a connection. Format: `docs/formats/control-socket.md`.

use std::{
    io::{self, Read},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cutover_core::model::ReleaseRef;
use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Activated, Activation, ServiceStatus};

/// The version of the protocol.
pub(super) const VERSION: u32 = 1;
/// The longest line, in bytes: an activation with a release's whole environment is far smaller.
pub(super) const LINE_MAX: usize = 1 << 20;
/// The socket's name below `.cutover`.
pub(super) const SOCKET: &str = "run.sock";
/// The longest time until the supervisor says anything at all.
const FIRST_REPLY: Duration = Duration::from_secs(10);

/// One line.
#[derive(Debug, Serialize, Deserialize)]
struct Line<T> {
    v: u32,
    #[serde(flatten)]
    body: T,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "op")]
pub(super) enum Ask {
    /// Run this; answered by [`Reply::Activated`].
    Activate(Activation),
    /// Stop the service but keep its sockets; answered by [`Reply::Done`].
    Quiesce,
    /// Answered by [`Reply::Status`].
    Status,
    /// Go on as the program at `path`; answered by [`Reply::Done`], by that program.
    Reexec { path: PathBuf },
    /// Stop the service and end; answered by [`Reply::Done`].
    Stop,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reply")]
pub(super) enum Reply {
    /// The final reply comes within this time, in milliseconds.
    Accepted { within_ms: u64 },
    /// The release runs and is ready.
    Activated(Activated),
    /// What runs.
    Status(ServiceStatus),
    /// It is done.
    Done { note: String },
    /// The release did not become ready.
    NotReady { release: ReleaseRef, reason: String, log: Option<PathBuf> },
    /// A later request wants something else.
    Superseded { by: String },
    /// The supervisor was told to end and starts nothing more; it is gone within this time, in milliseconds.
    Ending { within_ms: u64 },
    /// It cannot be done.
    Refused { reason: String },
}

/// Writes `body` as one line.
pub(super) fn to_line(body: &impl Serialize) -> Vec<u8> {
    let mut line =
        serde_json::to_vec(&Line { v: VERSION, body }).expect("string keys and plain values are JSON");
    line.push(b'\n');
    line
}

/// Reads one line without its newline.
///
/// # Errors
/// Another version, or not what is expected.
pub(super) fn from_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    struct VersionOnly {
        v: u32,
    }
    let version: VersionOnly = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if version.v != VERSION {
        return Err(format!(
            "version {} of the control protocol is unsupported; this is {VERSION}",
            version.v
        ));
    }
    let line: Line<T> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    Ok(line.body)
}

/// Where the control socket of the installation at `root` is.
pub(super) fn socket_path(root: &Path) -> PathBuf {
    root.join(".cutover").join(SOCKET)
}

/// An address for `path` of any length: sockaddr_un(7) holds 108 bytes, so long paths go through a handle of their
/// directory, which lives as long as the returned guard.
pub(super) fn address(path: &Path) -> io::Result<(SocketAddrUnix, Option<std::os::fd::OwnedFd>)> {
    if let Ok(address) = SocketAddrUnix::new(path) {
        return Ok((address, None));
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory =
        rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&directory);
    let through = Path::new("/proc/self/fd").join(number.to_string()).join(name);
    Ok((SocketAddrUnix::new(through)?, Some(directory)))
}

/// Why there is no reply.
#[derive(Debug)]
pub(super) enum NoReply {
    /// Nobody listens.
    NoSupervisor,
    /// The socket cannot be used.
    Io(io::Error),
    /// The connection ended before anything was said, as it does when the supervisor becomes a newer program.
    Ended,
    /// It is there but said nothing useful.
    Silent(String),
}

impl From<io::Error> for NoReply {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                Self::Silent("did not answer in time".to_owned())
            }
            _ => Self::Io(error),
        }
    }
}

impl From<rustix::io::Errno> for NoReply {
    fn from(error: rustix::io::Errno) -> Self {
        io::Error::from(error).into()
    }
}

/// Asks the supervisor of the installation at `root` and waits for its final reply.
///
/// # Errors
/// See [`NoReply`].
pub(super) fn ask(root: &Path, ask: &Ask) -> Result<Reply, NoReply> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let connected = address(&socket_path(root)).and_then(|(address, _directory)| {
        // A supervisor that is stopped with a full backlog must not hold us for ever.
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Send,
            Some(FIRST_REPLY),
        )?;
        rustix::net::connect(&socket, &address).map_err(Into::into)
    });
    match connected {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(NoReply::NoSupervisor);
        }
        Err(error) => return Err(error.into()),
    }
    let mut stream = UnixStream::from(socket);
    match io::Write::write_all(&mut stream, &to_line(ask)) {
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            return Err(NoReply::Ended);
        }
        other => other?,
    }
    let mut buffer = Vec::new();
    let mut reply = read_reply(&mut stream, &mut buffer, FIRST_REPLY)?;
    let mut timeout = FIRST_REPLY;
    if let Reply::Accepted { within_ms } = reply {
        timeout = Duration::from_millis(within_ms) + FIRST_REPLY;
        reply = match read_reply(&mut stream, &mut buffer, timeout) {
            Err(NoReply::Ended) => return Err(NoReply::Silent("ended before it answered".to_owned())),
            other => other?,
        };
    }
    if *ask == Ask::Stop && matches!(reply, Reply::Done { .. }) {
        // It is gone when the connection ends.
        match read_reply(&mut stream, &mut buffer, timeout) {
            Err(NoReply::Ended) => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(NoReply::Silent("went on after it said that it ends".to_owned())),
        }
    }
    Ok(reply)
}

/// Reads one line of a reply; what follows it stays in `buffer`.
fn read_reply(stream: &mut UnixStream, buffer: &mut Vec<u8>, timeout: Duration) -> Result<Reply, NoReply> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            return from_line(&line[..end])
                .map_err(|reason| NoReply::Silent(format!("answered nonsense: {reason}")));
        }
        if buffer.len() > LINE_MAX {
            return Err(NoReply::Silent("answered without end".to_owned()));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        // Zero would mean no timeout.
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk) {
            Ok(0) => return Err(NoReply::Ended),
            Ok(count) => buffer.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(NoReply::Ended),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_round_trip_as_one_line() {
        let asks = [
            Ask::Activate(Activation { release: None, tree: "/srv/x".into(), hints: None, anew: true }),
            Ask::Quiesce,
            Ask::Status,
            Ask::Reexec { path: "/usr/bin/cutover".into() },
            Ask::Stop,
        ];
        for ask in asks {
            let line = to_line(&ask);
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(from_line::<Ask>(&line[..line.len() - 1]), Ok(ask));
        }
        assert_eq!(to_line(&Ask::Status), b"{\"v\":1,\"op\":\"status\"}\n");
        let reply = Reply::Status(ServiceStatus::bare(super::super::ServiceState::Ready, "up"));
        assert_eq!(from_line::<Reply>(to_line(&reply).trim_ascii_end()), Ok(reply));
    }

    #[test]
    fn other_versions_and_unknown_requests_are_refused_by_name() {
        let refused = |line: &str| from_line::<Ask>(line.as_bytes()).expect_err(line);
        assert!(refused(r#"{"v":2,"op":"status"}"#).contains("unsupported"));
        assert!(refused(r#"{"v":1,"op":"dance"}"#).contains("dance"));
        for line in ["", "{}", "[]", r#"{"v":1}"#, r#"{"v":1,"op":"activate"}"#] {
            refused(line);
        }
    }

    #[test]
    fn path_longer_than_a_socket_address_is_reached_through_its_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let deep = directory.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).expect("made");
        let path = deep.join("s");
        let (to, _guard) = address(&path).expect("an address");
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
        rustix::net::bind(&listener, &to).expect("bound");
        assert!(path.exists());
    }
}
