//! A table as the catalog has it: everything that a copy of it has to have too.
//!
//! Reads only. Definitions are the server's own text, printed under an empty `search_path`, so every name in them is
//! qualified; where another name has to stand at the head of a definition, the head is taken off by exact match.

use super::session::{Row, Session, ident, literal, qualified};
use crate::error::{Error, Refusal};

/// One column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attribute {
    pub(crate) name: String,
    /// The type with its modifier, as the server prints it.
    pub(crate) kind: String,
    /// The name of the type alone, in `pg_catalog` or elsewhere.
    pub(crate) type_name: String,
    /// As `kind`; of a domain the type under it, which holds any value, NULL too.
    pub(crate) base_kind: String,
    /// Whether the server itself can say that two values are equal: not of json, xml, point.
    pub(crate) comparable: bool,
    pub(crate) not_null: bool,
    /// The default, or the expression of a generated column.
    pub(crate) default: Option<String>,
    /// `ALWAYS` or `BY DEFAULT`.
    pub(crate) identity: Option<String>,
    pub(crate) generated: bool,
    /// Qualified, when it is not the type's own.
    pub(crate) collation: Option<String>,
    /// Whether values that are equal have the same bytes.
    pub(crate) deterministic: bool,
    /// What `ALTER COLUMN` has to say: storage, compression, statistics target, options.
    pub(crate) settings: Vec<String>,
    /// The sequence it owns, qualified; of an identity column too.
    pub(crate) sequence: Option<String>,
    /// The sequence's name alone, quoted.
    pub(crate) sequence_name: Option<String>,
}

/// One index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IndexDef {
    pub(crate) oid: String,
    pub(crate) name: String,
    pub(crate) unique: bool,
    pub(crate) valid: bool,
    /// What follows the table's name: `USING btree (..) ..`.
    pub(crate) tail: String,
    /// Plain columns in order; `None` when it has expressions, a condition or an operator class or order of its own.
    pub(crate) plain_columns: Option<Vec<String>>,
    /// Every column that it names, in expressions and conditions too.
    pub(crate) columns: Vec<String>,
    pub(crate) clustered: bool,
    pub(crate) replica_identity: bool,
    /// The constraint it is for: kind (`p`, `u`, `x`), and for `x` its definition, else ` DEFERRABLE ..` or nothing.
    pub(crate) constraint: Option<(char, String)>,
}

/// A check or foreign key constraint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConstraintDef {
    pub(crate) name: String,
    /// Without `NOT VALID`.
    pub(crate) definition: String,
    pub(crate) valid: bool,
    /// Whose it is, qualified: for a foreign key that points here, another table.
    pub(crate) table: String,
    /// What it points to, qualified (foreign keys).
    pub(crate) target: Option<String>,
    /// The columns of its own table.
    pub(crate) columns: Vec<String>,
}

/// A table.
#[derive(Clone, Debug)]
pub(crate) struct Relation {
    pub(crate) oid: String,
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) owner: String,
    pub(crate) columns: Vec<Attribute>,
    pub(crate) indexes: Vec<IndexDef>,
    pub(crate) checks: Vec<ConstraintDef>,
    /// Foreign keys of this table; one that points to itself is here only.
    pub(crate) foreign_keys: Vec<ConstraintDef>,
    /// Foreign keys of other tables that point here.
    pub(crate) referenced_by: Vec<ConstraintDef>,
    /// `UNLOGGED `, or nothing.
    pub(crate) persistence: String,
    /// `USING heap WITH (..) TABLESPACE ..`.
    pub(crate) storage: String,
    pub(crate) rows_estimate: u64,
}

fn text(row: &Row, at: usize) -> String {
    row.get(at).cloned().flatten().unwrap_or_default()
}

fn yes(row: &Row, at: usize) -> bool {
    text(row, at) == "t"
}

/// Names that the server printed as a JSON array of strings.
fn names(row: &Row, at: usize) -> Vec<String> {
    serde_json::from_str(&text(row, at)).unwrap_or_default()
}

/// The oid of a table by name, as `search_path` (given as the list of schemas) finds it.
pub(crate) fn find(session: &mut Session, schema: &str, name: &str) -> Result<Option<String>, Error> {
    session.value(&format!(
        "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = {} AND c.relname = {} AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
        literal(schema),
        literal(name)
    ))
}

