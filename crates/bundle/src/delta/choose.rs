//! Which patch is published for a file: every candidate is made, decoded by the real decoder, and judged by a policy.
//!
//! Knows no clock: whoever asks brings one. Read [`choose`] first.

use std::{
    num::NonZeroUsize,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{Algorithm, Applied, Content, Declared, DeltaError, DeltaLimits, GenerateOptions, Pair};

/// What counts when several patches are smaller than the compressed file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The fewest bytes.
    #[default]
    Smallest,
    /// The least time to apply.
    FastestApply,
    /// The least time to download at [`BALANCED_BYTES_PER_SECOND`] and to apply.
    Balanced,
}

/// The download rate that [`Policy::Balanced`] reckons with, in bytes per second: 100 Mbit/s.
pub const BALANCED_BYTES_PER_SECOND: u64 = 12_500_000;

/// From this size on, in bytes, making patches takes a while: what is made first may show that the rest cannot win.
const LARGE_BYTES_MIN: usize = 1 << 20;
/// A patch below this part of the compressed file is small enough: another cannot save more than that.
const SMALL_PART: u64 = 100;
/// The percentage of the new file from which on a patch of plain copies has found nothing.
const STRANGERS_PERCENT: u64 = 97;

/// What [`choose`] works with.
pub struct ChooseOptions<'a> {
    /// What counts.
    pub policy: Policy,
    /// How many bytes the new file takes compressed: what a patch must stay below.
    pub full_bytes: u64,
    /// What decoders may need; candidates that need more are dropped.
    pub limits: DeltaLimits,
    /// How many candidates are made at once, and who is told how far it is.
    pub generate: GenerateOptions<'a>,
    /// A clock that only runs forward.
    pub clock: &'a (dyn Fn() -> Duration + Sync),
}

/// One patch that was tried.
#[derive(Debug)]
pub struct Candidate {
    /// Its format.
    pub algorithm: Algorithm,
    /// Its size in bytes, if it was made.
    pub bytes: Option<u64>,
    /// How long making it took.
    pub generate: Duration,
    /// How long applying it took, in memory, with all digests.
    pub apply: Duration,
    /// What its decoder needs, in bytes.
    pub memory_bytes: u64,
    /// Why it was taken or not.
    pub reason: String,
    /// What failed, if it was not made or did not come out right.
    pub error: Option<DeltaError>,
}

/// The outcome of [`choose`].
#[derive(Debug)]
pub struct Choice {
    /// The patch to publish, with its format; `None` when the full file is better.
    pub patch: Option<(Algorithm, Vec<u8>)>,
    /// Everything that was tried, in the order asked for.
    pub candidates: Vec<Candidate>,
}

/// Makes a patch with each of `algorithms`, applies it, and picks by policy among those which are smaller than the
/// compressed file.
///
/// A candidate that cannot be made, or whose patch does not come out right, is dropped with its reason. Of large files
/// those are not tried that cannot win, or could save next to nothing.
pub fn choose(pair: &Pair<'_>, algorithms: &[Algorithm], options: &ChooseOptions<'_>) -> Choice {
    let tried = try_all(pair, algorithms, options);
    let cost = |candidate: &Candidate| {
        let bytes = candidate.bytes.unwrap_or(u64::MAX);
        let apply = candidate.apply.as_nanos();
        match options.policy {
            Policy::Smallest => (u128::from(bytes), apply),
            Policy::FastestApply => (apply, u128::from(bytes)),
            Policy::Balanced => {
                let download = u128::from(bytes) * 1_000_000_000 / u128::from(BALANCED_BYTES_PER_SECOND);
                (download + apply, u128::from(bytes))
            }
        }
    };
    let best = tried.iter().filter(|tried| tried.fits(options)).map(|tried| cost(&tried.candidate)).min();
    let mut choice = Choice { patch: None, candidates: Vec::new() };
    for tried in tried {
        let is_smaller = tried.fits(options);
        let Tried { mut candidate, patch } = tried;
        if let Some(patch) = patch {
            let is_best = is_smaller && best == Some(cost(&candidate)) && choice.patch.is_none();
            candidate.reason = match (is_smaller, is_best, options.policy) {
                (false, ..) => format!("not smaller than the compressed file's {}", options.full_bytes),
                (true, true, Policy::Smallest) => "taken: the smallest".to_owned(),
                (true, true, Policy::FastestApply) => "taken: applied fastest".to_owned(),
                (true, true, Policy::Balanced) => "taken: downloaded and applied fastest".to_owned(),
                (true, false, Policy::Smallest) => "another is smaller".to_owned(),
                (true, false, Policy::FastestApply | Policy::Balanced) => "another is faster".to_owned(),
            };
            if is_best {
                choice.patch = Some((candidate.algorithm, patch));
            }
        }
        choice.candidates.push(candidate);
    }
    choice
}

