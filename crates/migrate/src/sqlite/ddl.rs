//! Reading `CREATE TABLE` and `CREATE INDEX` as SQLite stores them: what no PRAGMA tells (checks, collations, AUTOINCREMENT,
//! generated columns, options), so that a copy of a table is the same table.
//!
//! A tokenizer and the grammar of <https://www.sqlite.org/lang_createtable.html>; text between tokens is kept as it is. Names are
//! replaced token by token, where the token is an identifier.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A bare word: keyword or identifier.
    Word,
    /// An identifier in quotes of any kind.
    Quoted,
    /// A string, number or blob.
    Literal,
    /// Everything else, one character each.
    Mark,
}

/// A piece of SQL text.
#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    start: usize,
}

impl Token<'_> {
    fn is(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(word)
    }

    fn is_mark(&self, mark: char) -> bool {
        self.kind == Kind::Mark && self.text.starts_with(mark)
    }

    /// The name, if it is an identifier.
    fn name(&self) -> Option<String> {
        match self.kind {
            Kind::Word => Some(self.text.to_owned()),
            Kind::Quoted => {
                let inner = &self.text[1..self.text.len().saturating_sub(1).max(1)];
                let close = self.text.chars().last().unwrap_or('"');
                Some(if close == ']' {
                    inner.to_owned()
                } else {
                    inner.replace(&format!("{close}{close}"), &close.to_string())
                })
            }
            _ => None,
        }
    }

    fn end(&self) -> usize {
        self.start + self.text.len()
    }
}

fn tokens(sql: &str) -> Vec<Token<'_>> {
    let bytes = sql.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let until = |from: usize, close: u8| {
            let mut at = from;
            while at < bytes.len() {
                if bytes[at] == close {
                    if close != b']' && bytes.get(at + 1) == Some(&close) {
                        at += 2;
                        continue;
                    }
                    return at + 1;
                }
                at += 1;
            }
            at
        };
        let kind = match bytes[at] {
            b' ' | b'\t' | b'\n' | b'\r' | b'\x0c' => {
                at += 1;
                continue;
            }
            b'-' if bytes.get(at + 1) == Some(&b'-') => {
                at = sql[at..].find('\n').map_or(bytes.len(), |end| at + end + 1);
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                at = sql[at + 2..].find("*/").map_or(bytes.len(), |end| at + end + 4);
                continue;
            }
            b'\'' => {
                at = until(at + 1, b'\'');
                Kind::Literal
            }
            quote @ (b'"' | b'`') => {
                at = until(at + 1, quote);
                Kind::Quoted
            }
            b'[' => {
                at = until(at + 1, b']');
                Kind::Quoted
            }
            byte if byte.is_ascii_digit()
                || (byte == b'.' && bytes.get(at + 1).is_some_and(u8::is_ascii_digit)) =>
            {
                while at < bytes.len() && (bytes[at].is_ascii_alphanumeric() || bytes[at] == b'.') {
                    at += 1;
                }
                Kind::Literal
            }
            byte if byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80 => {
                while at < bytes.len()
                    && (bytes[at].is_ascii_alphanumeric()
                        || matches!(bytes[at], b'_' | b'$')
                        || bytes[at] >= 0x80)
                {
                    at += 1;
                }
                Kind::Word
            }
            _ => {
                at += 1;
                Kind::Mark
            }
        };
        tokens.push(Token { kind, text: &sql[start..at], start });
    }
    tokens
}

/// What a constraint of a column or table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    PrimaryKey,
    NotNull,
    Null,
    Unique,
    Check,
    Default,
    Collate,
    References,
    Generated,
}

/// A constraint, with its text from `CONSTRAINT` or its first keyword on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Constraint {
    pub(super) name: Option<String>,
    pub(super) rule: Rule,
    pub(super) text: String,
    /// What is in the (last) parentheses: the expression of a check, generated column or default; columns otherwise.
    pub(super) inner: String,
    /// Whether AUTOINCREMENT is said.
    pub(super) counts: bool,
}

/// A column as it is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ColumnDef {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) rules: Vec<Constraint>,
}

/// A table as it is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TableDef {
    pub(super) columns: Vec<ColumnDef>,
    pub(super) constraints: Vec<Constraint>,
    /// `WITHOUT ROWID, STRICT` and the like.
    pub(super) options: String,
}

