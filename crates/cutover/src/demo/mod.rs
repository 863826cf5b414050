//! `cutover demo`: the whole story on this machine, every line of it checked.
//!
//! It plays with the real thing: a stamped copy of this program as subprocesses, the supervisor as a process, a service
//! that is handed over, and a load that counts every request. Nothing is narrated that was not observed; the first
//! deviation ends the story with an exit code that is not 0. Read [`Story`] first, then the list in [`play`].

mod hostile;
mod load;
mod service;
mod stage;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
pub(crate) use service::run as run_service;

use self::{
    load::Load,
    service::Health,
    stage::{Stage, Supervisor, check, deviation},
};
use crate::{
    args::Demo,
    commands::Context,
    exit::Exit,
    failure::Failure,
    files,
    output::{self, Form},
};

/// The hand-over limit of the specification.
const HAND_OVER_MAX_MS: u64 = 5_000;
/// In how many places a version changes the file that it changes, and how many bytes in each.
const CHANGES: usize = 16;
const CHANGE_BYTES: usize = 512;
/// The file that is damaged.
const VICTIM: &str = "lib/part-3.bin";

/// How much is played.
#[derive(Clone, Copy, Debug)]
struct Size {
    connections: usize,
    requests_min: u64,
    /// Between two requests of one connection.
    pause: Duration,
    /// Bytes of each of the release's large files.
    part_bytes: usize,
}

impl Size {
    const FULL: Self = Self {
        connections: 1000,
        requests_min: 200_000,
        pause: Duration::from_millis(75),
        part_bytes: 2 << 20,
    };
    const QUICK: Self =
        Self { connections: 50, requests_min: 2_000, pause: Duration::from_millis(20), part_bytes: 64 << 10 };
}

/// One line of the closing table.
#[derive(Clone, Debug, Serialize)]
struct Line {
    what: &'static str,
    observed: String,
    elapsed_ms: u64,
    passed: bool,
}

/// What was measured, for programs that read the story.
#[derive(Clone, Debug, Default, Serialize)]
struct Figures {
    connections: usize,
    /// Requests of the whole story.
    requests: u64,
    failed_requests: u64,
    slowest_answer_ms: u128,
    /// How long it took to start the new release and hand over to it once it was ready, when 1.1.0 was applied.
    hand_over_ms: u64,
}

/// The story so far.
struct Story {
    stage: Stage,
    size: Size,
    lines: Vec<Line>,
    figures: Figures,
    supervisor: Option<Supervisor>,
    load: Option<Load>,
}

type Scene = fn(&mut Story, &Context) -> Result<String, Failure>;

