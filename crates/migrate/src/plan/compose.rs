//! From steps to table changes: follows names through renames, and refuses what contradicts the catalog or itself.

use std::collections::BTreeSet;

use crate::{
    catalog::{Catalog, Table, TableKind},
    change::{ColumnChange, ColumnFate, Fate, NewConstraint, NewIndex, RowStep, TableChange, Tactic},
    error::Refusal,
    ir::{Column, DefaultChange, Dialect, Expr, Ident, Migration, OnReject, Op},
};

/// What composing yields: the changes, and for each step the index of its change.
pub(super) struct Composed {
    pub(super) changes: Vec<TableChange>,
    pub(super) step_of: Vec<usize>,
}

/// Composes all steps. Refusals are collected, so that one run tells them all.
pub(super) fn compose(migration: &Migration, catalog: &Catalog) -> Result<Composed, Vec<Refusal>> {
    let mut composer = Composer {
        catalog,
        dialect: catalog.dialect,
        changes: Vec::new(),
        step_of: Vec::new(),
        refusals: Vec::new(),
    };
    for (number, op) in migration.steps.iter().enumerate() {
        let at = composer.change_of(op);
        composer.step_of.push(at.unwrap_or(usize::MAX));
        if let Some(at) = at
            && let Err(refusal) = composer.step(at, number, op)
        {
            composer.refusals.push(refusal);
        }
    }
    composer.check_leftovers();
    match composer.refusals.is_empty() {
        true => Ok(Composed { changes: composer.changes, step_of: composer.step_of }),
        false => Err(composer.refusals),
    }
}

struct Composer<'a> {
    catalog: &'a Catalog,
    dialect: Dialect,
    changes: Vec<TableChange>,
    step_of: Vec<usize>,
    refusals: Vec<Refusal>,
}

