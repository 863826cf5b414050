//! Tests of the settings: layers, origins, suggestions, refusals.

use std::{
    fs,
    os::unix::{ffi::OsStringExt as _, fs::symlink},
};

use super::*;

struct Place {
    directory: tempfile::TempDir,
    sources: Sources,
}

fn place(text: &str) -> Place {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("cutover.toml"), text).expect("written");
    let sources = Sources { root: Some(directory.path().to_owned()), ..Sources::default() };
    Place { directory, sources }
}

impl Place {
    fn drop_in(self, name: &str, text: &str) -> Self {
        let directory = self.directory.path().join("cutover.toml.d");
        fs::create_dir_all(&directory).expect("created");
        fs::write(directory.join(name), text).expect("written");
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn flag(mut self, key: &str, value: &str) -> Self {
        self.sources.flags.push((key.to_owned(), value.to_owned(), "--set".to_owned()));
        self
    }

    fn load(&self) -> Result<Resolved, SettingsError> {
        Resolved::load(&self.sources)
    }

    fn refused(&self) -> String {
        let text = self.load().expect_err("refused").to_string();
        text.replace(&self.directory.path().display().to_string(), "ROOT")
    }
}

fn origin(resolved: &Resolved, key: &str) -> String {
    resolved.show().into_iter().find(|shown| shown.key == key).expect(key).origin
}

// F1
#[test]
fn defaults_are_safe() {
    let settings = Settings::default();
    assert_eq!(settings.probes.on_failure, cutover_host::probe::OnFailure::Restore);
    assert_eq!(settings.install.local_changes, cutover_core::plan::LocalChanges::Refuse);
    assert_eq!(settings.retention.keep, 3);
}

#[test]
fn later_layers_win_and_are_named() {
    let place = place("[install]\njobs = 1\nlayout = \"exchange\"\n[retention]\nkeep = 4\n");
    let resolved = place.load().expect("valid");
    assert_eq!((resolved.settings.install.jobs, resolved.settings.retention.keep), (1, 4));
    assert!(origin(&resolved, "install.jobs").ends_with("cutover.toml:2"));
    assert_eq!(origin(&resolved, "retention.warm"), "default");

    let place = place.drop_in("20.toml", "install.jobs = 3").drop_in("10.toml", "install.jobs = 2");
    let resolved = place.load().expect("valid");
    assert_eq!(resolved.settings.install.jobs, 3, "by name, the last one wins");
    assert!(origin(&resolved, "install.jobs").ends_with("20.toml:1"));

    let place = place.variable("CUTOVER_INSTALL__JOBS", "4");
    let resolved = place.load().expect("valid");
    assert_eq!(resolved.settings.install.jobs, 4);
    assert_eq!(origin(&resolved, "install.jobs"), "environment variable CUTOVER_INSTALL__JOBS");
    assert_eq!(resolved.settings.install.layout, Some(cutover_core::plan::Layout::Exchange), "others stay");

    let place = place.flag("install.jobs", "5");
    let resolved = place.load().expect("valid");
    assert_eq!(resolved.settings.install.jobs, 5);
    assert_eq!(origin(&resolved, "install.jobs"), "flag --set");
}

#[test]
fn variables_reach_sections_with_dashes_lists_and_maps() {
    let resolved = place("")
        .variable("CUTOVER_TRUST_POLICY__CRL", "[\"/a.crl\", \"/b.crl\"]")
        .variable("CUTOVER_PACKAGE__NAME", "123")
        .variable("CUTOVER_LOG", "debug")
        .flag("preflight.packages.storage", "1.4.0")
        .load()
        .expect("valid");
    assert_eq!(resolved.settings.trust_policy.crl, [PathBuf::from("/a.crl"), PathBuf::from("/b.crl")]);
    assert_eq!(resolved.settings.package.name, "123".parse().ok(), "text stays text");
    assert_eq!(resolved.settings.preflight.packages.len(), 1);
}

// F3
#[test]
fn unknown_key_names_place_and_suggestion() {
    assert_eq!(
        place("\n[install]\nlayuot = \"exchange\"").refused(),
        "ROOT/cutover.toml:3: unknown key `install.layuot`, did you mean `install.layout`?"
    );
    assert_eq!(
        place("[instal]\nlayout = \"exchange\"").refused(),
        "ROOT/cutover.toml:1: unknown key `instal`, did you mean `install`?"
    );
    assert_eq!(
        place("").variable("CUTOVER_INSTALL__JOB", "1").refused(),
        "environment variable CUTOVER_INSTALL__JOB: unknown key `install.job`, did you mean `install.jobs`?"
    );
    assert_eq!(place("").flag("zzz.qqq", "1").refused(), "flag --set: unknown key `zzz`");
}

// F3
#[test]
fn bad_syntax_and_bad_values_name_key_and_place() {
    assert!(place("[install\n").refused().starts_with("ROOT/cutover.toml:1: "));
    assert_eq!(
        place("[install]\nlayout = \"flat\"").refused(),
        "ROOT/cutover.toml:2: `install.layout`: `flat` is not one of `versioned`, `exchange`, `in-place`"
    );
    assert!(place("install.jobs = \"many\"").refused().starts_with("ROOT/cutover.toml:1: `install.jobs`:"));
    assert!(place("install.jobs = -1").refused().contains("install.jobs"));
    assert!(place("").variable("CUTOVER_INSTALL__JOBS", "many").refused().contains("CUTOVER_INSTALL__JOBS"));
    assert!(
        place("preflight.packages = { \"a/b\" = \"1.0.0\" }").refused().contains("preflight.packages.a/b"),
        "{}",
        place("preflight.packages = { \"a/b\" = \"1.0.0\" }").refused()
    );
}

// M10
#[test]
fn trust_anchor_in_any_layer_is_refused() {
    for refused in [
        place("[trust]\nanchor = \"/etc/root.pem\"").load(),
        place("[trust-policy]\nanchor = \"/etc/root.pem\"").load(),
        place("").drop_in("a.toml", "trust.anchors = [\"x\"]").load(),
        place("").variable("CUTOVER_TRUST__ANCHOR", "/etc/root.pem").load(),
        place("").variable("CUTOVER_TRUST_POLICY__ANCHOR", "/etc/root.pem").load(),
        place("").variable("CUTOVER_ANCHOR", "/etc/root.pem").load(),
        place("").variable("CUTOVER_TRUST_ANCHOR", "/etc/root.pem").load(),
        place("").flag("trust.anchor", "x").load(),
    ] {
        let error = refused.expect_err("refused");
        assert!(matches!(error, SettingsError::Anchor { .. }), "{error}");
        assert_eq!(error.exit(), Exit::NotTrusted);
    }
}

#[test]
fn settings_that_cannot_be_read_are_not_the_defaults() {
    let unreadable = |make: &dyn Fn(&Path)| {
        let place = place("");
        fs::remove_file(place.directory.path().join("cutover.toml")).expect("removed");
        make(place.directory.path());
        let named = Sources {
            file: Some(place.directory.path().join("cutover.toml")),
            root: None,
            ..place.sources.clone()
        };
        let named = Resolved::load(&named).expect_err("refused");
        (place.load().expect_err("refused"), named)
    };
    let link = |name: &str, at: &Path| symlink("nowhere", at.join(name)).expect("linked");
    let (of_root, named) = unreadable(&|at| link("cutover.toml", at));
    assert!(matches!((of_root, named), (SettingsError::Read { .. }, SettingsError::Read { .. })));
    let (of_root, named) = unreadable(&|at| fs::create_dir(at.join("cutover.toml")).expect("made"));
    assert!(matches!((of_root, named), (SettingsError::Read { .. }, SettingsError::Read { .. })));
    let (of_root, _) = unreadable(&|at| link("cutover.toml.d", at));
    assert!(matches!(of_root, SettingsError::Read { .. }), "{of_root}");
    let (of_root, _) = unreadable(&|at| {
        fs::create_dir(at.join("cutover.toml.d")).expect("made");
        link("cutover.toml.d/10.toml", at);
    });
    assert!(matches!(of_root, SettingsError::Read { .. }), "{of_root}");
}

#[test]
fn specification_without_an_end_is_refused_at_the_limit() {
    let refused = read_file::<toml::Table>(Path::new("/dev/zero")).expect_err("refused");
    assert!(matches!(refused, SettingsError::Read { .. }), "{refused}");
}

#[test]
fn drop_ins_count_without_a_file_beside_them() {
    let place = place("").drop_in("10.toml", "[trust-policy]\nrequire_sbom = true");
    fs::remove_file(place.directory.path().join("cutover.toml")).expect("removed");
    assert!(place.load().expect("valid").settings.trust_policy.require_sbom);
}

// F3
#[test]
fn variable_that_sets_nothing_is_an_error() {
    for name in ["CUTOVER_INSTALL_JOBS", "CUTOVER_"] {
        let refused = place("").variable(name, "1").refused();
        assert!(refused.contains(name) && refused.contains("CUTOVER_SECTION__KEY"), "{refused}");
    }
    for name in OTHER_VARIABLES {
        place("").variable(name, "x").load().expect("no setting");
    }
    let refused = |name: &[u8], value: &[u8]| {
        let variable = (OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec()));
        pairs_of_text([variable].into_iter()).err().map(|error| error.to_string())
    };
    assert!(refused(b"CUTOVER_GATE__ROOT", b"/\xff").is_some_and(|text| text.contains("CUTOVER_GATE__ROOT")));
    assert!(refused(b"CUTOVER_\xff", b"1").is_some());
    assert_eq!(refused(b"PATH", b"/\xff"), None);
}

