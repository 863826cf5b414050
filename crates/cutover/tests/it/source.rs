//! Installing from a repository: in a directory, over HTTP, by delta, and what is refused.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    repo::Repository,
    world::{Release, World, stamped, text},
};

/// Serves a directory over HTTP/1.1 as the plainest web server does; counts the bytes of bodies, and the answers that a file
/// is unchanged.
struct Server {
    url: String,
    sent: Arc<AtomicUsize>,
    unchanged: Arc<AtomicUsize>,
}

impl Server {
    fn of(directory: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (directory, sent, unchanged) = (directory.to_owned(), Arc::default(), Arc::default());
        let (count, same) = (Arc::<AtomicUsize>::clone(&sent), Arc::<AtomicUsize>::clone(&unchanged));
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (directory, count, same) = (directory.clone(), Arc::clone(&count), Arc::clone(&same));
                std::thread::spawn(move || {
                    let mut writer = stream.try_clone().expect("a handle");
                    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
                    while let Some(request) = lines.next() {
                        let mut known = None;
                        while let Some(line) = lines.next().filter(|line| !line.is_empty()) {
                            known = known.or(line.strip_prefix("if-none-match: ").map(str::to_owned));
                        }
                        let path =
                            request.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
                        let (status, body) = match fs::read(directory.join(path)) {
                            Ok(body) => ("200 OK", body),
                            Err(_) => ("404 Not Found", Vec::new()),
                        };
                        let tag = format!("\"{}\"", cutover_core::model::Digest::of(&body));
                        let is_same = known.as_ref() == Some(&tag);
                        let (status, body) =
                            if is_same { ("304 Not Modified", Vec::new()) } else { (status, body) };
                        same.fetch_add(usize::from(is_same), Ordering::Relaxed);
                        count.fetch_add(body.len(), Ordering::Relaxed);
                        let length = body.len();
                        let head =
                            format!("HTTP/1.1 {status}\r\nETag: {tag}\r\nContent-Length: {length}\r\n\r\n");
                        if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&body)).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { url, sent, unchanged }
    }

    fn sent_bytes(&self) -> usize {
        self.sent.swap(0, Ordering::Relaxed)
    }
}

#[test]
fn metadata_that_did_not_change_is_not_sent_again() {
    let world = World::new();
    let repository = Repository::new(&world);
    let server = Server::of(&repository.dir);
    let unchanged = || server.unchanged.swap(0, Ordering::Relaxed);
    repository.publish(&world.build_version("1.0.0")).must(0);
    world.on_root(&["apply", "tool", "--source", &server.url]).must(0);
    assert_eq!(unchanged(), 0);
    world.on_root(&["check", "--source", &server.url]).must(3);
    assert_eq!(unchanged(), 1);
    repository.publish(&world.build_version("1.1.0")).must(0);
    world.on_root(&["check", "--source", &server.url]).must(0);
    assert_eq!(unchanged(), 0);
    world.on_root(&["check", "--source", &server.url]).must(0);
    assert_eq!(unchanged(), 1);
    // A tag that means another file than the one that is kept is of no use, and does no harm.
    let tag = world.root().join(".cutover/trusted/timestamp.tag.json");
    let text = fs::read_to_string(&tag).expect("a tag");
    let sha256 = text.split('"').nth(3).expect("a digest").to_owned();
    fs::write(&tag, text.replace(&sha256, &"0".repeat(64))).expect("written");
    world.on_root(&["check", "--source", &server.url]).must(0);
    assert_eq!(unchanged(), 0);
}

fn installed(world: &World) -> String {
    world.version().as_str().unwrap_or("nothing").to_owned()
}

#[test]
fn a_release_is_checked_planned_and_installed_from_a_directory() {
    let world = World::new();
    let repository = Repository::new(&world);
    let source = text(&repository.dir);
    repository.publish(&world.build_version("1.0.0")).must(0);
    let offers = world.on_root(&["check", "tool", "--source", source, "--json"]).must(0).json();
    assert_eq!((&offers["installed"], &offers["offers"][0]["version"]), (&().into(), &"1.0.0".into()));
    world.on_root(&["plan", "tool", "--source", source]).must(0);
    assert!(!world.root().exists(), "a plan leaves nothing behind");
    world.on_root(&["apply", "tool@1.0.0", "--source", source]).must(0);
    assert_eq!(installed(&world), "1.0.0");
    world.on_root(&["verify"]).must(0);
    assert!(world.root().join(".cutover/trusted/root.json").is_file());
    assert_eq!(files_in(&world.root().join(".cutover/downloads")), ["lock"]);
    world.on_root(&["check", "--source", source]).must(3);

    repository.publish(&world.build_version("1.1.0")).must(0);
    let offers = world.on_root(&["check", "--source", source, "--json"]).must(0).json();
    assert_eq!(offers["offers"][0]["version"], "1.1.0");
    world.on_root(&["apply", "tool", "--source", source]).must(0);
    assert_eq!(installed(&world), "1.1.0");
    world.on_root(&["apply", "tool@9.9.9", "--source", source]).must(1);
    world.on_root(&["apply", "other@1.0.0", "--source", source]).must(1);
}

fn files_in(directory: &Path) -> Vec<String> {
    let names =
        fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

#[test]
fn over_http_only_what_is_new_is_fetched_and_by_delta_where_that_is_less() {
    let world = World::new();
    let repository = Repository::new(&world);
    let server = Server::of(&repository.dir);
    // Text that no compressor can shorten much, changed a little from version to version.
    let content = |changed: u64| {
        let mut state = 1u64;
        let mut lines = String::new();
        for line in 0..8000u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            lines.push_str(&format!("{state:016x}{}\n", if line == changed { "!" } else { "" }));
        }
        lines
    };
    let pki = &stamped().pki;
    let (key, certificate) = (pki.join("signer.key"), pki.join("signer.pem"));
    for (number, version) in ["1.0.0", "1.1.0"].into_iter().enumerate() {
        let (same, other) = (content(9000), content(number as u64));
        let files = [("lib/large", same.as_str()), ("lib/data", other.as_str())];
        let bundle = world.build(&Release { files: &files, ..Release::new(version) });
        let signing = ["--sign-key", text(&key), "--sign-cert", text(&certificate)];
        repository.run("publish", &[text(&bundle)], &signing).must(0);
    }
    world.on_root(&["apply", "tool@1.0.0", "--source", &server.url]).must(0);
    let first = server.sent_bytes();
    world.on_root(&["apply", "tool", "--source", &server.url]).must(0);
    let second = server.sent_bytes();
    assert_eq!(installed(&world), "1.1.0");
    world.on_root(&["verify"]).must(0);
    assert!(first > 100_000, "{first}");
    assert!(second < first / 4, "{second} of {first}");

    // The same without the delta: the object itself.
    fs::remove_dir_all(repository.dir.join("deltas")).expect("removed");
    world.on_root(&["rollback"]).must(0);
    let again = world.on_root(&["apply", "tool", "--source", &server.url]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(installed(&world), "1.1.0");
}

#[test]
fn a_repository_that_nobody_vouches_for_needs_its_root_by_hand() {
    let world = World::new();
    let repository = Repository::new(&world);
    repository.publish(&world.build_version("1.0.0")).must(0);
    fs::remove_file(repository.dir.join("metadata/bootstrap.json")).expect("removed");
    let source = text(&repository.dir);
    world.on_root(&["apply", "tool", "--source", source]).must(1);
    let root = repository.dir.join("metadata/1.root.json");
    world.on_root(&["apply", "tool", "--source", source, "--trusted-root", text(&root)]).must(0);
}

#[test]
fn altered_or_missing_files_of_a_repository_leave_the_root_as_it_was() {
    let world = World::new();
    let repository = Repository::new(&world);
    repository.publish(&world.build_version("1.0.0")).must(0);
    world.on_root(&["apply", "tool", "--source", text(&repository.dir)]).must(0);
    repository.publish(&world.build_version("1.1.0")).must(0);
    let all: Vec<PathBuf> = ["objects", "manifests", "packages", "metadata"]
        .into_iter()
        .flat_map(|part| tree(&repository.dir.join(part)))
        .collect();
    let mut refused = 0;
    for file in all {
        let before = fs::read(&file).expect("read");
        let mut altered = before.clone();
        let middle = altered.len() / 2;
        altered[middle] ^= 1;
        fs::write(&file, &altered).expect("written");
        let ran = world.on_root(&["apply", "tool@1.1.0", "--source", text(&repository.dir)]);
        fs::write(&file, &before).expect("written");
        if ran.code == 0 {
            // A file of the older release, which nobody asked for.
            world.on_root(&["rollback"]).must(0);
        } else {
            refused += 1;
            assert!(matches!(ran.code, 1 | 11 | 16), "{}: {} {}", file.display(), ran.code, ran.stderr);
        }
        assert_eq!(installed(&world), "1.0.0", "{}", file.display());
        world.on_root(&["verify"]).must(0);
    }
    // What was fetched, believed or stored in an earlier round is not fetched again.
    assert!(refused >= 4, "{refused}");
    world.on_root(&["apply", "tool@1.1.0", "--source", text(&repository.dir)]).must(0);
}

fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { files.extend(tree(&path)) } else { files.push(path) }
    }
    files
}

