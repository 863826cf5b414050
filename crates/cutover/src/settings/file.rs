//! Reading one TOML file into a tree of values that know their line.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use toml_edit::{Document, Item, TableLike};

use super::{
    SettingsError,
    tree::{Node, Origin, Value},
};

/// The largest settings file, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// Reads `path`, which has to be there.
pub(super) fn read(path: &Path) -> Result<Node, SettingsError> {
    let failed = |source| SettingsError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    // A pipe tells no length.
    let read = File::open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_string(&mut text));
    if read.map_err(failed)? as u64 > BYTES_MAX {
        let reason = format!("it is larger than {BYTES_MAX} bytes");
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, reason)));
    }
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<Node, SettingsError> {
    let shared: Arc<PathBuf> = Arc::new(path.to_owned());
    let at = |offset: usize| Origin::File { path: Arc::clone(&shared), line: line_of(text, offset) };
    let document = Document::parse(text).map_err(|error| SettingsError::Syntax {
        place: at(error.span().map_or(0, |span| span.start)),
        reason: error.message().to_owned(),
    })?;
    Ok(Node {
        value: Value::Table(table_of(document.as_table(), &|span: Option<std::ops::Range<usize>>| {
            at(span.map_or(0, |span| span.start))
        })),
        origin: at(0),
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

type Locate<'a> = &'a dyn Fn(Option<std::ops::Range<usize>>) -> Origin;

fn table_of(table: &dyn TableLike, locate: Locate<'_>) -> BTreeMap<String, Node> {
    table
        .iter()
        .filter_map(|(key, item)| {
            let span = table.key(key).and_then(toml_edit::Key::span).or_else(|| item.span());
            let node = node_of(item, locate)?;
            let origin = if matches!(node.origin, Origin::File { .. }) { locate(span) } else { node.origin };
            Some((key.to_owned(), Node { value: node.value, origin }))
        })
        .collect()
}

/// The value of one item; `None` for what TOML calls no item.
pub(super) fn node_of(item: &Item, locate: Locate<'_>) -> Option<Node> {
    let origin = locate(item.span());
    let value = match item {
        Item::None => return None,
        Item::Table(table) => Value::Table(table_of(table, locate)),
        Item::ArrayOfTables(tables) => Value::List(
            tables
                .iter()
                .map(|table| Node {
                    value: Value::Table(table_of(table, locate)),
                    origin: locate(table.span()),
                })
                .collect(),
        ),
        Item::Value(value) => value_of(value, locate),
    };
    Some(Node { value, origin })
}

fn value_of(value: &toml_edit::Value, locate: Locate<'_>) -> Value {
    match value {
        toml_edit::Value::String(text) => Value::Text(text.value().clone()),
        toml_edit::Value::Integer(number) => Value::Integer(*number.value()),
        toml_edit::Value::Float(number) => Value::Float(*number.value()),
        toml_edit::Value::Boolean(value) => Value::Bool(*value.value()),
        toml_edit::Value::Datetime(time) => Value::Text(time.value().to_string()),
        toml_edit::Value::Array(items) => Value::List(
            items
                .iter()
                .map(|item| Node { value: value_of(item, locate), origin: locate(item.span()) })
                .collect(),
        ),
        toml_edit::Value::InlineTable(table) => Value::Table(table_of(table, locate)),
    }
}
