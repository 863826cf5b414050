//! Listening sockets: opened once, held as long as the supervisor lives, lent to every process in turn.
//!
//! Because nobody ever closes them during a hand-over, the kernel keeps queueing connections whatever happens to the
//! processes; a service that is away for a moment makes clients wait, not fail.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use cutover_core::model::Listen;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

/// How many connections may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The sockets that are held.
#[derive(Default)]
pub(super) struct Sockets {
    held: Vec<(Listen, OwnedFd)>,
}

impl Sockets {
    /// Opens those of `wanted` that are not held yet.
    ///
    /// # Errors
    /// One cannot be opened; then none is held that was not before.
    pub(super) fn hold(&mut self, wanted: &[Listen]) -> Result<(), String> {
        let mut opened: Vec<(Listen, OwnedFd)> = Vec::new();
        for listen in wanted {
            if self.held.iter().chain(&opened).any(|(held, _)| held == listen) {
                continue;
            }
            let socket = open(listen).map_err(|error| format!("failed to listen on {listen}: {error}"))?;
            tracing::info!(%listen, "listening");
            opened.push((listen.clone(), socket));
        }
        self.held.extend(opened);
        Ok(())
    }

    /// Closes all that `wanted` does not name.
    pub(super) fn keep_only(&mut self, wanted: &[&Listen]) {
        let (keep, close) =
            std::mem::take(&mut self.held).into_iter().partition(|(held, _)| wanted.contains(&held));
        self.held = keep;
        close_all(close);
    }

    /// The held sockets of `wanted`, in its order.
    pub(super) fn lend(&self, wanted: &[Listen]) -> Vec<BorrowedFd<'_>> {
        let find = |listen: &Listen| {
            self.held.iter().find(|(held, _)| held == listen).map(|(_, socket)| socket.as_fd())
        };
        wanted.iter().filter_map(find).collect()
    }

    /// All that are held.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Listen, BorrowedFd<'_>)> {
        self.held.iter().map(|(listen, socket)| (listen, socket.as_fd()))
    }

    /// Takes over a socket that is open already.
    pub(super) fn adopt(&mut self, listen: Listen, socket: OwnedFd) {
        self.held.push((listen, socket));
    }

    /// Where they really listen: with the port that the kernel chose for port 0.
    pub(super) fn addresses(&self) -> Vec<String> {
        let address = |(listen, socket): &(Listen, OwnedFd)| match listen {
            Listen::Tcp(_) => rustix::net::getsockname(socket)
                .ok()
                .and_then(|address| std::net::SocketAddr::try_from(address).ok())
                .map_or_else(|| listen.to_string(), |address| Listen::Tcp(address).to_string()),
            Listen::Unix(_) => listen.to_string(),
        };
        self.held.iter().map(address).collect()
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        close_all(std::mem::take(&mut self.held));
    }
}

fn close_all(sockets: Vec<(Listen, OwnedFd)>) {
    for (listen, socket) in sockets {
        drop(socket);
        tracing::info!(%listen, "no longer listening");
        if let Listen::Unix(path) = &listen
            && let Err(error) = rustix::fs::unlink(path)
        {
            tracing::debug!(path, %error, "the socket's file is gone already");
        }
    }
}

/// Opens one listening socket. It is close-on-exec and blocking, as sd_listen_fds(3) has it.
fn open(listen: &Listen) -> io::Result<OwnedFd> {
    let socket = match listen {
        Listen::Tcp(address) => {
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            // Without it, a restart of the supervisor had to wait for old connections to time out.
            sockopt::set_socket_reuseaddr(&socket, true)?;
            rustix::net::bind(&socket, address)?;
            socket
        }
        Listen::Unix(path) => {
            remove_stale(Path::new(path))?;
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            )?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
            socket
        }
    };
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Removes a socket's file that nobody listens on any more. Anything else is left, and bind(2) will refuse.
pub(super) fn remove_stale(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt as _;

    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if !is_socket {
        return Ok(());
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let (address, _directory) = super::super::control::address(path)?;
    match rustix::net::connect(&socket, &address) {
        Err(rustix::io::Errno::CONNREFUSED) => rustix::fs::unlink(path).map_err(Into::into),
        // Somebody listens.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// `LISTEN_FDNAMES`: one name for each socket, without colons: `tcp-8080`, `unix-db.sock`.
pub(super) fn names(listen: &[Listen]) -> String {
    let name = |listen: &Listen| match listen {
        Listen::Tcp(address) => format!("tcp-{}", address.port()),
        Listen::Unix(path) => {
            let name = path.rsplit('/').next().unwrap_or_default();
            let plain = |letter: char| if letter.is_ascii_graphic() && letter != ':' { letter } else { '_' };
            format!("unix-{}", name.chars().map(plain).collect::<String>())
        }
    };
    listen.iter().map(name).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &Path) -> Listen {
        Listen::Unix(path.display().to_string())
    }

    #[test]
    fn sockets_are_opened_once_and_closed_when_nobody_wants_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let tcp: Listen = "tcp:127.0.0.1:0".parse().expect("an address");
        let socket = unix(&directory.path().join("a.sock"));
        let mut sockets = Sockets::default();
        sockets.hold(std::slice::from_ref(&tcp)).expect("held");
        let before = sockets.addresses();
        sockets.hold(&[socket.clone(), tcp.clone()]).expect("held");
        assert_eq!(
            (sockets.addresses()[0].clone(), sockets.lend(&[socket.clone(), tcp.clone()]).len()),
            (before[0].clone(), 2)
        );
        assert!(!before[0].ends_with(":0"));
        sockets.keep_only(&[&tcp]);
        assert!(!directory.path().join("a.sock").exists());
        assert_eq!(names(&[tcp, socket]), "tcp-0:unix-a.sock");
    }

    #[test]
    fn address_in_use_is_named_and_opens_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let busy = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let busy = Listen::Tcp(busy.local_addr().map(|address| (address, busy)).expect("bound").0);
        let taken = std::os::unix::net::UnixListener::bind(directory.path().join("b.sock")).expect("bound");
        let free = unix(&directory.path().join("a.sock"));
        let mut sockets = Sockets::default();
        let error =
            sockets.hold(&[free.clone(), unix(&directory.path().join("b.sock"))]).expect_err("in use");
        assert!(error.contains("b.sock"), "{error}");
        assert_eq!(sockets.addresses().len(), 0);
        drop(taken);
        // Its file is still there, but nobody listens.
        sockets.hold(&[unix(&directory.path().join("b.sock")), busy]).expect("free again");
    }

    #[test]
    fn file_in_the_way_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("precious");
        std::fs::write(&path, "data").expect("written");
        Sockets::default().hold(&[unix(&path)]).expect_err("not a socket");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "data");
    }
}
