//! Roots where something odd lies, or where somebody meddles while we work.

use std::{
    io,
    os::unix::fs::{MetadataExt as _, symlink},
    path::Path,
};

use cutover_core::{execute::Outcome, plan::Layout};
use cutover_host::{
    disk::{Disk as _, RealDisk},
    node::Ports,
};

use crate::{
    not_run::not_run,
    world::{LAYOUTS, World, first, second},
};

// P6, inst-7
#[test]
fn parent_that_became_a_link_to_outside_is_refused_and_nothing_outside_is_written() {
    let world = World::new(Layout::InPlace);
    let outside = tempfile::tempdir().expect("a directory");
    symlink(outside.path(), world.path().join("bin")).expect("linked");
    let node = world.node();
    let error = node.observe(Some(first().bundle().manifest())).expect_err("refused");
    let text = format!("{error}: {}", std::error::Error::source(&error).expect("a cause"));
    assert!(text.contains("bin/alias") || text.contains("bin/app"), "{text}");
    assert!(text.contains("symbolic link"), "{text}");
    assert_eq!(std::fs::read_dir(outside.path()).expect("listed").count(), 0);
}

// P6
#[test]
fn parent_swapped_for_a_link_between_staging_and_switch_leads_nowhere() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        world.apply(&first());
        let outside = tempfile::tempdir().expect("a directory");
        std::fs::write(outside.path().join("app"), "a canary").expect("written");
        let (node, bundle) = (world.node(), second().bundle());
        let plan = world.plan(&node, &bundle);
        // In place, files are renamed into the present directory; otherwise what is staged becomes current as it lies there.
        let bin = match layout {
            Layout::InPlace => world.path().join("bin"),
            Layout::Versioned | Layout::Exchange => {
                world.path().join("releases").join(bundle.release().name().as_str()).join("bin")
            }
        };
        let is_swapped = std::cell::Cell::new(false);
        let swap = |step: &str| {
            if step == "switch" {
                is_swapped.set(true);
                std::fs::rename(&bin, bin.with_extension("moved")).expect("moved");
                symlink(outside.path(), &bin).expect("swapped");
            }
        };
        let lock = node.lock().expect("locked");
        let ports = Ports { before_step: Some(&swap), ..world.ports() };
        let report = node.execute(&lock, &plan, Some(&bundle), &ports).expect("ran");
        assert!(is_swapped.get(), "{layout:?}");
        assert_ne!(report.outcome, Outcome::Confirmed, "{layout:?}");
        assert_eq!(std::fs::read(outside.path().join("app")).expect("kept"), b"a canary", "{layout:?}");
        assert_eq!(std::fs::read_dir(outside.path()).expect("listed").count(), 1, "{layout:?}");
    }
}

// P6
#[test]
fn parent_swapped_for_a_link_after_the_switch_leads_nowhere() {
    for layout in LAYOUTS {
        let world = World::new(layout);
        world.apply(&first());
        let outside = tempfile::tempdir().expect("a directory");
        std::fs::write(outside.path().join("app"), "a canary").expect("written");
        let (bin, target) = (world.installed("bin"), outside.path().to_owned());
        // Between the switch and the probe.
        world.service.on_activate(
            "2.0.0",
            Box::new(move || {
                if bin.exists() && !bin.is_symlink() {
                    std::fs::rename(&bin, bin.with_extension("moved")).expect("moved");
                    symlink(&target, &bin).expect("swapped");
                }
            }),
        );
        let report = world.apply(&second());
        assert_ne!(report.outcome, Outcome::Confirmed, "{layout:?}");
        assert_eq!(std::fs::read(outside.path().join("app")).expect("kept"), b"a canary");
        assert_eq!(std::fs::read_dir(outside.path()).expect("listed").count(), 1, "{layout:?}");
    }
}

// P6
#[test]
fn real_disk_follows_no_link_and_leaves_its_root_by_no_path() {
    let directory = tempfile::tempdir().expect("a directory");
    let outside = tempfile::tempdir().expect("a directory");
    std::fs::write(outside.path().join("secret"), "secret").expect("written");
    symlink(outside.path(), directory.path().join("out")).expect("linked");
    symlink(outside.path().join("secret"), directory.path().join("file")).expect("linked");
    std::fs::create_dir(directory.path().join("in")).expect("made");
    let disk = RealDisk::open(directory.path()).expect("a disk");
    for path in ["out/secret", "file", "../x", "/etc/passwd", "in/../file", ".", "./in"] {
        let path = Path::new(path);
        assert!(disk.open(path).is_err(), "{path:?}");
        assert!(disk.append(path, 0o600).is_err(), "{path:?}");
        assert!(disk.truncate(path, 0).is_err(), "{path:?}");
        assert!(disk.set_ownership(path, 0, 0, &Default::default()).is_err(), "{path:?}");
    }
    for path in ["out/new", "../new", "in/../new"] {
        assert!(disk.create(Path::new(path), 0o600).is_err(), "{path}");
        assert!(disk.create_dir(Path::new(path), 0o700).is_err(), "{path}");
        assert!(disk.symlink("x", Path::new(path)).is_err(), "{path}");
        assert!(disk.rename(Path::new("in"), Path::new(path)).is_err(), "{path}");
    }
    assert!(disk.set_mode(Path::new("file"), 0o777).is_err());
    assert_eq!(std::fs::read(outside.path().join("secret")).expect("kept"), b"secret");
    assert_eq!(disk.metadata(Path::new("no/such")).expect("looked"), None);
}