impl Relation {
    /// The name, qualified and quoted.
    pub(crate) fn qualified(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// The column of this name.
    pub(crate) fn column(&self, name: &str) -> Option<&Attribute> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Reads an ordinary table.
    pub(crate) fn read(session: &mut Session, oid: &str) -> Result<Self, Error> {
        let head = session
            .row(&format!(
                "SELECT n.nspname, c.relname, c.relowner::regrole::text, c.relpersistence, \
                   CASE WHEN am.amname <> 'heap' THEN ' USING ' || quote_ident(am.amname) ELSE '' END \
                   || coalesce(' WITH (' || nullif(concat_ws(', ', array_to_string(c.reloptions, ', '), \
                        (SELECT string_agg('toast.' || o, ', ') FROM pg_class t, unnest(t.reloptions) o WHERE t.oid = c.reltoastrelid)), '') || ')', '') \
                   || coalesce(' TABLESPACE ' || quote_ident(ts.spcname), ''), greatest(c.reltuples, 0)::bigint \
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 LEFT JOIN pg_am am ON am.oid = c.relam LEFT JOIN pg_tablespace ts ON ts.oid = c.reltablespace \
                 WHERE c.oid = {oid}"
            ))?
            .ok_or_else(|| Error::Damaged(format!("there is no table of oid {oid}")))?;
        let mut relation = Self {
            oid: oid.to_owned(),
            schema: text(&head, 0),
            name: text(&head, 1),
            owner: text(&head, 2),
            columns: Vec::new(),
            indexes: Vec::new(),
            checks: Vec::new(),
            foreign_keys: Vec::new(),
            referenced_by: Vec::new(),
            persistence: if text(&head, 3) == "u" { "UNLOGGED ".to_owned() } else { String::new() },
            storage: text(&head, 4),
            rows_estimate: text(&head, 5).parse().unwrap_or(0),
        };
        relation.columns = read_columns(session, oid)?;
        relation.indexes = read_indexes(session, oid)?;
        (relation.checks, relation.foreign_keys, relation.referenced_by) = read_constraints(session, oid)?;
        Ok(relation)
    }

    /// What a copy relies on while it is made: columns, indexes, constraints. Two readings that print alike are alike.
    pub(crate) fn structure(&self) -> String {
        let valid: Vec<_> =
            self.indexes.iter().filter(|index| index.valid).map(|index| (&index.name, &index.tail)).collect();
        let columns: Vec<_> =
            self.columns.iter().map(|c| (&c.name, &c.kind, c.not_null, &c.default, &c.identity)).collect();
        let checks: Vec<_> = self.checks.iter().map(|c| (&c.name, &c.definition)).collect();
        format!("{columns:?} {valid:?} {checks:?}")
    }
}

fn read_columns(session: &mut Session, oid: &str) -> Result<Vec<Attribute>, Error> {
    let rows = session.run(&format!(
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod), t.typname, a.attnotnull, pg_get_expr(d.adbin, d.adrelid), \
           CASE a.attidentity WHEN 'a' THEN 'ALWAYS' WHEN 'd' THEN 'BY DEFAULT' END, a.attgenerated <> '', \
           CASE WHEN a.attcollation <> t.typcollation THEN quote_ident(cn.nspname) || '.' || quote_ident(co.collname) END, \
           coalesce(co.collisdeterministic, true), \
           coalesce((SELECT json_agg(x) FROM unnest(ARRAY[ \
             CASE WHEN a.attstorage <> t.typstorage THEN 'SET STORAGE ' || CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END END, \
             CASE a.attcompression WHEN 'p' THEN 'SET COMPRESSION pglz' WHEN 'l' THEN 'SET COMPRESSION lz4' END, \
             CASE WHEN coalesce(a.attstattarget, -1) >= 0 THEN 'SET STATISTICS ' || a.attstattarget END, \
             'SET (' || array_to_string(a.attoptions, ', ') || ')']) x WHERE x IS NOT NULL), '[]'), \
           quote_ident(seq.nspname) || '.' || quote_ident(seq.relname), t.typtype, \
           CASE t.typtype WHEN 'd' THEN format_type(base.oid, base.modifier) ELSE format_type(a.atttypid, a.atttypmod) END, \
           item.typtype IN ('e', 'r', 'm') OR EXISTS (SELECT 1 FROM pg_opclass o JOIN pg_am am ON am.oid = o.opcmethod \
             WHERE am.amname IN ('btree', 'hash') AND o.opcdefault AND o.opcnamespace = 'pg_catalog'::regnamespace AND item.typtype = 'b' \
             AND (o.opcintype = item.oid OR EXISTS (SELECT 1 FROM pg_cast k \
               WHERE k.castsource = item.oid AND k.casttarget = o.opcintype AND k.castmethod = 'b' AND k.castcontext = 'i'))), \
           quote_ident(seq.relname) \
         FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
         CROSS JOIN LATERAL (WITH RECURSIVE b(oid, typtype, base, modifier) AS (SELECT t.oid, t.typtype, t.typbasetype, t.typtypmod \
             UNION ALL SELECT n.oid, n.typtype, n.typbasetype, CASE WHEN b.modifier >= 0 THEN b.modifier ELSE n.typtypmod END FROM b JOIN pg_type n ON n.oid = b.base WHERE b.typtype = 'd') \
           SELECT b.oid, b.modifier FROM b WHERE b.typtype <> 'd') base \
         JOIN pg_type whole ON whole.oid = base.oid \
         JOIN pg_type item ON item.oid = CASE WHEN whole.typcategory = 'A' AND whole.typelem <> 0 THEN whole.typelem ELSE whole.oid END \
         LEFT JOIN LATERAL (SELECT sn.nspname, sc.relname FROM pg_depend dep JOIN pg_class sc ON sc.oid = dep.objid AND sc.relkind = 'S' \
             JOIN pg_namespace sn ON sn.oid = sc.relnamespace WHERE dep.classid = 'pg_class'::regclass AND dep.refclassid = 'pg_class'::regclass \
             AND dep.refobjid = a.attrelid AND dep.refobjsubid = a.attnum AND dep.deptype IN ('a', 'i') LIMIT 1) seq ON true \
         LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
         LEFT JOIN pg_collation co ON co.oid = a.attcollation LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace \
         WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
    ))?;
    Ok(rows
        .iter()
        .map(|row| Attribute {
            name: text(row, 0),
            kind: text(row, 1),
            type_name: if text(row, 11) == "e" { "enum".to_owned() } else { text(row, 2) },
            not_null: yes(row, 3),
            default: row[4].clone(),
            identity: row[5].clone(),
            generated: yes(row, 6),
            collation: row[7].clone(),
            deterministic: yes(row, 8),
            settings: names(row, 9),
            sequence: row[10].clone(),
            base_kind: text(row, 12),
            comparable: yes(row, 13),
            sequence_name: row[14].clone(),
        })
        .collect())
}

