//! Power cuts: a loop image with a real file system is shut down before each call, mounted again and recovered.
//!
//! The shutdown ioctl drops everything that was not flushed, data and metadata, as a cut does; it does not reorder
//! or tear single writes (the simulation does). Needs root and loop devices; says so where it has none.

use std::{
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use super::{
    Options, Tally,
    scene::{Samples, Scene},
};
use crate::{
    program,
    trace::{Ending, Fault},
};

/// The file systems with a shutdown ioctl that are tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FileSystem {
    /// ext4, without the heuristics that flush after a rename.
    Ext4,
    /// XFS.
    Xfs,
}

impl FileSystem {
    fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        }
    }

    fn mkfs(self, image: &Path) -> Command {
        let mut command = Command::new(match self {
            FileSystem::Ext4 => "mkfs.ext4",
            FileSystem::Xfs => "mkfs.xfs",
        });
        match self {
            FileSystem::Ext4 => {
                command.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
            }
            FileSystem::Xfs => {
                command.args(["-q", "-f"]);
            }
        }
        command.arg(image);
        command
    }

    fn options(self) -> &'static str {
        match self {
            // Nothing reaches the disk by itself: what survives was flushed by the program.
            FileSystem::Ext4 => "loop,noauto_da_alloc,commit=300",
            FileSystem::Xfs => "loop",
        }
    }
}

/// Runs the sweep on one file system.
pub(super) fn run(binary: &Path, file_system: FileSystem, options: &Options) -> Result<()> {
    let started = Instant::now();
    let place = super::scratch()?;
    let disk = Disk::new(file_system, place.path());
    if let Err(error) = disk.format().and_then(|()| disk.mount()) {
        bail!("power cuts need root, loop devices and {}: {error:#}", file_system.name());
    }
    disk.prove_that_it_forgets()?;
    let samples = Samples::make(binary, place.path())?;
    let mut violations = 0;
    println!("layout | command | points | violations");
    println!("-|-|-:|-:");
    for layout in options.layouts() {
        for subject in options.subjects() {
            disk.format()?;
            disk.mount()?;
            let scenes = Scene::all_of(&samples, layout, subject, options.recover_points(), &disk.mounted);
            let swept = scenes.and_then(|scenes| sweep(&disk, &scenes, options));
            disk.unmount()?;
            let tally = swept.with_context(|| format!("{layout}, {}", subject.name()))?;
            println!("{layout} | {} | {} | {}", subject.name(), tally.runs, tally.violations.len());
            violations += tally.violations.len();
        }
    }
    println!("\n{} in {} s", file_system.name(), started.elapsed().as_secs());
    ensure!(violations == 0, "power cut: {violations} violation(s)");
    Ok(())
}

/// Cuts the power before each changing call of each scene. The disk is mounted before and after.
fn sweep(disk: &Disk, scenes: &[Scene], options: &Options) -> Result<Tally> {
    let mut tally = Tally::default();
    for scene in scenes {
        scene.reset()?;
        disk.keep_as_start()?;
        let watched = scene.traced(scene.command()).run(Fault::Watch)?;
        let mut points: Vec<Option<u64>> = watched
            .calls
            .iter()
            .filter(|call| call.changes && options.at.is_none_or(|at| at == call.index))
            .map(|call| Some(call.index))
            .collect();
        if let Some(size) = options.sample_size() {
            let stride = points.len().div_ceil(size).max(1);
            points = points.into_iter().step_by(stride).collect();
        }
        // The last point is after the run: what it acknowledged has to be there.
        points.push(None);
        for at in points {
            disk.back_to_start()?;
            let mut cut = || disk.cut_power();
            let outcome = match at {
                Some(at) => scene.traced(scene.command()).run(Fault::Hook { at, run: &mut cut })?,
                None => {
                    let outcome = scene.traced(scene.command()).run(Fault::Watch)?;
                    disk.cut_power()?;
                    outcome
                }
            };
            let acknowledged = outcome.ending == Ending::Exited(0);
            disk.unmount()?;
            disk.mount().context("the image cannot be mounted after the cut")?;
            tally.runs += 1;
            for problem in scene.recover_and_judge(acknowledged)? {
                let call = outcome.struck_call().map_or("the end".to_owned(), ToString::to_string);
                let line = format!(
                    "VIOLATION {} {} {} power cut at {call}: {problem}",
                    scene.node.layout,
                    scene.subject.name(),
                    scene.variant
                );
                eprintln!("{line}");
                tally.violations.push(line);
            }
        }
    }
    Ok(tally)
}

