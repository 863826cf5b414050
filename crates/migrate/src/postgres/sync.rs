//! Dual write: the functions and triggers that keep one table equal to the other.
//!
//! The one primitive is `sync(k)`: remove k from the target, and if the source has k *now*, write it again. It never
//! looks at NEW: a trigger that copies NEW goes stale when another trigger updates the row again, and loses a row when one
//! statement swaps two keys. `ON CONFLICT DO NOTHING` instead of an upsert, because the target may be narrower: a row that
//! does not fit is remembered in `dirty`, and the application's statement goes on.
//!
//! Above READ COMMITTED the snapshot of a writer may be older than a copied row, which it then could not remove; there keys
//! are only remembered, and the drain syncs them.

use super::{
    session::{ident, literal},
    shape::Shape,
    walk,
};

/// Whether chunks of the copy may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copying {
    /// They may: rows that nobody sees yet.
    Now,
    /// Every row that was there is in the target, or never will be.
    Done,
}

/// Which way rows flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From S to T, before the swap.
    Forward,
    /// From T to S, after it.
    Back,
}

impl Way {
    /// The part of names that tells the two apart.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Back => "back",
        }
    }

    /// The row trigger's name. It sorts last among AFTER triggers of the same event.
    pub(crate) fn trigger(self) -> String {
        format!("~cutover_{}", self.word())
    }

    /// The TRUNCATE trigger's name.
    pub(crate) fn truncate_trigger(self) -> String {
        format!("~cutover_{}_truncate", self.word())
    }

    /// The name of the trigger that refuses snapshots from before an exchange.
    pub(crate) fn snapshot_trigger(self) -> String {
        format!("~cutover_{}_snapshot", self.word())
    }

    /// The table of keys to sync.
    pub(crate) fn dirty(self) -> String {
        format!("dirty_{}", self.word())
    }

    fn function(self, what: &str) -> String {
        format!("{}_{what}", self.word())
    }
}

/// How a shape is synced one way: the names on both sides.
pub(crate) struct Sync<'a> {
    shape: &'a Shape<'a>,
    way: Way,
    /// Qualified.
    pub(crate) source: String,
    /// Qualified.
    pub(crate) target: String,
    /// Key columns in the source, quoted.
    pub(crate) source_key: Vec<String>,
    /// Key columns in the target, quoted.
    pub(crate) target_key: Vec<String>,
    /// Types of the key in the source.
    pub(crate) types: Vec<String>,
    target_types: Vec<String>,
}

impl<'a> Sync<'a> {
    /// The sync of a shape, one way. Forward: T has its names of the time it is built.
    pub(crate) fn new(shape: &'a Shape<'a>, way: Way) -> Self {
        let old_key: Vec<String> = shape.key.iter().map(|name| ident(name)).collect();
        let (old_types, new_types) = shape.key_types().into_iter().unzip();
        let target = |name: &String| shape.key_target(name);
        match way {
            Way::Forward => Self {
                shape,
                way,
                source: shape.name_now(),
                target: shape.shadow(),
                target_key: shape
                    .key
                    .iter()
                    .map(|name| ident(target(name).map_or(name, |t| &t.build)))
                    .collect(),
                source_key: old_key,
                types: old_types,
                target_types: new_types,
            },
            Way::Back => Self {
                shape,
                way,
                source: shape.name_then(),
                target: shape.retired(),
                source_key: shape
                    .key
                    .iter()
                    .map(|name| ident(target(name).map_or(name, |t| &t.name)))
                    .collect(),
                target_key: old_key,
                types: new_types,
                target_types: old_types,
            },
        }
    }

    /// Which way.
    pub(crate) fn way(&self) -> Way {
        self.way
    }

