//! Migration files: TOML in, [`Migration`] out.
//!
//! Unknown keys are errors with a suggestion. The format is described in `docs/formats/migration.md`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{
    error::FileError,
    ir::{Ident, Migration, Op},
};

/// The largest migration file that is read, in bytes.
pub const BYTES_MAX: usize = 1 << 20;
/// The most steps of one migration.
pub const STEPS_MAX: usize = 1000;

const TOP: &[&str] = &["format", "id", "after", "app_version", "rollback", "run", "step"];
const RUN: &[&str] = &["max_hold", "deadline", "rate"];
const COLUMN: &[&str] = &["name", "type", "nullable", "default"];
const REFERENCES: &[&str] = &["table", "columns"];
const EXPR: &[&str] = &["value", "sql", "postgres", "sqlite"];

/// The keys of every operation, beside `op` and `table`.
const STEPS: &[(&str, &[&str])] = &[
    ("create_table", &["columns", "primary_key"]),
    ("add_column", &["column", "up"]),
    ("rename_column", &["from", "to"]),
    ("rename_table", &["to"]),
    ("alter_column", &["column", "type", "nullable", "default", "up", "down", "on_reject"]),
    ("add_index", &["name", "columns", "unique", "online", "where"]),
    ("drop_index", &["name"]),
    ("drop_column", &["column", "grace", "down"]),
    ("drop_table", &["grace"]),
    ("add_unique", &["name", "columns"]),
    ("add_check", &["name", "expr"]),
    ("add_foreign_key", &["name", "columns", "references", "on_delete", "on_update"]),
    ("drop_constraint", &["name"]),
    ("sql", &["set", "where", "check", "down"]),
    ("transform", &["transform", "read", "write", "check"]),
    ("plugin", &["plugin", "read", "write", "check"]),
];

/// Keys whose value is an SQL expression: a string, or `{ value | sql | postgres, sqlite }`.
const EXPRESSIONS: &[&str] = &["up", "where", "check", "expr"];

/// Parses a migration file.
///
/// # Errors
/// What is wrong, where, and what was probably meant.
pub fn parse(text: &str) -> Result<Migration, FileError> {
    let whole = |says: String| FileError { at: "migration file".to_owned(), says };
    if text.len() > BYTES_MAX {
        return Err(whole(format!("larger than {BYTES_MAX} bytes")));
    }
    let file: toml::Table = text.parse().map_err(|error: toml::de::Error| whole(error.to_string()))?;
    let Value::Object(mut file) = serde_json::to_value(file).map_err(|error| whole(error.to_string()))?
    else {
        return Err(whole("not a table".to_owned()));
    };
    known("migration file", &file, TOP)?;
    if file.get("format") != Some(&json!(1)) {
        return Err(whole("`format = 1` is missing, or this program is too old for the file".to_owned()));
    }
    if let Some(run) = file.get_mut("run") {
        *run = run_options(run)?;
    }
    let steps = match file.remove("step") {
        None => Vec::new(),
        Some(Value::Array(steps)) => steps,
        Some(_) => return Err(whole("`step` is a list of tables".to_owned())),
    };
    if steps.len() > STEPS_MAX {
        return Err(whole(format!("more than {STEPS_MAX} steps")));
    }
    let mut read = Vec::new();
    for (at, step) in steps.into_iter().enumerate() {
        read.push(self::step(at + 1, step)?);
    }
    file.insert("steps".to_owned(), Value::Array(Vec::new()));
    let mut migration: Migration =
        serde_json::from_value(Value::Object(file)).map_err(|error| whole(error.to_string()))?;
    migration.steps = read;
    check(&migration)?;
    Ok(migration)
}

