//! A client and a server as programs of their own: tests kill the client, `cargo xtask bench fetch` measures both.
//!
//! `fetch_fixture get ROOT LIST [--parallel N] [--limit BYTES_PER_S] [--take | --take-late] [--sync] BASE...` fetches what LIST
//! names, one `PATH SHA256 SIZE` per line, stages it as it arrives or at the end, flushes, and prints one line of JSON.
//! `fetch_fixture serve DIR [--latency MS] [--rate BYTES_PER_S]` serves a directory, each connection at most at that rate,
//! prints its URL, and answers `/.sent` with the number of body bytes sent so far.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)]

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    num::NonZeroUsize,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cutover_core::{
    fetch::{Priority, speeds::Speeds},
    model::{Hasher, Instant},
};
use cutover_host::{
    clock::Clock,
    disk::{Disk as _, RealDisk},
    fetch::{
        Downloads, FetchPorts, Fetched, Fetcher, OnFailure, RealTimer, RelativePath, Sink, SourceSettings,
        Taken, Unwatched, Wanted, Watch,
    },
    nice::Nice,
};

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.remove(0).as_str() {
        "get" => get(&mut arguments),
        "serve" => serve(&mut arguments),
        other => panic!("`{other}` is neither get nor serve"),
    }
}

/// Takes `--name VALUE` out of the arguments.
fn option(arguments: &mut Vec<String>, name: &str) -> Option<u64> {
    let at = arguments.iter().position(|argument| argument == name)?;
    arguments.remove(at);
    Some(arguments.remove(at).parse().unwrap())
}

fn flag(arguments: &mut Vec<String>, name: &str) -> bool {
    let at = arguments.iter().position(|argument| argument == name);
    at.map(|at| arguments.remove(at)).is_some()
}

struct System;

impl Clock for System {
    fn now(&self) -> Instant {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Instant::from_unix(since.as_secs() as i64).unwrap()
    }
}

/// What a stage does with an object: reads it, hashes it again, writes it to its place.
struct Stage(Option<PathBuf>);

impl Sink for Stage {
    fn take(
        &mut self,
        _: usize,
        fetched: &Fetched,
        downloads: &Downloads,
    ) -> Result<Taken, Box<dyn std::error::Error + Send + Sync>> {
        let Some(directory) = &self.0 else { return Ok(Taken::Kept) };
        let mut content = downloads.open_object(fetched.digest)?;
        let mut place = File::create(directory.join(fetched.digest.to_string()))?;
        let (mut hasher, mut block) = (Hasher::new(), vec![0; 1 << 20]);
        loop {
            let read = content.read(&mut block)?;
            if read == 0 {
                break;
            }
            hasher.update(&block[..read]);
            place.write_all(&block[..read])?;
        }
        assert_eq!(hasher.finish(), fetched.digest);
        Ok(Taken::Consumed)
    }
}

fn get(arguments: &mut Vec<String>) {
    let parallel = option(arguments, "--parallel").unwrap_or(8) as usize;
    let bytes_per_s = option(arguments, "--limit").unwrap_or(0);
    let (take, late, sync) =
        (flag(arguments, "--take"), flag(arguments, "--take-late"), flag(arguments, "--sync"));
    let proxy = (!flag(arguments, "--env-proxy")).then(|| "none".to_owned());
    let retries = if flag(arguments, "--no-retries") { 0 } else { SourceSettings::default().retries };
    let settings = SourceSettings { parallel, bytes_per_s, proxy, retries, ..SourceSettings::default() };
    let root = PathBuf::from(arguments.remove(0));
    let list = std::fs::read_to_string(arguments.remove(0)).unwrap();
    let wanted: Vec<Wanted> = list.lines().map(parse).collect();
    let jobs = std::thread::available_parallelism().unwrap().min(NonZeroUsize::new(4).unwrap());
    let timer = Arc::new(RealTimer::start());
    let (clock, nice) = (Arc::new(System), Nice::NONE);
    let speeds = Speeds::default();
    let ports = FetchPorts { timer, clock, seed: 1, jobs, nice, speeds, buckets: None };
    let fetcher = Fetcher::new(arguments, &settings, None, ports).unwrap();
    let downloads = Arc::new(Downloads::open(Arc::new(RealDisk::open(&root).unwrap())).unwrap());
    let watch = Arc::new(Unwatched) as Arc<dyn Watch>;
    let place = root.join("staged");
    if take || late {
        std::fs::create_dir_all(&place).unwrap();
    }
    let mut stage = Stage(take.then(|| place.clone()));
    let report = fetcher.fetch(&downloads, &wanted, OnFailure::Stop, &watch, &mut stage).unwrap();
    let (took, bytes) = (report.took, report.fetched_bytes());
    let fetched = report.into_result().unwrap();
    if late {
        // What users of a downloader without a sink do: verify everything again, then stage.
        let mut stage = Stage(Some(place));
        for (index, object) in fetched.iter().enumerate() {
            stage.take(index, object, &downloads).unwrap();
        }
    }
    if sync {
        RealDisk::open(&root).unwrap().sync_all().unwrap();
    }
    println!(
        "{{\"objects\":{},\"fetched_bytes\":{bytes},\"took_ms\":{},\"retries\":{}}}",
        fetched.len(),
        took.as_millis(),
        fetched.iter().map(|object| object.retries).sum::<u32>(),
    );
}