    /// Conditions on a table's key: each part is what `place` and its number say, `row.k1`, `row.k2` ...
    fn is(&self, alias: &str, key: &[String], types: &[String], place: &str) -> String {
        let parts = key.iter().zip(types).enumerate().map(|(at, (name, kind))| match *types == *self.types {
            true => format!("{alias}.{name} = {place}{}", at + 1),
            false => format!("{alias}.{name} = {place}{}::{kind}", at + 1),
        });
        parts.collect::<Vec<_>>().join(" AND ")
    }

    /// The table of keys to sync, with its columns `k1`, `k2` ...
    pub(crate) fn dirty(&self) -> String {
        self.shape.artefacts.own(&self.way.dirty())
    }

    /// The columns of [`dirty`](Self::dirty) that hold the key.
    pub(crate) fn dirty_columns(&self) -> String {
        (1..=self.types.len()).map(|at| format!("k{at}")).collect::<Vec<_>>().join(", ")
    }

    /// What writes rows of the source that satisfy `filter` into the target; `filter` names the source by `s`.
    pub(crate) fn write(&self, filter: &str) -> String {
        let source = format!("(SELECT s.* FROM {} AS s WHERE {filter}) AS s", self.source);
        self.write_from(&source)
    }

    /// What writes rows of `source` (what follows FROM) into the target, passing over what is in the way.
    pub(crate) fn write_from(&self, source: &str) -> String {
        // Any unique index may be in the way; but with deferrable ones the server accepts only a named arbiter.
        let arbiter = if self.shape.is_deferrable {
            format!("({}) ", self.target_key.join(", "))
        } else {
            String::new()
        };
        format!("{} ON CONFLICT {arbiter}DO NOTHING", self.insert(source))
    }

    /// What writes those rows of `source` whose key the target does not have; fails with a unique violation when somebody
    /// writes one of them just now. Half the work of [`write_from`](Self::write_from), which inserts each row in two steps.
    pub(crate) fn write_missing(&self, source: &str) -> String {
        let same: Vec<String> = self
            .target_key
            .iter()
            .zip(&self.source_key)
            .zip(self.target_types.iter().zip(&self.types))
            .map(|((there, here), (kind, own))| match kind == own {
                true => format!("t.{there} = s.{here}"),
                false => format!("t.{there} = s.{here}::{kind}"),
            })
            .collect();
        self.insert(&format!(
            "(SELECT s.* FROM {source} AS s WHERE NOT EXISTS (SELECT 1 FROM {} AS t WHERE {})) AS s",
            self.target,
            same.join(" AND ")
        ))
    }

    fn insert(&self, source: &str) -> String {
        let (columns, query): (Vec<String>, String) = match self.way {
            Way::Forward => (
                self.shape.written().map(|target| ident(&target.build)).collect(),
                self.shape.forward(source),
            ),
            Way::Back => (
                self.shape.written_back().map(|column| ident(&column.name)).collect(),
                self.shape.backward(source),
            ),
        };
        format!("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE {query}", self.target, columns.join(", "))
    }

