//! Settings: defaults < file < drop-ins < environment < flags, resolved once, each value with its origin.
//!
//! This module finds and merges the layers and reads them into [`Settings`]; it never uses a setting. Unknown keys are
//! errors with a suggestion. The trust anchor is no setting: wherever somebody tries to set it, the start is refused.
//! Read [`Settings`] first, then [`Resolved::load`].

mod file;
mod reference;
mod schema;
mod tree;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

pub use reference::page as reference;
pub use schema::{
    InstallSettings, PackageSettings, PruneWhen, S3Settings, SchemaSettings, Settings, TrustPolicy,
};
use serde::{Deserialize as _, Serialize};
pub use tree::Origin;
use tree::{KeyError, KeyErrorKind, Node, Value};

use crate::{exit::Exit, failure::Classify};

/// Printed in the place of a secret, and never taken as one.
pub const MASK: &str = "********";

/// The file used when neither `--config` nor the root has one.
const SYSTEM_FILE: &str = "/etc/cutover/cutover.toml";
/// What variables that hold settings start with.
const PREFIX: &str = "CUTOVER_";
/// Variables that are no settings: of this program, and those that it gives to services, probes and signers, which may run it.
const OTHER_VARIABLES: &[&str] = &[
    "CUTOVER_LOG",
    "CUTOVER_BUILD_ANCHOR",
    "CUTOVER_ROOT",
    "CUTOVER_RELEASE",
    "CUTOVER_TREE",
    "CUTOVER_SCHEME",
    "CUTOVER_CERTIFICATE",
];

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file that was asked for is not there.
    #[error("there is no file `{}`", .0.display())]
    Missing(PathBuf),
    /// A file cannot be read.
    #[error("failed to read settings file `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is no TOML.
    #[error("{place}: {reason}")]
    Syntax {
        /// Where.
        place: Origin,
        /// What is wrong.
        reason: String,
    },
    /// A key nobody knows.
    #[error("{place}: unknown key `{key}`{}", .suggestion.as_ref().map_or(String::new(), |like| format!(", did you mean `{like}`?")))]
    Unknown {
        /// Where.
        place: Origin,
        /// The key.
        key: String,
        /// A known key that looks like it.
        suggestion: Option<String>,
        /// All keys known in its place.
        known: Vec<String>,
    },
    /// A value its key cannot have.
    #[error("{place}: {}{reason}", if .key.is_empty() { String::new() } else { format!("`{key}`: ") })]
    Value {
        /// Where.
        place: Origin,
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// Somebody tries to set the trust anchor. (M10)
    #[error("{place}: the trust anchor cannot be set here; it is part of the program")]
    Anchor {
        /// Where.
        place: Origin,
    },
}

impl Classify for SettingsError {
    fn exit(&self) -> Exit {
        match self {
            Self::Missing(_)
            | Self::Read { .. }
            | Self::Syntax { .. }
            | Self::Unknown { .. }
            | Self::Value { .. } => Exit::Usage,
            Self::Anchor { .. } => Exit::NotTrusted,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Unknown { known, .. } => vec![format!("known here: {}", known.join(", "))],
            Self::Anchor { .. } => vec![
                "remove it, and make a program that trusts your root with `cutover trust embed --anchor ROOT.pem -o FILE`"
                    .to_owned(),
            ],
            Self::Missing(_) | Self::Read { .. } | Self::Syntax { .. } | Self::Value { .. } => {
                vec!["`cutover config check` reads the settings without doing anything else".to_owned()]
            }
        }
    }
}

/// Where to look for settings.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// `--root`.
    pub root: Option<PathBuf>,
    /// The environment, already read.
    pub environment: Vec<(String, String)>,
    /// Flags that are settings: dotted key, text, name of the flag.
    pub flags: Vec<(String, String, String)>,
}

/// Settings and where each of them came from.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The settings.
    pub settings: Settings,
    tree: Node,
    /// The files that were read, in the order in which they were laid over each other.
    pub files: Vec<PathBuf>,
    /// Where more of them may come to be: files that are not there, directories of drop-ins.
    pub places: Vec<PathBuf>,
    /// Keys whose value was the mask of a secret, and which are therefore unset.
    pub masked: Vec<String>,
}

