//! The SQL of one shadow copy: names of what we make, keys, the new table, triggers both ways, views of the old version.
//!
//! Text only; nothing here talks to the database. `S` is the table as clients know it now, `T` its copy; after the swap `T` has
//! the name of `S`, and `S` is called `old`.

use rusqlite::Connection;

use super::{
    catalog::{self, IndexInfo},
    ddl::{self, Rule, TableDef},
};
use crate::{
    change::{ColumnFate, NewConstraint, TableChange, quoted},
    engine::Task,
    error::Error,
    ir::{Ident, OnReject},
    state::artefact,
};

/// Text as an SQL identifier.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The names of what one change of one migration makes.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) shadow: String,
    pub(super) old: String,
    pub(super) log: String,
    pub(super) back: String,
    /// Keys of rows that were set aside.
    pub(super) aside: String,
    pub(super) trash: String,
    /// Indexes that hold no row and keep VACUUM from numbering rows anew: of the new table, of the old one.
    pub(super) pins: [String; 2],
    parts: [String; 2],
}

impl Names {
    pub(super) fn of(task: &Task<'_>, change: &TableChange) -> Self {
        let parts = [task.migration.to_owned(), change.table.to_string()];
        let name = |what: &str| artefact(what, &[&parts[0], &parts[1]]);
        Self {
            shadow: name("new"),
            old: name("old"),
            log: name("log"),
            back: name("back"),
            aside: name("aside"),
            trash: name("trash"),
            pins: [name("pin"), name("pinold")],
            parts: parts.clone(),
        }
    }

    pub(super) fn trigger(&self, what: &str) -> String {
        artefact("on", &[&self.parts[0], &self.parts[1], what])
    }
}

/// The view through which code of a version sees a table.
pub(super) fn view_name(table: &Ident, version: &str) -> String {
    format!("{table}_v{version}")
}

/// A unique index: its columns with their collations, and the rows it holds when they are not all.
pub(super) struct Unique {
    columns: Vec<(String, String)>,
    filter: Option<String>,
}

impl Unique {
    /// The unique ones of some indexes.
    pub(super) fn among(indexes: &[IndexInfo]) -> Vec<Self> {
        let unique = indexes.iter().filter(|index| index.unique);
        let unique = unique.map(|index| Self {
            columns: index
                .columns
                .iter()
                .filter_map(|(name, collation)| Some((name.clone()?, collation.clone())))
                .collect(),
            filter: index.filter.clone(),
        });
        unique.filter(|unique| !unique.columns.is_empty()).collect()
    }
}

/// The views by which versions before a migration go on seeing a table in its old shape.
pub(super) fn views_shown(task: &Task<'_>, change: &TableChange) -> Vec<String> {
    task.versions.shown(&change.table).map(|version| view_name(&change.table, version)).collect()
}

/// What a change needs to know about both tables.
pub(super) struct Shape<'c> {
    pub(super) change: &'c TableChange,
    pub(super) names: Names,
    /// The declaration of the old table.
    pub(super) def: TableDef,
    /// The indexes of the old table.
    pub(super) indexes: Vec<IndexInfo>,
    /// Key expressions in the old table, quoted.
    pub(super) key_now: Vec<String>,
    /// Key expressions in the new table, quoted.
    pub(super) key_then: Vec<String>,
    /// Whether the key is a row number that no column shows: it is written explicitly.
    pub(super) numbered: bool,
    /// Whether VACUUM may change the keys.
    pub(super) unstable: bool,
}

