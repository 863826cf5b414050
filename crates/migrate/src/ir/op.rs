//! The operations of a migration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Expr, Ident, Type};

/// A new column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: Ident,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: Type,
    /// Whether it may be NULL; it may by default.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub nullable: bool,
    /// Its default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Expr>,
}

/// What happens to a column's default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DefaultChange {
    /// It becomes this.
    Set(Expr),
    /// It goes.
    Drop,
}

/// What happens to a row that the new shape cannot hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReject {
    /// The migration stops and names the rows.
    #[default]
    Abort,
    /// The rows are kept aside and listed; the swap waits until somebody approves the list.
    Quarantine,
}

/// What a foreign key does when the row it points to goes or changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForeignKeyAction {
    /// The statement fails.
    #[default]
    NoAction,
    /// The statement fails at once.
    Restrict,
    /// The row follows.
    Cascade,
    /// The columns become NULL.
    SetNull,
    /// The columns take their defaults.
    SetDefault,
}

impl ForeignKeyAction {
    /// As SQL text.
    pub fn print(self) -> &'static str {
        match self {
            Self::NoAction => "NO ACTION",
            Self::Restrict => "RESTRICT",
            Self::Cascade => "CASCADE",
            Self::SetNull => "SET NULL",
            Self::SetDefault => "SET DEFAULT",
        }
    }
}

/// What a foreign key points to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct References {
    /// The table.
    pub table: Ident,
    /// Its columns.
    pub columns: Vec<Ident>,
}

/// One operation. Tables and columns are named as they are after the steps before this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// A new table.
    CreateTable {
        /// Its name.
        table: Ident,
        /// Its columns, at least one.
        columns: Vec<Column>,
        /// The columns of its primary key.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        primary_key: Vec<Ident>,
    },
    /// A new column; `up` fills it for rows that exist.
    AddColumn {
        /// The table.
        table: Ident,
        /// The column.
        column: Column,
        /// Its value for each row, over the row's other columns; its default where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        up: Option<Expr>,
    },
    /// Another name for a column.
    RenameColumn {
        /// The table.
        table: Ident,
        /// The name now.
        from: Ident,
        /// The name then.
        to: Ident,
    },
    /// Another name for a table.
    RenameTable {
        /// The name now.
        table: Ident,
        /// The name then.
        to: Ident,
    },
    /// Another type, nullability or default.
    AlterColumn {
        /// The table.
        table: Ident,
        /// The column.
        column: Ident,
        /// The new type.
        #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
        kind: Option<Type>,
        /// Whether it may be NULL.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nullable: Option<bool>,
        /// What happens to its default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        default: Option<DefaultChange>,
        /// The new value, over the old row; a cast where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        up: Option<Expr>,
        /// The old value, over the new row. Absent: a rollback after the swap is only possible while casting back is exact.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        down: Option<Expr>,
        /// What happens to rows that do not fit.
        #[serde(default, skip_serializing_if = "is_default")]
        on_reject: OnReject,
    },
    /// A new index.
    AddIndex {
        /// The table.
        table: Ident,
        /// Its name.
        name: Ident,
        /// Its columns, at least one.
        columns: Vec<Ident>,
        /// Whether it is unique; it is not by default.
        #[serde(default, skip_serializing_if = "is_default")]
        unique: bool,
        /// Whether it is built without blocking writers; it is by default.
        #[serde(default = "yes", skip_serializing_if = "is_yes")]
        online: bool,
        /// Which rows it holds.
        #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
        filter: Option<Expr>,
    },
    /// An index goes.
    DropIndex {
        /// The table.
        table: Ident,
        /// The index.
        name: Ident,
    },
    /// A column goes: hidden at once, dropped after the grace period.
    DropColumn {
        /// The table.
        table: Ident,
        /// The column.
        column: Ident,
        /// The grace period in seconds; 0 by default.
        #[serde(default, rename = "grace_s", skip_serializing_if = "is_default")]
        grace_s: u64,
        /// Its value in rows that are written while it is hidden, over the new row; its default where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        down: Option<Expr>,
    },
    /// A table goes: hidden at once, dropped after the grace period.
    DropTable {
        /// The table.
        table: Ident,
        /// The grace period in seconds; 0 by default.
        #[serde(default, rename = "grace_s", skip_serializing_if = "is_default")]
        grace_s: u64,
    },
    /// A unique constraint.
    AddUnique {
        /// The table.
        table: Ident,
        /// The constraint's name.
        name: Ident,
        /// Its columns, at least one.
        columns: Vec<Ident>,
    },
    /// A check constraint.
    AddCheck {
        /// The table.
        table: Ident,
        /// The constraint's name.
        name: Ident,
        /// What has to hold.
        expr: Expr,
    },
    /// A foreign key.
    AddForeignKey {
        /// The table.
        table: Ident,
        /// The constraint's name.
        name: Ident,
        /// Its columns, at least one.
        columns: Vec<Ident>,
        /// What it points to.
        references: References,
        /// When the other row goes.
        #[serde(default, skip_serializing_if = "is_default")]
        on_delete: ForeignKeyAction,
        /// When the other row's key changes.
        #[serde(default, skip_serializing_if = "is_default")]
        on_update: ForeignKeyAction,
    },
    /// A unique, check or foreign key constraint goes.
    DropConstraint {
        /// The table.
        table: Ident,
        /// The constraint.
        name: Ident,
    },
    /// New values by SQL, row by row, in chunks.
    Sql {
        /// The table.
        table: Ident,
        /// The new values, over the row as the steps before left it.
        set: BTreeMap<Ident, Expr>,
        /// Which rows; all by default.
        #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
        filter: Option<Expr>,
        /// What has to hold for every row afterwards.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        check: Option<Expr>,
        /// The old values, over the new row. Absent: the old values are kept until contract.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        down: BTreeMap<Ident, Expr>,
    },
    /// New values by code in this process, registered by name.
    Transform {
        /// The table.
        table: Ident,
        /// The registered name.
        transform: String,
        /// The columns it is given.
        read: Vec<Ident>,
        /// The columns it sets.
        write: Vec<Ident>,
        /// What has to hold for every row afterwards.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        check: Option<Expr>,
    },
    /// New values by a plugin in a process of its own.
    Plugin {
        /// The table.
        table: Ident,
        /// Name and version: `phone-normaliser@1`.
        plugin: String,
        /// The columns it is given.
        read: Vec<Ident>,
        /// The columns it sets.
        write: Vec<Ident>,
        /// What has to hold for every row afterwards.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        check: Option<Expr>,
    },
}

