//! Archives of episodes: ours as GNU tar reads them, others' as we read them, hostile ones.

use std::{fs, io::Write as _, os::unix::fs::symlink, path::Path, process::Command};

use cutover_bundle::episode::{ArchiveWriter, CommitScan, NoCommit, ScanLimits, Scanned};
use proptest::prelude::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn meta() -> String {
    format!("{{\"code_version\": {{\"commit\": \"{COMMIT}\", \"dirty\": false}}}}")
}

fn scan(archive: &[u8], piece: usize, limits: ScanLimits) -> Result<String, NoCommit> {
    let mut scan = CommitScan::new(limits).unwrap();
    for bytes in archive.chunks(piece) {
        if scan.push(bytes) != Scanned::More {
            break;
        }
    }
    scan.finish().map(|commit| commit.to_string())
}

fn found(archive: &[u8]) -> Result<String, NoCommit> {
    let whole = scan(archive, archive.len().max(1), ScanLimits::default());
    assert_eq!(scan(archive, 1, ScanLimits::default()), whole, "pieces change nothing");
    whole
}

/// An archive by hand: members with path and content.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ArchiveWriter::new(Vec::new(), 3).unwrap();
    for (path, content) in members {
        writer.file(path.as_bytes(), false, content.len() as u64, &mut &content[..]).unwrap();
    }
    writer.finish().unwrap()
}

fn run(program: &str, arguments: &[&str], directory: &Path) {
    let output = Command::new(program).args(arguments).current_dir(directory).output();
    let output = output.unwrap_or_else(|error| panic!("`{program}` is needed: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What GNU tar makes of a directory, with these options.
fn packed_by_tar(directory: &Path, options: &[&str]) -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("x.tar.zst");
    let mut arguments = vec!["--zstd", "-cf", file.to_str().unwrap()];
    arguments.extend(options);
    arguments.push(".");
    run("tar", &arguments, directory);
    fs::read(file).unwrap()
}

#[test]
fn same_files_make_the_same_archive_which_gnu_tar_unpacks() {
    let long = format!("e1/{}/{}.bin", "d".repeat(90), "n".repeat(90));
    let far = "t".repeat(150);
    let make = || {
        let mut writer = ArchiveWriter::new(Vec::new(), 3).unwrap();
        writer.directory(b"e1").unwrap();
        writer.file(b"e1/meta.json", false, meta().len() as u64, &mut meta().as_bytes()).unwrap();
        writer.file(b"e1/empty", false, 0, &mut &b""[..]).unwrap();
        writer.file(b"e1/run", true, 700, &mut &[7; 700][..]).unwrap();
        writer.file(long.as_bytes(), false, 3, &mut &b"abc"[..]).unwrap();
        writer.symlink(b"e1/link", b"run").unwrap();
        writer.symlink(b"e1/far", far.as_bytes()).unwrap();
        writer.finish().unwrap()
    };
    let archive = make();
    assert_eq!(archive, make());
    assert_eq!(found(&archive).as_deref(), Ok(COMMIT));

    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("x.tar.zst"), &archive).unwrap();
    run("tar", &["--zstd", "-xf", "x.tar.zst"], place.path());
    let read = |path: &str| fs::read(place.path().join(path)).unwrap();
    assert_eq!(read("e1/meta.json"), meta().as_bytes());
    assert_eq!(read("e1/empty"), b"");
    assert_eq!(read("e1/run"), [7; 700]);
    assert_eq!(read(&long), b"abc");
    assert_eq!(fs::read_link(place.path().join("e1/link")).unwrap(), Path::new("run"));
    assert_eq!(fs::read_link(place.path().join("e1/far")).unwrap(), Path::new(&far));
}

#[test]
fn file_that_changes_its_length_is_an_error() {
    for content in [&b"ab"[..], b"abcd"] {
        let mut writer = ArchiveWriter::new(Vec::new(), 3).unwrap();
        let error = writer.file(b"x", false, 3, &mut &content[..]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    }
}

#[test]
fn commit_is_found_in_what_gnu_tar_writes_in_all_its_formats() {
    let place = tempfile::tempdir().unwrap();
    let episode = place.path();
    let deep = episode.join("d".repeat(120)).join("e".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("a".repeat(200)), vec![1; 5000]).unwrap();
    fs::write(episode.join("xmeta.json"), "{}").unwrap();
    symlink("xmeta.json", episode.join("b-link")).unwrap();
    let mut sparse = fs::File::create(episode.join("b-sparse")).unwrap();
    for part in 0..60u64 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &[1], part << 17).unwrap();
    }
    sparse.flush().unwrap();
    fs::write(episode.join("meta.json"), meta()).unwrap();
    for options in [
        &["--format=gnu"][..],
        &["--format=pax"],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse"],
        &["--format=gnu", "--sort=name"],
        &["--format=pax", "--sort=name", "--pax-option=comment=x"],
    ] {
        assert_eq!(found(&packed_by_tar(episode, options)).as_deref(), Ok(COMMIT), "{options:?}");
    }
}

