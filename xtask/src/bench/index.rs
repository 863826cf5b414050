//! `cargo xtask bench index`: `index repair` beside `sha256sum` and a Python loop on the same files, in one run; and how long
//! a large index takes to load.
//!
//! Files are read once before the first round, so that every method finds them in memory: what is compared is hashing, not
//! the disk. Rounds are interleaved; the tables show medians. The rows of the first round are compared with `sha256sum`.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::{Samples, median};
use crate::{
    node::{self, Finished},
    program::{self, Profile},
    tree,
};

/// What is measured.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Interleaved rounds; the tables show medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How many small files.
    #[arg(long, default_value_t = 20_000)]
    small: usize,
    /// How many large files, of 512 MB each.
    #[arg(long, default_value_t = 4)]
    large: usize,
    /// How many rows are loaded.
    #[arg(long, default_value_t = 1_000_000)]
    rows: usize,
    /// Where the files lie. Default: a directory below `target`.
    #[arg(long, value_name = "DIR")]
    place: Option<PathBuf>,
}

const SMALL_BYTES: usize = 64 << 10;
const LARGE_BYTES: u64 = 512 << 20;

/// What the Python tools do for each file, in one loop.
const PYTHON: &str = r#"
import hashlib, json, os, sys
root, index = sys.argv[1], sys.argv[2]
with open(index, "a") as out:
    for host in sorted(os.listdir(os.path.join(root, "episodes"))):
        directory = os.path.join(root, "episodes", host)
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            row = {"host_id": host, "episode_id": name[:-8], "sha256": digest, "size_bytes": os.path.getsize(path),
                   "schema_version": 1, "backfilled": True}
            out.write(json.dumps(row, sort_keys=True) + "\n")
"#;

/// Loads an index as the Python tools do.
const PYTHON_LOAD: &str = r#"
import json, sys
rows = {}
with open(sys.argv[1]) as file:
    for line in file:
        row = json.loads(line)
        rows.setdefault((row["host_id"], row["episode_id"]), row["sha256"])
print(len(rows))
"#;

/// Runs the benchmark and prints its tables.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let place = options.place.clone().unwrap_or_else(|| root.join("target/xtask/bench-index"));
    tree::remove(&place)?;
    fs::create_dir_all(&place)?;
    let binary = program::build(root, Profile::Release)?;
    let load = fs::read_to_string("/proc/loadavg")?;
    println!("Load average before: {}\n", load.split(' ').next().unwrap_or_default());
    small(&binary, options, &place.join("small"))?;
    large(&binary, options, &place.join("large"))?;
    rows(&binary, options, &place.join("rows"))?;
    tree::remove(&place)
}

/// Bytes that do not compress and never repeat.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            // SplitMix64 (Steele, Lea, Flood 2014).
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            part.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes()[..part.len()]);
        }
    }
}

/// A tar.zst of a directory with a `meta.json`; `order` are the names in it.
fn archive(directory: &Path, order: &[&str], to: &Path) -> Result<()> {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    fs::write(directory.join("meta.json"), format!(r#"{{"code_version":{{"commit":"{commit}"}}}}"#))?;
    let mut tar = Command::new("tar");
    program::succeed({
        tar.args(["--zstd", "-cf"]).arg(to).arg("-C").arg(directory).args(order);
        tar
    })?;
    Ok(())
}

fn small(binary: &Path, options: &Options, place: &Path) -> Result<()> {
    let (source, host) = (place.join("source"), place.join("stored/episodes/host"));
    fs::create_dir_all(&source)?;
    fs::create_dir_all(&host)?;
    let mut noise = Noise(1);
    let mut bytes = vec![0; 1000];
    noise.fill(&mut bytes);
    fs::write(source.join("data"), &bytes)?;
    let template = place.join("template.tar.zst");
    archive(&source, &["meta.json", "data"], &template)?;
    let template = fs::read(template)?;
    // A skippable frame (RFC 8878, 3.1.2) makes each file another one.
    let mut frame = vec![0; SMALL_BYTES - template.len() - 8];
    for number in 0..options.small {
        noise.fill(&mut frame);
        let mut file = BufWriter::new(File::create(host.join(format!("e{number:06}.tar.zst")))?);
        file.write_all(&template)?;
        file.write_all(&0x184D_2A50u32.to_le_bytes())?;
        file.write_all(&u32::try_from(frame.len())?.to_le_bytes())?;
        file.write_all(&frame)?;
        file.flush()?;
    }
    println!("## {} files of 64 KiB\n", options.small);
    compare(
        binary,
        options.rounds,
        &place.join("stored"),
        options.small,
        (options.small * SMALL_BYTES) as u64,
    )
}

fn large(binary: &Path, options: &Options, place: &Path) -> Result<()> {
    let (source, host) = (place.join("source"), place.join("stored/episodes/host"));
    fs::create_dir_all(&source)?;
    fs::create_dir_all(&host)?;
    let (mut noise, mut block) = (Noise(2), vec![0; 1 << 20]);
    let mut bytes = 0;
    for number in 0..options.large {
        let mut data = BufWriter::new(File::create(source.join("data"))?);
        for _ in 0..LARGE_BYTES >> 20 {
            noise.fill(&mut block);
            data.write_all(&block)?;
        }
        data.flush()?;
        let to = host.join(format!("e{number}.tar.zst"));
        // The commit comes last: all of it has to be unpacked on the way.
        archive(&source, &["data", "meta.json"], &to)?;
        bytes += fs::metadata(to)?.len();
    }
    println!("## {} files of 512 MB, `meta.json` at the end\n", options.large);
    compare(binary, options.rounds, &place.join("stored"), options.large, bytes)
}

type Method<'a> = (&'static str, Box<dyn Fn(&Path) -> Command + 'a>);

fn compare(binary: &Path, rounds: usize, root: &Path, files: usize, bytes: u64) -> Result<()> {
    let shell = |line: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", line, "sh"]).arg(root);
        shell
    };
    let all = "find \"$1/episodes\" -name '*.tar.zst' -print0";
    let methods: Vec<Method<'_>> = vec![
        (
            "cutover index repair",
            Box::new(|index| {
                let mut repair = Command::new(binary);
                repair.args(["index", "repair", "--root"]).arg(root).arg("--index").arg(index);
                repair
            }),
        ),
        ("sha256sum", Box::new(|_| shell(&format!("{all} | xargs -0 sha256sum")))),
        ("sha256sum, two at a time", Box::new(|_| shell(&format!("{all} | xargs -0 -n 64 -P 2 sha256sum")))),
        (
            "Python loop",
            Box::new(|index| {
                let mut python = Command::new("python3");
                python.args(["-c", PYTHON]).arg(root).arg(index);
                python
            }),
        ),
    ];
    ensure!(node::finish(shell(&format!("{all} | xargs -0 cat > /dev/null")))?.code == Some(0));
    let mut samples: Vec<Samples> = methods.iter().map(|_| Samples::default()).collect();
    let index = root.join("index.jsonl");
    for round in 0..rounds.max(1) {
        let mut sums = BTreeMap::new();
        for ((name, make), samples) in methods.iter().zip(&mut samples) {
            tree::remove(&index)?;
            let Finished { code, stdout, stderr, took, usage } = node::finish(make(&index))?;
            ensure!(code == Some(0), "{name}: {stderr}");
            samples.add(took, usage);
            if round == 0 {
                let found = if index.exists() { of_rows(&index)? } else { of_sums(&stdout)? };
                ensure!(found.len() == files, "{name}: {} of {files} files", found.len());
                let first = sums.entry(()).or_insert_with(|| found.clone());
                ensure!(*first == found, "{name} has other digests");
            }
        }
    }
    println!(
        "way | median | files/s | GB/s | of `sha256sum` | processor time | peak memory\n-|-:|-:|-:|-:|-:|-:"
    );
    let reference = median(&samples[1].took).as_secs_f64();
    for ((name, _), samples) in methods.iter().zip(&samples) {
        let took = median(&samples.took).as_secs_f64();
        println!(
            "{name} | {:.0} ms | {:.0} | {:.2} | {:.2}x | {:.0} ms | {:.1} MB",
            took * 1e3,
            files as f64 / took,
            bytes as f64 / took / 1e9,
            reference / took,
            median(&samples.processor).as_secs_f64() * 1e3,
            samples.peak_bytes as f64 / 1e6
        );
    }
    println!();
    Ok(())
}

