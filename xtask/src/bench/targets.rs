//! The targets of the design, each measured and compared with its limit.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;

use super::{Material, median, run_and_check, settle, sync};
use crate::{
    node::{Layout, Publisher, exit},
    tree,
};

/// One line of the table.
struct Row {
    what: &'static str,
    limit: String,
    measured: String,
    met: Option<bool>,
}

impl Row {
    fn at_most(what: &'static str, limit: f64, measured: Option<f64>, unit: &str) -> Self {
        Row {
            what,
            limit: format!("<= {limit} {unit}"),
            measured: measured
                .map_or("not reported by the program".to_owned(), |value| format!("{value:.2} {unit}")),
            met: measured.map(|value| value <= limit),
        }
    }
}

/// Measures every target and prints the table.
pub(super) fn run(material: &Material, rounds: usize) -> Result<()> {
    let mut rows = Vec::new();
    rows.extend(verification(material, rounds)?);
    rows.extend(updates(material, rounds)?);
    rows.extend(big_binary(material)?);
    rows.extend(restore_space(material)?);
    rows.extend(hand_over(material)?);
    println!("\ntarget | limit | measured | met\n-|-|-|-");
    for row in &rows {
        let met = match row.met {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "?",
        };
        println!("{} | {} | {} | {met}", row.what, row.limit, row.measured);
    }
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn verification(material: &Material, rounds: usize) -> Result<Vec<Row>> {
    // A bundle with next to no payload, so that the whole command is the start, the signature and the end.
    let small = material.place.join("small");
    fs::create_dir_all(&small)?;
    fs::write(small.join("file"), "x")?;
    let publisher = publisher(material)?;
    let bundle = publisher.release(&small, "1.0.0", "package = \"small\"\n", 9)?;
    let mut whole = Vec::new();
    let mut inside = Vec::new();
    for _ in 0..rounds.max(3) {
        let mut command = Command::new(&publisher.binary);
        command.args(["bundle", "verify", "--json"]).arg(&bundle);
        let done = run_and_check(command)?;
        inside.extend(done.json()?["signature_us"].as_f64());
        whole.push(done.took);
    }
    inside.sort_by(f64::total_cmp);
    let inside = inside.get(inside.len() / 2).map(|us| us / 1e3);
    Ok(vec![
        Row::at_most("verify a signature, in process", 1.0, inside, "ms"),
        Row::at_most("verify a signature, whole command", 50.0, Some(ms(median(&whole))), "ms"),
    ])
}

fn updates(material: &Material, rounds: usize) -> Result<Vec<Row>> {
    let mut switch = Vec::new();
    let mut preflight = Vec::new();
    let mut rollback = Vec::new();
    let mut hashing = Vec::new();
    let mut peak = 0;
    for _ in 0..rounds.max(3) {
        let node = material.node("targets", Layout::Versioned)?;
        let first = node.apply(&material.bundles[0])?.with(&[exit::DONE])?;
        let mut dry = node.apply_command(&material.bundles[1]);
        dry.arg("--dry-run");
        preflight.extend(at_most_ms(&run_and_check(dry)?.json()?["preflight"]["took_ms"]));
        let second = node.apply(&material.bundles[1])?.with(&[exit::DONE])?;
        for done in [&first, &second] {
            peak = peak.max(done.usage.peak_bytes);
            let report = done.json()?;
            switch.extend(step_ms(&report, "switch"));
        }
        settle(&material.place)?;
        let back = node.run(&["rollback"])?.with(&[exit::DONE])?;
        rollback.push(ms(back.took));
        // What it restores is a whole tree; `verify` hashes exactly that, in a process of its own as well.
        hashing.push(ms(node.run(&["verify"])?.with(&[exit::DONE])?.took));
    }
    let beyond: Vec<f64> = rollback.iter().zip(&hashing).map(|(all, hashing)| all - hashing).collect();
    Ok(vec![
        Row::at_most("switch (rename and directory fsync)", 10.0, middle(&mut switch), "ms"),
        Row::at_most("preflight, usually", 50.0, middle(&mut preflight), "ms"),
        Row::at_most("rollback beyond hashing what it restores", 50.0, middle(&mut beyond.clone()), "ms"),
        Row::at_most("peak memory of apply", 64.0, Some(peak as f64 / 1e6), "MB"),
    ])
}

fn step_ms(report: &Value, step: &str) -> Option<f64> {
    let steps = report["steps"].as_array().or_else(|| report["report"]["steps"].as_array())?;
    let found = steps.iter().find(|entry| entry["step"] == step)?;
    at_most_ms(&found["elapsed_ms"])
}

/// The most that a time can have been which the program tells in whole milliseconds, rounded down.
fn at_most_ms(told: &Value) -> Option<f64> {
    told.as_f64().map(|ms| ms + 1.0)
}

fn middle(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn big_binary(material: &Material) -> Result<Vec<Row>> {
    const BYTES: usize = 200_000_000;
    let tree = material.place.join("big");
    fs::create_dir_all(&tree)?;
    let publisher = publisher(material)?;
    let mut bundles = Vec::new();
    for (seed, version) in ["1.0.0", "1.1.0"].into_iter().enumerate() {
        noise(&tree.join("binary"), BYTES, seed as u64)?;
        bundles.push(publisher.release(&tree, version, "package = \"big\"\n", 1)?);
    }
    let mut replaced = Vec::new();
    let mut copied = Vec::new();
    for _ in 0..3 {
        let node = material.node("big", Layout::Versioned)?;
        node.apply(&bundles[0])?.with(&[exit::DONE])?;
        settle(&material.place)?;
        replaced.push(node.apply(&bundles[1])?.with(&[exit::DONE])?.took);
        // The same bytes by `cp` and `sync`: what this disk can do.
        let copy = material.place.join("big-copy");
        settle(&material.place)?;
        let mut cp = Command::new("cp");
        cp.arg(tree.join("binary")).arg(&copy);
        copied.push(run_and_check(cp)?.took + run_and_check(sync(&material.place))?.took);
        fs::remove_file(&copy)?;
    }
    let (replaced, copied) = (ms(median(&replaced)), ms(median(&copied)));
    let mut row = Row::at_most("200 MB binary replaced, everything flushed", 500.0, Some(replaced), "ms");
    row.measured = format!("{} (cp + sync of the same bytes: {copied:.0} ms)", row.measured);
    Ok(vec![row])
}

/// Space of restore points after five updates that change a tenth of the bytes each: what the root takes beyond a root where
/// only the last release was ever installed. The bytes cannot be compressed, which is the worst case.
fn restore_space(material: &Material) -> Result<Vec<Row>> {
    const FILES: u64 = 20;
    const FILE_BYTES: usize = 2_000_000;
    let tree = material.place.join("tenth");
    fs::create_dir_all(&tree)?;
    for file in 0..FILES {
        noise(&tree.join(format!("file-{file:02}")), FILE_BYTES, file)?;
    }
    let publisher = publisher(material)?;
    let spec = "package = \"tenth\"\n[kinds]\nlibrary = [\"file-*\"]\n";
    let mut node = material.node("space", Layout::Versioned)?;
    node.settings.push("retention.keep=9".to_owned());
    let fresh = material.node("space-fresh", Layout::Versioned)?;
    for update in 0..=5_u64 {
        if update > 0 {
            for file in [update * 2, update * 2 + 1] {
                noise(&tree.join(format!("file-{file:02}")), FILE_BYTES, 100 * update + file)?;
            }
        }
        let bundle = publisher.release(&tree, &format!("1.{update}.0"), spec, 1)?;
        node.apply(&bundle)?.with(&[exit::DONE])?;
        if update == 5 {
            fresh.apply(&bundle)?.with(&[exit::DONE])?;
        }
    }
    let full = (FILES as usize * FILE_BYTES) as f64;
    let kept = tree::allocated(&node.root)? as f64 - tree::allocated(&fresh.root)? as f64;
    Ok(vec![Row::at_most(
        "restore points after 5 updates changing 10 % of the bytes, of five full copies",
        20.0,
        Some(100.0 * kept / (5.0 * full)),
        "%",
    )])
}

fn hand_over(material: &Material) -> Result<Vec<Row>> {
    let mut demo = Command::new(&material.binary);
    demo.args(["demo", "--json", "--progress", "none"]);
    let report = run_and_check(demo)?.json()?;
    let number = |name: &str| find(&report, name).and_then(Value::as_f64);
    let requests = number("requests");
    let failed = number("failed_requests");
    Ok(vec![
        Row {
            what: "hand-over with 1,000 open connections",
            limit: "0 failed of >= 200000 requests".to_owned(),
            measured: match (failed, requests) {
                (Some(failed), Some(requests)) => format!("{failed} failed of {requests}"),
                _ => "not reported by the program".to_owned(),
            },
            met: failed.zip(requests).map(|(failed, requests)| failed == 0.0 && requests >= 200_000.0),
        },
        Row::at_most("hand-over, stop to ready", 1000.0, number("hand_over_ms"), "ms"),
    ])
}

/// The first value of that name anywhere in a document.
fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map.get(name).or_else(|| map.values().find_map(|inner| find(inner, name))),
        Value::Array(list) => list.iter().find_map(|inner| find(inner, name)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

/// An authority of its own would not be trusted by the stamped program: reuse the one of the material.
fn publisher(material: &Material) -> Result<Publisher> {
    Publisher::open(&material.place.join("publisher"))
}

/// Writes bytes that nothing can compress.
fn noise(path: &Path, bytes: usize, seed: u64) -> Result<()> {
    let mut content = vec![0; bytes];
    StdRng::seed_from_u64(seed).fill_bytes(&mut content);
    fs::write(path, content).with_context(|| format!("failed to write `{}`", path.display()))
}
