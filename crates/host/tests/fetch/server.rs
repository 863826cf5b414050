//! An HTTP/1.1 server that does what it is told, also what no server should do.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// As in the request line.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    /// How many came before this one.
    pub(crate) number: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte of `Range: bytes=N-`.
    pub(crate) fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What is sent back.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    length: Length,
    then: Then,
    pace: Option<Pace>,
}

/// Is asked before each piece of a body, with the bytes sent so far, and may take its time; `false` ends the connection.
#[derive(Clone)]
pub(crate) struct Pace(pub(crate) Arc<dyn Fn(usize) -> bool + Send + Sync>);

impl std::fmt::Debug for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pace")
    }
}

/// The size of a piece.
const PIECE: usize = 64 << 10;

#[derive(Clone, Copy, Debug)]
enum Length {
    /// That of the body.
    Right,
    /// This one.
    Claimed(u64),
    /// None: the body ends with the connection.
    Unsaid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    KeepAlive,
    Close,
    /// Nothing more, and the connection stays open.
    Silence,
    /// The body again and again.
    Endless,
    /// The body byte by byte, with a pause after each.
    Drip,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        let (headers, body) = (Vec::new(), Vec::new());
        Self { status, headers, body, length: Length::Right, then: Then::KeepAlive, pace: None }
    }

    pub(crate) fn ok(body: &[u8]) -> Self {
        Self { body: body.to_vec(), ..Self::status(200) }
    }

    /// The bytes from `start` on, as 206.
    pub(crate) fn part(whole: &[u8], start: usize) -> Self {
        let range = format!("bytes {start}-{}/{}", whole.len() - 1, whole.len());
        Self { status: 206, ..Self::ok(&whole[start..]) }.with("content-range", &range)
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Announces another length than it sends, and closes.
    pub(crate) fn claiming(self, length: u64) -> Self {
        Self { length: Length::Claimed(length), then: Then::Close, ..self }
    }

    /// Announces no length: the body ends with the connection.
    pub(crate) fn without_length(self) -> Self {
        Self { length: Length::Unsaid, then: Then::Close, ..self }
    }

    /// Announces the whole length, sends only the first bytes of it and closes.
    pub(crate) fn cut_after(mut self, bytes: usize) -> Self {
        let length = self.body.len() as u64;
        self.body.truncate(bytes);
        self.claiming(length)
    }

    /// Announces the whole length, sends only the first bytes of it and falls silent.
    pub(crate) fn silent_after(self, bytes: usize) -> Self {
        Self { then: Then::Silence, ..self.cut_after(bytes) }
    }

    pub(crate) fn paced(self, pace: Pace) -> Self {
        Self { pace: Some(pace), ..self }
    }

    pub(crate) fn endless(self) -> Self {
        Self { length: Length::Unsaid, then: Then::Endless, ..self }
    }

    /// Sends byte after byte, so slowly that it never ends.
    pub(crate) fn dripping(self) -> Self {
        Self { then: Then::Drip, ..self }
    }

    fn send(&self, stream: &mut impl Write, closing: &AtomicBool) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} X\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match self.length {
            Length::Right => head.push_str(&format!("content-length: {}\r\n", self.body.len())),
            Length::Claimed(length) => head.push_str(&format!("content-length: {length}\r\n")),
            Length::Unsaid => {}
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        if self.then == Then::Drip {
            for byte in self.body.iter().take_while(|_| !closing.load(Ordering::Relaxed)) {
                stream.write_all(&[*byte])?;
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        for (number, piece) in self.body.chunks(PIECE).enumerate() {
            if self.pace.as_ref().is_some_and(|pace| !(pace.0)(number * PIECE)) {
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
            stream.write_all(piece)?;
        }
        while self.then == Then::Endless && !closing.load(Ordering::Relaxed) {
            stream.write_all(&self.body)?;
        }
        Ok(())
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

pub(crate) struct Server {
    scheme: &'static str,
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
    closing: Arc<AtomicBool>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_as(None, handler)
    }

    /// Speaks TLS. Whether the client showed a certificate is told in the header `x-certificate`.
    pub(crate) fn start_tls(
        config: rustls::ServerConfig,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_as(Some(Arc::new(config)), handler)
    }

    fn start_as(
        tls: Option<Arc<rustls::ServerConfig>>,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked: Arc<Mutex<Vec<Request>>> = Arc::default();
        let closing = Arc::new(AtomicBool::new(false));
        let handler: Arc<Handler> = Arc::new(handler);
        let (log, stop, count) = (Arc::clone(&asked), Arc::clone(&closing), Arc::new(AtomicUsize::new(0)));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (handler, log, stop, count) =
                    (Arc::clone(&handler), Arc::clone(&log), Arc::clone(&stop), Arc::clone(&count));
                let tls = tls.clone();
                std::thread::spawn(move || {
                    let answer = Answering { handler, log, stop, count };
                    match tls {
                        None => answer.converse(stream, || None),
                        Some(config) => answer.converse_tls(stream, config),
                    }
                });
            }
        });
        Self { scheme, address, asked, closing }
    }

    /// Serves files with ETags and ranges, as a good server does.
    pub(crate) fn of_files(files: &[(&str, &[u8])]) -> Self {
        let files: BTreeMap<String, Vec<u8>> =
            files.iter().map(|(path, bytes)| (format!("/{path}"), bytes.to_vec())).collect();
        Self::start(move |request| match files.get(&request.target) {
            Some(bytes) => file(request, bytes, "\"v1\""),
            None => Reply::status(404),
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}/", self.scheme, self.address)
    }

    pub(crate) fn asked(&self) -> Vec<Request> {
        self.asked.lock().expect("no holder panics").clone()
    }

    pub(crate) fn targets(&self) -> Vec<String> {
        self.asked().into_iter().map(|request| request.target).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

/// What a good server answers.
pub(crate) fn file(request: &Request, bytes: &[u8], etag: &str) -> Reply {
    let fresh = request.header("if-range").is_none_or(|known| known == etag);
    let reply = match request.range_start().filter(|_| fresh) {
        Some(start) if start < bytes.len() => Reply::part(bytes, start),
        Some(_) => Reply::status(416).with("content-range", &format!("bytes */{}", bytes.len())),
        None => Reply::ok(bytes),
    };
    reply.with("etag", etag)
}

/// What the threads of a server share.
struct Answering {
    handler: Arc<Handler>,
    log: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
}

impl Answering {
    fn converse_tls(&self, mut stream: TcpStream, config: Arc<rustls::ServerConfig>) {
        let mut connection = rustls::ServerConnection::new(config).expect("a configuration");
        while connection.is_handshaking() {
            if connection.complete_io(&mut stream).is_err() {
                return;
            }
        }
        let shown = if connection.peer_certificates().is_some() { "shown" } else { "none" };
        self.converse(rustls::StreamOwned::new(connection, stream), || Some(shown.to_owned()));
    }

    fn converse(&self, stream: impl Read + Write, certificate: impl Fn() -> Option<String>) {
        let mut reader = BufReader::new(stream);
        while let Some(mut request) = read_request(&mut reader) {
            request.number = self.count.fetch_add(1, Ordering::SeqCst);
            if let Some(certificate) = certificate() {
                request.headers.insert("x-certificate".to_owned(), certificate);
            }
            self.log.lock().expect("no holder panics").push(request.clone());
            let reply = (self.handler)(&request);
            let sent = reply.send(reader.get_mut(), &self.stop).and_then(|()| reader.get_mut().flush());
            if sent.is_err() {
                return;
            }
            match reply.then {
                Then::KeepAlive => {}
                Then::Close | Then::Endless | Then::Drip => return,
                // Until the client goes.
                Then::Silence => {
                    let _ = reader.read_line(&mut String::new());
                    return;
                }
            }
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let target = line.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
            None => break,
        };
    }
    Some(Request { target, headers, number: 0 })
}
