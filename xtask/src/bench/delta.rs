//! `cargo xtask bench delta PAIRS`: patches of ours beside those of other tools, on real pairs.
//!
//! One process at a time, a pair's tools one after the other, files in the page cache. A patch is made once and applied
//! in some rounds, of which the fastest counts. Ours checks its base, hashes its result and flushes it to the disk; peers do
//! none of that, so the time to hash and to flush their results is added to theirs (the check of the base is in a column of
//! its own, and in our times). Peers that are not installed say so. This program holds no file in memory, so that what it
//! starts is not charged for it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    node,
    pairs::digest_of,
    program::{self, Profile},
};

/// What is compared.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// The directory that `cargo xtask pairs` filled.
    pairs: PathBuf,
    /// Fails when a target is missed.
    #[arg(long)]
    check: bool,
    /// Rounds of applying.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only pairs whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Only tools whose name contains this; may be given more than once.
    #[arg(long, value_name = "TEXT")]
    tool: Vec<String>,
    /// A Python interpreter with the PyPI package `hdiffpatch`: its library applies in the process, and only that and the
    /// files are timed, not the interpreter.
    #[arg(long, value_name = "PYTHON")]
    hdiffpatch: Option<PathBuf>,
    /// Where patches and results are written. Default: beside the pairs.
    #[arg(long, value_name = "DIR")]
    place: Option<PathBuf>,
    /// Prints a line of JSON per row as well.
    #[arg(long)]
    json: bool,
}

/// One way to make and apply patches. In arguments `{o}` is the old file, `{n}` the new one, `{p}` the patch, `{r}` the
/// result, `{size}` the old size, at least 1 MiB.
struct Tool {
    name: &'static str,
    /// `None` for ours.
    program: Option<&'static str>,
    generate: &'static str,
    apply_program: &'static str,
    apply: &'static str,
    /// Compresses the patch afterwards and decompresses it before.
    is_packed: bool,
    /// It is [`HDIFFPATCH`], which tells its own times.
    is_python: bool,
}

/// The library of HDiffPatch, for which there are programs only where somebody built them.
const HDIFFPATCH: &str = r#"
import sys, time, hdiffpatch
read = lambda path: open(path, "rb").read()
what, old, second, out = sys.argv[1:]
start, processor = time.perf_counter(), time.process_time()
if what == "make":
    made = hdiffpatch.diff(read(old), read(second), compression=hdiffpatch.Lzma2Config(level=9, window=24))
else:
    made = hdiffpatch.apply(read(old), read(second))
with open(out, "wb") as file:
    file.write(made)
print(time.perf_counter() - start, time.process_time() - processor)
"#;

macro_rules! ours {
    ($name:literal) => {
        Tool {
            name: concat!("cutover ", $name),
            program: None,
            generate: concat!("delta generate {o} {n} --output {p} --algorithm ", $name),
            apply_program: "",
            apply: "delta apply {o} {p} --output {r} --memory 4G",
            is_packed: false,
            is_python: false,
        }
    };
}

const fn peer(
    name: &'static str,
    program: &'static str,
    generate: &'static str,
    apply_program: &'static str,
    apply: &'static str,
) -> Tool {
    Tool { name, program: Some(program), generate, apply_program, apply, is_packed: false, is_python: false }
}

/// Ours as it is without options: the candidates, with their verification.
const CHOOSER: &str = "cutover (default)";

/// Longest that making a patch of a large program may take.
const GENERATE_SECONDS_MAX: f64 = 60.0;