fn read_indexes(session: &mut Session, oid: &str) -> Result<Vec<IndexDef>, Error> {
    let rows = session.run(&format!(
        "SELECT c.oid, c.relname, i.indisunique, i.indisvalid AND i.indisready AND i.indislive, pg_get_indexdef(c.oid), \
           format('CREATE %sINDEX %I ON %s%I.%I ', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, c.relname, CASE WHEN t.relkind = 'p' THEN 'ONLY ' ELSE '' END, tn.nspname, t.relname), \
           CASE WHEN i.indexprs IS NULL AND i.indpred IS NULL AND am.amname = 'btree' AND NOT (0 <> ANY (i.indoption)) \
                 AND (SELECT bool_and(o.opcdefault) FROM unnest(i.indclass) k JOIN pg_opclass o ON o.oid = k) \
                 AND (SELECT bool_and(a.attcollation = k.coll) FROM unnest(i.indkey, i.indcollation) WITH ORDINALITY k(att, coll, at) JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.att WHERE k.at <= i.indnkeyatts) \
             THEN (SELECT json_agg(a.attname ORDER BY k.at) FROM unnest(i.indkey) WITH ORDINALITY k(att, at) JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.att WHERE k.at <= i.indnkeyatts) END, \
           i.indisclustered, i.indisreplident, con.contype, \
           CASE WHEN con.contype = 'x' THEN pg_get_constraintdef(con.oid) WHEN con.condeferrable THEN ' DEFERRABLE' || CASE WHEN con.condeferred THEN ' INITIALLY DEFERRED' ELSE '' END ELSE '' END, \
           coalesce((SELECT json_agg(DISTINCT a.attname) FROM pg_depend d JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid \
             WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid AND d.refobjsubid > 0 \
             AND ((d.classid = 'pg_class'::regclass AND d.objid = c.oid) OR (d.classid = 'pg_constraint'::regclass AND d.objid = con.oid))), '[]') \
         FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid \
         JOIN pg_namespace tn ON tn.oid = t.relnamespace JOIN pg_am am ON am.oid = c.relam \
         LEFT JOIN pg_constraint con ON con.conindid = c.oid AND con.conrelid = t.oid AND con.contype IN ('p', 'u', 'x') \
         WHERE i.indrelid = {oid} ORDER BY i.indisprimary DESC, c.relname"
    ))?;
    rows.iter()
        .map(|row| {
            let definition = text(row, 4);
            let tail = definition.strip_prefix(&text(row, 5)).ok_or_else(|| {
                Error::Damaged(format!(
                    "the server prints index `{}` unlike expected: {definition}",
                    text(row, 1)
                ))
            })?;
            Ok(IndexDef {
                oid: text(row, 0),
                name: text(row, 1),
                unique: yes(row, 2),
                valid: yes(row, 3),
                tail: tail.to_owned(),
                plain_columns: row[6].as_ref().map(|_| names(row, 6)),
                columns: names(row, 11),
                clustered: yes(row, 7),
                replica_identity: yes(row, 8),
                constraint: row[9].as_ref().and_then(|kind| Some((kind.chars().next()?, text(row, 10)))),
            })
        })
        .collect()
}