/// Plays everything and prints the closing table.
///
/// # Errors
/// The first deviation, after the table.
pub(crate) fn play(command: &Demo, context: &Context) -> Result<Exit, Failure> {
    let scenes: [(&'static str, Scene); 14] = [
        ("makes a PKI and a copy of itself that trusts it", Story::makes_pki),
        ("builds and signs releases; two more are hostile", Story::builds_releases),
        ("installs 1.0.0 under the supervisor", Story::installs_first),
        ("opens keep-alive connections with requests running", Story::opens_connections),
        ("applies 1.1.0: hands over under load", Story::applies_next),
        ("refuses a tampered bundle before any write", Story::refuses_tampered),
        ("refuses a signed bundle with a path that leaves the tree", Story::refuses_traversal),
        ("applies 1.2.0, whose probe fails: restores by itself", Story::restores_by_itself),
        ("detects a file damaged in place and repairs it", Story::repairs_damage),
        ("is killed with SIGKILL in mid-switch and recovers", Story::recovers_from_kill),
        ("two applies at once: one answers already in progress", Story::refuses_second_run),
        ("rolls back to the release before", Story::rolls_back),
        ("updates by delta: only what changed is downloaded", Story::updates_by_delta),
        ("ends the load: not one request failed", Story::ends_load),
    ];
    let size = if command.quick { Size::QUICK } else { Size::FULL };
    let temporary;
    let dir = match &command.keep {
        Some(dir) => empty_directory(dir)?,
        None => {
            temporary = tempfile::Builder::new()
                .prefix("cutover-demo-")
                .tempdir()
                .map_err(|source| Failure::io("make a directory in", &std::env::temp_dir(), source))?;
            temporary.path().to_owned()
        }
    };
    check_open_files(size.connections)?;
    let mut story = Story {
        stage: Stage::new(dir)?,
        size,
        lines: Vec::new(),
        figures: Figures::default(),
        supervisor: None,
        load: None,
    };
    let mut ended = Ok(());
    for (what, scene) in scenes {
        ended = story.play(what, scene, context);
        if ended.is_err() {
            break;
        }
    }
    let stopped = story.supervisor.take().map_or(Ok(()), Supervisor::stop);
    let ended = ended.and(stopped);
    story.report(&ended, context)?;
    ended.map(|()| Exit::Done)
}

fn empty_directory(dir: &Path) -> Result<PathBuf, Failure> {
    files::make_directory(dir, 0o755)?;
    let mut entries = std::fs::read_dir(dir).map_err(|source| Failure::io("read", dir, source))?;
    if entries.next().is_some() {
        return Err(Failure::usage(format!("`{}` is not empty", dir.display())));
    }
    dir.canonicalize().map_err(|source| Failure::io("find", dir, source))
}

/// Raises the limit of open files as far as this process may.
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    // If it cannot be raised, whoever needs more files finds out by itself.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn check_open_files(connections: usize) -> Result<(), Failure> {
    allow_many_files();
    let needed = connections as u64 + 64;
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < needed => Err(Failure::new(
            Exit::Failed,
            format!("this process may open {limit} files, the demo needs {needed}"),
        )
        .hint("raise the limit with `ulimit -Hn`, or run `cutover demo --quick`")),
        Some(_) | None => Ok(()),
    }
}

impl Story {
    fn play(&mut self, what: &'static str, scene: Scene, context: &Context) -> Result<(), Failure> {
        let number = self.lines.len() + 1;
        output::note(format!("{number:>2}. {what} ..."));
        let started = Instant::now();
        let played = scene(self, context);
        let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let observed = match &played {
            Ok(observed) => observed.clone(),
            Err(failure) => failure.to_string(),
        };
        let word = if played.is_ok() { "ok" } else { "FAILED" };
        output::note(format!("    {word}: {observed} ({:.1} s)", elapsed_ms as f64 / 1000.0));
        self.lines.push(Line { what, observed, elapsed_ms, passed: played.is_ok() });
        played.map(drop)
    }

    fn report(&self, ended: &Result<(), Failure>, context: &Context) -> Result<(), Failure> {
        match context.form {
            // A failure prints its own document; there is only ever one.
            Form::Json if ended.is_ok() => output::json(
                &serde_json::json!({ "passed": true, "directory": self.stage.dir.display().to_string(), "lines": self.lines, "figures": self.figures }),
            ),
            Form::Json => Ok(()),
            Form::Text => {
                let rows = self.lines.iter().enumerate().map(|(index, line)| {
                    vec![
                        (index + 1).to_string(),
                        line.what.to_owned(),
                        if line.passed { "ok" } else { "FAILED" }.to_owned(),
                        line.observed.lines().next().unwrap_or_default().to_owned(),
                        format!("{:.1} s", line.elapsed_ms as f64 / 1000.0),
                    ]
                });
                output::line(output::table(&["", "Cutover", "", "observed", "took"], rows.collect()));
                Ok(())
            }
        }
    }

    fn makes_pki(&mut self, _: &Context) -> Result<String, Failure> {
        let stage = &self.stage;
        let this = std::env::current_exe()
            .map_err(|source| Failure::io("find", Path::new("/proc/self/exe"), source))?;
        let (pki, program) = (stage.path("pki").display().to_string(), stage.program().display().to_string());
        stage.run_program(&this, &["pki", "init", &pki, "--org", "Demo"])?.must(Exit::Done, "pki init")?;
        let root = format!("{pki}/root.pem");
        stage
            .run_program(&this, &["trust", "embed", "--anchor", &root, "-o", &program])?
            .must(Exit::Done, "trust embed")?;
        let shown = stage.run(&["trust", "show"])?.must(Exit::Done, "trust show")?.json;
        let authority = shown["anchor"]["authorities"][0]["subject"].as_str().unwrap_or_default().to_owned();
        check(authority.contains("Demo"), || format!("the copy trusts `{authority}`"))?;
        Ok(format!("ECDSA P-256; the copy trusts {authority}"))
    }

