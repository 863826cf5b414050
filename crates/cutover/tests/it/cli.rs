//! The command line itself: help, usage errors, reference pages, completions, manual pages.

use std::{fs, path::Path, process::Command};

use crate::world::{PLAIN, Ran, World, command, run, text};

fn plain(arguments: &[&str]) -> Ran {
    run(Path::new(PLAIN), arguments)
}

#[test]
fn help_names_every_command() {
    insta::assert_snapshot!(plain(&["--help"]).must(0).stdout);
    insta::assert_snapshot!(plain(&["apply", "--help"]).must(0).stdout);
}

#[test]
fn hidden_aids_are_not_in_the_help() {
    for arguments in [vec!["--help"], vec!["apply", "--help"], vec!["recover", "--help"]] {
        let help = plain(&arguments).must(0).stdout;
        for hidden in ["__reference", "demo-service", "--stop-at", "--wait-for-supervisor"] {
            assert!(!help.contains(hidden), "{arguments:?} shows {hidden}");
        }
    }
}

#[test]
fn wrong_usage_ends_with_2_and_a_suggestion() {
    let ran = plain(&["aply"]).must(2);
    assert!(ran.stdout.is_empty() && ran.stderr.contains("'apply'"), "{}", ran.stderr);
    let ran = plain(&["apply", "x.cutover"]).must(2);
    assert!(ran.stderr.contains("--root"), "{}", ran.stderr);
    let ran = plain(&["apply", "x.cutover", "--root", "r", "--layout", "flat", "--json"]).must(2);
    assert_eq!(ran.json()["error"]["exit_code"], 2);
    plain(&["config", "check", "--set", "nonsense"]).must(2);
}

#[test]
fn failure_has_one_document_on_stdout_and_words_on_stderr() {
    let ran = plain(&["bundle", "verify", "/nonexistent.cutover", "--json"]).must(11);
    insta::assert_snapshot!(ran.stdout);
    insta::assert_snapshot!(ran.stderr);
}

#[test]
fn output_that_is_lost_changes_no_ending_but_that_of_who_only_prints() {
    let world = World::new();
    let to_nowhere = |mut command: Command| {
        let full = fs::File::options().write(true).open("/dev/full").expect("a device");
        let output = command.stdout(full).output().expect("started");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let bundle = world.build_version("1.0.0");
    let bundle = text(&bundle);
    for (more, code) in [("--dry-run", 1), ("--json", 0), ("--json", 3)] {
        let (ended, said) = to_nowhere(world.on_root_command(&["apply", bundle, more]));
        assert_eq!(ended, Some(code), "{said}");
        assert!(said.contains("not everything could be printed"), "{said}");
    }
    assert_eq!(world.version(), "1.0.0");
    for arguments in [&["--help"][..], &["config", "show"], &["gate", "token", "*"]] {
        let (ended, said) = to_nowhere(command(Path::new(PLAIN), arguments));
        assert_eq!(ended, Some(1), "{arguments:?}: {said}");
    }
}

#[test]
fn version_is_the_packages() {
    assert_eq!(plain(&["--version"]).must(0).stdout, format!("cutover {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn reference_pages_are_those_in_the_docs() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference");
    for page in ["cli", "exit-codes", "settings"] {
        let printed = plain(&["__reference", page]).must(0).stdout;
        let present = fs::read_to_string(docs.join(format!("{page}.md"))).unwrap_or_default();
        assert!(printed == present, "docs/reference/{page}.md differs: run `cargo xtask reference`");
    }
}

#[test]
fn completions_render_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = plain(&["completions", shell]).must(0).stdout;
        assert!(script.contains("restore-points"), "{shell}");
    }
}

#[test]
fn manual_pages_render_for_every_command() {
    let world = World::new();
    let dir = world.path("man");
    assert!(plain(&["man", text(&dir), "--json"]).must(0).json()["pages"].as_u64() > Some(50));
    let pages: Vec<String> = fs::read_dir(&dir)
        .expect("read")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    for page in ["cutover.1", "cutover-apply.1", "cutover-bundle-create.1", "cutover-config-show.1"] {
        assert!(pages.iter().any(|name| name == page), "{page} not in {pages:?}");
    }
    assert!(!pages.iter().any(|name| name.contains("demo-service")), "{pages:?}");
    assert!(fs::read_to_string(dir.join("cutover-apply.1")).expect("read").contains("dry\\-run"));
}

#[test]
fn paths_that_are_no_text_are_printed_as_well_as_they_can_be() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
    let world = World::new();
    let bundle = world.build_version("1.0.0");
    let odd = world.dir.path().join(OsStr::from_bytes(b"x\xff"));
    fs::create_dir(&odd).expect("made");
    let copy = odd.join("bundle");
    fs::copy(&bundle, &copy).expect("copied");
    let mut verify = command(&crate::world::stamped().program, &["--json", "bundle", "verify"]);
    verify.arg(&copy);
    assert!(crate::world::finish(verify).must(0).json()["bundle"].is_string());
}

#[test]
fn root_that_is_a_file_is_named() {
    let file = tempfile::NamedTempFile::new().expect("made");
    for command in ["status", "recover", "run"] {
        let ran = plain(&[command, "--root", text(file.path())]).must(2);
        assert!(ran.stderr.contains("is no directory"), "{}", ran.stderr);
    }
}

#[test]
fn program_without_an_anchor_says_so_and_how_to_get_one() {
    assert!(plain(&["trust", "show"]).must(0).stdout.contains("trusts nobody"));
    assert!(plain(&["trust", "show", "--json"]).must(0).json()["anchor"].is_null());
}

#[test]
fn missing_root_is_named_with_the_way_to_make_one() {
    for command in ["status", "history", "verify", "rollback", "restore-points", "recover", "prune"] {
        let ran = plain(&[command, "--root", "/nonexistent/root"]).must(2);
        assert!(
            ran.stderr.contains("`/nonexistent/root`")
                && ran.stderr.contains("`cutover apply BUNDLE --root /nonexistent/root`"),
            "{}",
            ran.stderr
        );
    }
}