/// One line of `cutover config show`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shown {
    /// The dotted key.
    pub key: String,
    /// Its value; secrets are masked.
    pub value: serde_json::Value,
    /// Where it came from.
    pub origin: String,
}

impl Resolved {
    /// Reads and merges all layers.
    ///
    /// # Errors
    /// [`SettingsError`]; the anchor is looked for in every layer before anything else is judged.
    pub fn load(sources: &Sources) -> Result<Self, SettingsError> {
        let mut layers = Vec::new();
        let mut files = Vec::new();
        for path in files_of(sources)? {
            layers.push(read_layer(&path)?);
            files.push(path);
        }
        layers.push(environment_layer(&sources.environment));
        layers.push(flags_layer(&sources.flags)?);
        let mut tree = Node::empty();
        for layer in layers {
            refuse_anchor(&layer)?;
            tree.merge(layer);
        }
        refuse_unknown_variables(&sources.environment)?;
        let masked = drop_masked(&mut tree);
        let settings = Settings::deserialize(&tree).map_err(describe)?;
        let places = places_of(sources).into_iter().filter(|place| !files.contains(place)).collect();
        Ok(Self { settings, tree, files, places, masked })
    }

    /// Every setting that has a value, with its origin.
    pub fn show(&self) -> Vec<Shown> {
        let mut shown = Vec::new();
        let value = serde_json::to_value(&self.settings).expect("settings have string keys");
        flatten(&value, &mut Vec::new(), &mut |path, value| {
            let origin = (1..=path.len())
                .rev()
                .find_map(|length| {
                    self.tree
                        .get(path[..length].iter().map(String::as_str))
                        .filter(|node| length == path.len() || !matches!(node.value, Value::Table(_)))
                })
                .map_or(Origin::Default, |node| node.origin.clone());
            let mut value = value.clone();
            mask(&mut value, &mut path.to_vec());
            shown.push(Shown { key: path.join("."), value, origin: origin.to_string() });
        });
        shown
    }

    /// The settings as a file that can be loaded again; secrets are masked and therefore stay unset.
    pub fn dump(&self) -> String {
        let mut value = serde_json::to_value(&self.settings).expect("settings have string keys");
        mask(&mut value, &mut Vec::new());
        toml::to_string_pretty(&value).expect("settings are a table of tables")
    }
}

fn mask(value: &mut serde_json::Value, path: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            for (key, value) in map {
                path.push(key.clone());
                mask(value, path);
                path.pop();
            }
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| mask(item, path)),
        value if is_secret(path) => *value = MASK.into(),
        serde_json::Value::String(text) => {
            // From the end, so that the places before stay where they are.
            for secret in secrets_in(text).into_iter().rev() {
                text.replace_range(secret, MASK);
            }
        }
        _ => {}
    }
}

/// Where secrets stand in a URL: `scheme://user:password@host?token=secret`.
fn secrets_in(text: &str) -> Vec<std::ops::Range<usize>> {
    let Some(authority) = text.find("://").map(|at| at + 3) else { return Vec::new() };
    let end = text[authority..].find(['/', '?', '#']).map_or(text.len(), |at| authority + at);
    let mut found = Vec::new();
    if let Some(at) = text[authority..end].rfind('@').map(|at| authority + at)
        && let Some(colon) = text[authority..at].find(':')
    {
        found.push(authority + colon + 1..at);
    }
    let fragment = text[end..].find('#').map_or(text.len(), |at| end + at);
    let mut start = text[end..fragment].find('?').map_or(fragment, |at| end + at + 1);
    for parameter in text[start..fragment].split('&') {
        if let Some((name, _)) = parameter.split_once('=').filter(|(name, _)| is_named_like_a_secret(name)) {
            found.push(start + name.len() + 1..start + parameter.len());
        }
        start += parameter.len() + 1;
    }
    found.retain(|range| !range.is_empty());
    found
}

/// Every dotted key that exists, without the free keys of maps. From the code, for the reference page's test.
pub fn known_keys() -> Vec<String> {
    let mut known = Vec::new();
    collect_known(&mut Vec::new(), &mut known);
    known
}

