//! What exists: the engine-neutral picture of tables and of everything that hangs on them.
//!
//! Engines fill it in ([`crate::engine::Engine::observe`]); the planner and the lints read it. What an engine has to preserve
//! beyond this picture it reads itself.

use std::collections::BTreeMap;

use cutover_core::model::Digest;
use serde::{Deserialize, Serialize};

use crate::{
    error::Refusal,
    ir::{Dialect, Ident, canonical_json},
};

/// Tables, and facts about the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    /// The engine.
    pub dialect: Dialect,
    /// Its version: `15.18`, `3.50.4`.
    pub server_version: String,
    /// The tables that were asked for and exist, by name.
    pub tables: BTreeMap<Ident, Table>,
    /// What changes by the minute; not part of [`digest`](Self::digest).
    pub facts: Facts,
}

/// What is true at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Bytes that can still be written where the database lies; `None` if nobody can say.
    pub disk_free_bytes: Option<u64>,
    /// The oldest running transaction.
    pub oldest_transaction: Option<OldTransaction>,
    /// Whole-database obstacles, such as SQLite without WAL.
    pub obstacles: Vec<Refusal>,
}

/// A transaction that others have to wait for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldTransaction {
    /// How long it runs, in seconds.
    pub seconds: u64,
    /// Whose it is: `pid 812`.
    pub owner: String,
}

/// What kind of relation a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableKind {
    /// An ordinary table.
    Ordinary,
    /// A table cut into partitions.
    Partitioned,
    /// A partition.
    Partition,
    /// A view.
    View,
    /// A virtual or foreign table.
    Virtual,
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its name.
    pub name: Ident,
    /// What it is.
    pub kind: TableKind,
    /// Its columns, in order.
    pub columns: Vec<Column>,
    /// The columns of its primary key, in order; empty without one.
    pub primary_key: Vec<Ident>,
    /// The columns by which rows are found while they are copied: the primary key, or a unique index over NOT NULL columns.
    /// Empty when there is none, or when the engine has a key of its own ([`has_row_number`](Self::has_row_number)).
    pub row_key: Vec<Ident>,
    /// Whether rows have a number of their own (SQLite's rowid).
    pub has_row_number: bool,
    /// Its indexes, those of constraints too.
    pub indexes: Vec<Index>,
    /// Its constraints.
    pub constraints: Vec<Constraint>,
    /// Its triggers, without ours.
    pub triggers: Vec<Dependent>,
    /// Views, functions, rules, policies and the like that name it.
    pub dependents: Vec<Dependent>,
    /// Foreign keys of other tables that point here.
    pub referenced_by: Vec<Reference>,
    /// Why the copy protocol cannot be used on it, each with a way out.
    pub obstacles: Vec<Refusal>,
    /// The rest of what makes it what it is, as far as a change of it would matter: owner, grants, options. By kind.
    pub other: BTreeMap<String, String>,
    /// How large it is; not part of [`Catalog::digest`].
    pub size: Size,
}

/// How large a table is, by the engine's estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Rows.
    pub rows: u64,
    /// Bytes of the table.
    pub bytes: u64,
    /// Bytes of its indexes.
    pub index_bytes: u64,
}

/// One column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: Ident,
    /// Its type, as the engine prints it.
    pub kind: String,
    /// Whether it may be NULL.
    pub nullable: bool,
    /// Its default as SQL text.
    pub default: Option<String>,
    /// Its expression, when it is generated.
    pub generated: Option<String>,
    /// Whether the engine numbers it (identity, serial, INTEGER PRIMARY KEY).
    pub numbered: bool,
    /// Its collation, when it is not the default.
    pub collation: Option<String>,
}

/// One index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Its name, as people know it.
    pub name: Ident,
    /// Its name in the catalog, when it differs: SQLite's copies of indexes cannot keep the name.
    pub physical: Option<String>,
    /// Its columns in order; an expression is `None`.
    pub columns: Vec<Option<Ident>>,
    /// Whether it is unique.
    pub unique: bool,
    /// Whether it holds some rows only.
    pub partial: bool,
    /// The constraint it belongs to.
    pub of_constraint: Option<Ident>,
    /// The statement that makes it, as the engine prints it.
    pub definition: String,
}

/// What a constraint demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConstraintKind {
    /// PRIMARY KEY.
    PrimaryKey,
    /// UNIQUE.
    Unique,
    /// CHECK.
    Check,
    /// FOREIGN KEY.
    ForeignKey,
    /// EXCLUDE.
    Exclusion,
}

/// One constraint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    /// Its name; SQLite's may have none.
    pub name: Option<Ident>,
    /// What it demands.
    pub kind: ConstraintKind,
    /// The columns it is about, as far as the engine says.
    pub columns: Vec<Ident>,
    /// As the engine prints it, without `CONSTRAINT name`.
    pub definition: String,
}

/// Something that hangs on a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependent {
    /// `trigger`, `view`, `function`, `rule`, `policy`, `materialized view` ...
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The statement that makes it.
    pub definition: String,
    /// Columns of the table that it names; `None` when the engine cannot say.
    pub columns: Option<Vec<Ident>>,
}

/// A foreign key of another table (or of the table itself).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Whose it is.
    pub table: Ident,
    /// Its name, if it has one.
    pub name: Option<Ident>,
    /// The columns here that it points to.
    pub columns: Vec<Ident>,
}

impl Catalog {
    /// SHA-256 of what the plan is based on: everything but facts and sizes.
    pub fn digest(&self) -> Digest {
        let mut plain = self.clone();
        plain.facts = Facts::default();
        plain.server_version = String::new();
        for table in plain.tables.values_mut() {
            table.size = Size::default();
        }
        let value = serde_json::to_value(&plain).expect("a catalog of strings is JSON");
        Digest::of(canonical_json(&value).as_bytes())
    }
}

impl Table {
    /// The column of this name.
    pub fn column(&self, name: &Ident) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == *name)
    }

    /// The index of this name.
    pub fn index(&self, name: &Ident) -> Option<&Index> {
        self.indexes.iter().find(|index| index.name == *name)
    }

    /// The constraint of this name.
    pub fn constraint(&self, name: &Ident) -> Option<&Constraint> {
        self.constraints.iter().find(|constraint| constraint.name.as_ref() == Some(name))
    }
}