type Constraints = (Vec<ConstraintDef>, Vec<ConstraintDef>, Vec<ConstraintDef>);

fn read_constraints(session: &mut Session, oid: &str) -> Result<Constraints, Error> {
    let rows = session.run(&format!(
        "SELECT con.contype, con.conname, pg_get_constraintdef(con.oid), con.convalidated, format('%I.%I', n.nspname, c.relname), \
           (SELECT format('%I.%I', fn.nspname, fc.relname) FROM pg_class fc JOIN pg_namespace fn ON fn.oid = fc.relnamespace WHERE fc.oid = con.confrelid), \
           (SELECT coalesce(json_agg(a.attname), '[]') FROM pg_attribute a WHERE a.attrelid = con.conrelid AND a.attnum = ANY (con.conkey)), \
           con.conrelid = {oid} \
         FROM pg_constraint con JOIN pg_class c ON c.oid = con.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE (con.conrelid = {oid} AND con.contype IN ('c', 'f')) OR (con.confrelid = {oid} AND con.contype = 'f') \
         ORDER BY con.conname, 5"
    ))?;
    let (mut checks, mut out, mut into) = (Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        let definition = text(row, 2);
        let found = ConstraintDef {
            name: text(row, 1),
            definition: definition.strip_suffix(" NOT VALID").unwrap_or(&definition).to_owned(),
            valid: yes(row, 3),
            table: text(row, 4),
            target: row[5].clone(),
            columns: names(row, 6),
        };
        match (text(row, 0).as_str(), yes(row, 7)) {
            ("c", _) => checks.push(found),
            (_, true) => out.push(found),
            (_, false) => into.push(found),
        }
    }
    Ok((checks, out, into))
}

/// A trigger of the user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TriggerDef {
    pub(crate) name: String,
    pub(crate) definition: String,
    /// `ENABLE`, `DISABLE`, `ENABLE REPLICA`, `ENABLE ALWAYS`.
    pub(crate) state: String,
    pub(crate) columns: Vec<String>,
}

/// The triggers of a table, without ours and without those of foreign keys.
pub(crate) fn triggers(session: &mut Session, oid: &str) -> Result<Vec<TriggerDef>, Error> {
    let rows = session.run(&format!(
        "SELECT t.tgname, pg_get_triggerdef(t.oid), \
           CASE t.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE' END, \
           coalesce((SELECT json_agg(DISTINCT a.attname) FROM pg_depend d JOIN pg_attribute a ON a.attrelid = t.tgrelid AND a.attnum = d.refobjsubid \
             WHERE d.classid = 'pg_trigger'::regclass AND d.objid = t.oid AND d.refclassid = 'pg_class'::regclass AND d.refobjid = t.tgrelid AND d.refobjsubid > 0), '[]') \
         FROM pg_trigger t WHERE t.tgrelid = {oid} AND NOT t.tgisinternal AND t.tgname NOT LIKE '\\_cutover\\_%' AND t.tgname NOT LIKE '~cutover%' \
         ORDER BY t.tgname"
    ))?;
    Ok(rows
        .iter()
        .map(|row| TriggerDef {
            name: text(row, 0),
            definition: text(row, 1),
            state: text(row, 2),
            columns: names(row, 3),
        })
        .collect())
}

