//! What a generator works on: both files in memory, and what is worth computing once for several codecs.

use std::{num::NonZeroUsize, sync::OnceLock};

use libsais::SuffixArrayConstruction;

/// The largest old file for which there is a suffix array, in bytes: positions are 32 bits wide. With it a generator
/// needs five times the old file's size.
pub const SUFFIX_ARRAY_BYTES_MAX: usize = i32::MAX as usize - 1;

/// An old and a new file. The suffix array of the old one is made at most once, when a codec first asks for it.
pub struct Pair<'a> {
    old: &'a [u8],
    new: &'a [u8],
    suffixes: OnceLock<Option<SuffixArray<'a>>>,
}

impl<'a> Pair<'a> {
    /// Pairs two files.
    pub fn new(old: &'a [u8], new: &'a [u8]) -> Self {
        Self { old, new, suffixes: OnceLock::new() }
    }

    /// The old file.
    pub fn base(&self) -> &'a [u8] {
        self.old
    }

    /// The new file.
    pub fn result(&self) -> &'a [u8] {
        self.new
    }

    /// The suffix array of the old file; `None` when there is none, see [`SuffixArray::of`]. A second thread that asks
    /// waits for the first.
    pub fn suffixes(&self) -> Option<&SuffixArray<'a>> {
        self.suffixes.get_or_init(|| SuffixArray::of(self.old)).as_ref()
    }
}

/// How a patch is made.
#[derive(Clone, Copy)]
pub struct GenerateOptions<'a> {
    /// How many threads a codec may use.
    pub threads: NonZeroUsize,
    /// Told how much of the work is done, from 0.0 to 1.0, never falling; may be called from any thread.
    pub progress: &'a (dyn Fn(f64) + Sync),
}

impl Default for GenerateOptions<'_> {
    /// One thread, nobody told.
    fn default() -> Self {
        Self { threads: NonZeroUsize::MIN, progress: &|_| {} }
    }
}

/// From this size on, in bytes, suffixes are indexed by their first three bytes, below by two.
const WIDE_INDEX_BYTES_MIN: usize = 1 << 20;

/// All suffixes of a text in order, for longest-match queries. Takes four bytes of memory per byte of text, and some
/// seconds per 100 MB.
pub struct SuffixArray<'a> {
    text: &'a [u8],
    /// Where the suffixes start, in their order.
    positions: Vec<i32>,
    /// Where in `positions` the suffixes with each beginning of [`SuffixArray::prefix`] bytes begin, and the end.
    buckets: Vec<u32>,
    prefix: usize,
}

impl<'a> SuffixArray<'a> {
    /// Sorts the suffixes of `text`; `None` when that is larger than [`SUFFIX_ARRAY_BYTES_MAX`] or there is no memory.
    pub fn of(text: &'a [u8]) -> Option<Self> {
        Self::indexed_by(if text.len() < WIDE_INDEX_BYTES_MIN { 2 } else { 3 }, text)
    }

    fn indexed_by(prefix: usize, text: &'a [u8]) -> Option<Self> {
        if text.len() > SUFFIX_ARRAY_BYTES_MAX {
            return None;
        }
        let positions = if text.is_empty() {
            Vec::new()
        } else {
            let made = SuffixArrayConstruction::for_text(text).in_owned_buffer32().single_threaded().run();
            made.ok()?.into_vec()
        };
        let mut buckets = vec![0u32; (1 << (8 * prefix)) + 1];
        for window in text.windows(prefix) {
            buckets[bucket(window) + 1] += 1;
        }
        // A suffix shorter than the prefix sorts before all others with the same beginning.
        for short in 1..prefix.min(text.len() + 1) {
            let mut padded = [0; 3];
            padded[..short].copy_from_slice(&text[text.len() - short..]);
            buckets[bucket(&padded[..prefix]) + 1] += 1;
        }
        let mut sum = 0;
        for count in &mut buckets {
            sum += *count;
            *count = sum;
        }
        Some(Self { text, positions, buckets, prefix })
    }

    /// The text.
    pub fn text(&self) -> &'a [u8] {
        self.text
    }

    /// The longest prefix of `needle` that occurs in the text: where, and its length; `(0, 0)` if none does. Prefixes of
    /// one byte are not looked for, in texts from 1 MiB on none of two bytes either.
    pub fn longest_match(&self, needle: &[u8]) -> (usize, usize) {
        let Some(start) = needle.get(..self.prefix) else { return (0, 0) };
        let bucket = bucket(start);
        let (mut low, mut high) = (self.buckets[bucket] as usize, self.buckets[bucket + 1] as usize);
        // Invariant: the suffixes before `low` sort before the needle, those from `high` on do not; and each agrees with
        // the needle on at least as many bytes as is noted for its side.
        let (mut low_common, mut high_common) = (0, 0);
        let (mut best_at, mut best) = (0, 0);
        while low < high {
            let middle = low + (high - low) / 2;
            let at = self.positions[middle] as usize;
            let known = low_common.min(high_common);
            let suffix = &self.text[at..];
            let common = known + common_prefix(suffix.get(known..).unwrap_or_default(), &needle[known..]);
            if common > best {
                (best_at, best) = (at, common);
            }
            if common == needle.len() {
                break;
            }
            if suffix.get(common).is_none_or(|byte| *byte < needle[common]) {
                low = middle + 1;
                low_common = common;
            } else {
                high = middle;
                high_common = common;
            }
        }
        (best_at, best)
    }
}

fn bucket(prefix: &[u8]) -> usize {
    prefix.iter().fold(0, |bucket, byte| bucket << 8 | usize::from(*byte))
}

/// How many bytes `a` and `b` have in common at their start.
pub(crate) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let mut common = 0;
    for (left, right) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        let differing = word(left) ^ word(right);
        if differing != 0 {
            return common + differing.trailing_zeros() as usize / 8;
        }
        common += 8;
    }
    common + a[common..].iter().zip(&b[common..]).take_while(|(left, right)| left == right).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_is_the_one_an_exhaustive_search_finds() {
        let mut state = 1u32;
        let mut byte = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b"ab\x00\xff"[(state >> 24) as usize % 4]
        };
        for (prefix, length) in
            [2, 3].into_iter().flat_map(|prefix| [0, 1, 2, 3, 50, 700].map(|n| (prefix, n)))
        {
            let text: Vec<u8> = (0..length).map(|_| byte()).collect();
            let suffixes = SuffixArray::indexed_by(prefix, &text).unwrap();
            let check = |needle: &[u8]| {
                let longest = (0..length).map(|at| common_prefix(&text[at..], needle)).max().unwrap_or(0);
                let (at, length) = suffixes.longest_match(needle);
                // What is shorter than the index may be overlooked.
                assert!(length == longest || longest < prefix, "{prefix} {text:?} {needle:?}");
                assert_eq!(&text[at..at + length], &needle[..length]);
            };
            for _ in 0..200 {
                check(&(0..12).map(|_| byte()).collect::<Vec<u8>>());
            }
            // What the text ends with, and nothing behind it.
            (0..length.min(12)).for_each(|count| check(&text[length - count..]));
        }
    }

    #[test]
    fn common_prefixes_end_where_bytes_differ_or_end() {
        let bytes: Vec<u8> = (0..40).collect();
        for length in 0..40 {
            let mut other = bytes.clone();
            other[length] ^= 0x80;
            assert_eq!(common_prefix(&bytes, &other), length);
            assert_eq!(common_prefix(&bytes[..length], &bytes), length);
        }
    }
}
