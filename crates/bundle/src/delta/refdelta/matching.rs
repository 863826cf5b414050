//! Finds what of the old file the new one is made of (generator only).
//!
//! Colin Percival's scan ("Naive differences of executable code", 2003): a match is taken when it explains the new
//! bytes better than the alignment before it, by more than `gain` bytes; then both are extended towards each other as
//! long as most bytes agree. The suffix array comes from libsais. Pieces of the new file are scanned on two threads.

use libsais::SuffixArrayConstruction;

/// A run of new bytes explained by old ones, byte by byte or nearly so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) new: u32,
    pub(super) old: u32,
    pub(super) len: u32,
}

impl Block {
    pub(super) fn new_end(self) -> u32 {
        self.new + self.len
    }

    pub(super) fn old_end(self) -> u32 {
        self.old + self.len
    }
}

/// Bytes of the new file that one thread scans at a time.
const PIECE: usize = 4 << 20;
/// Matches longer than this are not told apart.
const COMPARE_MAX: usize = 64 << 10;
/// Files below this index suffixes by two bytes, larger ones by three.
const WIDE_INDEX_FROM: usize = 1 << 20;

/// The sorted suffixes of the old file.
pub(super) struct Index<'a> {
    old: &'a [u8],
    suffixes: Vec<i32>,
    /// Where the suffixes with each prefix begin.
    buckets: Vec<u32>,
    prefix: usize,
}

impl<'a> Index<'a> {
    /// Sorts the suffixes of `old`, which is below 2 GiB. Takes five bytes of memory per byte and some seconds per
    /// 100 MB. `None` if the sort fails (memory).
    pub(super) fn new(old: &'a [u8]) -> Option<Self> {
        let suffixes = if old.is_empty() {
            Vec::new()
        } else {
            SuffixArrayConstruction::for_text(old)
                .in_owned_buffer32()
                .single_threaded()
                .run()
                .ok()?
                .into_vec()
        };
        let prefix = if old.len() < WIDE_INDEX_FROM { 2 } else { 3 };
        let mut buckets = vec![0u32; (1 << (8 * prefix)) + 1];
        for window in old.windows(prefix) {
            buckets[key(window) + 1] += 1;
        }
        // Suffixes shorter than the prefix sort before all others with the same beginning.
        for short in 1..prefix.min(old.len() + 1) {
            let mut padded = [0u8; 3];
            padded[..short].copy_from_slice(&old[old.len() - short..]);
            buckets[key(&padded[..prefix]) + 1] += 1;
        }
        let mut sum = 0;
        for bucket in &mut buckets {
            sum += *bucket;
            *bucket = sum;
        }
        Some(Self { old, suffixes, buckets, prefix })
    }

    /// The longest match of the beginning of `pattern`: where and how long.
    fn longest(&self, pattern: &[u8]) -> (usize, usize) {
        if pattern.len() < self.prefix || self.suffixes.is_empty() {
            return (0, 0);
        }
        let pattern = &pattern[..pattern.len().min(COMPARE_MAX)];
        let key = key(&pattern[..self.prefix]);
        let (mut low, mut high) = (self.buckets[key] as usize, self.buckets[key + 1] as usize);
        let mut best = (0, 0);
        let (mut low_common, mut high_common) = (0, 0);
        while low < high {
            let middle = low + (high - low) / 2;
            let at = self.suffixes[middle] as usize;
            let skip = low_common.min(high_common);
            let suffix = &self.old[at..];
            let skip = skip.min(suffix.len());
            let common = skip + common(&suffix[skip..], &pattern[skip..]);
            if common > best.1 {
                best = (at, common);
            }
            if common == pattern.len() {
                break;
            }
            if common == suffix.len() || suffix[common] < pattern[common] {
                low = middle + 1;
                low_common = common;
            } else {
                high = middle;
                high_common = common;
            }
        }
        best
    }
}

fn key(prefix: &[u8]) -> usize {
    prefix.iter().fold(0, |key, byte| key << 8 | usize::from(*byte))
}