impl Composer<'_> {
    /// The index of the change a step belongs to; begun when this is the first step on the table.
    fn change_of(&mut self, op: &Op) -> Option<usize> {
        let name = op.table();
        if let Some(at) = self.changes.iter().position(|change| change.name_then() == name) {
            return Some(at);
        }
        let change = match (op, self.catalog.tables.get(name)) {
            (Op::CreateTable { .. }, Some(_)) => {
                self.refuse(
                    format!("table `{name}` exists already"),
                    "Choose another name, or leave the step out.",
                );
                return None;
            }
            (Op::CreateTable { .. }, None) => blank(name, Fate::Create),
            (_, Some(table)) if table.kind != TableKind::Ordinary => {
                self.refuse(
                    format!("`{name}` is no ordinary table ({:?})", table.kind),
                    "Change the table it is made of, or drop and create it with your own tools.",
                );
                return None;
            }
            (_, Some(table)) if !self.changes.iter().any(|change| change.table == *name) => of_table(table),
            _ => {
                let names: Vec<&str> = self.catalog.tables.keys().map(Ident::as_str).collect();
                let near = names
                    .iter()
                    .map(|known| (strsim::damerau_levenshtein(known, name.as_str()), *known))
                    .min();
                let way_out = match near {
                    Some((distance, near)) if distance <= 3 && near != name.as_str() => {
                        format!("Did you mean `{near}`?")
                    }
                    _ => "Check the name; a table that an earlier step renamed has its new name.".to_owned(),
                };
                self.refuse(format!("there is no table `{name}`"), way_out);
                return None;
            }
        };
        self.changes.push(change);
        Some(self.changes.len() - 1)
    }

    fn refuse(&mut self, what: impl Into<String>, way_out: impl Into<String>) {
        self.refusals.push(Refusal::new(what, way_out));
    }

    fn print(&self, expr: &Expr, what: &str) -> Result<String, Refusal> {
        expr.print(self.dialect).ok_or_else(|| {
            Refusal::new(
                format!("{what} has no expression for {}", self.dialect),
                format!("Add `{} = \"..\"` to it.", self.dialect),
            )
        })
    }

    fn step(&mut self, at: usize, number: usize, op: &Op) -> Result<(), Refusal> {
        let table = op.table().clone();
        let dialect = self.dialect;
        if self.changes[at].fate == Fate::Drop {
            return Err(Refusal::new(
                format!("`{table}` was dropped by an earlier step"),
                "Leave one of the two out.",
            ));
        }
        match op {
            Op::CreateTable { columns, primary_key, .. } => {
                for column in columns {
                    let added = self.added(column, None, &table)?;
                    self.changes[at].columns.push(added);
                }
                self.changes[at].primary_key.clone_from(primary_key);
                self.changes[at].row_key.clone_from(primary_key);
            }
            Op::AddColumn { column, up, .. } => {
                let change = &self.changes[at];
                if has_then(change, &column.name) {
                    return Err(Refusal::new(
                        format!("column `{table}.{}` exists already", column.name),
                        "Choose another name, or leave the step out.",
                    ));
                }
                if change
                    .columns
                    .iter()
                    .any(|other| other.fate == ColumnFate::Drop && other.now.as_ref() == Some(&column.name))
                {
                    return Err(Refusal::new(
                        format!("column `{table}.{}` is dropped and added in one migration", column.name),
                        "Use alter_column, or add it in the next migration.",
                    ));
                }
                if !column.nullable && column.default.is_none() && up.is_none() && change.fate == Fate::Alter
                {
                    return Err(Refusal::new(
                        format!(
                            "column `{table}.{}` is NOT NULL and rows that exist have no value for it",
                            column.name
                        ),
                        "Give it a `default` or an `up` expression.",
                    ));
                }
                let up = up
                    .as_ref()
                    .map(|up| self.print(up, &format!("`up` of `{table}.{}`", column.name)))
                    .transpose()?;
                let added = self.added(column, up, &table)?;
                let end = self.end(at);
                self.changes[at].columns.insert(end, added);
            }
            Op::RenameColumn { from, to, .. } => {
                if has_then(&self.changes[at], to) {
                    return Err(Refusal::new(
                        format!("column `{table}.{to}` exists already"),
                        "Choose another name.",
                    ));
                }
                self.no_row_steps(at, "rename_column")?;
                let column = self.column(at, from, &table)?;
                self.changes[at].columns[column].then = Some(to.clone());
                let renamed = |columns: &mut Vec<Ident>| {
                    for column in columns.iter_mut().filter(|column| **column == *from) {
                        *column = to.clone();
                    }
                };
                let change = &mut self.changes[at];
                renamed(&mut change.primary_key);
                change.add_indexes.iter_mut().for_each(|index| renamed(&mut index.columns));
                for constraint in &mut change.add_constraints {
                    match constraint {
                        NewConstraint::Unique { columns, .. } | NewConstraint::ForeignKey { columns, .. } => {
                            renamed(columns)
                        }
                        NewConstraint::Check { .. } => {}
                    }
                }
            }
            Op::RenameTable { to, .. } => {
                let taken = self.catalog.tables.contains_key(to)
                    || self
                        .changes
                        .iter()
                        .any(|change| change.name_then() == to && change.fate != Fate::Drop);
                if taken {
                    return Err(Refusal::new(format!("table `{to}` exists already"), "Choose another name."));
                }
                if self.changes[at].fate == Fate::Create {
                    return Err(Refusal::new(
                        format!("`{table}` is created and renamed in one migration"),
                        "Create it by its final name.",
                    ));
                }
                self.changes[at].rename_to = Some(to.clone());
            }
            Op::AlterColumn { column, kind, nullable, default, up, down, on_reject, .. } => {
                self.no_row_steps(at, "alter_column")?;
                let found = self.column(at, column, &table)?;
                let what = format!("{table}.{column}");
                let up = up.as_ref().map(|up| self.print(up, &format!("`up` of `{what}`"))).transpose()?;
                let down =
                    down.as_ref().map(|down| self.print(down, &format!("`down` of `{what}`"))).transpose()?;
                let default_text = match default {
                    Some(DefaultChange::Set(expr)) => {
                        Some(self.print(expr, &format!("default of `{what}`"))?)
                    }
                    _ => None,
                };
                let entry = &mut self.changes[at].columns[found];
                if entry.fate != ColumnFate::Keep {
                    return Err(Refusal::new(
                        format!("column `{what}` is changed by two steps that cannot be joined"),
                        "Put what it is to become into one step.",
                    ));
                }
                if entry.generated {
                    return Err(Refusal::new(
                        format!("column `{what}` is generated"),
                        "Drop it and add it again in the next migration.",
                    ));
                }
                entry.fate = ColumnFate::Alter;
                if let Some(nullable) = nullable {
                    entry.nullable_then = *nullable;
                }
                match default {
                    Some(DefaultChange::Set(expr)) => {
                        entry.default_then = default_text;
                        entry.default_constant = expr.is_value();
                    }
                    Some(DefaultChange::Drop) => entry.default_then = None,
                    None => {}
                }
                let type_now = entry.type_now.clone().unwrap_or_default();
                let type_then = kind.as_ref().map_or_else(|| type_now.clone(), |kind| kind.print(dialect));
                let retyped = !type_then.eq_ignore_ascii_case(&type_now);
                let now = entry.now.as_ref().map(Ident::quoted).unwrap_or_default();
                let then = entry.then.as_ref().map(Ident::quoted).unwrap_or_default();
                entry.reversible =
                    down.is_some() || (up.is_none() && (!retyped || widens(&type_now, &type_then)));
                entry.up = match (up, retyped) {
                    (Some(up), _) => Some(up),
                    (None, true) => Some(format!("CAST({now} AS {type_then})")),
                    (None, false) => None,
                };
                entry.down = match (down, retyped) {
                    (Some(down), _) => Some(down),
                    (None, true) => Some(format!("CAST({then} AS {type_now})")),
                    (None, false) => None,
                };
                entry.type_then = Some(type_then);
                if *on_reject == OnReject::Quarantine {
                    self.changes[at].on_reject = OnReject::Quarantine;
                }
            }
            Op::AddIndex { name, columns, unique, online, filter, .. } => {
                self.columns_exist(at, columns, &table)?;
                if self.index_taken(name) {
                    return Err(Refusal::new(
                        format!("index `{name}` exists already"),
                        "Choose another name.",
                    ));
                }
                let filter = filter
                    .as_ref()
                    .map(|filter| self.print(filter, &format!("`where` of `{name}`")))
                    .transpose()?;
                self.changes[at].add_indexes.push(NewIndex {
                    name: name.clone(),
                    columns: columns.clone(),
                    unique: *unique,
                    online: *online,
                    filter,
                });
            }
            Op::DropIndex { name, .. } => {
                let index =
                    self.catalog.tables.get(&self.changes[at].table).and_then(|table| table.index(name));
                match index {
                    None => {
                        return Err(Refusal::new(
                            format!("table `{table}` has no index `{name}`"),
                            "Check the name with your database's own tools.",
                        ));
                    }
                    Some(index) if index.of_constraint.is_some() => {
                        return Err(Refusal::new(
                            format!("index `{name}` belongs to a constraint"),
                            "Use drop_constraint.",
                        ));
                    }
                    Some(_) => self.changes[at].drop_indexes.push(name.clone()),
                }
            }
            Op::DropColumn { column, grace_s, down, .. } => {
                let found = self.column(at, column, &table)?;
                let what = format!("{table}.{column}");
                if self.changes[at].columns[found].now.is_none() {
                    return Err(Refusal::new(
                        format!("column `{what}` is added and dropped in one migration"),
                        "Leave both steps out.",
                    ));
                }
                if self.changes[at].primary_key.contains(column) {
                    return Err(Refusal::new(
                        format!("column `{what}` is part of the primary key"),
                        "Create a new table with the key you want, and copy with sql steps.",
                    ));
                }
                let down =
                    down.as_ref().map(|down| self.print(down, &format!("`down` of `{what}`"))).transpose()?;
                let mut entry = self.changes[at].columns.remove(found);
                if self.changes[at].columns.iter().all(|column| column.then.is_none()) {
                    return Err(Refusal::new(
                        format!("`{table}` would have no column left"),
                        "Use drop_table.",
                    ));
                }
                entry.fate = ColumnFate::Drop;
                entry.then = None;
                entry.reversible = entry.nullable_now || entry.default_now.is_some() || down.is_some();
                entry.down = down;
                self.changes[at].columns.push(entry);
                self.changes[at].grace_s = self.changes[at].grace_s.max(*grace_s);
            }
            Op::DropTable { grace_s, .. } => {
                let referenced = self.catalog.tables.get(&self.changes[at].table);
                let others = referenced.iter().flat_map(|found| &found.referenced_by);
                if let Some(other) = others.clone().find(|other| other.table != self.changes[at].table) {
                    return Err(Refusal::new(
                        format!("foreign keys of `{}` point to `{table}`", other.table),
                        format!("Drop the foreign key of `{}` first.", other.table),
                    ));
                }
                if self.step_of.iter().filter(|other| **other == at).count() > 1 {
                    return Err(Refusal::new(
                        format!("`{table}` is changed and dropped in one migration"),
                        "Leave the other steps out.",
                    ));
                }
                self.changes[at].fate = Fate::Drop;
                self.changes[at].grace_s = *grace_s;
            }
            Op::AddUnique { name, columns, .. } => {
                self.columns_exist(at, columns, &table)?;
                self.constraint_free(at, name)?;
                let constraint = NewConstraint::Unique { name: name.clone(), columns: columns.clone() };
                self.changes[at].add_constraints.push(constraint);
            }
            Op::AddCheck { name, expr, .. } => {
                self.constraint_free(at, name)?;
                let expr = self.print(expr, &format!("check `{name}`"))?;
                self.changes[at].add_constraints.push(NewConstraint::Check { name: name.clone(), expr });
            }
            Op::AddForeignKey { name, columns, references, on_delete, on_update, .. } => {
                self.columns_exist(at, columns, &table)?;
                self.constraint_free(at, name)?;
                self.changes[at].add_constraints.push(NewConstraint::ForeignKey {
                    name: name.clone(),
                    columns: columns.clone(),
                    references: references.clone(),
                    on_delete: on_delete.print().to_owned(),
                    on_update: on_update.print().to_owned(),
                });
            }
            Op::DropConstraint { name, .. } => {
                let existing = self.catalog.tables.get(&self.changes[at].table);
                let named = existing.is_some_and(|table| table.constraint(name).is_some());
                // A unique constraint that was added to SQLite is a unique index.
                let indexed = dialect == Dialect::Sqlite
                    && existing
                        .and_then(|table| table.index(name))
                        .is_some_and(|index| index.unique && index.of_constraint.is_none());
                match (named, indexed) {
                    (true, _) => self.changes[at].drop_constraints.push(name.clone()),
                    (false, true) => self.changes[at].drop_indexes.push(name.clone()),
                    (false, false) => {
                        return Err(Refusal::new(
                            format!("table `{table}` has no constraint `{name}`"),
                            "Check the name with your database's own tools.",
                        ));
                    }
                }
            }
            Op::Sql { set, filter, check, down, .. } => {
                let columns: Vec<Ident> = set.keys().cloned().collect();
                self.columns_exist(at, &columns, &table)?;
                self.not_key(at, &columns, &table)?;
                let what = format!("sql step on `{table}`");
                let printed = |composer: &Self, exprs: &std::collections::BTreeMap<Ident, Expr>| {
                    exprs
                        .iter()
                        .map(|(column, expr)| {
                            Ok((column.clone(), composer.print(expr, &format!("{what}, `{column}`"))?))
                        })
                        .collect::<Result<Vec<_>, Refusal>>()
                };
                let step = RowStep::Sql {
                    set: printed(self, set)?,
                    filter: filter.as_ref().map(|filter| self.print(filter, &what)).transpose()?,
                    check: check.as_ref().map(|check| self.print(check, &what)).transpose()?,
                    down: printed(self, down)?,
                };
                if !self.changes[at].functions().is_empty() {
                    return Err(Refusal::new(
                        format!("`{table}` has an sql step after a transform or plugin"),
                        "Put the sql step first, or into the next migration.",
                    ));
                }
                self.changes[at].rows.push(step);
            }
            Op::Transform { transform: name, read, write, check, .. }
            | Op::Plugin { plugin: name, read, write, check, .. } => {
                self.columns_exist(at, read, &table)?;
                self.columns_exist(at, write, &table)?;
                self.not_key(at, write, &table)?;
                let check = check.as_ref().map(|check| self.print(check, name)).transpose()?;
                self.changes[at].rows.push(RowStep::Function {
                    step: number,
                    name: name.clone(),
                    read: read.clone(),
                    write: write.clone(),
                    check,
                });
            }
        }
        Ok(())
    }

    fn added(&self, column: &Column, up: Option<String>, table: &Ident) -> Result<ColumnChange, Refusal> {
        let what = format!("default of `{table}.{}`", column.name);
        let default = column.default.as_ref().map(|default| self.print(default, &what)).transpose()?;
        Ok(ColumnChange {
            fate: ColumnFate::Add,
            now: None,
            then: Some(column.name.clone()),
            type_now: None,
            type_then: Some(column.kind.print(self.dialect)),
            nullable_now: true,
            nullable_then: column.nullable,
            default_now: None,
            default_then: default,
            default_constant: column.default.as_ref().is_none_or(Expr::is_value),
            generated: false,
            up,
            down: None,
            reversible: true,
        })
    }

    /// Where new columns go: before those that are dropped.
    fn end(&self, at: usize) -> usize {
        self.changes[at].columns.iter().filter(|column| column.then.is_some()).count()
    }

    fn column(&self, at: usize, name: &Ident, table: &Ident) -> Result<usize, Refusal> {
        let columns = &self.changes[at].columns;
        columns.iter().position(|column| column.then.as_ref() == Some(name)).ok_or_else(|| {
            let names = columns.iter().filter_map(|column| column.then.as_ref());
            let near =
                names.map(|known| (strsim::damerau_levenshtein(known.as_str(), name.as_str()), known)).min();
            let way_out = match near {
                Some((distance, near)) if distance <= 3 => format!("Did you mean `{near}`?"),
                _ => "Check the name; a column that an earlier step renamed has its new name.".to_owned(),
            };
            Refusal::new(format!("there is no column `{table}.{name}`"), way_out)
        })
    }

    fn columns_exist(&self, at: usize, names: &[Ident], table: &Ident) -> Result<(), Refusal> {
        names.iter().try_for_each(|name| self.column(at, name, table).map(drop))
    }

    fn not_key(&self, at: usize, names: &[Ident], table: &Ident) -> Result<(), Refusal> {
        let change = &self.changes[at];
        let key = |name: &&Ident| {
            change.primary_key.contains(name)
                || change.row_key.iter().any(|key| change.then_of(key) == Some(*name))
                || change.columns.iter().any(|column| column.then.as_ref() == Some(*name) && column.generated)
        };
        match names.iter().find(key) {
            None => Ok(()),
            Some(name) => Err(Refusal::new(
                format!("`{table}.{name}` is generated, or part of the key by which rows are found"),
                "Rows keep their keys in a migration; change them with your own statements.",
            )),
        }
    }

    fn no_row_steps(&self, at: usize, op: &str) -> Result<(), Refusal> {
        match self.changes[at].rows.is_empty() {
            true => Ok(()),
            false => Err(Refusal::new(
                format!("{op} on `{}` comes after a step that computes rows", self.changes[at].table),
                "Put it before the sql, transform or plugin step, or into the next migration.",
            )),
        }
    }

    fn index_taken(&self, name: &Ident) -> bool {
        let existing = self.catalog.tables.values().any(|table| table.index(name).is_some());
        existing
            || self.changes.iter().any(|change| change.add_indexes.iter().any(|index| index.name == *name))
    }

    fn constraint_free(&self, at: usize, name: &Ident) -> Result<(), Refusal> {
        let change = &self.changes[at];
        let existing =
            self.catalog.tables.get(&change.table).is_some_and(|table| table.constraint(name).is_some());
        let added = change.add_constraints.iter().any(|constraint| constraint.name() == name);
        match (existing && !change.drop_constraints.contains(name)) || added {
            false => Ok(()),
            true => Err(Refusal::new(format!("constraint `{name}` exists already"), "Choose another name.")),
        }
    }

    /// What hangs on dropped columns must go too, by the author's word.
    fn check_leftovers(&mut self) {
        for change in &self.changes {
            let Some(table) = self.catalog.tables.get(&change.table) else { continue };
            let gone: BTreeSet<&Ident> =
                change.hidden().into_iter().filter_map(|column| column.now.as_ref()).collect();
            for column in &gone {
                for index in &table.indexes {
                    let mentions = index.columns.iter().flatten().any(|name| name == *column);
                    if mentions && index.of_constraint.is_none() && !change.drop_indexes.contains(&index.name)
                    {
                        self.refusals.push(Refusal::new(
                            format!("index `{}` is on `{}.{column}`, which goes", index.name, change.table),
                            format!("Add a drop_index step for `{}`.", index.name),
                        ));
                    }
                }
                for constraint in &table.constraints {
                    let dropped =
                        constraint.name.as_ref().is_some_and(|name| change.drop_constraints.contains(name));
                    if constraint.columns.contains(column) && !dropped {
                        let name = constraint.name.as_ref().map_or("without a name", Ident::as_str);
                        self.refusals.push(Refusal::new(
                            format!("constraint `{name}` is on `{}.{column}`, which goes", change.table),
                            "Add a drop_constraint step for it.",
                        ));
                    }
                }
                for other in &table.referenced_by {
                    if other.columns.contains(column) {
                        self.refusals.push(Refusal::new(
                            format!(
                                "a foreign key of `{}` points to `{}.{column}`, which goes",
                                other.table, change.table
                            ),
                            format!("Drop the foreign key of `{}` first.", other.table),
                        ));
                    }
                }
            }
        }
    }
}