const TOOLS: &[Tool] = &[
    Tool {
        name: CHOOSER,
        program: None,
        generate: "delta generate {o} {n} --output {p}",
        apply_program: "",
        apply: "delta apply {o} {p} --output {r} --memory 4G",
        is_packed: false,
        is_python: false,
    },
    ours!("refdelta"),
    ours!("bsdiff"),
    ours!("xdelta3"),
    ours!("vcdiff"),
    ours!("zstd-dict"),
    peer("bsdiff", "bsdiff", "{o} {n} {p}", "bspatch", "{o} {r} {p}"),
    peer(
        "xdelta3 lzma",
        "xdelta3",
        "-e -f -9 -S lzma -B {size} -W 16777216 -s {o} {n} {p}",
        "xdelta3",
        "-d -f -B {size} -s {o} {p} {r}",
    ),
    peer(
        "zstd --patch-from",
        "zstd",
        "-q -f -19 --ultra --long=31 --patch-from={o} {n} -o {p}",
        "zstd",
        "-q -f -d --long=31 --patch-from={o} {p} -o {r}",
    ),
    peer("hdiffz -m-6", "hdiffz", "-f -p-2 -SD -m-6 -c-lzma2-9-16m {o} {n} {p}", "hpatchz", "-f {o} {p} {r}"),
    peer(
        "hdiffz -m-1",
        "hdiffz",
        "-f -p-2 -SD -m-1 -cache -block-0 -c-lzma2-9-64m {o} {n} {p}",
        "hpatchz",
        "-f {o} {p} {r}",
    ),
    Tool {
        name: "hdiffpatch library",
        program: Some("python"),
        generate: "{script} make {o} {n} {p}",
        apply_program: "python",
        apply: "{script} apply {o} {p} {r}",
        is_packed: false,
        is_python: true,
    },
    Tool {
        name: "zucchini + xz",
        program: Some("zucchini"),
        generate: "-gen {o} {n} {p}",
        apply_program: "zucchini",
        apply: "-apply {o} {p} {r}",
        is_packed: true,
        is_python: false,
    },
];

/// One row of the table.
#[derive(serde::Serialize)]
struct Row {
    pair: String,
    tool: &'static str,
    is_ours: bool,
    new_bytes: u64,
    patch_bytes: u64,
    generate_seconds: f64,
    base_check_seconds: f64,
    apply_seconds: f64,
    apply_processor_seconds: f64,
    apply_peak_bytes: u64,
    ok: bool,
}

/// Runs the benchmark and prints its table.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let binary = program::build(root, Profile::Release)?;
    let place = options.place.as_ref().unwrap_or(&options.pairs);
    let place = tempfile::tempdir_in(std::fs::canonicalize(place)?)?;
    let setting = Setting { binary: &binary, python: options.hdiffpatch.as_deref(), place: place.path() };
    std::fs::write(setting.script(), HDIFFPATCH)?;
    let installed: Vec<&Tool> = TOOLS
        .iter()
        .filter(|tool| {
            options.tool.is_empty() || options.tool.iter().any(|text| tool.name.contains(text.as_str()))
        })
        .filter(|tool| {
            let is_there = match tool.program {
                Some(_) if tool.is_python => options.hdiffpatch.is_some(),
                Some(program) => is_installed(program) && is_installed(tool.apply_program),
                None => true,
            };
            if !is_there {
                println!("skip {}: not installed", tool.name);
            }
            is_there
        })
        .collect();
    describe()?;
    let mut names: Vec<String> = std::fs::read_dir(&options.pairs)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("old").is_file() && path.join("new").is_file())
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .filter(|name| options.only.as_ref().is_none_or(|text| name.contains(text.as_str())))
        .collect();
    names.sort();
    ensure!(!names.is_empty(), "no pairs in {}; make them with `cargo xtask pairs`", options.pairs.display());
    println!(
        "{:14} {:18} {:>11} {:>6} {:>8} {:>7} {:>7} {:>7} {:>6}  ok",
        "pair", "tool", "patch", "ratio", "make s", "base s", "apply s", "cpu s", "MB"
    );
    let mut missed = Vec::new();
    for name in &names {
        let mut rows = Vec::new();
        for tool in &installed {
            let row = setting.measure(tool, &options.pairs.join(name), name, options.rounds);
            match row {
                Ok(row) => rows.push(row),
                Err(error) => println!("{name:14} {:18} failed: {error:#}", tool.name),
            }
        }
        let best = rows.iter().filter(|row| !row.is_ours).map(|row| row.patch_bytes).min();
        for row in &rows {
            let ratio =
                best.map_or("-".to_owned(), |best| format!("{:.3}", row.patch_bytes as f64 / best as f64));
            println!(
                "{:14} {:18} {:>11} {:>6} {:>8.2} {:>7.3} {:>7.3} {:>7.3} {:>6.0}  {}",
                row.pair,
                row.tool,
                row.patch_bytes,
                ratio,
                row.generate_seconds,
                row.base_check_seconds,
                row.apply_seconds,
                row.apply_processor_seconds,
                row.apply_peak_bytes as f64 / 1e6,
                if row.ok { "yes" } else { "NO" },
            );
            if options.json {
                println!("{}", serde_json::to_string(row)?);
            }
        }
        judge(&rows, best, &mut missed);
    }
    for line in &missed {
        println!("missed: {line}");
    }
    ensure!(!options.check || missed.is_empty(), "{} targets missed", missed.len());
    Ok(())
}