#[test]
fn a_release_that_cannot_follow_directly_is_reached_by_way_of_the_one_between() {
    let world = World::new();
    let repository = Repository::new(&world);
    for (version, spec) in
        [("1.0.0", ""), ("1.1.0", ""), ("1.1.5", ""), ("1.2.0", "min_upgrade_from = \"1.1.0\"")]
    {
        repository.publish(&world.build(&Release { spec, ..Release::new(version) })).must(0);
    }
    let source = ["--source", text(&repository.dir)];
    world.on_root(&[&["apply", "tool@1.0.0"], &source[..]].concat()).must(0);
    let ran = world.on_root(&[&["apply", "tool"], &source[..]].concat()).must(0);
    assert!(ran.stderr.contains("1.1.5; going on"), "{}", ran.stderr);
    assert_eq!(installed(&world), "1.2.0");
    let history = world.on_root(&["history", "--json"]).must(0).stdout;
    assert!(history.contains("1.1.5"), "{history}");
}

#[test]
fn a_package_that_has_to_change_first_is_named_and_nothing_is_installed() {
    let world = World::new();
    let repository = Repository::new(&world);
    let spec = "[[requires]]\npackage = \"storage\"\nconstraint = \">=1.4.0\"";
    repository.publish(&world.build(&Release { spec, ..Release::new("1.0.0") })).must(0);
    let apply = |storage: &str| {
        let packages = format!("preflight.packages={{storage=\"{storage}\"}}");
        world.on_root(&["apply", "tool", "--source", text(&repository.dir), "--set", &packages])
    };
    let refused = apply("1.3.0").must(13);
    assert!(refused.stderr.contains("storage"), "{}", refused.stderr);
    assert!(!world.root().exists(), "a refusal leaves nothing behind");
    apply("1.4.0").must(0);
    assert_eq!(installed(&world), "1.0.0");
}