impl Op {
    /// The word in files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CreateTable { .. } => "create_table",
            Self::AddColumn { .. } => "add_column",
            Self::RenameColumn { .. } => "rename_column",
            Self::RenameTable { .. } => "rename_table",
            Self::AlterColumn { .. } => "alter_column",
            Self::AddIndex { .. } => "add_index",
            Self::DropIndex { .. } => "drop_index",
            Self::DropColumn { .. } => "drop_column",
            Self::DropTable { .. } => "drop_table",
            Self::AddUnique { .. } => "add_unique",
            Self::AddCheck { .. } => "add_check",
            Self::AddForeignKey { .. } => "add_foreign_key",
            Self::DropConstraint { .. } => "drop_constraint",
            Self::Sql { .. } => "sql",
            Self::Transform { .. } => "transform",
            Self::Plugin { .. } => "plugin",
        }
    }

    /// The table it is about, by its name before this step.
    pub fn table(&self) -> &Ident {
        match self {
            Self::CreateTable { table, .. }
            | Self::AddColumn { table, .. }
            | Self::RenameColumn { table, .. }
            | Self::RenameTable { table, .. }
            | Self::AlterColumn { table, .. }
            | Self::AddIndex { table, .. }
            | Self::DropIndex { table, .. }
            | Self::DropColumn { table, .. }
            | Self::DropTable { table, .. }
            | Self::AddUnique { table, .. }
            | Self::AddCheck { table, .. }
            | Self::AddForeignKey { table, .. }
            | Self::DropConstraint { table, .. }
            | Self::Sql { table, .. }
            | Self::Transform { table, .. }
            | Self::Plugin { table, .. } => table,
        }
    }
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
