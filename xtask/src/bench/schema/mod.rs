//! `cargo xtask bench schema`: every figure that changing a schema has to reach, measured on real servers in one run.
//!
//! A scene is one file: it builds its own database, prints its own table, and returns the figures of the closing table.
//! Scenes know the [`stage`], the databases ([`postgres`], [`sqlite`], [`mariadb`]), [`clients`] and [`measure`]; nothing
//! points back. Read [`SCENES`] first. A figure that is missed does not fail the command; a wrong result does, at the end.

mod additive;
mod clients;
mod copy_sqlite;
mod cutover;
mod mariadb;
mod measure;
mod peer_mariadb;
mod postgres;
mod rewrite;
mod rollback;
mod sqlite;
mod stage;
mod stall;
mod swap;

use std::path::Path;

use anyhow::{Result, bail};

use crate::{
    program::{self, Profile},
    tree,
};
use cutover::Cutover;
use measure::Measured;
pub(crate) use stage::Options;
use stage::Stage;

/// What one scene does: its figures, or why it was not run.
type Scene = fn(&Stage) -> Result<Vec<Measured>>;

/// Every scene, by the name that `--only` selects.
const SCENES: &[(&str, &str, Scene)] = &[
    ("rewrite", "One column of a large table is rewritten, PostgreSQL", rewrite::run),
    ("sqlite", "The same on SQLite, with a writer", copy_sqlite::run),
    ("additive", "A column is added to a large table", additive::run),
    ("stall", "DDL behind a transaction that holds the table", stall::run),
    ("swap", "The lock of the swap, many small tables under load", swap::run),
    ("rollback", "Taking a change back after its swap, under writers with a ledger", rollback::run),
    ("mariadb", "For orientation: pt-online-schema-change on MariaDB", peer_mariadb::run),
];

/// Runs the scenes and prints their tables, then the closing one.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let chosen: Vec<_> = SCENES
        .iter()
        .filter(|(name, ..)| {
            options.only.is_empty() || options.only.iter().any(|only| name.contains(only.as_str()))
        })
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = SCENES.iter().map(|(name, ..)| *name).collect();
        bail!("no scene has that name; there are: {}", names.join(", "));
    }
    let place = options.place.clone().unwrap_or_else(|| root.join("target/xtask/bench-schema"));
    tree::remove(&place)?;
    std::fs::create_dir_all(&place)?;
    let place = place.canonicalize()?;
    let program = match &options.program {
        Some(program) => program.clone(),
        None => program::build(root, Profile::Release)?,
    };
    let (mut measured, mut failed) = (Vec::new(), Vec::new());
    for (name, title, scene) in chosen {
        println!("## {name}: {title}\n");
        let stage =
            Stage { options: options.clone(), place: place.join(name), cutover: Cutover::new(&program) };
        std::fs::create_dir_all(&stage.place)?;
        match scene(&stage) {
            Ok(figures) => measured.extend(figures),
            Err(error) => {
                println!("\nfailed: {error:#}");
                failed.push(*name);
            }
        }
        println!();
        tree::remove(&stage.place)?;
    }
    measure::close(&measured);
    tree::remove(&place)?;
    if !failed.is_empty() {
        bail!("these scenes failed: {}", failed.join(", "));
    }
    Ok(())
}
