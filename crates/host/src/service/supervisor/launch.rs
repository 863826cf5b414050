//! From an activation and the settings to a job for the state machine and a process to start.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Component, Path, PathBuf},
};

use cutover_core::{
    model::{Listen, ReleaseRef},
    supervise::{Job, Overlap, RestartPolicy},
};

use super::{
    super::{Activation, ServiceSettings, millis},
    spawn,
};

/// Variables that are about this supervisor, not about its services.
const NOT_INHERITED: [&str; 7] = [
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "MAINPID",
];

/// When crashed services are restarted.
pub(super) fn policy(settings: &ServiceSettings) -> RestartPolicy {
    RestartPolicy {
        delay_ms: settings.restart_delay_ms.into(),
        delay_max_ms: u64::from(settings.restart_delay_max_s) * 1000,
        stable_after_ms: u64::from(settings.stable_after_s) * 1000,
        crash_loop_after: settings.crash_loop_after,
    }
}

/// The job of running `activation`'s release; `None` when it has no service.
pub(super) fn job(settings: &ServiceSettings, activation: &Activation) -> Option<Job> {
    let hints = activation.hints.as_ref();
    if settings.command.is_none() && hints.is_none() {
        return None;
    }
    Some(Job {
        release: activation.release.clone()?,
        ready: settings.ready.or(hints.map(|hints| hints.ready)).unwrap_or_default(),
        ready_timeout_ms: millis(settings.ready_timeout(hints)),
        drain_timeout_ms: millis(settings.drain_timeout(hints)),
        overlap: if settings.stop_first { Overlap::Never } else { Overlap::Allowed },
    })
}

/// The sockets that `activation`'s release listens on.
pub(super) fn listen<'a>(settings: &'a ServiceSettings, activation: &'a Activation) -> &'a [Listen] {
    let hinted = activation.hints.as_ref().map(|hints| &hints.listen);
    settings.listen.as_ref().or(hinted).map_or(&[], Vec::as_slice)
}

/// The program to execute and its arguments, its own name first.
///
/// # Errors
/// There is no such program.
pub(super) fn command(
    settings: &ServiceSettings,
    activation: &Activation,
    path: Option<&OsStr>,
) -> Result<(PathBuf, Vec<String>), String> {
    let hinted = activation.hints.as_ref().map(|hints| &hints.command);
    let command = settings.command.as_ref().or(hinted).map_or(&[][..], Vec::as_slice);
    let (name, arguments) = command.split_first().ok_or("its command is empty")?;
    if !activation.tree.is_absolute() {
        return Err(format!("its tree `{}` is no absolute path", activation.tree.display()));
    }
    // A release names programs of its own only; an operator may name any.
    let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if settings.command.is_none() && !inside {
        return Err(format!("its command `{}` is no path inside the release", name.escape_debug()));
    }
    let in_tree = activation.tree.join(name);
    let program = if spawn::is_executable(&in_tree) {
        Some(in_tree)
    } else if settings.command.is_some() && !name.contains('/') {
        spawn::search_path(name, path)
    } else {
        None
    };
    let program = program.ok_or_else(|| {
        format!(
            "`{}` in `{}` is no program that may be executed",
            name.escape_debug(),
            activation.tree.display()
        )
    })?;
    let name = program.display().to_string();
    Ok((program, std::iter::once(name).chain(arguments.iter().cloned()).collect()))
}

/// The environment of a service but for `LISTEN_PID`.
pub(super) fn environment(
    settings: &ServiceSettings,
    activation: &Activation,
    inherited: &[(OsString, OsString)],
    root: &Path,
    release: &ReleaseRef,
    protocol: [(&str, String); 3],
) -> Vec<(OsString, OsString)> {
    let ours = |key: &OsStr| {
        let key = key.to_string_lossy();
        key.starts_with("CUTOVER_")
            || key.starts_with(super::reexec::VARIABLE)
            || NOT_INHERITED.contains(&&*key)
    };
    let hinted = activation.hints.iter().flat_map(|hints| &hints.env);
    let named = hinted.chain(&settings.env).map(|(key, value)| (OsString::from(key), OsString::from(value)));
    let told = [
        (OsString::from("CUTOVER_ROOT"), root.as_os_str().to_owned()),
        ("CUTOVER_RELEASE".into(), release.name().as_str().into()),
        ("CUTOVER_TREE".into(), activation.tree.as_os_str().to_owned()),
    ];
    let protocol = protocol.map(|(key, value)| (OsString::from(key), OsString::from(value)));
    let inherited = inherited.iter().filter(|(key, _)| !ours(key)).cloned();
    // What comes later goes before: the operator's before the release's, ours before all.
    let merged: BTreeMap<OsString, OsString> = inherited.chain(named).chain(told).chain(protocol).collect();
    merged.into_iter().filter(|(key, _)| key != "LISTEN_PID").collect()
}

