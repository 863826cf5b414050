//! What must hold for every codec: the contract's cases, and round trips of anything.

use std::io::{self, Write};

use cutover_bundle::delta::{
    self, AVAILABLE, Algorithm, Content, DeltaError, DeltaLimits, GenerateOptions, Pair, Part,
};
use cutover_core::model::DeltaAlgorithm;
use proptest::prelude::*;

use super::{apply, declared, generate, noise, pairs};

fn round_trip(old: &[u8], new: &[u8]) {
    for algorithm in AVAILABLE {
        let patch = generate(*algorithm, old, new);
        apply(*algorithm, old, &patch, new).unwrap_or_else(|error| panic!("{algorithm}: {error}"));
    }
}

// D8
#[test]
fn every_algorithm_restores_every_pair() {
    for (name, old, new) in pairs() {
        eprintln!("{name}");
        round_trip(&old, &new);
    }
}

// D1
#[test]
fn patch_between_equal_files_restores_the_file() {
    let file = noise(10_000, 5);
    round_trip(&file, &file);
    for algorithm in AVAILABLE {
        let patch = generate(*algorithm, &file, &file);
        assert!(patch.len() < 300, "{algorithm}: {} bytes to say that nothing changed", patch.len());
    }
}

// D2
#[test]
fn three_changed_bytes_in_four_kibibytes_make_a_patch_smaller_than_the_file() {
    let old = noise(4096, 6);
    let mut new = old.clone();
    for at in [100, 2000, 4000] {
        new[at] ^= 0x55;
    }
    for algorithm in AVAILABLE {
        let patch = generate(*algorithm, &old, &new);
        assert!(patch.len() < 400, "{algorithm}: {} bytes", patch.len());
        apply(*algorithm, &old, &patch, &new).unwrap();
    }
}

// D3
#[test]
fn empty_base_becomes_a_file() {
    round_trip(&[], &noise(512, 7));
}

// D4
#[test]
fn zeros_become_ones() {
    round_trip(&[0x00; 256], &[0xff; 256]);
}

// D5
#[test]
fn file_becomes_empty() {
    round_trip(&noise(512, 8), &[]);
    round_trip(&[], &[]);
}

// D8
#[test]
fn other_names_are_no_algorithm() {
    for name in ["", "bsdiff4", "BSDIFF", "zstd", "courgette", "vcdiff "] {
        let refused = name.parse::<DeltaAlgorithm>().unwrap_err();
        assert!(refused.to_string().contains("unknown"), "{refused}");
    }
}

// D20: what counts is that 100 MB are done at all within bounded memory; the time is measured by the benchmark.
#[test]
fn hundred_megabytes_are_restored_in_bounded_memory() {
    let mut old = noise(1 << 20, 9).repeat(100);
    for (index, chunk) in old.chunks_mut(1 << 16).enumerate() {
        chunk[..8].copy_from_slice(&(index as u64).to_le_bytes());
    }
    let mut new = old.clone();
    new[50 << 20] ^= 1;
    new.truncate(99 << 20);
    let patch = generate(Algorithm::Vcdiff, &old, &new);
    let declared = declared(&old, &patch, &new);
    let limits = DeltaLimits { memory_bytes_max: 32 << 20, ..DeltaLimits::default() };
    let (_, applied) = delta::apply(Algorithm::Vcdiff, &old, &patch, &declared, &limits, io::sink()).unwrap();
    assert!(applied.memory_bytes <= 32 << 20);
    assert_eq!(applied.result_bytes, 99 << 20);
}

#[test]
fn wrong_base_is_refused_before_the_patch_is_looked_at() {
    let (old, new) = (noise(2000, 10), noise(2000, 11));
    let patch = b"no patch at all".to_vec();
    for algorithm in AVAILABLE {
        let mut declared = declared(&old, &patch, &new);
        declared.base = Content::of(&new);
        let result = delta::apply(*algorithm, &old, &patch, &declared, &DeltaLimits::default(), Vec::new());
        assert!(matches!(result, Err(DeltaError::WrongDigest { part: Part::Base, .. })), "{algorithm}");
        declared.base.size = 1;
        let result = delta::apply(*algorithm, &old, &patch, &declared, &DeltaLimits::default(), Vec::new());
        assert!(matches!(result, Err(DeltaError::WrongSize { part: Part::Base, .. })), "{algorithm}");
    }
}

#[test]
fn wrong_patch_is_refused_before_it_is_parsed() {
    let (old, new) = (noise(2000, 10), noise(2000, 11));
    for algorithm in AVAILABLE {
        let patch = generate(*algorithm, &old, &new);
        let declared = declared(&old, &patch, &new);
        let mut other = patch.clone();
        *other.last_mut().unwrap() ^= 1;
        let limits = DeltaLimits::default();
        let result = delta::apply(*algorithm, &old, &other, &declared, &limits, Vec::new());
        assert!(matches!(result, Err(DeltaError::WrongDigest { part: Part::Patch, .. })), "{algorithm}");
        other.push(0);
        let result = delta::apply(*algorithm, &old, &other, &declared, &limits, Vec::new());
        assert!(matches!(result, Err(DeltaError::WrongSize { part: Part::Patch, .. })), "{algorithm}");
    }
}