    /// Creates the table of keys to sync and the functions; idempotent. Bodies are not checked until they run, so the
    /// tables need not have their names yet.
    pub(crate) fn functions(&self, copying: Copying) -> String {
        let parameters: Vec<String> =
            self.types.iter().enumerate().map(|(at, kind)| format!("_k{} {kind}", at + 1)).collect();
        let parameters = parameters.join(", ");
        let dirty_definition: Vec<String> =
            self.types.iter().enumerate().map(|(at, kind)| format!("k{} {kind}", at + 1)).collect();
        let dirty = self.dirty();
        let dirty_columns = self.dirty_columns();
        let one = self.shape.artefacts.own(&self.way.function("one"));
        let fitting = self.way == Way::Forward && self.shape.is_as_wide();
        // With the function's name in front, since a column may be called like a parameter.
        let parameter = format!("{}._k", self.way.function("one"));
        let in_source = self.is("s", &self.source_key, &self.types, &parameter);
        let in_target = self.is("t", &self.target_key, &self.target_types, &parameter);
        let delete = format!("DELETE FROM {} AS t WHERE {in_target};", self.target);
        let body = format!(
            "{delete} {write}; GET DIAGNOSTICS _n = ROW_COUNT; \
             IF _n = 0 AND EXISTS (SELECT 1 FROM {source} AS s WHERE {in_source}) THEN RETURN 'another row is in its way'; END IF; RETURN NULL;",
            write = self.write(&in_source),
            source = self.source,
        );
        let one_body = if fitting {
            format!("BEGIN {body} END")
        } else {
            format!(
                "BEGIN {body} EXCEPTION WHEN OTHERS THEN BEGIN {delete} EXCEPTION WHEN OTHERS THEN NULL; END; RETURN SQLERRM; END"
            )
        };
        let keys = |row: &str| {
            self.source_key.iter().map(|name| format!("{row}.{name}")).collect::<Vec<_>>().join(", ")
        };
        let remember = |row: &str| format!("INSERT INTO {dirty} ({dirty_columns}) VALUES ({});", keys(row));
        // Why a row does not fit is for the drain to say: what is in its way may be a row that the copy just takes.
        let sync = |row: &str| format!("IF {one}({}) IS NOT NULL THEN {} END IF;", keys(row), remember(row));
        // A chunk of the copy that has not ended may hold a row that is deleted here; nobody sees it yet, so it is looked at
        // again after the copy.
        let forget = match copying {
            Copying::Now => format!("{} {}", sync("OLD"), remember("OLD")),
            Copying::Done => sync("OLD"),
        };
        let header = "LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET row_security = off";
        let trigger_body = format!(
            "BEGIN \
               IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN \
                 IF TG_OP <> 'INSERT' THEN {old_remember} END IF; \
                 IF TG_OP <> 'DELETE' THEN {new_remember} END IF; \
               ELSE \
                 IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND ROW({old_keys}) IS DISTINCT FROM ROW({new_keys})) THEN {forget} END IF; \
                 IF TG_OP <> 'DELETE' THEN {new_sync} END IF; \
               END IF; RETURN NULL; END",
            old_remember = remember("OLD"),
            new_remember = remember("NEW"),
            old_keys = keys("OLD"),
            new_keys = keys("NEW"),
            new_sync = sync("NEW"),
        );
        let truncate_body = format!("BEGIN TRUNCATE {}; RETURN NULL; END", self.target);
        let lock_source = self.is("s", &self.source_key, &self.types, "_row.k");
        // Each key once, its row locked first: whoever writes it meanwhile has either ended or comes after us. All keys are
        // removed before any is written, so that none is in another's way.
        let row_keys = (1..=self.types.len()).map(|at| format!("_row.k{at}")).collect::<Vec<_>>().join(", ");
        let drain_one = format!("_m := {one}({row_keys});");
        let in_target_row = self.is("t", &self.target_key, &self.target_types, "_row.k");
        let remove = format!("DELETE FROM {} AS t WHERE {in_target_row};", self.target);
        // A key that the target's type cannot hold is not there either.
        let remove = match self.types == self.target_types {
            true => remove,
            false => format!("BEGIN {remove} EXCEPTION WHEN data_exception THEN NULL; END;"),
        };
        let drain_body = format!(
            "DECLARE _rows {dirty}[]; _row {dirty}; _m text; _done bigint := 0; BEGIN \
               WITH d AS (DELETE FROM {dirty} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {dirty} WHERE reason IS NULL OR _again LIMIT _limit)) RETURNING {dirty_columns}) \
                 SELECT array_agg(DISTINCT ROW({dirty_columns}, NULL::text)::{dirty}) INTO _rows FROM d; \
               IF _rows IS NULL THEN RETURN 0; END IF; \
               FOREACH _row IN ARRAY _rows LOOP \
                 PERFORM 1 FROM {source} AS s WHERE {lock_source} FOR SHARE; \
                 {remove} \
               END LOOP; \
               FOREACH _row IN ARRAY _rows LOOP \
                 {drain_one} _done := _done + 1; \
                 IF _m IS NOT NULL THEN INSERT INTO {dirty} ({dirty_columns}, reason) VALUES ({row_keys}, _m); END IF; \
               END LOOP; RETURN _done; END",
            source = self.source,
        );
        format!(
            "SET LOCAL check_function_bodies = off; \
             CREATE TABLE IF NOT EXISTS {dirty} ({}, reason text); \
             CREATE OR REPLACE FUNCTION {one}({parameters}) RETURNS text {header} AS {}; \
             CREATE OR REPLACE FUNCTION {}() RETURNS trigger {header} AS {}; \
             CREATE OR REPLACE FUNCTION {}() RETURNS trigger {header} AS {}; \
             CREATE OR REPLACE FUNCTION {}(_limit bigint, _again boolean) RETURNS bigint {header} AS {}; {}",
            dirty_definition.join(", "),
            literal(&format!("#variable_conflict use_column\nDECLARE _n bigint; {one_body}")),
            self.shape.artefacts.own(&self.way.function("row")),
            literal(&format!("#variable_conflict use_column\n{trigger_body}")),
            self.shape.artefacts.own(&self.way.function("truncate")),
            literal(&truncate_body),
            self.shape.artefacts.own(&self.way.function("drain")),
            literal(&format!("#variable_conflict use_column\n{drain_body}")),
            walk::procedure(&self.shape.artefacts.own(walk::PROCEDURE)),
        )
    }

