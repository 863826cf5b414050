//! The scenes of the sweep: small releases, and roots brought to the state in which each command is struck.
//!
//! A scene knows what the visible tree was before the command, what it is after an undisturbed run, and how to come
//! back to its start. It injects nothing.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::{
    node::{Layout, Node, Publisher, exit},
    trace::{Fault, Traced},
    tree::{self, Snapshot},
};

/// What is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Subject {
    /// The first installation into an empty root.
    Install,
    /// An update.
    Apply,
    /// A rollback to the release before.
    Rollback,
    /// The removal of what retention no longer keeps.
    Prune,
    /// The recovery of an update or rollback that was killed.
    Recover,
}

impl Subject {
    /// All of them.
    pub(crate) const ALL: &[Subject] =
        &[Subject::Install, Subject::Apply, Subject::Rollback, Subject::Prune, Subject::Recover];

    /// As the command line spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Subject::Install => "install",
            Subject::Apply => "apply",
            Subject::Rollback => "rollback",
            Subject::Prune => "prune",
            Subject::Recover => "recover",
        }
    }
}

/// How long one run may take before it counts as hung.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The versions of the sample releases, oldest first. The first is installed, the second is what `apply` brings, the
/// third is applied after each check to see that life goes on.
const VERSIONS: [&str; 3] = ["1.0.0", "1.1.0", "1.2.0"];

const SPEC: &str = r#"
package = "sample"
platform = "any"
channel = "stable"
"#;

/// The sample releases, built and signed once and used by every scene.
#[derive(Debug)]
pub(crate) struct Samples {
    publisher: Publisher,
    bundles: [PathBuf; 3],
    trees: [Snapshot; 3],
}

impl Samples {
    /// Makes the releases below `dir` with the given program.
    pub(crate) fn make(program: &Path, dir: &Path) -> Result<Self> {
        let publisher = Publisher::new(program, &dir.join("publisher"))?;
        let mut bundles = Vec::new();
        let mut trees = Vec::new();
        for (index, version) in VERSIONS.iter().enumerate() {
            let tree = dir.join(format!("tree-{version}"));
            lay_out(&tree, index)?;
            bundles.push(publisher.release(&tree, version, SPEC, 3)?);
            trees.push(Snapshot::of(&tree, &[])?);
        }
        let one_each = "as many as there are versions";
        Ok(Samples {
            publisher,
            bundles: bundles.try_into().ok().context(one_each)?,
            trees: trees.try_into().ok().context(one_each)?,
        })
    }

    fn bundle(&self, index: usize) -> &Path {
        &self.bundles[index]
    }
}

/// A release with a bit of everything: changed, unchanged, added and removed files, modes, links, directories.
fn lay_out(tree: &Path, index: usize) -> Result<()> {
    let file = |path: &str, mode: u32, content: String| -> Result<()> {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().context("a file has a parent")?)?;
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(())
    };
    let version = VERSIONS[index];
    file("bin/serve", 0o755, format!("#!/bin/sh\necho {version}\n"))?;
    file("lib/same.so", 0o555, "the same in every release".repeat(40))?;
    file("lib/changed.so", 0o444, format!("{version} ").repeat(6000))?;
    file("etc/serve.toml", 0o640, format!("version = \"{version}\"\n"))?;
    file(&format!("share/only-in-{version}/data"), 0o644, format!("{version}\n"))?;
    file("share/empty", 0o600, String::new())?;
    symlink(format!("share/only-in-{version}"), tree.join("latest"))?;
    Ok(())
}

/// One command on one root, struck again and again.
#[derive(Debug)]
pub(crate) struct Scene {
    /// What is struck.
    pub(crate) subject: Subject,
    /// Tells scenes of one subject apart; empty where there is one.
    pub(crate) variant: String,
    /// The root it acts on.
    pub(crate) node: Node,
    /// Visible trees that are right afterwards, with their versions; the last is what a success means.
    pub(crate) allowed: Vec<(Option<&'static str>, Snapshot)>,
    /// Whether exit code 0 promises the last of `allowed`.
    pub(crate) acknowledges: Acknowledges,
    template: PathBuf,
    bundle: PathBuf,
    next: PathBuf,
    next_tree: Snapshot,
    /// How many paths of each kind undisturbed runs leave, numbers and digests made alike.
    kept: BTreeMap<String, usize>,
    foreign: Option<Snapshot>,
}

/// What exit code 0 of the struck command promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acknowledges {
    /// The last allowed tree is current.
    TheLast,
    /// Any of them.
    Any,
}

