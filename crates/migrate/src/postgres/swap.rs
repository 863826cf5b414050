//! ATOMIC_SWAP of a shadow table and its way back: S and T exchange their places in one transaction.
//!
//! T stands in a schema of its own under S's name, and so do its indexes, constraints and sequences; the exchange is
//! SET SCHEMA twice, so everything keeps the name that people know. What the server binds by oid (foreign keys of others,
//! views, functions, policies) is bound again by statements printed before and run after.

use serde::{Deserialize, Serialize};

use super::{
    build::{constraints_using_indexes, keeps},
    rejects::{set_misfits_aside, sets_aside, some_wait},
    relation::{Dependent, Relation, TriggerDef, dependents, rules, trappings, triggers},
    session::{MOVED, Session, ident, literal, qualified},
    shape::{Shape, note, read_note},
    sync::{Copying, Sync as Dual, Way},
    views,
};
use crate::{
    change::NewConstraint,
    engine::{Loss, Task},
    error::{Error, Refusal},
};

/// A foreign key that the swap took off S, and everything else that the way back puts on it again.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Retired {
    /// Foreign keys of S and to S: whose (qualified; empty: S itself), name, definition, whether it was valid.
    pub(crate) foreign_keys: Vec<(String, String, String, bool)>,
    /// Triggers and their state.
    pub(crate) triggers: Vec<(String, String)>,
    /// Statements that bind views, functions and policies to the table again.
    pub(crate) rebind: Vec<String>,
    /// What those bind: kind and name. `None` in notes of before they were kept.
    #[serde(default)]
    pub(crate) bound: Option<Vec<(String, String)>>,
    /// Serial columns: sequence and column.
    pub(crate) owned: Vec<(String, String)>,
    /// Identity columns of S: column.
    pub(crate) identity: Vec<String>,
    /// Publications with what follows the table's name.
    pub(crate) publications: Vec<(String, String)>,
    /// Statistics objects: schema and name.
    pub(crate) statistics: Vec<(String, String)>,
    /// Rules: name, and the statements that make it. A table with rules takes no ON CONFLICT, which dual write needs.
    pub(crate) rules: Vec<(String, Vec<String>)>,
}

/// Raises our `MOVED` state: everything is released and tried again.
fn moved(condition: &str, says: &str) -> String {
    format!("IF {condition} THEN RAISE EXCEPTION {} USING ERRCODE = '{MOVED}'; END IF;", literal(says))
}

/// What has to be so under the lock, and the drain of the rest.
fn guard(task: &Task<'_>, shape: &Shape<'_>, dual: &Dual<'_>, oid: &str, loss: Loss) -> String {
    let limit = task.policy.drain_under_lock;
    let dirty = dual.dirty();
    // What is lost is not tried again.
    let (again, counted) = match loss {
        Loss::Refuse => (true, ""),
        Loss::Accept => (false, " WHERE reason IS NULL"),
    };
    let misfits = match loss {
        Loss::Refuse => format!(
            "IF EXISTS (SELECT 1 FROM {dirty} WHERE reason IS NOT NULL) THEN RAISE EXCEPTION 'rows do not fit' USING ERRCODE = 'CUT03'; END IF;"
        ),
        Loss::Accept => String::new(),
    };
    // What was set aside on the way to T is approved, or the exchange waits.
    let rejects = match dual.way() {
        Way::Back => String::new(),
        Way::Forward => format!(
            "IF {} THEN RAISE EXCEPTION 'rows were set aside and nobody has approved that' USING ERRCODE = 'CUT03'; END IF;",
            some_wait(task, shape)
        ),
    };
    let aside = match dual.way() == Way::Forward && sets_aside(shape) {
        true => format!("{};", set_misfits_aside(task, shape, dual)),
        false => String::new(),
    };
    format!(
        "DO $cutover$ DECLARE _n bigint; BEGIN \
           IF NOT ({triggers}) THEN RAISE EXCEPTION 'somebody removed or disabled a trigger of the migration' USING ERRCODE = 'CUT04'; END IF; \
           {more} _n := ({drain}); {aside} {misfits} {rejects} END $cutover$",
        triggers = dual.has_triggers(oid),
        drain = dual.drain(limit, again),
        more = moved(
            &format!("(SELECT count(*) FROM {dirty}{counted}) > {limit}"),
            "more keys to sync than may be synced under the lock"
        ),
    )
}