#[test]
fn an_old_copy_of_a_repository_is_refused_once_a_newer_one_was_believed() {
    let world = World::new();
    let repository = Repository::new(&world);
    repository.publish(&world.build_version("1.0.0")).must(0);
    let old = world.path("old");
    let copied = std::process::Command::new("cp").args(["-a", text(&repository.dir), text(&old)]).status();
    assert!(copied.expect("copied").success());
    repository.publish(&world.build_version("1.1.0")).must(0);
    world.on_root(&["apply", "tool@1.0.0", "--source", text(&repository.dir)]).must(0);
    let refused = world.on_root(&["check", "--source", text(&old)]).must(11);
    assert!(refused.stderr.contains("a step back"), "{}", refused.stderr);
}

#[test]
fn a_bundle_is_taken_by_name_from_a_directory_of_bundles() {
    let world = World::new();
    for version in ["1.0.0", "1.1.0", "1.2.0-rc.1"] {
        world.build_version(version);
    }
    let stick = world.path("");
    let path = format!("source.path={}", text(&stick));
    let source = ["--set", "source.kind=file", "--set", &path];
    let check = || world.on_root(&[&["check", "tool", "--json"], &source[..]].concat());
    let offers = check().must(0).json();
    assert_eq!(offers["offers"].as_array().map(Vec::len), Some(3), "{offers}");
    world.on_root(&[&["apply", "tool@1.0.0"], &source[..]].concat()).must(0);
    world.on_root(&[&["apply", "tool"], &source[..]].concat()).must(0);
    assert_eq!(installed(&world), "1.1.0");
    check().must(3);
    world.on_root(&[&["apply", "tool@9.0.0"], &source[..]].concat()).must(1);
}