impl TableDef {
    pub(super) fn without_rowid(&self) -> bool {
        self.options.to_ascii_uppercase().contains("WITHOUT")
    }

    pub(super) fn strict(&self) -> bool {
        self.options.to_ascii_uppercase().contains("STRICT")
    }

    pub(super) fn counts(&self) -> bool {
        self.columns.iter().flat_map(|column| &column.rules).any(|rule| rule.counts)
    }

    /// Every check expression.
    pub(super) fn checks(&self) -> Vec<&str> {
        let of_columns = self.columns.iter().flat_map(|column| &column.rules);
        of_columns
            .chain(&self.constraints)
            .filter(|rule| rule.rule == Rule::Check)
            .map(|rule| rule.inner.as_str())
            .collect()
    }

    /// The columns that are written: all but generated ones.
    pub(super) fn stored_columns(&self) -> impl Iterator<Item = &str> {
        let stored = |column: &&ColumnDef| !column.rules.iter().any(|rule| rule.rule == Rule::Generated);
        self.columns.iter().filter(stored).map(|column| column.name.as_str())
    }

    /// Generated columns with their expressions, each after those that it is generated from.
    pub(super) fn generated(&self) -> Vec<(&str, &str)> {
        let expression =
            |column: &'_ ColumnDef| column.rules.iter().position(|rule| rule.rule == Rule::Generated);
        let mut left: Vec<(&str, &str)> = self
            .columns
            .iter()
            .filter_map(|column| {
                Some((column.name.as_str(), column.rules[expression(column)?].inner.as_str()))
            })
            .collect();
        let mut ordered = Vec::new();
        while !left.is_empty() {
            let waits =
                |(_, expression): &(&str, &str)| left.iter().any(|(name, _)| mentions(expression, name));
            let (later, ready): (Vec<_>, Vec<_>) = left.iter().copied().partition(waits);
            // They cannot wait for each other: SQLite refuses such a table.
            if ready.is_empty() {
                ordered.extend(later);
                break;
            }
            ordered.extend(ready);
            left = later;
        }
        ordered
    }

    /// Whether it has foreign keys.
    pub(super) fn has_references(&self) -> bool {
        let of_columns = self.columns.iter().flat_map(|column| &column.rules);
        of_columns.chain(&self.constraints).any(|rule| rule.rule == Rule::References)
    }
}

/// Reads a `CREATE TABLE`. `None` when it is something else, or uses what this grammar does not know.
pub(super) fn table(sql: &str) -> Option<TableDef> {
    let tokens = tokens(sql);
    let open = tokens.iter().position(|token| token.is_mark('('))?;
    let close = matching(&tokens, open)?;
    let mut columns = Vec::new();
    let mut constraints = Vec::new();
    for part in split(&tokens[open + 1..close]) {
        let first = part.first()?;
        let of_table =
            ["CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"].iter().any(|word| first.is(word));
        let mut cursor = Cursor { sql, tokens: part, at: 0 };
        if of_table {
            constraints.push(cursor.constraint()?);
        } else {
            let name = part.first()?.name().or_else(|| {
                // A name in single quotes is an identifier here.
                let text = part[0].text;
                (part[0].kind == Kind::Literal && text.starts_with('\''))
                    .then(|| text.trim_matches('\'').to_owned())
            })?;
            cursor.at = 1;
            let kind = cursor.kind();
            let mut rules = Vec::new();
            while cursor.at < cursor.tokens.len() {
                rules.push(cursor.constraint()?);
            }
            columns.push(ColumnDef { name, kind, rules });
        }
    }
    let options = sql.get(tokens[close].end()..)?.trim().trim_end_matches(';').to_owned();
    Some(TableDef { columns, constraints, options })
}

/// The text of an index from its parenthesis on: columns and WHERE.
pub(super) fn index_body(sql: &str) -> Option<&str> {
    let tokens = tokens(sql);
    let on = tokens.iter().position(|token| token.is("ON"))?;
    let open = tokens.iter().skip(on).find(|token| token.is_mark('('))?;
    sql.get(open.start..)
}

/// The condition of an index over some rows only.
pub(super) fn index_filter(sql: &str) -> Option<String> {
    let body = index_body(sql)?;
    let tokens = tokens(body);
    let filter = tokens.get(matching(&tokens, 0)? + 1)?;
    filter.is("WHERE").then(|| body[filter.end()..].trim().to_owned())
}