/// Everything that has to be known before the exchange, read under the gentle lock.
pub(crate) struct Reading {
    source: Relation,
    target: Relation,
    triggers: Vec<TriggerDef>,
    dependents: Vec<Dependent>,
    retired: Retired,
}

/// Reads S and T as they are, and checks that S is what T was made after.
pub(crate) fn read(session: &mut Session, task: &Task<'_>, shape: &Shape<'_>) -> Result<Reading, Error> {
    let source_oid = read_note(session, &shape.artefacts, "source")?.unwrap_or_default();
    let target_oid = read_note(session, &shape.artefacts, "target")?.unwrap_or_default();
    let source = Relation::read(session, &source_oid)?;
    let target = Relation::read(session, &target_oid)?;
    super::build::check_structure(session, shape, &source)?;
    let (found, refusals) = dependents(session, &source)?;
    if !refusals.is_empty() {
        return Err(Error::Refused(refusals));
    }
    let ours = views::existing(session, task.versions, shape.change)?;
    let dependents: Vec<Dependent> = found
        .into_iter()
        .filter(|one| one.kind != "view" || ours.iter().all(|name| unquoted(name) != unquoted(&one.name)))
        .collect();
    let triggers = triggers(session, &source_oid)?;
    let mut retired = Retired::default();
    for key in &source.foreign_keys {
        retired.foreign_keys.push((String::new(), key.name.clone(), key.definition.clone(), key.valid));
    }
    for key in &source.referenced_by {
        retired.foreign_keys.push((key.table.clone(), key.name.clone(), key.definition.clone(), key.valid));
    }
    retired.rules = rules(session, &source)?;
    retired.triggers = triggers.iter().map(|one| (one.name.clone(), one.state.clone())).collect();
    retired.rebind = dependents.iter().map(|one| one.rebind.clone()).collect();
    retired.bound = Some(dependents.iter().map(|one| (one.kind.clone(), one.name.clone())).collect());
    for column in &source.columns {
        match (&column.sequence, &column.identity) {
            (Some(sequence), None) => retired.owned.push((sequence.clone(), column.name.clone())),
            (Some(_), Some(_)) => retired.identity.push(column.name.clone()),
            _ => {}
        }
    }
    let columns_and_filter = match session
        .is_true("SELECT current_setting('server_version_num')::int >= 150000")?
    {
        true => {
            "coalesce((SELECT ' (' || string_agg(quote_ident(a.attname), ', ') || ')' FROM pg_attribute a WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs)), '') || coalesce(' WHERE (' || pg_get_expr(r.prqual, r.prrelid) || ')', '')"
        }
        false => "''",
    };
    let rows = session.run(&format!(
        "SELECT 's', n.nspname, e.stxname FROM pg_statistic_ext e JOIN pg_namespace n ON n.oid = e.stxnamespace WHERE e.stxrelid = {source_oid} \
         UNION ALL SELECT 'p', p.pubname, {columns_and_filter} FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = {source_oid}"
    ))?;
    for row in rows {
        let part = |at: usize| row.get(at).cloned().flatten().unwrap_or_default();
        let list = if part(0) == "s" { &mut retired.statistics } else { &mut retired.publications };
        list.push((part(1), part(2)));
    }
    Ok(Reading { source, target, triggers, dependents, retired })
}

fn unquoted(name: &str) -> String {
    name.replace('"', "")
}

/// The other tables that a swap has to lock: those with foreign keys to S, and those S points to.
pub(crate) fn neighbours(source: &Relation) -> Vec<String> {
    let mut tables: Vec<String> = source.referenced_by.iter().map(|key| key.table.clone()).collect();
    tables.extend(source.foreign_keys.iter().filter_map(|key| key.target.clone()));
    tables.sort();
    tables.dedup();
    tables.retain(|table| unquoted(table) != unquoted(&source.qualified()));
    tables
}