/// Something outside the table that the server binds to it by oid, and the statement that binds it to whatever has the
/// table's name then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dependent {
    /// `view`, `function`, `policy`.
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) rebind: String,
    /// Columns of the table that it names.
    pub(crate) columns: Vec<String>,
}

/// What depends on the table from outside, and why the table cannot be copied, if so.
pub(crate) fn dependents(
    session: &mut Session,
    relation: &Relation,
) -> Result<(Vec<Dependent>, Vec<Refusal>), Error> {
    let oid = &relation.oid;
    let columns = |class: &str, id: &str| {
        format!(
            "coalesce((SELECT json_agg(DISTINCT a.attname) FROM pg_depend d JOIN pg_attribute a ON a.attrelid = {oid} AND a.attnum = d.refobjsubid \
             WHERE d.classid = '{class}'::regclass AND d.objid = {id} AND d.refclassid = 'pg_class'::regclass AND d.refobjid = {oid} AND d.refobjsubid > 0), '[]')"
        )
    };
    let rows = session.run(&format!(
        "SELECT DISTINCT 'view', format('%I.%I', n.nspname, v.relname), \
           format('CREATE OR REPLACE VIEW %I.%I%s AS %s', n.nspname, v.relname, coalesce(' WITH (' || array_to_string(v.reloptions, ', ') || ')', ''), rtrim(pg_get_viewdef(v.oid), ';')), \
           {view_columns}::text \
         FROM pg_depend dep JOIN pg_rewrite r ON r.oid = dep.objid JOIN pg_class v ON v.oid = r.ev_class AND v.relkind = 'v' JOIN pg_namespace n ON n.oid = v.relnamespace \
         WHERE dep.classid = 'pg_rewrite'::regclass AND dep.refclassid = 'pg_class'::regclass AND dep.refobjid = {oid} AND r.ev_class <> {oid} \
         UNION ALL SELECT DISTINCT 'function', p.oid::regprocedure::text, pg_get_functiondef(p.oid), {function_columns}::text \
         FROM pg_depend dep JOIN pg_proc p ON p.oid = dep.objid \
         WHERE dep.classid = 'pg_proc'::regclass AND dep.refclassid = 'pg_class'::regclass AND dep.refobjid = {oid} AND p.prokind <> 'a' \
         UNION ALL SELECT DISTINCT 'policy', format('%I on %I.%I', pol.polname, n.nspname, c.relname), \
           format('ALTER POLICY %I ON %I.%I%s%s', pol.polname, n.nspname, c.relname, ' USING (' || pg_get_expr(pol.polqual, pol.polrelid) || ')', ' WITH CHECK (' || pg_get_expr(pol.polwithcheck, pol.polrelid) || ')'), \
           {policy_columns}::text \
         FROM pg_depend dep JOIN pg_policy pol ON pol.oid = dep.objid JOIN pg_class c ON c.oid = pol.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE dep.classid = 'pg_policy'::regclass AND dep.refclassid = 'pg_class'::regclass AND dep.refobjid = {oid} AND pol.polrelid <> {oid} ORDER BY 1, 2",
        view_columns = columns("pg_rewrite", "r.oid"),
        function_columns = columns("pg_proc", "p.oid"),
        policy_columns = columns("pg_policy", "pol.oid"),
    ))?;
    let found = rows
        .iter()
        .map(|row| Dependent {
            kind: text(row, 0),
            name: text(row, 1),
            rebind: text(row, 2),
            columns: names(row, 3),
        })
        .collect();
    Ok((found, obstacles(session, relation)?))
}

