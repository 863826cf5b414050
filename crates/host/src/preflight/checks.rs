//! The checks. Each one judges observations that it is given a way to make, so each can be tested without the machine.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use cutover_core::model::{Conflict, Name, Requirement, Version};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};

use super::{Check, Outcome};
use crate::service::{ServiceManager, ServiceState};

/// Room on the file system of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// Which file system it is: paths with the same share the room.
    pub file_system: u64,
    /// Bytes that we may still use.
    pub free_bytes: u64,
    /// Files that can still be made; `None` where the file system does not count them.
    pub free_inodes: Option<u64>,
}

/// Room that is needed below a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The path.
    pub path: PathBuf,
    /// Bytes.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// There is room for releases, twice over: the new trees and what they need on the way. What is needed on one file system is
/// summed.
pub struct DiskCheck<F> {
    needs: Vec<Need>,
    observe: F,
}

impl<F: Fn(&Path) -> io::Result<DiskSpace> + Send> DiskCheck<F> {
    /// Demands all of `needs` at the same time.
    pub fn new(needs: Vec<Need>, observe: F) -> Self {
        Self { needs, observe }
    }

    /// Demands twice the size of a bundle, and room for `entries` files and directories.
    pub fn for_bundle(path: PathBuf, bundle_bytes: u64, entries: u64, observe: F) -> Self {
        Self::new(vec![Need { path, bytes: bundle_bytes.saturating_mul(2), inodes: entries }], observe)
    }

    /// What is needed of each file system, in the order of the first paths.
    fn shares(&self) -> Result<Vec<(DiskSpace, Share)>, String> {
        let mut shares: Vec<(DiskSpace, Share)> = Vec::new();
        for Need { path, bytes, inodes } in &self.needs {
            let space = (self.observe)(path);
            let space =
                space.map_err(|error| format!("free space of `{}` is not known: {error}", path.display()))?;
            let known = shares.iter().position(|(known, _)| known.file_system == space.file_system);
            let index = known.unwrap_or(shares.len());
            if known.is_none() {
                shares.push((space, Share::default()));
            }
            let share = &mut shares[index].1;
            share.bytes = share.bytes.saturating_add(*bytes);
            share.inodes = share.inodes.saturating_add(*inodes);
            let path = format!("`{}`", path.display());
            if !share.paths.contains(&path) {
                share.paths.push(path);
            }
        }
        Ok(shares)
    }
}

/// What is needed of one file system.
#[derive(Default)]
struct Share {
    paths: Vec<String>,
    bytes: u64,
    inodes: u64,
}

impl<F: Fn(&Path) -> io::Result<DiskSpace> + Send> Check for DiskCheck<F> {
    fn name(&self) -> String {
        "disk".to_owned()
    }

    fn run(&self) -> Outcome {
        let shares = match self.shares() {
            Ok(shares) => shares,
            Err(reason) => return Outcome::Failed(reason),
        };
        let mut passed = Vec::with_capacity(shares.len());
        for (space, Share { paths, bytes, inodes }) in shares {
            let paths = paths.join(", ");
            let figures = format!("{} needed, {} free", needed_mib(bytes), free_mib(space.free_bytes));
            if space.free_bytes < bytes {
                return Outcome::Failed(format!("too little room on the file system of {paths}: {figures}"));
            }
            if let Some(free) = space.free_inodes.filter(|free| *free < inodes) {
                let figures = format!("{inodes} needed, {free} free");
                return Outcome::Failed(format!("too few inodes on the file system of {paths}: {figures}"));
            }
            passed.push(format!("{paths}: {figures}"));
        }
        Outcome::Passed(passed.join("; "))
    }
}

/// MiB, rounded up: what is needed is never understated.
fn needed_mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// MiB, rounded down: what is free is never overstated.
fn free_mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// Asks the file system of the nearest existing directory above `path`.
///
/// # Errors
/// It cannot be asked.
pub fn disk_space(path: &Path) -> io::Result<DiskSpace> {
    let path = existing(path);
    let stat = rustix::fs::statvfs(path)?;
    Ok(DiskSpace {
        file_system: rustix::fs::stat(path)?.st_dev,
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        // btrfs and others make inodes as they go and report none at all.
        free_inodes: (stat.f_files > 0).then_some(stat.f_favail),
    })
}

