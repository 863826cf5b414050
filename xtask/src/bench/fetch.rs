//! `cargo xtask bench fetch`: downloads of ours beside those of aria2c and curl, over loopback, in one run.
//!
//! `fetch_fixture` (crates/host/tests/fetch) is both the server and, with the library that ships, our client. Rounds are
//! interleaved, so that a slow minute hits all methods alike; the tables show medians. What was fetched is compared with
//! what was served in the first round. Read [`SCENES`] first.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{Samples, median};
use crate::{
    node,
    pairs::digest_of,
    program::{self, Profile},
    tree,
};

/// What is measured.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Interleaved rounds; the tables show medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Size of the large object, in MB.
    #[arg(long, default_value_t = 500)]
    large_mb: u64,
    /// Where files are served from and fetched to. Default: a directory below `target`.
    #[arg(long, value_name = "DIR")]
    place: Option<PathBuf>,
    /// Only scenes whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// Measures one thing and prints its table.
type Scene = fn(&Bench) -> Result<()>;

/// Everything that is measured, in the order of the page.
const SCENES: &[(&str, Scene)] = &[
    ("many", Bench::many),
    ("large", Bench::large),
    ("limit", Bench::limit),
    ("pipeline", Bench::pipeline),
    ("killed", Bench::killed),
];

struct Bench {
    fixture: PathBuf,
    place: PathBuf,
    rounds: usize,
    large_bytes: u64,
}

/// Runs the benchmark and prints its tables.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let place = options.place.clone().unwrap_or_else(|| root.join("target/xtask/bench-fetch"));
    tree::remove(&place)?;
    std::fs::create_dir_all(&place)?;
    let fixture = program::build_one(root, Profile::Release, "cutover-host", "fetch_fixture")?;
    let bench = Bench {
        fixture,
        place: place.clone(),
        rounds: options.rounds,
        large_bytes: options.large_mb * 1_000_000,
    };
    for (name, scene) in SCENES {
        if options.only.as_ref().is_none_or(|only| name.contains(only.as_str())) {
            scene(&bench).with_context(|| format!("scene `{name}`"))?;
        }
    }
    tree::remove(&place)
}

/// One way to fetch all files of a [`Served`] directory into `$OUT`.
struct Way {
    name: &'static str,
    command: Vec<String>,
}

impl Bench {
    /// 900 objects, 20 ms before each answer.
    fn many(&self) -> Result<()> {
        let served = Served::start(self, "many", &sizes(900, 8 << 10, 56 << 10), &["--latency", "20"])?;
        let ways = [
            self.ours("cutover, 8 in parallel", &served, &[]),
            self.ours("cutover, one after the other", &served, &["--parallel", "1"]),
            Way {
                name: "aria2c -j8, checking SHA-256",
                command: words(
                    "aria2c -q -j8 --disable-ipv6 --file-allocation=none --no-conf -i LIST -d OUT",
                ),
            },
            Way {
                name: "aria2c -j8, checking nothing",
                command: words(
                    "aria2c -q -j8 --disable-ipv6 --file-allocation=none --no-conf -i BARE -d OUT",
                ),
            },
            Way {
                name: "curl --parallel-max 8, then sha256sum",
                command: vec![
                    "sh".to_owned(),
                    "-c".to_owned(),
                    "cd OUT && curl -s --parallel --parallel-max 8 -K CURL && sha256sum -c --quiet SUMS"
                        .to_owned(),
                ],
            },
        ];
        println!(
            "\n## {} objects, {:.1} MB, 20 ms of latency per request\n",
            served.files.len(),
            served.megabytes()
        );
        self.compare(&served, &ways)
    }

    /// One object, hashed and durable.
    fn large(&self) -> Result<()> {
        let served = Served::start(self, "large", &[self.large_bytes], &[])?;
        let url = format!("{}{}", served.url, served.files[0].name);
        let shell = format!(
            "curl -sS -o OUT/large {url} && echo '{}  OUT/large' | sha256sum -c --quiet && sync -f OUT/large",
            served.files[0].sha256
        );
        let ways = [
            self.ours("cutover", &served, &["--sync"]),
            Way { name: "curl + sha256sum + sync", command: vec!["sh".to_owned(), "-c".to_owned(), shell] },
        ];
        println!("\n## One object of {:.0} MB, hashed and durable\n", served.megabytes());
        self.compare(&served, &ways)
    }

