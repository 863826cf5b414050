//! One table change as PostgreSQL carries it out: names of artefacts, columns of the shadow table, and how a row of one
//! shape becomes a row of the other.
//!
//! The shadow table T is built under the old column names in a schema of its own, so that definitions of the source S which
//! name columns hold for it word by word; the swap renames its columns, and the server rewrites whatever names them. For
//! every old column that T does not hold unchanged it has a hidden column `_cutover_<name>` with the old value: the old
//! version's view shows it, and the way back copies it, so that a rollback returns what was there, bit by bit. It asks nothing
//! of clients (`docs/decisions/0065-what-a-hidden-table-or-column-asks-of-nobody.md`).

use super::{
    relation::{Attribute, Relation, find},
    session::{Session, ident, literal, qualified},
};
use crate::{
    change::{ColumnChange, ColumnFate, RowStep, TableChange},
    engine::Task,
    error::{Error, Refusal},
    ir::{Ident, References},
    state::artefact,
};

/// The schemas in which a change keeps what is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Artefacts {
    /// Functions, keys to sync, notes.
    pub(crate) base: String,
    /// T until the swap.
    pub(crate) new: String,
    /// S after the swap.
    pub(crate) old: String,
}

impl Artefacts {
    /// The names for a table of a migration.
    pub(crate) fn of(migration: &str, table: &Ident) -> Self {
        let name = |what| artefact(what, &[migration, table.as_str()]);
        Self { base: name("base"), new: name("new"), old: name("old") }
    }

    /// A table or function of the change's own, qualified.
    pub(crate) fn own(&self, name: &str) -> String {
        qualified(&self.base, name)
    }
}

/// A column of the shadow table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its name while T is built.
    pub(crate) build: String,
    /// Its name after the swap.
    pub(crate) name: String,
    /// Its type as SQL text.
    pub(crate) kind: String,
    pub(crate) not_null: bool,
    pub(crate) default: Option<String>,
    pub(crate) generated: bool,
    /// The old column that it holds unchanged.
    pub(crate) holds: Option<String>,
    /// Whether it is ours: the old value of a column that changes or goes.
    pub(crate) hidden: bool,
    /// The old column whose settings it takes over.
    pub(crate) like: Option<String>,
}

/// One table change with the names it has here.
pub(crate) struct Shape<'a> {
    pub(crate) change: &'a TableChange,
    pub(crate) artefacts: Artefacts,
    /// The schema of the table.
    pub(crate) schema: String,
    /// The old shape's columns in their order, from the source's catalog.
    pub(crate) old_columns: Vec<Attribute>,
    /// Columns of T in order; the hidden ones last.
    pub(crate) targets: Vec<Target>,
    /// The key by its old names.
    pub(crate) key: Vec<String>,
    /// Whether there are deferrable constraints: then ON CONFLICT has to name the key.
    pub(crate) is_deferrable: bool,
}

/// The name of the hidden column for an old one.
pub(crate) fn hidden_name(old: &str) -> String {
    let mut name = format!("_cutover_{old}");
    if name.len() > 63 {
        name = artefact("c", &[old]);
    }
    name
}

impl<'a> Shape<'a> {
    /// Works out the shape of a change over its source table.
    pub(crate) fn new(
        task: &Task<'_>,
        change: &'a TableChange,
        source: &Relation,
        schema: &str,
    ) -> Result<Self, Error> {
        let set_by_rows = |then: &Ident| {
            change.rows.iter().any(|step| match step {
                RowStep::Sql { set, .. } => set.iter().any(|(name, _)| name == then),
                RowStep::Function { write, .. } => write.contains(then),
            })
        };
        let plain = |column: &ColumnChange| {
            column.up.is_none()
                && column.type_now == column.type_then
                && !column.then.as_ref().is_some_and(set_by_rows)
        };
        let mut targets = Vec::new();
        for column in &change.columns {
            let Some(then) = &column.then else { continue };
            let now = column.now.as_ref().map(|now| now.as_str().to_owned());
            let like = now.as_deref().and_then(|now| source.column(now));
            let same_type = column.type_now == column.type_then;
            targets.push(Target {
                build: now.clone().unwrap_or_else(|| then.as_str().to_owned()),
                name: then.as_str().to_owned(),
                kind: column.type_then.clone().unwrap_or_else(|| "text".to_owned()),
                not_null: !column.nullable_then,
                default: column.default_then.clone(),
                generated: column.generated,
                holds: now.clone().filter(|_| plain(column)),
                hidden: false,
                like: like.filter(|_| same_type).map(|like| like.name.clone()),
            });
        }
        for column in &source.columns {
            if column.generated || targets.iter().any(|target| target.holds.as_ref() == Some(&column.name)) {
                continue;
            }
            let name = hidden_name(&column.name);
            targets.push(Target {
                build: name.clone(),
                name,
                kind: column.base_kind.clone(),
                not_null: false,
                default: None,
                generated: false,
                holds: Some(column.name.clone()),
                hidden: true,
                like: None,
            });
        }
        let key = source.key().and_then(|key| key.plain_columns.clone()).unwrap_or_default();
        let key_width = source
            .key()
            .and_then(|index| index.tail.split_once(" INCLUDE ").map(|_| change.row_key.len()))
            .unwrap_or(key.len());
        let key: Vec<String> = key.into_iter().take(key_width.max(1)).collect();
        Ok(Self {
            change,
            artefacts: Artefacts::of(task.migration, &change.table),
            schema: schema.to_owned(),
            old_columns: source.columns.clone(),
            targets,
            key,
            is_deferrable: source
                .indexes
                .iter()
                .any(|index| index.constraint.as_ref().is_some_and(|(_, rest)| rest.contains(" DEFERRABLE"))),
        })
    }