/// A file that holds a file system, and where it is mounted.
struct Disk {
    file_system: FileSystem,
    image: PathBuf,
    start: PathBuf,
    mounted: PathBuf,
}

/// Big enough for the smallest XFS; sparse, so that copies are cheap.
const IMAGE_BYTES: u64 = 320 << 20;

impl Disk {
    fn new(file_system: FileSystem, place: &Path) -> Self {
        Disk {
            file_system,
            image: place.join("disk.img"),
            start: place.join("start.img"),
            mounted: place.join("disk"),
        }
    }

    fn format(&self) -> Result<()> {
        std::fs::create_dir_all(&self.mounted)?;
        File::create(&self.image)?.set_len(IMAGE_BYTES)?;
        program::succeed(self.file_system.mkfs(&self.image)).map(drop)
    }

    fn mount(&self) -> Result<()> {
        let mut command = Command::new("mount");
        command.args(["-t", self.file_system.name(), "-o", self.file_system.options()]);
        command.arg(&self.image).arg(&self.mounted);
        program::succeed(command).map(drop)
    }

    fn unmount(&self) -> Result<()> {
        let mut command = Command::new("umount");
        command.arg(&self.mounted);
        program::succeed(command).map(drop)
    }

    /// Flushes the present state and keeps it as what every point starts from.
    fn keep_as_start(&self) -> Result<()> {
        self.unmount()?;
        self.copy(&self.image, &self.start)?;
        self.mount()
    }

    fn back_to_start(&self) -> Result<()> {
        self.unmount()?;
        self.copy(&self.start, &self.image)?;
        self.mount()
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        let mut command = Command::new("cp");
        command.arg("--sparse=always").arg(from).arg(to);
        program::succeed(command).map(drop)
    }

    /// Cuts the power once by hand: what was flushed has to stay, what was not has to go, or the sweep proves nothing.
    fn prove_that_it_forgets(&self) -> Result<()> {
        let (flushed, unflushed) = (self.mounted.join("flushed"), self.mounted.join("unflushed"));
        std::fs::write(&flushed, "x")?;
        File::open(&flushed)?.sync_all()?;
        File::open(&self.mounted)?.sync_all()?;
        std::fs::write(&unflushed, "x")?;
        self.cut_power()?;
        self.unmount()?;
        self.mount()?;
        let seen = (flushed.exists(), unflushed.exists());
        self.unmount()?;
        ensure!(
            seen == (true, false),
            "a cut has to lose what was not flushed and nothing else, but (flushed, unflushed) = {seen:?}"
        );
        Ok(())
    }

    /// Stops the file system at once: nothing more reaches the image, not even what its log holds in memory.
    #[allow(unsafe_code)]
    fn cut_power(&self) -> Result<()> {
        const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
        let no_log_flush: u32 = 2;
        let handle = File::open(&self.mounted)?;
        // SAFETY: the ioctl reads one 32-bit integer, which lives on this frame.
        let done = unsafe { libc::ioctl(handle.as_raw_fd(), FS_IOC_SHUTDOWN as _, &raw const no_log_flush) };
        ensure!(done == 0, "FS_IOC_SHUTDOWN: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // After an error the disk may still be mounted; its directory could not be removed.
        let _absent = self.unmount();
    }
}