/// Why the copy protocol cannot be used on a table.
pub(crate) fn obstacles(session: &mut Session, relation: &Relation) -> Result<Vec<Refusal>, Error> {
    let oid = &relation.oid;
    let name = &relation.name;
    let mut refusals = Vec::new();
    let facts = session
        .row(&format!(
            "SELECT c.relkind, c.relispartition, \
               EXISTS (SELECT 1 FROM pg_inherits h WHERE h.inhparent = c.oid), EXISTS (SELECT 1 FROM pg_inherits h WHERE h.inhrelid = c.oid), \
               c.reloftype <> 0, EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'), \
               c.relpersistence = 't', c.relforcerowsecurity AND NOT (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user), \
               EXISTS (SELECT 1 FROM pg_seclabel l WHERE l.objoid = c.oid), \
               pg_has_role(c.relowner, 'USAGE') \
             FROM pg_class c WHERE c.oid = {oid}"
        ))?
        .unwrap_or_default();
    let mut refuse = |what: String, way_out: &str| refusals.push(Refusal::new(what, way_out));
    if text(&facts, 0) != "r" {
        refuse(
            format!("`{name}` is no ordinary table"),
            "Change its partitions one by one, or what it is made from.",
        );
    }
    if yes(&facts, 1) {
        refuse(format!("`{name}` is a partition"), "Detach it, migrate it, and attach it again.");
    }
    if yes(&facts, 2) || (yes(&facts, 3) && !yes(&facts, 1)) {
        refuse(format!("`{name}` inherits, or is inherited from"), "Use ALTER TABLE .. NO INHERIT first.");
    }
    if yes(&facts, 4) {
        refuse(format!("`{name}` is a typed table"), "Use ALTER TABLE .. NOT OF first.");
    }
    if yes(&facts, 5) {
        refuse(format!("`{name}` belongs to an extension"), "Let the extension's own update change it.");
    }
    if yes(&facts, 6) {
        refuse(format!("`{name}` is a temporary table"), "Temporary tables are their session's own.");
    }
    if yes(&facts, 7) {
        refuse(
            format!("`{name}` forces row level security on its owner"),
            "Migrate as a role with BYPASSRLS, so that no row is hidden from the copy.",
        );
    }
    if yes(&facts, 8) {
        refuse(format!("`{name}` has a security label"), "Remove the label, and set it again afterwards.");
    }
    if !yes(&facts, 9) {
        refuse(
            format!("`{name}` belongs to `{}`", relation.owner),
            "Migrate as its owner, or as a member of that role.",
        );
    }
    if relation.key().is_none() {
        refuse(
            format!("`{name}` has no key by which its rows could be told apart"),
            "Add a primary key, or a unique index over NOT NULL columns.",
        );
    }
    for row in session.run(&format!(
        "SELECT DISTINCT pg_describe_object(dep.classid, dep.objid, 0) FROM pg_depend dep \
         WHERE ((dep.refclassid = 'pg_class'::regclass AND dep.refobjid = {oid}) \
             OR (dep.refclassid = 'pg_type'::regclass AND dep.refobjid IN (SELECT t.oid FROM pg_type t WHERE t.typrelid = {oid} \
                 UNION ALL SELECT t.typarray FROM pg_type t WHERE t.typrelid = {oid}))) \
           AND dep.deptype NOT IN ('i') AND NOT (dep.classid = 'pg_class'::regclass AND dep.objid = {oid}) \
           AND NOT (dep.classid = 'pg_class'::regclass AND dep.deptype = 'a') \
           AND CASE \
             WHEN dep.refclassid = 'pg_type'::regclass THEN true \
             WHEN dep.classid = 'pg_rewrite'::regclass THEN EXISTS (SELECT 1 FROM pg_rewrite r JOIN pg_class v ON v.oid = r.ev_class WHERE r.oid = dep.objid AND v.relkind NOT IN ('v', 'r')) \
             WHEN dep.classid = 'pg_class'::regclass THEN NOT EXISTS (SELECT 1 FROM pg_class x WHERE x.oid = dep.objid AND x.relkind IN ('i', 'S', 't')) \
             WHEN dep.classid = 'pg_proc'::regclass THEN EXISTS (SELECT 1 FROM pg_proc p WHERE p.oid = dep.objid AND p.prokind = 'a') \
             ELSE dep.classid NOT IN ('pg_constraint'::regclass, 'pg_trigger'::regclass, 'pg_policy'::regclass, 'pg_attrdef'::regclass, \
               'pg_statistic_ext'::regclass, 'pg_publication_rel'::regclass, 'pg_type'::regclass) END"
    ))? {
        refuse(
            format!("{} depends on `{name}` in a way that cannot be carried over", text(&row, 0)),
            "Drop it before the migration and create it again afterwards.",
        );
    }
    for key in &relation.referenced_by {
        let partitioned = session.is_true(&format!(
            "SELECT relkind = 'p' FROM pg_class WHERE oid = {}::regclass",
            literal(&key.table)
        ))?;
        if partitioned {
            refuse(
                format!("the partitioned table {} has foreign key `{}` to `{name}`", key.table, key.name),
                "Drop that foreign key before the migration and add it again afterwards.",
            );
        }
    }
    refusals.extend(foreign_order(session, relation)?);
    Ok(refusals)
}