    /// The shape of a change whose table does not exist (yet).
    pub(crate) fn without_source(task: &Task<'_>, change: &'a TableChange, schema: &str) -> Self {
        Self {
            change,
            artefacts: Artefacts::of(task.migration, &change.table),
            schema: schema.to_owned(),
            old_columns: Vec::new(),
            targets: Vec::new(),
            key: Vec::new(),
            is_deferrable: false,
        }
    }

    /// The table's name before the migration, qualified.
    pub(crate) fn name_now(&self) -> String {
        qualified(&self.schema, self.change.table.as_str())
    }

    /// The table's name afterwards, qualified.
    pub(crate) fn name_then(&self) -> String {
        qualified(&self.schema, self.change.name_then().as_str())
    }

    /// T while it is built, qualified.
    pub(crate) fn shadow(&self) -> String {
        qualified(&self.artefacts.new, self.change.table.as_str())
    }

    /// S after the swap, qualified.
    pub(crate) fn retired(&self) -> String {
        qualified(&self.artefacts.old, self.change.table.as_str())
    }

    /// The column of T that stands for an old one: the one that holds it, which is not always the one that replaces it.
    pub(crate) fn holder(&self, old: &str) -> Option<&Target> {
        self.targets.iter().find(|target| target.holds.as_deref() == Some(old))
    }

    /// The column of T that has the old one's name while it is built.
    pub(crate) fn built_as(&self, old: &str) -> Option<&Target> {
        self.targets.iter().find(|target| !target.hidden && target.build == old)
    }

    /// Columns that T is written with, in the order of [`forward`](Self::forward).
    pub(crate) fn written(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter().filter(|target| !target.generated)
    }

    /// Whether T can hold every row that S can: then writing it cannot fail.
    pub(crate) fn is_as_wide(&self) -> bool {
        let every = self.targets.iter().all(|target| {
            target.hidden
                || target.holds.as_deref().is_some_and(|old| {
                    let old = self.old_columns.iter().find(|column| column.name == old);
                    old.is_some_and(|old| old.not_null || !target.not_null)
                })
                || (target.default.is_some() && self.change.columns.iter().all(|column| column.up.is_none()))
        });
        every && !self.is_deferrable && self.change.add_constraints.is_empty() && self.change.rows.is_empty()
    }

    /// `SELECT` of the rows of T (columns in the order of [`written`](Self::written)) over rows of S.
    pub(crate) fn forward(&self, source: &str) -> String {
        self.forward_with(source, &[])
    }

    /// As [`forward`](Self::forward), after expressions over S by the names given.
    pub(crate) fn forward_with(&self, source: &str, more: &[(String, String)]) -> String {
        let hidden = self
            .targets
            .iter()
            .filter(|target| target.hidden)
            .map(|target| (ident(target.holds.as_deref().unwrap_or_default()), ident(&target.name)));
        let passed: Vec<(String, String)> = more.iter().cloned().chain(hidden).collect();
        let query = self.change.up_query(source, &passed);
        let names = more.iter().map(|(_, name)| name.clone());
        let names: Vec<String> = names.chain(self.written().map(|target| ident(&target.name))).collect();
        format!("SELECT {} FROM ({query}) AS _cutover_up", names.join(", "))
    }

