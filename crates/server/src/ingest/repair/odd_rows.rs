//! Rows that no episode stands behind, and rows that are there twice.

use cutover_core::admission::EpisodeKey;

use super::{episodes::Task, finding::Finding, options::RepairOptions};
use crate::ingest::index::{Loaded, Warning};

/// Rows without an episode, and rows that are there twice. `tasks` are all episodes there are, sorted; the rows were read
/// before them, so that one that comes meanwhile is not missed.
pub(super) fn odd_rows(options: &RepairOptions, rows: &Loaded, tasks: &[Task], findings: &mut Vec<Finding>) {
    let mut missing: Vec<EpisodeKey> = Vec::new();
    for host in rows.hosts().filter(|host| options.wants(host)) {
        for (episode, _) in rows.episodes(host) {
            let key = EpisodeKey { host: host.clone(), episode: episode.clone() };
            let is_found = tasks.binary_search_by(|task| task.key.cmp(&key)).is_ok();
            if !is_found && !lies_there(options, &key) {
                missing.push(key);
            }
        }
    }
    missing.sort();
    findings.extend(missing.into_iter().map(Finding::Missing));
    for warning in &rows.warnings.first {
        match warning {
            Warning::Second { key, same, .. } if options.wants(&key.host) => {
                findings.push(Finding::SecondRow { key: key.clone(), same: *same });
            }
            Warning::Second { .. } => {}
            Warning::NoRow { .. } | Warning::Torn { .. } => findings.push(Finding::Line(warning.to_string())),
        }
    }
    let more = rows.warnings.count - rows.warnings.first.len() as u64;
    if more > 0 {
        findings.push(Finding::Line(format!("and {more} more such lines")));
    }
}

/// Whether there is a file in a directory that could not be listed.
fn lies_there(options: &RepairOptions, key: &EpisodeKey) -> bool {
    let found = || std::fs::symlink_metadata(options.layout.episode(key));
    options.bucket.is_none() && found().is_ok_and(|metadata| metadata.is_file())
}
