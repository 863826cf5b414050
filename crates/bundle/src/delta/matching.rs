//! Which parts of the new file come from where in the old one, approximately: the scan of bsdiff (C. Percival, *Naive
//! Differences of Executable Code*, 2003) over a suffix array, with the gain that a new alignment must bring as an
//! argument.

use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{GenerateOptions, Pair, SuffixArray, pair::common_prefix};

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
const STRETCH_BYTES: usize = 512 << 20;
/// How much of the new file one thread scans at a time, in bytes.
const PIECE_BYTES: usize = 4 << 20;
/// A match of this length is long enough whether or not there is a longer one.
const LONG_ENOUGH: usize = 4096;

/// The blocks of `pair`, ascending and disjoint in the new file. With an old file beyond [`SUFFIX_ARRAY_BYTES_MAX`],
/// only what moved by less than half a gigabyte is found.
pub(super) fn blocks(pair: &Pair<'_>, gain: usize, options: &GenerateOptions<'_>) -> Vec<Block> {
    let (old, new) = (pair.base(), pair.result());
    if let Some(suffixes) = pair.suffixes() {
        return find(suffixes, new, gain, options);
    }
    let mut found = Vec::new();
    for start in (0..new.len()).step_by(STRETCH_BYTES) {
        let end = new.len().min(start + STRETCH_BYTES);
        let low = start.saturating_sub(STRETCH_BYTES / 2).min(old.len());
        let high = old.len().min(end + STRETCH_BYTES / 2);
        let Some(suffixes) = SuffixArray::of(&old[low..high]) else { continue };
        let share = |done: f64| {
            (options.progress)((start as f64 + done * (end - start) as f64) / new.len() as f64);
        };
        let options = GenerateOptions { progress: &share, ..*options };
        let local = find(&suffixes, &new[start..end], gain, &options);
        found.extend(local.into_iter().map(|block| Block {
            new: block.new + start,
            old: block.old + low,
            len: block.len,
        }));
    }
    found
}

/// The blocks of `new` over the text of `suffixes`, ascending and disjoint in it. Pieces of it are scanned on several
/// threads.
pub(super) fn find(
    suffixes: &SuffixArray<'_>,
    new: &[u8],
    gain: usize,
    options: &GenerateOptions<'_>,
) -> Vec<Block> {
    let starts: Vec<usize> = (0..new.len()).step_by(PIECE_BYTES).collect();
    let (next, scanned) = (AtomicUsize::new(0), Mutex::new(0usize));
    let work = || {
        let mut pieces = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(&start) = starts.get(number) else { return pieces };
            let end = new.len().min(start + PIECE_BYTES);
            pieces.push((number, scan(suffixes, new, start..end, gain)));
            let mut scanned = scanned.lock().unwrap_or_else(PoisonError::into_inner);
            *scanned += end - start;
            (options.progress)(*scanned as f64 / new.len() as f64);
        }
    };
    let mut pieces = std::thread::scope(|scope| {
        let threads = options.threads.get().min(starts.len());
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut pieces = work();
        for other in others {
            // A scan that panicked must not pass for one that found nothing.
            pieces.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        pieces
    });
    pieces.sort_unstable_by_key(|(number, _)| *number);
    let mut blocks: Vec<Block> = Vec::new();
    for block in pieces.into_iter().flat_map(|(_, blocks)| blocks) {
        match blocks.last_mut() {
            Some(last) if last.new + last.len == block.new && last.old + last.len == block.old => {
                last.len += block.len;
            }
            _ => blocks.push(block),
        }
    }
    blocks
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

/// The blocks of one piece of the new file.
fn scan(suffixes: &SuffixArray<'_>, new: &[u8], piece: Range<usize>, gain: usize) -> Vec<Block> {
    let (start, new) = (piece.start, &new[..piece.end]);
    let mut state = Scan { old: suffixes.text(), new, last_new: start, last_old: start, blocks: Vec::new() };
    let mut at = start;
    let mut length = 0;
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
            // Of what lies before `at` nothing may stay counted, or a long match never equals what agrees, and every
            // byte of it is searched for.
            agreed -= usize::from(seen > at && state.agrees(at));
            at += 1;
            seen = seen.max(at);
            length = 0;
        }
        if at >= new.len() {
            state.change(new.len(), None);
        } else if length != agreed {
            state.change(at, Some(found));
        }
    }
    state.blocks
}

/// The longest match at `at`; the current alignment is taken without a search when it is right for a long way.
fn longest(state: &Scan<'_>, suffixes: &SuffixArray<'_>, at: usize) -> (usize, usize) {
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