/// Notes the targets that a pair's rows miss.
fn judge(rows: &[Row], best: Option<u64>, missed: &mut Vec<String>) {
    for row in rows.iter().filter(|row| !row.ok) {
        missed.push(format!("{} {}: another result", row.pair, row.tool));
    }
    let of = |tool: &str| rows.iter().find(|row| row.tool == tool);
    for (ours, theirs) in [("cutover bsdiff", "bsdiff"), ("cutover zstd-dict", "zstd --patch-from")] {
        if let Some((ours, theirs)) = of(ours).zip(of(theirs))
            && ours.patch_bytes > theirs.patch_bytes
        {
            let (a, b) = (ours.patch_bytes, theirs.patch_bytes);
            missed.push(format!("{} {}: {a} bytes, {} makes {b}", ours.pair, ours.tool, theirs.tool));
        }
    }
    let ours = rows.iter().filter(|row| row.tool == CHOOSER || row.tool == "cutover refdelta");
    ours.for_each(|ours| judge_row(ours, rows, best, missed));
}

fn judge_row(ours: &Row, rows: &[Row], best: Option<u64>, missed: &mut Vec<String>) {
    let name = format!("{} {}", ours.pair, ours.tool);
    let is_small = ours.new_bytes < 10_000_000;
    let most = if is_small { 1.0 } else { 0.75 };
    if let Some(best) = best
        && ours.patch_bytes as f64 > best as f64 * most
    {
        missed.push(format!("{name}: {} bytes against {best}, at most {most}", ours.patch_bytes));
    }
    if ours.new_bytes <= 100_000_000 && ours.generate_seconds > GENERATE_SECONDS_MAX {
        missed.push(format!("{name}: made in {:.1} s", ours.generate_seconds));
    }
    for peer in rows.iter().filter(|row| !row.is_ours) {
        if peer.tool.starts_with("hdiff") && ours.apply_seconds > peer.apply_seconds {
            let (a, b) = (ours.apply_seconds, peer.apply_seconds);
            missed.push(format!("{name}: applied in {a:.3} s, {} in {b:.3} s", peer.tool));
        }
        if peer.tool == "bsdiff" && ours.generate_seconds > peer.generate_seconds {
            let (a, b) = (ours.generate_seconds, peer.generate_seconds);
            missed.push(format!("{name}: made in {a:.2} s, by bsdiff in {b:.2} s"));
        }
    }
}

/// What all measurements share.
struct Setting<'a> {
    binary: &'a Path,
    python: Option<&'a Path>,
    place: &'a Path,
}