impl Scene {
    /// Every scene of one layout and subject, in directories below `dir`.
    pub(crate) fn all_of(
        samples: &Samples,
        layout: Layout,
        subject: Subject,
        recover_points: usize,
        dir: &Path,
    ) -> Result<Vec<Scene>> {
        let dir = dir.join(format!("{layout}-{}", subject.name()));
        fs::create_dir_all(&dir)?;
        match subject {
            Subject::Install | Subject::Apply | Subject::Rollback | Subject::Prune => {
                Ok(vec![Scene::plain(samples, layout, subject, &dir)?])
            }
            Subject::Recover => Scene::interrupted(samples, layout, recover_points, &dir),
        }
    }

    fn plain(samples: &Samples, layout: Layout, subject: Subject, dir: &Path) -> Result<Scene> {
        let node = Node {
            binary: samples.publisher.binary.clone(),
            root: dir.join("root"),
            layout,
            settings: settings(),
        };
        // Which release is installed before, in order; what is right afterwards.
        let (installed, allowed): (&[usize], &[Option<usize>]) = match subject {
            Subject::Install => (&[], &[None, Some(0)]),
            Subject::Apply | Subject::Recover => (&[0], &[Some(0), Some(1)]),
            Subject::Rollback => (&[0, 1], &[Some(1), Some(0)]),
            Subject::Prune => (&[0, 1, 0, 1], &[Some(1)]),
        };
        fs::create_dir_all(&node.root)?;
        let foreign = plant_foreign(&node)?;
        let mut previous = None;
        for index in installed {
            // The second round of a prune scene goes back and forth to have points to remove.
            let finished = if previous.is_some_and(|previous| *index < previous) {
                node.run(&["rollback"])?
            } else {
                node.apply(samples.bundle(*index))?
            };
            finished.with(&[exit::DONE]).context("the scene cannot be prepared")?;
            previous = Some(*index);
        }
        let template = dir.join("template");
        tree::copy(&node.root, &template)?;
        let tree_of = |index: &Option<usize>| match index {
            Some(index) => (Some(VERSIONS[*index]), samples.trees[*index].clone()),
            None => (None, Snapshot::default()),
        };
        let mut scene = Scene {
            subject,
            variant: String::new(),
            allowed: allowed.iter().map(tree_of).collect(),
            acknowledges: Acknowledges::TheLast,
            template,
            bundle: samples.bundle(allowed.last().copied().flatten().unwrap_or(0)).to_owned(),
            next: samples.bundle(2).to_owned(),
            next_tree: samples.trees[2].clone(),
            kept: kept_paths(&node)?,
            foreign,
            node,
        };
        // An undisturbed run has to do what the scene says, or the sweep would prove nothing.
        let mut finished = crate::node::finish(scene.command())?;
        if subject == Subject::Recover {
            finished = finished.with(&[exit::DONE, exit::NOTHING_TO_DO])?;
        } else {
            finished = finished.with(&[exit::DONE])?;
        }
        let problems = scene.judge_tree(finished.code == Some(exit::DONE))?;
        ensure!(problems.is_empty(), "an undisturbed {} is wrong: {}", subject.name(), problems.join("; "));
        for (path, count) in kept_paths(&scene.node)? {
            let most = scene.kept.entry(path).or_default();
            *most = count.max(*most);
        }
        Ok(scene)
    }

    /// Scenes in which an update or a rollback was killed at points spread over its run.
    fn interrupted(samples: &Samples, layout: Layout, points: usize, dir: &Path) -> Result<Vec<Scene>> {
        let mut scenes = Vec::new();
        for (subject, points) in [(Subject::Apply, points), (Subject::Rollback, points.div_ceil(2))] {
            let inner = dir.join(subject.name());
            fs::create_dir_all(&inner)?;
            let base = Scene::plain(samples, layout, subject, &inner)?;
            base.reset()?;
            let watched = base.traced(base.command()).run(Fault::Watch)?;
            let changing: Vec<u64> =
                watched.calls.iter().filter(|call| call.changes).map(|call| call.index).collect();
            for point in 1..=points {
                let at = changing[changing.len() * point / (points + 1)];
                let inner = dir.join(format!("{}-{point}", subject.name()));
                fs::create_dir_all(&inner)?;
                let mut scene = Scene::plain(samples, layout, subject, &inner)?;
                scene.reset()?;
                scene.traced(scene.command()).run(Fault::KillBefore { at })?;
                tree::remove(&scene.template)?;
                tree::copy(&scene.node.root, &scene.template)?;
                scene.subject = Subject::Recover;
                scene.variant = format!("of {} killed at #{at} of {}", subject.name(), watched.calls.len());
                scene.acknowledges = Acknowledges::Any;
                scenes.push(scene);
            }
        }
        Ok(scenes)
    }