    fn builds_releases(&mut self, context: &Context) -> Result<String, Failure> {
        for (version, health) in [
            ("1.0.0", Health::Healthy),
            ("1.1.0", Health::Healthy),
            ("1.2.0", Health::Sick),
            ("1.3.0", Health::Healthy),
            ("1.4.0", Health::Healthy),
        ] {
            self.build(version, health, None)?;
        }
        self.build("1.5.0", Health::Healthy, Some("1.3.0"))?;
        let (next, pki) = (self.bundle("1.1.0"), self.stage.path("pki"));
        self.stage.write("tampered.cutover", 0o644, &hostile::tampered(&next)?)?;
        let traversal =
            hostile::signed_with_path(&next, &pki, "share/notes.txt", "../../outside", context.now)?;
        self.stage.write("traversal.cutover", 0o644, &traversal)?;
        self.stage.write("outside", 0o644, b"must stay")?;
        let first = self.bundle("1.0.0").display().to_string();
        let verified = self.stage.run(&["bundle", "verify", &first])?.must(Exit::Done, "bundle verify")?.json;
        Ok(format!(
            "6 releases of {} files, {} each",
            verified["files"],
            output::bytes(verified["bytes"].as_u64().unwrap_or(0))
        ))
    }

    fn bundle(&self, version: &str) -> PathBuf {
        self.stage.path(&format!("demo-{version}.cutover"))
    }

    /// Builds and signs a release, and the delta bundle that leads to it from `base`.
    fn build(&self, version: &str, health: Health, base: Option<&str>) -> Result<(), Failure> {
        let stage = &self.stage;
        let tree = format!("tree-{version}");
        let file = |name: &str| format!("{tree}/{name}");
        stage.write(&file(service::PROGRAM), 0o755, service::program().as_bytes())?;
        stage.write(&file(service::ABOUT), 0o644, service::about(version, health).as_bytes())?;
        stage.write(&file("etc/demo.conf"), 0o644, b"color = \"green\"\n")?;
        stage.write(&file("share/notes.txt"), 0o644, format!("what changed in {version}\n").as_bytes())?;
        // In the last of them every version changes some places, in the others nothing.
        for part in 0..8u64 {
            let mut content = noise(&part.to_string(), self.size.part_bytes);
            if part == 7 {
                let changes = noise(version, CHANGES * CHANGE_BYTES);
                let places = content.chunks_exact_mut(self.size.part_bytes / CHANGES);
                for (place, change) in places.zip(changes.chunks_exact(CHANGE_BYTES)) {
                    place[..CHANGE_BYTES].copy_from_slice(change);
                }
            }
            stage.write(&file(&format!("lib/part-{part}.bin")), 0o644, &content)?;
        }
        let spec = format!(
            "package = \"demo\"\nversion = \"{version}\"\n[service]\ncommand = [\"{}\"]\n",
            service::PROGRAM
        );
        let spec =
            stage.write(&format!("release-{version}.toml"), 0o644, spec.as_bytes())?.display().to_string();
        let (tree, out) =
            (stage.path(&tree).display().to_string(), self.bundle(version).display().to_string());
        let pki = stage.path("pki").display().to_string();
        let (key, certificate) = (format!("{pki}/signer.key"), format!("{pki}/signer.pem"));
        let mut arguments = vec![
            "bundle",
            "create",
            &tree,
            "--spec",
            &spec,
            "-o",
            &out,
            "--level",
            "1",
            "--sign-key",
            &key,
            "--sign-cert",
            &certificate,
        ];
        let base = base.map(|base| self.bundle(base).display().to_string());
        let delta = self.delta().display().to_string();
        if let Some(base) = &base {
            arguments.extend(["--delta-from", base, "--delta-output", &delta]);
        }
        stage.run(&arguments)?.must(Exit::Done, "bundle create").map(drop)
    }

