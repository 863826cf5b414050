//! Both versions at once: schemas `app_v<N>` with views over the table that is in use, and the trigger that keeps what a
//! column became and what it was equal.
//!
//! A client of a version has `search_path = app_v<N>, public`. Its views are plain enough to be updatable, so ON CONFLICT and
//! RETURNING work through them.

use super::{
    relation::Relation,
    session::{PRINTED, Session, ident, literal, qualified},
    shape::{Shape, Target},
    sync::Sync as Dual,
};
use crate::{change::TableChange, engine::Versions, error::Error};

/// The schema of a version's views.
pub(crate) fn schema_of(version: &str) -> String {
    format!("app_v{version}")
}

/// One column of a version's view.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    /// In the table.
    pub(crate) column: String,
    /// In the view.
    pub(crate) name: String,
    /// What the view's own default is, where the table's is another one.
    pub(crate) default: Option<String>,
    /// The column of the old table whose grants hold for it.
    pub(crate) like: Option<String>,
}

/// Creates a version's view over `table` (qualified), with the table's owner and grants (`like`, its oid).
pub(crate) fn create(
    session: &mut Session,
    version: &str,
    name: &str,
    table: &str,
    like: &Relation,
    shown: &[Shown],
) -> Result<Vec<String>, Error> {
    let schema = schema_of(version);
    let view = qualified(&schema, name);
    let columns: Vec<String> = shown
        .iter()
        .map(|shown| match shown.column == shown.name {
            true => ident(&shown.column),
            false => format!("{} AS {}", ident(&shown.column), ident(&shown.name)),
        })
        .collect();
    // With the invoker's rights, so that grants and row security of the table hold; before 15 a view has its owner's. An
    // invoker needs rights on all columns that a view has, so grants on single ones hold only for a view with its owner's.
    let by_invoker = session.is_true(&format!(
        "SELECT current_setting('server_version_num')::int >= 150000 AND (c.relrowsecurity OR NOT EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL)) FROM pg_class c WHERE c.oid = {}",
        like.oid
    ))?;
    let invoker = match by_invoker {
        true => " WITH (security_invoker = true)",
        false => "",
    };
    let mut sql = vec![
        format!("CREATE SCHEMA IF NOT EXISTS {}", ident(&schema)),
        format!("GRANT USAGE ON SCHEMA {} TO PUBLIC", ident(&schema)),
        format!("DROP VIEW IF EXISTS {view}"),
        format!("CREATE VIEW {view}{invoker} AS SELECT {} FROM {table}", columns.join(", ")),
        format!(
            "COMMENT ON VIEW {view} IS {}",
            literal(&format!("made by cutover for application version {version}"))
        ),
    ];
    for shown in shown {
        if let Some(default) = &shown.default {
            sql.push(format!("ALTER VIEW {view} ALTER COLUMN {} SET DEFAULT {default}", ident(&shown.name)));
        }
    }
    let grants = session.run(&format!(
        "SELECT format('GRANT %s ON %s TO %s%s', x.privilege_type, {}, coalesce(quote_ident(r.rolname), 'PUBLIC'), CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) \
         FROM pg_class c, aclexplode(c.relacl) x LEFT JOIN pg_roles r ON r.oid = x.grantee WHERE c.oid = {}",
        literal(&view),
        like.oid
    ))?;
    sql.extend(grants.into_iter().filter_map(|row| row.into_iter().next().flatten()));
    let grants = session.run(&format!(
        "SELECT a.attname, x.privilege_type, coalesce(quote_ident(r.rolname), 'PUBLIC'), CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END \
         FROM pg_attribute a, aclexplode(a.attacl) x LEFT JOIN pg_roles r ON r.oid = x.grantee \
         WHERE a.attrelid = {} AND a.attnum > 0 AND NOT a.attisdropped",
        like.oid
    ))?;
    for row in grants {
        let [Some(column), Some(privilege), Some(role), Some(option)] = &row[..] else { continue };
        for shown in shown.iter().filter(|shown| shown.like.as_ref() == Some(column)) {
            sql.push(format!("GRANT {privilege} ({}) ON {view} TO {role}{option}", ident(&shown.name)));
        }
    }
    sql.push(format!("ALTER VIEW {view} OWNER TO {}", like.owner));
    Ok(sql)
}

