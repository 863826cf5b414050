//! One connection as the receiver sees it below HTTP: where a body ends on the wire, and how the connection is closed.
//!
//! Owns three things HTTP leaves to us. It knows whether a client sent more than the length it declared (I18). It gives a
//! client that is refused before its body was read time to read the answer: closing at once would make the kernel send a
//! reset, which may overtake the answer. And it ends a connection whose client does not read.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpStream, UnixStream},
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;

/// How long and how much of an unread body is thrown away while the client reads its refusal.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;
/// How long a client may not read what we send.
const WRITE_STALL: Duration = Duration::from_secs(30);

/// What a connection runs over.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What the handler of a request and its connection tell each other.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    position: Mutex<Position>,
    unread: AtomicBool,
    /// For asking the kernel what else has come; `None` under TLS.
    descriptor: Option<std::os::fd::OwnedFd>,
}

/// Where the stream of bytes is, between the heads and the bodies of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// In a head, so many bytes of its end (`\r\n\r\n`) seen.
    Head { seen: u8 },
    /// So many bytes after a head.
    After { bytes: u64 },
    /// A client sends requests without waiting for answers: what belongs to which cannot be told from here.
    Unknown,
}

impl Default for Position {
    fn default() -> Self {
        Self::Head { seen: 0 }
    }
}

impl Position {
    fn advance(&mut self, bytes: &[u8]) {
        match self {
            Self::Unknown => {}
            Self::After { bytes: after } => *after += bytes.len() as u64,
            Self::Head { seen } => {
                for (number, byte) in bytes.iter().enumerate() {
                    // A line may end in a bare newline (RFC 9112, 2.2), so a head ends at the second newline with at most a
                    // carriage return between.
                    *seen = match (*byte, *seen) {
                        (b'\n', 0) => 1,
                        (b'\r', 1) => 1,
                        (b'\n', 1) => 2,
                        _ => 0,
                    };
                    if *seen == 2 {
                        *self = Self::After { bytes: (bytes.len() - number - 1) as u64 };
                        return;
                    }
                }
            }
        }
    }
}

impl Wire {
    /// A request without a body is being answered.
    pub(crate) fn no_body(&self) {
        let mut position = self.position();
        *position = match *position {
            Position::After { bytes: 0 } => Position::default(),
            Position::After { .. } | Position::Head { .. } | Position::Unknown => Position::Unknown,
        };
    }

    /// A body of this length was read to its end. Says whether more came than that.
    pub(crate) fn body_ended(&self, length: u64) -> bool {
        let mut position = self.position();
        match *position {
            Position::After { bytes } if bytes > length => true,
            Position::After { .. } => {
                *position = Position::default();
                let waiting = self.descriptor.as_ref().map(rustix::io::ioctl_fionread);
                waiting.is_some_and(|waiting| waiting.is_ok_and(|waiting| waiting > 0))
            }
            Position::Head { .. } | Position::Unknown => false,
        }
    }

    /// The request is answered though its body was not read.
    pub(crate) fn leaves_body_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    fn position(&self) -> std::sync::MutexGuard<'_, Position> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Socket {
    /// `None` only while it is dropped.
    stream: Option<Stream>,
    wire: Arc<Wire>,
    write_stall: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(super) fn new(stream: Stream) -> Self {
        use std::os::fd::AsFd as _;
        let descriptor = match &stream {
            Stream::Tcp(stream) => stream.as_fd().try_clone_to_owned().ok(),
            Stream::Unix(stream) => stream.as_fd().try_clone_to_owned().ok(),
            Stream::Tls(_) => None,
        };
        Self {
            stream: Some(stream),
            wire: Arc::new(Wire { descriptor, ..Wire::default() }),
            write_stall: None,
        }
    }

    pub(super) fn wire(&self) -> Arc<Wire> {
        Arc::clone(&self.wire)
    }

    fn stalled(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sleep = self.write_stall.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL)));
        sleep.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match &mut self.stream {
            Some(Stream::Tcp(stream)) => Pin::new(stream).poll_read(context, buffer),
            Some(Stream::Unix(stream)) => Pin::new(stream).poll_read(context, buffer),
            Some(Stream::Tls(stream)) => Pin::new(stream).poll_read(context, buffer),
            None => Poll::Ready(Err(gone())),
        };
        self.wire.position().advance(&buffer.filled()[before..]);
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.stream {
            Some(Stream::Tcp(stream)) => Pin::new(stream).poll_write(context, bytes),
            Some(Stream::Unix(stream)) => Pin::new(stream).poll_write(context, bytes),
            Some(Stream::Tls(stream)) => Pin::new(stream).poll_write(context, bytes),
            None => Poll::Ready(Err(gone())),
        };
        if written.is_ready() {
            self.write_stall = None;
            return written;
        }
        self.stalled(context).map_ok(|()| 0)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match &mut self.stream {
            Some(Stream::Tcp(stream)) => Pin::new(stream).poll_flush(context),
            Some(Stream::Unix(stream)) => Pin::new(stream).poll_flush(context),
            Some(Stream::Tls(stream)) => Pin::new(stream).poll_flush(context),
            None => Poll::Ready(Err(gone())),
        };
        if flushed.is_pending() { self.stalled(context) } else { flushed }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(Stream::Tcp(stream)) => Pin::new(stream).poll_shutdown(context),
            Some(Stream::Unix(stream)) => Pin::new(stream).poll_shutdown(context),
            Some(Stream::Tls(stream)) => Pin::new(stream).poll_shutdown(context),
            None => Poll::Ready(Err(gone())),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Some(stream) = self.stream.take() else { return };
        if !self.wire.unread.load(Ordering::Relaxed) {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            match stream {
                Stream::Tcp(stream) => drop(runtime.spawn(linger(stream))),
                Stream::Unix(stream) => drop(runtime.spawn(linger(stream))),
                Stream::Tls(stream) => drop(runtime.spawn(linger(stream.into_inner().0))),
            }
        }
    }
}

/// Sends our end, then throws away what comes until the client closes, for a short while.
async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let throw_away = async {
        // The client may be gone already.
        let _ = stream.shutdown().await;
        let mut buffer = [0; 8 << 10];
        let mut left = LINGER_BYTES;
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            left = left.saturating_sub(read);
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, throw_away).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_after_a_head_are_counted_however_they_are_cut() {
        let text = b"PUT / HTTP/1.1\r\nA: \r\n b\r\nContent-Length: 3\r\n\r\nabc";
        for cut in 0..=text.len() {
            let mut position = Position::default();
            position.advance(&text[..cut]);
            position.advance(&text[cut..]);
            assert_eq!(position, Position::After { bytes: 3 }, "{cut}");
        }
        let mut position = Position::default();
        position.advance(b"GET / HTTP/1.1\nA: b\n\n");
        assert_eq!(position, Position::After { bytes: 0 });
    }

    // I18
    #[test]
    fn more_than_the_declared_length_is_noticed_and_less_is_not_more() {
        let after = |bytes| Wire { position: Mutex::new(Position::After { bytes }), ..Wire::default() };
        assert!(after(4).body_ended(3));
        assert!(!after(3).body_ended(3));
        let pipelined = after(4);
        pipelined.no_body();
        assert!(!pipelined.body_ended(3));
    }
}