    fn delta(&self) -> PathBuf {
        self.stage.path("demo-1.5.0.from-1.3.0.cutover-delta")
    }

    fn installs_first(&mut self, _: &Context) -> Result<String, Failure> {
        let address = self.stage.address;
        let settings = format!(
            "[service]\nlisten = [\"tcp:{address}\"]\n\n[service.env]\nDEMO_PROGRAM = \"{}\"\n\n\
             [probes]\nsmoke.alive_ms = 300\n\n[[probes.http]]\nurl = \"http://{address}/health\"\ntimeout_s = 3\n\n\
             [install]\nprune = \"by-command\"\n",
            self.stage.program().display()
        );
        self.stage.write("root/cutover.toml", 0o644, settings.as_bytes())?;
        self.supervisor = Some(self.stage.supervise()?);
        self.apply("1.0.0")?.must(Exit::Done, "apply 1.0.0")?;
        self.must_serve("1.0.0")
    }

    fn apply(&self, version: &str) -> Result<stage::Ran, Failure> {
        self.stage.on_root(&["apply", &self.bundle(version).display().to_string()])
    }

    /// Demands that `version` is installed whole and runs.
    fn must_serve(&self, version: &str) -> Result<String, Failure> {
        let status = self.stage.status()?;
        check(status["version"] == version, || {
            format!("{} is installed instead of {version}", status["version"])
        })?;
        check(status["state"] == "idle" && status["in_flight"].is_null(), || {
            format!("something is unfinished: {status}")
        })?;
        check(status["service"]["state"] == "ready", || format!("the service is {}", status["service"]))?;
        let answer = self.stage.ask_service()?;
        check(answer == version, || format!("the service answers {answer} instead of {version}"))?;
        self.stage.on_root(&["verify"])?.must(Exit::Done, "verify")?;
        Ok(format!("{version} is installed, verified and answers"))
    }

    fn load(&self) -> Result<&Load, Failure> {
        self.load.as_ref().ok_or_else(|| deviation("there is no load"))
    }

    /// Demands that no request failed so far.
    fn no_request_failed(&self) -> Result<load::Counts, Failure> {
        let counts = self.load()?.counts();
        check(counts.failed == 0, || {
            format!("{} requests failed: {}", counts.failed, counts.failures.join("; "))
        })?;
        Ok(counts)
    }

    fn opens_connections(&mut self, _: &Context) -> Result<String, Failure> {
        let load = Load::start(self.stage.address, self.size.connections, self.size.pause)
            .map_err(|error| deviation("the load could not be started").because(error))?;
        self.load = Some(load);
        let wanted = self.size.connections as u64;
        let all_open = self.stage.wait_for(|| Ok(self.load()?.open() == wanted))?;
        check(all_open, || "not all connections could be opened".to_owned())?;
        let counts = self.no_request_failed()?;
        check(counts.connections == wanted, || {
            format!("{} connections for {wanted} clients", counts.connections)
        })?;
        Ok(format!("{wanted} connections, all answered by 1.0.0"))
    }

    fn applies_next(&mut self, _: &Context) -> Result<String, Failure> {
        let report = self.apply("1.1.0")?.must(Exit::Done, "apply 1.1.0")?.json;
        let hand_over = step_ms(&report, "activate")?;
        check(hand_over <= HAND_OVER_MAX_MS, || format!("the hand-over took {hand_over} ms"))?;
        // Every connection has moved once the new release has answered each of them.
        let wanted = 2 * self.size.connections as u64;
        let moved =
            self.stage.wait_for(|| Ok(self.load()?.counts().by_version.get("1.1.0") > Some(&wanted)))?;
        check(moved, || "the connections did not move to 1.1.0".to_owned())?;
        let counts = self.no_request_failed()?;
        self.must_serve("1.1.0")?;
        self.figures.hand_over_ms = hand_over;
        Ok(format!(
            "0 failed of {} requests, new release ready after {hand_over} ms, slowest answer {} ms",
            counts.answered,
            counts.slowest.as_millis()
        ))
    }