fn parse(line: &str) -> Wanted {
    let parts: Vec<&str> = line.split(' ').collect();
    Wanted {
        path: RelativePath::new(parts[0]).unwrap(),
        digest: parts[1].parse().unwrap(),
        size_bytes: parts[2].parse().unwrap(),
        priority: Priority::default(),
    }
}

fn serve(arguments: &mut Vec<String>) {
    let latency = Duration::from_millis(option(arguments, "--latency").unwrap_or(0));
    let rate = option(arguments, "--rate").unwrap_or(0);
    let directory: Arc<Path> = PathBuf::from(arguments.remove(0)).into();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("http://{}/", listener.local_addr().unwrap());
    let sent = Arc::new(AtomicU64::new(0));
    for stream in listener.incoming() {
        let (directory, sent) = (Arc::clone(&directory), Arc::clone(&sent));
        std::thread::spawn(move || answer_all(&stream.unwrap(), &directory, (latency, rate), &sent));
    }
}

/// Answers until the client goes.
fn answer_all(stream: &TcpStream, directory: &Path, (latency, rate): (Duration, u64), sent: &AtomicU64) {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if !reader.read_line(&mut line).is_ok_and(|read| read > 0) {
            return;
        }
        let path = line.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
        let (mut start, mut conditional) = (None, None);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            if name.eq_ignore_ascii_case("range") {
                let first = value.trim_start_matches("bytes=").split('-').next().unwrap();
                start = first.parse::<u64>().ok();
            } else if name.eq_ignore_ascii_case("if-range") {
                conditional = Some(value.to_owned());
            }
        }
        if path == ".sent" {
            let body = sent.load(Ordering::SeqCst).to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            if (&*stream).write_all(head.as_bytes()).is_err() {
                return;
            }
            continue;
        }
        std::thread::sleep(latency);
        if answer(stream, &directory.join(path), start, conditional.as_deref(), rate, sent).is_err() {
            return;
        }
    }
}

fn answer(
    mut stream: &TcpStream,
    path: &Path,
    start: Option<u64>,
    conditional: Option<&str>,
    rate: u64,
    sent: &AtomicU64,
) -> std::io::Result<()> {
    let Ok(file) = File::open(path) else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
    };
    let size = file.metadata()?.len();
    let etag = format!("\"{size}\"");
    let start = start.filter(|start| *start < size && conditional.is_none_or(|known| known == etag));
    let mut at = start.unwrap_or(0);
    let mut head = match start {
        Some(first) => {
            format!("HTTP/1.1 206 Partial\r\ncontent-range: bytes {first}-{}/{size}\r\n", size - 1)
        }
        None => "HTTP/1.1 200 OK\r\n".to_owned(),
    };
    head.push_str(&format!("etag: {etag}\r\naccept-ranges: bytes\r\ncontent-length: {}\r\n\r\n", size - at));
    // Head and first bytes in one segment, as a server with corked sockets sends them.
    let mut block = head.into_bytes();
    let mut head_bytes = block.len();
    let (started, first) = (std::time::Instant::now(), at);
    loop {
        let room = if rate > 0 { 64 << 10 } else { 256 << 10 };
        if let Some(due) = (at - first).checked_mul(1_000_000).and_then(|scaled| scaled.checked_div(rate)) {
            std::thread::sleep(Duration::from_micros(due).saturating_sub(started.elapsed()));
        }
        block.resize(head_bytes + room, 0);
        let read = file.read_at(&mut block[head_bytes..], at)?;
        if read == 0 && head_bytes == 0 {
            return Ok(());
        }
        stream.write_all(&block[..head_bytes + read])?;
        sent.fetch_add(read as u64, Ordering::SeqCst);
        at += read as u64;
        head_bytes = 0;
        block.clear();
    }
}