/// Whether every dependent can be bound to the new shape.
pub(crate) fn check_dependents(
    session: &mut Session,
    task: &Task<'_>,
    shape: &Shape<'_>,
    source: &Relation,
) -> Result<Vec<Refusal>, Error> {
    let (found, mut refusals) = dependents(session, source)?;
    let ours = views::existing(session, task.versions, shape.change)?;
    for one in found {
        if ours.iter().any(|name| unquoted(name) == unquoted(&one.name)) {
            continue;
        }
        let changed = one.columns.iter().find(|name| {
            let column = shape
                .change
                .columns
                .iter()
                .find(|column| column.now.as_ref().is_some_and(|now| now.as_str() == *name));
            column.is_none_or(|column| column.then.is_none() || column.type_now != column.type_then)
        });
        if let Some(column) = changed {
            refusals.push(Refusal::new(
                format!("{} {} reads column `{column}`, which changes", one.kind, one.name),
                "Drop it before the migration and create it again afterwards.",
            ));
        }
    }
    for trigger in triggers(session, &source.oid)? {
        if let Some(column) = trigger.columns.iter().find(|name| shape.built_as(name).is_none()) {
            refusals.push(Refusal::new(
                format!(
                    "trigger `{}` of `{}` names column `{column}`, which goes",
                    trigger.name, shape.change.table
                ),
                "Drop the trigger before the migration, or create it anew without the column.",
            ));
        }
    }
    Ok(refusals)
}