#[cfg(test)]
mod tests {
    use cutover_core::model::{Digest, Ready, ServiceHints};

    use super::*;

    fn activation(tree: &Path) -> Activation {
        Activation {
            release: Some(ReleaseRef {
                package: "db".parse().expect("a name"),
                version: "1.0.0".parse().expect("a version"),
                manifest: Digest::of(b""),
            }),
            tree: tree.to_owned(),
            hints: Some(ServiceHints {
                command: vec!["run".to_owned(), "--now".to_owned()],
                listen: vec!["tcp:127.0.0.1:80".parse().expect("an address")],
                ready: Ready::Running,
                ready_timeout_s: Some(7),
                drain_timeout_s: None,
                env: BTreeMap::from([
                    ("A".to_owned(), "hint".to_owned()),
                    ("B".to_owned(), "hint".to_owned()),
                ]),
            }),
            anew: false,
        }
    }

    #[test]
    fn settings_go_before_hints_and_hints_before_defaults() {
        let target = activation(Path::new("/"));
        let hinted = job(&ServiceSettings::default(), &target).expect("a job");
        assert_eq!(
            (hinted.ready, hinted.ready_timeout_ms, hinted.drain_timeout_ms),
            (Ready::Running, 7000, 30_000)
        );
        let settings = ServiceSettings {
            ready: Some(Ready::Notify),
            ready_timeout_s: Some(1),
            drain_timeout_s: Some(2),
            listen: Some(Vec::new()),
            ..ServiceSettings::default()
        };
        let set = job(&settings, &target).expect("a job");
        assert_eq!((set.ready, set.ready_timeout_ms, set.drain_timeout_ms), (Ready::Notify, 1000, 2000));
        assert_eq!(
            (listen(&settings, &target).len(), listen(&ServiceSettings::default(), &target).len()),
            (0, 1)
        );
        assert_eq!(job(&ServiceSettings::default(), &Activation { hints: None, ..target }), None);
    }

    #[test]
    fn environment_is_the_operators_then_the_releases_and_never_ours_by_accident() {
        let inherited = [
            ("A", "old"),
            ("PATH", "/bin"),
            ("CUTOVER_SERVICE__USER", "x"),
            ("LISTEN_PID", "1"),
            ("_CUTOVER_SUPERVISOR", "resume:3"),
        ]
        .map(|(key, value)| (OsString::from(key), OsString::from(value)));
        let settings = ServiceSettings {
            env: BTreeMap::from(
                [("B", "set"), ("LISTEN_PID", "2"), ("LISTEN_FDS", "9")]
                    .map(|(key, value)| (key.to_owned(), value.to_owned())),
            ),
            ..ServiceSettings::default()
        };
        let target = activation(Path::new("/tree"));
        let release = target.release.clone().expect("a release");
        let protocol = ["LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET"].map(|key| (key, "ours".to_owned()));
        let environment = environment(&settings, &target, &inherited, Path::new("/root"), &release, protocol);
        let text: Vec<String> =
            environment.iter().map(|(key, value)| format!("{}={}", key.display(), value.display())).collect();
        assert_eq!(
            text,
            [
                "A=hint",
                "B=set",
                &format!("CUTOVER_RELEASE={}", release.name()),
                "CUTOVER_ROOT=/root",
                "CUTOVER_TREE=/tree",
                "LISTEN_FDNAMES=ours",
                "LISTEN_FDS=ours",
                "NOTIFY_SOCKET=ours",
                "PATH=/bin",
            ]
        );
    }

    #[test]
    fn release_names_programs_of_its_own_only_and_an_operator_any() {
        use std::os::unix::fs::PermissionsExt as _;

        let tree = tempfile::tempdir().expect("a directory");
        let program = tree.path().join("run");
        std::fs::write(&program, "").expect("written");
        let target = activation(tree.path());
        let path = Some(OsStr::new("/usr/bin:/bin"));
        let error = command(&ServiceSettings::default(), &target, path).expect_err("not executable");
        assert!(error.contains("`run`"), "{error}");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("executable");
        let (found, arguments) = command(&ServiceSettings::default(), &target, path).expect("a program");
        assert_eq!(
            (found, arguments),
            (program.clone(), vec![program.display().to_string(), "--now".to_owned()])
        );
        for name in ["sh", "/bin/sh", "../run", "./run/../run"] {
            let mut outside = target.clone();
            outside.hints.as_mut().expect("hints").command = vec![name.to_owned()];
            command(&ServiceSettings::default(), &outside, path).expect_err(name);
        }
        let relative = Activation { tree: "tree".into(), ..target.clone() };
        command(&ServiceSettings::default(), &relative, path).expect_err("a relative tree");
        let set = |name: &str| ServiceSettings {
            command: Some(vec![name.to_owned()]),
            ..ServiceSettings::default()
        };
        for name in ["sh", "/bin/sh", "run"] {
            command(&set(name), &target, path).expect(name);
        }
    }
}