/// Episode and digest of each row.
fn of_rows(index: &Path) -> Result<BTreeMap<String, String>> {
    let row = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line)?;
        let text =
            |key: &str| row[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {line}"));
        Ok((text("episode_id")?, text("sha256")?))
    };
    fs::read_to_string(index)?.lines().map(row).collect()
}

/// Episode and digest of each line of `sha256sum`.
fn of_sums(text: &str) -> Result<BTreeMap<String, String>> {
    let line = |line: &str| {
        let (digest, path) = line.split_once("  ").with_context(|| format!("no digest in {line}"))?;
        let name = path.rsplit('/').next().unwrap_or_default().trim_end_matches(".tar.zst");
        Ok((name.to_owned(), digest.to_owned()))
    };
    text.lines().map(line).collect()
}

fn rows(binary: &Path, options: &Options, place: &Path) -> Result<()> {
    fs::create_dir_all(place.join("episodes"))?;
    let index = place.join("index.jsonl");
    let mut out = BufWriter::new(File::create(&index)?);
    let (mut noise, mut digest) = (Noise(3), [0; 32]);
    for number in 0..options.rows {
        noise.fill(&mut digest);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(
            out,
            r#"{{"commit":"{}","episode_id":"episode-{number:09}","host_id":"host-{:03}","received_at_wall":"2026-01-02T03:04:05.000006+00:00","schema_version":1,"sha256":"{hex}","size_bytes":65536}}"#,
            &hex[..40],
            number % 100
        )?;
    }
    out.flush()?;
    drop(out);
    let bytes = fs::metadata(&index)?.len();
    println!("## Loading {} rows, {:.0} MB\n", options.rows, bytes as f64 / 1e6);
    println!("way | median | rows/s | peak memory\n-|-:|-:|-:");
    let ours = || {
        let mut repair = Command::new(binary);
        repair.args(["index", "repair", "--dry-run", "--root"]).arg(place);
        repair
    };
    let python = || {
        let mut python = Command::new("python3");
        python.args(["-c", PYTHON_LOAD]).arg(&index);
        python
    };
    let (mut of_ours, mut of_python) = (Samples::default(), Samples::default());
    for _ in 0..options.rounds.max(1) {
        for (command, samples) in [(ours(), &mut of_ours), (python(), &mut of_python)] {
            let Finished { code, stderr, took, usage, .. } = node::finish(command)?;
            ensure!(code == Some(0), "{stderr}");
            samples.add(took, usage);
        }
    }
    for (name, samples) in [("cutover index repair --dry-run", of_ours), ("Python, json.loads", of_python)] {
        let took = median(&samples.took).as_secs_f64();
        let (per_s, peak) = (options.rows as f64 / took, samples.peak_bytes as f64 / 1e6);
        println!("{name} | {:.0} ms | {per_s:.0} | {peak:.1} MB", took * 1e3);
    }
    Ok(())
}