/// Answers as GitHub's API does for one release with one asset.
fn github(bundle: &Path, digest: &str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (own, body, unchanged) =
        (url.clone(), fs::read(bundle).expect("read"), Arc::new(AtomicUsize::new(0)));
    let name = bundle.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    let asset = serde_json::json!({
        "id": 7, "name": name, "size": body.len(), "state": "uploaded", "digest": format!("sha256:{digest}"),
        "url": format!("{own}/repos/acme/tool/releases/assets/7"),
        "browser_download_url": format!("{own}/acme/tool/releases/download/v1.0.0/{name}"),
    });
    let release = serde_json::json!({
        "id": 1, "tag_name": "v1.0.0", "draft": false, "prerelease": false, "assets": [asset],
    });
    let listing = serde_json::json!([release]).to_string();
    let count = Arc::clone(&unchanged);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut writer = stream.try_clone().expect("a handle");
            let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
            while let Some(request) = lines.next() {
                let mut known = false;
                while let Some(line) = lines.next().filter(|line| !line.is_empty()) {
                    known |= line.to_lowercase().starts_with("if-none-match:") && line.contains("\"one\"");
                }
                let is_asset = request.contains("/assets/7") || request.contains("/download/");
                let (status, tag, body): (_, _, &[u8]) = match (is_asset, known) {
                    (true, _) => ("200 OK", "", &body),
                    (false, true) => ("304 Not Modified", "ETag: \"one\"\r\n", &[]),
                    (false, false) => ("200 OK", "ETag: \"one\"\r\n", listing.as_bytes()),
                };
                count.fetch_add(usize::from(status.starts_with("304")), Ordering::Relaxed);
                let head = format!("HTTP/1.1 {status}\r\n{tag}Content-Length: {}\r\n\r\n", body.len());
                if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(body)).is_err() {
                    return;
                }
            }
        }
    });
    (url, unchanged)
}

#[test]
fn a_bundle_is_taken_by_name_from_the_releases_of_a_github_repository() {
    let world = World::new();
    let bundle = world.build_version("1.0.0");
    let digest = cutover_core::model::Digest::of(&fs::read(&bundle).expect("read")).to_string();
    let settings = |url: &str| {
        let api = format!("source.github_api={url}");
        ["--set", "source.kind=github", "--set", "source.github=acme/tool", "--set", &api].map(str::to_owned)
    };
    let run = |command: &[&str], url: &str| {
        let settings = settings(url);
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        world.on_root(&[command, settings.as_slice()].concat())
    };
    let other = cutover_core::model::Digest::of(b"other bytes").to_string();
    let (url, _) = github(&bundle, &other);
    run(&["apply", "tool"], &url).must(16);
    assert!(!world.root().exists(), "a refusal leaves nothing behind");
    let (url, unchanged) = github(&bundle, &digest);
    run(&["apply", "tool"], &url).must(0);
    assert_eq!(installed(&world), "1.0.0");
    run(&["check"], &url).must(3);
    run(&["check"], &url).must(3);
    assert_eq!(unchanged.load(Ordering::Relaxed), 1, "the second time it is told that nothing changed");
}