/// The statements of the exchange, S for T, for one change.
pub(crate) fn exchange(
    session: &mut Session,
    task: &Task<'_>,
    shape: &Shape<'_>,
    reading: &Reading,
) -> Result<Vec<String>, Error> {
    let Reading { source, target, triggers, dependents, retired } = reading;
    let art = &shape.artefacts;
    let forward = Dual::new(shape, Way::Forward);
    let back = Dual::new(shape, Way::Back);
    let now = shape.name_now();
    let then = shape.name_then();
    let old = shape.retired();
    let mut sql = vec![guard(task, shape, &forward, &source.oid, Loss::Refuse)];
    sql.push(note(
        art,
        "retired",
        &serde_json::to_string(retired).map_err(|error| Error::Damaged(error.to_string()))?,
    ));
    sql.push(note(art, "primary", "target"));
    // Off with what binds S.
    sql.push(forward.drop_triggers(&now));
    for (table, name, ..) in &retired.foreign_keys {
        let table = if table.is_empty() { &now } else { table };
        sql.push(format!("ALTER TABLE {table} DROP CONSTRAINT {}", ident(name)));
    }
    for (rule, _) in &retired.rules {
        sql.push(format!("DROP RULE {} ON {now}", ident(rule)));
    }
    for (publication, _) in &retired.publications {
        sql.push(format!("ALTER PUBLICATION {} DROP TABLE {now}", ident(publication)));
    }
    for (sequence, _) in &retired.owned {
        sql.push(format!("ALTER SEQUENCE {sequence} OWNED BY NONE"));
    }
    // The exchange.
    sql.push(format!("ALTER TABLE {now} SET SCHEMA {}", ident(&art.old)));
    sql.push(format!("ALTER TABLE {} SET SCHEMA {}", shape.shadow(), ident(&shape.schema)));
    for (schema, name) in &retired.statistics {
        sql.push(format!("ALTER STATISTICS {} SET SCHEMA {}", qualified(schema, name), ident(&art.old)));
        sql.push(format!("ALTER STATISTICS {} SET SCHEMA {}", qualified(&art.new, name), ident(schema)));
    }
    if !triggers.is_empty() {
        sql.push(format!("ALTER TABLE {old} DISABLE TRIGGER USER"));
    }
    // On with everything for T, which has S's column names still.
    for (sequence, column) in &retired.owned {
        if shape.built_as(column).is_some() {
            sql.push(format!("ALTER SEQUENCE {sequence} OWNED BY {now}.{}", ident(column)));
        }
    }
    for column in &retired.identity {
        let here = source.column(column).and_then(|column| column.sequence_name.as_ref());
        let there = target.column(column).and_then(|column| column.sequence_name.as_ref());
        if let (Some(here), Some(there)) = (here, there) {
            sql.push(format!(
                "SELECT setval({}, last_value, is_called) FROM {}.{here}",
                literal(&format!("{}.{there}", ident(&shape.schema))),
                ident(&art.old)
            ));
        }
    }
    sql.extend(constraints_using_indexes(shape, source, &now));
    for check in
        source.checks.iter().filter(|check| !check.valid && keeps(shape, &check.name, &check.columns))
    {
        sql.push(format!(
            "ALTER TABLE {now} ADD CONSTRAINT {} {} NOT VALID",
            ident(&check.name),
            check.definition
        ));
    }
    for trigger in triggers {
        sql.push(trigger.definition.clone());
        if trigger.state != "ENABLE" {
            sql.push(format!("ALTER TABLE {now} {} TRIGGER {}", trigger.state, ident(&trigger.name)));
        }
    }
    sql.extend(trappings(session, source, &now, &target.oid, &|column| shape.built_as(column).is_some())?);
    for index in target.indexes.iter().filter(|index| keeps(shape, &index.name, &index.columns)) {
        let comment = session.value(&format!(
            "SELECT d.description FROM pg_description d JOIN pg_class c ON c.oid = d.objoid JOIN pg_index i ON i.indexrelid = c.oid \
             WHERE d.classoid = 'pg_class'::regclass AND i.indrelid = {} AND c.relname = {}",
            source.oid,
            literal(&index.name)
        ))?;
        if let Some(comment) = comment {
            sql.push(format!(
                "COMMENT ON INDEX {} IS {}",
                qualified(&shape.schema, &index.name),
                literal(&comment)
            ));
        }
    }
    sql.extend(retired.rules.iter().flat_map(|(_, statements)| statements.clone()));
    for key in source.foreign_keys.iter().filter(|key| keeps(shape, &key.name, &key.columns)) {
        sql.push(format!(
            "ALTER TABLE {now} ADD CONSTRAINT {} {} NOT VALID",
            ident(&key.name),
            key.definition
        ));
    }
    for key in &source.referenced_by {
        sql.push(format!(
            "ALTER TABLE {} ADD CONSTRAINT {} {} NOT VALID",
            key.table,
            ident(&key.name),
            key.definition
        ));
    }
    for (publication, tail) in &retired.publications {
        sql.push(format!("ALTER PUBLICATION {} ADD TABLE {now}{tail}", ident(publication)));
    }
    sql.extend(dependents.iter().map(|one| one.rebind.clone()));
    // From here on under the new names.
    sql.extend(renames(shape, &now));
    if then != now {
        sql.push(format!("ALTER TABLE {now} RENAME TO {}", ident(shape.change.name_then().as_str())));
    }
    for constraint in &shape.change.add_constraints {
        let name = ident(constraint.name().as_str());
        sql.push(match constraint {
            NewConstraint::Unique { .. } => {
                format!("ALTER TABLE {then} ADD CONSTRAINT {name} UNIQUE USING INDEX {name}")
            }
            NewConstraint::Check { .. } | NewConstraint::ForeignKey { .. } => {
                format!("ALTER TABLE {then} ADD {} NOT VALID", definition(shape, constraint))
            }
        });
    }
    sql.extend([back.functions(Copying::Done), back.published()]);
    sql.push(back.triggers());
    sql.push(back.refuse_old_snapshots(&then));
    if let Some(function) = views::equaliser(shape, target) {
        sql.push(function);
        sql.push(views::equaliser_trigger(shape, &then));
    }
    if shape.change.needs_views() {
        let (old, new) = (views::shown_old(shape), views::shown_new(shape));
        sql.extend(views::create_all(session, task.versions, shape.change, &then, source, &old, &new)?);
    }
    Ok(sql)
}

/// `CONSTRAINT name ..` with the referenced table qualified.
pub(crate) fn definition(shape: &Shape<'_>, constraint: &NewConstraint) -> String {
    match constraint {
        NewConstraint::ForeignKey { name, columns, references, on_delete, on_update } => format!(
            "CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {} ({}) ON DELETE {on_delete} ON UPDATE {on_update}",
            name.quoted(),
            crate::change::quoted(columns),
            qualified(&shape.schema, references.table.as_str()),
            crate::change::quoted(&references.columns),
        ),
        other => other.print(),
    }
}