/// The nearest existing directory at or above `path`.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

/// Enough memory is available.
pub struct MemoryCheck<F> {
    needed_bytes: u64,
    observe: F,
}

impl<F: Fn() -> Option<u64> + Send> MemoryCheck<F> {
    /// Demands `needed_bytes`.
    pub fn new(needed_bytes: u64, observe: F) -> Self {
        Self { needed_bytes, observe }
    }
}

impl<F: Fn() -> Option<u64> + Send> Check for MemoryCheck<F> {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn run(&self) -> Outcome {
        let Some(available) = (self.observe)() else {
            return Outcome::Skipped("the system does not say how much memory is available".to_owned());
        };
        let figures = format!("{} needed, {} available", needed_mib(self.needed_bytes), free_mib(available));
        if available < self.needed_bytes {
            Outcome::Failed(format!("too little memory: {figures}"))
        } else {
            Outcome::Passed(figures)
        }
    }
}

/// Memory that can be used without swapping, in bytes: `MemAvailable` of proc(5), or what the tightest control group of
/// this process (cgroups(7), version 2) leaves if that is less. `None` where the system does not say.
pub fn available_memory() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let text = read(Path::new("/proc/meminfo"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let machine = kib.checked_mul(1024)?;
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    Some(group_room(Path::new("/sys/fs/cgroup"), &groups, read).map_or(machine, |room| room.min(machine)))
}

/// What the limits of a control group and of those above it leave, as `read` tells; page cache that can be dropped counts as
/// free. `groups` is the content of `/proc/self/cgroup`; `None` when no group has a limit.
fn group_room(mount: &Path, groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let number = |path: PathBuf| read(&path)?.trim().parse::<u64>().ok();
    let room = |group: &Path| {
        let directory = mount.join(group);
        // `max` is no number: no limit.
        let limit = number(directory.join("memory.max"))?;
        let used = number(directory.join("memory.current"))?;
        let statistics = read(&directory.join("memory.stat")).unwrap_or_default();
        let cache = statistics.lines().find_map(|line| line.strip_prefix("inactive_file "));
        let cache = cache.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(cache)))
    };
    Path::new(own).ancestors().filter_map(room).min()
}

/// Required packages are installed in versions that will do, and conflicting ones are not.
pub struct DependencyCheck<F> {
    requires: Vec<Requirement>,
    conflicts: Vec<Conflict>,
    observe: F,
}

impl<F: Fn() -> Result<BTreeMap<Name, Version>, String> + Send> DependencyCheck<F> {
    /// Judges what `observe` says is installed.
    pub fn new(requires: Vec<Requirement>, conflicts: Vec<Conflict>, observe: F) -> Self {
        Self { requires, conflicts, observe }
    }

    fn judge(&self, installed: &BTreeMap<Name, Version>) -> Result<(), String> {
        for Requirement { package, constraint, optional } in &self.requires {
            match installed.get(package) {
                Some(version) if !constraint.allows(version) => {
                    return Err(format!("`{package}` {constraint} is required; {version} is installed"));
                }
                None if !optional => {
                    return Err(format!("required package `{package}` {constraint} not found"));
                }
                Some(_) | None => {}
            }
        }
        for Conflict { package, constraint } in &self.conflicts {
            if let Some(version) = installed.get(package)
                && constraint.allows(version)
            {
                return Err(format!("conflict with `{package}` {constraint}; {version} is installed"));
            }
        }
        Ok(())
    }
}

impl<F: Fn() -> Result<BTreeMap<Name, Version>, String> + Send> Check for DependencyCheck<F> {
    fn name(&self) -> String {
        "dependencies".to_owned()
    }

    fn run(&self) -> Outcome {
        match (self.observe)().and_then(|installed| self.judge(&installed)) {
            Ok(()) => Outcome::Passed(format!("{} required packages are there", self.requires.len())),
            Err(reason) => Outcome::Failed(reason),
        }
    }
}