/// A candidate, and its patch if that is right.
struct Tried {
    candidate: Candidate,
    patch: Option<Vec<u8>>,
}

impl Tried {
    /// Whether there is a patch that is right, within the limits and smaller than the compressed file.
    fn fits(&self, options: &ChooseOptions<'_>) -> bool {
        self.patch.is_some() && self.candidate.bytes.is_some_and(|bytes| bytes < options.full_bytes)
    }
}

fn try_all(pair: &Pair<'_>, algorithms: &[Algorithm], options: &ChooseOptions<'_>) -> Vec<Tried> {
    let progress = Progress::new(algorithms.len(), options.generate.progress);
    let (base, result) = (Content::of(pair.base()), Content::of(pair.result()));
    // Several candidates use the threads side by side, a single one has them all.
    let threads = if algorithms.len() == 1 { options.generate.threads } else { NonZeroUsize::MIN };
    let attempt = |index: usize, threads| {
        let tell = |done: f64| progress.tell(index, done);
        let tried = attempt(algorithms[index], pair, base, result, threads, &tell, options);
        progress.tell(index, 1.0);
        tried
    };
    let mut slots: Vec<Mutex<Option<Tried>>> = Vec::new();
    slots.resize_with(algorithms.len(), Mutex::default);
    let mut settled = None;
    for scout in scouts(pair, options.policy) {
        let Some(index) = algorithms.iter().position(|algorithm| algorithm == scout) else { continue };
        let tried = attempt(index, options.generate.threads);
        settled = settles(&tried, pair, options);
        *lock(&slots[index]) = Some(tried);
        if settled.is_some() {
            break;
        }
    }
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(slot) = slots.get(index) else { return };
            if lock(slot).is_some() {
                continue;
            }
            let tried = match settled {
                Some(reason) => skipped(algorithms[index], reason),
                None => attempt(index, threads),
            };
            *lock(slot) = Some(tried);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..options.generate.threads.get().min(algorithms.len()) {
            scope.spawn(work);
        }
        work();
    });
    let all = slots.into_iter().map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner));
    all.flatten().collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is made before the others, one after the other: VCDIFF is soon made and finds what any finds; refdelta makes the
/// smallest patches (`docs/decisions/0068-what-cannot-win-is-not-tried.md`).
fn scouts(pair: &Pair<'_>, policy: Policy) -> &'static [Algorithm] {
    match policy {
        _ if pair.result().len() < LARGE_BYTES_MIN => &[],
        Policy::FastestApply | Policy::Balanced => &[Algorithm::Vcdiff],
        Policy::Smallest if super::are_programs(pair) => &[Algorithm::Refdelta, Algorithm::Vcdiff],
        Policy::Smallest => &[Algorithm::Vcdiff, Algorithm::Refdelta],
    }
}

/// Why what was tried makes trying anything else useless, if it does.
fn settles(tried: &Tried, pair: &Pair<'_>, options: &ChooseOptions<'_>) -> Option<&'static str> {
    let bytes = tried.candidate.bytes?;
    match tried.candidate.algorithm {
        Algorithm::Vcdiff if bytes > pair.result().len() as u64 / 100 * STRANGERS_PERCENT => {
            Some("not tried: the files have nothing in common")
        }
        Algorithm::Refdelta if !tried.fits(options) => None,
        Algorithm::Refdelta if bytes < options.full_bytes / SMALL_PART => {
            Some("not tried: what it could still save is less than a hundredth of the compressed file")
        }
        Algorithm::Refdelta if super::are_programs(pair) => {
            Some("not tried: of programs refdelta makes the smallest patch")
        }
        _ => None,
    }
}

fn skipped(algorithm: Algorithm, reason: impl Into<String>) -> Tried {
    let candidate = Candidate {
        algorithm,
        bytes: None,
        generate: Duration::ZERO,
        apply: Duration::ZERO,
        memory_bytes: 0,
        reason: reason.into(),
        error: None,
    };
    Tried { candidate, patch: None }
}

fn attempt(
    algorithm: Algorithm,
    pair: &Pair<'_>,
    base: Content,
    result: Content,
    threads: NonZeroUsize,
    progress: &(dyn Fn(f64) + Sync),
    options: &ChooseOptions<'_>,
) -> Tried {
    let quiet = GenerateOptions { threads, progress };
    let start = (options.clock)();
    let made = super::generate(algorithm, pair, &quiet);
    let generate = (options.clock)().saturating_sub(start);
    let mut tried = skipped(algorithm, "");
    tried.candidate.generate = generate;
    let patch = match made {
        Ok(patch) => patch,
        Err(error) => {
            tried.candidate.reason = format!("not made: {error}");
            tried.candidate.error = Some(error);
            return tried;
        }
    };
    tried.candidate.bytes = Some(patch.len() as u64);
    let start = (options.clock)();
    let checked = check(algorithm, pair, &patch, base, result, &options.limits);
    tried.candidate.apply = (options.clock)().saturating_sub(start);
    match checked {
        Ok(applied) => {
            tried.candidate.memory_bytes = applied.memory_bytes;
            tried.patch = Some(patch);
        }
        Err(error) => {
            tried.candidate.reason = format!("dropped: {error}");
            tried.candidate.error = Some(error);
        }
    }
    tried
}

