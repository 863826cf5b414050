//! The simulated disk answers as the real one: random scripts run on both, and every answer and the final tree agree.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    path::Path,
};

use cutover_host::disk::{Disk, EntryKind, Locked, Metadata, RealDisk};
use cutover_sim::{FaultDisk, Faults, FileSystem, Options};
use proptest::prelude::*;

/// One step of a script. Paths are few, so that they meet.
#[derive(Clone, Debug)]
enum Action {
    Open(String),
    Create(String, u32, Vec<u8>),
    Append(String, u32, Vec<u8>),
    Truncate(String, u64),
    Rename(String, String),
    Exchange(String, String),
    HardLink(String, String),
    Copy(String, String, u32),
    Symlink(String, String),
    ReadLink(String),
    RemoveFile(String),
    RemoveDir(String),
    CreateDir(String, u32),
    List(String),
    Metadata(String),
    Xattrs(String),
    SetOwnership(String, u32, Option<(String, Vec<u8>)>),
    SetMode(String, u32),
    SyncDir(String),
    SyncAll,
    Lock(String),
}

/// What can be compared: sizes of directories and the like differ from one file system to the next.
fn shown(metadata: &Metadata) -> String {
    let Metadata { kind, size, mode, uid, gid, links, .. } = metadata;
    match kind {
        EntryKind::File => format!("file {size} {mode:o} {uid}:{gid} {links} links"),
        EntryKind::Directory => format!("directory {mode:o} {uid}:{gid}"),
        EntryKind::Symlink => format!("symlink {links} links"),
        EntryKind::Other => "other".to_owned(),
    }
}

fn answer(disk: &dyn Disk, action: &Action) -> io::Result<String> {
    let done = |()| "done".to_owned();
    let path = Path::new::<str>;
    match action {
        Action::Open(at) => {
            let mut file = disk.open(path(at))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(format!("{} {}", shown(&file.metadata()?), bytes.escape_ascii()))
        }
        Action::Create(at, mode, bytes) => {
            let mut file = disk.create(path(at), *mode)?;
            file.write_all(bytes)?;
            file.sync().map(done)
        }
        Action::Append(at, mode, bytes) => {
            let mut file = disk.append(path(at), *mode)?;
            file.set_mode(*mode)?;
            file.write_all(bytes).map(done)
        }
        Action::Truncate(at, size) => disk.truncate(path(at), *size).map(done),
        Action::Rename(from, to) => disk.rename(path(from), path(to)).map(done),
        Action::Exchange(a, b) => disk.exchange(path(a), path(b)).map(done),
        Action::HardLink(from, to) => disk.hard_link(path(from), path(to)).map(done),
        Action::Copy(from, to, mode) => disk.copy(path(from), path(to), *mode).map(|_| "copied".to_owned()),
        Action::Symlink(target, link) => disk.symlink(target, path(link)).map(done),
        Action::ReadLink(at) => disk.read_link(path(at)),
        Action::RemoveFile(at) => disk.remove_file(path(at)).map(done),
        Action::RemoveDir(at) => disk.remove_dir(path(at)).map(done),
        Action::CreateDir(at, mode) => disk.create_dir(path(at), *mode).map(done),
        Action::List(at) => disk.list(path(at)).map(|names| format!("{names:?}")),
        Action::Metadata(at) => {
            disk.metadata(path(at)).map(|found| found.as_ref().map_or("nothing".to_owned(), shown))
        }
        Action::Xattrs(at) => disk.xattrs(path(at)).map(|xattrs| format!("{:?}", user_only(xattrs))),
        Action::SetOwnership(at, mode, xattr) => {
            let metadata = disk.metadata(path(at))?.ok_or(io::ErrorKind::NotFound)?;
            let xattrs = xattr.iter().cloned().collect();
            disk.set_mode(path(at), *mode)?;
            disk.set_ownership(path(at), metadata.uid, metadata.gid, &xattrs).map(done)
        }
        Action::SetMode(at, mode) => disk.set_mode(path(at), *mode).map(done),
        Action::SyncDir(at) => disk.sync_dir(path(at)).map(done),
        Action::SyncAll => disk.sync_all().map(done),
        Action::Lock(at) => match disk.lock(path(at), "first")? {
            Locked::Held { note } => Ok(format!("held by {note}")),
            Locked::Taken(_guard) => match disk.lock(path(at), "second")? {
                Locked::Held { note } => Ok(format!("taken, then held by {note}")),
                Locked::Taken(_) => Ok("taken twice".to_owned()),
            },
        },
    }
}

fn user_only(xattrs: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    xattrs.into_iter().filter(|(name, _)| name.starts_with("user.")).collect()
}