    /// Columns that S is written with: all but generated ones.
    pub(crate) fn written_back(&self) -> impl Iterator<Item = &Attribute> {
        self.old_columns.iter().filter(|column| !column.generated)
    }

    /// `SELECT` of the rows of S (columns in the order of [`written_back`](Self::written_back)) over rows of T.
    pub(crate) fn backward(&self, source: &str) -> String {
        let items: Vec<String> = self
            .written_back()
            .map(|column| {
                let holder = self.holder(&column.name).map_or(column.name.as_str(), |target| &target.name);
                format!("{} AS {}", ident(holder), ident(&column.name))
            })
            .collect();
        format!("SELECT {} FROM {source}", items.join(", "))
    }

    /// What is true of a row `n` of the new shape when a foreign key of it finds no row.
    pub(crate) fn orphaned(&self, columns: &[Ident], references: &References) -> String {
        let other = qualified(&self.schema, references.table.as_str());
        let joined: Vec<String> = columns
            .iter()
            .zip(&references.columns)
            .map(|(a, b)| format!("o.{} = n.{}", b.quoted(), a.quoted()))
            .collect();
        let not_null: Vec<String> =
            columns.iter().map(|column| format!("n.{} IS NOT NULL", column.quoted())).collect();
        format!(
            "({} AND NOT EXISTS (SELECT 1 FROM {other} AS o WHERE {}))",
            not_null.join(" AND "),
            joined.join(" AND ")
        )
    }

    /// A row of the old shape inside a BEFORE trigger of S, as what follows FROM: generated columns have no value there yet.
    pub(crate) fn new_row_of_old(&self) -> String {
        let plain: Vec<(String, String)> = self
            .written_back()
            .map(|column| (format!("NEW.{}", ident(&column.name)), ident(&column.name)))
            .collect();
        self.with_generated(&plain)
    }

    /// As [`new_row_of_old`](Self::new_row_of_old), in a BEFORE trigger of T after the swap.
    pub(crate) fn new_row_back(&self) -> String {
        let plain: Vec<(String, String)> = self
            .written_back()
            .filter_map(|column| {
                let holder = self.holder(&column.name).or_else(|| self.built_as(&column.name))?;
                Some((format!("NEW.{}", ident(&holder.name)), ident(&column.name)))
            })
            .collect();
        self.with_generated(&plain)
    }

    /// A row of the old shape from the columns that are written, by their expressions and names.
    fn with_generated(&self, plain: &[(String, String)]) -> String {
        let plain: Vec<String> = plain.iter().map(|(value, name)| format!("{value} AS {name}")).collect();
        let generated: String = self
            .old_columns
            .iter()
            .filter(|column| column.generated)
            .filter_map(|column| Some(format!(", ({}) AS {}", column.default.as_ref()?, ident(&column.name))))
            .collect();
        format!(
            "(SELECT _cutover_row.*{generated} FROM (SELECT {}) AS _cutover_row) AS _cutover_old",
            plain.join(", ")
        )
    }

    /// A row of the new shape inside a BEFORE trigger of T after the swap, as what follows FROM. Expressions of generated columns
    /// are those that T was built with, by the names of that time.
    pub(crate) fn new_row_then(&self) -> String {
        let visible = || self.targets.iter().filter(|target| !target.hidden);
        let built: Vec<String> = visible()
            .filter(|target| !target.generated)
            .map(|target| format!("NEW.{} AS {}", ident(&target.name), ident(&target.build)))
            .collect();
        let shown: Vec<String> = visible()
            .map(|target| {
                let expression = self
                    .old_columns
                    .iter()
                    .find(|column| target.generated && Some(&column.name) == target.like.as_ref())
                    .and_then(|column| column.default.as_ref());
                let value = match (expression, target.generated) {
                    (Some(expression), _) => format!("({expression})"),
                    (None, true) => format!("NEW.{}", ident(&target.name)),
                    (None, false) => ident(&target.build),
                };
                format!("{value} AS {}", ident(&target.name))
            })
            .collect();
        format!(
            "(SELECT {} FROM (SELECT {}) AS _cutover_row) AS _cutover_new",
            shown.join(", "),
            built.join(", ")
        )
    }

    /// The types of the key's columns in S and in T.
    pub(crate) fn key_types(&self) -> Vec<(String, String)> {
        self.key
            .iter()
            .map(|name| {
                let old = self.old_columns.iter().find(|column| column.name == *name);
                let old = old.map_or_else(|| "text".to_owned(), |column| column.kind.clone());
                let new = self.key_target(name).map_or_else(|| old.clone(), |target| target.kind.clone());
                (old, new)
            })
            .collect()
    }