// inst-7
#[test]
fn device_or_pipe_where_a_file_goes_stops_the_update() {
    let world = World::new(Layout::InPlace);
    std::fs::create_dir(world.path().join("bin")).expect("made");
    let pipe = world.path().join("bin/app");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("made");
    let report = world.apply(&first());
    assert!(
        matches!(&report.outcome, Outcome::Undone { reason } if reason.contains("bin/app")),
        "{report:?}"
    );
    assert!(pipe.exists());
}

// inst-7
#[test]
fn other_name_of_a_replaced_file_keeps_the_old_content() {
    let world = World::new(Layout::InPlace);
    world.apply(&first());
    let elsewhere = world.path().join("elsewhere");
    std::fs::hard_link(world.path().join("bin/app"), &elsewhere).expect("linked");
    let old = std::fs::read(&elsewhere).expect("read");
    world.apply(&second());
    assert_eq!(std::fs::read(&elsewhere).expect("read"), old);
    assert_ne!(
        std::fs::metadata(&elsewhere).expect("metadata").ino(),
        std::fs::metadata(world.path().join("bin/app")).expect("metadata").ino()
    );
}

// inst-7
#[test]
fn immutable_target_undoes_the_whole_update() {
    let directory = tempfile::tempdir().expect("on a file system with attributes, perhaps");
    let world = World::at(directory, Layout::InPlace);
    world.apply(&first());
    let path = world.path().join("share/only-in-one");
    let file = std::fs::File::open(&path).expect("open");
    let immutable = rustix::fs::IFlags::IMMUTABLE;
    if let Err(error) = rustix::fs::ioctl_setflags(&file, immutable) {
        return not_run(&format!(
            "immutable_target_undoes_the_whole_update: no file here can be made immutable ({error}); it needs root and a file \
             system with attributes"
        ));
    }
    let report = world.apply(&second());
    rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::empty()).expect("cleared");
    assert!(matches!(report.outcome, Outcome::Undone { .. }), "{report:?}");
    assert_eq!(world.tree(), first().tree());
}

// inst-7
#[test]
fn running_program_is_replaced_in_every_layout() {
    for layout in LAYOUTS {
        let directory = tempfile::tempdir().expect("a directory");
        let world = World::at(directory, layout);
        let sleep = std::fs::read("/bin/sleep").expect("there");
        world.apply(&first().program("bin/sleep", sleep.clone()));
        let mut running =
            std::process::Command::new(world.installed("bin/sleep")).arg("60").spawn().expect("runs");
        let report = world.apply(&second().program("bin/sleep", [sleep, b"more".to_vec()].concat()));
        running.kill().and_then(|()| running.wait()).expect("killed");
        assert_eq!(report.outcome, Outcome::Confirmed, "{layout:?}");
    }
}

#[test]
fn root_that_is_no_directory_is_refused() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    assert_eq!(RealDisk::open(file.path()).expect_err("refused").kind(), io::ErrorKind::NotADirectory);
}

#[test]
fn odd_name_in_a_tree_that_goes_is_no_reason_to_get_stuck() {
    use std::os::unix::ffi::OsStrExt as _;

    for layout in [Layout::Versioned, Layout::Exchange] {
        let world = World::new(layout);
        world.apply(&first());
        world.fail_probes();
        let current = world.current();
        world.service.on_activate(
            "2.0.0",
            Box::new(move || {
                let name = std::ffi::OsStr::from_bytes(b"cache-\xff");
                std::fs::create_dir(current.join(name)).expect("made");
                std::fs::write(current.join(name).join(name), "odd").expect("written");
            }),
        );
        let report = world.apply(&second());
        assert!(matches!(report.outcome, Outcome::ProbeFailed { .. }), "{layout:?} {report:?}");
        assert_eq!(world.tree(), first().tree(), "{layout:?}");
        assert!(world.recover().is_none());
        let trash = std::fs::read_dir(world.path().join(".cutover/trash")).expect("listed");
        assert_eq!(trash.count(), 0, "{layout:?}");
    }
}