/// Applies a patch as a client will, to nowhere.
fn check(
    algorithm: Algorithm,
    pair: &Pair<'_>,
    patch: &[u8],
    base: Content,
    result: Content,
    limits: &DeltaLimits,
) -> Result<Applied, DeltaError> {
    let declared = Declared { base, patch: Content::of(patch), result };
    let (_, applied) = super::apply(algorithm, &pair.base(), &patch, &declared, limits, std::io::sink())?;
    Ok(applied)
}

/// Adds up what several candidates report, and never falls.
struct Progress<'a> {
    parts: Mutex<Vec<f64>>,
    tell: &'a (dyn Fn(f64) + Sync),
}

impl<'a> Progress<'a> {
    fn new(count: usize, tell: &'a (dyn Fn(f64) + Sync)) -> Self {
        Self { parts: Mutex::new(vec![0.0; count]), tell }
    }

    fn tell(&self, index: usize, done: f64) {
        let mut parts = lock(&self.parts);
        parts[index] = parts[index].max(done.clamp(0.0, 1.0));
        let all: f64 = parts.iter().sum::<f64>() / parts.len() as f64;
        // Under the lock, so that what is told comes in order.
        (self.tell)(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> (Vec<u8>, Vec<u8>) {
        let old: Vec<u8> = (0..50_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut new = old.clone();
        new[100] ^= 1;
        new.truncate(49_000);
        (old, new)
    }

    fn options<'a>(
        policy: Policy,
        full_bytes: u64,
        clock: &'a (dyn Fn() -> Duration + Sync),
    ) -> ChooseOptions<'a> {
        let generate = GenerateOptions::default();
        ChooseOptions { policy, full_bytes, limits: DeltaLimits::default(), generate, clock }
    }

    #[test]
    fn smallest_patch_is_taken_and_every_candidate_has_its_reason() {
        let (old, new) = files();
        let choice = choose(
            &Pair::new(&old, &new),
            super::super::AVAILABLE,
            &options(Policy::Smallest, 40_000, &|| Duration::ZERO),
        );
        let (algorithm, patch) = choice.patch.expect("a patch");
        assert_eq!(choice.candidates.len(), super::super::AVAILABLE.len());
        for candidate in &choice.candidates {
            assert!(candidate.bytes.is_some_and(|bytes| bytes >= patch.len() as u64), "{candidate:?}");
            assert_eq!(
                candidate.reason.starts_with("taken"),
                candidate.algorithm == algorithm,
                "{candidate:?}"
            );
            assert!(candidate.memory_bytes > 0);
        }
    }

    // D21
    #[test]
    fn patch_that_is_not_smaller_than_the_compressed_file_is_dropped() {
        let (old, new) = files();
        let choice = choose(
            &Pair::new(&old, &new),
            super::super::AVAILABLE,
            &options(Policy::Smallest, 10, &|| Duration::ZERO),
        );
        assert!(choice.patch.is_none());
        assert!(choice.candidates.iter().all(|candidate| candidate.reason.starts_with("not smaller")));
    }

    #[test]
    fn policies_weigh_time_as_they_say() {
        let (old, new) = files();
        // A clock that stands still but for the first patch's application, which takes a minute.
        let calls = AtomicUsize::new(0);
        let clock = || Duration::from_secs(if calls.fetch_add(1, Ordering::Relaxed) >= 3 { 60 } else { 0 });
        let algorithms = [Algorithm::Vcdiff, Algorithm::Bsdiff];
        let pair = Pair::new(&old, &new);
        let taken = |policy| {
            calls.store(0, Ordering::Relaxed);
            let choice = choose(&pair, &algorithms, &options(policy, 40_000, &clock));
            choice.patch.map(|(algorithm, _)| algorithm)
        };
        assert_eq!(taken(Policy::Smallest), Some(Algorithm::Vcdiff));
        assert_eq!(taken(Policy::FastestApply), Some(Algorithm::Bsdiff));
        assert_eq!(taken(Policy::Balanced), Some(Algorithm::Bsdiff));
    }

    #[test]
    fn candidate_over_the_memory_limit_is_dropped() {
        let (old, new) = files();
        let mut options = options(Policy::Smallest, 40_000, &|| Duration::ZERO);
        options.limits.memory_bytes_max = 8 << 20;
        let choice = choose(&Pair::new(&old, &new), &[Algorithm::Bsdiff], &options);
        assert!(choice.patch.is_none());
        assert!(choice.candidates[0].reason.contains("memory"), "{choice:?}");
        assert!(matches!(choice.candidates[0].error, Some(DeltaError::Memory { .. })), "{choice:?}");
    }

    /// Two releases of a large program.
    fn programs() -> (Vec<u8>, Vec<u8>) {
        let mut sizes: Vec<u32> = (0..220).map(|index| 3072 + index * 16).collect();
        let old = crate::delta::refdelta::tests::program(&sizes, 1);
        sizes.insert(7, 40_960);
        (old, crate::delta::refdelta::tests::program(&sizes, 1))
    }

    fn taken(choice: &Choice) -> Option<Algorithm> {
        choice.patch.as_ref().map(|(algorithm, _)| *algorithm)
    }

    fn not_tried(choice: &Choice) -> Vec<Algorithm> {
        let skipped = |candidate: &&Candidate| candidate.reason.starts_with("not tried");
        choice.candidates.iter().filter(skipped).map(|candidate| candidate.algorithm).collect()
    }

    #[test]
    fn of_large_programs_the_smallest_patch_is_refdeltas_and_no_other_is_made() {
        let (old, new) = programs();
        let pair = Pair::new(&old, &new);
        let full_bytes = new.len() as u64;
        let choice = choose(
            &pair,
            super::super::AVAILABLE,
            &options(Policy::Smallest, full_bytes, &|| Duration::ZERO),
        );
        assert_eq!(taken(&choice), Some(Algorithm::Refdelta));
        assert!(choice.patch.as_ref().is_some_and(|(_, patch)| patch.len() as u64 > full_bytes / SMALL_PART));
        let others = [Algorithm::Bsdiff, Algorithm::Xdelta3, Algorithm::Vcdiff, Algorithm::ZstdDict];
        assert_eq!(not_tried(&choice), others);
        // They are when its decoder takes too much memory.
        let mut little = options(Policy::Smallest, full_bytes, &|| Duration::ZERO);
        little.limits.memory_bytes_max = choice.candidates[4].memory_bytes - 1;
        let choice = choose(&pair, super::super::AVAILABLE, &little);
        assert_eq!(not_tried(&choice), []);
        assert!(taken(&choice).is_some_and(|algorithm| algorithm != Algorithm::Refdelta), "{choice:?}");
    }

    #[test]
    fn a_patch_of_next_to_nothing_is_not_bettered_unless_time_counts() {
        let (old, _) = programs();
        let old: Vec<u8> = old.iter().map(|byte| byte % 64).collect();
        let mut new = old.clone();
        new[100] ^= 1;
        let pair = Pair::new(&old, &new);
        let chosen = |policy, full_bytes| {
            let choice = choose(
                &pair,
                &[Algorithm::Bsdiff, Algorithm::Vcdiff, Algorithm::Refdelta],
                &options(policy, full_bytes, &|| Duration::ZERO),
            );
            (taken(&choice), not_tried(&choice))
        };
        let full_bytes = new.len() as u64 * 3 / 4;
        assert_eq!(
            chosen(Policy::Smallest, full_bytes),
            (Some(Algorithm::Refdelta), vec![Algorithm::Bsdiff])
        );
        assert_eq!(chosen(Policy::FastestApply, full_bytes).1, []);
        assert_eq!(chosen(Policy::Balanced, full_bytes).1, []);
        // Of a file that takes little itself, the last bytes are worth it.
        assert_eq!(chosen(Policy::Smallest, 500).1, []);
    }

    #[test]
    fn files_with_nothing_in_common_are_given_up_early_and_progress_never_falls() {
        let noise = |seed: u64| -> Vec<u8> {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            };
            (0..LARGE_BYTES_MIN).map(|_| next()).collect()
        };
        let (old, new) = (noise(1), noise(2));
        let told = Mutex::new(Vec::new());
        let tell = |done: f64| lock(&told).push(done);
        let mut options = options(Policy::Smallest, 1 << 20, &|| Duration::ZERO);
        options.generate = GenerateOptions { threads: 2.try_into().unwrap(), progress: &tell };
        let choice = choose(&Pair::new(&old, &new), super::super::AVAILABLE, &options);
        assert!(choice.patch.is_none());
        let skipped = choice.candidates.iter().filter(|candidate| candidate.reason.starts_with("not tried"));
        assert_eq!(skipped.count(), super::super::AVAILABLE.len() - 1);
        assert!(lock(&told).is_sorted());
    }
}