    fn refuses(&self, bundle: &str, exit: Exit) -> Result<String, Failure> {
        let before = self.stage.tree_digest()?;
        let path = self.stage.path(bundle).display().to_string();
        let ran = self.stage.on_root(&["apply", &path])?.must(exit, "the hostile bundle")?;
        let after = self.stage.tree_digest()?;
        check(before == after, || "the root has changed".to_owned())?;
        let error = &ran.json["error"];
        let causes = error["causes"].as_array().and_then(|causes| causes.last()).unwrap_or(&error["message"]);
        Ok(format!("exit {}: {}; root unchanged", exit.code(), causes.as_str().unwrap_or_default()))
    }

    fn refuses_tampered(&mut self, _: &Context) -> Result<String, Failure> {
        self.refuses("tampered.cutover", Exit::NotTrusted)
    }

    fn refuses_traversal(&mut self, _: &Context) -> Result<String, Failure> {
        let refused = self.refuses("traversal.cutover", Exit::UnsafeContent)?;
        let outside = files::read("the file outside", &self.stage.path("outside"))?;
        check(outside == b"must stay", || "the file outside was written".to_owned())?;
        Ok(refused)
    }

    fn restores_by_itself(&mut self, _: &Context) -> Result<String, Failure> {
        let report = self.apply("1.2.0")?.must(Exit::ProbeFailed, "apply 1.2.0")?.json;
        check(report["probe_failed"] == true, || format!("no probe failed: {report}"))?;
        let log = report["failed_log"].as_str().unwrap_or_default().to_owned();
        check(!log.is_empty() && self.stage.root.join(&log).is_file(), || {
            format!("the failed release's log is not kept: `{log}`")
        })?;
        self.must_serve("1.1.0")?;
        self.no_request_failed()?;
        Ok("exit 14; 1.1.0 is back and answers; the failed release's log is kept".to_owned())
    }

    fn repairs_damage(&mut self, _: &Context) -> Result<String, Failure> {
        let stage = &self.stage;
        let victim = stage.root.join("current").join(VICTIM);
        let before = stage.file_digest(&victim)?;
        damage(&victim)?;
        check(stage.file_digest(&victim)? != before, || "the file was not damaged".to_owned())?;
        let found = stage.on_root(&["verify"])?.must(Exit::Damaged, "verify of the damaged tree")?.json;
        check(found["drift"]["damaged"] == serde_json::json!([VICTIM]), || {
            format!("verify found {}", found["drift"])
        })?;
        stage.on_root(&["verify", "--repair"])?.must(Exit::Done, "verify --repair")?;
        let after = stage.file_digest(&victim)?;
        check(after == before, || format!("`{VICTIM}` has SHA-256 {after} instead of {before}"))?;
        stage.on_root(&["verify"])?.must(Exit::Done, "verify of the repaired tree")?;
        Ok(format!("{VICTIM}: found, repaired, SHA-256 {} as before", before.short()))
    }

    fn recovers_from_kill(&mut self, _: &Context) -> Result<String, Failure> {
        let stage = &self.stage;
        let bundle = self.bundle("1.3.0").display().to_string();
        stage.stopped_at("switch", &["apply", &bundle])?.kill()?;
        let status = stage.status()?;
        check(!status["in_flight"].is_null(), || "nothing was unfinished after the kill".to_owned())?;
        let at = status["in_flight"]["step"].as_str().unwrap_or("?").to_owned();
        stage.on_root(&["recover"])?.must(Exit::Done, "recover")?;
        let version = stage.status()?["version"].as_str().unwrap_or_default().to_owned();
        check(matches!(version.as_str(), "1.1.0" | "1.3.0"), || format!("{version} is installed"))?;
        self.must_serve(&version)?;
        self.no_request_failed()?;
        stage.on_root(&["recover"])?.must(Exit::NothingToDo, "a second recover")?;
        Ok(format!("killed at {at}; recovered to a whole {version}, which answers"))
    }