    /// The struck command.
    pub(crate) fn command(&self) -> Command {
        match self.subject {
            Subject::Install | Subject::Apply => self.node.apply_command(&self.bundle),
            Subject::Rollback => self.node.command(&["rollback"]),
            Subject::Prune => self.node.command(&["prune", "--keep", "1"]),
            Subject::Recover => self.node.command(&["recover"]),
        }
    }

    /// `command`, to be run under the driver.
    pub(crate) fn traced(&self, command: Command) -> Traced<'_> {
        Traced { command, below: &self.node.root, limit: LIMIT }
    }

    /// Brings the root back to the scene's start.
    pub(crate) fn reset(&self) -> Result<()> {
        tree::remove(&self.node.root)?;
        tree::copy(&self.template, &self.node.root)
    }

    /// Recovers the root and says what is wrong afterwards; `acknowledged` is whether the struck run exited with 0.
    pub(crate) fn recover_and_judge(&self, acknowledged: bool) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        let first = self.node.run(&["recover"])?;
        if !matches!(first.code, Some(exit::DONE | exit::NOTHING_TO_DO)) {
            problems.push(format!("recover ended with {:?}: {}", first.code, first.stderr.trim()));
        }
        let whole = Snapshot::of(&self.node.root, &[])?;
        let second = self.node.run(&["recover"])?;
        if second.code != Some(exit::NOTHING_TO_DO) {
            problems.push(format!("a second recover ended with {:?}, not 3", second.code));
        }
        let changed = Snapshot::of(&self.node.root, &[])?.differences(&whole);
        let ours = changed.into_iter().filter(|line| !noted(line));
        problems.extend(ours.map(|line| format!("the second recover changed something: {line}")));
        problems.extend(self.judge_tree(acknowledged)?);
        problems.extend(self.judge_kept()?);
        problems.extend(self.judge_points()?);
        let mut next = self.node.apply(&self.next)?;
        // Preflight has two seconds; a machine that is busy with sweeps may miss them, and nothing was done then.
        for _ in 0..5 {
            if next.code == Some(exit::PREFLIGHT) {
                next = self.node.apply(&self.next)?;
            }
        }
        if next.code != Some(exit::DONE) {
            problems.push(format!("the next apply ended with {:?}: {}", next.code, next.stderr.trim()));
        } else if let Some(difference) = self.seen()?.differences(&self.next_tree).first() {
            problems.push(format!("after the next apply {difference}"));
        }
        Ok(problems)
    }

    /// Compares the visible tree and what `status` says with what is allowed.
    fn judge_tree(&self, acknowledged: bool) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        let seen = self.seen()?;
        let found = self.allowed.iter().position(|(_, tree)| *tree == seen);
        let Some(found) = found else {
            let closest = self.allowed.iter().map(|(version, tree)| (version, seen.differences(tree)));
            let (version, differences) = closest
                .min_by_key(|(_, differences)| differences.len())
                .context("a scene allows something")?;
            return Ok(vec![format!(
                "TORN: closest to {}, but {}",
                version.unwrap_or("nothing installed"),
                differences.join("; ")
            )]);
        };
        let last = self.allowed.len() - 1;
        if acknowledged && self.acknowledges == Acknowledges::TheLast && found != last {
            problems.push("LOST: the run said it was done, the old tree is there".to_owned());
        }
        let (version, _) = &self.allowed[found];
        let said = self.node.status()?["version"].as_str().map(str::to_owned);
        if said.as_deref() != *version {
            problems.push(format!("the tree is {version:?}, status says {said:?}"));
        }
        if let Some(foreign) = &self.foreign {
            let present = Snapshot::of(&self.node.root.join(FOREIGN), &[])?;
            problems.extend(present.differences(foreign).into_iter().map(|line| format!("not ours: {line}")));
        }
        Ok(problems)
    }

    /// Looks for what an undisturbed run would not have left.
    fn judge_kept(&self) -> Result<Vec<String>> {
        let paths = kept_paths(&self.node)?;
        let extra =
            paths.iter().filter(|(path, count)| self.kept.get(*path).is_none_or(|most| *count > most));
        Ok(extra.take(5).map(|(path, count)| format!("left over: {path} ({count} of them)")).collect())
    }

    /// Looks for restore points that cannot be used.
    fn judge_points(&self) -> Result<Vec<String>> {
        let listed = self.node.run(&["restore-points"])?.with(&[exit::DONE])?.json()?;
        let points = listed["restore_points"].as_array().context("a list of restore points")?;
        let damaged = points.iter().filter(|point| !point["damage"].is_null());
        Ok(damaged.map(|point| format!("a restore point is of no use: {point}")).collect())
    }

    fn seen(&self) -> Result<Snapshot> {
        self.node.seen(if self.foreign.is_some() { &[FOREIGN] } else { &[] })
    }
}

