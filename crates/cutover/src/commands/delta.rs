//! `delta generate | apply | verify | inspect`: patches between single files.

use std::{
    fs::File,
    io::{self, Cursor, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, Ordering},
    time::Instant,
};

use cutover_bundle::{
    Level, PayloadWriter,
    delta::{
        self, AVAILABLE, Applied, Content, Declared, DeltaError, DeltaLimits, GenerateOptions, Pair,
        choose::{self, Candidate, ChooseOptions, Policy},
    },
};
use cutover_core::{
    event::Event,
    model::{DELTA_FORMAT, DeltaAlgorithm, DeltaCandidate, DeltaDescription, Digest},
};

use super::Context;
use crate::{
    args::{Delta, DeltaGenerate, DeltaPolicy, DeltaWith},
    exit::Exit,
    failure::Failure,
    files::{self, Existing},
    output::{self, Form},
    progress,
};

pub(super) fn run(command: Delta, context: &Context) -> Result<Exit, Failure> {
    match command {
        Delta::Generate(command) => generate(&command, context),
        Delta::Apply { old, patch, output, with } => apply(&old, &patch, &output, &with, context),
        Delta::Verify { old, patch, with } => verify(&old, &patch, &with, context),
        Delta::Inspect { patch, with } => inspect(&patch, &with, context),
    }
}

fn generate(command: &DeltaGenerate, context: &Context) -> Result<Exit, Failure> {
    let (old, new) = (read_whole(&command.old)?, read_whole(&command.new)?);
    let algorithms = if command.algorithm.is_empty() { AVAILABLE } else { command.algorithm.as_slice() };
    if let Some(missing) = algorithms.iter().find(|algorithm| !AVAILABLE.contains(algorithm)) {
        return Err(DeltaError::Unavailable(*missing).into());
    }
    let is_pinned = command.algorithm.len() == 1;
    let full_bytes = compressed_bytes(&new)?;
    let observer = progress::observer(context.progress);
    let told = AtomicU8::new(0);
    let tell = |done: f64| {
        let percent = (done * 100.0) as u8;
        if told.fetch_max(percent, Ordering::Relaxed) < percent {
            observer.observe(&Event::Progress { percent });
        }
    };
    let started = Instant::now();
    let threads = command.threads.or_else(|| std::thread::available_parallelism().ok());
    let options = ChooseOptions {
        policy: match command.policy {
            DeltaPolicy::Smallest => Policy::Smallest,
            DeltaPolicy::FastestApply => Policy::FastestApply,
            DeltaPolicy::Balanced => Policy::Balanced,
        },
        full_bytes: if is_pinned { u64::MAX } else { full_bytes },
        limits: DeltaLimits { memory_bytes_max: command.memory, ..DeltaLimits::default() },
        generate: GenerateOptions {
            threads: threads.unwrap_or(std::num::NonZeroUsize::MIN),
            progress: &tell,
        },
        clock: &|| started.elapsed(),
    };
    let pair = Pair::new(&old, &new);
    let choice = choose::choose(&pair, algorithms, &options);
    drop(observer);
    let mut candidates: Vec<DeltaCandidate> = choice.candidates.iter().map(candidate_of).collect();
    candidates.push(DeltaCandidate {
        what: "full".to_owned(),
        bytes: Some(full_bytes),
        note: "the new file, compressed".to_owned(),
    });
    let Some((algorithm, patch)) = choice.patch else {
        for candidate in &candidates {
            output::note(describe(candidate));
        }
        // Nothing to do is only said of patches that were made and are too large.
        let is_failed = choice.candidates.iter().all(|candidate| candidate.error.is_some());
        let error = choice.candidates.into_iter().find_map(|candidate| candidate.error);
        if let (true, Some(error)) = (is_failed, error) {
            let what = format!("no patch was made for `{}`", command.new.display());
            return Err(Failure::about(error, what));
        }
        let message = format!("no patch is of use for `{}`", command.new.display());
        return Err(Failure::new(Exit::NothingToDo, message).hint("publish the file itself"));
    };
    let description = description(algorithm, &old, &new, &patch, candidates);
    let text = serde_json::to_vec_pretty(&description).expect("descriptions have string keys");
    let described = beside(&command.output);
    write_file(&command.output, &patch)?;
    write_file(&described, &text)?;
    match context.form {
        Form::Json => output::json(&serde_json::json!({
            "patch": command.output.display().to_string(),
            "description": described.display().to_string(),
            "algorithm": algorithm,
            "bytes": patch.len(),
            "full_bytes": full_bytes,
            "result_bytes": new.len(),
            "candidates": description.candidates,
        }))?,
        Form::Text => {
            let (patch_bytes, new_bytes) = (patch.len() as u64, new.len() as u64);
            output::line(format!(
                "{}: {algorithm}, {} instead of {} ({} compressed)",
                command.output.display(),
                output::bytes(patch_bytes),
                output::bytes(new_bytes),
                output::bytes(full_bytes),
            ));
            if patch_bytes >= full_bytes {
                output::note("warning: the patch is not smaller than the compressed file");
            }
        }
    }
    Ok(Exit::Done)
}

