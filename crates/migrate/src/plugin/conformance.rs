//! The conformance kit: does a plugin keep to the protocol?

use std::path::Path;

use serde_json::json;

use super::{DEADLINE, MigrationPlugin as _, Plugin};
use crate::{
    engine::RowChunk,
    error::Error,
    ir::{Ident, Op},
    state::sql::Value,
};

/// One rule, and whether the plugin keeps it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Check {
    /// The rule, as a sentence.
    pub rule: &'static str,
    /// What was wrong; `None` when it is kept.
    pub wrong: Option<String>,
}

/// Tests a plugin with rows of these columns, which it is asked to rewrite all. Every rule is tried, on a fresh process each.
///
/// # Errors
/// The program cannot be started at all.
pub fn conformance(program: &Path, columns: &[String], sample: &[Vec<Value>]) -> Result<Vec<Check>, Error> {
    drop(Plugin::start(program, DEADLINE)?);
    let chunk = RowChunk { columns: columns.to_vec(), rows: sample.to_vec() };
    let fresh = || Plugin::start(program, DEADLINE);
    let names: Vec<Ident> = columns.iter().filter_map(|name| Ident::new(name.as_str()).ok()).collect();
    let step = |plugin: &Plugin| Op::Plugin {
        table: Ident::new("conformance").expect("a plain name"),
        plugin: format!("{}@{}", plugin.name(), plugin.version()),
        read: names.clone(),
        write: names.clone(),
        check: None,
    };
    let mut checks = Vec::new();
    let mut rule =
        |rule: &'static str, kept: Result<(), String>| checks.push(Check { rule, wrong: kept.err() });
    let said = |error: Error| error.to_string();
    rule("hello gives name, version and protocol", fresh().map(drop).map_err(said));
    rule(
        "can_handle answers with a boolean",
        (|| {
            let mut plugin = fresh().map_err(said)?;
            let step = step(&plugin);
            plugin.can_handle(&step).map(drop).map_err(said)
        })(),
    );
    rule(
        "plan answers",
        (|| {
            let mut plugin = fresh().map_err(said)?;
            let step = step(&plugin);
            plugin.plan(&step, 1000).map(drop).map_err(said)
        })(),
    );
    let applied = (|| fresh()?.rows("apply", &chunk))();
    rule(
        "apply returns as many rows as it was given",
        match &applied {
            Ok(rows) if rows.rows.len() == chunk.rows.len() => Ok(()),
            Ok(rows) => Err(format!("{} rows for {}", rows.rows.len(), chunk.rows.len())),
            Err(error) => Err(error.to_string()),
        },
    );
    rule(
        "apply gives the same for the same rows, in one process and in another",
        (|| {
            let mut plugin = fresh().map_err(said)?;
            let once = plugin.rows("apply", &chunk).map_err(said)?;
            let twice = plugin.rows("apply", &chunk).map_err(said)?;
            let other = applied.as_ref().map_err(ToString::to_string)?;
            if once == twice && once == *other { Ok(()) } else { Err("the answers differ".to_owned()) }
        })(),
    );
    rule(
        "apply of no rows returns no rows",
        (|| {
            let none = RowChunk { columns: columns.to_vec(), rows: Vec::new() };
            let rows = fresh().map_err(said)?.rows("apply", &none).map_err(said)?;
            if rows.rows.is_empty() { Ok(()) } else { Err("it made rows up".to_owned()) }
        })(),
    );
    rule(
        "verify accepts what apply returned",
        (|| {
            let applied = applied.as_ref().map_err(ToString::to_string)?;
            fresh().map_err(said)?.rows("verify", applied).map(drop).map_err(said)
        })(),
    );
    rule(
        "an unknown method is answered with ok = false, and the next call works",
        (|| {
            let mut plugin = fresh().map_err(said)?;
            match plugin.call(json!({ "method": "no-such-method" })) {
                Ok(_) => return Err("it said ok".to_owned()),
                Err(Error::Custom { .. }) => {}
                Err(error) => return Err(error.to_string()),
            }
            plugin.rows("apply", &chunk).map(drop).map_err(said)
        })(),
    );
    Ok(checks)
}