impl<'c> Shape<'c> {
    /// Reads the declaration of the old table, which is called `old_name` at the moment.
    pub(super) fn read(
        connection: &Connection,
        task: &Task<'_>,
        change: &'c TableChange,
        old_name: &str,
    ) -> Result<Self, Error> {
        let sql = catalog::definition(connection, old_name)?
            .ok_or_else(|| Error::Damaged(format!("table `{old_name}` is gone")))?;
        let def = ddl::table(&sql)
            .ok_or_else(|| Error::Damaged(format!("the definition of `{}` cannot be read", change.table)))?;
        let mut indexes = catalog::indexes(connection, old_name)?;
        indexes.retain(|index| !catalog::is_ours(&index.name));
        let then = |name: &str| -> Result<String, Error> {
            let found = change
                .columns
                .iter()
                .find(|column| column.now.as_ref().is_some_and(|now| now.as_str() == name));
            let then = found.and_then(|column| column.then.as_ref());
            then.map(Ident::quoted).ok_or_else(|| Error::Damaged(format!("the key column `{name}` is gone")))
        };
        let pk = catalog::texts(
            connection,
            "SELECT name, type FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk",
            &[old_name],
        )?;
        let pk: Vec<(String, String)> = pk
            .into_iter()
            .map(|row| (row[0].clone().unwrap_or_default(), row[1].clone().unwrap_or_default()))
            .collect();
        // `INTEGER PRIMARY KEY DESC` on the column is no row number; then there is an index for the key.
        let alias = !def.without_rowid()
            && pk.len() == 1
            && pk[0].1.eq_ignore_ascii_case("integer")
            && !indexes.iter().any(|index| index.origin == "pk");
        let (key_now, key_then, numbered) = if def.without_rowid() {
            let now = pk.iter().map(|(name, _)| quote(name)).collect();
            let then = pk.iter().map(|(name, _)| then(name)).collect::<Result<_, _>>()?;
            (now, then, false)
        } else if alias {
            (vec![quote(&pk[0].0)], vec![then(&pk[0].0)?], false)
        } else {
            let taken = |word: &str| {
                let in_old = def.columns.iter().any(|column| column.name.eq_ignore_ascii_case(word));
                in_old
                    || change
                        .columns
                        .iter()
                        .filter_map(|column| column.then.as_ref())
                        .any(|name| name.as_str().eq_ignore_ascii_case(word))
            };
            let word =
                ["rowid", "_rowid_", "oid"].into_iter().find(|word| !taken(word)).ok_or_else(|| {
                    Error::refused(
                        format!("`{}` has columns called rowid, _rowid_ and oid", change.table),
                        "Rename one of them with your own statements first.",
                    )
                })?;
            (vec![word.to_owned()], vec![word.to_owned()], true)
        };
        Ok(Self {
            change,
            names: Names::of(task, change),
            def,
            indexes,
            key_now,
            key_then,
            numbered,
            unstable: numbered,
        })
    }

    /// The keys as the projections pass them: expressions over a source made by [`source_now`](Self::source_now) and the like.
    pub(super) fn passed(&self) -> Vec<(String, String)> {
        (0..self.key_now.len()).map(|at| (key_name(at), key_name(at))).collect()
    }

    fn source(table: &str, keys: &[String], condition: &str) -> String {
        let keys: Vec<String> =
            keys.iter().enumerate().map(|(at, key)| format!("{key} AS {}", key_name(at))).collect();
        format!("(SELECT {}, * FROM {table} WHERE {condition}) AS _cutover_source", keys.join(", "))
    }

    /// Rows of the old table, called `table` at the moment.
    pub(super) fn source_now(&self, table: &str, condition: &str) -> String {
        Self::source(table, &self.key_now, condition)
    }

    /// Rows of the new table, called `table` at the moment.
    pub(super) fn source_then(&self, table: &str, condition: &str) -> String {
        Self::source(table, &self.key_then, condition)
    }

    /// `k` or `(k1, k2)`.
    pub(super) fn tuple(keys: &[String]) -> String {
        if keys.len() == 1 { keys[0].clone() } else { format!("({})", keys.join(", ")) }
    }

    /// `(k1, k2) <op> (v1, v2)`.
    pub(super) fn compare(keys: &[String], op: &str, values: &[String]) -> String {
        format!("{} {op} {}", Self::tuple(keys), Self::tuple(values))
    }

    fn equal(keys: &[String], values: &[String]) -> String {
        keys.iter()
            .zip(values)
            .map(|(key, value)| format!("{key} IS {value}"))
            .collect::<Vec<_>>()
            .join(" AND ")
    }

    /// Whether rows that do not fit are set aside.
    pub(super) fn sets_aside(&self) -> bool {
        self.change.on_reject == OnReject::Quarantine
    }

