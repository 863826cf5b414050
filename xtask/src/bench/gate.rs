//! `cargo xtask bench gate`: the receiver beside nginx's DAV PUT and a receiver on Starlette and uvicorn, in one run.
//!
//! All servers get the same bytes from the same client over loopback, in interleaved rounds on the same file system. The client
//! is part of this program, sends what it is told and looks at the status only. nginx writes no row, hashes nothing and flushes
//! nothing; the Python receiver does what ours does. Read [`Options`] first.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::median;
use crate::{
    program::{self, Profile},
    tree,
};

/// What is measured.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Interleaved rounds; the tables show medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Small uploads in each round.
    #[arg(long, default_value_t = 10_000)]
    uploads: usize,
    /// Their size, in KiB.
    #[arg(long, default_value_t = 64)]
    size_kib: usize,
    /// Connections they come over.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Size of the large upload, in MiB.
    #[arg(long, default_value_t = 2048)]
    large_mib: usize,
    /// Decisions per second.
    #[arg(long, default_value_t = 10_000)]
    rate: usize,
    /// How long decisions are asked for, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Rows in the index that is loaded at the start.
    #[arg(long, default_value_t = 1_000_000)]
    rows: usize,
    /// Where the servers keep their data. Default: a directory below `target`.
    #[arg(long, value_name = "DIR")]
    place: Option<PathBuf>,
    /// Only scenes whose name contains this: `uploads`, `large`, `decisions`, `load`.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Measure this `cutover` instead of building one.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

type Scene = fn(&Bench) -> Result<()>;

const SCENES: &[(&str, Scene)] = &[
    ("uploads", Bench::uploads),
    ("large", Bench::large),
    ("decisions", Bench::decisions),
    ("load", Bench::load),
];

struct Bench {
    cutover: PathBuf,
    python: Option<PathBuf>,
    place: PathBuf,
    clone: PathBuf,
    head: String,
    options: Options,
}

/// Runs the benchmark and prints its tables.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let place = options.place.clone().unwrap_or_else(|| root.join("target/xtask/bench-gate"));
    tree::remove(&place)?;
    std::fs::create_dir_all(&place)?;
    let cutover = match &options.program {
        Some(program) => {
            program.canonicalize().with_context(|| format!("there is no `{}`", program.display()))?
        }
        None => program::build(root, Profile::Release)?,
    };
    let clone = place.join("clone");
    let head = make_clone(&clone)?;
    let python = match make_environment(&root.join("target/xtask/bench-gate-venv")) {
        Ok(python) => Some(python),
        Err(error) => {
            eprintln!("not measured: the Python receiver: {error:#}");
            None
        }
    };
    let bench = Bench { cutover, python, place: place.clone(), clone, head, options: options.clone() };
    for (name, scene) in SCENES {
        if options.only.as_ref().is_none_or(|only| name.contains(only.as_str())) {
            scene(&bench).with_context(|| format!("scene `{name}`"))?;
        }
    }
    tree::remove(&place)
}

fn make_clone(path: &Path) -> Result<String> {
    let git = |arguments: &[&str]| -> Result<String> {
        let mut command = Command::new("git");
        command
            .args(["-c", "user.name=bench", "-c", "user.email=bench@example.org", "-C"])
            .arg(path)
            .args(arguments);
        let output = command.output().context("failed to run git")?;
        ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    std::fs::create_dir_all(path)?;
    git(&["init", "--quiet"])?;
    git(&["commit", "--quiet", "--allow-empty", "-m", "bench"])?;
    git(&["rev-parse", "HEAD"])
}

/// A virtual environment with Starlette and uvicorn, kept for the next run.
fn make_environment(directory: &Path) -> Result<PathBuf> {
    let python = directory.join("bin/python");
    let has = |python: &Path| {
        let mut command = Command::new(python);
        command.args(["-c", "import starlette, uvicorn, httptools, uvloop"]).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !has(&python) {
        let made = Command::new("python3")
            .args(["-m", "venv"])
            .arg(directory)
            .status()
            .context("failed to run python3")?;
        ensure!(made.success(), "python3 -m venv failed");
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "starlette", "uvicorn", "httptools", "uvloop"]);
        ensure!(pip.status()?.success(), "pip install failed");
    }
    Ok(python)
}

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Cutover,
    Nginx,
    Python,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Cutover, Self::Nginx, Self::Python];

    fn name(self) -> &'static str {
        match self {
            Self::Cutover => "cutover gate serve",
            Self::Nginx => "nginx DAV PUT: no hash, no row, no flush",
            Self::Python => "Starlette on uvicorn, the same durable work",
        }
    }
}

/// A server that runs; killed when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    data: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
        let _ = tree::remove(&self.data);
    }
}