    /// Makes the table of keys to sync, once it is there, one that rows can be deleted from whatever is published: it has no key.
    pub(crate) fn published(&self) -> String {
        format!("ALTER TABLE {} REPLICA IDENTITY FULL", self.dirty())
    }

    /// Creates the triggers on the source. They fire for replicated rows and in replica mode too.
    pub(crate) fn triggers(&self) -> String {
        let name = ident(&self.way.trigger());
        let truncate = ident(&self.way.truncate_trigger());
        let table = &self.source;
        format!(
            "CREATE OR REPLACE TRIGGER {name} AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {}(); \
             CREATE OR REPLACE TRIGGER {truncate} AFTER TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {}(); \
             ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}, ENABLE ALWAYS TRIGGER {truncate}",
            self.shape.artefacts.own(&self.way.function("row")),
            self.shape.artefacts.own(&self.way.function("truncate")),
        )
    }

    /// Drops the triggers from a table, if they are there.
    pub(crate) fn drop_triggers(&self, table: &str) -> String {
        let names = [self.way.trigger(), self.way.truncate_trigger(), self.way.snapshot_trigger()];
        names.map(|name| format!("DROP TRIGGER IF EXISTS {} ON {table}", ident(&name))).join("; ")
    }

    /// Part of the transaction that makes `table` the one in use: from then on it fails writers above READ COMMITTED whose
    /// snapshot is from before, as a conflict that they have to expect. Rows that were synced meanwhile are not there for
    /// such a snapshot, and an UPDATE would pass them by without a word.
    pub(crate) fn refuse_old_snapshots(&self, table: &str) -> String {
        let function = self.shape.artefacts.own(&self.way.function("snapshot"));
        let name = ident(&self.way.snapshot_trigger());
        let body = "BEGIN IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') \
                      AND NOT pg_visible_in_snapshot(TG_ARGV[0]::xid8, pg_current_snapshot()) \
                    THEN RAISE EXCEPTION 'could not serialize access due to a schema migration' USING ERRCODE = '40001'; END IF; \
                    RETURN NULL; END";
        let create = format!(
            "CREATE OR REPLACE TRIGGER {name} BEFORE INSERT OR UPDATE OR DELETE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {function}("
        );
        format!(
            "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS {}; \
             DO $cutover$ BEGIN EXECUTE {} || quote_literal(pg_current_xact_id()::text) || ')'; END $cutover$; \
             ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}",
            literal(body),
            literal(&create)
        )
    }