    fn refuses_second_run(&mut self, _: &Context) -> Result<String, Failure> {
        let bundle = self.bundle("1.4.0").display().to_string();
        let first = self.stage.stopped_at("stage", &["apply", &bundle])?;
        let second = self.apply("1.4.0").and_then(|ran| ran.must(Exit::InProgress, "the second apply"));
        // Whatever the second one did, the first one must not stay stopped.
        let first = first.go_on()?.must(Exit::Done, "the first apply");
        let message = second?.json["error"]["message"].as_str().unwrap_or_default().to_owned();
        first?;
        check(message.contains("already in progress"), || format!("it said `{message}`"))?;
        self.must_serve("1.4.0")?;
        Ok("exit 10 for the second; the first was not affected".to_owned())
    }

    fn rolls_back(&mut self, _: &Context) -> Result<String, Failure> {
        let report = self.stage.on_root(&["rollback"])?.must(Exit::Done, "rollback")?.json;
        let version = report["to"]["version"].as_str().unwrap_or_default().to_owned();
        self.must_serve(&version)?;
        self.no_request_failed()?;
        Ok(format!("from 1.4.0 to {version}, every digest as it was"))
    }

    fn updates_by_delta(&mut self, _: &Context) -> Result<String, Failure> {
        let delta = self.delta().display().to_string();
        let report = self.stage.on_root(&["apply", &delta])?.must(Exit::Done, "apply of a delta")?.json;
        let figure = |name: &str| report["delta"][name].as_u64().unwrap_or_default();
        let (downloaded, full) = (figure("downloaded_bytes"), figure("full_bytes"));
        check(figure("patched") > 0 && figure("patches_failed") == 0, || {
            format!("no file was made by a patch: {}", report["delta"])
        })?;
        check(downloaded * 10 < full, || format!("the delta has {downloaded} of {full} bytes"))?;
        self.must_serve("1.5.0")?;
        self.no_request_failed()?;
        Ok(format!(
            "from 1.3.0 to 1.5.0 with {} instead of {}, every digest as in the full bundle",
            output::bytes(downloaded),
            output::bytes(full)
        ))
    }

    fn ends_load(&mut self, _: &Context) -> Result<String, Failure> {
        let wanted = self.size.requests_min;
        let enough = self.stage.wait_for(|| Ok(self.load()?.counts().answered >= wanted))?;
        check(enough, || format!("fewer than {wanted} requests were answered in time"))?;
        let load = self.load.take().ok_or_else(|| deviation("there is no load"))?;
        let counts = load.stop().map_err(|error| deviation("the load failed").because(error))?;
        check(counts.failed == 0, || {
            format!("{} requests failed: {}", counts.failed, counts.failures.join("; "))
        })?;
        self.figures = Figures {
            connections: self.size.connections,
            requests: counts.answered,
            failed_requests: counts.failed,
            slowest_answer_ms: counts.slowest.as_millis(),
            ..self.figures
        };
        let versions: Vec<&str> = counts.by_version.keys().map(String::as_str).collect();
        Ok(format!(
            "{} requests on {} connections, 0 failed, slowest {} ms, answered by {}",
            counts.answered,
            self.size.connections,
            counts.slowest.as_millis(),
            versions.join(", ")
        ))
    }
}

/// How long a step took, from a report.
fn step_ms(report: &serde_json::Value, step: &str) -> Result<u64, Failure> {
    report["steps"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|one| one["step"] == step)
        .and_then(|one| one["elapsed_ms"].as_u64())
        .ok_or_else(|| deviation(format!("the report has no step `{step}`")))
}

/// Overwrites bytes in the middle of a file, keeping its inode and size, as a bad disk or a careless hand would.
fn damage(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::FileExt as _;

    let failed = |source| Failure::io("damage", path, source);
    let file = std::fs::OpenOptions::new().write(true).open(path).map_err(failed)?;
    let middle = file.metadata().map_err(failed)?.len() / 2;
    file.write_all_at(b"damaged", middle).map_err(failed)
}

/// Bytes that do not compress, the same for the same seed.
fn noise(seed: &str, bytes: usize) -> Vec<u8> {
    let mut state = seed.bytes().fold(0x9e37_79b9_7f4a_7c15u64, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    }) | 1;
    let words = std::iter::repeat_with(|| {
        // xorshift64*, Vigna 2016.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    });
    words.flatten().take(bytes).collect()
}