    /// The column of T by which a row is found, for a key column of S.
    pub(crate) fn key_target(&self, old: &str) -> Option<&Target> {
        self.holder(old).filter(|target| !target.hidden).or_else(|| self.built_as(old))
    }

    /// Whether the key can be followed into T; a refusal otherwise.
    pub(crate) fn check_key(&self) -> Option<Refusal> {
        for name in &self.key {
            let dropped = Refusal::new(
                format!(
                    "column `{name}` is the key by which rows of `{}` are copied, and it goes",
                    self.change.table
                ),
                "Add another primary key in a migration before this one.",
            );
            let Some(target) = self.key_target(name) else { return Some(dropped) };
            if target.holds.as_deref() == Some(name) {
                continue;
            }
            let column = self
                .change
                .columns
                .iter()
                .find(|column| column.now.as_ref().is_some_and(|now| now.as_str() == name));
            let whole = ["smallint", "integer", "bigint"];
            let text = |kind: &str| {
                kind == "text" || kind.starts_with("character varying") || kind.starts_with("varchar")
            };
            let keeps_order = column.is_some_and(|column| {
                let (now, then) =
                    (column.type_now.as_deref().unwrap_or(""), column.type_then.as_deref().unwrap_or(""));
                // A plain cast is what the planner writes where the migration says nothing.
                let cast = format!("CAST({} AS {then})", ident(name));
                column.up.as_ref().is_none_or(|up| *up == cast)
                    && ((whole.contains(&now) && whole.contains(&then)) || (text(now) && text(then)))
            });
            if !keeps_order {
                return Some(Refusal::new(
                    format!(
                        "column `{name}` is the key by which rows of `{}` are copied, and its values change",
                        self.change.table
                    ),
                    "Key columns can become a wider integer or a wider text; else add a new key column first.",
                ));
            }
        }
        None
    }

    /// The new columns whose values are computed: they and the hidden ones have to be kept equal after the swap.
    pub(crate) fn computed(&self) -> Vec<&Target> {
        let computed = self
            .targets
            .iter()
            .filter(|target| !target.hidden && !target.generated && target.holds.is_none());
        computed.filter(|target| self.depends_on_old(target)).collect()
    }

    /// Whether a column's value comes from old ones (a new column without `up` has its default only).
    fn depends_on_old(&self, target: &Target) -> bool {
        let column = self
            .change
            .columns
            .iter()
            .find(|column| column.then.as_ref().is_some_and(|then| then.as_str() == target.name));
        let by_rows = self.change.rows.iter().any(|step| match step {
            RowStep::Sql { set, .. } => set.iter().any(|(name, _)| name.as_str() == target.name),
            RowStep::Function { .. } => false,
        });
        by_rows || column.is_some_and(|column| column.up.is_some() || column.fate == ColumnFate::Alter)
    }

    /// The hidden columns of T with the old column each stands for.
    pub(crate) fn hidden(&self) -> Vec<(&Target, &Attribute)> {
        self.targets
            .iter()
            .filter(|target| target.hidden)
            .filter_map(|target| {
                let old =
                    self.old_columns.iter().find(|column| target.holds.as_ref() == Some(&column.name))?;
                Some((target, old))
            })
            .collect()
    }
}

/// Notes that the engine keeps with a change: what a rollback or a resumed run has to know and the catalog does not say.
pub(crate) fn note(artefacts: &Artefacts, key: &str, value: &str) -> String {
    format!(
        "INSERT INTO {} (key, value) VALUES ({}, {}) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        artefacts.own("note"),
        literal(key),
        literal(value)
    )
}

/// Reads a note; `None` when it, or the whole schema, is absent.
pub(crate) fn read_note(
    session: &mut Session,
    artefacts: &Artefacts,
    key: &str,
) -> Result<Option<String>, Error> {
    if find(session, &artefacts.base, "note")?.is_none() {
        return Ok(None);
    }
    session.value(&format!("SELECT value FROM {} WHERE key = {}", artefacts.own("note"), literal(key)))
}

/// The columns of S that a copy reads, as a SELECT list over the alias `s`.
pub(crate) fn columns_of(shape: &Shape<'_>) -> String {
    shape.old_columns.iter().map(|column| format!("s.{}", ident(&column.name))).collect::<Vec<_>>().join(", ")
}
