//! One client of the control socket: a line in, one or two lines out.

use std::{
    io::{Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
};

use super::super::control::{Ask, LINE_MAX, Reply, from_line, to_line};

/// A client that has not asked after this long, in milliseconds, is sent away.
const PATIENCE_MS: u64 = 10_000;

pub(super) struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// When it is sent away; `None` once it has asked.
    deadline_ms: Option<u64>,
    /// What it asked.
    pub(super) asked: Option<Ask>,
}

/// What reading from a client gave.
pub(super) enum Heard {
    /// Not all of it yet.
    Nothing,
    /// A request.
    Ask(Ask),
    /// Something that is no request.
    Nonsense(String),
    /// It went away.
    Gone,
}

impl Connection {
    /// A client that connected at `now_ms`. Only our own user and root are heard.
    ///
    /// # Errors
    /// It is somebody else.
    pub(super) fn new(stream: UnixStream, now_ms: u64) -> Result<Self, String> {
        let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(|error| error.to_string())?;
        if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
            return Err(format!("user {} may not control this supervisor", peer.uid.as_raw()));
        }
        stream.set_nonblocking(true).map_err(|error| error.to_string())?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            deadline_ms: Some(now_ms.saturating_add(PATIENCE_MS)),
            asked: None,
        })
    }

    /// Takes over a client that is waiting for the answer to `asked`.
    pub(super) fn adopt(stream: UnixStream, asked: Ask) -> Self {
        Self { stream, buffer: Vec::new(), deadline_ms: None, asked: Some(asked) }
    }

    pub(super) fn deadline_ms(&self) -> Option<u64> {
        self.deadline_ms
    }

    pub(super) fn stream(&self) -> impl AsFd {
        &self.stream
    }

    /// Reads what waits.
    pub(super) fn hear(&mut self) -> Heard {
        let mut chunk = [0; 16 << 10];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Heard::Gone,
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Heard::Nothing,
                Err(_) => return Heard::Gone,
            }
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                self.deadline_ms = None;
                return match from_line::<Ask>(&self.buffer[..end]) {
                    Ok(ask) => {
                        self.asked = Some(ask.clone());
                        Heard::Ask(ask)
                    }
                    Err(reason) => Heard::Nonsense(reason),
                };
            }
            if self.buffer.len() > LINE_MAX {
                return Heard::Nonsense(format!("a request has at most {LINE_MAX} bytes"));
            }
        }
    }

    /// Says `reply`. A client that does not listen is not waited for: the answer is small and fits its buffer.
    pub(super) fn say(&mut self, reply: &Reply) {
        if let Err(error) = self.stream.write_all(&to_line(reply)) {
            tracing::debug!(%error, "a client did not wait for its answer");
        }
    }
}
