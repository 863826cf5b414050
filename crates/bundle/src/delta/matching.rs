//! Which parts of the new file come from where in the old one, approximately: the scan of bsdiff (C. Percival, *Naive
//! Differences of Executable Code*, 2003) over a suffix array, with the gain that a new alignment must bring as an
//! argument.

use super::{
    GenerateOptions, Pair, SUFFIX_ARRAY_BYTES_MAX,
    pair::{SuffixArray, common_prefix},
};

/// Part of the new file that lies over part of the old one; most of its bytes are equal. Between blocks, the new file
/// has nothing in common with the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Where it starts in the new file.
    pub(super) new: usize,
    /// Where it starts in the old file.
    pub(super) old: usize,
    /// Its length in bytes.
    pub(super) len: usize,
}

/// How much of a new file that is too large for one suffix array of its old one is matched at once, in bytes, and how
/// much of the old file on either side of the same place is looked at.
const PIECE_BYTES: usize = 512 << 20;

/// The blocks of `pair`, ascending and disjoint in the new file. With an old file beyond [`SUFFIX_ARRAY_BYTES_MAX`],
/// only what moved by less than half a gigabyte is found.
pub(super) fn blocks(pair: &Pair<'_>, gain: usize, options: &GenerateOptions<'_>) -> Vec<Block> {
    let (old, new) = (pair.base(), pair.result());
    if let Some(suffixes) = pair.suffixes() {
        return scan(old, new, suffixes, gain, &|done| (options.progress)(done));
    }
    debug_assert!(old.len() > SUFFIX_ARRAY_BYTES_MAX, "there is a suffix array");
    let mut found = Vec::new();
    for start in (0..new.len()).step_by(PIECE_BYTES) {
        let end = new.len().min(start + PIECE_BYTES);
        let low = start.saturating_sub(PIECE_BYTES / 2).min(old.len());
        let high = old.len().min(end + PIECE_BYTES / 2);
        let piece = Pair::new(&old[low..high], &new[start..end]);
        let Some(suffixes) = piece.suffixes() else { continue };
        let share = |done: f64| {
            (options.progress)((start as f64 + done * (end - start) as f64) / new.len() as f64);
        };
        let local = scan(piece.base(), piece.result(), suffixes, gain, &share);
        found.extend(local.into_iter().map(|block| Block {
            new: block.new + start,
            old: block.old + low,
            len: block.len,
        }));
    }
    found
}

/// An alignment: how the scan found its way into the old file.
struct Scan<'a> {
    old: &'a [u8],
    new: &'a [u8],
    /// Where the current alignment starts in the new file, and what that lies over.
    last_new: usize,
    last_old: usize,
    blocks: Vec<Block>,
}

impl Scan<'_> {
    /// Whether the current alignment is right at `at`.
    fn agrees(&self, at: usize) -> bool {
        let over = (at + self.last_old).checked_sub(self.last_new);
        over.and_then(|over| self.old.get(over)) == self.new.get(at)
    }

    /// Ends the current alignment before `next_new`, where one begins which lies over `next_old`; or the file ends.
    fn change(&mut self, next_new: usize, next_old: Option<usize>) {
        let forward = best_extension(
            self.new[self.last_new..next_new].iter().zip(&self.old[self.last_old.min(self.old.len())..]),
        );
        let backward = next_old.map_or(0, |next_old| {
            best_extension(
                self.new[self.last_new..next_new].iter().rev().zip(self.old[..next_old].iter().rev()),
            )
        });
        let (mut forward, mut backward) = (forward, backward);
        let overlap = (self.last_new + forward + backward).saturating_sub(next_new);
        if let Some(next_old) = next_old.filter(|_| overlap > 0) {
            // Both claim these bytes: split them where most are right.
            let begin = self.last_new + forward - overlap;
            let (mut score, mut best, mut split) = (0i64, 0i64, 0);
            for step in 0..overlap {
                let byte = self.new[begin + step];
                score += i64::from(byte == self.old[self.last_old + forward - overlap + step]);
                score -= i64::from(byte == self.old[next_old - backward + step]);
                if score > best {
                    (best, split) = (score, step + 1);
                }
            }
            forward = forward - overlap + split;
            backward -= split;
        }
        if forward > 0 {
            self.blocks.push(Block { new: self.last_new, old: self.last_old, len: forward });
        }
        if let Some(next_old) = next_old {
            self.last_new = next_new - backward;
            self.last_old = next_old - backward;
        }
    }
}