/// The rules that files and the builder share: names, no empty lists, no step that contradicts itself.
///
/// # Errors
/// The first rule that is broken.
pub fn check(migration: &Migration) -> Result<(), FileError> {
    let whole = |says: String| FileError { at: "migration".to_owned(), says };
    for (what, id) in [("id", Some(&migration.id)), ("after", migration.after.as_ref())] {
        let Some(id) = id else { continue };
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if id.is_empty() || id.len() > 100 || !id.chars().all(fine) {
            return Err(whole(format!("`{what}` is 1 to 100 characters of A-Z a-z 0-9 _ - ., not `{id}`")));
        }
    }
    if migration.after.as_ref() == Some(&migration.id) {
        return Err(whole(format!("`{}` cannot follow itself", migration.id)));
    }
    if let Some(version) = &migration.app_version
        && version.parse::<cutover_core::model::Version>().is_err()
    {
        return Err(whole(format!("`app_version` is a version such as 1.5.0, not `{version}`")));
    }
    for (at, step) in migration.steps.iter().enumerate() {
        let wrong = |says: &str| FileError {
            at: format!("step {} ({})", at + 1, step.name()),
            says: says.to_owned(),
        };
        let distinct = |columns: &[Ident]| {
            columns.iter().collect::<std::collections::BTreeSet<_>>().len() == columns.len()
        };
        match step {
            Op::CreateTable { columns, primary_key, .. } => {
                if columns.is_empty() {
                    return Err(wrong("a table needs at least one column"));
                }
                let names: Vec<Ident> = columns.iter().map(|column| column.name.clone()).collect();
                if !distinct(&names) || !distinct(primary_key) {
                    return Err(wrong("a column is named twice"));
                }
                if !primary_key.iter().all(|key| names.contains(key)) {
                    return Err(wrong("`primary_key` names a column that is not in `columns`"));
                }
            }
            Op::AddIndex { columns, .. } | Op::AddUnique { columns, .. } if columns.is_empty() => {
                return Err(wrong("`columns` is empty: name at least one"));
            }
            Op::AddIndex { columns, .. } | Op::AddUnique { columns, .. } if !distinct(columns) => {
                return Err(wrong("a column is named twice"));
            }
            Op::AddForeignKey { columns, references, .. }
                if columns.is_empty() || columns.len() != references.columns.len() =>
            {
                return Err(wrong(
                    "`columns` and `references.columns` need the same number of columns, at least one",
                ));
            }
            Op::AlterColumn { kind: None, nullable: None, default: None, up: None, .. } => {
                return Err(wrong("changes nothing: give `type`, `nullable`, `default` or `up`"));
            }
            Op::RenameColumn { from, to, .. } if from == to => {
                return Err(wrong("`from` and `to` are the same"));
            }
            Op::RenameTable { table, to } if table == to => {
                return Err(wrong("`table` and `to` are the same"));
            }
            Op::Sql { set, .. } if set.is_empty() => {
                return Err(wrong("`set` is empty: name at least one column"));
            }
            Op::Sql { set, down, .. } if !down.keys().all(|column| set.contains_key(column)) => {
                return Err(wrong("`down` names a column that `set` does not"));
            }
            Op::Transform { write, .. } | Op::Plugin { write, .. } if write.is_empty() => {
                return Err(wrong("`write` is empty: name at least one column"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn step(number: usize, step: Value) -> Result<Op, FileError> {
    let Value::Object(mut step) = step else {
        return Err(FileError { at: format!("step {number}"), says: "not a table".to_owned() });
    };
    let op = step.get("op").and_then(Value::as_str).unwrap_or_default().to_owned();
    let at = if op.is_empty() { format!("step {number}") } else { format!("step {number} ({op})") };
    let wrong = |says: String| FileError { at: at.clone(), says };
    let Some((_, keys)) = STEPS.iter().find(|(name, _)| *name == op) else {
        let names: Vec<&str> = STEPS.iter().map(|(name, _)| *name).collect();
        let said =
            if op.is_empty() { "`op` is missing".to_owned() } else { format!("`{op}` is no operation") };
        return Err(wrong(format!("{said}{}", suggestion(&op, &names))));
    };
    let allowed: Vec<&str> = ["op", "table"].iter().chain(keys.iter()).copied().collect();
    known(&at, &step, &allowed)?;
    if !step.contains_key("table") {
        return Err(wrong("`table` is missing".to_owned()));
    }
    for key in EXPRESSIONS {
        if let Some(value) = step.get_mut(*key) {
            *value = expression(&at, key, value)?;
        }
    }
    if let Some(grace) = step.remove("grace") {
        let grace = grace.as_str().and_then(duration_ms).filter(|ms| ms % 1000 == 0);
        let grace = grace.ok_or_else(|| {
            wrong(
                "`grace` is a duration of whole seconds, not negative, such as \"7d\", \"12h\" or \"0s\""
                    .to_owned(),
            )
        })?;
        step.insert("grace_s".to_owned(), json!(grace / 1000));
    }
    match op.as_str() {
        "add_column" => {
            if let Some(column) = step.get_mut("column") {
                self::column(&at, column)?;
            }
        }
        "create_table" => {
            for column in step.get_mut("columns").and_then(Value::as_array_mut).into_iter().flatten() {
                self::column(&at, column)?;
            }
        }
        "alter_column" => {
            if let Some(default) = step.get_mut("default") {
                *default = match default.as_str() {
                    Some("drop") => json!("drop"),
                    _ => json!({ "set": expression(&at, "default", default)? }),
                };
            }
            if let Some(down) = step.get_mut("down") {
                *down = expression(&at, "down", down)?;
            }
        }
        "drop_column" => {
            if let Some(down) = step.get_mut("down") {
                *down = expression(&at, "down", down)?;
            }
        }
        "sql" => {
            for key in ["set", "down"] {
                if let Some(set) = step.get_mut(key) {
                    *set = assignments(&at, key, set)?;
                }
            }
        }
        "add_foreign_key" => {
            if let Some(Value::Object(references)) = step.get("references") {
                known(&format!("{at}, references"), references, REFERENCES)?;
            }
        }
        _ => {}
    }
    serde_json::from_value(Value::Object(step)).map_err(|error| wrong(error.to_string()))
}

fn column(at: &str, column: &mut Value) -> Result<(), FileError> {
    let at = format!("{at}, column");
    let Value::Object(fields) = column else {
        return Err(FileError {
            at,
            says: "a column is a table: { name = \"..\", type = \"..\" }".to_owned(),
        });
    };
    known(&at, fields, COLUMN)?;
    for key in ["name", "type"] {
        if !fields.contains_key(key) {
            return Err(FileError { at, says: format!("`{key}` is missing") });
        }
    }
    // Said here, because inside the operation's enum serde loses the words.
    if let Some(kind) = fields["type"].as_str() {
        kind.parse::<crate::ir::Type>()
            .map_err(|error| FileError { at: at.clone(), says: error.to_string() })?;
    }
    if let Some(default) = fields.get_mut("default") {
        *default = expression(&at, "default", default)?;
    }
    Ok(())
}

fn expression(at: &str, key: &str, value: &Value) -> Result<Value, FileError> {
    match value {
        Value::String(sql) => Ok(json!({ "sql": sql })),
        Value::Object(fields) if !fields.is_empty() => {
            known(&format!("{at}, {key}"), fields, EXPR)?;
            let forms = [fields.contains_key("value"), fields.contains_key("sql")];
            let engines = fields.contains_key("postgres") || fields.contains_key("sqlite");
            if forms.iter().filter(|form| **form).count() + usize::from(engines) != 1 {
                return Err(FileError {
                    at: at.to_owned(),
                    says: format!("`{key}` is one of `value`, `sql`, or `postgres` with `sqlite`"),
                });
            }
            if fields.get("value").is_some_and(Value::is_f64) {
                return Err(FileError {
                    at: at.to_owned(),
                    says: format!("`{key}`: write a number with a fraction as text: value = \"0.5\""),
                });
            }
            Ok(value.clone())
        }
        _ => Err(FileError {
            at: at.to_owned(),
            says: format!("`{key}` is SQL text, or a table such as {{ value = 0 }} or {{ sql = \"now()\" }}"),
        }),
    }
}

/// `{ column = expr }`, or per engine `{ postgres = { column = expr }, sqlite = { column = expr } }`.
fn assignments(at: &str, key: &str, value: &Value) -> Result<Value, FileError> {
    let Value::Object(fields) = value else {
        return Err(FileError {
            at: at.to_owned(),
            says: format!("`{key}` is a table: {{ column = \"expression\" }}"),
        });
    };
    let per_engine = !fields.is_empty()
        && fields.iter().all(|(name, value)| {
            matches!(name.as_str(), "postgres" | "sqlite")
                && value
                    .as_object()
                    .is_some_and(|value| !value.keys().any(|key| EXPR.contains(&key.as_str())))
        });
    let mut set = Map::new();
    if !per_engine {
        for (column, value) in fields {
            set.insert(column.clone(), expression(at, &format!("{key}.{column}"), value)?);
        }
        return Ok(Value::Object(set));
    }
    let mut columns: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for (engine, assigned) in fields {
        for (column, sql) in assigned.as_object().into_iter().flatten() {
            if !sql.is_string() {
                let says = format!("`{key}.{engine}.{column}` is SQL text");
                return Err(FileError { at: at.to_owned(), says });
            }
            columns.entry(column.clone()).or_default().insert(engine.clone(), sql.clone());
        }
    }
    set.extend(columns.into_iter().map(|(column, engines)| (column, Value::Object(engines))));
    Ok(Value::Object(set))
}

fn run_options(run: &Value) -> Result<Value, FileError> {
    let at = "run";
    let Value::Object(fields) = run else {
        return Err(FileError { at: at.to_owned(), says: "not a table".to_owned() });
    };
    known(at, fields, RUN)?;
    let mut options = Map::new();
    for (key, name, unit) in [("max_hold", "max_hold_ms", 1), ("deadline", "deadline_s", 1000)] {
        let Some(value) = fields.get(key) else { continue };
        let Some(ms) = value.as_str().and_then(duration_ms) else {
            let says = format!("`{key}` is a duration such as \"50ms\" or \"6h\"");
            return Err(FileError { at: at.to_owned(), says });
        };
        options.insert(name.to_owned(), json!(ms / unit));
    }
    if let Some(rate) = fields.get("rate") {
        options.insert("rate".to_owned(), rate.clone());
    }
    Ok(Value::Object(options))
}

/// A duration in milliseconds: a whole number and `ms`, `s`, `m`, `h` or `d`. `None` for everything else, negative ones too.
pub fn duration_ms(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let unit = match unit.trim() {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

fn known(at: &str, fields: &Map<String, Value>, allowed: &[&str]) -> Result<(), FileError> {
    match fields.keys().find(|key| !allowed.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(FileError {
            at: at.to_owned(),
            says: format!("unknown key `{key}`{}", suggestion(key, allowed)),
        }),
    }
}

fn suggestion(found: &str, known: &[&str]) -> String {
    let near = known.iter().map(|name| (strsim::damerau_levenshtein(name, found), *name)).min();
    match near {
        Some((distance, name)) if !found.is_empty() && distance <= 3 => format!("; did you mean `{name}`?"),
        _ => format!(
            "; known are {}",
            known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Expr, Undo, differences};

    const CONTACT: &str = r#"
format = 1
id = "0042_contact"
after = "0041_init"        # one line, no forks
app_version = "1.5.0"
rollback = "automatic"
step = [
 { op = "add_column", table = "users", column = { name = "phone", type = "varchar(20)", nullable = false, default = { value = "" } } },
 { op = "rename_column", table = "users", from = "email", to = "email_address" },
 { op = "add_index", table = "users", name = "idx_email", columns = ["email_address"], unique = false, online = true },
 { op = "drop_column", table = "users", column = "old_login", grace = "7d" },
]
"#;

    const MONEY: &str = r#"
format = 1
id = "0043_money"
after = "0042_contact"
app_version = "1.6.0"
run = { max_hold = "50ms", deadline = "6h" }
[[step]]
op = "alter_column"
table = "orders"
column = "amount"
type = "decimal(18,2)"
nullable = false
up = "coalesce(amount, 0) / 100.0"
down = "cast(amount * 100 as bigint)"
on_reject = "abort"
[[step]]
op = "sql"
table = "orders"
set = { region = "CASE country WHEN 'DE' THEN 'eu' ELSE 'row' END" }
where = "region IS NULL"
check = "region IS NOT NULL"
down = { region = "NULL" }
[[step]]
op = "plugin"
plugin = "phone-normaliser@1"
table = "users"
read = ["id", "phone"]
write = ["phone"]
check = "phone = '' OR phone LIKE '+%'"
"#;

    #[test]
    fn worked_examples_parse() {
        let contact = parse(CONTACT).unwrap();
        assert_eq!(contact.steps.len(), 4);
        assert!(matches!(&contact.steps[3], Op::DropColumn { grace_s: 604_800, .. }));
        let money = parse(MONEY).unwrap();
        assert_eq!(money.run.max_hold_ms, Some(50));
        assert_eq!(money.run.deadline_s, Some(21_600));
        assert!(matches!(&money.steps[1], Op::Sql { set, .. } if set.len() == 1));
    }

    #[test]
    fn comments_blank_lines_key_order_and_line_ends_do_not_count() {
        let hash = parse(CONTACT).unwrap().hash();
        assert_eq!(
            parse(&CONTACT.replace("# one line, no forks", "\n\n# other words")).unwrap().hash(),
            hash
        );
        assert_eq!(parse(&CONTACT.replace('\n', "\r\n")).unwrap().hash(), hash);
        let turned = CONTACT.replace(
            "op = \"rename_column\", table = \"users\"",
            "table = \"users\", op = \"rename_column\"",
        );
        assert_ne!(turned, CONTACT);
        assert_eq!(parse(&turned).unwrap().hash(), hash);
        // Defaults that are written out are the same as defaults that are left out.
        assert_eq!(parse(&CONTACT.replace(", unique = false, online = true", "")).unwrap().hash(), hash);
        assert_ne!(parse(&CONTACT.replace("7d", "8d")).unwrap().hash(), hash);
        // How it is run is not what it is.
        assert_eq!(parse(&MONEY.replace("6h", "7h")).unwrap().hash(), parse(MONEY).unwrap().hash());
    }

    #[test]
    fn edited_migration_differs_field_by_field() {
        let (was, is) =
            (parse(CONTACT).unwrap(), parse(&CONTACT.replace("varchar(20)", "varchar(30)")).unwrap());
        let found = differences(&was, &is);
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["steps[1].column.type: \"varchar(20)\" -> \"varchar(30)\""]);
    }

    #[test]
    fn unknown_keys_and_operations_are_refused_with_a_suggestion() {
        let error = parse(&CONTACT.replace("grace =", "grase =")).unwrap_err();
        assert_eq!(error.to_string(), "step 4 (drop_column): unknown key `grase`; did you mean `grace`?");
        let error = parse(&CONTACT.replace("rename_column", "rename_colunm")).unwrap_err();
        assert!(error.to_string().contains("did you mean `rename_column`"), "{error}");
        let error = parse(&CONTACT.replace("after =", "folows =")).unwrap_err();
        assert!(error.to_string().contains("unknown key `folows`"), "{error}");
        let error = parse(&CONTACT.replace("varchar(20)", "vrchar(20)")).unwrap_err();
        assert!(error.to_string().contains("did you mean"), "{error}");
    }

    // X1.
    #[test]
    fn empty_names_indexes_without_columns_and_negative_grace_are_refused() {
        for (from, to) in [
            ("table = \"users\", column = {", "table = \"\", column = {"),
            ("name = \"phone\"", "name = \"\""),
            ("name = \"idx_email\"", "name = \"\""),
            ("columns = [\"email_address\"]", "columns = []"),
            ("grace = \"7d\"", "grace = \"-7d\""),
            ("grace = \"7d\"", "grace = -7"),
        ] {
            let text = CONTACT.replace(from, to);
            assert_ne!(text, CONTACT);
            assert!(parse(&text).is_err(), "{to}");
        }
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let text = "format = 1\nid = \"a\"\n[[step]]\nop = \"add_column\"\ntable = \"t\"\ncolumn = { name = \"c\", type = \"text\" }
[[step]]\nop = \"add_index\"\ntable = \"t\"\nname = \"i\"\ncolumns = [\"c\"]\n[[step]]\nop = \"drop_column\"\ntable = \"t\"\ncolumn = \"c\"\n";
        let migration = parse(text).unwrap();
        assert_eq!(migration.rollback, Undo::Automatic);
        let Op::AddColumn { column, .. } = &migration.steps[0] else { panic!() };
        assert!(column.nullable);
        assert!(matches!(&migration.steps[1], Op::AddIndex { unique: false, online: true, .. }));
        assert!(matches!(&migration.steps[2], Op::DropColumn { grace_s: 0, .. }));
    }

    #[test]
    fn builder_and_file_yield_the_same() {
        let text = "format = 1\nid = \"a\"\n[[step]]\nop = \"sql\"\ntable = \"t\"\nset.postgres = { c = \"1\" }\nset.sqlite = { c = \"2\" }\n";
        let per_engine = Expr::PerEngine { postgres: Some("1".into()), sqlite: Some("2".into()) };
        let built = Migration::new("a").step(Op::Sql {
            table: Ident::new("t").unwrap(),
            set: [(Ident::new("c").unwrap(), per_engine)].into(),
            filter: None,
            check: None,
            down: BTreeMap::new(),
        });
        assert_eq!(parse(text).unwrap().hash(), built.hash());
    }
}
