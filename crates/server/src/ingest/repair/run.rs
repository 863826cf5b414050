//! The repair itself: what is stored is compared with what the index says, then read, then written.

use super::{
    episodes::{Task, list, walk},
    hashing::hash_all,
    odd_rows::odd_rows,
    options::{Check, RepairOptions, Writing},
    report::{RepairError, RepairWatch, Repaired},
    sink::{SHOWN, Sink},
};
use crate::ingest::index::{Index, Loaded};

/// Adds the missing rows, or says which they are; checks the others if asked to. `now` is the time of each row.
///
/// # Errors
/// [`RepairError`]. A file that cannot be read is counted in [`Repaired::failures`] and told to `watch`.
pub fn repair(
    options: &RepairOptions,
    now: &dyn Fn() -> jiff::Timestamp,
    watch: &mut dyn RepairWatch,
) -> Result<Repaired, RepairError> {
    let episodes = options.layout.episodes();
    if options.bucket.is_none() && !std::fs::metadata(&episodes).is_ok_and(|metadata| metadata.is_dir()) {
        return Err(RepairError::NoEpisodes(episodes));
    }
    let failed = |attempt| {
        let path = options.index.clone();
        move |source| RepairError::Index { attempt, path, source }
    };
    let rows = Loaded::read(&options.index).map_err(failed("read"))?;
    let mut repaired = Repaired::default();
    let tasks = match &options.bucket {
        None => walk(options, &rows, &mut repaired, watch),
        Some(bucket) => list(options, bucket.as_ref(), &rows, &mut repaired)?,
    };
    watch.counted(repaired.counts);
    if options.check == Check::Everything {
        odd_rows(options, &rows, &tasks, &mut repaired.findings);
    }
    let bare = |task: &Task| task.row.is_none();
    let tasks: Vec<Task> = match (options.writing, options.check) {
        (_, Check::Everything) => tasks,
        (Writing::Rows, Check::Missing) => tasks.into_iter().filter(bare).collect(),
        (Writing::Nothing, Check::Missing) => tasks.into_iter().filter(bare).take(SHOWN).collect(),
    };
    // A receiver may run: its rows are only waited for when there is something to write.
    let writes = options.writing == Writing::Rows && tasks.iter().any(bare);
    let index = if writes { Some(Index::open(&options.index).map_err(failed("open"))?) } else { None };
    drop(rows);
    let mut sink = Sink::new(index, repaired, options.check);
    hash_all(options, &tasks, now, watch, &mut sink)?;
    Ok(sink.repaired)
}
