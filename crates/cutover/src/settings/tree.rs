//! Values with their origin, and reading them into typed settings.
//!
//! Each layer (file, drop-in, environment, flag) becomes a tree of [`Node`]s that remember where they were written.
//! Layers are merged, then read through serde by the [`serde::Deserializer`] below, whose errors name the key and the
//! place. Nothing here knows which settings exist. Read [`Node`] first.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: built in.
    Default,
    /// In a file.
    File {
        /// Which file.
        path: Arc<PathBuf>,
        /// Line, counted from 1.
        line: usize,
    },
    /// In an environment variable of this name.
    Environment(String),
    /// On the command line, as this flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// One value and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// A value as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Table(BTreeMap<String, Node>),
    List(Vec<Node>),
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    /// Text of a variable or flag; it is read as whatever type its key has.
    Raw(String),
}

impl Node {
    /// An empty table.
    pub(crate) fn empty() -> Self {
        Self { value: Value::Table(BTreeMap::new()), origin: Origin::Default }
    }

    /// Lays `over` on top: tables are merged key by key, everything else is replaced.
    pub(crate) fn merge(&mut self, over: Node) {
        match (&mut self.value, over.value) {
            (Value::Table(below), Value::Table(above)) => {
                for (key, node) in above {
                    match below.get_mut(&key) {
                        Some(present) => present.merge(node),
                        None => {
                            below.insert(key, node);
                        }
                    }
                }
            }
            (value, above) => {
                *value = above;
                self.origin = over.origin;
            }
        }
    }

    /// Sets the value at a dotted path, making tables on the way.
    pub(crate) fn set(&mut self, path: &[String], node: Node) {
        let Some((first, rest)) = path.split_first() else {
            *self = node;
            return;
        };
        if !matches!(self.value, Value::Table(_)) {
            *self = Self { value: Value::Table(BTreeMap::new()), origin: node.origin.clone() };
        }
        if let Value::Table(table) = &mut self.value {
            let below = table.entry(first.clone()).or_insert_with(|| Self {
                value: Value::Table(BTreeMap::new()),
                origin: node.origin.clone(),
            });
            below.set(rest, node);
        }
    }

    /// The node at a path, if there is one.
    pub(crate) fn get<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> Option<&Self> {
        path.into_iter().try_fold(self, |node, key| match &node.value {
            Value::Table(table) => table.get(key),
            _ => None,
        })
    }

    /// Every value that is no table, with its path, in order.
    pub(crate) fn leaves(&self) -> Vec<(Vec<String>, &Self)> {
        match &self.value {
            Value::Table(table) => table
                .iter()
                .flat_map(|(key, node)| {
                    node.leaves().into_iter().map(|(mut path, leaf)| {
                        path.insert(0, key.clone());
                        (path, leaf)
                    })
                })
                .collect(),
            _ => vec![(Vec::new(), self)],
        }
    }

    /// Removes the value at a path.
    pub(crate) fn remove(&mut self, path: &[String]) {
        if let (Some((first, rest)), Value::Table(table)) = (path.split_first(), &mut self.value) {
            if rest.is_empty() {
                table.remove(first);
            } else if let Some(below) = table.get_mut(first) {
                below.remove(rest);
            }
        }
    }

    fn kind(&self) -> &'static str {
        match self.value {
            Value::Table(_) => "a table",
            Value::List(_) => "a list",
            Value::Text(_) | Value::Raw(_) => "text",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Bool(_) => "true or false",
        }
    }
}

/// What is wrong with a value, where it was written, and under which key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeyError {
    pub(crate) path: Vec<String>,
    pub(crate) origin: Option<Origin>,
    pub(crate) kind: KeyErrorKind,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum KeyErrorKind {
    /// A key nobody knows; these are known in its place.
    Unknown(&'static [&'static str]),
    /// Anything else.
    Other(String),
}

impl KeyError {
    fn inside(mut self, key: &str, origin: &Origin) -> Self {
        self.path.insert(0, key.to_owned());
        self.origin.get_or_insert_with(|| origin.clone());
        self
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            KeyErrorKind::Unknown(_) => write!(f, "`{}` is unknown", self.path.join(".")),
            KeyErrorKind::Other(reason) => write!(f, "`{}`: {reason}", self.path.join(".")),
        }
    }
}