/// The text with identifiers replaced. A word before `(` is a function, one after COLLATE a collation: both stay.
pub(super) fn renamed(sql: &str, names: &[(String, String)]) -> String {
    let tokens = tokens(sql);
    let mut text = String::new();
    let mut copied = 0;
    for (at, token) in tokens.iter().enumerate() {
        let Some(name) = token.name() else { continue };
        let call = token.kind == Kind::Word && tokens.get(at + 1).is_some_and(|next| next.is_mark('('));
        let collation = at > 0 && tokens[at - 1].is("COLLATE");
        let Some((_, to)) = names.iter().find(|(from, _)| from.eq_ignore_ascii_case(&name)) else { continue };
        if call || collation {
            continue;
        }
        text.push_str(&sql[copied..token.start]);
        text.push_str(&format!("\"{}\"", to.replace('"', "\"\"")));
        copied = token.end();
    }
    text.push_str(&sql[copied..]);
    text
}

/// The text of a foreign key with the columns that refer renamed; those that are referred to keep their names.
pub(super) fn renamed_reference(sql: &str, names: &[(String, String)]) -> String {
    let tokens = tokens(sql);
    let references = tokens.iter().position(|token| token.is("REFERENCES")).unwrap_or(tokens.len());
    let open = tokens.iter().take(references).position(|token| token.is_mark('('));
    let Some((open, close)) = open.and_then(|open| Some((open, matching(&tokens, open)?))) else {
        // Of a column: it names no other.
        return sql.to_owned();
    };
    let (from, to) = (tokens[open].start, tokens[close].end());
    format!("{}{}{}", &sql[..from], renamed(&sql[from..to], names), &sql[to..])
}

/// A `CREATE TABLE` without its foreign keys; `None` when it cannot be read.
pub(super) fn without_references(sql: &str) -> Option<String> {
    let def = table(sql)?;
    let head = &sql[..tokens(sql).iter().find(|token| token.is_mark('('))?.start];
    let stays = |rule: &&Constraint| rule.rule != Rule::References;
    let columns = def.columns.iter().map(|column| {
        let rules = column.rules.iter().filter(stays).map(|rule| rule.text.as_str());
        let name = format!("\"{}\"", column.name.replace('"', "\"\""));
        [name.as_str(), column.kind.as_str()].into_iter().chain(rules).collect::<Vec<_>>().join(" ")
    });
    let constraints = def.constraints.iter().filter(stays).map(|rule| rule.text.clone());
    let items: Vec<String> = columns.chain(constraints).collect();
    Some(format!("{head}({}) {}", items.join(", "), def.options))
}

/// A `CREATE TABLE` with more constraints; `None` when it cannot be read.
pub(super) fn with_constraints(sql: &str, constraints: &[String]) -> Option<String> {
    let tokens = tokens(sql);
    let open = tokens.iter().position(|token| token.is_mark('('))?;
    let close = tokens[matching(&tokens, open)?].start;
    Some(format!("{}, {}{}", &sql[..close], constraints.join(", "), &sql[close..]))
}

/// Whether the text names this identifier anywhere.
pub(super) fn mentions(sql: &str, name: &str) -> bool {
    tokens(sql).iter().filter_map(Token::name).any(|found| found.eq_ignore_ascii_case(name))
}

fn matching(tokens: &[Token<'_>], open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        if token.is_mark('(') {
            depth += 1;
        } else if token.is_mark(')') {
            depth -= 1;
            if depth == 0 {
                return Some(at);
            }
        }
    }
    None
}

fn split<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    let mut parts = Vec::new();
    let (mut from, mut depth) = (0, 0usize);
    for (at, token) in tokens.iter().enumerate() {
        if token.is_mark('(') {
            depth += 1;
        } else if token.is_mark(')') {
            depth = depth.saturating_sub(1);
        } else if token.is_mark(',') && depth == 0 {
            parts.push(&tokens[from..at]);
            from = at + 1;
        }
    }
    parts.push(&tokens[from..]);
    parts
}

struct Cursor<'t, 'a> {
    sql: &'a str,
    tokens: &'t [Token<'a>],
    at: usize,
}