// I34
#[test]
fn only_a_regular_file_called_exactly_meta_json_counts() {
    let body = meta();
    let body = body.as_bytes();
    let other = br#"{"code_version":{"commit":"ffffffffffffffffffffffffffffffffffffffff"}}"#;
    assert_eq!(found(&archive(&[("e/xmeta.json", body)])), Err(NoCommit::NoMeta));
    for path in ["e/meta.json.bak", "e/META.JSON", "meta.json/x", "e/meta.jso", "e/ meta.json"] {
        assert_eq!(found(&archive(&[(path, body)])), Err(NoCommit::NoMeta), "{path}");
    }
    for path in ["meta.json", "./meta.json", "a/b/c/meta.json"] {
        assert_eq!(
            found(&archive(&[("e/xmeta.json", other), (path, body)])).as_deref(),
            Ok(COMMIT),
            "{path}"
        );
    }
    let first = archive(&[("e/meta.json", b"{}"), ("e/deep/meta.json", body)]);
    assert_eq!(found(&first), Err(NoCommit::NoCommit), "the first one counts");
    let mut writer = ArchiveWriter::new(Vec::new(), 3).unwrap();
    writer.directory(b"e/meta.json").unwrap();
    writer.symlink(b"x/meta.json", b"/etc/passwd").unwrap();
    assert_eq!(found(&writer.finish().unwrap()), Err(NoCommit::NoMeta));
}

// I34
#[test]
fn bomb_and_huge_members_end_the_search() {
    let limits = ScanLimits { free_bytes: 1 << 20, expansion_max: 100, ..ScanLimits::default() };
    let zeros = vec![0; 8 << 20];
    let bomb = archive(&[("e/zeros", &zeros), ("e/meta.json", meta().as_bytes())]);
    assert!(bomb.len() < 4096);
    assert!(matches!(scan(&bomb, 100, limits), Err(NoCommit::Bomb(_))));
    let large = archive(&[("e/meta.json", &vec![b' '; 2 << 20])]);
    assert_eq!(found(&large), Err(NoCommit::MetaTooLarge(2 << 20)));
    // A frame that wants a window of 2 GiB is refused before it is allocated.
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(31)).unwrap();
    encoder.write_all(&vec![1; 1 << 20]).unwrap();
    assert!(matches!(found(&encoder.finish().unwrap()), Err(NoCommit::NotZstd(_))));
}

#[test]
fn what_is_no_archive_says_no_commit() {
    assert!(matches!(found(b""), Err(NoCommit::NotZstd(_))));
    assert!(matches!(found(b"PK\x03\x04 certainly no archive"), Err(NoCommit::NotZstd(_))));
    let text = zstd::encode_all(&[b'x'; 2000][..], 1).unwrap();
    assert!(matches!(found(&text), Err(NoCommit::NotTar(_))));
    assert_eq!(found(&zstd::encode_all(&b""[..], 1).unwrap()), Err(NoCommit::NoMeta));
    let whole = archive(&[("e/data", &[1; 3000]), ("e/meta.json", meta().as_bytes())]);
    for length in 1..whole.len() {
        match found(&whole[..length]) {
            Ok(commit) => assert_eq!(commit, COMMIT),
            Err(error) => assert_eq!(error, NoCommit::Cut, "{length}"),
        }
    }
}

#[test]
fn kept_archives_still_say_their_commit() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/episode");
    for name in ["gnu", "pax"] {
        assert_eq!(found(&fs::read(seeds.join(name)).unwrap()).as_deref(), Ok(COMMIT), "{name}");
    }
}

#[test]
fn several_frames_are_one_archive() {
    let tar = zstd::decode_all(&archive(&[("e/data", &[1; 3000]), ("e/meta.json", meta().as_bytes())])[..])
        .unwrap();
    let (one, two) = tar.split_at(700);
    let frames = [zstd::encode_all(one, 1).unwrap(), zstd::encode_all(two, 1).unwrap()].concat();
    assert_eq!(found(&frames).as_deref(), Ok(COMMIT));
}

#[test]
fn binary_numbers_in_any_field_are_read_or_refused() {
    let sound = zstd::decode_all(&archive(&[("e/meta.json", meta().as_bytes())])[..]).unwrap();
    let header = |at: std::ops::Range<usize>, field: &[u8]| {
        let mut tar = sound.clone();
        tar[at].copy_from_slice(field);
        found(&zstd::encode_all(&tar[..], 1).unwrap())
    };
    for first in [0x80, 0xff] {
        let wrong = header(148..156, &[first, 0, 0, 0, 0, 0, 0, 1]);
        assert!(matches!(wrong, Err(NoCommit::NotTar(_))), "{wrong:?}");
    }
    // The same sum in GNU's form is the same number.
    let sum = u64::from_str_radix(std::str::from_utf8(&sound[148..154]).unwrap(), 8).unwrap();
    let mut binary = sum.to_be_bytes();
    binary[0] = 0x80;
    assert_eq!(header(148..156, &binary).as_deref(), Ok(COMMIT));
    let mut large = [0xff; 12];
    large[0] = 0x80;
    assert!(matches!(header(124..136, &large), Err(NoCommit::NotTar(_))));
}

proptest! {
    #[test]
    fn no_bytes_inside_or_outside_make_the_search_fail(
        flips in prop::collection::vec((0usize..4096, any::<u8>()), 1..6), piece in 1usize..2000,
    ) {
        let sound = archive(&[("e/data", &[1; 900]), ("e/meta.json", meta().as_bytes())]);
        let mut outside = sound.clone();
        let mut inside = zstd::decode_all(&sound[..]).unwrap();
        for (at, value) in flips {
            let (length, inner) = (outside.len(), inside.len());
            outside[at % length] = value;
            inside[at % inner] = value;
        }
        let _ = scan(&outside, piece, ScanLimits::default());
        let _ = scan(&zstd::encode_all(&inside[..], 1).unwrap(), piece, ScanLimits::default());
    }
}