/// Column names of the old shape become those of the new one.
fn renames(shape: &Shape<'_>, table: &str) -> Vec<String> {
    let renamed: Vec<_> = shape.targets.iter().filter(|target| target.build != target.name).collect();
    let taken = |name: &str| shape.targets.iter().any(|target| target.build == name);
    let mut first = Vec::new();
    let mut second = Vec::new();
    for (at, target) in renamed.iter().enumerate() {
        if taken(&target.name) {
            let between = format!("_cutover_rename_{at}");
            first.push(format!(
                "ALTER TABLE {table} RENAME COLUMN {} TO {}",
                ident(&target.build),
                ident(&between)
            ));
            second.push(format!(
                "ALTER TABLE {table} RENAME COLUMN {} TO {}",
                ident(&between),
                ident(&target.name)
            ));
        } else {
            first.push(format!(
                "ALTER TABLE {table} RENAME COLUMN {} TO {}",
                ident(&target.build),
                ident(&target.name)
            ));
        }
    }
    first.extend(second);
    first
}

/// The statements of the way back, T for S, for one change.
pub(crate) fn exchange_back(
    session: &mut Session,
    task: &Task<'_>,
    shape: &Shape<'_>,
    loss: Loss,
) -> Result<Vec<String>, Error> {
    let art = &shape.artefacts;
    let back = Dual::new(shape, Way::Back);
    let now = shape.name_now();
    let then = shape.name_then();
    let target_oid = read_note(session, art, "target")?.unwrap_or_default();
    let source_oid = read_note(session, art, "source")?.unwrap_or_default();
    let retired = retired(session, shape)?;
    let target = Relation::read(session, &target_oid)?;
    let source = Relation::read(session, &source_oid)?;
    let known = |name: &str| retired.foreign_keys.iter().any(|(_, other, ..)| other == name);
    let mut strangers: Vec<Refusal> = target
        .referenced_by
        .iter()
        .filter(|key| !known(&key.name))
        .map(|key| {
            Refusal::new(
                format!(
                    "{} has foreign key `{}` to `{}` since the swap",
                    key.table, key.name, shape.change.table
                ),
                "Drop that foreign key, roll back, and add it again.",
            )
        })
        .collect();
    if let Some(bound) = &retired.bound {
        // The server binds them by the table's oid: they would go on reading what nobody writes any more.
        let ours = views::existing(session, task.versions, shape.change)?;
        let (found, others) = dependents(session, &target)?;
        let made_since = found.iter().filter(|one| {
            bound.iter().all(|(kind, name)| (kind, name) != (&one.kind, &one.name))
                && ours.iter().all(|name| one.kind != "view" || unquoted(name) != unquoted(&one.name))
        });
        strangers.extend(made_since.map(|one| {
            Refusal::new(
                format!("{} {} uses `{}` since the swap", one.kind, one.name, shape.change.table),
                "Drop it, roll back, and create it again.",
            )
        }));
        strangers.extend(others);
    }
    if !strangers.is_empty() {
        return Err(Error::Locked(strangers));
    }
    let mut sql = vec![guard(task, shape, &back, &target_oid, loss)];
    sql.push(note(art, "primary", "source"));
    sql.push(note(art, "rolled_back", "yes"));
    sql.push(views::drop_triggers(&back, &then));
    for key in &target.foreign_keys {
        sql.push(format!("ALTER TABLE {then} DROP CONSTRAINT {}", ident(&key.name)));
    }
    for key in &target.referenced_by {
        sql.push(format!("ALTER TABLE {} DROP CONSTRAINT {}", key.table, ident(&key.name)));
    }
    if shape.change.needs_views() {
        sql.extend(views::drop_old(session, task.versions, shape.change)?);
        sql.push(views::drop(&task.versions.new, shape.change.name_then().as_str()));
    }
    for (publication, _) in &retired.publications {
        sql.push(format!("ALTER PUBLICATION {} DROP TABLE {then}", ident(publication)));
    }
    for (sequence, _) in &retired.owned {
        sql.push(format!("ALTER SEQUENCE {sequence} OWNED BY NONE"));
    }
    if then != now {
        sql.push(format!("ALTER TABLE {then} RENAME TO {}", ident(shape.change.table.as_str())));
    }
    sql.push(format!("ALTER TABLE {now} SET SCHEMA {}", ident(&art.new)));
    sql.push(format!("ALTER TABLE {} SET SCHEMA {}", shape.retired(), ident(&shape.schema)));
    for (schema, name) in &retired.statistics {
        sql.push(format!("ALTER STATISTICS {} SET SCHEMA {}", qualified(schema, name), ident(&art.new)));
        sql.push(format!("ALTER STATISTICS {} SET SCHEMA {}", qualified(&art.old, name), ident(schema)));
    }
    for (sequence, column) in &retired.owned {
        sql.push(format!("ALTER SEQUENCE {sequence} OWNED BY {now}.{}", ident(column)));
    }
    for column in &retired.identity {
        let new_name = shape.built_as(column).map_or(column.as_str(), |target| &target.name);
        let here = source.column(column).and_then(|column| column.sequence_name.as_ref());
        let there = target.column(new_name).and_then(|column| column.sequence_name.as_ref());
        if let (Some(here), Some(there)) = (here, there) {
            sql.push(format!(
                "SELECT setval({}, last_value, is_called) FROM {}.{there}",
                literal(&format!("{}.{here}", ident(&shape.schema))),
                ident(&art.new)
            ));
        }
    }
    for (name, state) in &retired.triggers {
        sql.push(format!("ALTER TABLE {now} {state} TRIGGER {}", ident(name)));
    }
    for (table, name, definition, _) in &retired.foreign_keys {
        let table = if table.is_empty() { &now } else { table };
        sql.push(format!("ALTER TABLE {table} ADD CONSTRAINT {} {definition} NOT VALID", ident(name)));
    }
    for (publication, tail) in &retired.publications {
        sql.push(format!("ALTER PUBLICATION {} ADD TABLE {now}{tail}", ident(publication)));
    }
    sql.extend(retired.rules.iter().flat_map(|(_, statements)| statements.clone()));
    sql.extend(retired.rebind.iter().cloned());
    sql.push(Dual::new(shape, Way::Forward).refuse_old_snapshots(&now));
    Ok(sql)
}