#[test]
fn result_that_is_another_than_declared_is_refused() {
    let (old, new) = (noise(2000, 10), noise(2000, 11));
    for algorithm in AVAILABLE {
        let patch = generate(*algorithm, &old, &new);
        let mut other = new.clone();
        other[1000] ^= 1;
        let result = apply(*algorithm, &old, &patch, &other);
        assert!(matches!(result, Err(DeltaError::WrongDigest { part: Part::Result, .. })), "{algorithm}");
        other.push(0);
        let result = apply(*algorithm, &old, &patch, &other);
        assert!(matches!(result, Err(DeltaError::WrongSize { part: Part::Result, .. })), "{algorithm}");
    }
}

/// A sink that must be given up on an error.
struct Dropped<'a>(&'a std::cell::Cell<bool>);

impl Write for Dropped<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

#[test]
fn output_comes_back_only_on_success_and_is_dropped_otherwise() {
    let (old, new) = (noise(2000, 10), noise(2000, 11));
    for algorithm in AVAILABLE {
        let patch = generate(*algorithm, &old, &new);
        let dropped = std::cell::Cell::new(false);
        let mut wrong = declared(&old, &patch, &new);
        wrong.result.sha256 = wrong.base.sha256;
        let limits = DeltaLimits::default();
        assert!(delta::apply(*algorithm, &old, &patch, &wrong, &limits, Dropped(&dropped)).is_err());
        assert!(dropped.replace(false));
        let right = declared(&old, &patch, &new);
        let kept = delta::apply(*algorithm, &old, &patch, &right, &limits, Dropped(&dropped)).unwrap();
        assert!(!dropped.get());
        drop(kept);
    }
}

#[test]
fn memory_over_the_limit_is_refused_before_anything_is_written() {
    let (old, new) = (noise(200_000, 12), noise(200_000, 13));
    for algorithm in AVAILABLE {
        let patch = generate(*algorithm, &old, &new);
        let declared = declared(&old, &patch, &new);
        let needed =
            delta::memory_needed(*algorithm, &old, &patch, &declared, &DeltaLimits::default()).unwrap();
        let limits = DeltaLimits { memory_bytes_max: needed, ..DeltaLimits::default() };
        delta::apply(*algorithm, &old, &patch, &declared, &limits, Vec::new()).unwrap();
        let limits = DeltaLimits { memory_bytes_max: needed - 1, ..DeltaLimits::default() };
        let refused = delta::apply(*algorithm, &old, &patch, &declared, &limits, Vec::new()).unwrap_err();
        assert!(matches!(refused, DeltaError::Memory { .. }), "{algorithm}: {refused}");
    }
}

#[test]
fn sizes_over_the_limits_are_refused() {
    let (old, new) = (noise(2000, 10), noise(2000, 11));
    let patch = generate(Algorithm::Bsdiff, &old, &new);
    let declared = declared(&old, &patch, &new);
    for limits in [
        DeltaLimits { result_bytes_max: 1999, ..DeltaLimits::default() },
        DeltaLimits { patch_bytes_max: patch.len() as u64 - 1, ..DeltaLimits::default() },
    ] {
        let refused = delta::apply(Algorithm::Bsdiff, &old, &patch, &declared, &limits, Vec::new());
        assert!(matches!(refused, Err(DeltaError::Limit { .. })));
    }
}

#[test]
fn two_threads_make_the_same_patch_as_one() {
    let (_, old, new) = pairs().remove(0);
    let pair = Pair::new(&old, &new);
    let two = GenerateOptions { threads: 2.try_into().unwrap(), ..GenerateOptions::default() };
    for algorithm in AVAILABLE {
        let patch = delta::generate(*algorithm, &pair, &two).unwrap();
        assert_eq!(patch, generate(*algorithm, &old, &new), "{algorithm}");
    }
}

/// New files that have something to do with the old one.
fn related() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let old = prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..2000);
    let part = (any::<prop::sample::Index>(), 0usize..400, prop::collection::vec(any::<u8>(), 0..30));
    (old, prop::collection::vec(part, 0..8)).prop_map(|(old, parts)| {
        let mut new = Vec::new();
        for (start, length, fresh) in parts {
            let start = if old.is_empty() { 0 } else { start.index(old.len()) };
            new.extend(&old[start..(start + length).min(old.len())]);
            new.extend(fresh);
        }
        (old, new)
    })
}

proptest! {
    #[test]
    fn whatever_was_made_is_restored((old, new) in related()) {
        round_trip(&old, &new);
    }

    #[test]
    fn strangers_are_restored(old in prop::collection::vec(any::<u8>(), 0..600), new in prop::collection::vec(any::<u8>(), 0..600)) {
        round_trip(&old, &new);
    }
}
