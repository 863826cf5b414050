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
    suffixes: OnceLock<Option<Suffixes>>,
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

    /// The suffix array of the old file; `None` when that is larger than [`SUFFIX_ARRAY_BYTES_MAX`]. A second thread
    /// that asks waits for the first.
    pub fn suffixes(&self) -> Option<SuffixArray<'_>> {
        let made = self.suffixes.get_or_init(|| Suffixes::of(self.old)).as_ref()?;
        Some(SuffixArray { text: self.old, made })
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

struct Suffixes {
    array: Vec<i32>,
    /// Where in `array` the suffixes with each two-byte start begin: 65537 entries. The one-byte suffix, if any, sorts
    /// before those which start with its byte and is found within the bucket before; see [`SuffixArray::range`].
    buckets: Vec<u32>,
}

impl Suffixes {
    fn of(text: &[u8]) -> Option<Self> {
        if text.len() > SUFFIX_ARRAY_BYTES_MAX {
            return None;
        }
        if text.is_empty() {
            return Some(Self { array: Vec::new(), buckets: vec![0; (1 << 16) + 1] });
        }
        let made = SuffixArrayConstruction::for_text(text).in_owned_buffer32().single_threaded().run();
        let array = made.ok()?.into_vec();
        let mut buckets = vec![0u32; (1 << 16) + 1];
        for pair in text.windows(2) {
            buckets[usize::from(u16::from_be_bytes([pair[0], pair[1]])) + 1] += 1;
        }
        // The last suffix has one byte; it sorts first among those that start with it.
        if let Some(last) = text.last() {
            buckets[usize::from(*last) << 8] += 1;
        }
        for index in 1..buckets.len() {
            buckets[index] += buckets[index - 1];
        }
        Some(Self { array, buckets })
    }
}

/// All suffixes of the old file in order, for longest-match queries. Made by [`Pair::suffixes`].
#[derive(Clone, Copy)]
pub struct SuffixArray<'a> {
    text: &'a [u8],
    made: &'a Suffixes,
}

impl<'a> SuffixArray<'a> {
    /// The positions of the suffixes in ascending order of the suffixes.
    pub fn positions(&self) -> &'a [i32] {
        &self.made.array
    }

    /// The longest prefix of `needle` that occurs in the old file: where, and its length; `(0, 0)` if none does.
    /// Prefixes of one byte are not looked for.
    pub fn longest_match(&self, needle: &[u8]) -> (usize, usize) {
        let Some(start) = needle.first_chunk::<2>() else { return (0, 0) };
        let bucket = usize::from(u16::from_be_bytes(*start));
        let (mut low, mut high) =
            (self.made.buckets[bucket] as usize, self.made.buckets[bucket + 1] as usize);
        if low >= high {
            return (0, 0);
        }
        // Invariant: the suffixes before `low` sort before the needle, those from `high` on do not; and each agrees with
        // the needle on at least as many bytes as is noted for its side.
        let (mut low_common, mut high_common) = (0, 0);
        let (mut best_at, mut best) = (0, 0);
        while low < high {
            let middle = low + (high - low) / 2;
            let at = self.made.array[middle] as usize;
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

    fn naive(text: &[u8], needle: &[u8]) -> usize {
        let longest = (0..text.len()).map(|at| common_prefix(&text[at..], needle)).max().unwrap_or(0);
        if longest < 2 { 0 } else { longest }
    }

    #[test]
    fn the_longest_match_is_the_one_an_exhaustive_search_finds() {
        let mut state = 1u32;
        let mut byte = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b"ab\x00\xff"[(state >> 24) as usize % 4]
        };
        for length in [0usize, 1, 2, 3, 50, 700] {
            let text: Vec<u8> = (0..length).map(|_| byte()).collect();
            let pair = Pair::new(&text, &[]);
            let suffixes = pair.suffixes().unwrap();
            assert_eq!(suffixes.positions().len(), length);
            for _ in 0..200 {
                let needle: Vec<u8> = (0..12).map(|_| byte()).collect();
                let (at, length) = suffixes.longest_match(&needle);
                assert_eq!(length, naive(&text, &needle), "{text:?} {needle:?}");
                assert_eq!(&text[at..at + length], &needle[..length]);
            }
            if length > 10 {
                assert_eq!(suffixes.longest_match(&text[7..]).1, length - 7);
            }
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
