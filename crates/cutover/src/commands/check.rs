//! `check`: which releases there are that are newer than the installed one, and what holds them back.

use std::path::Path;

use cutover_core::model::{Name, ReleaseRef, Version};
use cutover_repo::{
    Catalogue, Chosen,
    tuf::{Client, ClientLimits},
};

use super::{
    Context,
    fetching::{Named, offers_bundles},
    log, offers,
    site::{Missing, Site},
    source::{Repository, keep_speeds},
};
use crate::{
    args::Check,
    exit::Exit,
    failure::Failure,
    output::{self, Form},
    settings::Settings,
};

pub(super) fn check(command: &Check, context: &Context) -> Result<Exit, Failure> {
    let root = &command.at.root;
    let settings = context.settings(Some(root), [])?.settings;
    let installed = if root.join(".cutover").is_dir() {
        Site::open(root, settings.clone(), Missing::Refuse, "check")?.node.status()?.installed
    } else {
        None
    };
    let package = command
        .package
        .clone()
        .or_else(|| installed.as_ref().map(|release| release.package.clone()))
        .or_else(|| settings.package.name.clone())
        .ok_or_else(|| Failure::usage("nothing is installed here: say which package to look for"))?;
    if offers_bundles(&command.from, &settings) {
        return check_bundles(&package, installed.as_ref(), root, &settings, context);
    }
    let repository = Repository::open(&command.from, root, &settings, context)?;
    let metadata = repository.metadata();
    let client = Client::refresh(&metadata, &repository.state, context.now, ClientLimits::default())?;
    log::follow(&settings, &metadata, &repository.state)?;
    let mut catalogue = Catalogue::new(client);
    let candidates = catalogue.candidates(&repository.wanted(&Named { package, version: None }))?;
    keep_speeds(repository.source.as_ref(), &repository.state);
    let installed = installed.map(|release| release.version);
    let is_newer = |chosen: &&Chosen| {
        installed.as_ref().is_none_or(|installed| chosen.entry.version.cmp_precedence(installed).is_gt())
    };
    let newer: Vec<Offer<'_>> =
        candidates.iter().filter(is_newer).map(|chosen| Offer::new(chosen, installed.as_ref())).collect();
    let found = newer.iter().any(|offer| offer.held_back.is_none());
    let yanked = candidates
        .iter()
        .find(|chosen| Some(&chosen.entry.version) == installed.as_ref())
        .and_then(|chosen| chosen.entry.yanked.as_ref());
    match context.form {
        Form::Json => output::json(&serde_json::json!({
            "installed": installed, "yanked": yanked.map(|yanked| &yanked.reason), "offers": newer,
        }))?,
        Form::Text => {
            let installed = installed.as_ref().map_or_else(|| "nothing".to_owned(), Version::to_string);
            output::line(format!("installed  {installed}"));
            if let Some(yanked) = yanked {
                output::line(output::printable(&format!("yanked     {}", yanked.reason)));
            }
            output::line(output::table(
                &["version", "channel", "priority", "at most", "delta", "held back"],
                newer.iter().map(Offer::row).collect(),
            ));
        }
    }
    Ok(if found { Exit::Done } else { Exit::NothingToDo })
}

/// `check` where releases come as whole bundles: what their names say.
fn check_bundles(
    package: &Name,
    installed: Option<&ReleaseRef>,
    root: &Path,
    settings: &Settings,
    context: &Context,
) -> Result<Exit, Failure> {
    let installed = installed.map(|release| &release.version);
    let newer: Vec<offers::Offered> = offers::listed(package, root, settings)?
        .into_iter()
        .filter(|offered| installed.is_none_or(|installed| offered.version.cmp_precedence(installed).is_gt()))
        .collect();
    let held_back = |offered: &offers::Offered| {
        (!offered.is_for_everybody()).then_some("a pre-release: ask for it by version")
    };
    let found = newer.iter().any(|offered| held_back(offered).is_none());
    match context.form {
        Form::Json => {
            let offers = newer.iter().map(|offered| {
                serde_json::json!({
                    "version": offered.version, "name": offered.offer.name,
                    "payload_bytes": offered.offer.size_bytes, "held_back": held_back(offered),
                })
            });
            output::json(
                &serde_json::json!({ "installed": installed, "offers": offers.collect::<Vec<_>>() }),
            )?;
        }
        Form::Text => {
            output::line(format!(
                "installed  {}",
                installed.map_or_else(|| "nothing".to_owned(), Version::to_string)
            ));
            let row = |offered: &offers::Offered| {
                vec![
                    offered.version.to_string(),
                    output::printable(&offered.offer.name),
                    output::bytes(offered.offer.size_bytes),
                    held_back(offered).unwrap_or("-").to_owned(),
                ]
            };
            let rows = newer.iter().map(row).collect();
            output::line(output::table(&["version", "bundle", "size", "held back"], rows));
        }
    }
    Ok(if found { Exit::Done } else { Exit::NothingToDo })
}

/// A release that is newer than the installed one.
#[derive(serde::Serialize)]
struct Offer<'a> {
    version: &'a Version,
    channel: &'a Name,
    priority: cutover_core::model::Priority,
    payload_bytes: u64,
    delta_bytes: Option<u64>,
    /// Why it would not be chosen or could not be installed now.
    held_back: Option<String>,
}

impl<'a> Offer<'a> {
    fn new(chosen: &'a Chosen, installed: Option<&Version>) -> Self {
        let entry = &chosen.entry;
        let too_old = entry
            .min_upgrade_from
            .as_ref()
            .filter(|oldest| installed.is_some_and(|installed| installed.cmp_precedence(oldest).is_lt()));
        let held_back = match (&entry.yanked, too_old) {
            (Some(yanked), _) => Some(format!("yanked: {}", yanked.reason)),
            (None, Some(oldest)) => Some(format!("needs {oldest} first")),
            (None, None) if entry.version.is_prerelease() => {
                Some("a pre-release: ask for it by version".to_owned())
            }
            (None, None) => None,
        };
        let delta = entry.deltas.iter().find(|delta| Some(&delta.from.version) == installed);
        Self {
            version: &entry.version,
            channel: &chosen.channel,
            priority: entry.priority,
            payload_bytes: entry.payload_bytes,
            delta_bytes: delta.map(|delta| delta.bundle.size),
            held_back,
        }
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.version.to_string(),
            self.channel.to_string(),
            format!("{:?}", self.priority).to_lowercase(),
            output::bytes(self.payload_bytes),
            self.delta_bytes.map_or_else(|| "-".to_owned(), output::bytes),
            self.held_back.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    }
}
