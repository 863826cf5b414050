//! Our patches applied by others, others' patches applied by us, format by format. Needs Debian's `bsdiff`, `xdelta3` and
//! `zstd`; without one, each of its tests says that it was not run.

use std::{fs, path::PathBuf, process::Command};

use cutover_bundle::delta::{Algorithm, DeltaError};

use super::{apply, generate, pairs};
use crate::support::have_program;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).expect("written");
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Runs a program in the directory; it must succeed.
    fn run(&self, program: &str, arguments: &[&str]) {
        let output = Command::new(program).args(arguments).current_dir(self.dir.path()).output();
        let output = output.expect("started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
    }
}

/// Every pair through our generator and `decode`, and through `encode` and our decoder.
fn both_ways(
    algorithm: Algorithm,
    wanted: impl Fn(&[u8], &[u8]) -> bool,
    decode: &dyn Fn(&Bench),
    encode: &dyn Fn(&Bench),
) {
    for (name, old, new) in pairs() {
        if !wanted(&old, &new) {
            continue;
        }
        let bench = Bench::new();
        bench.write("old", &old);
        bench.write("new", &new);
        bench.write("ours", &generate(algorithm, &old, &new));
        decode(&bench);
        assert!(bench.read("out") == new, "{name}: their decoder made something else of our patch");
        encode(&bench);
        let theirs = bench.read("theirs");
        apply(algorithm, &old, &theirs, &new).unwrap_or_else(|error| panic!("{name}: their patch: {error}"));
    }
}

// D6
#[test]
fn bsdiff_patches_go_both_ways() {
    if !have_program("bspatch", "bsdiff") {
        return;
    }
    // Debian's bsdiff refuses empty files.
    both_ways(
        Algorithm::Bsdiff,
        |old, new| !old.is_empty() && !new.is_empty(),
        &|bench| bench.run("bspatch", &["old", "out", "ours"]),
        &|bench| bench.run("bsdiff", &["old", "new", "theirs"]),
    );
}

#[test]
fn bsdiff_patches_are_as_small_as_those_of_bsdiff() {
    if !have_program("bsdiff", "bsdiff") {
        return;
    }
    for (name, old, new) in pairs() {
        let bench = Bench::new();
        bench.write("old", &old);
        bench.write("new", &new);
        bench.run("bsdiff", &["old", "new", "theirs"]);
        let (ours, theirs) = (generate(Algorithm::Bsdiff, &old, &new).len(), bench.read("theirs").len());
        // Where several matches are equally long, which one is taken is chance: a few bytes either way.
        assert!(ours <= theirs + 8, "{name}: {ours} against {theirs} bytes");
    }
}

// D6
#[test]
fn xdelta3_patches_go_both_ways_with_every_setting_that_is_supported() {
    if !have_program("xdelta3", "xdelta3") {
        return;
    }
    let settings: [&[&str]; 7] = [
        &[],
        &["-9"],
        &["-S", "lzma"],
        &["-9", "-S", "lzma", "-W", "16384"],
        &["-S", "none"],
        &["-n", "-S", "lzma"],
        &["-A", "-S", "none", "-W", "16384"],
    ];
    for setting in settings {
        both_ways(
            Algorithm::Xdelta3,
            |_, _| true,
            &|bench| bench.run("xdelta3", &["-d", "-f", "-s", "old", "ours", "out"]),
            &|bench| {
                let arguments = [&["-e", "-f"], setting, &["-s", "old", "new", "theirs"]].concat();
                bench.run("xdelta3", &arguments);
            },
        );
    }
}

// D6
#[test]
fn vcdiff_patches_go_both_ways() {
    if !have_program("xdelta3", "xdelta3") {
        return;
    }
    both_ways(
        Algorithm::Vcdiff,
        |_, _| true,
        &|bench| bench.run("xdelta3", &["-d", "-f", "-s", "old", "ours", "out"]),
        &|bench| {
            bench.run("xdelta3", &["-e", "-f", "-S", "none", "-A", "-n", "-s", "old", "new", "theirs"]);
        },
    );
}

// D6
#[test]
fn what_only_xdelta3_has_is_no_vcdiff_and_the_other_compressors_are_refused_by_name() {
    if !have_program("xdelta3", "xdelta3") {
        return;
    }
    let (_, old, new) = pairs().remove(0);
    let bench = Bench::new();
    bench.write("old", &old);
    bench.write("new", &new);
    for (algorithm, setting, feature) in [
        (Algorithm::Vcdiff, &["-S", "none", "-A"][..], "Adler-32"),
        (Algorithm::Vcdiff, &["-S", "none", "-n"], "application header"),
        (Algorithm::Vcdiff, &["-S", "lzma", "-n", "-A"], "LZMA"),
        (Algorithm::Xdelta3, &["-S", "djw"], "DJW"),
        (Algorithm::Xdelta3, &["-S", "fgk"], "FGK"),
    ] {
        bench.run("xdelta3", &[&["-e", "-f"], setting, &["-s", "old", "new", "theirs"]].concat());
        let refused = apply(algorithm, &old, &bench.read("theirs"), &new).unwrap_err();
        assert!(matches!(refused, DeltaError::Unsupported { .. }), "{setting:?}: {refused}");
        assert!(refused.to_string().contains(feature), "{setting:?}: {refused}");
    }
}

// D6
#[test]
fn zstd_patches_go_both_ways() {
    if !have_program("zstd", "zstd") {
        return;
    }
    both_ways(
        Algorithm::ZstdDict,
        |_, _| true,
        &|bench| bench.run("zstd", &["-d", "-q", "-f", "--patch-from=old", "ours", "-o", "out"]),
        &|bench| bench.run("zstd", &["-q", "-f", "-19", "--long", "--patch-from=old", "new", "-o", "theirs"]),
    );
}

#[test]
fn no_format_stands_for_another() {
    let (_, old, new) = pairs().remove(0);
    for made in super::PUBLIC {
        let patch = generate(made, &old, &new);
        for read in super::PUBLIC.into_iter().filter(|read| *read != made) {
            // Plain VCDIFF is a part of what xdelta3 reads; that is what the format says.
            let is_part = (made, read) == (Algorithm::Vcdiff, Algorithm::Xdelta3);
            assert_eq!(apply(read, &old, &patch, &new).is_ok(), is_part, "{made} as {read}");
        }
    }
}
