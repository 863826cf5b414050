//! `cargo xtask bench transfer`: the bytes that an update of a real tree takes from a repository, beside other tools.
//!
//! Bytes do not depend on the machine, so everything is done once. Ours are counted by the web server that serves them,
//! metadata included; those of other tools are the sizes of what their repository has for the new tree and not for the old.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    node::{Layout, Node, Publisher, exit, finish},
    program::{self, Profile},
    real_tree, tree,
};

/// Counts what it serves.
struct Web {
    url: String,
    sent: Arc<AtomicU64>,
}

impl Web {
    /// Serves `directory` as long as this process lives.
    fn serve(directory: &Path) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}", listener.local_addr()?);
        let (directory, sent) = (directory.to_owned(), Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&sent);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(std::io::Result::ok) {
                let (directory, count) = (directory.clone(), Arc::clone(&count));
                std::thread::spawn(move || answer(stream, &directory, &count));
            }
        });
        Ok(Self { url, sent })
    }

    fn take(&self) -> u64 {
        self.sent.swap(0, Ordering::Relaxed)
    }
}

fn answer(stream: std::net::TcpStream, directory: &Path, count: &AtomicU64) {
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut lines = BufReader::new(stream).lines().map_while(std::io::Result::ok);
    while let Some(request) = lines.next() {
        while lines.next().is_some_and(|line| !line.is_empty()) {}
        let path = request.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
        let (status, body) = match std::fs::read(directory.join(path)) {
            Ok(body) => ("200 OK", body),
            Err(_) => ("404 Not Found", Vec::new()),
        };
        count.fetch_add(body.len() as u64, Ordering::Relaxed);
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&body)).is_err() {
            return;
        }
    }
}

/// Runs the benchmark and prints its table.
pub(crate) fn run(root: &Path) -> Result<()> {
    let place = root.join("target/xtask/bench-transfer");
    tree::remove(&place)?;
    std::fs::create_dir_all(&place)?;
    let trees = real_tree::make(root)?;
    let publisher = Publisher::new(&program::build(root, Profile::Release)?, &place.join("publisher"))?;
    let release =
        |index: usize, version: &str| publisher.release(&trees[index], version, real_tree::SPEC, 19);
    let bundles = [release(0, "0.8.0")?, release(1, "0.8.1")?];
    let mut rows: Vec<(String, u64)> = Vec::new();
    rows.push(("full bundle".to_owned(), std::fs::metadata(&bundles[1])?.len()));
    for (name, deltas) in [("cutover, objects that are missing", false), ("cutover, by delta", true)] {
        rows.push((name.to_owned(), ours(&publisher, &place, &bundles, deltas)?));
    }
    rows.push(("casync, chunks that are missing".to_owned(), casync(&place, &trees)?));
    rows.push(("ostree (archive), objects that are missing".to_owned(), ostree(&place, &trees)?));
    let full = rows[0].1;
    println!("update of uv 0.8.0 and ruff 0.12.4 to 0.8.1 and 0.12.5, with time zones\n");
    println!("| way | bytes | of the full bundle |\n|-|-:|-:|");
    for (name, bytes) in &rows {
        println!("| {name} | {bytes} | {:.3} |", *bytes as f64 / full as f64);
    }
    tree::remove(&place)
}

/// What a host with the first release fetches for the second.
fn ours(publisher: &Publisher, place: &Path, bundles: &[PathBuf; 2], deltas: bool) -> Result<u64> {
    let name = if deltas { "by-delta" } else { "by-objects" };
    let (repository, keys) = (place.join(name), place.join(format!("{name}-keys")));
    let pki = place.join("publisher/pki");
    let signed = |command: &mut Command| {
        command.arg("--sign-key").arg(pki.join("signer.key"));
        command.arg("--sign-cert").arg(pki.join("signer.pem"));
    };
    let repo = |verb: &str| {
        let mut command = Command::new(&publisher.binary);
        command.args(["repo", verb]).arg(&repository).arg("--keys").arg(&keys);
        command
    };
    let mut init = repo("init");
    signed(&mut init);
    program::succeed(init)?;
    for bundle in bundles {
        let mut publish = repo("publish");
        publish.arg(bundle);
        if deltas {
            signed(&mut publish);
        }
        program::succeed(publish)?;
    }
    let web = Web::serve(&repository)?;
    let root = place.join(format!("root-{name}"));
    std::fs::create_dir_all(&root)?;
    let settings = vec!["service.mode=none".to_owned()];
    let node = Node { binary: publisher.binary.clone(), root, layout: Layout::Versioned, settings };
    let mut sent = 0;
    for version in ["0.8.0", "0.8.1"] {
        let mut apply = node.command(&["apply", &format!("tools@{version}"), "--source", &web.url]);
        apply.args(["--layout", node.layout.name()]);
        finish(apply)?.with(&[exit::DONE])?;
        sent = web.take();
    }
    let differences = tree::Snapshot::of(&node.visible(), crate::node::OWN)?;
    ensure!(differences.files() > 900, "the release is not there");
    Ok(sent)
}

/// The chunks of the new tree that the old one has not, and the index.
fn casync(place: &Path, trees: &[PathBuf; 2]) -> Result<u64> {
    let mut stores = Vec::new();
    for (index, tree) in trees.iter().enumerate() {
        let (store, list) = (place.join(format!("{index}.castr")), place.join(format!("{index}.caidx")));
        let mut make = Command::new("casync");
        make.args(["make", "--without=all"]).arg(format!("--store={}", store.display())).arg(&list).arg(tree);
        program::succeed(make).context("casync is missing? `bench install --install-peers` installs it")?;
        stores.push((files(&store)?, std::fs::metadata(&list)?.len()));
    }
    Ok(missing(&stores[0].0, &stores[1].0) + stores[1].1)
}

/// The objects of the new commit that the old one has not.
fn ostree(place: &Path, trees: &[PathBuf; 2]) -> Result<u64> {
    let repository = place.join("ostree");
    let repo = format!("--repo={}", repository.display());
    let run = |arguments: &[&str]| {
        let mut command = Command::new("ostree");
        command.arg(&repo).args(arguments);
        program::succeed(command).context("ostree is missing? `bench install --install-peers` installs it")
    };
    run(&["init", "--mode=archive"])?;
    let mut before = BTreeMap::new();
    for tree in trees {
        before = files(&repository.join("objects"))?;
        run(&["commit", "--branch=main", &format!("--tree=dir={}", tree.display())])?;
    }
    Ok(missing(&before, &files(&repository.join("objects"))?))
}

/// The sizes of all files below a directory, by path.
fn files(directory: &Path) -> Result<BTreeMap<PathBuf, u64>> {
    let mut files = BTreeMap::new();
    for entry in walkdir::WalkDir::new(directory) {
        let entry = entry?;
        if entry.file_type().is_file() {
            files.insert(entry.path().strip_prefix(directory)?.to_owned(), entry.metadata()?.len());
        }
    }
    Ok(files)
}

fn missing(old: &BTreeMap<PathBuf, u64>, new: &BTreeMap<PathBuf, u64>) -> u64 {
    new.iter().filter(|(path, _)| !old.contains_key(*path)).map(|(_, size)| size).sum()
}