fn has_then(change: &TableChange, name: &Ident) -> bool {
    change.columns.iter().any(|column| column.then.as_ref() == Some(name))
}

fn blank(name: &Ident, fate: Fate) -> TableChange {
    TableChange {
        table: name.clone(),
        fate,
        rename_to: None,
        tactic: Tactic::Instant,
        columns: Vec::new(),
        primary_key: Vec::new(),
        row_key: Vec::new(),
        add_indexes: Vec::new(),
        drop_indexes: Vec::new(),
        add_constraints: Vec::new(),
        drop_constraints: Vec::new(),
        rows: Vec::new(),
        on_reject: OnReject::Abort,
        grace_s: 0,
    }
}

fn of_table(table: &Table) -> TableChange {
    let columns = table.columns.iter().map(|column| ColumnChange {
        fate: ColumnFate::Keep,
        now: Some(column.name.clone()),
        then: Some(column.name.clone()),
        type_now: Some(column.kind.clone()),
        type_then: Some(column.kind.clone()),
        nullable_now: column.nullable,
        nullable_then: column.nullable,
        default_now: column.default.clone(),
        default_then: column.default.clone(),
        default_constant: false,
        generated: column.generated.is_some(),
        up: None,
        down: None,
        reversible: true,
    });
    TableChange {
        columns: columns.collect(),
        primary_key: table.primary_key.clone(),
        row_key: table.row_key.clone(),
        ..blank(&table.name, Fate::Alter)
    }
}

