//! A receiver that does what a test says: real sockets, one thread for each connection.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use cutover_core::model::Digest;

/// A request as it came in, before its body is read.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// `HOST/EPISODE`.
    pub(crate) key: String,
    pub(crate) headers: BTreeMap<String, String>,
    /// How many requests for this key came before.
    pub(crate) earlier: usize,
    /// How much of the body was read before the answer.
    pub(crate) read: u64,
}

/// What a request leads to.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Reads and keeps it, as a receiver does.
    Store,
    /// Keeps it, and closes without an answer.
    StoreAndCut,
    /// Closes at once.
    Cut,
    /// Says this without reading the body, and closes.
    Refuse(u16, Vec<(&'static str, String)>, String),
    /// Invites the body, reads some of it, says this and closes.
    RefuseAmidst(u16, String),
    /// Reads the body, then says this.
    Say(u16, Vec<(&'static str, String)>, String),
    /// Reads nothing and says nothing.
    Stall,
}

type Script = dyn Fn(&Seen) -> Act + Send + Sync;

pub(crate) struct Receiver {
    pub(crate) url: String,
    shared: Arc<Shared>,
    address: std::net::SocketAddr,
}

struct Shared {
    script: Box<Script>,
    seen: Mutex<Vec<Seen>>,
    stored: Mutex<BTreeMap<String, Vec<u8>>>,
    stop: AtomicBool,
}

impl Receiver {
    pub(crate) fn start(script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            script: Box::new(script),
            seen: Mutex::default(),
            stored: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.stop.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || drop(serve(&shared, &stream.expect("a connection"))));
            }
        });
        Self { url: format!("http://{address}"), shared, address }
    }

    /// Every request so far, in the order in which they came.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no holder panics").clone()
    }

    /// The episodes that were asked to be stored, in order.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.key).collect()
    }

    pub(crate) fn stored(&self) -> BTreeMap<String, Vec<u8>> {
        self.shared.stored.lock().expect("no holder panics").clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(shared: &Shared, stream: &TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some((path, headers)) = head(&mut reader)? {
        let key = path.strip_prefix("/v1/episodes/").expect("the path of the contract").to_owned();
        let length: u64 = headers["content-length"].parse().expect("a length");
        let seen = {
            let mut all = shared.seen.lock().expect("no holder panics");
            let earlier = all.iter().filter(|seen| seen.key == key).count();
            all.push(Seen { key: key.clone(), headers: headers.clone(), earlier, read: 0 });
            (all.len() - 1, all[all.len() - 1].clone())
        };
        let (number, seen) = seen;
        let invite = |stream: &TcpStream| match headers.get("expect") {
            Some(_) => (&*stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n"),
            None => Ok(()),
        };
        let whole = |reader: &mut BufReader<&TcpStream>| {
            invite(stream)?;
            let mut body = Vec::new();
            reader.take(length).read_to_end(&mut body)?;
            shared.seen.lock().expect("no holder panics")[number].read = body.len() as u64;
            Ok::<_, std::io::Error>(body)
        };
        match (shared.script)(&seen) {
            Act::Store => {
                let body = whole(&mut reader)?;
                if body.len() as u64 != length {
                    return Ok(());
                }
                let (status, text) = store(shared, &key, &headers, body);
                answer(stream, status, &[], &text, "keep-alive")?;
            }
            Act::StoreAndCut => {
                let body = whole(&mut reader)?;
                store(shared, &key, &headers, body);
                return Ok(());
            }
            Act::Cut => return Ok(()),
            Act::Refuse(status, extra, text) => {
                answer(stream, status, &extra, &text, "close")?;
                // Unread bytes: the kernel resets the connection.
                return Ok(());
            }
            Act::RefuseAmidst(status, text) => {
                invite(stream)?;
                let mut some = vec![0; 100_000];
                reader.read_exact(&mut some)?;
                answer(stream, status, &[], &text, "close")?;
                return Ok(());
            }
            Act::Say(status, extra, text) => {
                whole(&mut reader)?;
                answer(stream, status, &extra, &text, "keep-alive")?;
            }
            Act::Stall => {
                while !shared.stop.load(Ordering::Relaxed) {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                let _ = stream.shutdown(Shutdown::Both);
                return Ok(());
            }
        }
    }
    Ok(())
}

fn head(reader: &mut BufReader<&TcpStream>) -> std::io::Result<Option<(String, BTreeMap<String, String>)>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let path = line.split(' ').nth(1).expect("a path").to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => {
                let before = headers.insert(name.to_ascii_lowercase(), value.to_owned());
                assert_eq!(before, None, "`{name}` twice");
            }
            None => return Ok(Some((path, headers))),
        }
    }
}

fn store(shared: &Shared, key: &str, headers: &BTreeMap<String, String>, body: Vec<u8>) -> (u16, String) {
    let sha256 = Digest::of(&body);
    if headers["content-digest"] != format!("sha-256=:{}:", base64(sha256.as_bytes())) {
        return (422, r#"{"error":"digest-mismatch"}"#.to_owned());
    }
    let mut stored = shared.stored.lock().expect("no holder panics");
    match stored.get(key) {
        None => {
            stored.insert(key.to_owned(), body);
            (201, format!(r#"{{"status":"stored","sha256":"{sha256}"}}"#))
        }
        Some(present) if *present == body => {
            (200, format!(r#"{{"status":"already-present","sha256":"{sha256}"}}"#))
        }
        Some(present) => (409, format!(r#"{{"error":"conflict","sha256":"{}"}}"#, Digest::of(present))),
    }
}

fn answer(
    mut stream: &TcpStream,
    status: u16,
    extra: &[(&str, String)],
    text: &str,
    connection: &str,
) -> std::io::Result<()> {
    let extra: String = extra.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = text.len();
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nContent-Type: application/json\r\n{extra}Connection: {connection}\r\n\r\n"
    );
    stream.write_all(format!("{head}{text}").as_bytes())
}

/// RFC 4648, 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let bits =
            (0..3).fold(0u32, |bits, at| bits << 8 | u32::from(part.get(at).copied().unwrap_or_default()));
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= part.len() { char::from(digit) } else { '=' });
        }
    }
    text
}