#[test]
fn missing_named_file_is_an_error() {
    let sources = Sources { file: Some("/nonexistent/cutover.toml".into()), ..Sources::default() };
    assert!(matches!(Resolved::load(&sources), Err(SettingsError::Missing(_))));
}

// F2
#[test]
fn dumped_settings_can_be_loaded_again() {
    let first =
        place("[install]\njobs = 7\n[preflight.packages]\nstorage = \"1.2.3\"\n").load().expect("valid");
    let second = place(&first.dump()).load().expect("valid");
    assert_eq!(first.settings, second.settings);
}

// F2
#[test]
fn passwords_in_urls_are_masked_and_a_masked_url_stays_unset() {
    let urls = "[schema]\nurl = \"postgres://u:hunter2@db:5432/app\"\n\
                [source]\nurls = [\"https://plain.example\", \"https://u:hunter2@a.example/x\"]\n\
                proxy = \"http://u:hunter2@proxy:3128\"\n\
                [[probes.http]]\nurl = \"http://u:hunter2@localhost/\"\n";
    let first = place(urls).load().expect("valid");
    let shown = serde_json::to_string(&first.show()).expect("JSON");
    for printed in [&shown, &first.dump()] {
        assert!(!printed.contains("hunter2"), "{printed}");
        assert!(printed.contains("postgres://u:********@db:5432/app"), "{printed}");
    }
    let second = place(&first.dump()).load().expect("valid");
    assert_eq!(second.masked, ["probes.http", "schema.url", "source.proxy", "source.urls"]);
    assert_eq!((second.settings.schema.url, second.settings.source.proxy), (None, None));
    let list = "[\"https://u:********@a.example\"]";
    let variable = place("").variable("CUTOVER_SOURCE__URLS", list).load().expect("valid");
    assert_eq!(variable.masked, ["source.urls"]);
}