/// Bytes that `a` and `b` begin with in common.
fn common(a: &[u8], b: &[u8]) -> usize {
    let len = a.len().min(b.len());
    let (a, b) = (&a[..len], &b[..len]);
    let mut same = 0;
    for (x, y) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        let x = u64::from_le_bytes(x.try_into().unwrap_or_default());
        let y = u64::from_le_bytes(y.try_into().unwrap_or_default());
        if x != y {
            return same + ((x ^ y).trailing_zeros() / 8) as usize;
        }
        same += 8;
    }
    same + a[same..].iter().zip(&b[same..]).take_while(|(x, y)| x == y).count()
}

/// Blocks for all of `new`, ascending and disjoint in it.
pub(super) fn find(index: &Index<'_>, new: &[u8], gain: usize, threads: usize) -> Vec<Block> {
    let pieces: Vec<usize> = (0..new.len()).step_by(PIECE).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(&start) = pieces.get(number) else { return done };
            done.push((number, scan(index, new, start, new.len().min(start + PIECE), gain)));
        }
    };
    let mut done = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut done = work();
        done.extend(others.into_iter().flat_map(|other| other.join().unwrap_or_default()));
        done
    });
    done.sort_unstable_by_key(|(number, _)| *number);
    let mut blocks: Vec<Block> = Vec::new();
    for block in done.into_iter().flat_map(|(_, blocks)| blocks) {
        match blocks.last_mut() {
            Some(last) if last.new_end() == block.new && last.old_end() == block.old => last.len += block.len,
            _ => blocks.push(block),
        }
    }
    blocks
}

fn scan(index: &Index<'_>, new: &[u8], start: usize, end: usize, gain: usize) -> Vec<Block> {
    let old = index.old;
    let same = |old_at: i64, new_at: usize| {
        usize::try_from(old_at).ok().and_then(|at| old.get(at)).is_some_and(|byte| *byte == new[new_at])
    };
    let mut blocks = Vec::new();
    let (mut last_new, mut last_old) = (start, start as i64);
    let (mut at, mut len) = (start, 0usize);
    while at < end {
        let shift = last_old - last_new as i64;
        let mut score = 0;
        at += len;
        let mut scored = at;
        let mut position = 0;
        while at < end {
            (position, len) = index.longest(&new[at..end]);
            while scored < (at + len).min(end) {
                score += usize::from(same(scored as i64 + shift, scored));
                scored += 1;
            }
            if (len == score && len != 0) || len > score + gain {
                break;
            }
            // Of what lies before `at` nothing may stay counted, or a long match never equals its score and every byte of
            // it is searched for.
            score -= usize::from(scored > at && same(at as i64 + shift, at));
            at += 1;
            scored = scored.max(at);
        }
        if len == score && at < end {
            continue;
        }
        // Close the block of the alignment before, open the next.
        let forward = extend(end.min(at) - last_new, |step| {
            let old_at = last_old + step as i64;
            (old_at < old.len() as i64).then(|| same(old_at, last_new + step))
        });
        let backward = if at < end {
            extend((at - last_new).min(position), |step| {
                Some(same(position as i64 - 1 - step as i64, at - 1 - step))
            })
        } else {
            0
        };
        let (mut forward, mut backward) = (forward, backward);
        if last_new + forward > at - backward {
            let overlap = last_new + forward - (at - backward);
            let (mut best, mut best_step, mut sum) = (0i64, 0, 0i64);
            for step in 0..overlap {
                let new_at = last_new + forward - overlap + step;
                sum += i64::from(same(last_old + (forward - overlap + step) as i64, new_at));
                sum -= i64::from(same((position - backward + step) as i64, at - backward + step));
                if sum > best {
                    (best, best_step) = (sum, step + 1);
                }
            }
            forward = forward + best_step - overlap;
            backward -= best_step;
        }
        if forward > 0 {
            blocks.push(Block { new: last_new as u32, old: last_old as u32, len: forward as u32 });
        }
        last_new = at - backward;
        last_old = (position - backward) as i64;
    }
    blocks
}

/// How many of `most` steps to go so that twice the matches less the steps is largest.
fn extend(most: usize, same: impl Fn(usize) -> Option<bool>) -> usize {
    let (mut sum, mut best, mut best_len) = (0i64, 0, 0);
    for step in 0..most {
        let Some(same) = same(step) else { break };
        sum += if same { 1 } else { -1 };
        if sum > best {
            (best, best_len) = (sum, step + 1);
        }
    }
    best_len
}