/// Asks serde what it knows: an impossible key makes it say so. Elements of lists are asked too (`probes.http[]`).
fn collect_known(path: &mut Vec<String>, known: &mut Vec<String>) {
    let list = Node { value: Value::List(vec![of_nobody()]), origin: Origin::Default };
    if let Some(names) = names_known_at(path, of_nobody()) {
        for name in names {
            path.push((*name).to_owned());
            collect_known(path, known);
            path.pop();
        }
    } else if let Some(names) = names_known_at(path, list) {
        known.extend(names.iter().map(|name| format!("{}[].{name}", path.join("."))));
    } else {
        known.push(path.join("."));
    }
}

/// No key of any section.
const NOBODY: &str = "\u{0}";

/// A table with nothing but an impossible key.
fn of_nobody() -> Node {
    let mut table = Node::empty();
    table.set(&[NOBODY.to_owned()], Node { value: Value::Bool(true), origin: Origin::Default });
    table
}

/// The keys of the section at `path`; none where there is a value or a map with free keys.
fn names_known_at(path: &[String], node: Node) -> Option<&'static [&'static str]> {
    let mut tree = Node::empty();
    tree.set(path, node);
    match Settings::deserialize(&tree) {
        Err(KeyError { path: at, kind: KeyErrorKind::Unknown(names), .. })
            if at.last().is_some_and(|last| last == NOBODY) =>
        {
            Some(names)
        }
        Ok(_) | Err(_) => None,
    }
}

/// The files to read, lowest first: the named one; else that of the root; else the system's. Drop-ins count also where there is
/// no file that they lie beside: then they are laid over the settings of the next place.
fn files_of(sources: &Sources) -> Result<Vec<PathBuf>, SettingsError> {
    if let Some(file) = &sources.file {
        if !is_there(file)? {
            return Err(SettingsError::Missing(file.clone()));
        }
        return Ok(std::iter::once(file.clone()).chain(drop_ins(file)?).collect());
    }
    let mut files = Vec::new();
    for main in mains_of(sources) {
        files.splice(0..0, drop_ins(&main)?);
        if is_there(&main)? {
            files.insert(0, main);
            break;
        }
    }
    Ok(files)
}

/// The files that settings may come from, the first that is there counting.
fn mains_of(sources: &Sources) -> Vec<PathBuf> {
    match &sources.file {
        Some(file) => vec![file.clone()],
        None => {
            let of_root = sources.root.as_ref().map(|root| root.join("cutover.toml"));
            of_root.into_iter().chain([PathBuf::from(SYSTEM_FILE)]).collect()
        }
    }
}

fn places_of(sources: &Sources) -> Vec<PathBuf> {
    mains_of(sources).into_iter().flat_map(|main| [directory_of_drop_ins(&main), main]).collect()
}

/// `<file>.d`.
fn directory_of_drop_ins(main: &Path) -> PathBuf {
    let mut directory = main.as_os_str().to_owned();
    directory.push(".d");
    PathBuf::from(directory)
}

/// Whether something has this name, a link to nothing included. Only what is surely not there may count as no settings: they
/// can demand more than the defaults do.
fn is_there(path: &Path) -> Result<bool, SettingsError> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(SettingsError::Read { path: path.to_owned(), source }),
    }
}

/// Reads a file that one run may read several times: a pipe would be empty the second time.
fn read_layer(path: &Path) -> Result<Node, SettingsError> {
    let failed = |source| SettingsError::Read { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
    }
    file::read(path)
}