impl Server {
    fn start(bench: &Bench, kind: Kind) -> Result<Option<Self>> {
        let data = bench.place.join("data");
        tree::remove(&data)?;
        std::fs::create_dir_all(&data)?;
        let address = free_address()?;
        let mut command = match kind {
            Kind::Cutover => {
                let mut command = Command::new(&bench.cutover);
                command.args(["gate", "serve", "--listen", &format!("tcp:{address}"), "--root"]).arg(&data);
                command.arg("--repository").arg(&bench.clone).env("CUTOVER_LOG", "error");
                command
            }
            Kind::Nginx => {
                let configuration = data.join("nginx.conf");
                std::fs::write(&configuration, nginx_configuration(address))?;
                let mut command = Command::new("nginx");
                command.args(["-e", "/dev/null", "-p"]).arg(&data).arg("-c").arg(&configuration);
                command
            }
            Kind::Python => {
                let Some(python) = &bench.python else { return Ok(None) };
                let script = data.join("receiver.py");
                std::fs::write(&script, include_str!("gate_receiver.py"))?;
                let mut command = Command::new(python);
                command
                    .arg(&script)
                    .arg(address.port().to_string())
                    .env("ROOT", &data)
                    .env("ACCEPTED", &bench.head);
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                eprintln!("not measured: {}: {error}", kind.name());
                return Ok(None);
            }
        };
        let server = Self { child, address, data };
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(address).is_err() {
            ensure!(Instant::now() < deadline, "{} does not listen", kind.name());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(server))
    }

    /// Processor time and peak memory of all its processes.
    fn usage(&self) -> Result<(Duration, u64)> {
        let (mut ticks, mut peak_kib) = (0, 0);
        for entry in std::fs::read_dir("/proc")? {
            let path = entry?.path();
            let Ok(stat) = std::fs::read_to_string(path.join("stat")) else { continue };
            let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
            let fields: Vec<&str> = rest.split(' ').collect();
            let number = |field: usize| {
                fields.get(field).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default()
            };
            if number(2) != u64::from(self.child.id()) {
                continue;
            }
            ticks += number(11) + number(12);
            let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
            let peak = status
                .lines()
                .find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse::<u64>().ok());
            peak_kib += peak.unwrap_or_default();
        }
        Ok((Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()), peak_kib << 10))
    }
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn nginx_configuration(address: SocketAddr) -> String {
    let user = if rustix::process::geteuid().is_root() { "user root root;\n" } else { "" };
    format!(
        "{user}daemon off;\nworker_processes auto;\npid nginx.pid;\nevents {{ worker_connections 1024; }}\n\
         http {{\n access_log off;\n client_body_temp_path temp;\n client_max_body_size 0;\n keepalive_requests 100000000;\n\
         server {{ listen {address}; location / {{ root files; dav_methods PUT; create_full_put_path on; }} }}\n}}\n"
    )
}

/// A connection that sends requests and reads statuses.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(300)))?;
        Ok(Self { stream, buffer: vec![0; 16 << 10] })
    }

    /// Reads one answer to its end, interim ones left out.
    fn status(&mut self) -> Result<u16> {
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..])?;
            ensure!(read > 0, "the server closed without an answer");
            filled += read;
            let Some(end) = self.buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") else {
                continue;
            };
            let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
            let status: u16 =
                head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
            if status == 100 {
                self.buffer.copy_within(end + 4..filled, 0);
                filled -= end + 4;
                continue;
            }
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            let mut left = (end + 4 + length.unwrap_or_default()).saturating_sub(filled);
            while left > 0 {
                let wanted = left.min(self.buffer.len());
                let read = self.stream.read(&mut self.buffer[..wanted])?;
                ensure!(read > 0, "the answer was cut");
                left -= read;
            }
            return Ok(status);
        }
    }
}

/// One round of one server.
struct Measured {
    took: Duration,
    processor: Duration,
    peak: u64,
    latencies: Vec<Duration>,
}

impl Bench {
    fn head_of(&self, path: &str, length: usize) -> String {
        format!(
            "PUT {path} HTTP/1.1\r\nHost: gate\r\nX-Code-Commit: {}\r\nContent-Length: {length}\r\n\r\n",
            self.head
        )
    }