/// The length at which twice the equal bytes minus the length is greatest.
fn best_extension<'a>(pairs: impl Iterator<Item = (&'a u8, &'a u8)>) -> usize {
    let (mut score, mut best, mut best_length) = (0i64, 0i64, 0);
    for (index, (left, right)) in pairs.enumerate() {
        score += if left == right { 1 } else { -1 };
        if score > best {
            (best, best_length) = (score, index + 1);
        }
    }
    best_length
}

fn scan(
    old: &[u8],
    new: &[u8],
    suffixes: SuffixArray<'_>,
    gain: usize,
    progress: &dyn Fn(f64),
) -> Vec<Block> {
    let mut state = Scan { old, new, last_new: 0, last_old: 0, blocks: Vec::new() };
    let mut at = 0;
    let mut length = 0;
    let mut told = 0;
    while at < new.len() {
        // How many of the bytes from `at` to `seen` the current alignment gets right.
        let mut agreed = 0usize;
        let mut found = 0;
        at += length;
        let mut seen = at;
        while at < new.len() {
            (found, length) = longest(&state, suffixes, at);
            while seen < at + length {
                agreed += usize::from(state.agrees(seen));
                seen += 1;
            }
            if (length == agreed && length != 0) || length > agreed + gain {
                break;
            }
            agreed -= usize::from(seen > at && state.agrees(at));
            at += 1;
            seen = seen.max(at);
            length = 0;
        }
        if at - told > 1 << 18 {
            told = at;
            progress(at as f64 / new.len() as f64);
        }
        if at >= new.len() {
            state.change(new.len(), None);
        } else if length != agreed {
            state.change(at, Some(found));
        }
    }
    progress(1.0);
    state.blocks
}

/// The longest match at `at`; the current alignment is taken without a search when it is right for a long way.
fn longest(state: &Scan<'_>, suffixes: SuffixArray<'_>, at: usize) -> (usize, usize) {
    /// A match of this length is long enough whether or not there is a longer one.
    const LONG_ENOUGH: usize = 4096;
    let needle = &state.new[at..];
    let needle = &needle[..needle.len().min(2 * LONG_ENOUGH)];
    if let Some(over) = (at + state.last_old).checked_sub(state.last_new) {
        let common = common_prefix(state.old.get(over..).unwrap_or_default(), needle);
        if common >= LONG_ENOUGH {
            return (over, common);
        }
    }
    suffixes.longest_match(needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(old: &[u8], new: &[u8]) -> Vec<Block> {
        let found = blocks(&Pair::new(old, new), 8, &GenerateOptions::default());
        let mut at = 0;
        for block in &found {
            assert!(block.len > 0 && block.new >= at, "{found:?}");
            assert!(block.old + block.len <= old.len());
            at = block.new + block.len;
        }
        assert!(at <= new.len());
        found
    }

    #[test]
    fn moved_parts_are_found_where_they_were() {
        let old: Vec<u8> = (0..5000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let mut new = old[8000..].to_vec();
        new.extend(&old[..8000]);
        let found = check(&old, &new);
        assert_eq!(found, [Block { new: 0, old: 8000, len: 12000 }, Block { new: 12000, old: 0, len: 8000 }]);
    }

    #[test]
    fn equal_files_are_one_block_and_strangers_are_none() {
        let old: Vec<u8> = (0..40_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        assert_eq!(check(&old, &old), [Block { new: 0, old: 0, len: 40_000 }]);
        assert_eq!(check(&[0; 256], &[255; 256]), []);
        assert_eq!(check(&[], b"new"), []);
        assert_eq!(check(b"old", &[]), []);
    }

    #[test]
    fn changed_bytes_do_not_end_a_block() {
        let old: Vec<u8> = (0..40_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut new = old.clone();
        new[10_000] ^= 1;
        new[20_000] ^= 1;
        assert_eq!(check(&old, &new), [Block { new: 0, old: 0, len: 40_000 }]);
    }
}