    /// A query of the rows of the old table that satisfy `condition` and that hold a value which would not come back from the
    /// new table: what the migration says about them is not true, or a cast loses something. Keys, then the column's name.
    /// `None` when there is no such column, or when row steps change values on purpose.
    pub(super) fn lossy(&self, condition: &str) -> Option<String> {
        if !self.change.rows.is_empty() {
            return None;
        }
        let columns: Vec<&Ident> = self
            .change
            .columns
            .iter()
            .filter(|column| {
                column.fate == ColumnFate::Alter && column.down.is_some() && column.then.is_some()
            })
            .filter(|column| {
                column.reversible || column.up.as_deref().is_some_and(|up| up.starts_with("CAST("))
            })
            .filter_map(|column| column.now.as_ref())
            .collect();
        if columns.is_empty() {
            return None;
        }
        let was: Vec<String> = (0..columns.len()).map(|at| format!("_cutover_was{}", at + 1)).collect();
        let (mut over_source, mut over_up) = (self.passed(), self.passed());
        over_source.extend(columns.iter().zip(&was).map(|(now, was)| (now.quoted(), was.clone())));
        over_up.extend(was.iter().map(|was| (was.clone(), was.clone())));
        let source = self.source_now(&self.change.table.quoted(), condition);
        let up = self.change.up_query(&source, &over_source);
        let down = self.change.down_query(&format!("({up}) AS _cutover_up"), &over_up);
        let changed: Vec<String> = columns
            .iter()
            .zip(&was)
            .map(|(now, was)| format!("({was} IS NOT NULL AND {} IS NOT {was})", now.quoted()))
            .collect();
        let which: String = changed
            .iter()
            .zip(&columns)
            .map(|(changed, now)| format!(" WHEN {changed} THEN '{}'", now.as_str().replace('\'', "''")))
            .collect();
        let keys = (0..self.key_now.len()).map(key_name).collect::<Vec<_>>().join(", ");
        Some(format!("SELECT {keys}, CASE{which} END FROM ({down}) WHERE {}", changed.join(" OR ")))
    }

    /// The columns of an INSERT into the new table, and how they are called in the projection.
    pub(super) fn insert_columns(&self) -> (String, String) {
        let columns: Vec<String> = self.change.written_then().into_iter().map(Ident::quoted).collect();
        if self.numbered {
            let with = |key: String| {
                std::iter::once(key).chain(columns.iter().cloned()).collect::<Vec<_>>().join(", ")
            };
            (with(self.key_then[0].clone()), with(key_name(0)))
        } else {
            (columns.join(", "), columns.join(", "))
        }
    }

    /// `INSERT` into the shadow of all rows that satisfy a condition over the old table.
    pub(super) fn copy(&self, condition: &str) -> String {
        let (columns, select) = self.insert_columns();
        let up =
            self.change.up_query(&self.source_now(&self.change.table.quoted(), condition), &self.passed());
        format!(
            // What the table itself says about conflicts would drop rows without a word.
            "INSERT OR ABORT INTO {} ({columns}) SELECT {select} FROM ({up}) AS _cutover_up",
            quote(&self.names.shadow)
        )
    }

    fn renames(&self) -> Vec<(String, String)> {
        let renamed = self.change.columns.iter().filter_map(|column| match (&column.now, &column.then) {
            (Some(now), Some(then)) if now != then => Some((now.to_string(), then.to_string())),
            _ => None,
        });
        renamed.collect()
    }

    /// The statements that make the shadow and its indexes.
    pub(super) fn create(&self, position: u64) -> Result<Vec<String>, Error> {
        let renames = self.renames();
        let dropped = |rule: &ddl::Constraint| {
            rule.name.as_deref().is_some_and(|name| {
                self.change.drop_constraints.iter().any(|dropped| dropped.as_str() == name)
            })
        };
        let mut items = Vec::new();
        for column in &self.change.columns {
            let Some(then) = &column.then else { continue };
            let declared = column
                .now
                .as_ref()
                .and_then(|now| self.def.columns.iter().find(|found| found.name == now.as_str()));
            let mut text = format!("{} {}", then.quoted(), column.type_then.clone().unwrap_or_default());
            let altered = column.fate != ColumnFate::Keep;
            if altered {
                if !column.nullable_then {
                    text.push_str(" NOT NULL");
                }
                if let Some(default) = &column.default_then {
                    text.push_str(&format!(" DEFAULT {}", literal_or_expression(default)));
                }
            }
            for rule in declared.into_iter().flat_map(|declared| &declared.rules) {
                let replaced = altered && matches!(rule.rule, Rule::NotNull | Rule::Null | Rule::Default);
                if !replaced && !dropped(rule) {
                    text.push(' ');
                    // A reference to the table itself names it by its public name, which it has after the swap.
                    let body = match rule.rule {
                        Rule::Check | Rule::Generated => ddl::renamed(&rule.text, &renames),
                        Rule::References => ddl::renamed_reference(&rule.text, &renames),
                        _ => rule.text.clone(),
                    };
                    text.push_str(&body);
                }
            }
            items.push(text.trim_end().to_owned());
        }
        for rule in self.def.constraints.iter().filter(|rule| !dropped(rule)) {
            items.push(match rule.rule {
                Rule::References => ddl::renamed_reference(&rule.text, &renames),
                _ => ddl::renamed(&rule.text, &renames),
            });
        }
        // A foreign key would keep clients from deleting what the rows of S point to: it comes with the swap.
        let checks = self.change.add_constraints.iter();
        items.extend(
            checks.filter(|added| matches!(added, NewConstraint::Check { .. })).map(NewConstraint::print),
        );
        let shadow = quote(&self.names.shadow);
        let mut statements =
            vec![format!("CREATE TABLE {shadow} ({}) {}", items.join(", "), self.def.options)];
        for index in &self.indexes {
            let (Some(sql), public) = (&index.sql, catalog::logical(&index.name)) else { continue };
            if self.change.drop_indexes.iter().any(|dropped| dropped.as_str() == public) {
                continue;
            }
            let body = ddl::index_body(sql).ok_or_else(|| {
                Error::Damaged(format!("the definition of index `{public}` cannot be read"))
            })?;
            let unique = if index.unique { "UNIQUE " } else { "" };
            let name = quote(&format!("{public}__c{position}"));
            statements
                .push(format!("CREATE {unique}INDEX {name} ON {shadow} {}", ddl::renamed(body, &renames)));
        }
        statements.extend(new_indexes(self.change, &shadow));
        Ok(statements)
    }