    /// A query that is true while both triggers are on the table and always fire.
    pub(crate) fn has_triggers(&self, oid: &str) -> String {
        format!(
            "SELECT count(*) = 2 FROM pg_trigger WHERE tgrelid = {oid} AND tgenabled = 'A' AND tgname IN ({}, {})",
            literal(&self.way.trigger()),
            literal(&self.way.truncate_trigger())
        )
    }

    /// Syncs at most `limit` remembered keys; a query of how many. `again`: those too that did not fit before.
    pub(crate) fn drain(&self, limit: u64, again: bool) -> String {
        format!("SELECT {}({limit}, {again})", self.shape.artefacts.own(&self.way.function("drain")))
    }

    /// Syncs the key in the columns `k1`, `k2` ... of `alias`: an expression that is why it does not fit, or NULL.
    pub(crate) fn one_of(&self, alias: &str) -> String {
        let keys: Vec<String> = (1..=self.types.len()).map(|at| format!("{alias}.k{at}")).collect();
        format!("{}({})", self.shape.artefacts.own(&self.way.function("one")), keys.join(", "))
    }

    /// Syncs one key, given as literals; a query of why it does not fit, or NULL.
    pub(crate) fn one(&self, key: &[String]) -> String {
        let values: Vec<String> =
            key.iter().zip(&self.types).map(|(value, kind)| format!("{}::{kind}", literal(value))).collect();
        format!("SELECT {}({})", self.shape.artefacts.own(&self.way.function("one")), values.join(", "))
    }

    /// `(a, b)` of a table's key, for comparisons and ORDER BY.
    pub(crate) fn tuple(alias: &str, key: &[String]) -> String {
        let parts: Vec<String> = key.iter().map(|name| format!("{alias}.{name}")).collect();
        if parts.len() == 1 { parts[0].clone() } else { format!("({})", parts.join(", ")) }
    }

    /// The condition `lo < key <= hi` on the source's rows (`alias`), or on the target's.
    pub(crate) fn between(
        &self,
        alias: &str,
        on_target: bool,
        low: Option<&[String]>,
        high: Option<&[String]>,
    ) -> String {
        let texts = |key: &[String]| key.iter().map(|part| literal(part)).collect::<Vec<_>>();
        self.between_parts(alias, on_target, low.map(texts).as_deref(), high.map(texts).as_deref())
    }

    /// As [`between`](Self::between), of parts that are SQL text: expressions that yield each part of a key as text.
    pub(crate) fn between_parts(
        &self,
        alias: &str,
        on_target: bool,
        low: Option<&[String]>,
        high: Option<&[String]>,
    ) -> String {
        let (key, types) =
            if on_target { (&self.target_key, &self.target_types) } else { (&self.source_key, &self.types) };
        let tuple = Self::tuple(alias, key);
        let values = |bound: &[String]| {
            let parts: Vec<String> = bound
                .iter()
                .zip(&self.types)
                .zip(types)
                .map(|((value, kind), other)| match kind == other {
                    true => format!("{value}::{kind}"),
                    false => format!("{value}::{kind}::{other}"),
                })
                .collect();
            if parts.len() == 1 { parts[0].clone() } else { format!("({})", parts.join(", ")) }
        };
        let mut parts = Vec::new();
        if let Some(low) = low {
            parts.push(format!("{tuple} > {}", values(low)));
        }
        if let Some(high) = high {
            parts.push(format!("{tuple} <= {}", values(high)));
        }
        if parts.is_empty() { "true".to_owned() } else { parts.join(" AND ") }
    }

    /// The key columns of the source, in order, for ORDER BY.
    pub(crate) fn order(&self, alias: &str) -> String {
        self.source_key.iter().map(|name| format!("{alias}.{name}")).collect::<Vec<_>>().join(", ")
    }

    /// The key of the source's rows as text, one item per column.
    pub(crate) fn key_text(&self, alias: &str) -> String {
        self.source_key.iter().map(|name| format!("{alias}.{name}::text")).collect::<Vec<_>>().join(", ")
    }
}