/// Whether a line tells of what every command notes: who held the lock, and the database's own files.
fn noted(line: &str) -> bool {
    NOTED.iter().any(|path| line.starts_with(path))
}

const NOTED: [&str; 2] = [".cutover/lock ", ".cutover/catalog"];

/// A directory of somebody else in an in-place root.
const FOREIGN: &str = "not-ours";

fn plant_foreign(node: &Node) -> Result<Option<Snapshot>> {
    match node.layout {
        Layout::Versioned | Layout::Exchange => Ok(None),
        Layout::InPlace => {
            let dir = node.root.join(FOREIGN);
            fs::create_dir(&dir)?;
            fs::write(dir.join("file"), "somebody else's")?;
            Snapshot::of(&dir, &[]).map(Some)
        }
    }
}

/// One thread lays files down, so that call n is the same call in every run; pruning is a subject of its own.
fn settings() -> Vec<String> {
    vec!["install.jobs=1".to_owned(), "retention.keep=9".to_owned()]
}

/// How many entries of each kind there are below the root besides the visible tree, digits and digests made alike.
/// Names are enough: logs and databases differ by content. Every run leaves a journal, so journals do not count.
fn kept_paths(node: &Node) -> Result<BTreeMap<String, usize>> {
    let mut paths = BTreeMap::new();
    for entry in walkdir::WalkDir::new(&node.root).min_depth(1) {
        let entry = entry?;
        let path = entry.path().strip_prefix(&node.root).context("a path outside the root")?;
        let path = path.to_string_lossy();
        let ours = path.starts_with(".cutover") || path.starts_with("releases");
        if ours && !path.starts_with(".cutover/journal/") {
            *paths.entry(alike(&path)).or_default() += 1;
        }
    }
    Ok(paths)
}

fn alike(path: &str) -> String {
    let parts = path.split('/').map(|part| {
        let hex = part.len() >= 2 && part.chars().all(|c| c.is_ascii_hexdigit());
        if hex {
            return "#".to_owned();
        }
        part.split_inclusive(|c: char| !c.is_ascii_alphanumeric())
            .map(|word| {
                let (body, end) = match word.char_indices().next_back() {
                    Some((at, c)) if !c.is_ascii_alphanumeric() => word.split_at(at),
                    Some(_) | None => (word, ""),
                };
                let number = !body.is_empty() && body.chars().all(|c| c.is_ascii_digit());
                let digest = body.len() >= 8 && body.chars().all(|c| c.is_ascii_hexdigit());
                if number || digest { format!("#{end}") } else { word.to_owned() }
            })
            .collect()
    });
    parts.collect::<Vec<String>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_differ_in_numbers_and_digests_only_are_alike() {
        assert_eq!(alike(".cutover/store/ab/cdef0123456789"), ".cutover/store/#/#");
        assert_eq!(alike(".cutover/journal/00012.jsonl"), alike(".cutover/journal/7.jsonl"));
        assert_eq!(alike("releases/1.5.0-3fa9c2d1/bin"), "releases/#.#.#-#/bin");
        assert_ne!(alike("releases/1.5.0-3fa9c2d1.tmp"), alike("releases/1.5.0-3fa9c2d1"));
    }
}
