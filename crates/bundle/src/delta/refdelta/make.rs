//! The generator: finds blocks, models both files, packs, and proves the patch with the decoder.

use std::io;

use super::apply::mix;
use super::batches::plan;
use super::bits::{BitCoder, Encoder};
use super::control::{BlockModel, code_bases, code_frame_index, code_layout};
use super::filter::{self, Direction};
use super::frame_index::FrameIndex;
use super::header::{
    ABSOLUTE, CONTROL, Codec, EXTRA, FIELDS, FILE_BYTES_MAX, FRAME_INDEX, Header, JOINED, LITERALS,
    REFERENCES, blocks_max, references_max,
};
use super::image::{Image, Layout, Machine};
use super::literals::LiteralModel;
use super::matching::{self, Block, Index};
use super::predict::{Predictor, normalize, read};
use super::project::Projection;
use super::references::References;
use super::streams;
use crate::delta::{Algorithm, DeltaError, DeltaLimits, GenerateOptions, Pair, decode_unchecked};

/// Files up to this size try several gains; larger ones take the usual one.
const SMALL: usize = 2 << 20;
const GAINS: [usize; 3] = [4, 8, 16];
const GAIN: usize = 16;
/// Streams that would be below this in all are tried as one stream.
const JOINED_MAX: usize = 64 << 10;

/// An executable with its references.
struct Parsed {
    image: Image,
    references: References,
}

impl Parsed {
    fn of(file: &[u8]) -> Option<Self> {
        let image = Image::parse(file)?;
        let references = References::find(file, &image, references_max(file.len() as u32) as usize).ok()?;
        Some(Self { image, references })
    }

    /// The file with its references blank.
    fn blank(&self, file: &[u8]) -> Vec<u8> {
        let mut out = file.to_vec();
        for reference in &self.references.all {
            let at = reference.position as usize;
            out[at..at + reference.kind().width() as usize].fill(0);
        }
        out
    }
}

/// The bases of the new file that belong to those of the old one.
fn new_bases(old: &References, new: &References, projection: &Projection<'_>) -> Vec<u64> {
    if old.bases.len() == new.bases.len() {
        return new.bases.clone();
    }
    old.bases.iter().map(|base| projection.of(*base).0).collect()
}

fn failed(reason: impl Into<String>) -> DeltaError {
    DeltaError::Generate { algorithm: Algorithm::Refdelta, reason: reason.into() }
}

pub(super) fn generate(pair: &Pair<'_>, options: &GenerateOptions<'_>) -> Result<Vec<u8>, DeltaError> {
    let (old, new) = (pair.base(), pair.result());
    if old.len() as u64 > FILE_BYTES_MAX - 1 || new.len() as u64 > FILE_BYTES_MAX - 1 {
        return Err(failed("files of 2 GiB and more need another format"));
    }
    let threads = options.threads.get().min(2);
    let progress = options.progress;
    progress(0.0);
    let parsed = Parsed::of(old).zip(Parsed::of(new)).filter(|(a, b)| a.image.machine == b.image.machine);
    let gains: &[usize] = if old.len().max(new.len()) <= SMALL { &GAINS } else { &[GAIN] };
    let no_memory = || failed("the old file could not be indexed");
    let mut best: Option<Vec<u8>> = None;
    if let Some((from, to)) = &parsed {
        let (layout, new_layout) = (&from.image.layout, &to.image.layout);
        let rough = {
            let blank = from.blank(old);
            let index = Index::new(&blank).ok_or_else(no_memory)?;
            progress(0.1);
            matching::find(&index, &to.blank(new), GAIN, threads)
        };
        progress(0.3);
        let expected = {
            let projection = Projection::new(layout, new_layout, old.len() as u32, &rough);
            let bases = new_bases(&from.references, &to.references, &projection);
            normalize(old, layout, &from.references, Some((&projection, &bases)))
        };
        let wanted = normalize(new, new_layout, &to.references, None);
        let index = Index::new(&expected).ok_or_else(no_memory)?;
        progress(0.4);
        for (number, gain) in gains.iter().enumerate() {
            let blocks = matching::find(&index, &wanted, *gain, threads);
            let part = 0.5 / gains.len() as f64;
            progress(0.4 + part * (number as f64 + 0.5));
            Encoding::new(old, new, Some((from, to)), blocks).pack(threads, &mut best);
            progress(0.4 + part * (number as f64 + 1.0));
        }
    } else {
        let index = Index::new(old).ok_or_else(no_memory)?;
        progress(0.4);
        for gain in gains {
            let blocks = matching::find(&index, new, *gain, threads);
            Encoding::new(old, new, None, blocks).pack(threads, &mut best);
        }
    }
    let patch = best.ok_or_else(|| failed("no encoding was made"))?;
    progress(0.9);
    let mut check = Compare { expected: new };
    let limits = DeltaLimits { memory_bytes_max: u64::MAX, ..DeltaLimits::default() };
    decode_unchecked(Algorithm::Refdelta, &old.to_vec(), &patch, new.len() as u64, &limits, &mut check)
        .map_err(|error| failed(format!("the patch does not decode: {error}")))?;
    progress(1.0);
    Ok(patch)
}

