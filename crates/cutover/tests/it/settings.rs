//! Settings through the binary: layers, refusals, secrets.

use std::path::Path;

use crate::world::{PLAIN, World, command, finish, stamped, text};

fn shown(world: &World, more: &[&str], variables: &[(&str, &str)]) -> serde_json::Value {
    let root = world.root();
    let mut all = vec!["config", "show", "--json", "--root", text(&root)];
    all.extend(more);
    let mut command = command(Path::new(PLAIN), &all);
    command.envs(variables.iter().copied());
    finish(command).must(0).json()
}

fn one(shown: &serde_json::Value, key: &str) -> (serde_json::Value, String) {
    let settings = shown["settings"].as_array().expect("a list");
    let found = settings.iter().find(|one| one["key"] == key).unwrap_or_else(|| panic!("no {key}"));
    (found["value"].clone(), found["origin"].as_str().expect("text").to_owned())
}

#[test]
fn each_layer_goes_before_the_one_below_and_is_named() {
    let world = World::new();
    assert_eq!(one(&shown(&world, &[], &[]), "retention.keep"), (3.into(), "default".to_owned()));
    world.write("root/cutover.toml", "[retention]\nkeep = 4\n");
    let (value, origin) = one(&shown(&world, &[], &[]), "retention.keep");
    assert!(value == 4 && origin.ends_with("root/cutover.toml:2"), "{origin}");
    world.write("root/cutover.toml.d/10-site.toml", "retention.keep = 5\n");
    assert_eq!(one(&shown(&world, &[], &[]), "retention.keep").0, 5);
    let variables = [("CUTOVER_RETENTION__KEEP", "6")];
    assert_eq!(
        one(&shown(&world, &[], &variables), "retention.keep"),
        (6.into(), "environment variable CUTOVER_RETENTION__KEEP".to_owned())
    );
    let flags = ["--set", "retention.keep=7"];
    assert_eq!(
        one(&shown(&world, &flags, &variables), "retention.keep"),
        (7.into(), "flag --set".to_owned())
    );
}

#[test]
fn named_file_goes_before_that_of_the_root() {
    let world = World::new();
    world.write("root/cutover.toml", "retention.keep = 4\n");
    let named = world.write("other.toml", "retention.keep = 9\n");
    assert_eq!(one(&shown(&world, &["--config", text(&named)], &[]), "retention.keep").0, 9);
}

// F3
#[test]
fn unknown_key_and_bad_value_name_place_and_suggestion() {
    let world = World::new();
    let root = world.root();
    for (content, words) in [
        (
            "[retention]\nkep = 4\n",
            ["cutover.toml:2: unknown key `retention.kep`", "did you mean `retention.keep`"],
        ),
        (
            "[retention]\nkeep = \"four\"\n",
            ["cutover.toml:2: `retention.keep`", "hint: `cutover config check`"],
        ),
        ("[retention\n", ["cutover.toml:1: ", "hint: "]),
    ] {
        world.write("root/cutover.toml", content);
        let ran = world.run(&["config", "check", "--root", text(&root)]).must(2);
        assert!(words.iter().all(|word| ran.stderr.contains(word)), "{}", ran.stderr);
        // Nothing starts with settings that are not understood.
        world.run(&["status", "--root", text(&root)]).must(2);
    }
}

// M10
#[test]
fn trust_anchor_by_variable_file_or_flag_refuses_the_start_of_every_command() {
    let world = World::new();
    let root = world.root();
    let dir = world.path("pki");
    let commands: [&[&str]; 4] = [
        &["status", "--root", text(&root)],
        &["apply", "x.cutover", "--root", text(&root)],
        &["bundle", "verify", "x.cutover"],
        &["pki", "init", text(&dir), "--org", "x"],
    ];
    for arguments in commands {
        for variable in ["CUTOVER_TRUST__ANCHOR", "CUTOVER_ANCHOR", "CUTOVER_TRUST_POLICY__ANCHOR"] {
            let mut command = command(&stamped().program, arguments);
            command.env(variable, text(&stamped().pki.join("root.pem")));
            let ran = finish(command).must(11);
            assert!(ran.stderr.contains(variable) && ran.stderr.contains("trust embed"), "{}", ran.stderr);
        }
    }
    let named = world.write("named.toml", "[trust]\nanchor = \"/etc/root.pem\"\n");
    for arguments in commands {
        for flag in [["--set", "trust.anchor=/x"], ["--config", text(&named)]] {
            world.run(&[arguments, &flag].concat()).must(11);
        }
        // Nor is a setting or a file taken that is none.
        for flag in [["--set", "bogus.key=1"], ["--config", "/nonexistent.toml"]] {
            world.run(&[arguments, &flag].concat()).must(2);
        }
    }
    assert!(!dir.exists());
    world.write("root/cutover.toml", "[trust]\nanchor = \"/etc/root.pem\"\n");
    let ran = world.run(&["status", "--root", text(&root)]).must(11);
    assert!(ran.stderr.contains("cutover.toml:2"), "{}", ran.stderr);
}

// F2
#[test]
fn secrets_are_masked_and_a_mask_is_never_taken_as_one() {
    let world = World::new();
    world.write("root/cutover.toml", "[service.env]\nAPI_KEY = \"hunter2\"\n");
    let root = world.root();
    let text_form = world.run(&["config", "show", "--root", text(&root)]).must(0).stdout;
    let with_origin = world.run(&["config", "show", "--origin", "--root", text(&root)]).must(0).stdout;
    let json = shown(&world, &[], &[]).to_string();
    for output in [&text_form, &with_origin, &json] {
        assert!(!output.contains("hunter2") && output.contains("********"), "{output}");
    }
    world.write("root/cutover.toml", &text_form);
    let ran = world.run(&["config", "show", "--json", "--root", text(&root)]).must(0);
    assert!(ran.stderr.contains("`service.env.API_KEY` holds the mask"), "{}", ran.stderr);
    assert!(!ran.stdout.contains("API_KEY"), "{}", ran.stdout);
}
