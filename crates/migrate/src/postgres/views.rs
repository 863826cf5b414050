//! Both versions at once: schemas `app_v<N>` with views over the table that is in use, and the trigger that keeps what a
//! column became and what it was equal.
//!
//! A client of a version has `search_path = app_v<N>, public`. Its views are plain enough to be updatable, so ON CONFLICT and
//! RETURNING work through them.

use super::{
    relation::Relation,
    session::{Session, ident, literal, qualified},
    shape::Shape,
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
    // With the invoker's rights, so that grants and row security of the table hold; before 15 a view has its owner's.
    let invoker = match session.is_true("SELECT current_setting('server_version_num')::int >= 150000")? {
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
    sql.push(format!("ALTER VIEW {view} OWNER TO {}", like.owner));
    Ok(sql)
}

/// The names of both versions' views of a change, as far as they exist: to be locked before the tables.
pub(crate) fn existing(
    session: &mut Session,
    versions: &Versions,
    change: &TableChange,
) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    let old = versions.seen(&change.table).map(|version| (version, change.table.as_str()));
    for (version, name) in old.chain([(versions.new.as_str(), change.name_then().as_str())]) {
        let schema = schema_of(version);
        if super::relation::find(session, &schema, name)?.is_some() {
            found.push(qualified(&schema, name));
        }
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
    let mut sql = drop_old(versions, change);
    for version in versions.shown(&change.table) {
        sql.extend(create(session, version, change.table.as_str(), table, like, shown)?);
    }
    Ok(sql)
}

/// Drops the views of all versions before the migration.
pub(crate) fn drop_old(versions: &Versions, change: &TableChange) -> Vec<String> {
    versions.seen(&change.table).map(|version| drop(version, change.table.as_str())).collect()
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
            })
        })
        .collect()
}

/// What the new version sees of a swapped table.
pub(crate) fn shown_new(shape: &Shape<'_>) -> Vec<Shown> {
    let visible = shape.targets.iter().filter(|target| !target.hidden);
    visible
        .map(|target| Shown { column: target.name.clone(), name: target.name.clone(), default: None })
        .collect()
}

/// The function that keeps computed columns and the hidden ones equal: the side that changed wins; both, and unequal, is
/// an error. `None` when nothing has to be kept equal.
pub(crate) fn equaliser(shape: &Shape<'_>) -> Option<String> {
    let hidden = shape.hidden();
    if hidden.is_empty() {
        return None;
    }
    let computed = shape.computed();
    let tuple = |row: &str, names: &mut dyn Iterator<Item = &str>| {
        format!("ROW({})", names.map(|name| format!("{row}.{}", ident(name))).collect::<Vec<_>>().join(", "))
    };
    let hidden_of = |row: &str| tuple(row, &mut hidden.iter().map(|(target, _)| target.name.as_str()));
    let computed_of = |row: &str| tuple(row, &mut computed.iter().map(|target| target.name.as_str()));
    // The row by its old names, from what T holds; and by its new names.
    let old_row: Vec<String> = shape
        .old_columns
        .iter()
        .filter_map(|column| {
            let holder = shape.holder(&column.name).or_else(|| shape.built_as(&column.name))?;
            Some(format!("NEW.{} AS {}", ident(&holder.name), ident(&column.name)))
        })
        .collect();
    let new_row: Vec<String> = shape
        .targets
        .iter()
        .filter(|target| !target.hidden)
        .map(|target| format!("NEW.{0} AS {0}", ident(&target.name)))
        .collect();
    let up = shape.change.up_query(&format!("(SELECT {}) AS _cutover_old", old_row.join(", ")), &[]);
    let ups = |row: &str| -> String {
        computed.iter().map(|target| format!("NEW.{0} := {row}.{0}; ", ident(&target.name))).collect()
    };
    let down = shape.change.down_query(&format!("(SELECT {}) AS _cutover_new", new_row.join(", ")), &[]);
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
                |down| format!("(SELECT ({down}) FROM (SELECT {}) AS _cutover_new)", new_row.join(", ")),
            );
            others.push_str(&format!(
                "IF TG_OP = 'INSERT' AND NEW.{name} IS NULL THEN NEW.{name} := {value}; END IF; "
            ));
        } else {
            reversible.push((name, ident(&old.name)));
        }
    }
    let lost = shape.artefacts.own("lost");
    let downs: String = reversible.iter().map(|(name, old)| format!("NEW.{name} := _d.{old}; ")).collect();
    let reset: String = reversible
        .iter()
        .map(|(name, _)| format!("NEW.{name} := CASE WHEN TG_OP = 'INSERT' THEN NULL ELSE NEW.{name} END; "))
        .collect();
    let key: Vec<String> = shape
        .key
        .iter()
        .map(|name| {
            format!("NEW.{}::text", ident(shape.key_target(name).map_or(name, |target| &target.name)))
        })
        .collect();
    let take_down = if reversible.is_empty() {
        others.clone()
    } else {
        // What cannot go back must not fail the application: it is listed, and a rollback names it.
        format!(
            "BEGIN SELECT * INTO STRICT _d FROM ({down}) AS _cutover_down; {downs}{others} \
             EXCEPTION WHEN OTHERS THEN {reset} INSERT INTO {lost} (row_key, reason) VALUES (json_build_array({})::text, SQLERRM); END; ",
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
        .map(|target| format!("_u.{0} IS NOT DISTINCT FROM NEW.{0}", ident(&target.name)))
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
    let given = |names: Vec<(String, Option<String>)>| {
        let parts: Vec<String> = names
            .into_iter()
            .map(|(name, default)| match default {
                Some(default) => format!("NEW.{name} IS DISTINCT FROM ({default})"),
                None => format!("NEW.{name} IS NOT NULL"),
            })
            .collect();
        if parts.is_empty() { "false".to_owned() } else { parts.join(" OR ") }
    };
    let paired: Vec<_> = hidden
        .iter()
        .filter(|(target, _)| reversible.iter().any(|(name, _)| *name == ident(&target.name)))
        .map(|(target, _)| (ident(&target.name), None))
        .collect();
    let old_given = given(paired);
    let new_given =
        given(computed.iter().map(|target| (ident(&target.name), target.default.clone())).collect());
    let new_absent = computed
        .iter()
        .map(|target| format!("NEW.{} IS NULL", ident(&target.name)))
        .collect::<Vec<_>>()
        .join(" OR ");
    let new_absent = if new_absent.is_empty() { "false".to_owned() } else { new_absent };
    let count_use = format!("PERFORM nextval({}::regclass);", literal(&shape.artefacts.own("old_use")));
    let changed = |what: &dyn Fn(&str) -> String| format!("{} IS DISTINCT FROM {}", what("OLD"), what("NEW"));
    let computed_changed = if computed.is_empty() { "false".to_owned() } else { changed(&computed_of) };
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
        hidden_changed = changed(&hidden_of),
    );
    Some(format!(
        "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET row_security = off AS {}",
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