/// What the swap noted.
pub(crate) fn retired(session: &mut Session, shape: &Shape<'_>) -> Result<Retired, Error> {
    let text = read_note(session, &shape.artefacts, "retired")?;
    let text =
        text.ok_or_else(|| Error::Damaged(format!("the swap of `{}` left no note", shape.change.table)))?;
    serde_json::from_str(&text).map_err(|error| Error::Damaged(error.to_string()))
}

/// Foreign keys and new constraints that were added NOT VALID and were valid before, or are new: table and name.
pub(crate) fn to_validate(
    session: &mut Session,
    shape: &Shape<'_>,
    table: &str,
) -> Result<Vec<(String, String)>, Error> {
    let retired = retired(session, shape)?;
    let mut found = Vec::new();
    for (other, name, _, valid) in &retired.foreign_keys {
        if *valid {
            found.push((if other.is_empty() { table.to_owned() } else { other.clone() }, name.clone()));
        }
    }
    for constraint in &shape.change.add_constraints {
        if !matches!(constraint, NewConstraint::Unique { .. }) {
            found.push((table.to_owned(), constraint.name().as_str().to_owned()));
        }
    }
    Ok(found)
}

/// Validates constraints that are not yet valid; SHARE UPDATE EXCLUSIVE, which no client waits for.
pub(crate) fn validate(
    session: &mut Session,
    task: &Task<'_>,
    constraints: &[(String, String)],
) -> Result<(), Error> {
    for (table, name) in constraints {
        let pending = session.is_true(&format!(
            "SELECT EXISTS (SELECT 1 FROM pg_constraint WHERE conrelid = to_regclass({}) AND conname = {} AND NOT convalidated)",
            literal(table),
            literal(name)
        ))?;
        if pending {
            // It may scan for long: the lease is checked before, not locked meanwhile, or its owner could not renew it.
            let sql = format!("ALTER TABLE {table} VALIDATE CONSTRAINT {}", ident(name));
            super::retry_busy(task, || {
                session.run(&super::polite::fence(task.epoch))?;
                session.transaction(&format!("SET LOCAL lock_timeout = '5s'; {sql}"))
            })
            .map_err(super::polite::unfence(task.epoch))?;
        }
    }
    Ok(())
}