    /// What a limit lets through in ten seconds.
    fn limit(&self) -> Result<()> {
        println!(
            "\n## Bandwidth limit over ten seconds\n\nlimit | fetched | took | of the limit\n-:|-:|-:|-:"
        );
        for limit in [1_000_000u64, 20_000_000, 100_000_000] {
            let served = Served::start(self, "limit", &[limit * 10 / 8; 8], &[])?;
            let limit_text = limit.to_string();
            let finished = self.measure(&self.ours("", &served, &["--limit", &limit_text]), &served)?;
            let took = Duration::from_millis(finished.json()?["took_ms"].as_u64().context("took_ms")?);
            let bytes = finished.json()?["fetched_bytes"].as_u64().context("fetched_bytes")?;
            let share = bytes as f64 / took.as_secs_f64() / limit as f64;
            println!(
                "{:.0} MB/s | {:.1} MB | {:.2} s | {:.1} %",
                limit as f64 / 1e6,
                bytes as f64 / 1e6,
                took.as_secs_f64(),
                share * 100.0
            );
        }
        Ok(())
    }

    /// Staging while the rest is under way, against staging at the end.
    fn pipeline(&self) -> Result<()> {
        let sizes = sizes(200, 500_000, 3_500_000);
        let served = Served::start(self, "pipeline", &sizes, &["--latency", "20", "--rate", "12500000"])?;
        let ways = [
            self.ours("fetched, verified and staged at the same time", &served, &["--take", "--sync"]),
            self.ours("fetched, then verified, then staged", &served, &["--take-late", "--sync"]),
        ];
        println!(
            "\n## Pipeline: {} objects, {:.0} MB, 8 connections of 12.5 MB/s each, 20 ms per request\n",
            served.files.len(),
            served.megabytes()
        );
        self.compare(&served, &ways)
    }

    /// `kill -9` every 200 ms until all bytes are there. The server's send buffer is small, because what lies there when the
    /// client dies was counted and never fetched.
    fn killed(&self) -> Result<()> {
        println!(
            "\n## `kill -9` every 200 ms during one object of {:.0} MB\n",
            self.large_bytes as f64 / 1e6
        );
        println!("server | kills | bytes sent / size | result\n-|-:|-:|-");
        for (name, rate) in [("as fast as it can", 0u64), ("50 MB/s", 50_000_000)] {
            let rate = rate.to_string();
            let served = Served::start(
                self,
                "killed",
                &[self.large_bytes],
                &["--rate", &rate, "--send-buffer", "131072"],
            )?;
            let file = &served.files[0];
            let root = self.fresh()?;
            let downloads = root.join(".cutover/downloads");
            let on_disk = || -> u64 {
                let length = |suffix: &str| {
                    std::fs::metadata(downloads.join(format!("{}{suffix}", file.sha256)))
                        .map_or(0, |found| found.len())
                };
                length(".part").max(length(""))
            };
            let mut kills = 0;
            while on_disk() < file.size {
                let mut client = self.client(&served, &root, &[]).stdout(Stdio::null()).spawn()?;
                let started = Instant::now();
                // Until all bytes are there: what follows is hashing.
                while started.elapsed() < Duration::from_millis(200) && on_disk() < file.size {
                    std::thread::sleep(Duration::from_millis(1));
                }
                client.kill()?;
                client.wait()?;
                kills += 1;
                ensure!(kills < 1000, "it does not get on");
            }
            program::succeed(self.client(&served, &root, &[]))?;
            ensure!(digest_of(&downloads.join(&file.sha256))? == file.sha256, "not what was served");
            let share = served.sent()? as f64 / file.size as f64;
            println!("{name} | {kills} | {share:.3} | right");
        }
        Ok(())
    }

    fn ours(&self, name: &'static str, served: &Served, flags: &[&str]) -> Way {
        let mut command = vec![self.fixture.display().to_string(), "get".to_owned(), "OUT".to_owned()];
        command.push(served.list.display().to_string());
        command.extend(flags.iter().map(|flag| (*flag).to_owned()));
        command.push(served.url.clone());
        Way { name, command }
    }

    fn client(&self, served: &Served, root: &Path, flags: &[&str]) -> Command {
        let mut command = Command::new(&self.fixture);
        command.arg("get").arg(root).arg(&served.list).args(flags).arg(&served.url);
        command
    }

    /// An empty directory to fetch to.
    fn fresh(&self) -> Result<PathBuf> {
        let out = self.place.join("out");
        tree::remove(&out)?;
        std::fs::create_dir_all(&out)?;
        Ok(out)
    }

    fn measure(&self, way: &Way, served: &Served) -> Result<node::Finished> {
        let out = self.fresh()?.display().to_string();
        let replace = |word: &String| {
            word.replace("OUT", &out)
                .replace("LIST", &served.aria.display().to_string())
                .replace("BARE", &served.aria_bare.display().to_string())
                .replace("CURL", &served.curl.display().to_string())
                .replace("SUMS", &served.sums.display().to_string())
        };
        let words: Vec<String> = way.command.iter().map(replace).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        node::finish(command)?.with(&[0])
    }