/// Directories can be written to.
pub struct WritableCheck {
    directories: Vec<PathBuf>,
}

impl WritableCheck {
    /// Demands that files can be made in each of `directories`, or in what exists above it.
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self { directories }
    }
}

impl Check for WritableCheck {
    fn name(&self) -> String {
        "writable".to_owned()
    }

    fn run(&self) -> Outcome {
        for directory in &self.directories {
            if let Err(error) = try_to_write(existing(directory)) {
                return Outcome::Failed(format!("`{}` cannot be written to: {error}", directory.display()));
            }
        }
        Outcome::Passed(format!("{} directories", self.directories.len()))
    }
}

/// Makes a file without a name, which shows what permission bits cannot: read-only mounts and immutable directories.
fn try_to_write(directory: &Path) -> io::Result<()> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(_) => Ok(()),
        // The file system has no unnamed files, so ask instead of trying.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::NOENT) => {
            let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
            rustix::fs::accessat(CWD, directory, access, AtFlags::EACCESS).map_err(Into::into)
        }
        Err(error) => Err(error.into()),
    }
}

/// Paths lie on one mounted file system, so that files can be renamed between them.
pub struct SameFileSystemCheck {
    paths: Vec<PathBuf>,
}

impl SameFileSystemCheck {
    /// Compares what exists at or above each of `paths`.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths }
    }
}

impl Check for SameFileSystemCheck {
    fn name(&self) -> String {
        "same file system".to_owned()
    }

    fn run(&self) -> Outcome {
        let mut first = None;
        for path in &self.paths {
            let mount = match mount_of(existing(path)) {
                Ok(mount) => mount,
                Err(error) => {
                    return Outcome::Failed(format!("`{}` cannot be looked at: {error}", path.display()));
                }
            };
            match first {
                None => first = Some((path, mount)),
                Some((first_path, first_mount)) if first_mount != mount => {
                    return Outcome::Failed(format!(
                        "`{}` and `{}` are on different file systems, so files cannot be renamed between them",
                        first_path.display(),
                        path.display()
                    ));
                }
                Some(_) => {}
            }
        }
        Outcome::Passed(format!("{} paths", self.paths.len()))
    }
}

/// Device and mount: rename(2) fails between two mounts even of one file system.
fn mount_of(path: &Path) -> io::Result<(u32, u32, u64)> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)?;
    // Kernels before 5.8 do not know mounts and leave the field 0, which compares as equal.
    Ok((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_mnt_id))
}

/// Whoever runs the service can be asked.
pub struct ServiceCheck {
    service: Arc<dyn ServiceManager>,
}

impl ServiceCheck {
    /// Asks `service`.
    pub fn new(service: Arc<dyn ServiceManager>) -> Self {
        Self { service }
    }
}

impl Check for ServiceCheck {
    fn name(&self) -> String {
        "service".to_owned()
    }