impl std::error::Error for KeyError {}

impl de::Error for KeyError {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self { path: Vec::new(), origin: None, kind: KeyErrorKind::Other(reason.to_string()) }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self { path: vec![field.to_owned()], origin: None, kind: KeyErrorKind::Unknown(expected) }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format!(
            "`{}` is not one of {}",
            variant.escape_debug(),
            expected.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
        ))
    }
}

fn expected(node: &Node, what: &str) -> KeyError {
    de::Error::custom(format!("expected {what}, found {}", node.kind()))
}

/// Reads the raw text of a variable or flag as TOML: `[1, 2]`, `true`, `{ a = 1 }`; anything else is text.
fn raw_value(text: &str, origin: &Origin) -> Value {
    match format!("v = {text}").parse::<toml_edit::DocumentMut>() {
        Ok(document) if document.len() == 1 => {
            super::file::node_of(document.get("v").expect("the key that was just written"), &|_| {
                origin.clone()
            })
            .map_or_else(|| Value::Text(text.to_owned()), |node| node.value)
        }
        Ok(_) | Err(_) => Value::Text(text.to_owned()),
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty,)+) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
            match &self.value {
                Value::Raw(text) => visitor.$visit(text.trim().parse::<$type>().map_err(|error| {
                    <KeyError as de::Error>::custom(format!("`{}`: {error}", text.escape_debug()))
                })?),
                _ => self.deserialize_any(visitor),
            }
        })+
    };
}

impl<'de> de::Deserializer<'de> for &Node {
    type Error = KeyError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        match &self.value {
            Value::Table(table) => visitor.visit_map(Table { entries: table.iter(), pending: None }),
            Value::List(list) => visitor.visit_seq(List { items: list.iter().enumerate() }),
            Value::Text(text) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Raw(text) => Node { value: raw_value(text, &self.origin), origin: self.origin.clone() }
                .deserialize_any(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        match &self.value {
            Value::Raw(text) => match text.trim() {
                "true" | "1" | "yes" | "on" => visitor.visit_bool(true),
                "false" | "0" | "no" | "off" => visitor.visit_bool(false),
                _ => Err(expected(self, "true or false")),
            },
            _ => self.deserialize_any(visitor),
        }
    }

    numbers! {
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64, deserialize_f32 visit_f32 f32,
        deserialize_f64 visit_f64 f64,
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        match &self.value {
            Value::Raw(text) | Value::Text(text) => visitor.visit_str(text),
            _ => Err(expected(self, "text")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        match &self.value {
            Value::Raw(text) | Value::Text(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            _ => Err(expected(self, "one word")),
        }
    }

    serde::forward_to_deserialize_any! {
        i128 u128 bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Table<'n> {
    entries: std::collections::btree_map::Iter<'n, String, Node>,
    pending: Option<(&'n String, &'n Node)>,
}

impl<'de> de::MapAccess<'de> for Table<'_> {
    type Error = KeyError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, KeyError> {
        self.pending = self.entries.next();
        let Some((key, node)) = self.pending else { return Ok(None) };
        seed.deserialize(key.as_str().into_deserializer()).map(Some).map_err(|mut error: KeyError| {
            // A key type of its own (such as a package name) reports the text, not the key.
            if error.path.is_empty() {
                error.path.push(key.clone());
            }
            error.origin.get_or_insert_with(|| node.origin.clone());
            error
        })
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, KeyError> {
        let (key, node) = self.pending.take().expect("serde asks for a value only after its key");
        seed.deserialize(node).map_err(|error| error.inside(key, &node.origin))
    }
}

struct List<'n> {
    items: std::iter::Enumerate<std::slice::Iter<'n, Node>>,
}

impl<'de> de::SeqAccess<'de> for List<'_> {
    type Error = KeyError;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, KeyError> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        seed.deserialize(node).map(Some).map_err(|error| error.inside(&index.to_string(), &node.origin))
    }
}