    /// Many small uploads over many connections.
    fn uploads(&self) -> Result<()> {
        let (count, size) = (self.options.uploads, self.options.size_kib << 10);
        println!(
            "\n## {count} uploads of {} KiB over {} connections\n",
            self.options.size_kib, self.options.connections
        );
        let body = random(size);
        self.table(
            count as f64 * size as f64,
            |server| {
                let next = AtomicUsize::new(0);
                let started = Instant::now();
                let latencies = std::thread::scope(|scope| {
                    let threads: Vec<_> = (0..self.options.connections)
                        .map(|thread| {
                            scope.spawn({
                                let (next, body) = (&next, &body);
                                move || self.upload_some(server, thread, next, body)
                            })
                        })
                        .collect();
                    let joined = threads
                        .into_iter()
                        .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?);
                    joined.collect::<Result<Vec<_>>>()
                })?;
                Ok((started.elapsed(), latencies.concat()))
            },
            count,
        )
    }

    fn upload_some(
        &self,
        server: &Server,
        thread: usize,
        next: &AtomicUsize,
        body: &[u8],
    ) -> Result<Vec<Duration>> {
        let mut connection = Connection::open(server.address)?;
        let mut latencies = Vec::new();
        let mut request = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.options.uploads {
                return Ok(latencies);
            }
            request.clear();
            let path = format!("/v1/episodes/h{}/e{number}", thread % 4);
            request.extend_from_slice(self.head_of(&path, body.len()).as_bytes());
            request.extend_from_slice(&(number as u64).to_be_bytes());
            request.extend_from_slice(&body[8..]);
            let sent = Instant::now();
            connection.stream.write_all(&request)?;
            let status = connection.status()?;
            latencies.push(sent.elapsed());
            ensure!(status == 201, "upload {number} was answered with {status}");
        }
    }

    /// One large upload.
    fn large(&self) -> Result<()> {
        let size = self.options.large_mib << 20;
        println!("\n## One upload of {} MiB\n", self.options.large_mib);
        let piece = random(1 << 20);
        self.table(
            size as f64,
            |server| {
                let mut connection = Connection::open(server.address)?;
                let started = Instant::now();
                connection.stream.write_all(self.head_of("/v1/episodes/h/large", size).as_bytes())?;
                for _ in 0..self.options.large_mib {
                    connection.stream.write_all(&piece)?;
                }
                let status = connection.status()?;
                ensure!(status == 201, "the upload was answered with {status}");
                Ok((started.elapsed(), Vec::new()))
            },
            1,
        )
    }

    /// Measures a load on every server, in interleaved rounds, and prints the table.
    fn table(
        &self,
        bytes: f64,
        load: impl Fn(&Server) -> Result<(Duration, Vec<Duration>)>,
        count: usize,
    ) -> Result<()> {
        let mut measured: Vec<(Kind, Vec<Measured>)> = Kind::ALL.map(|kind| (kind, Vec::new())).into();
        for _ in 0..self.options.rounds {
            for (kind, rounds) in &mut measured {
                let Some(server) = Server::start(self, *kind)? else { continue };
                let (before, _) = server.usage()?;
                let (took, latencies) = load(&server).with_context(|| kind.name().to_owned())?;
                let (after, peak) = server.usage()?;
                rounds.push(Measured { took, processor: after.saturating_sub(before), peak, latencies });
                drop(server);
                // What nginx did not flush must not slow its neighbour down.
                rustix::fs::sync();
            }
        }
        println!(
            "server | median | uploads/s | MB/s | p50 | p99 | processor s per GB | peak memory\n-|-:|-:|-:|-:|-:|-:|-:"
        );
        for (kind, rounds) in &measured {
            if rounds.is_empty() {
                continue;
            }
            let took = median(&rounds.iter().map(|round| round.took).collect::<Vec<_>>());
            let processor = median(&rounds.iter().map(|round| round.processor).collect::<Vec<_>>());
            let mut latencies =
                rounds.iter().flat_map(|round| round.latencies.iter().copied()).collect::<Vec<_>>();
            let peak = rounds.iter().map(|round| round.peak).max().unwrap_or_default();
            println!(
                "{} | {:.2} s | {:.0} | {:.0} | {} | {} | {:.2} | {:.1} MB",
                kind.name(),
                took.as_secs_f64(),
                count as f64 / took.as_secs_f64(),
                bytes / 1e6 / took.as_secs_f64(),
                shown(percentile(&mut latencies, 0.5)),
                shown(percentile(&mut latencies, 0.99)),
                processor.as_secs_f64() / (bytes / 1e9),
                peak as f64 / 1e6,
            );
        }
        Ok(())
    }

    /// Refusals at a rate: how long each takes.
    fn decisions(&self) -> Result<()> {
        println!("\n## Refusals (412) at a steady rate for {} s\n", self.options.seconds);
        println!(
            "request | per second | p50 | p99 | p99.9 | longest | p99 from when it was due\n-|-:|-:|-:|-:|-:|-:"
        );
        let Some(server) = Server::start(self, Kind::Cutover)? else { bail!("the receiver does not start") };
        let old = "0".repeat(40);
        let decision = format!("GET /v1/admission HTTP/1.1\r\nHost: gate\r\nX-Code-Commit: {old}\r\n\r\n");
        let upload = format!(
            "PUT /v1/episodes/h/e HTTP/1.1\r\nHost: gate\r\nX-Code-Commit: {old}\r\nContent-Length: 1000000000\r\n\
             Expect: 100-continue\r\n\r\n"
        );
        for (name, request, rate, fresh) in [
            ("GET /v1/admission, connections kept", &decision, self.options.rate, Fresh::No),
            ("PUT with Expect, a new connection each", &upload, self.options.rate / 10, Fresh::Yes),
        ] {
            let started = Instant::now();
            let mut both = self.at_rate(&server, request.as_bytes(), rate, fresh)?;
            let took = started.elapsed();
            let reached = both.0.len() as f64 / took.as_secs_f64();
            let longest = both.0.iter().max().copied().unwrap_or_default();
            let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| shown(percentile(&mut both.0, share)));
            let due = shown(percentile(&mut both.1, 0.99));
            println!("{name} | {reached:.0} | {p50} | {p99} | {p999} | {} | {due}", shown(longest));
        }
        let (_, peak) = server.usage()?;
        println!("\nPeak memory of the receiver: {:.1} MB.", peak as f64 / 1e6);
        Ok(())
    }

    /// For each request: from when it was sent, and from when it was due.
    fn at_rate(
        &self,
        server: &Server,
        request: &[u8],
        rate: usize,
        fresh: Fresh,
    ) -> Result<(Vec<Duration>, Vec<Duration>)> {
        const CLIENTS: usize = 4;
        let interval = Duration::from_secs_f64(CLIENTS as f64 / rate as f64);
        let count = rate * usize::try_from(self.options.seconds)? / CLIENTS;
        let one = |client: usize| -> Result<Vec<(Duration, Duration)>> {
            let mut connection = Connection::open(server.address)?;
            let begun = Instant::now() + interval.mul_f64(client as f64 / CLIENTS as f64);
            let mut latencies = Vec::with_capacity(count);
            for number in 0..count {
                let due = begun + interval.mul_f64(number as f64);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let sent = Instant::now();
                if fresh == Fresh::Yes {
                    connection = Connection::open(server.address)?;
                }
                connection.stream.write_all(request)?;
                let status = connection.status()?;
                ensure!(status == 412, "answered with {status}");
                latencies.push((sent.elapsed(), due.elapsed()));
            }
            Ok(latencies)
        };
        let all = std::thread::scope(|scope| {
            let one = &one;
            let threads: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(move || one(client))).collect();
            let joined = threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?);
            joined.collect::<Result<Vec<_>>>()
        })?;
        Ok(all.into_iter().flatten().unzip())
    }

    /// How long a receiver takes to start with a full index: read, checked, and listening.
    fn load(&self) -> Result<()> {
        println!("\n## Start with {} rows in the index\n", self.options.rows);
        println!("what | median\n-|-:");
        let data = self.place.join("loaded");
        std::fs::create_dir_all(data.join("episodes"))?;
        let mut file = std::io::BufWriter::new(std::fs::File::create(data.join("index.jsonl"))?);
        for number in 0..self.options.rows {
            writeln!(
                file,
                "{{\"commit\":\"{}\",\"episode_id\":\"episode-{number:08}\",\"host_id\":\"host-{}\",\"received_at_wall\":\
                 \"2026-01-02T03:04:05.000006+00:00\",\"schema_version\":1,\"sha256\":\"{number:064x}\",\"size_bytes\":{number}}}",
                self.head,
                number % 50,
            )?;
        }
        file.into_inner().context("failed to write the index")?.sync_all()?;
        let mut took = Vec::new();
        for _ in 0..self.options.rounds {
            let address = free_address()?;
            let started = Instant::now();
            let mut command = Command::new(&self.cutover);
            command.args(["gate", "serve", "--listen", &format!("tcp:{address}"), "--root"]).arg(&data);
            command
                .arg("--repository")
                .arg(&self.clone)
                .env("CUTOVER_LOG", "error")
                .stdout(Stdio::null())
                .process_group(0);
            let child = command.spawn()?;
            let server = Server { child, address, data: self.place.join("none") };
            let deadline = Instant::now() + Duration::from_secs(120);
            while TcpStream::connect(address).is_err() {
                ensure!(Instant::now() < deadline, "the receiver does not listen");
                std::thread::sleep(Duration::from_millis(2));
            }
            took.push(started.elapsed());
            drop(server);
        }
        println!(
            "cutover gate serve, from its start to its first connection | {:.2} s",
            median(&took).as_secs_f64()
        );
        tree::remove(&data)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fresh {
    No,
    Yes,
}

fn random(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    rand::fill(&mut bytes[..]);
    bytes
}

fn percentile(latencies: &mut [Duration], share: f64) -> Duration {
    latencies.sort_unstable();
    let place = (latencies.len() as f64 * share) as usize;
    latencies.get(place.min(latencies.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn shown(latency: Duration) -> String {
    if latency.is_zero() { "-".to_owned() } else { format!("{:.2} ms", latency.as_secs_f64() * 1000.0) }
}