/// Why rows cannot be found by the key, when it is not the server itself that compares it. Functions of ours look for
/// operators in `pg_catalog` alone: others would not be found, or those of another type would, with another order.
pub(crate) fn foreign_order(session: &mut Session, relation: &Relation) -> Result<Option<Refusal>, Error> {
    let Some(key) = relation.key() else { return Ok(None) };
    let foreign = session.is_true(&format!(
        "SELECT EXISTS (SELECT 1 FROM pg_index i, unnest(i.indclass) k JOIN pg_opclass o ON o.oid = k \
         WHERE i.indexrelid = {} AND o.opcnamespace <> 'pg_catalog'::regnamespace)",
        key.oid
    ))?;
    Ok(foreign.then(|| {
        Refusal::new(
            format!("`{}` has key `{}` of a type that brings its own operators", relation.name, key.name),
            "Add a primary key of a type of the server's own, such as bigint or text, in a migration before this one.",
        )
    }))
}

impl Relation {
    /// The index by which rows are found while they are copied: the primary key, else a unique index over NOT NULL columns.
    pub(crate) fn key(&self) -> Option<&IndexDef> {
        let usable = |index: &&IndexDef| {
            let deferrable =
                index.constraint.as_ref().is_some_and(|(kind, rest)| *kind == 'x' || !rest.is_empty());
            let columns = index.plain_columns.as_deref().unwrap_or_default();
            let not_null =
                |name: &String| self.column(name).is_some_and(|column| column.not_null && !column.generated);
            index.unique && index.valid && !deferrable && !columns.is_empty() && columns.iter().all(not_null)
        };
        let primary = |index: &&IndexDef| index.constraint.as_ref().is_some_and(|(kind, _)| *kind == 'p');
        self.indexes.iter().filter(usable).find(primary).or_else(|| self.indexes.iter().find(usable))
    }
}

