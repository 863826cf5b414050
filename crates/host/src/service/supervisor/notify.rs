//! Where a process says that it is ready: one socket per process, so an old one cannot speak for a new one.
//!
//! The socket is abstract (unix(7)), so that it needs no directory that both sides may enter. Anybody may send to such a
//! socket; what counts is who the kernel says it was.

use std::{
    io::{self, IoSliceMut, Read},
    mem::MaybeUninit,
    os::fd::OwnedFd,
};

use rustix::{
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags,
        SocketType, recvmsg, sockopt,
    },
    process::Pid,
};

/// The most messages that are read at once, so that one talker does not keep us from the others.
const MESSAGES_MAX: usize = 16;

/// A socket and what `NOTIFY_SOCKET` says to reach it.
pub(super) struct Notify {
    socket: OwnedFd,
    name: String,
    /// Messages of others.
    strangers: u64,
}

impl Notify {
    /// Opens a socket with a name of its own. Whoever looks at /proc/net/unix can read it.
    pub(super) fn open() -> io::Result<Self> {
        let mut random = [0; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("cutover-notify-{random}");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        sockopt::set_socket_passcred(&socket, true)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
        Ok(Self { socket, name: format!("@{name}"), strangers: 0 })
    }

    /// Takes over a socket that is open already.
    pub(super) fn adopt(socket: OwnedFd, name: String) -> Self {
        Self { socket, name, strangers: 0 }
    }

    /// The value of `NOTIFY_SOCKET`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The socket, to wait for.
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Reads what waits; says whether the process `main`, or one of its group, said `READY=1`.
    pub(super) fn is_ready(&mut self, main: Pid) -> bool {
        let mut ready = false;
        for _ in 0..MESSAGES_MAX {
            let mut bytes = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received =
                recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::empty());
            let count = match received {
                Ok(message) => message.bytes,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => break,
            };
            let sender = control.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.pid),
                _ => None,
            });
            let trusted =
                sender.is_some_and(|pid| pid == main || rustix::process::getpgid(Some(pid)) == Ok(main));
            if !trusted {
                // Told once: others must not be able to fill the log.
                if self.strangers == 0 {
                    tracing::warn!(?sender, "somebody else speaks to the service's notification socket");
                }
                self.strangers = self.strangers.saturating_add(1);
                continue;
            }
            ready |= bytes[..count].split(|byte| *byte == b'\n').any(|line| line == b"READY=1");
        }
        ready
    }

    /// How many messages of others were dropped.
    pub(super) fn strangers(&self) -> u64 {
        self.strangers
    }
}

#[cfg(test)]
mod tests {
    use std::os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    };

    use super::*;

    fn send(notify: &Notify, text: &str) {
        let name = notify.name().strip_prefix('@').expect("an abstract name");
        let address = SocketAddr::from_abstract_name(name).expect("an address");
        UnixDatagram::unbound().expect("a socket").send_to_addr(text.as_bytes(), &address).expect("sent");
    }

    #[test]
    fn only_the_process_itself_can_say_that_it_is_ready() {
        let mut notify = Notify::open().expect("a socket");
        let me = rustix::process::getpid();
        assert!(!notify.is_ready(me));
        send(&notify, "STATUS=nearly\nREADY=10");
        assert!(!notify.is_ready(me));
        send(&notify, "STATUS=there\nREADY=1\n");
        assert!(notify.is_ready(me));
        send(&notify, "READY=1");
        let somebody_else = Pid::from_raw(i32::MAX).expect("an id");
        assert!(!notify.is_ready(somebody_else));
        assert_eq!(notify.strangers(), 1);
    }

    #[test]
    fn strangers_are_counted_and_the_process_is_still_heard() {
        let mut notify = Notify::open().expect("a socket");
        let (me, somebody_else) = (rustix::process::getpid(), Pid::from_raw(i32::MAX).expect("an id"));
        for _ in 0..100 {
            send(&notify, "READY=1");
            assert!(!notify.is_ready(somebody_else));
        }
        assert_eq!(notify.strangers(), 100);
        send(&notify, "READY=1");
        assert!(notify.is_ready(me));
    }
}