    /// A condition over `table` that is true for rows which a new row would push out by REPLACE.
    fn collisions(indexes: &[Unique]) -> Option<String> {
        let one = |unique: &Unique| {
            let parts = unique
                .columns
                .iter()
                .map(|(name, collation)| format!("{0} = NEW.{0} COLLATE {1}", quote(name), quote(collation)));
            format!("({})", parts.collect::<Vec<_>>().join(" AND "))
        };
        (!indexes.is_empty()).then(|| indexes.iter().map(one).collect::<Vec<_>>().join(" OR "))
    }

    /// The triggers on the old table that write down which keys clients touched.
    pub(super) fn forward(&self) -> Vec<String> {
        let table = self.change.table.quoted();
        let log = quote(&self.names.log);
        let shadow = quote(&self.names.shadow);
        let new = prefixed("NEW", &self.key_now);
        let old = prefixed("OLD", &self.key_now);
        // A row of T that still points to a parent would block the parent's deletion: with foreign keys T follows at once,
        // by losing the row. The drain brings it back.
        let follows = self.def.has_references();
        let forget = |values: &[String]| match follows {
            true => format!("DELETE FROM {shadow} WHERE {};", Self::equal(&self.key_then, values)),
            false => String::new(),
        };
        let note = |values: &[String]| {
            format!("INSERT INTO {log} VALUES ({}); {}", values.join(", "), forget(values))
        };
        let mut triggers = vec![
            self.trigger("insert", "AFTER INSERT", &table, "", &note(&new)),
            self.trigger("update", "AFTER UPDATE", &table, "", &format!("{} {}", note(&old), note(&new))),
            self.trigger("delete", "AFTER DELETE", &table, "", &note(&old)),
        ];
        if let Some(collisions) = Self::collisions(&Unique::among(&self.indexes)) {
            let keys = self.key_now.join(", ");
            let forget = match follows {
                true => format!(
                    "DELETE FROM {shadow} WHERE {} IN (SELECT {keys} FROM {table} WHERE {collisions});",
                    Self::tuple(&self.key_then)
                ),
                false => String::new(),
            };
            let body = format!("INSERT INTO {log} SELECT {keys} FROM {table} WHERE {collisions}; {forget}");
            triggers.push(self.trigger("before_insert", "BEFORE INSERT", &table, "", &body));
            triggers.push(self.trigger("before_update", "BEFORE UPDATE", &table, "", &body));
        }
        triggers
    }

