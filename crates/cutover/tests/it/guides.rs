//! The guides say what works: blocks of the README and of the first guide are run as they stand, keys of others are read.

use std::{fs, net::TcpListener, path::Path};

use crate::world::{PLAIN, Release, World, command, finish, has_tool, stamped, text};

const PROJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn page(path: &str) -> String {
    let path = Path::new(PROJECT).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn guide(name: &str) -> String {
    page(&format!("docs/guides/{name}"))
}

/// The contents of the guide's code blocks in `language`.
fn blocks(guide: &str, language: &str) -> Vec<String> {
    let start = format!("```{language}\n");
    let parts = guide.split(&start).skip(1);
    parts.map(|part| part.split("```").next().unwrap_or_default().to_owned()).collect()
}

/// Puts `cutover` in a new directory.
fn program_in(directory: &Path) {
    fs::create_dir_all(directory).expect("made");
    std::os::unix::fs::symlink(PLAIN, directory.join("cutover")).expect("linked");
}

#[test]
fn readme_works_as_written() {
    let world = World::new();
    program_in(&world.path("checkout/target/release"));
    std::os::unix::fs::symlink(Path::new(PROJECT).join("docs"), world.path("checkout/docs")).expect("linked");
    // Only the ports are others, for they may be taken here.
    let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let [site, gate] = ports.map(|free| free.local_addr().expect("bound").port());
    let script = blocks(&page("README.md"), "sh")
        .join("\n")
        .replace("127.0.0.1 8000", &format!("127.0.0.1 {site}"))
        .replace("127.0.0.1:8000", &format!("127.0.0.1:{site}"))
        .replace("127.0.0.1:8440", &format!("127.0.0.1:{gate}"))
        .replace("cutover gate serve", &format!("cutover gate serve --listen tcp:127.0.0.1:{gate}"));
    let script = format!("set -eu\ntrap 'kill $(jobs -p)' EXIT\n{script}");
    let script = world.write("readme.sh", script);
    let mut shell = command(Path::new("/bin/bash"), &[text(&script)]);
    shell.current_dir(world.path("checkout"));
    for who in ["GIT_AUTHOR", "GIT_COMMITTER"] {
        shell.env(format!("{who}_NAME"), "A").env(format!("{who}_EMAIL"), "a@example.org");
    }
    let ran = finish(shell).must(0);
    for said in [
        "\nhello\n",
        "rolled back from hello 1.1.0 to hello 1.0.0",
        "updated from an empty root to hello 1.1.0",
        "0042_contact is applied: schema version 2",
        "0042_contact is rolled back",
        "commit-not-accepted: ",
        "\"status\":\"stored\"",
    ] {
        assert!(ran.stdout.contains(said), "{said}: {}{}", ran.stdout, ran.stderr);
    }
}

#[test]
fn first_update_works_as_written() {
    let world = World::new();
    let bin = world.path("bin");
    program_in(&bin);
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
    let nginx = "/usr/sbin/nginx";
    if !has_tool(nginx, "nginx-light") {
        return;
    }
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
        let ran = finish(command(Path::new(nginx), &["-t", "-p", text(&logs), "-c", text(&file)]));
        assert!(ran.code == 0 && ran.stderr.contains("test is successful"), "{}", ran.stderr);
    }
}