/// Everything below `path`, through the port.
fn walk(disk: &dyn Disk, path: &str, found: &mut Vec<String>) {
    for (name, kind) in disk.list(Path::new(path)).expect("a directory of ours") {
        let inner = if path.is_empty() { name } else { format!("{path}/{name}") };
        let metadata = disk.metadata(Path::new(&inner)).expect("metadata").expect("it was listed");
        let content = match kind {
            EntryKind::File => answer(disk, &Action::Open(inner.clone())).expect("readable"),
            EntryKind::Symlink => disk.read_link(Path::new(&inner)).expect("a link"),
            EntryKind::Directory | EntryKind::Other => String::new(),
        };
        found.push(format!("{inner}: {} {content}", shown(&metadata)));
        if kind == EntryKind::Directory {
            walk(disk, &inner, found);
        }
    }
}

fn run(script: &[Action], disk: &dyn Disk) -> (Vec<Result<String, io::ErrorKind>>, Vec<String>) {
    let answers = script.iter().map(|action| answer(disk, action).map_err(|error| error.kind())).collect();
    let mut tree = Vec::new();
    walk(disk, "", &mut tree);
    (answers, tree)
}

fn assert_conform(script: &[Action]) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let real = run(script, &RealDisk::open(directory.path()).expect("a directory"));
    let fs = FileSystem::new(Options::default());
    let simulated = run(script, &FaultDisk::new(fs, Faults::none()));
    for ((action, real), simulated) in script.iter().zip(&real.0).zip(&simulated.0) {
        assert_eq!(simulated, real, "simulated (left) and real (right) differ at {action:?} in {script:#?}");
    }
    assert_eq!(simulated.1, real.1, "the trees differ after {script:#?}");
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![
        20 => prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d"]), 1..=3)
            .prop_map(|parts| parts.join("/")),
        1 => prop::sample::select(vec!["", ".", "..", "/a", "a/../b", "a/./b"]).prop_map(str::to_owned),
        1 => Just(format!("a/{}", "n".repeat(256))),
    ]
}

fn mode() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![0o644, 0o755, 0o600, 0o400, 0o777])
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..20)
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => path().prop_map(Action::Open),
        4 => (path(), mode(), bytes()).prop_map(|(path, mode, bytes)| Action::Create(path, mode, bytes)),
        2 => (path(), mode(), bytes()).prop_map(|(path, mode, bytes)| Action::Append(path, mode, bytes)),
        1 => (path(), 0..30_u64).prop_map(|(path, size)| Action::Truncate(path, size)),
        4 => (path(), path()).prop_map(|(from, to)| Action::Rename(from, to)),
        3 => (path(), path()).prop_map(|(a, b)| Action::Exchange(a, b)),
        2 => (path(), path()).prop_map(|(from, to)| Action::HardLink(from, to)),
        2 => (path(), path(), mode()).prop_map(|(from, to, mode)| Action::Copy(from, to, mode)),
        2 => (prop::sample::select(vec!["a", "b/c", "../x", ""]), path())
            .prop_map(|(target, link)| Action::Symlink(target.to_owned(), link)),
        1 => path().prop_map(Action::ReadLink),
        2 => path().prop_map(Action::RemoveFile),
        2 => path().prop_map(Action::RemoveDir),
        5 => (path(), mode()).prop_map(|(path, mode)| Action::CreateDir(path, mode)),
        1 => path().prop_map(Action::List),
        2 => path().prop_map(Action::Metadata),
        1 => path().prop_map(Action::Xattrs),
        1 => (path(), mode(), prop::option::of((Just("user.test".to_owned()), bytes())))
            .prop_map(|(path, mode, xattr)| Action::SetOwnership(path, mode, xattr)),
        1 => (path(), mode()).prop_map(|(path, mode)| Action::SetMode(path, mode)),
        1 => path().prop_map(Action::SyncDir),
        1 => Just(Action::SyncAll),
        1 => path().prop_map(Action::Lock),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn simulated_disk_answers_as_the_real_one(script in prop::collection::vec(action(), 1..40)) {
        assert_conform(&script);
    }
}

// inst-7
#[test]
fn extended_attributes_are_read_replaced_and_removed() {
    let set = |value: Option<&[u8]>| {
        let xattr = value.map(|value| ("user.test".to_owned(), value.to_vec()));
        [Action::SetOwnership("a".to_owned(), 0o644, xattr), Action::Xattrs("a".to_owned())]
    };
    let mut script = vec![Action::Create("a".to_owned(), 0o644, b"bytes".to_vec())];
    script.extend([set(Some(b"first")), set(Some(b"")), set(None)].into_iter().flatten());
    assert_conform(&script);

    let disk = FaultDisk::new(FileSystem::new(Options::default()), Faults::none());
    let answers = run(&script, &disk).0;
    let seen: Vec<&str> = answers.iter().skip(2).step_by(2).flatten().map(String::as_str).collect();
    assert_eq!(seen, [r#"{"user.test": [102, 105, 114, 115, 116]}"#, r#"{"user.test": []}"#, "{}"]);
}