/// Refuses every byte that is not the expected one.
struct Compare<'a> {
    expected: &'a [u8],
}

impl io::Write for Compare<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.expected.strip_prefix(bytes) {
            Some(rest) => self.expected = rest,
            None => return Err(io::Error::other("the result differs from the new file")),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Everything needed to write a patch in one form or another.
struct Encoding<'a> {
    old: &'a [u8],
    new: std::borrow::Cow<'a, [u8]>,
    parsed: Option<(&'a Parsed, &'a Parsed)>,
    blocks: Vec<Block>,
    frame_index: Option<FrameIndex>,
    layout: Layout,
    old_layout: Layout,
    extra: Vec<u8>,
}

impl<'a> Encoding<'a> {
    fn new(
        old: &'a [u8],
        new: &'a [u8],
        parsed: Option<(&'a Parsed, &'a Parsed)>,
        mut blocks: Vec<Block>,
    ) -> Self {
        let layout = parsed.map(|(_, to)| to.image.layout.clone()).unwrap_or_default();
        let old_layout = parsed.map(|(from, _)| from.image.layout.clone()).unwrap_or_default();
        let mut new = std::borrow::Cow::Borrowed(new);
        let frame_index = parsed.and_then(|(_, to)| FrameIndex::of(&to.image)).filter(|index| {
            let table = index.index as usize..(index.index + index.index_len) as usize;
            let frames = index.frames as usize..(index.frames + index.frames_len) as usize;
            index.is_sound(new.len() as u32) && index.derive(&new[frames], &layout) == new[table]
        });
        if let Some(index) = frame_index {
            // The decoder makes these bytes: no block holds them, and as extra bytes zeros cost nothing.
            new.to_mut()[index.index as usize..(index.index + index.index_len) as usize].fill(0);
            blocks = without(&blocks, index.index, index.index + index.index_len);
        }
        let most = blocks_max(new.len() as u32) as usize;
        if blocks.len() > most {
            let mut lens: Vec<u32> = blocks.iter().map(|block| block.len).collect();
            lens.sort_unstable_by(|a, b| b.cmp(a));
            let least = lens[most - 1];
            blocks.retain(|block| block.len > least);
        }
        let is_x86 = parsed.is_some_and(|(_, to)| to.image.machine == Machine::X86_64);
        let mut extra = Vec::new();
        let mut at = 0;
        for block in &blocks {
            gap(&new, at, block.new, is_x86, &layout, &mut extra);
            at = block.new_end();
        }
        gap(&new, at, new.len() as u32, is_x86, &layout, &mut extra);
        Self { old, new, parsed, blocks, frame_index, layout, old_layout, extra }
    }

    /// Whether extra bytes of code hold targets: only the opcodes of x86 are known.
    fn is_absolute(&self) -> bool {
        self.parsed.is_some_and(|(_, to)| to.image.machine == Machine::X86_64)
    }

    fn header(&self, literals: u32) -> Header {
        let mut flags = 0;
        if self.parsed.is_some() {
            flags |= REFERENCES;
        }
        if self.is_absolute() {
            flags |= ABSOLUTE;
        }
        if self.frame_index.is_some() {
            flags |= FRAME_INDEX;
        }
        Header {
            flags,
            old_len: self.old.len() as u32,
            new_len: self.new.len() as u32,
            blocks: self.blocks.len() as u32,
            literals,
            references: self.parsed.map_or(0, |(from, _)| from.references.all.len() as u32),
            extra_len: self.extra.len() as u32,
            extra_codec: Codec::Stored,
            packed: [0; 4],
        }
    }

    /// Packs in every form that may win and keeps the smallest patch in `best`.
    fn pack(&self, threads: usize, best: &mut Option<Vec<u8>>) {
        let mut keep = |patch: Vec<u8>| {
            if best.as_ref().is_none_or(|best| patch.len() < best.len()) {
                *best = Some(patch);
            }
        };
        let projection = Projection::new(&self.old_layout, &self.layout, self.old.len() as u32, &self.blocks);
        let none = References::default();
        let (found, bases) = match self.parsed {
            Some((from, to)) => (&from.references, new_bases(&from.references, &to.references, &projection)),
            None => (&none, Vec::new()),
        };
        let expected: Vec<u64> = found.bases.iter().map(|base| projection.of(*base).0).collect();
        let predictor = || Predictor::new(&self.old_layout, &self.layout, &projection, found, &bases);
        let (literals, (fields, control, (codec, extra))) = std::thread::scope(|scope| {
            let literals = scope.spawn(|| {
                let mut coder = Encoder::new();
                let count = self.literals(&mut coder);
                (coder.finish(), count)
            });
            let mut coder = Encoder::new();
            self.fields(&mut coder, predictor());
            let fields = coder.finish();
            let mut coder = Encoder::new();
            self.control(&mut coder);
            code_bases(&mut coder, &expected, &bases);
            let control = coder.finish();
            let extra = streams::pack_best(&self.extra, threads);
            (literals.join(), (fields, control, extra))
        });
        let Ok((literals, literal_count)) = literals else { return };
        let mut header = self.header(literal_count);
        header.extra_codec = codec;
        header.packed[CONTROL] = control.len() as u32;
        header.packed[LITERALS] = literals.len() as u32;
        header.packed[FIELDS] = fields.len() as u32;
        header.packed[EXTRA] = extra.len() as u32;
        let sum = control.len() + literals.len() + fields.len() + extra.len();
        keep([header.encode(), control, literals, fields, extra].concat());
        if sum < JOINED_MAX {
            let mut coder = Encoder::new();
            self.control(&mut coder);
            code_bases(&mut coder, &expected, &bases);
            let mut extra = Vec::with_capacity(self.extra.len());
            mix(
                &mut coder,
                self.old,
                self.new.len() as u32,
                self.extra.len() as u32,
                self.blocks.iter().copied(),
                &self.layout,
                &self.extra,
                &mut extra,
            );
            self.literals(&mut coder);
            self.fields(&mut coder, predictor());
            let mut header = self.header(literal_count);
            header.flags |= JOINED;
            let joined = coder.finish();
            header.packed[CONTROL] = joined.len() as u32;
            keep([header.encode(), joined].concat());
        }
    }