    fn run(&self) -> Outcome {
        match self.service.status() {
            Ok(status) => match status.state {
                ServiceState::Unknown => Outcome::Skipped(status.note),
                // A service that is down or failing is no reason to refuse the release that may mend it.
                ServiceState::Unmanaged
                | ServiceState::NoSupervisor
                | ServiceState::Stopped
                | ServiceState::Starting
                | ServiceState::Ready
                | ServiceState::BackOff
                | ServiceState::CrashLoop
                | ServiceState::Failed => Outcome::Passed(status.note),
            },
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn disk(bundle_mib: u64, free_mib: u64) -> Outcome {
        let space = DiskSpace { file_system: 1, free_bytes: free_mib * MIB, free_inodes: Some(100) };
        DiskCheck::for_bundle("/srv/db".into(), bundle_mib * MIB, 10, move |_: &Path| Ok(space)).run()
    }

    // H1
    #[test]
    fn as_much_room_as_needed_passes() {
        assert!(matches!(disk(50, 100), Outcome::Passed(_)));
    }

    // H2, E23
    #[test]
    fn too_little_room_names_the_path_and_both_figures_in_mib() {
        let Outcome::Failed(text) = disk(50, 99) else { panic!("accepted") };
        for word in ["`/srv/db`", "100 MiB needed", "99 MiB free"] {
            assert!(text.contains(word), "{text}");
        }
        let almost = DiskSpace { file_system: 1, free_bytes: 100 * MIB - 1, free_inodes: None };
        let outcome = DiskCheck::for_bundle("/".into(), 50 * MIB, 0, move |_: &Path| Ok(almost)).run();
        assert!(matches!(outcome, Outcome::Failed(text) if text.contains("99 MiB free")));
    }

    // H3
    #[test]
    fn twice_the_bundle_is_needed() {
        assert!(matches!(disk(50, 150), Outcome::Passed(_)));
        assert!(matches!(disk(50, 80), Outcome::Failed(_)));
    }

    #[test]
    fn too_few_inodes_fail_unless_they_are_not_counted() {
        let check = |free_inodes| {
            let space = DiskSpace { file_system: 1, free_bytes: MIB, free_inodes };
            DiskCheck::for_bundle("/".into(), 1, 10, move |_: &Path| Ok(space)).run()
        };
        assert!(matches!(check(Some(9)), Outcome::Failed(text) if text.contains("10 needed, 9 free")));
        assert!(matches!(check(Some(10)), Outcome::Passed(_)));
        assert!(matches!(check(None), Outcome::Passed(_)));
    }

    #[test]
    fn huge_bundle_does_not_overflow() {
        let space = DiskSpace { file_system: 1, free_bytes: u64::MAX - 1, free_inodes: None };
        let outcome = DiskCheck::for_bundle("/".into(), 1 << 63, 0, move |_: &Path| Ok(space)).run();
        assert!(matches!(outcome, Outcome::Failed(_)));
    }

    #[test]
    fn room_that_cannot_be_asked_for_fails() {
        let refuse = |_: &Path| Err(io::Error::from_raw_os_error(5));
        assert!(matches!(DiskCheck::for_bundle("/x".into(), 0, 0, refuse).run(), Outcome::Failed(_)));
    }

    // H3
    #[test]
    fn what_is_needed_on_one_file_system_is_summed() {
        let need = |path: &str| Need { path: path.into(), bytes: 100 * MIB, inodes: 10 };
        let needs = vec![need("/a/one"), need("/b/other"), need("/a/two"), need("/a/one")];
        let check = |free_mib: u64, free_inodes: u64| {
            let observe = move |path: &Path| {
                let (file_system, part) = if path.starts_with("/a") { (1, 1) } else { (2, 3) };
                let free_bytes = free_mib * MIB / part;
                Ok(DiskSpace { file_system, free_bytes, free_inodes: Some(free_inodes) })
            };
            DiskCheck::new(needs.clone(), observe).run()
        };
        let Outcome::Passed(text) = check(300, 30) else { panic!("refused") };
        assert_eq!(
            text,
            "`/a/one`, `/a/two`: 300 MiB needed, 300 MiB free; `/b/other`: 100 MiB needed, 100 MiB free"
        );
        let Outcome::Failed(text) = check(299, 30) else { panic!("accepted") };
        assert!(text.contains("of `/a/one`, `/a/two`: 300 MiB needed, 299 MiB free"), "{text}");
        assert!(matches!(check(300, 29), Outcome::Failed(text) if text.contains("30 needed, 29 free")));
    }

    // H6
    #[test]
    fn dependency_absent_or_older_fails_and_equal_or_newer_passes() {
        let check = |installed: Option<&str>| {
            let requires = vec![Requirement {
                package: "storage".parse().expect("a name"),
                constraint: ">=1.4.0".parse().expect("a constraint"),
                optional: false,
            }];
            let installed: BTreeMap<Name, Version> = installed
                .map(|version| ("storage".parse().expect("a name"), version.parse().expect("a version")))
                .into_iter()
                .collect();
            DependencyCheck::new(requires, Vec::new(), move || Ok(installed.clone())).run()
        };
        assert!(
            matches!(check(None), Outcome::Failed(text) if text.contains("not found") && text.contains("storage"))
        );
        assert!(matches!(check(Some("1.3.9")), Outcome::Failed(text) if text.contains("1.3.9")));
        assert!(matches!(check(Some("1.4.0")), Outcome::Passed(_)));
        assert!(matches!(check(Some("1.10.0")), Outcome::Passed(_)));
    }

    #[test]
    fn conflict_fails_and_missing_optional_package_does_not() {
        let installed = || Ok(BTreeMap::from([("old".parse().expect("a name"), Version::new(1, 0, 0))]));
        let conflict = |constraint: &str| Conflict {
            package: "old".parse().expect("a name"),
            constraint: constraint.parse().expect("a constraint"),
        };
        let optional = Requirement {
            package: "extra".parse().expect("a name"),
            constraint: Default::default(),
            optional: true,
        };
        let run = |conflicts| DependencyCheck::new(vec![optional.clone()], conflicts, installed).run();
        assert!(matches!(run(vec![conflict("<2.0.0")]), Outcome::Failed(text) if text.contains("conflict")));
        assert!(matches!(run(vec![conflict(">=2.0.0")]), Outcome::Passed(_)));
    }

    // H7
    #[test]
    fn unknown_memory_is_skipped_and_the_policy_decides() {
        let outcome = MemoryCheck::new(MIB, || None).run();
        assert!(matches!(outcome, Outcome::Skipped(_)));
        let report = super::super::run_checks(
            vec![Box::new(MemoryCheck::new(MIB, || None))],
            super::super::BUDGET_MAX,
        );
        assert_eq!(report.refusal(super::super::Unknown::Pass), None);
        assert!(report.refusal(super::super::Unknown::Fail).expect("a refusal").contains("memory"));
        assert!(matches!(MemoryCheck::new(2 * MIB, || Some(MIB)).run(), Outcome::Failed(_)));
        assert!(matches!(MemoryCheck::new(MIB, || Some(MIB)).run(), Outcome::Passed(_)));
    }

    #[test]
    fn memory_is_what_the_tightest_control_group_leaves() {
        let directory = tempfile::tempdir().expect("a directory");
        let mount = directory.path();
        std::fs::create_dir_all(mount.join("a/b")).expect("made");
        let write = |path: &str, text: &str| std::fs::write(mount.join(path), text).expect("written");
        write("a/memory.max", "1000\n");
        write("a/memory.current", "900\n");
        write("a/memory.stat", "anon 300\ninactive_file 500\n");
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "100\n");
        let room = |groups: &str| group_room(mount, groups, |path| std::fs::read_to_string(path).ok());
        assert_eq!(room("1:name=systemd:/\n0::/a/b\n"), Some(600));
        assert_eq!(room("0::/\n"), None, "no limit");
        assert_eq!(room("4:memory:/a\n"), None, "version 1 is not read");
        write("a/b/memory.max", "150\n");
        assert_eq!(room("0::/a/b\n"), Some(50));
    }

    #[test]
    fn real_observations_work_here_and_for_paths_that_do_not_exist_yet() {
        let directory = tempfile::tempdir().expect("a directory");
        let missing = directory.path().join("a/b/c");
        assert!(disk_space(&missing).expect("room").free_bytes > 0);
        assert!(available_memory().expect("memory") > 0);
        assert!(matches!(WritableCheck::new(vec![missing.clone()]).run(), Outcome::Passed(_)));
        let paths = vec![directory.path().to_owned(), missing];
        assert!(matches!(SameFileSystemCheck::new(paths).run(), Outcome::Passed(_)));
        assert!(
            std::fs::read_dir(directory.path()).expect("a directory").next().is_none(),
            "a trace is left"
        );
    }

    #[test]
    fn read_only_and_foreign_file_systems_are_named() {
        let Outcome::Failed(text) = WritableCheck::new(vec!["/proc/self".into()]).run() else {
            panic!("accepted")
        };
        assert!(text.contains("/proc/self"), "{text}");
        let outcome = SameFileSystemCheck::new(vec!["/".into(), "/proc".into()]).run();
        assert!(matches!(outcome, Outcome::Failed(text) if text.contains("`/proc`")));
    }
}
