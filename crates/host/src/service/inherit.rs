//! The other side of `cutover run`, for services written in Rust: take over the sockets, say that we are ready.
//!
//! Implements the protocols of sd_listen_fds(3) and sd_notify(3), so a service that uses it runs under systemd as well.
//! This is the one place of the crate that reads the environment, because the protocols live there.

use std::{
    io,
    net::TcpListener,
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram, UnixListener},
    },
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::io::FdFlags;

/// The first inherited descriptor (`SD_LISTEN_FDS_START`).
pub(super) const FIRST_FD: RawFd = 3;

/// A listening socket that was opened by whoever started this process.
#[derive(Debug)]
pub struct Inherited {
    /// Its name from `LISTEN_FDNAMES`, empty when there is none.
    pub name: String,
    /// The socket.
    pub socket: InheritedSocket,
}

/// A listening socket by its kind.
#[derive(Debug)]
pub enum InheritedSocket {
    /// A TCP socket.
    Tcp(TcpListener),
    /// A Unix stream socket.
    Unix(UnixListener),
}

/// Takes over the listening sockets that were passed to this process, in order; none when there are none. A second call
/// returns none, because the first one owns them.
///
/// The sockets are shared with the process that serves before and after this one. So, on SIGTERM: stop accepting, close
/// them, and never call shutdown(2) on them, which would end listening for everybody. The non-blocking mode is shared
/// too: set it to what you need and expect another process to change it.
///
/// # Errors
/// The environment names sockets that are not there.
pub fn inherited_listeners() -> io::Result<Vec<Inherited>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |key| std::env::var(key).ok().and_then(|text| text.parse::<u32>().ok());
    let ours = number("LISTEN_PID") == Some(std::process::id());
    let count = number("LISTEN_FDS").unwrap_or(0);
    if !ours || count == 0 || TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    (0..count)
        .map(|index| {
            let raw = i32::try_from(index).map_err(io::Error::other)?.saturating_add(FIRST_FD);
            let name = names.next().unwrap_or_default().to_owned();
            Ok(Inherited { name, socket: adopt(raw)? })
        })
        .collect()
}

#[allow(unsafe_code)]
fn adopt(raw: RawFd) -> io::Result<InheritedSocket> {
    // SAFETY: LISTEN_PID names this process, so by sd_listen_fds(3) the descriptors from 3 on are meant for it and owned
    // by nobody else in it; `inherited_listeners` gives each one out once. A number that is not open is refused below
    // before anything is done with it.
    let socket = unsafe {
        rustix::io::fcntl_getfd(std::os::fd::BorrowedFd::borrow_raw(raw))?;
        OwnedFd::from_raw_fd(raw)
    };
    rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    match rustix::net::sockopt::socket_domain(&socket)? {
        rustix::net::AddressFamily::UNIX => Ok(InheritedSocket::Unix(socket.into())),
        rustix::net::AddressFamily::INET | rustix::net::AddressFamily::INET6 => {
            Ok(InheritedSocket::Tcp(socket.into()))
        }
        other => Err(io::Error::other(format!("descriptor {raw} is a socket of family {other:?}"))),
    }
}

/// Says `READY=1` to whoever started this process; says whether anybody wanted to know.
///
/// # Errors
/// `NOTIFY_SOCKET` is set but cannot be written to.
pub fn notify_ready() -> io::Result<bool> {
    notify("READY=1")
}

/// Sends `state`, lines of `KEY=VALUE` as in sd_notify(3).
///
/// # Errors
/// `NOTIFY_SOCKET` is set but cannot be written to.
pub fn notify(state: &str) -> io::Result<bool> {
    use std::os::unix::ffi::OsStrExt as _;

    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(false) };
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&address)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(true)
}
