//! The demo's load: many keep-alive connections with requests running all the time, and a strict count of failures.
//!
//! Plain HTTP/1.1 on plain sockets, so that nothing retries behind our back. A connection may end only after an answer
//! that said `Connection: close`; everything else that is not a whole, right answer is a failure.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// An answer that takes longer has failed.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Most bytes of an answer.
const ANSWER_BYTES_MAX: usize = 8 << 10;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n";

/// What happened so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Requests that were answered well.
    pub(super) answered: u64,
    /// Requests and connections that failed.
    pub(super) failed: u64,
    /// Connections that were opened.
    pub(super) connections: u64,
    /// The slowest answer, connecting included.
    pub(super) slowest: Duration,
    /// Answers by version.
    pub(super) by_version: BTreeMap<String, u64>,
    /// The first few failures, in words.
    pub(super) failures: Vec<String>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    open: AtomicU64,
    counts: Mutex<Counts>,
}

impl Shared {
    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().expect("no client panics while it counts")
    }
}

/// Running load.
pub(super) struct Load {
    shared: Arc<Shared>,
    thread: JoinHandle<io::Result<()>>,
}

impl Load {
    /// Opens `connections` to `address`; each one asks, waits for `pause`, and asks again.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start(address: SocketAddr, connections: usize, pause: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let inside = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("load".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                let clients: Vec<_> = (0..connections)
                    .map(|index| {
                        // Spread over the pause, so that they do not all ask at once.
                        let delay = pause.mul_f64(index as f64 / connections as f64);
                        tokio::spawn(client(address, delay, pause, Arc::clone(&inside)))
                    })
                    .collect();
                for client in clients {
                    client.await.map_err(io::Error::other)?;
                }
                Ok(())
            })
        })?;
        Ok(Self { shared, thread })
    }

    /// Clients that were answered at least once.
    pub(super) fn open(&self) -> u64 {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// What happened so far.
    pub(super) fn counts(&self) -> Counts {
        self.shared.counts().clone()
    }

    /// Lets every request that is under way end, and returns the final count.
    ///
    /// # Errors
    /// The load itself failed.
    pub(super) fn stop(self) -> io::Result<Counts> {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| io::Error::other("the load panicked"))??;
        Ok(self.shared.counts().clone())
    }
}

async fn client(address: SocketAddr, delay: Duration, pause: Duration, shared: Arc<Shared>) {
    tokio::time::sleep(delay).await;
    let mut connection: Option<Connection> = None;
    let mut is_counted = false;
    while !shared.stop.load(Ordering::SeqCst) {
        let started = Instant::now();
        let asked = tokio::time::timeout(ANSWER_MAX, ask(address, connection.take(), &shared)).await;
        match asked {
            Ok(Ok((version, still_open))) => {
                connection = still_open;
                if !is_counted {
                    is_counted = true;
                    shared.open.fetch_add(1, Ordering::SeqCst);
                }
                let mut counts = shared.counts();
                counts.answered += 1;
                counts.slowest = counts.slowest.max(started.elapsed());
                *counts.by_version.entry(version).or_default() += 1;
            }
            Ok(Err(error)) => fail(&shared, error.to_string()),
            Err(_) => fail(&shared, format!("no answer within {} s", ANSWER_MAX.as_secs())),
        }
        tokio::time::sleep(pause).await;
    }
}

fn fail(shared: &Shared, reason: String) {
    let mut counts = shared.counts();
    counts.failed += 1;
    if counts.failures.len() < 5 {
        counts.failures.push(reason);
    }
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// Asks once. Returns the body and the connection, unless the answer ended it.
async fn ask(
    address: SocketAddr,
    connection: Option<Connection>,
    shared: &Shared,
) -> io::Result<(String, Option<Connection>)> {
    let mut connection = match connection {
        Some(connection) => connection,
        None => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            shared.counts().connections += 1;
            Connection { stream, buffer: Vec::with_capacity(512) }
        }
    };
    connection.stream.write_all(REQUEST).await?;
    let (head, start, length) = loop {
        if let Some(end) = connection.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&connection.buffer[..end]).into_owned();
            let length = content_length(&head)?;
            if connection.buffer.len() >= end + 4 + length {
                break (head, end + 4, length);
            }
        }
        if connection.buffer.len() > ANSWER_BYTES_MAX {
            return Err(io::Error::other("an endless answer"));
        }
        if connection.stream.read_buf(&mut connection.buffer).await? == 0 {
            let within = if connection.buffer.is_empty() { "before" } else { "within" };
            return Err(io::Error::other(format!("the connection ended {within} the answer")));
        }
    };
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(io::Error::other(format!("answered {}", head.lines().next().unwrap_or_default())));
    }
    let body = String::from_utf8_lossy(&connection.buffer[start..start + length]).into_owned();
    connection.buffer.drain(..start + length);
    if !connection.buffer.is_empty() {
        return Err(io::Error::other("more was answered than asked"));
    }
    Ok((body, (!says_close(&head)).then_some(connection)))
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

fn content_length(head: &str) -> io::Result<usize> {
    header(head, "content-length")
        .and_then(|value| value.parse().ok())
        .filter(|length| *length <= ANSWER_BYTES_MAX)
        .ok_or_else(|| io::Error::other("an answer without a length"))
}

fn says_close(head: &str) -> bool {
    header(head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
    };

    use super::*;

    /// Serves one connection after the other with `answers`, then closes it without a word.
    fn server(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accepted");
                for answer in answers {
                    let mut request = [0; 256];
                    if stream.read(&mut request).unwrap_or(0) == 0 {
                        break;
                    }
                    let _ = stream.write_all(answer.as_bytes());
                }
            }
        });
        address
    }

    /// The load's counts once there are some.
    fn load(answers: &'static [&'static str]) -> Counts {
        let load = Load::start(server(answers), 1, Duration::from_millis(1)).expect("started");
        let started = Instant::now();
        while load.counts().answered + load.counts().failed < 6 && started.elapsed() < ANSWER_MAX {
            std::thread::sleep(Duration::from_millis(5));
        }
        load.stop().expect("stopped")
    }

    const KEPT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n1.0.0";
    const LAST: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\n1.0.0";

    #[test]
    fn connection_that_ends_as_announced_is_no_failure() {
        let counts = load(&[KEPT, LAST]);
        assert!(counts.answered > 3 && counts.connections > 1, "{counts:?}");
        assert_eq!((counts.failed, counts.by_version.get("1.0.0")), (0, Some(&counts.answered)));
    }

    #[test]
    fn connection_that_ends_unannounced_is_a_failure() {
        assert!(load(&[KEPT]).failed > 0);
    }

    #[test]
    fn error_status_and_garbage_are_failures() {
        let counts = load(&["HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"]);
        assert!(counts.failed > 0 && counts.answered == 0, "{counts:?}");
        assert!(load(&["nonsense\r\n\r\n"]).failed > 0);
    }
}