    pub(super) const FORWARD: [&'static str; 5] =
        ["insert", "update", "delete", "before_insert", "before_update"];
    pub(super) const REVERSE: [&'static str; 5] =
        ["back_insert", "back_update", "back_delete", "back_before_insert", "back_before_update"];

    fn trigger(&self, what: &str, when: &str, table: &str, condition: &str, body: &str) -> String {
        format!(
            "CREATE TRIGGER {} {when} ON {table} {condition} BEGIN {body} END",
            quote(&self.names.trigger(what))
        )
    }

    /// A query of the row that the old table should have for a key of the new one: its key and all its columns. Empty when the
    /// new table has no such row, or when the old one cannot hold it. `kept` is where values without a counterpart are taken
    /// from, and `was` the key of that row: the one in whose place this one is.
    fn fitting(&self, then_table: &str, key: &[String], was: &[String], kept: &str) -> String {
        let source = self.source_then(then_table, &Self::equal(&self.key_then, key));
        let down = self.change.down_query(&source, &self.passed());
        let old = quote(&self.names.old);
        let old_key: Vec<String> = prefixed("_cutover_o", &self.key_now);
        let collation = |column: &str| {
            let of_key = self.def.columns.iter().find(|found| quote(&found.name) == column);
            let rule = of_key.and_then(|found| found.rules.iter().find(|rule| rule.rule == Rule::Collate));
            rule.map_or(String::new(), |rule| format!(" COLLATE {}", quote(&rule.inner)))
        };
        // What is kept may lie in a copy, which has no collations.
        let as_declared: Vec<String> =
            was.iter().zip(&self.key_now).map(|(was, key)| format!("{was}{}", collation(key))).collect();
        let here = Self::equal(&old_key, &as_declared);
        let kept_back: Vec<&Ident> = self.change.kept_back();
        let mut items: Vec<String> = (0..self.key_now.len()).map(key_name).collect();
        for column in self.change.columns.iter().filter(|column| !column.generated) {
            let Some(now) = &column.now else { continue };
            let name = now.quoted();
            let is_kept = column.then.as_ref().is_some_and(|then| kept_back.contains(&then));
            let fresh = match &column.then {
                Some(_) => format!("_cutover_d.{name}"),
                None => column
                    .down
                    .clone()
                    .or_else(|| column.default_now.clone())
                    .map_or("NULL".to_owned(), |value| format!("({value})")),
            };
            let value = match column.then.is_none() || is_kept {
                true => format!(
                    "CASE WHEN EXISTS (SELECT 1 FROM {kept} AS _cutover_o WHERE {here}) THEN (SELECT _cutover_o.{name} FROM {kept} \
                     AS _cutover_o WHERE {here}) ELSE {fresh} END"
                ),
                false => fresh,
            };
            items.push(format!("{value}{} AS {name}", collation(&name)));
        }
        let mut guards = vec!["1".to_owned()];
        for column in &self.def.columns {
            let name = quote(&column.name);
            let is_key = self.key_now.contains(&name) && !self.def.without_rowid();
            if !is_key && column.rules.iter().any(|rule| rule.rule == Rule::NotNull) {
                guards.push(format!("{name} IS NOT NULL"));
            }
            if self.def.strict() {
                let (types, or) = match column.kind.to_ascii_uppercase().as_str() {
                    "INT" | "INTEGER" => (
                        "'integer', 'null'",
                        format!(" OR typeof({name}) = 'real' AND {name} = CAST({name} AS INTEGER)"),
                    ),
                    "REAL" => ("'real', 'integer', 'null'", String::new()),
                    "TEXT" => ("'text', 'null'", String::new()),
                    "BLOB" => ("'blob', 'null'", String::new()),
                    _ => continue,
                };
                guards.push(format!("(typeof({name}) IN ({types}){or})"));
            }
        }
        guards.extend(self.def.checks().into_iter().map(|check| format!("coalesce(({check}), 1)")));
        for unique in Unique::among(&self.indexes) {
            let same = unique.columns.iter().map(|(name, collation)| {
                format!("_cutover_o.{0} = _cutover_g.{0} COLLATE {1}", quote(name), quote(collation))
            });
            let same = same.collect::<Vec<_>>().join(" AND ");
            let others = format!(
                "SELECT 1 FROM {old} AS _cutover_o WHERE {same} AND NOT ({})",
                Self::equal(&old_key, was)
            );
            // The condition is written without a table's name: in the query inside it is about the old table's rows.
            guards.push(match &unique.filter {
                Some(filter) => {
                    format!("(NOT coalesce(({filter}), 0) OR NOT EXISTS ({others} AND ({filter})))")
                }
                None => format!("NOT EXISTS ({others})"),
            });
        }
        let mut row = format!("SELECT {} FROM ({down}) AS _cutover_d", items.join(", "));
        for (name, expression) in self.def.generated() {
            row = format!(
                "SELECT *, ({expression}){} AS {} FROM ({row})",
                collation(&quote(name)),
                quote(name)
            );
        }
        format!("SELECT * FROM ({row}) AS _cutover_g WHERE {}", guards.join(" AND "))
    }

    /// The columns of an old row that are written, its key among them, and how [`fitting`](Self::fitting) calls them.
    fn written_now(&self) -> (Vec<String>, Vec<String>) {
        let columns = self.change.columns.iter().filter(|column| !column.generated);
        let mut into: Vec<String> =
            columns.filter_map(|column| column.now.as_ref().map(Ident::quoted)).collect();
        let mut from = into.clone();
        if self.numbered {
            into.insert(0, self.key_now[0].clone());
            from.insert(0, key_name(0));
        }
        (into, from)
    }

    /// `UPDATE` of the old table's row at `was` to what [`fitting`](Self::fitting) says.
    fn update_old(&self, set: &[(String, String)], fitting: &str, was: &[String], and: &str) -> String {
        let (into, from): (Vec<&str>, Vec<&str>) =
            set.iter().map(|(into, from)| (into.as_str(), from.as_str())).unzip();
        let into = if into.len() == 1 { into[0].to_owned() } else { format!("({})", into.join(", ")) };
        format!(
            "UPDATE {} SET {into} = (SELECT {} FROM ({fitting})) WHERE {}{and} AND EXISTS ({fitting})",
            quote(&self.names.old),
            from.join(", "),
            Self::equal(&self.key_now, was)
        )
    }

    /// The statements that make the old table's row of one key what the new table says. What does not fit is noted in `back`.
    pub(super) fn back_one(&self, then_table: &str, key: &[String], kept: &str) -> Vec<String> {
        let old = quote(&self.names.old);
        let back = quote(&self.names.back);
        let fitting = self.fitting(then_table, key, key, kept);
        let at_old = Self::equal(&self.key_now, key);
        let at_then = Self::equal(&self.key_then, key);
        let at_back = Self::equal(&(0..key.len()).map(key_name).collect::<Vec<_>>(), key);
        let (into, from) = self.written_now();
        // A key that is the same by its collation may be another text.
        let settable: Vec<(String, String)> = into
            .iter()
            .cloned()
            .zip(from.iter().cloned())
            .filter(|(into, _)| self.def.without_rowid() || !self.key_now.contains(into))
            .collect();
        let mut statements = vec![
            format!("DELETE FROM {back} WHERE {at_back}"),
            format!(
                "INSERT INTO {back} SELECT {}, 'm' WHERE EXISTS (SELECT 1 FROM {then_table} WHERE {at_then}) AND NOT EXISTS ({fitting})",
                key.join(", ")
            ),
            format!(
                "DELETE FROM {old} WHERE {at_old} AND NOT EXISTS (SELECT 1 FROM {then_table} WHERE {at_then})"
            ),
        ];
        if !settable.is_empty() {
            statements.push(self.update_old(&settable, &fitting, key, ""));
        }
        statements.push(format!(
            "INSERT INTO {old} ({}) SELECT {} FROM ({fitting}) WHERE NOT EXISTS (SELECT 1 FROM {old} WHERE {at_old})",
            into.join(", "),
            from.join(", ")
        ));
        statements
    }

    /// The triggers on the new table that keep the old one equal. `table` is the new table's name, quoted.
    pub(super) fn reverse(&self, table: &str, uniques_then: &[Unique]) -> Vec<String> {
        let old = quote(&self.names.old);
        let back = quote(&self.names.back);
        let new_key = prefixed("NEW", &self.key_then);
        let old_key = prefixed("OLD", &self.key_then);
        let block = |statements: Vec<String>| {
            statements.into_iter().map(|statement| format!("{statement}; ")).collect::<String>()
        };
        // Rows that REPLACE pushed out: noted before, gone now. What was noted and is still there is synced by the drain.
        let noted = (0..new_key.len()).map(key_name).collect::<Vec<_>>().join(", ");
        let pushed = |and: &str| {
            format!(
                "DELETE FROM {old} WHERE {0} IN (SELECT {noted} FROM {back} WHERE _cutover_why = 'c') AND {0} NOT IN (SELECT {1} \
                 FROM {table}){and}; DELETE FROM {back} WHERE _cutover_why = 'c';",
                Self::tuple(&self.key_now),
                self.key_then.join(", ")
            )
        };
        let sync_new = block(self.back_one(table, &new_key, &old));
        // What the old table has under the key of a row that is new, or that comes from another key, is not that row: it was
        // replaced, or set aside.
        let anew =
            |and: &str| format!("DELETE FROM {old} WHERE {}{and};", Self::equal(&self.key_now, &new_key));
        let another_key = format!("NOT ({})", Self::equal(&new_key, &old_key));
        let collides = Self::collisions(uniques_then);
        let pushed = |and: &str| if collides.is_some() { pushed(and) } else { String::new() };
        // A row is in its own way, and moves on.
        let others = format!(" AND NOT ({})", Self::equal(&self.key_now, &old_key));
        // A key that changes takes the values along that only the old table has.
        let (into, from) = self.written_now();
        let all: Vec<(String, String)> = into.into_iter().zip(from).collect();
        let moved = self.update_old(
            &all,
            &self.fitting(table, &new_key, &old_key, &old),
            &old_key,
            &format!(
                " AND {another_key} AND NOT EXISTS (SELECT 1 FROM {table} WHERE {})",
                Self::equal(&self.key_then, &old_key)
            ),
        );
        let sync_old = block(self.back_one(table, &old_key, &old));
        let mut triggers = vec![
            self.trigger(
                "back_insert",
                "AFTER INSERT",
                table,
                "",
                &format!("{} {} {sync_new}", pushed(""), anew("")),
            ),
            self.trigger(
                "back_update",
                "AFTER UPDATE",
                table,
                "",
                &format!(
                    "{} {} {moved}; {sync_old} {sync_new}",
                    pushed(&others),
                    anew(&format!(" AND {another_key}"))
                ),
            ),
            self.trigger("back_delete", "AFTER DELETE", table, "", &sync_old),
        ];
        if let Some(collisions) = collides {
            let keys = self.key_then.join(", ");
            let note = format!("INSERT INTO {back} SELECT {keys}, 'c' FROM {table} WHERE {collisions};");
            triggers.push(self.trigger("back_before_insert", "BEFORE INSERT", table, "", &note));
            triggers.push(self.trigger("back_before_update", "BEFORE UPDATE", table, "", &note));
        }
        triggers
    }

    /// The view of the old version over the new table, and its triggers. `old` is where hidden columns are, if there is one.
    pub(super) fn old_view(&self, view: &str, table: &str, old: Option<&str>) -> Vec<String> {
        version_view(self.change, &self.key_now, &self.key_then, view, table, old)
    }
}

/// `CREATE INDEX` for the indexes and unique constraints that a change adds.
pub(super) fn new_indexes(change: &TableChange, table: &str) -> Vec<String> {
    let mut statements = Vec::new();
    for index in &change.add_indexes {
        let unique = if index.unique { "UNIQUE " } else { "" };
        let filter = index.filter.as_ref().map_or(String::new(), |filter| format!(" WHERE {filter}"));
        statements.push(format!(
            "CREATE {unique}INDEX {} ON {table} ({}){filter}",
            index.name.quoted(),
            quoted(&index.columns)
        ));
    }
    for constraint in &change.add_constraints {
        if let NewConstraint::Unique { name, columns } = constraint {
            statements.push(format!(
                "CREATE UNIQUE INDEX {} ON {table} ({})",
                name.quoted(),
                quoted(columns)
            ));
        }
    }
    statements
}

/// A default as SQLite wants it: a constant plain, everything else in parentheses.
pub(super) fn literal_or_expression(default: &str) -> String {
    let text = default.trim();
    let number = text.parse::<f64>().is_ok();
    let string = text.len() >= 2
        && text.starts_with('\'')
        && text.ends_with('\'')
        && !text[1..text.len() - 1].replace("''", "").contains('\'');
    let word = ["null", "true", "false", "current_timestamp", "current_date", "current_time"]
        .contains(&text.to_ascii_lowercase().as_str());
    if number || string || word || text.starts_with('(') { text.to_owned() } else { format!("({text})") }
}

/// A view that shows a table in its old shape, with INSTEAD OF triggers that write through.
pub(super) fn version_view(
    change: &TableChange,
    key_now: &[String],
    key_then: &[String],
    view: &str,
    table: &str,
    old: Option<&str>,
) -> Vec<String> {
    let keys: Vec<(String, String)> = (0..key_now.len()).map(|at| (key_name(at), key_name(at))).collect();
    let source = Shape::source(table, key_then, "1");
    let down = change.down_query(&source, &keys);
    // In the order of the old table: hidden columns are last in the change, so order does not matter to named access.
    let mut shown = Vec::new();
    let mut names = Vec::new();
    for column in &change.columns {
        let Some(now) = &column.now else { continue };
        let name = now.quoted();
        if column.generated && column.then.is_some() {
            let then = column.then.as_ref().map(Ident::quoted).unwrap_or_default();
            let at = Shape::equal(
                key_then,
                &keys.iter().map(|(_, key)| format!("_cutover_d.{key}")).collect::<Vec<_>>(),
            );
            shown.push(format!("(SELECT {then} FROM {table} WHERE {at}) AS {name}"));
        } else if column.then.is_some() {
            shown.push(format!("_cutover_d.{name} AS {name}"));
        } else {
            shown.push(format!("_cutover_h.{name} AS {name}"));
        }
        names.push(name);
    }
    let join = match old {
        Some(old) => {
            let hidden_key = prefixed("_cutover_h", key_now);
            let down_key: Vec<String> = keys.iter().map(|(_, key)| format!("_cutover_d.{key}")).collect();
            format!(" LEFT JOIN {old} AS _cutover_h ON {}", Shape::equal(&hidden_key, &down_key))
        }
        None => String::new(),
    };
    let view_quoted = quote(view);
    let mut statements = vec![format!(
        "CREATE VIEW {view_quoted} AS SELECT {} FROM ({down}) AS _cutover_d{join}",
        shown.join(", ")
    )];
    // What NEW would be as a row of the old table.
    let new_row: Vec<String> = change
        .columns
        .iter()
        .filter_map(|column| {
            let now = column.now.as_ref()?.quoted();
            Some(match (&column.default_now, column.nullable_now) {
                (Some(default), false) => format!("coalesce(NEW.{now}, {default}) AS {now}"),
                _ => format!("NEW.{now} AS {now}"),
            })
        })
        .collect();
    let up = change.up_query(&format!("(SELECT {}) AS _cutover_new", new_row.join(", ")), &[]);
    let written: Vec<String> = change.written_then().into_iter().map(Ident::quoted).collect();
    let hidden: Vec<String> =
        change.hidden().iter().filter_map(|column| column.now.as_ref().map(Ident::quoted)).collect();
    let pk: Vec<(String, String)> = change
        .primary_key
        .iter()
        .filter_map(|then| {
            let column = change.columns.iter().find(|column| column.then.as_ref() == Some(then))?;
            Some((column.now.as_ref()?.quoted(), then.quoted()))
        })
        .collect();
    let trigger = |what: &str, when: &str, body: String| {
        let name = quote(&artefact("view", &[view, what]));
        format!("CREATE TRIGGER {name} INSTEAD OF {when} ON {view_quoted} BEGIN {body} END")
    };
    let mut insert = format!("INSERT INTO {table} ({0}) SELECT {0} FROM ({up});", written.join(", "));
    if let (Some(old), false) = (old, hidden.is_empty()) {
        let set: Vec<String> =
            hidden.iter().map(|name| format!("{name} = coalesce(NEW.{name}, {name})")).collect();
        let at = match (pk.is_empty(), key_now.len() == 1 && !pk.iter().any(|(now, _)| *now == key_now[0])) {
            // Rows with a number: the trigger's own insert was the last one.
            (true, _) | (_, true) => format!("{} = last_insert_rowid()", key_now[0]),
            _ if key_now.len() == 1 => format!("{0} = coalesce(NEW.{0}, last_insert_rowid())", key_now[0]),
            _ => Shape::equal(key_now, &prefixed("NEW", key_now)),
        };
        insert.push_str(&format!(" UPDATE {old} SET {} WHERE {at};", set.join(", ")));
    }
    statements.push(trigger("insert", "INSERT", insert));
    if pk.is_empty() {
        return statements;
    }
    let at_old: Vec<String> = pk.iter().map(|(now, then)| format!("{then} IS OLD.{now}")).collect();
    let any_changed: Vec<String> = names.iter().map(|name| format!("NEW.{name} IS NOT OLD.{name}")).collect();
    let set: Vec<String> = change
        .columns
        .iter()
        .filter(|column| !column.generated)
        .filter_map(|column| {
            let then = column.then.as_ref()?.quoted();
            let value = format!("(SELECT {then} FROM ({up}))");
            Some(match &column.now {
                Some(now) => format!(
                    "{then} = CASE WHEN NEW.{0} IS OLD.{0} THEN {then} ELSE {value} END",
                    now.quoted()
                ),
                None if column.up.is_some() => {
                    format!("{then} = CASE WHEN {} THEN {value} ELSE {then} END", any_changed.join(" OR "))
                }
                None => return None,
            })
        })
        .collect();
    let mut update = format!("UPDATE {table} SET {} WHERE {};", set.join(", "), at_old.join(" AND "));
    if let (Some(old), false) = (old, hidden.is_empty()) {
        let set: Vec<String> = hidden.iter().map(|name| format!("{name} = NEW.{name}")).collect();
        let at: Vec<String> = pk.iter().map(|(now, _)| format!("{now} IS NEW.{now}")).collect();
        update.push_str(&format!(" UPDATE {old} SET {} WHERE {};", set.join(", "), at.join(" AND ")));
    }
    statements.push(trigger("update", "UPDATE", update));
    statements.push(trigger(
        "delete",
        "DELETE",
        format!("DELETE FROM {table} WHERE {};", at_old.join(" AND ")),
    ));
    statements
}

/// The name of a key in projections and logs.
pub(super) fn key_name(at: usize) -> String {
    format!("_cutover_k{}", at + 1)
}

/// `NEW."a"`, `OLD.rowid` and the like.
pub(super) fn prefixed(prefix: &str, keys: &[String]) -> Vec<String> {
    keys.iter().map(|key| format!("{prefix}.{key}")).collect()
}