/// The name of a patch's description.
fn beside(patch: &Path) -> PathBuf {
    let mut name = patch.as_os_str().to_owned();
    name.push(".json");
    PathBuf::from(name)
}

/// Reads a file of any size into memory, as generators need it.
fn read_whole(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|source| Failure::io("read", path, source))
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    files::write(path, 0o644, Existing::Replace, |out| {
        out.write_all(bytes).map_err(|source| Failure::io("write", path, source))
    })
}

/// What a file takes in a bundle.
pub(super) fn compressed_bytes(bytes: &[u8]) -> Result<u64, Failure> {
    let mut writer = PayloadWriter::new(Cursor::new(Vec::new()), Level::default())?;
    writer.add(bytes)?;
    Ok(writer.finish()?.bytes)
}

/// What is told of a candidate; times are rounded, since nobody can rely on them.
pub(super) fn candidate_of(candidate: &Candidate) -> DeltaCandidate {
    let mut note = candidate.reason.chars().take(120).collect::<String>();
    if candidate.bytes.is_some() {
        note.push_str(&format!(
            "; made in {} ms, applied in {} ms",
            candidate.generate.as_millis(),
            candidate.apply.as_millis()
        ));
    }
    DeltaCandidate { what: candidate.algorithm.id().to_owned(), bytes: candidate.bytes, note }
}

fn describe(candidate: &DeltaCandidate) -> String {
    let bytes = candidate.bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
    format!("{:<10} {bytes:>12} bytes: {}", candidate.what, candidate.note)
}

fn description(
    algorithm: DeltaAlgorithm,
    old: &[u8],
    new: &[u8],
    patch: &[u8],
    candidates: Vec<DeltaCandidate>,
) -> DeltaDescription {
    let size = |bytes: &[u8]| bytes.len() as u64;
    DeltaDescription {
        format: DELTA_FORMAT,
        algorithm,
        base_sha256: Digest::of(old),
        base_size: size(old),
        target_sha256: Digest::of(new),
        target_size: size(new),
        patch_sha256: Digest::of(patch),
        patch_size: size(patch),
        candidates,
    }
}

/// A patch with its description, opened.
struct Opened {
    description: DeltaDescription,
    declared: Declared,
    patch: File,
    limits: DeltaLimits,
}