/// Name and nice value of every thread of a process, from proc(5).
fn threads(process: u32) -> Vec<(String, i32)> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it is there");
    let stat = |task: fs::DirEntry| fs::read_to_string(task.path().join("stat")).expect("a stat");
    let thread = |stat: String| {
        let (before, after) = stat.rsplit_once(") ").expect("a name");
        let name = before.split_once('(').expect("a name").1.to_owned();
        (name, after.split(' ').nth(16).expect("fields").parse().expect("a number"))
    };
    tasks.map(|task| thread(stat(task.expect("an entry")))).collect()
}

#[test]
fn threads_that_fetch_give_way_and_neither_the_run_nor_what_it_starts_does() {
    let world = World::new();
    let repository = Repository::new(&world);
    repository.publish(&world.build_version("1.0.0")).must(0);
    let told = world.path("nice-of-a-probe");
    let cut = format!("cut -d ' ' -f 19 /proc/self/stat > {}", text(&told));
    let probe = format!("probes.command=[{{argv=[\"sh\", \"-c\", \"{cut}\"]}}]");
    let source = text(&repository.dir);
    let arguments = ["apply", "tool", "--source", source, "--nice", "19", "--set", &probe];
    let mut child = world.stopped_at("probe", &arguments);
    let (own, threads) = (threads(std::process::id())[0].1, threads(child.id()));
    let fetching: Vec<i32> =
        threads.iter().filter(|(name, _)| name == "fetch").map(|(_, nice)| *nice).collect();
    assert!(!fetching.is_empty() && fetching.iter().all(|nice| *nice == 19), "{threads:?}");
    assert!(threads.iter().any(|(name, nice)| name == "cutover" && *nice == own), "{threads:?}");
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::CONT).expect("a signal");
    assert!(child.wait().expect("it ends").success());
    assert_eq!(fs::read_to_string(told).expect("told").trim(), own.to_string());
    let refused = world.on_root(&["apply", "tool", "--source", source, "--nice", "20"]).must(2);
    assert!(refused.stderr.contains("from 0 to 19"), "{}", refused.stderr);
}

#[test]
fn fastest_mirror_of_the_last_run_is_asked_first_and_a_damaged_record_costs_nothing_but_that() {
    let world = World::new();
    let repository = Repository::new(&world);
    let server = Server::of(&repository.dir);
    let places = [server.url.as_str(), text(&repository.dir)];
    let run = |arguments: &[&str]| {
        let sources = places.map(|place| ["--source", place]).concat();
        world.on_root(&[arguments, &sources].concat())
    };
    repository.publish(&world.build_version("1.0.0")).must(0);
    run(&["apply", "tool"]).must(0);
    let kept = world.root().join(".cutover/trusted/mirrors.json");
    let mut speeds: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&kept).expect("kept")).expect("JSON");
    let url = format!("{}/", server.url);
    assert!(speeds["places"][&url].is_object() && speeds["places"][places[1]].is_object(), "{speeds}");

    // A file that changed is fetched from the fastest.
    for (is_fast, version) in [(false, "1.1.0"), (true, "1.2.0")] {
        speeds["places"][&url]["bytes_per_s"] = if is_fast { 1_000_000_000_000_u64 } else { 1 }.into();
        speeds["places"][places[1]]["bytes_per_s"] = 1_000_000.into();
        fs::write(&kept, speeds.to_string()).expect("written");
        repository.publish(&world.build_version(version)).must(0);
        server.sent_bytes();
        run(&["check"]).must(0);
        assert_eq!(server.sent_bytes() > 0, is_fast);
    }
    for damage in ["", "{\"format\":1,\"places\":"] {
        fs::write(&kept, damage).expect("written");
        let ran = run(&["check"]).must(0);
        assert!(ran.stderr.contains("warning: the kept speeds of mirrors are not used"), "{}", ran.stderr);
        assert!(serde_json::from_str::<serde_json::Value>(&fs::read_to_string(&kept).expect("kept")).is_ok());
    }
}