/// Whether every value of the first type is one of the second, exactly, and can be cast back.
pub(super) fn widens(from: &str, to: &str) -> bool {
    let (from, to) = (Shape::of(from), Shape::of(to));
    match (&from, &to) {
        (Shape::Integer(a), Shape::Integer(b)) => a <= b,
        (Shape::Integer(a), Shape::Decimal(precision, scale)) => {
            let digits = match a {
                2 => 5,
                4 => 10,
                _ => 19,
            };
            precision - scale >= digits
        }
        (Shape::Text(a), Shape::Text(b)) => match (a, b) {
            (_, None) => true,
            (Some(a), Some(b)) => a <= b,
            (None, Some(_)) => false,
        },
        (Shape::Decimal(p, s), Shape::Decimal(q, t)) => q >= p && t >= s && q - t >= p - s,
        (Shape::Float(a), Shape::Float(b)) => a <= b,
        (Shape::Other(a), Shape::Other(b)) => a == b,
        _ => false,
    }
}

enum Shape {
    Integer(u32),
    Text(Option<u32>),
    Decimal(u32, u32),
    Float(u32),
    Other(String),
}

impl Shape {
    fn of(text: &str) -> Self {
        let lower = text.trim().to_ascii_lowercase();
        let (name, numbers) = match lower.split_once('(') {
            Some((name, rest)) => {
                let numbers =
                    rest.trim_end_matches(')').split(',').filter_map(|part| part.trim().parse().ok());
                (name.trim().to_owned(), numbers.collect::<Vec<u32>>())
            }
            None => (lower.clone(), Vec::new()),
        };
        match (name.as_str(), numbers.as_slice()) {
            ("smallint" | "int2", []) => Self::Integer(2),
            ("integer" | "int" | "int4", []) => Self::Integer(4),
            ("bigint" | "int8", []) => Self::Integer(8),
            ("text", []) | ("character varying" | "varchar", []) => Self::Text(None),
            ("character varying" | "varchar", [length]) => Self::Text(Some(*length)),
            ("numeric" | "decimal", [precision, scale]) => Self::Decimal(*precision, *scale),
            ("numeric" | "decimal", [precision]) => Self::Decimal(*precision, 0),
            ("real" | "float4", []) => Self::Float(4),
            ("double precision" | "double" | "float8", []) => Self::Float(8),
            _ => Self::Other(lower),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_is_known_and_narrowing_is_not_taken_for_it() {
        for (from, to) in [
            ("integer", "bigint"),
            ("character varying(10)", "varchar(20)"),
            ("varchar(10)", "text"),
            ("numeric(10,2)", "numeric(12,2)"),
            ("integer", "numeric(12,2)"),
            ("real", "double precision"),
        ] {
            assert!(widens(from, to), "{from} -> {to}");
        }
        for (from, to) in [
            ("bigint", "integer"),
            ("text", "varchar(10)"),
            ("numeric(12,2)", "numeric(12,1)"),
            ("text", "integer"),
        ] {
            assert!(!widens(from, to), "{from} -> {to}");
        }
    }
}