/// The versions before the migration that have a view of a table.
fn with_view<'v>(
    session: &mut Session,
    versions: &'v Versions,
    change: &'v TableChange,
) -> Result<Vec<&'v str>, Error> {
    let rows = session.run(&format!(
        "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'v' AND c.relname = {} AND n.nspname LIKE 'app\\_v%'",
        literal(change.table.as_str())
    ))?;
    let found: Vec<String> = rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
    Ok(versions.seen(&change.table).filter(|version| found.contains(&schema_of(version))).collect())
}

/// The names of all versions' views of a change, as far as they exist: to be locked before the tables.
pub(crate) fn existing(
    session: &mut Session,
    versions: &Versions,
    change: &TableChange,
) -> Result<Vec<String>, Error> {
    if !change.needs_views() {
        return Ok(Vec::new());
    }
    let old = with_view(session, versions, change)?;
    let mut found: Vec<String> =
        old.into_iter().map(|version| qualified(&schema_of(version), change.table.as_str())).collect();
    let (schema, name) = (schema_of(&versions.new), change.name_then().as_str());
    if super::relation::find(session, &schema, name)?.is_some() {
        found.push(qualified(&schema, name));
    }
    Ok(found)
}

/// Creates the views by which all versions go on: those before the migration see `old`, its own sees `new`.
pub(crate) fn create_all(
    session: &mut Session,
    versions: &Versions,
    change: &TableChange,
    table: &str,
    like: &Relation,
    old: &[Shown],
    new: &[Shown],
) -> Result<Vec<String>, Error> {
    let mut sql = create_old(session, versions, change, table, like, old)?;
    sql.extend(create(session, &versions.new, change.name_then().as_str(), table, like, new)?);
    Ok(sql)
}

/// Creates the views of the versions before the migration, and drops those that nobody needs any more.
pub(crate) fn create_old(
    session: &mut Session,
    versions: &Versions,
    change: &TableChange,
    table: &str,
    like: &Relation,
    shown: &[Shown],
) -> Result<Vec<String>, Error> {
    let mut sql = drop_old(session, versions, change)?;
    for version in versions.shown(&change.table) {
        sql.extend(create(session, version, change.table.as_str(), table, like, shown)?);
    }
    Ok(sql)
}

/// Drops the views of all versions before the migration. Only those that are there: a line of migrations may be long, and this
/// happens under locks that clients wait for.
pub(crate) fn drop_old(
    session: &mut Session,
    versions: &Versions,
    change: &TableChange,
) -> Result<Vec<String>, Error> {
    let found = with_view(session, versions, change)?;
    Ok(found.into_iter().map(|version| drop(version, change.table.as_str())).collect())
}

/// Drops a version's view of a table, and its schema when that was the last one.
pub(crate) fn drop(version: &str, name: &str) -> String {
    let schema = schema_of(version);
    format!(
        "DROP VIEW IF EXISTS {}; DO $cutover$ BEGIN DROP SCHEMA IF EXISTS {}; EXCEPTION WHEN dependent_objects_still_exist THEN NULL; END $cutover$",
        qualified(&schema, name),
        ident(&schema)
    )
}

/// The BEFORE trigger of a swapped table. It sorts after the user's own.
pub(crate) const EQUALISER: &str = "~cutover_equal";

/// What the old version sees of a swapped table.
pub(crate) fn shown_old(shape: &Shape<'_>) -> Vec<Shown> {
    shape
        .old_columns
        .iter()
        .filter_map(|column| {
            let holder = shape.holder(&column.name).or_else(|| shape.built_as(&column.name))?;
            Some(Shown {
                column: holder.name.clone(),
                name: column.name.clone(),
                default: column.default.clone().filter(|_| holder.hidden),
                like: Some(column.name.clone()),
            })
        })
        .collect()
}

/// What the new version sees of a swapped table.
pub(crate) fn shown_new(shape: &Shape<'_>) -> Vec<Shown> {
    let visible = shape.targets.iter().filter(|target| !target.hidden);
    visible
        .map(|target| Shown {
            column: target.name.clone(),
            name: target.name.clone(),
            default: None,
            like: Some(target.build.clone()),
        })
        .collect()
}

