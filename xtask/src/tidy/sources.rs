//! What no source file may contain: bans per crate, unfinished code, module heads, machine paths.

use std::path::Path;

use anyhow::{Context, Result};

use super::{
    Finding, Tree,
    tokens::{self, Named, Scope, Then},
};

/// Paths a crate's code may not name, and why.
struct Ban {
    /// The files below this directory ...
    below: &'static str,
    /// ... except those below these.
    except: &'static [&'static str],
    /// Whether tests are bound as well.
    reach: Reach,
    /// A path is banned when it is one of these or starts with one.
    paths: &'static [&'static str],
    /// Exactly these are not.
    allowed: &'static [&'static str],
    why: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    ShippedCode,
    AllCode,
}

const BANS: &[Ban] = &[
    Ban {
        below: "crates/core/",
        except: &[],
        reach: Reach::AllCode,
        paths: &[
            "std::fs",
            // Addresses are values; what opens them is not.
            "std::net::TcpStream",
            "std::net::TcpListener",
            "std::net::UdpSocket",
            "std::net::ToSocketAddrs",
            "std::env",
            "std::thread",
            "std::process",
            "std::os",
            "std::time::SystemTime",
            "std::time::Instant",
            "jiff::Timestamp::now",
            "jiff::Zoned::now",
            "tokio",
        ],
        allowed: &[],
        why: "core decides: values in, values out (I4)",
    },
    Ban {
        below: "crates/core/",
        except: &[],
        reach: Reach::AllCode,
        paths: &["HashMap", "HashSet", "std::collections::HashMap", "std::collections::HashSet"],
        allowed: &[],
        why: "ordered maps only, so that a seed replays exactly",
    },
    Ban {
        below: "crates/bundle/src/",
        except: &[],
        reach: Reach::ShippedCode,
        paths: &[
            "std::fs",
            "File::open",
            "File::create",
            "File::options",
            "OpenOptions",
            "std::net",
            "std::env",
            "std::time::SystemTime",
            "std::time::Instant",
            "jiff",
        ],
        // An open file is a source like any other.
        allowed: &["std::fs::File"],
        why: "bundle proves: Read and Write only; no files, no sockets, time is an argument",
    },
    Ban {
        below: "crates/repo/src/",
        except: &[],
        reach: Reach::ShippedCode,
        paths: &[
            "std::net",
            "std::env",
            "std::process",
            "std::time::SystemTime",
            "std::time::Instant",
            "jiff",
        ],
        allowed: &[],
        why: "repo publishes: files come through `Fetch` and `Storage`, time is an argument",
    },
    Ban {
        below: "crates/",
        except: &[
            "crates/host/src/disk/",
            "crates/repo/src/directory.rs",
            "crates/server/src/ingest/files.rs",
            "crates/sim/",
        ],
        reach: Reach::ShippedCode,
        paths: &[
            "rustix::fs::renameat",
            "rustix::fs::renameat_with",
            "rustix::fs::rename",
            "rustix::fs::linkat",
            "rustix::fs::symlinkat",
            "rustix::fs::unlinkat",
            "rustix::fs::mkdirat",
            "rustix::fs::chmodat",
            "rustix::fs::ioctl_ficlone",
            "libc::rename",
            "libc::unlink",
            "libc::fsync",
        ],
        allowed: &[],
        why: "durable effects have one place: `cutover_host::disk`, `directory.rs` in `cutover-repo`, `ingest/files.rs` in `cutover-server`",
    },
];

/// Text that names the machine a file was written on. Written in two parts so that this file does not name it.
const MACHINE_PATHS: &[(&str, &str)] = &[("/wo", "rk/"), ("/root", "/."), ("/tmp/ba", "sh_jobs")];

/// The one registry a lock file may name.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Runs the checks on every file of the tree.
pub(super) fn check(tree: &Tree) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (path, text) in tree.rust() {
        findings.extend(head(path, text));
        let named = tokens::named(text).with_context(|| format!("failed to read `{}`", path.display()))?;
        findings.extend(banned(path, &named));
        findings.extend(unfinished(path, &named));
    }
    for (path, text) in tree.all() {
        findings.extend(machine_paths(path, text));
    }
    if let Some(lock) = tree.text("Cargo.lock") {
        findings.extend(registries(lock));
    }
    Ok(findings)
}

/// Every module says on its first lines what it owns.
fn head(path: &Path, text: &str) -> Option<Finding> {
    let first = text.lines().next().unwrap_or_default();
    // A fuzz target starts with the attribute its harness wants.
    let first = if first == "#![no_main]" { text.lines().nth(1).unwrap_or_default() } else { first };
    let head = first.strip_prefix("//!").map(str::trim);
    match head {
        Some("" | "placeholder") | None => Some(Finding::new(
            path,
            1,
            "open with `//!`: what the module owns, what it never does, the type to read first",
        )),
        Some(_) => None,
    }
}