fn open(patch: &Path, with: &DeltaWith) -> Result<Opened, Failure> {
    let path = with.description.clone().unwrap_or_else(|| beside(patch));
    let text = files::read("the description", &path)
        .map_err(|failure| failure.hint("`cutover delta generate` writes it beside the patch"))?;
    let description = DeltaDescription::parse(&text)
        .map_err(|error| Failure::about(error, format!("refused `{}`", path.display())))?;
    let declared = Declared {
        base: Content { size: description.base_size, sha256: description.base_sha256 },
        patch: Content { size: description.patch_size, sha256: description.patch_sha256 },
        result: Content { size: description.target_size, sha256: description.target_sha256 },
    };
    let limits = DeltaLimits { memory_bytes_max: with.memory, ..DeltaLimits::default() };
    Ok(Opened { description, declared, patch: open_file(patch)?, limits })
}

fn open_file(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|source| Failure::io("open", path, source))
}

impl Opened {
    fn apply(&self, old: &Path, patch: &Path, out: &mut dyn Write) -> Result<Applied, Failure> {
        let base = open_file(old)?;
        let algorithm = self.description.algorithm;
        delta::apply(algorithm, &base, &self.patch, &self.declared, &self.limits, out)
            .map(|(_, applied)| applied)
            .map_err(|error| Failure::about(error, format!("refused `{}`", patch.display())))
    }
}

fn apply(
    old: &Path,
    patch: &Path,
    output: &Path,
    with: &DeltaWith,
    context: &Context,
) -> Result<Exit, Failure> {
    let opened = open(patch, with)?;
    let mut applied = None;
    files::write(output, 0o644, Existing::Replace, |out| {
        applied = Some(opened.apply(old, patch, out)?);
        Ok(())
    })?;
    report(&opened, applied, output, context)
}

fn verify(old: &Path, patch: &Path, with: &DeltaWith, context: &Context) -> Result<Exit, Failure> {
    let opened = open(patch, with)?;
    let applied = opened.apply(old, patch, &mut io::sink())?;
    report(&opened, Some(applied), patch, context)
}

fn report(
    opened: &Opened,
    applied: Option<Applied>,
    subject: &Path,
    context: &Context,
) -> Result<Exit, Failure> {
    let description = &opened.description;
    let memory = applied.map_or(0, |applied| applied.memory_bytes);
    match context.form {
        Form::Json => output::json(&serde_json::json!({
            "file": subject.display().to_string(),
            "algorithm": description.algorithm,
            "sha256": description.target_sha256,
            "result_bytes": description.target_size,
            "patch_bytes": description.patch_size,
            "memory_bytes_max": memory,
        }))?,
        Form::Text => output::line(format!(
            "{}: right: {}, {} from a patch of {}, at most {} of memory",
            subject.display(),
            description.algorithm,
            output::bytes(description.target_size),
            output::bytes(description.patch_size),
            output::bytes(memory),
        )),
    }
    Ok(Exit::Done)
}

fn inspect(patch: &Path, with: &DeltaWith, context: &Context) -> Result<Exit, Failure> {
    let opened = open(patch, with)?;
    let failed = |error| Failure::about(error, format!("refused `{}`", patch.display()));
    opened.declared.patch.check(delta::Part::Patch, &opened.patch).map_err(failed)?;
    let nothing: &[u8] = &[];
    let description = &opened.description;
    let memory = delta::memory_needed(
        description.algorithm,
        &nothing,
        &opened.patch,
        &opened.declared,
        &opened.limits,
    )
    .map_err(failed)?;
    match context.form {
        Form::Json => output::json(&serde_json::json!({
            "patch": patch.display().to_string(),
            "memory_bytes": memory,
            "description": description,
        }))?,
        Form::Text => {
            output::line(format!(
                "{}: {}, {} bytes, its decoder needs {}",
                patch.display(),
                description.algorithm,
                description.patch_size,
                output::bytes(memory)
            ));
            output::line(format!("base      {} bytes, {}", description.base_size, description.base_sha256));
            output::line(format!(
                "target    {} bytes, {}",
                description.target_size, description.target_sha256
            ));
            for candidate in &description.candidates {
                output::line(output::printable(&describe(candidate)));
            }
        }
    }
    Ok(Exit::Done)
}
