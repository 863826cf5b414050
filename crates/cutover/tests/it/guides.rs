//! The guides say what works: blocks of the first one are run as they stand, keys of another are read.

use std::{fs, path::Path};

use crate::world::{PLAIN, Release, World, command, finish, stamped, text};

fn guide(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guides").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The contents of the guide's code blocks in `language`.
fn blocks(guide: &str, language: &str) -> Vec<String> {
    let start = format!("```{language}\n");
    let parts = guide.split(&start).skip(1);
    parts.map(|part| part.split("```").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn first_update_works_as_written() {
    let world = World::new();
    let bin = world.path("bin");
    fs::create_dir(&bin).expect("made");
    std::os::unix::fs::symlink(PLAIN, bin.join("cutover")).expect("linked");
    let guide = guide("first-update.md");
    let script = format!("set -eu\n{}", blocks(&guide, "sh").join("\n"));
    let script = world.write("work/guide.sh", script);
    let mut shell = command(Path::new("/bin/sh"), &[text(&script)]);
    let path = std::env::var("PATH").unwrap_or_default();
    shell.current_dir(world.path("work")).env("PATH", format!("{}:{path}", bin.display()));
    let ran = finish(shell).must(0);
    let hellos: Vec<&str> = ran.stdout.lines().filter(|line| line.starts_with("hello from")).collect();
    assert_eq!(hellos, ["hello from 1.0.0", "hello from 1.1.0", "hello from 1.1.0", "hello from 1.0.0"]);
    assert!(ran.stderr.contains("refused `broken.cutover`"), "{}", ran.stderr);
}

#[test]
fn specification_of_the_guide_is_read() {
    let world = World::new();
    let blocks = blocks(&guide("release-engineers.md"), "toml");
    let spec = world.write("release.toml", &blocks[0]);
    let release = Release { files: &[("bin/app", "x"), ("etc/local.conf", "y")], ..Release::new("1.5.0") };
    let (tree, _) = world.tree(&release);
    let out = world.path("out.cutover");
    let ran =
        world.run(&["bundle", "create", text(&tree), "--spec", text(&spec), "-o", text(&out), "--json"]);
    assert_eq!(ran.must(0).json()["version"], "1.5.0");
}

#[test]
fn settings_of_the_guides_are_read() {
    for name in ["operators.md", "service.md", "gate.md"] {
        for block in blocks(&guide(name), "toml") {
            let world = World::new();
            let file = world.write("cutover.toml", &block);
            world.run(&["config", "check", "--config", text(&file)]).must(0);
        }
    }
}

#[test]
fn nginx_reads_the_configuration_of_the_guide() {
    let world = World::new();
    let pki = &stamped().pki;
    let (logs, socket) = (world.path("logs"), world.path("nginx.socket"));
    fs::create_dir(&logs).expect("made");
    let blocks = blocks(&guide("gate.md"), "nginx");
    assert!(!blocks.is_empty());
    for block in blocks {
        // Only what belongs to another machine is replaced: certificate, key and port.
        let block = block
            .replace("/etc/ssl/gate.example.pem", text(&pki.join("signer.pem")))
            .replace("/etc/ssl/gate.example.key", text(&pki.join("signer.key")))
            .replace("listen 443 ssl", &format!("listen unix:{} ssl", socket.display()));
        let file = world.write(
            "nginx.conf",
            format!(
                "pid {logs}/pid;\nerror_log {logs}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n{block}}}\n",
                logs = logs.display()
            ),
        );
        let nginx = Path::new("/usr/sbin/nginx");
        let ran = finish(command(nginx, &["-t", "-p", text(&logs), "-c", text(&file)]));
        assert!(ran.code == 0 && ran.stderr.contains("test is successful"), "{}", ran.stderr);
    }
}