impl Cursor<'_, '_> {
    fn peek(&self, word: &str) -> bool {
        self.tokens.get(self.at).is_some_and(|token| token.is(word))
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.peek(word);
        self.at += usize::from(found);
        found
    }

    fn text(&self, from: usize, to: usize) -> String {
        match (self.tokens.get(from), self.tokens.get(to.wrapping_sub(1))) {
            (Some(first), Some(last)) if to > from => self.sql[first.start..last.end()].to_owned(),
            _ => String::new(),
        }
    }

    /// Passes what is in parentheses, if anything is, and returns it without them.
    fn parentheses(&mut self) -> Option<String> {
        if !self.tokens.get(self.at)?.is_mark('(') {
            return None;
        }
        let close = matching(self.tokens, self.at)?;
        let inner = self.sql[self.tokens[self.at].end()..self.tokens[close].start].trim().to_owned();
        self.at = close + 1;
        Some(inner)
    }

    fn kind(&mut self) -> String {
        const ENDS: &[&str] = &[
            "CONSTRAINT",
            "PRIMARY",
            "NOT",
            "NULL",
            "UNIQUE",
            "CHECK",
            "DEFAULT",
            "COLLATE",
            "REFERENCES",
            "GENERATED",
            "AS",
        ];
        let from = self.at;
        while let Some(token) = self.tokens.get(self.at) {
            if ENDS.iter().any(|end| token.is(end)) {
                break;
            }
            match token.is_mark('(') {
                true => self.at = matching(self.tokens, self.at).map_or(self.tokens.len(), |close| close + 1),
                false => self.at += 1,
            }
        }
        self.text(from, self.at)
    }

    fn conflict(&mut self) {
        if self.peek("ON") && self.tokens.get(self.at + 1).is_some_and(|token| token.is("CONFLICT")) {
            self.at += 3;
        }
    }