/// The function that keeps computed columns and the hidden ones equal: the side that changed wins; both, and unequal, is
/// an error. `None` when nothing has to be kept equal.
pub(crate) fn equaliser(shape: &Shape<'_>, built: &Relation) -> Option<String> {
    let hidden = shape.hidden();
    if hidden.is_empty() {
        return None;
    }
    let computed = shape.computed();
    let is_comparable = |target: &Target| built.column(&target.build).is_none_or(|column| column.comparable);
    // Values of a type without equality are the same when they are the same bytes.
    let changed = |targets: &[&Target]| {
        let (equal, same): (Vec<&Target>, Vec<&Target>) =
            targets.iter().copied().partition(|target| is_comparable(target));
        let tuple = |row: &str, targets: &[&Target]| {
            let names = targets.iter().map(|target| format!("{row}.{}", ident(&target.name)));
            format!("ROW({})::record", names.collect::<Vec<_>>().join(", "))
        };
        let parts: Vec<String> = [(equal, "IS DISTINCT FROM"), (same, "*<>")]
            .iter()
            .filter(|(targets, _)| !targets.is_empty())
            .map(|(targets, differ)| format!("{} {differ} {}", tuple("OLD", targets), tuple("NEW", targets)))
            .collect();
        if parts.is_empty() { "false".to_owned() } else { parts.join(" OR ") }
    };
    // The row by its old names, from what T holds; and by its new names.
    let new_row = shape.new_row_then();
    let up = shape.change.up_query(&shape.new_row_back(), &[]);
    let ups = |row: &str| -> String {
        computed.iter().map(|target| format!("NEW.{0} := {row}.{0}; ", ident(&target.name))).collect()
    };
    let down = shape.change.down_query(&new_row, &[]);
    let kept_back = shape.change.kept_back();
    let mut reversible = Vec::new();
    let mut others = String::new();
    for (target, old) in &hidden {
        let name = ident(&target.name);
        let column = shape
            .change
            .columns
            .iter()
            .find(|column| column.now.as_ref().is_some_and(|now| now.as_str() == old.name));
        let goes = column.is_none_or(|column| column.then.is_none());
        let set_by_code =
            column.and_then(|column| column.then.as_ref()).is_some_and(|then| kept_back.contains(&then));
        if goes || set_by_code {
            // It has no counterpart: what `down` says, else its default, for new rows only.
            let down = column.and_then(|column| column.down.clone());
            let value = down.map_or_else(
                || old.default.clone().unwrap_or_else(|| "NULL".to_owned()),
                |down| format!("(SELECT ({down}) FROM {new_row})"),
            );
            others.push_str(&format!(
                "IF TG_OP = 'INSERT' AND NEW.{name} IS NULL THEN NEW.{name} := {value}; END IF; "
            ));
        } else {
            reversible.push((name, ident(&old.name)));
        }
    }
    let lose = shape.artefacts.own("lose");
    let downs: String = reversible.iter().map(|(name, old)| format!("NEW.{name} := _d.{old}; ")).collect();
    let reset: String = reversible
        .iter()
        .map(|(name, _)| format!("NEW.{name} := CASE WHEN TG_OP = 'INSERT' THEN NULL ELSE NEW.{name} END; "))
        .collect();
    let key: Vec<String> = shape
        .key
        .iter()
        .map(|name| format!("NEW.{}", ident(shape.key_target(name).map_or(name, |target| &target.name))))
        .collect();
    let take_down = if reversible.is_empty() {
        others.clone()
    } else {
        // What cannot go back must not fail the application: it is listed, and a rollback names it.
        format!(
            "BEGIN SELECT * INTO STRICT _d FROM ({down}) AS _cutover_down; {downs}{others} \
             EXCEPTION WHEN OTHERS THEN {reset} PERFORM {lose}({}, SQLERRM); END; ",
            key.join(", ")
        )
    };
    let take_up = if computed.is_empty() {
        String::new()
    } else {
        format!("SELECT * INTO STRICT _u FROM ({up}) AS _cutover_up; {}", ups("_u"))
    };
    let agree = computed
        .iter()
        .map(|target| {
            let name = ident(&target.name);
            match is_comparable(target) {
                true => format!("_u.{name} IS NOT DISTINCT FROM NEW.{name}"),
                false => format!("_u.{name}::{}::text IS NOT DISTINCT FROM NEW.{name}::text", target.kind),
            }
        })
        .collect::<Vec<_>>()
        .join(" AND ");
    let both = if computed.is_empty() {
        String::new()
    } else {
        format!(
            "SELECT * INTO STRICT _u FROM ({up}) AS _cutover_up; IF NOT ({agree}) THEN \
             RAISE EXCEPTION 'both versions of a column were written, with values that do not agree' USING ERRCODE = 'check_violation'; END IF; "
        )
    };
    let any = |parts: Vec<String>| if parts.is_empty() { "false".to_owned() } else { parts.join(" OR ") };
    let old_given = any(reversible.iter().map(|(name, _)| format!("NEW.{name} IS NOT NULL")).collect());
    let is_given = |target: &&Target| {
        let name = ident(&target.name);
        match &target.default {
            None => format!("NEW.{name} IS NOT NULL"),
            Some(default) if is_comparable(target) => format!("NEW.{name} IS DISTINCT FROM ({default})"),
            Some(default) => {
                format!("NEW.{name}::text IS DISTINCT FROM ({default})::{}::text", target.kind)
            }
        }
    };
    let new_given = any(computed.iter().map(is_given).collect());
    let new_absent = computed
        .iter()
        .map(|target| format!("NEW.{} IS NULL", ident(&target.name)))
        .collect::<Vec<_>>()
        .join(" OR ");
    let new_absent = if new_absent.is_empty() { "false".to_owned() } else { new_absent };
    let count_use = format!("PERFORM nextval({}::regclass);", literal(&shape.artefacts.own("old_use")));
    let computed_changed = changed(&computed);
    let body = format!(
        "#variable_conflict use_column\nDECLARE _u record; _d record; BEGIN \
           IF TG_OP = 'INSERT' THEN \
             IF ({old_given}) AND ({new_given}) THEN {both} {others} \
             ELSIF ({old_given}) OR ({new_absent} AND NOT ({new_given})) THEN {count_use} {take_up} {others} \
             ELSE {take_down} END IF; \
           ELSIF ({hidden_changed}) AND ({computed_changed}) THEN {both} \
           ELSIF ({hidden_changed}) THEN {count_use} {take_up} \
           ELSIF ({computed_changed}) THEN {take_down} END IF; \
           RETURN NEW; END",
        hidden_changed = changed(&hidden.iter().map(|(target, _)| *target).collect::<Vec<_>>()),
    );
    let types = shape.key_types().into_iter().map(|(_, new)| new);
    let parts: Vec<String> = (1..=shape.key.len()).map(|at| format!("${at}::text")).collect();
    Some(format!(
        "CREATE OR REPLACE FUNCTION {lose}({}) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog {PRINTED} AS {}; \
         CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET row_security = off AS {}",
        types.chain(["text".to_owned()]).collect::<Vec<_>>().join(", "),
        literal(&format!(
            "INSERT INTO {} (row_key, reason) VALUES (json_build_array({})::text, ${})",
            shape.artefacts.own("lost"),
            parts.join(", "),
            shape.key.len() + 1
        )),
        shape.artefacts.own("equal"),
        literal(&body)
    ))
}

/// Creates the trigger of [`equaliser`] on the table in use.
pub(crate) fn equaliser_trigger(shape: &Shape<'_>, table: &str) -> String {
    format!(
        "CREATE OR REPLACE TRIGGER {0} BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {1}(); ALTER TABLE {table} ENABLE ALWAYS TRIGGER {0}",
        ident(EQUALISER),
        shape.artefacts.own("equal")
    )
}

/// Drops the triggers of the way back and that of [`equaliser`] together.
pub(crate) fn drop_triggers(back: &Dual<'_>, table: &str) -> String {
    format!("DROP TRIGGER IF EXISTS {} ON {table}; {}", ident(EQUALISER), back.drop_triggers(table))
}