/// Statements that make `target` (qualified) have the same comments, grants, row security, policies, rules, replica
/// identity and publications as the table `relation`. Column names of `target` are those of `relation`; columns that
/// `target` does not have are left out by `has`. `target` is a name that the table of `target_oid` will have then.
pub(crate) fn trappings(
    session: &mut Session,
    relation: &Relation,
    target: &str,
    target_oid: &str,
    has: &dyn Fn(&str) -> bool,
) -> Result<Vec<String>, Error> {
    let oid = &relation.oid;
    let here = literal(target);
    let mut statements = Vec::new();
    // (statement, the column it is about)
    let rows = session.run(&format!(
        "SELECT format('COMMENT ON TABLE %s IS %L', {here}, d.description), NULL FROM pg_description d WHERE d.classoid = 'pg_class'::regclass AND d.objoid = {oid} AND d.objsubid = 0 \
         UNION ALL SELECT format('COMMENT ON COLUMN %s.%I IS %L', {here}, a.attname, d.description), a.attname FROM pg_description d JOIN pg_attribute a ON a.attrelid = d.objoid AND a.attnum = d.objsubid WHERE d.classoid = 'pg_class'::regclass AND d.objoid = {oid} AND d.objsubid > 0 \
         UNION ALL SELECT format('REVOKE ALL ON TABLE %s FROM %s', {here}, g.who), NULL FROM (SELECT 'PUBLIC' AS who UNION SELECT quote_ident(r.rolname) FROM pg_class c, aclexplode(c.relacl) x JOIN pg_roles r ON r.oid = x.grantee WHERE c.oid = {target_oid}) g \
           WHERE EXISTS (SELECT 1 FROM pg_class c WHERE c.oid = {target_oid} AND c.relacl IS NOT NULL) OR EXISTS (SELECT 1 FROM pg_class c WHERE c.oid = {oid} AND c.relacl IS NOT NULL)"
    ))?;
    let grants = session.run(&format!(
        "SELECT format('GRANT %s ON TABLE %s TO %s%s', x.privilege_type, {here}, coalesce(quote_ident(r.rolname), 'PUBLIC'), CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END), NULL \
           FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) x LEFT JOIN pg_roles r ON r.oid = x.grantee WHERE c.oid = {oid} AND (c.relacl IS NOT NULL OR (SELECT t.relacl IS NOT NULL FROM pg_class t WHERE t.oid = {target_oid})) \
         UNION ALL SELECT format('GRANT %s (%I) ON TABLE %s TO %s%s', x.privilege_type, a.attname, {here}, coalesce(quote_ident(r.rolname), 'PUBLIC'), CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END), a.attname \
           FROM pg_attribute a, aclexplode(a.attacl) x LEFT JOIN pg_roles r ON r.oid = x.grantee WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped AND a.attacl IS NOT NULL"
    ))?;
    let rest = session.run(&format!(
        "SELECT format('CREATE POLICY %I ON %s AS %s FOR %s TO %s%s%s', p.polname, {here}, CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END, \
             CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END, \
             (SELECT string_agg(coalesce(quote_ident(r.rolname), 'PUBLIC'), ', ') FROM unnest(p.polroles) q LEFT JOIN pg_roles r ON r.oid = q), \
             ' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', ' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')'), NULL \
           FROM pg_policy p WHERE p.polrelid = {oid} \
         UNION ALL SELECT format('COMMENT ON POLICY %I ON %s IS %L', p.polname, {here}, d.description), NULL FROM pg_policy p JOIN pg_description d ON d.classoid = 'pg_policy'::regclass AND d.objoid = p.oid WHERE p.polrelid = {oid} \
         UNION ALL SELECT format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', {here}), NULL FROM pg_class c WHERE c.oid = {oid} AND c.relrowsecurity \
         UNION ALL SELECT format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', {here}), NULL FROM pg_class c WHERE c.oid = {oid} AND c.relforcerowsecurity \
         UNION ALL SELECT format('COMMENT ON TRIGGER %I ON %s IS %L', t.tgname, {here}, d.description), NULL FROM pg_trigger t JOIN pg_description d ON d.classoid = 'pg_trigger'::regclass AND d.objoid = t.oid WHERE t.tgrelid = {oid} \
         UNION ALL SELECT format('COMMENT ON CONSTRAINT %I ON %s IS %L', t.conname, {here}, d.description), NULL FROM pg_constraint t JOIN pg_description d ON d.classoid = 'pg_constraint'::regclass AND d.objoid = t.oid WHERE t.conrelid = {oid} \
         UNION ALL SELECT format('ALTER TABLE %s REPLICA IDENTITY %s', {here}, CASE c.relreplident WHEN 'd' THEN 'DEFAULT' WHEN 'f' THEN 'FULL' ELSE 'NOTHING' END), NULL FROM pg_class c WHERE c.oid = {oid} AND c.relreplident IN ('d', 'f', 'n')"
    ))?;
    for row in rows.iter().chain(&grants).chain(&rest) {
        if row[1].as_deref().is_none_or(has) {
            statements.push(text(row, 0));
        }
    }
    for index in &relation.indexes {
        if index.replica_identity {
            statements
                .push(format!("ALTER TABLE {target} REPLICA IDENTITY USING INDEX {}", ident(&index.name)));
        }
        if index.clustered {
            statements.push(format!("ALTER TABLE {target} CLUSTER ON {}", ident(&index.name)));
        }
    }
    Ok(statements)
}

/// The rules of a table: name, and the statements that make it again on a table of the same name.
pub(crate) fn rules(session: &mut Session, relation: &Relation) -> Result<Vec<(String, Vec<String>)>, Error> {
    let here = literal(&relation.qualified());
    let rows = session.run(&format!(
        "SELECT r.rulename, rtrim(pg_get_ruledef(r.oid), ';'), \
           CASE WHEN r.ev_enabled <> 'O' THEN format('ALTER TABLE %s %s RULE %I', {here}, CASE r.ev_enabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END, r.rulename) END, \
           (SELECT format('COMMENT ON RULE %I ON %s IS %L', r.rulename, {here}, d.description) FROM pg_description d WHERE d.classoid = 'pg_rewrite'::regclass AND d.objoid = r.oid) \
         FROM pg_rewrite r WHERE r.ev_class = {} ORDER BY r.rulename",
        relation.oid
    ))?;
    Ok(rows.into_iter().map(|row| (text(&row, 0), row.into_iter().skip(1).flatten().collect())).collect())
}