impl Setting<'_> {
    fn script(&self) -> PathBuf {
        self.place.join("apply.py")
    }

    /// The command line of a tool, with the names of the files put in.
    fn command(&self, tool: &Tool, program: Option<&str>, arguments: &str, pair: &Path) -> Result<Command> {
        let old = pair.join("old");
        let size = std::fs::metadata(&old)?.len().max(1 << 20).to_string();
        let mut command = match (program, self.python) {
            (Some(_), Some(python)) if tool.is_python => Command::new(python),
            (Some(program), _) => Command::new(program),
            (None, _) => Command::new(self.binary),
        };
        let names = [
            ("{o}", old),
            ("{n}", pair.join("new")),
            ("{p}", self.place.join("patch")),
            ("{r}", self.place.join("result")),
            ("{script}", self.script()),
        ];
        for argument in arguments.split(' ') {
            let text = argument.replace("{size}", &size);
            let put =
                |text: String, (key, path): &(&str, PathBuf)| text.replace(key, &path.to_string_lossy());
            command.arg(names.iter().fold(text, put));
        }
        if program.is_none() {
            command.args(["--progress", "none"]);
        }
        Ok(command)
    }

    fn measure(&self, tool: &Tool, pair: &Path, name: &str, rounds: usize) -> Result<Row> {
        let (patch, packed) = (self.place.join("patch"), self.place.join("patch.xz"));
        let result = self.place.join("result");
        for path in [&patch, &packed, &result] {
            let _ = std::fs::remove_file(path);
        }
        let wanted = digest_of(&pair.join("new"))?;
        let started = Instant::now();
        digest_of(&pair.join("old"))?;
        let base_check = started.elapsed();
        let mut made = finish(self.command(tool, tool.program, tool.generate, pair)?, tool)?;
        if tool.is_packed {
            let mut xz = Command::new("xz");
            xz.args(["-9e", "-k", "-f"]).arg(&patch);
            made.took += finish(xz, tool)?.took;
        }
        let patch_bytes = std::fs::metadata(if tool.is_packed { &packed } else { &patch })?.len();
        let (mut best, mut peak_bytes, mut ok) = (None::<Finished>, 0, true);
        for _ in 0..rounds.max(1) {
            let _ = std::fs::remove_file(&result);
            let program = tool.program.map(|_| tool.apply_program);
            let mut applied = if tool.is_packed {
                let mut xz = Command::new("xz");
                xz.args(["-d", "-k", "-f"]).arg(&packed);
                finish(xz, tool)?
            } else {
                Finished::default()
            };
            applied.add(finish(self.command(tool, program, tool.apply, pair)?, tool)?);
            peak_bytes = peak_bytes.max(applied.peak_bytes);
            let started = Instant::now();
            ok &= digest_of(&result)? == wanted;
            if tool.program.is_some() {
                std::fs::File::open(&result)?.sync_all()?;
                applied.took += started.elapsed();
            }
            if best.is_none_or(|best| applied.took < best.took) {
                best = Some(applied);
            }
        }
        let best = best.unwrap_or_default();
        Ok(Row {
            pair: name.to_owned(),
            tool: tool.name,
            is_ours: tool.program.is_none(),
            new_bytes: std::fs::metadata(pair.join("new"))?.len(),
            patch_bytes,
            generate_seconds: made.took.as_secs_f64(),
            base_check_seconds: base_check.as_secs_f64(),
            apply_seconds: best.took.as_secs_f64(),
            apply_processor_seconds: best.processor.as_secs_f64(),
            apply_peak_bytes: peak_bytes,
            ok,
        })
    }
}

/// What a command took.
#[derive(Clone, Copy, Default)]
struct Finished {
    took: Duration,
    processor: Duration,
    peak_bytes: u64,
}

impl Finished {
    fn add(&mut self, other: Self) {
        self.took += other.took;
        self.processor += other.processor;
        self.peak_bytes = self.peak_bytes.max(other.peak_bytes);
    }
}

fn finish(command: Command, tool: &Tool) -> Result<Finished> {
    let finished = node::finish(command)?.with(&[0])?;
    let (mut took, mut processor) = (finished.took, finished.usage.processor);
    if tool.is_python {
        let told = finished.stdout.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
        ensure!(told.len() == 2, "two times were expected");
        (took, processor) = (Duration::from_secs_f64(told[0]), Duration::from_secs_f64(told[1]));
    }
    Ok(Finished { took, processor, peak_bytes: finished.usage.peak_bytes })
}

fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

fn describe() -> Result<()> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "{}; {} processors; load {}",
        cpu.trim_start_matches([' ', '\t', ':']),
        std::thread::available_parallelism().context("processors")?,
        load.split(' ').next().unwrap_or("unknown"),
    );
    Ok(())
}