/// `<file>.d/*.toml`, by name.
fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, SettingsError> {
    let directory = directory_of_drop_ins(main);
    if !is_there(&directory)? {
        return Ok(Vec::new());
    }
    let failed = |source| SettingsError::Read { path: directory.clone(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// `CUTOVER_SECTION__KEY`: sections and keys are lower-cased, `_` in a section is `-`; the free keys of a map keep their
/// case.
fn environment_layer(environment: &[(String, String)]) -> Node {
    let mut layer = Node::empty();
    for (name, text) in environment {
        let Some(path) = variable_path(name) else { continue };
        let origin = Origin::Environment(name.clone());
        layer.set(&path, Node { value: Value::Raw(text.clone()), origin });
    }
    layer
}

fn variable_path(name: &str) -> Option<Vec<String>> {
    let rest = name.strip_prefix(PREFIX).filter(|_| !OTHER_VARIABLES.contains(&name))?;
    if !rest.contains("__") {
        // Not of the form of a setting; but whoever writes this means the anchor, and must be told.
        return rest.contains("ANCHOR").then(|| vec!["trust".to_owned(), "anchor".to_owned()]);
    }
    let mut path: Vec<String> = rest.split("__").map(str::to_owned).collect();
    path[0] = path[0].to_lowercase().replace('_', "-");
    path[1] = path[1].to_lowercase();
    for index in 2..path.len() {
        if names_known_at(&path[..index], of_nobody()).is_some() {
            path[index] = path[index].to_lowercase();
        }
    }
    Some(path)
}

/// A variable that sets nothing is as much of an error as a key that nobody knows. (F3)
fn refuse_unknown_variables(environment: &[(String, String)]) -> Result<(), SettingsError> {
    let is_unknown = |name: &str| {
        name.starts_with(PREFIX) && !OTHER_VARIABLES.contains(&name) && variable_path(name).is_none()
    };
    match environment.iter().find(|(name, _)| is_unknown(name)) {
        Some((name, _)) => Err(SettingsError::Value {
            place: Origin::Environment(name.clone()),
            key: String::new(),
            reason: "it is no setting; the variable of one is written CUTOVER_SECTION__KEY".to_owned(),
        }),
        None => Ok(()),
    }
}

fn flags_layer(flags: &[(String, String, String)]) -> Result<Node, SettingsError> {
    let mut layer = Node::empty();
    for (key, text, flag) in flags {
        let origin = Origin::Flag(flag.clone());
        let path = toml_edit::Key::parse(key).map_err(|_| SettingsError::Value {
            place: origin.clone(),
            key: key.clone(),
            reason: "a setting is written SECTION.KEY".to_owned(),
        })?;
        let path: Vec<String> = path.iter().map(|part| part.get().to_owned()).collect();
        layer.set(&path, Node { value: Value::Raw(text.clone()), origin });
    }
    Ok(layer)
}

/// M10: the anchor is in the program. Whoever tries to give one otherwise is told, whatever the rest says.
fn refuse_anchor(layer: &Node) -> Result<(), SettingsError> {
    let is_anchor = |path: &[String]| match path {
        [key] => key.contains("anchor"),
        [section, rest @ ..] => {
            matches!(section.as_str(), "trust" | "trust-policy")
                && rest.iter().any(|key| key.contains("anchor"))
                || section.contains("anchor")
        }
        [] => false,
    };
    match layer.leaves().into_iter().find(|(path, _)| is_anchor(path)) {
        Some((_, node)) => Err(SettingsError::Anchor { place: node.origin.clone() }),
        None => Ok(()),
    }
}

/// F2: a mask that somebody loads again is no secret; the key is unset.
fn drop_masked(tree: &mut Node) -> Vec<String> {
    let masked: Vec<Vec<String>> = tree
        .leaves()
        .into_iter()
        .filter(|(path, node)| holds_mask(node, path))
        .map(|(path, _)| path)
        .collect();
    masked.iter().for_each(|path| tree.remove(path));
    masked.into_iter().map(|path| path.join(".")).collect()
}

/// Whether a value, or one in it, is a mask or a URL with one.
fn holds_mask(node: &Node, path: &[String]) -> bool {
    let is_masked = |text: &str| {
        (text == MASK && is_secret(path)) || secrets_in(text).into_iter().any(|secret| &text[secret] == MASK)
    };
    match &node.value {
        Value::Text(text) => is_masked(text),
        // One URL, or a list of them.
        Value::Raw(text) => is_masked(text) || text.split(['"', '\'']).any(is_masked),
        Value::List(items) => items.iter().any(|item| holds_mask(item, path)),
        Value::Table(table) => {
            table.iter().any(|(key, node)| holds_mask(node, &[path, std::slice::from_ref(key)].concat()))
        }
        Value::Integer(_) | Value::Float(_) | Value::Bool(_) => false,
    }
}

/// Values that are never printed: passed to processes or servers, or named like a secret.
fn is_secret(path: &[String]) -> bool {
    let parents = &path[..path.len().saturating_sub(1)];
    parents.iter().any(|key| key == "env" || key == "headers" || key == "tokens")
        || path.last().is_some_and(|key| is_named_like_a_secret(key))
}

fn is_named_like_a_secret(key: &str) -> bool {
    let key = key.to_lowercase();
    ["password", "secret", "token", "pin", "credential", "signature"]
        .iter()
        .any(|word| key == *word || key.ends_with(&format!("_{word}")) || key.ends_with(&format!("-{word}")))
}

fn flatten(
    value: &serde_json::Value,
    path: &mut Vec<String>,
    visit: &mut impl FnMut(&[String], &serde_json::Value),
) {
    match value {
        serde_json::Value::Object(map) if !map.is_empty() || path.len() < 2 => {
            for (key, value) in map {
                path.push(key.clone());
                flatten(value, path, visit);
                path.pop();
            }
        }
        serde_json::Value::Null => {}
        _ => visit(path, value),
    }
}

fn describe(error: KeyError) -> SettingsError {
    let place = error.origin.unwrap_or(Origin::Default);
    let key = error.path.join(".");
    match error.kind {
        KeyErrorKind::Unknown(names) => {
            let parents = &error.path[..error.path.len().saturating_sub(1)];
            let written = error.path.last().map_or("", String::as_str);
            let suggestion = nearest(written, names)
                .map(|like| parents.iter().map(String::as_str).chain([like]).collect::<Vec<_>>().join("."));
            SettingsError::Unknown {
                place,
                key,
                suggestion,
                known: names.iter().map(|name| (*name).to_owned()).collect(),
            }
        }
        KeyErrorKind::Other(reason) => SettingsError::Value { place, key, reason },
    }
}

fn nearest<'n>(written: &str, names: &[&'n str]) -> Option<&'n str> {
    names
        .iter()
        .map(|name| (strsim::jaro_winkler(&written.to_lowercase(), name), *name))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// Reads any TOML file strictly: an unknown key is an error with its line and a suggestion.
///
/// # Errors
/// [`SettingsError`].
pub fn read_file<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, SettingsError> {
    let tree = file::read(path).map_err(|error| match error {
        SettingsError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            SettingsError::Missing(path.to_owned())
        }
        other => other,
    })?;
    T::deserialize(&tree).map_err(|error| match describe(error) {
        // Nothing was written there: a key is missing, and the file is all the place there is.
        SettingsError::Value { place: Origin::Default, key, reason } => {
            SettingsError::Value { place: tree.origin.clone(), key, reason }
        }
        other => other,
    })
}

/// The variables that may be settings, as pairs of text.
///
/// # Errors
/// [`SettingsError::Value`]: one of them is no UTF-8, and what it should set is not known.
pub fn environment() -> Result<Vec<(String, String)>, SettingsError> {
    pairs_of_text(std::env::vars_os())
}

fn pairs_of_text(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, SettingsError> {
    let ours = variables.filter(|(name, _)| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
    let texts = ours.map(|(name, value)| match (name.into_string(), value.into_string()) {
        (Ok(name), Ok(value)) => Ok((name, value)),
        (name, _) => Err(SettingsError::Value {
            place: Origin::Environment(name.unwrap_or_else(|name| name.to_string_lossy().into_owned())),
            key: String::new(),
            reason: "it is no UTF-8".to_owned(),
        }),
    });
    Ok(texts.collect::<Result<BTreeMap<_, _>, _>>()?.into_iter().collect())
}

/// Refuses to start when a variable tries to set the trust anchor, also for commands that need no settings. (M10)
///
/// # Errors
/// [`SettingsError::Anchor`].
pub fn refuse_anchor_in(environment: &[(String, String)]) -> Result<(), SettingsError> {
    refuse_anchor(&environment_layer(environment))
}

#[cfg(test)]
mod tests;