fn banned(path: &Path, named: &[Named]) -> Vec<Finding> {
    let file = path.to_string_lossy();
    let bans = BANS.iter().filter(|ban| {
        file.starts_with(ban.below) && !ban.except.iter().any(|except| file.starts_with(except))
    });
    let mut findings = Vec::new();
    for ban in bans {
        for name in named {
            let bound = ban.reach == Reach::AllCode || (name.scope == Scope::Shipped && !is_test_file(path));
            if bound && ban.bans(&name.path) {
                findings.push(Finding::new(path, name.line, format!("`{}`: {}", name.path, ban.why)));
            }
        }
    }
    findings
}

impl Ban {
    fn bans(&self, path: &str) -> bool {
        let is_or_starts_with = |banned: &&str| {
            path == *banned || path.strip_prefix(banned).is_some_and(|rest| rest.starts_with("::"))
        };
        self.paths.iter().any(is_or_starts_with) && !self.allowed.contains(&path)
    }
}

/// Whether the whole file is compiled for tests only.
fn is_test_file(path: &Path) -> bool {
    let in_tests = path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "benches");
    in_tests || path.file_name().is_some_and(|name| name == "tests.rs" || name == "testing.rs")
}

fn unfinished(path: &Path, named: &[Named]) -> Vec<Finding> {
    let finds = |name: &Named| match (name.path.as_str(), name.then) {
        ("todo" | "unimplemented" | "dbg", Then::Bang) => Some("unfinished code"),
        ("ignore", Then::Other) => Some("a switched-off test proves nothing: mend it or remove it"),
        _ => None,
    };
    let findings = named.iter().filter_map(|name| Some((name, finds(name)?)));
    findings.map(|(name, why)| Finding::new(path, name.line, format!("`{}`: {why}", name.path))).collect()
}

fn machine_paths(path: &Path, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (one, two) in MACHINE_PATHS {
            let wanted = format!("{one}{two}");
            if line.contains(&wanted) {
                findings.push(Finding::new(
                    path,
                    number + 1,
                    format!("names a path of one machine: `{wanted}`"),
                ));
            }
        }
    }
    findings
}

fn registries(lock: &str) -> Vec<Finding> {
    let sources = lock.lines().enumerate().filter_map(|(number, line)| {
        let source = line.strip_prefix("source = \"")?.strip_suffix('"')?;
        (source != REGISTRY)
            .then(|| Finding::new("Cargo.lock", number + 1, format!("another registry: `{source}`")))
    });
    sources.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(files: &[(&str, &str)]) -> Vec<String> {
        check(&Tree::of(files)).unwrap().into_iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn core_naming_the_file_system_is_a_finding_even_in_tests() {
        let found = says(&[(
            "crates/core/src/x.rs",
            "//! Head.\n#[cfg(test)]\nmod tests {\n use std::{fmt, fs};\n}\n",
        )]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("crates/core/src/x.rs:4: `std::fs`"), "{found:?}");
    }

    #[test]
    fn bundle_may_use_files_in_tests_only() {
        let shipped = "//! Head.\nfn a() { std::fs::read(\"x\"); }\n";
        let tests = "//! Head.\n#[cfg(test)]\nmod tests { fn a() { std::fs::read(\"x\"); } }\n";
        assert_eq!(says(&[("crates/bundle/src/x.rs", shipped)]).len(), 1);
        assert_eq!(says(&[("crates/bundle/src/x.rs", tests)]).len(), 0);
    }

    #[test]
    fn raw_renames_outside_the_disk_module_are_findings() {
        let source = "//! Head.\nuse rustix::fs::{openat, renameat};\n";
        assert_eq!(says(&[("crates/host/src/disk/real.rs", source)]).len(), 0);
        assert_eq!(says(&[("crates/host/src/releases.rs", source)]).len(), 1);
    }

    #[test]
    fn a_module_without_a_head_is_a_finding() {
        assert_eq!(says(&[("xtask/src/x.rs", "fn a() {}\n")]).len(), 1);
        assert_eq!(says(&[("xtask/src/x.rs", "//! Owns a.\nfn a() {}\n")]).len(), 0);
    }

    #[test]
    fn unfinished_code_and_switched_off_tests_are_findings() {
        let source = "//! Head.\nfn a() { todo!() }\n#[test]\n#[ignore = \"slow\"]\nfn b() {}\n";
        assert_eq!(says(&[("xtask/src/x.rs", source)]).len(), 2);
    }

    #[test]
    fn a_machine_path_and_a_foreign_registry_are_findings() {
        let path = format!("see {}{}main", MACHINE_PATHS[0].0, MACHINE_PATHS[0].1);
        assert_eq!(says(&[("README.md", &path)]).len(), 1);
        let lock = "source = \"registry+https://example.com/index\"\n";
        assert_eq!(says(&[("Cargo.lock", lock)]).len(), 1);
        assert_eq!(says(&[("Cargo.lock", &format!("source = \"{REGISTRY}\"\n"))]).len(), 0);
    }
}