    /// Everything that was served lies somewhere below the directory, byte for byte.
    fn check(&self, served: &Served) -> Result<()> {
        let mut found: Vec<String> = Vec::new();
        for entry in walkdir::WalkDir::new(self.place.join("out")) {
            let entry = entry?;
            if entry.file_type().is_file() {
                found.push(digest_of(entry.path())?);
            }
        }
        found.sort_unstable();
        let missing = served.files.iter().filter(|file| found.binary_search(&file.sha256).is_err()).count();
        ensure!(missing == 0, "{missing} files are not there or not right");
        Ok(())
    }

    fn compare(&self, served: &Served, ways: &[Way]) -> Result<()> {
        let mut samples = vec![Samples::default(); ways.len()];
        for round in 0..self.rounds {
            eprintln!("round {} of {}", round + 1, self.rounds);
            for (way, samples) in ways.iter().zip(&mut samples) {
                let finished = self.measure(way, served).with_context(|| way.name.to_owned())?;
                if round == 0 {
                    self.check(served).with_context(|| way.name.to_owned())?;
                }
                samples.add(finished.took, finished.usage);
            }
        }
        println!("way | median | of the first | processor time | peak memory\n-|-:|-:|-:|-:");
        let base = median(&samples[0].took);
        for (way, samples) in ways.iter().zip(&samples) {
            let took = median(&samples.took);
            println!(
                "{} | {} ms | {:.2} | {} ms | {:.1} MB",
                way.name,
                took.as_millis(),
                took.as_secs_f64() / base.as_secs_f64(),
                median(&samples.processor).as_millis(),
                samples.peak_bytes as f64 / 1e6
            );
        }
        Ok(())
    }
}

/// A file that is served.
struct File {
    name: String,
    sha256: String,
    size: u64,
}

/// A directory of noise and the server that serves it.
struct Served {
    url: String,
    files: Vec<File>,
    list: PathBuf,
    aria: PathBuf,
    aria_bare: PathBuf,
    curl: PathBuf,
    sums: PathBuf,
    server: Child,
}

impl Served {
    fn start(bench: &Bench, name: &str, sizes: &[u64], flags: &[&str]) -> Result<Self> {
        let directory = bench.place.join(name);
        tree::remove(&directory)?;
        std::fs::create_dir_all(&directory)?;
        let mut files = Vec::new();
        for (number, size) in sizes.iter().enumerate() {
            let file = format!("object-{number}");
            let path = directory.join(&file);
            make_noise(&path, *size, number as u64 + 1)?;
            files.push(File { name: file, sha256: digest_of(&path)?, size: *size });
        }
        let mut server = Command::new(&bench.fixture)
            .arg("serve")
            .args(flags)
            .arg(&directory)
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to start the server")?;
        let mut url = String::new();
        BufReader::new(server.stdout.take().context("its output")?).read_line(&mut url)?;
        let url = url.trim().to_owned();

        let path = |kind: &str| bench.place.join(format!("{name}.{kind}"));
        let text = |line: &dyn Fn(&File) -> String| files.iter().map(line).collect::<String>();
        let (list, aria, aria_bare, curl, sums) =
            (path("list"), path("aria"), path("bare"), path("curl"), path("sums"));
        std::fs::write(&list, text(&|file| format!("{} {} {}\n", file.name, file.sha256, file.size)))?;
        let checked = |file: &File| format!("{url}{}\n  checksum=sha-256={}\n", file.name, file.sha256);
        std::fs::write(&aria, text(&checked))?;
        std::fs::write(&aria_bare, text(&|file| format!("{url}{}\n", file.name)))?;
        std::fs::write(&curl, text(&|file| format!("url={url}{0}\noutput={0}\n", file.name)))?;
        std::fs::write(&sums, text(&|file| format!("{}  {}\n", file.sha256, file.name)))?;
        Ok(Self { url, files, list, aria, aria_bare, curl, sums, server })
    }

    fn megabytes(&self) -> f64 {
        self.files.iter().map(|file| file.size).sum::<u64>() as f64 / 1e6
    }

    /// Body bytes the server has sent so far.
    fn sent(&self) -> Result<u64> {
        let address = self.url.trim_start_matches("http://").trim_end_matches('/');
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET /.sent HTTP/1.1\r\n\r\n")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        answer.rsplit("\r\n").next().unwrap_or_default().parse().context("a number")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// `count` sizes between two bounds, the same in every run.
fn sizes(count: u64, least: u64, most: u64) -> Vec<u64> {
    (0..count).map(|number| least + number * 7919 % (most - least)).collect()
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// Bytes that do not compress (xorshift64).
fn make_noise(path: &Path, size: u64, seed: u64) -> Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut left = size;
    while left > 0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let bytes = state.to_le_bytes();
        let count = left.min(8);
        file.write_all(&bytes[..usize::try_from(count)?])?;
        left -= count;
    }
    file.flush()?;
    Ok(())
}