    fn constraint(&mut self) -> Option<Constraint> {
        let from = self.at;
        let mut name = None;
        if self.take("CONSTRAINT") {
            name = Some(self.tokens.get(self.at)?.name()?);
            self.at += 1;
        }
        let mut inner = String::new();
        let mut counts = false;
        let rule = if self.take("PRIMARY") {
            self.take("KEY");
            if let Some(columns) = self.parentheses() {
                inner = columns;
            }
            let _ = self.take("ASC") || self.take("DESC");
            self.conflict();
            counts = self.take("AUTOINCREMENT");
            Rule::PrimaryKey
        } else if self.take("NOT") {
            self.take("NULL").then_some(())?;
            self.conflict();
            Rule::NotNull
        } else if self.take("NULL") {
            self.conflict();
            Rule::Null
        } else if self.take("UNIQUE") {
            inner = self.parentheses().unwrap_or_default();
            self.conflict();
            Rule::Unique
        } else if self.take("CHECK") {
            inner = self.parentheses()?;
            self.conflict();
            Rule::Check
        } else if self.take("DEFAULT") {
            match self.parentheses() {
                Some(expression) => inner = format!("({expression})"),
                None => {
                    let from = self.at;
                    if self.tokens.get(self.at).is_some_and(|token| token.is_mark('-') || token.is_mark('+'))
                    {
                        self.at += 1;
                    }
                    // x'ff' is a word and a string.
                    if self.peek("x")
                        && self.tokens.get(self.at + 1).is_some_and(|token| token.text.starts_with('\''))
                    {
                        self.at += 1;
                    }
                    self.at += 1;
                    inner = self.text(from, self.at.min(self.tokens.len()));
                }
            }
            Rule::Default
        } else if self.take("COLLATE") {
            inner = self.tokens.get(self.at)?.name()?;
            self.at += 1;
            Rule::Collate
        } else if self.peek("REFERENCES") || self.peek("FOREIGN") {
            if self.take("FOREIGN") {
                self.take("KEY");
                inner = self.parentheses()?;
            }
            self.take("REFERENCES").then_some(())?;
            self.at += 1;
            let _ = self.parentheses();
            loop {
                if self.take("ON") {
                    self.at += 1;
                    // `SET NULL`, `NO ACTION` and the like have two words.
                    let _ = self.take("SET") || self.take("NO");
                    self.at += 1;
                } else if self.take("MATCH") {
                    self.at += 1;
                } else if self.peek("DEFERRABLE")
                    || (self.peek("NOT")
                        && self.tokens.get(self.at + 1).is_some_and(|token| token.is("DEFERRABLE")))
                {
                    self.take("NOT");
                    self.at += 1;
                    if self.take("INITIALLY") {
                        self.at += 1;
                    }
                } else {
                    break;
                }
            }
            Rule::References
        } else if self.peek("GENERATED") || self.peek("AS") {
            if self.take("GENERATED") {
                self.take("ALWAYS");
            }
            self.take("AS").then_some(())?;
            inner = self.parentheses()?;
            let _ = self.take("STORED") || self.take("VIRTUAL");
            Rule::Generated
        } else {
            return None;
        };
        if self.at > self.tokens.len() {
            return None;
        }
        Some(Constraint { name, rule, text: self.text(from, self.at), inner, counts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clause_of_create_table_is_read_and_kept() {
        let sql = r#"CREATE TABLE "a b"(id INTEGER PRIMARY KEY AUTOINCREMENT, -- the key, (not this)
            [name] TEXT COLLATE NOCASE NOT NULL ON CONFLICT ABORT DEFAULT 'a,b(',
            amount decimal(10, 2) DEFAULT -5 CONSTRAINT positive CHECK (amount > 0 AND name <> ')'),
            boss int REFERENCES "a b"(id) ON DELETE SET NULL ON UPDATE CASCADE NOT DEFERRABLE INITIALLY IMMEDIATE UNIQUE,
            twice AS (amount * 2) STORED, raw DEFAULT x'ff' NULL,
            CONSTRAINT pair UNIQUE (name, amount), FOREIGN KEY (boss) REFERENCES other(x) DEFERRABLE) STRICT"#;
        let table = table(sql).unwrap();
        let names: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["id", "name", "amount", "boss", "twice", "raw"]);
        assert_eq!(table.columns[2].kind, "decimal(10, 2)");
        let rules = |at: usize| table.columns[at].rules.iter().map(|rule| rule.rule).collect::<Vec<_>>();
        assert_eq!(rules(0), [Rule::PrimaryKey]);
        assert_eq!(rules(1), [Rule::Collate, Rule::NotNull, Rule::Default]);
        assert_eq!(rules(2), [Rule::Default, Rule::Check]);
        assert_eq!(rules(3), [Rule::References, Rule::Unique]);
        assert_eq!(rules(4), [Rule::Generated]);
        assert_eq!(rules(5), [Rule::Default, Rule::Null]);
        assert_eq!(table.columns[2].rules[1].name.as_deref(), Some("positive"));
        assert_eq!(table.checks(), ["amount > 0 AND name <> ')'"]);
        assert!(table.counts() && table.strict() && !table.without_rowid() && table.has_references());
        assert_eq!(table.constraints.len(), 2);
        assert_eq!(table.constraints[0].inner, "name, amount");
    }

    #[test]
    fn generated_columns_come_after_those_they_are_generated_from() {
        let table = table("CREATE TABLE t (a AS (b || c), b AS (lower(d)), c AS (b), d TEXT)").unwrap();
        assert_eq!(table.generated(), [("b", "lower(d)"), ("c", "b"), ("a", "b || c")]);
    }

    #[test]
    fn conditions_of_indexes_and_new_constraints_are_told_from_the_rest() {
        let index = "CREATE UNIQUE INDEX \"where\" ON t (a, lower(b)) /* WHERE 1 */ WHERE (a > 0) AND b";
        assert_eq!(index_filter(index).as_deref(), Some("(a > 0) AND b"));
        assert_eq!(index_filter("CREATE INDEX i ON t (a)"), None);
        let with =
            with_constraints("CREATE TABLE \"t(\" (a CHECK (a > 0), b) STRICT", &["CHECK (b)".to_owned()]);
        assert_eq!(with.as_deref(), Some("CREATE TABLE \"t(\" (a CHECK (a > 0), b, CHECK (b)) STRICT"));
    }

    #[test]
    fn names_are_replaced_where_they_are_names() {
        let names = [("a".to_owned(), "b".to_owned())];
        assert_eq!(
            renamed("a > 'a' AND \"A\" < a(1) COLLATE a", &names),
            "\"b\" > 'a' AND \"b\" < a(1) COLLATE a"
        );
        assert!(mentions("SELECT [x y] FROM t", "X Y"));
        assert!(!mentions("SELECT 'x' FROM t", "x"));
    }
}