    fn control(&self, coder: &mut Encoder) {
        if let Some((from, to)) = self.parsed {
            code_layout(coder, &from.image.layout, &to.image.layout);
            if let Some(index) = &self.frame_index {
                code_frame_index(coder, &FrameIndex::of(&from.image).unwrap_or_default(), index);
            }
        }
        let mut model = BlockModel::new();
        for block in &self.blocks {
            model.code(coder, *block);
        }
    }

    /// Codes the literals and counts them.
    fn literals(&self, coder: &mut Encoder) -> u32 {
        let count = self.each_literal(|_, _, _, _| {});
        let mut model = LiteralModel::new(count);
        let (mut old, mut after): (&[u8], usize) = (&[], 0);
        self.each_literal(|from, at, zeros, new| {
            model.gap(coder, old, after, zeros);
            model.byte(coder, from, at, new);
            (old, after) = (from, at + 1);
        })
    }

    /// Calls back with the old file, a place in it, the equal bytes before it and the new byte there; counts the calls.
    fn each_literal(&self, mut found: impl FnMut(&'a [u8], usize, u64, u8)) -> u32 {
        let (batches, order) = plan(&self.blocks, self.new.len() as u32, &self.layout);
        let (mut zeros, mut count) = (0u64, 0u32);
        for number in order {
            for block in &self.blocks[batches[number].blocks.clone()] {
                let from = &self.old[block.old as usize..block.old_end() as usize];
                let to = &self.new[block.new as usize..block.new_end() as usize];
                let mut at = 0usize;
                let mut run = |start: usize, until: usize, skipped: u32| {
                    for (step, (old, new)) in from[start..until].iter().zip(&to[start..until]).enumerate() {
                        if old == new {
                            zeros += 1;
                            continue;
                        }
                        found(self.old, block.old as usize + start + step, zeros, *new);
                        zeros = 0;
                        count += 1;
                    }
                    zeros += u64::from(skipped);
                };
                if let Some((parsed, _)) = self.parsed {
                    for reference in parsed.references.within(block.old, block.len) {
                        let start = (reference.position - block.old) as usize;
                        run(at, start, reference.kind().width());
                        at = start + reference.kind().width() as usize;
                    }
                }
                run(at, from.len(), 0);
            }
        }
        count
    }

    fn fields<C: BitCoder>(&self, coder: &mut C, mut predictor: Predictor<'_>) {
        let Some((parsed, _)) = self.parsed else { return };
        let (batches, order) = plan(&self.blocks, self.new.len() as u32, &self.layout);
        for number in order {
            for &block in &self.blocks[batches[number].blocks.clone()] {
                for reference in parsed.references.within(block.old, block.len) {
                    let new_at = block.new + (reference.position - block.old);
                    let actual = read(&self.new, new_at as usize, reference.kind().width());
                    predictor.code(coder, reference, self.old, &self.new, 0, new_at, block, actual);
                }
            }
        }
    }
}

fn gap(new: &[u8], from: u32, to: u32, is_absolute: bool, layout: &Layout, extra: &mut Vec<u8>) {
    let start = extra.len();
    extra.extend_from_slice(&new[from as usize..to as usize]);
    if is_absolute {
        filter::rewrite(&mut extra[start..], from, layout, Direction::ToTargets);
    }
}

/// The blocks but for what lies in `start..end` of the new file.
fn without(blocks: &[Block], start: u32, end: u32) -> Vec<Block> {
    let mut out = Vec::with_capacity(blocks.len() + 1);
    for block in blocks {
        if block.new < start {
            out.push(Block { len: block.len.min(start - block.new), ..*block });
        }
        if block.new_end() > end {
            let skip = end.saturating_sub(block.new);
            out.push(Block { new: block.new + skip, old: block.old + skip, len: block.len - skip });
        }
    }
    out.retain(|block| block.len > 0);
    out.dedup_by(|next, block| block.new == next.new);
    out
}