#[test]
fn secrets_of_a_url_are_its_password_and_parameters_named_like_one() {
    let found = |url: &'static str| secrets_in(url).into_iter().map(|range| &url[range]).collect::<Vec<_>>();
    assert_eq!(found("postgres://u:p:w@x@host/db"), ["p:w@x"]);
    assert_eq!(found("postgres://u:a@h/db?sslmode=require&password=b#password=no"), ["a", "b"]);
    assert_eq!(found("https://h/x?token=t&q=1&api_token=u&X-Amz-Signature=s"), ["t", "u", "s"]);
    for url in [
        "https://host:80/a@b",
        "https://u@host",
        "https://u:@host",
        "https://host/?password=",
        "https://host/password=x",
        "sqlite:a:b@c",
        "s3://bucket/x",
        "",
    ] {
        assert_eq!(found(url), Vec::<&str>::new(), "{url}");
    }
    let place = place("[source]\nurls = [\"https://h/x?token=hunter2&a=b\"]\n").load().expect("valid");
    assert!(place.dump().contains("https://h/x?token=********&a=b"), "{}", place.dump());
}

#[test]
fn variables_keep_the_case_of_free_keys_and_of_nothing_else() {
    let place = place("")
        .variable("CUTOVER_PREFLIGHT__PACKAGES__Storage", "1.2.3")
        .variable("CUTOVER_GATE__GIT__WINDOW", "7")
        .load()
        .expect("valid");
    let packages: Vec<String> = place.settings.preflight.packages.keys().map(ToString::to_string).collect();
    assert_eq!(packages, ["Storage"]);
    assert_eq!(place.settings.gate.git.window, 7);
}

#[test]
fn known_keys_come_from_the_code() {
    let known = known_keys();
    for key in ["install.layout", "retention.keep", "trust-policy.crl", "preflight.packages"] {
        assert!(known.iter().any(|name| name == key), "{key} not in {known:?}");
    }
}
