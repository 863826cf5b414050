//! Between a client and moto: lets requests and answers through, or does not.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
};

/// What is about to be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Request,
    Answer,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Pass,
    /// The connection ends.
    Cut,
    /// Passed on without the header of this name, in lower case.
    Without(&'static str),
    /// Answered as a storage does whose condition does not hold.
    Fail,
}

type Rule = dyn Fn(Moment, &str) -> Act + Send + Sync;

/// Starts one that lives as long as the test does. `rule` sees the request's head, in lower case. Returns its address.
pub(crate) fn start(server: &str, rule: impl Fn(Moment, &str) -> Act + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = server.strip_prefix("http://").unwrap().to_owned();
    let rule: Arc<Rule> = Arc::new(rule);
    thread::spawn(move || {
        for client in listener.incoming() {
            let (server, rule) = (server.clone(), Arc::clone(&rule));
            // A client that breaks off, or a server that does, ends this connection only.
            thread::spawn(move || client.and_then(|client| pass_on(client, &server, rule.as_ref())));
        }
    });
    address
}

/// One request and its answer; the server closes after each.
fn pass_on(mut client: TcpStream, server: &str, rule: &Rule) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 1 << 14];
    let head_ends = loop {
        if let Some(at) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break at + 2;
        }
        match client.read(&mut buffer)? {
            0 => return Ok(()),
            read => request.extend_from_slice(&buffer[..read]),
        }
    };
    let head = String::from_utf8_lossy(&request[..head_ends]).to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    while request.len() < head_ends + 2 + length.unwrap_or(0) {
        match client.read(&mut buffer)? {
            0 => return Ok(()),
            read => request.extend_from_slice(&buffer[..read]),
        }
    }
    let request = match rule(Moment::Request, &head) {
        Act::Pass => request,
        Act::Cut => return Ok(()),
        Act::Fail => {
            return client.write_all(
                b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
        Act::Without(name) => {
            let kept = |line: &&str| !line.to_ascii_lowercase().starts_with(&format!("{name}:"));
            let lines = String::from_utf8_lossy(&request[..head_ends]).into_owned();
            let mut changed: Vec<u8> =
                lines.lines().filter(kept).flat_map(|line| [line.as_bytes(), b"\r\n"].concat()).collect();
            changed.extend_from_slice(&request[head_ends..]);
            changed
        }
    };
    let mut upstream = TcpStream::connect(server)?;
    upstream.write_all(&request)?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    match rule(Moment::Answer, &head) {
        Act::Cut => Ok(()),
        Act::Pass | Act::Without(_) | Act::Fail => client.write_all(&answer),
    }
}
