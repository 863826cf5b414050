//! The generator: finds blocks, models both files, packs, and proves the patch with the decoder.

use std::io;

use super::apply::mix;
use super::batches::{cut, plan};
use super::bits::Encoder;
use super::block::Block;
use super::control::{BlockModel, code_bases, code_frame_index, code_layout};
use super::filter::{self, Direction};
use super::find;
use super::frame_index::FrameIndex;
use super::header::{
    ABSOLUTE, CONTROL, Codec, EXTRA, FIELDS, FILE_BYTES_MAX, FRAME_INDEX, FRAME_SPAN_MAX, Header, JOINED,
    LITERALS, MIXED_BYTES_MAX, REFERENCES, blocks_max, references_max,
};
use super::image::{Image, Layout, Machine};
use super::literals::Literals;
use super::predict::{Predictor, normalize};
use super::project::Projection;
use super::references::References;
use super::streams;
use crate::delta::{
    Algorithm, DeltaError, DeltaLimits, GenerateOptions, Pair, SuffixArray, decode_unchecked, matching,
};

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
        let references = find::references(file, &image, references_max(file.len() as u32) as usize).ok()?;
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

/// How much of a program is code at the least, as a part of its bytes: of libraries a fifth to a half.
const CODE_PART: u64 = 8;

/// Whether both files are executables of one machine, with their code.
pub(super) fn are_programs(pair: &Pair<'_>) -> bool {
    let machine = |file: &[u8]| {
        let image = Image::parse(file)?;
        let code = image.sections.iter().filter(|section| section.is_code());
        let code_bytes: u64 = code.map(|section| u64::from(section.len)).sum();
        (code_bytes >= file.len() as u64 / CODE_PART).then_some(image.machine)
    };
    machine(pair.base()).is_some_and(|old| machine(pair.result()) == Some(old))
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
    let find = |suffixes: &SuffixArray<'_>, wanted: &[u8], gain, begin: f64, share: f64| -> Vec<Block> {
        let progress = |done: f64| progress(begin + share * done);
        let options = GenerateOptions { threads: options.threads, progress: &progress };
        matching::find(suffixes, wanted, gain, &options).into_iter().map(Block::from).collect()
    };
    let indexed = |wanted: &[u8], suffixes: &SuffixArray<'_>, pair| {
        let mut best: Option<(usize, Encoding<'_>)> = None;
        let share = 0.3 / gains.len() as f64;
        for (number, gain) in gains.iter().enumerate() {
            let blocks = find(suffixes, wanted, *gain, 0.4 + share * number as f64, share);
            let encoding = Encoding::new(old, new, pair, blocks);
            let bytes = if gains.len() > 1 { encoding.estimate() } else { 0 };
            if best.as_ref().is_none_or(|(least, _)| bytes < *least) {
                best = Some((bytes, encoding));
            }
        }
        best.and_then(|(_, encoding)| encoding.pack(threads))
    };
    let patch = if let Some((from, to)) = &parsed {
        let (layout, new_layout) = (&from.image.layout, &to.image.layout);
        let rough = {
            let blank = from.blank(old);
            let suffixes = SuffixArray::of(&blank).ok_or_else(no_memory)?;
            progress(0.1);
            find(&suffixes, &to.blank(new), GAIN, 0.1, 0.2)
        };
        let expected = {
            let projection = Projection::new(layout, new_layout, old.len() as u32, &rough);
            let bases = new_bases(&from.references, &to.references, &projection);
            normalize(old, layout, &from.references, Some((&projection, &bases)))
        };
        let wanted = normalize(new, new_layout, &to.references, None);
        let suffixes = SuffixArray::of(&expected).ok_or_else(no_memory)?;
        progress(0.4);
        indexed(&wanted, &suffixes, Some((from, to)))
    } else {
        let suffixes = pair.suffixes().ok_or_else(no_memory)?;
        progress(0.4);
        indexed(new, suffixes, None)
    };
    let patch = patch.ok_or_else(|| failed("no encoding was made"))?;
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
    /// What the streams are worked on by.
    pieces: Vec<Block>,
    /// The equal bytes before each literal, and its new byte.
    literals: Vec<(u64, u8)>,
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
            index.is_sound(new.len() as u32, FRAME_SPAN_MAX)
                && index.derive(&new[frames], &layout) == new[table]
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
        let pieces = cut(&blocks, new.len() as u32);
        let mut extra = Vec::new();
        let mut at = 0;
        for block in &pieces {
            gap(&new, at, block.new, is_x86, &layout, &mut extra);
            at = block.new_end();
        }
        gap(&new, at, new.len() as u32, is_x86, &layout, &mut extra);
        let literals = literals(old, &new, &pieces, parsed.map(|(from, _)| &from.references));
        Self { old, new, parsed, blocks, pieces, literals, frame_index, layout, old_layout, extra }
    }

    /// Whether extra bytes of code hold targets: only the opcodes of x86 are known.
    fn is_absolute(&self) -> bool {
        self.parsed.is_some_and(|(_, to)| to.image.machine == Machine::X86_64)
    }

    fn header(&self) -> Header {
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
            literals: self.literals.len() as u32,
            references: self.parsed.map_or(0, |(from, _)| from.references.all.len() as u32),
            extra_len: self.extra.len() as u32,
            frame_span: self.frame_index.map_or(0, |index| index.span()),
            extra_codec: Codec::Stored,
            packed: [0; 4],
        }
    }

    /// About what a patch of these blocks takes, in bytes: good for comparing blocks, and soon known.
    fn estimate(&self) -> usize {
        let streams = self.streams();
        let extra = streams::pack(Codec::Zstd, &self.extra).map_or(self.extra.len(), |packed| packed.len());
        extra + streams.control().len() + streams.literals().len() + streams.fields().len()
    }

    /// The smallest patch of these blocks.
    fn pack(&self, threads: usize) -> Option<Vec<u8>> {
        let streams = self.streams();
        let (literals, (fields, control, (codec, extra))) = std::thread::scope(|scope| {
            let literals = scope.spawn(|| streams.literals());
            let rest = (streams.fields(), streams.control(), streams::pack_best(&self.extra, threads));
            (literals.join(), rest)
        });
        let literals = literals.ok()?;
        let mut header = self.header();
        header.extra_codec = codec;
        header.packed[CONTROL] = control.len() as u32;
        header.packed[LITERALS] = literals.len() as u32;
        header.packed[FIELDS] = fields.len() as u32;
        header.packed[EXTRA] = extra.len() as u32;
        let sum = control.len() + literals.len() + fields.len() + extra.len();
        let apart = [header.encode(), control, literals, fields, extra].concat();
        if sum >= JOINED_MAX || header.extra_len > MIXED_BYTES_MAX {
            return Some(apart);
        }
        let joined = streams.joined();
        header.flags |= JOINED;
        header.packed[CONTROL] = joined.len() as u32;
        let joined = [header.encode(), joined].concat();
        Some(if joined.len() < apart.len() { joined } else { apart })
    }

    fn streams(&self) -> Streams<'_> {
        let projection = Projection::new(&self.old_layout, &self.layout, self.old.len() as u32, &self.blocks);
        let bases = match self.parsed {
            Some((from, to)) => new_bases(&from.references, &to.references, &projection),
            None => Vec::new(),
        };
        Streams { encoding: self, projection, bases, none: References::default() }
    }

    fn code_control(&self, coder: &mut Encoder) {
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

    /// Codes the literals, the fields, or both in step.
    fn code_bytes(&self, coder: &mut Encoder, with_literals: bool, mut predictor: Option<Predictor<'_>>) {
        let mut literals = Literals::new(self.literals.len() as u32);
        let mut actual = self.literals.iter();
        let mut scratch = Vec::new();
        for batch in plan(&self.pieces, self.new.len() as u32) {
            let blocks = &self.pieces[batch.blocks];
            for block in blocks.iter().filter(|_| with_literals) {
                scratch.resize(block.len as usize, 0);
                literals.apply(coder, self.old, block.old as usize, &mut scratch, &mut actual);
            }
            let Some(predictor) = &mut predictor else { continue };
            scratch.clear();
            scratch.extend_from_slice(&self.new[batch.bytes.start as usize..batch.bytes.end as usize]);
            predictor.code(coder, blocks, self.old, &mut scratch, batch.bytes.start);
        }
    }
}

/// What the streams of one encoding are made from.
struct Streams<'a> {
    encoding: &'a Encoding<'a>,
    projection: Projection<'a>,
    bases: Vec<u64>,
    none: References,
}

impl Streams<'_> {
    fn references(&self) -> &References {
        self.encoding.parsed.map_or(&self.none, |(from, _)| &from.references)
    }

    fn predictor(&self) -> Predictor<'_> {
        let Encoding { old_layout, layout, .. } = self.encoding;
        Predictor::new(old_layout, layout, &self.projection, self.references(), &self.bases)
    }

    fn code_control(&self, coder: &mut Encoder) {
        self.encoding.code_control(coder);
        let bases = &self.references().bases;
        let expected: Vec<u64> = bases.iter().map(|base| self.projection.of(*base).0).collect();
        code_bases(coder, &expected, &self.bases);
    }

    fn control(&self) -> Vec<u8> {
        let mut coder = Encoder::new();
        self.code_control(&mut coder);
        coder.finish()
    }

    fn literals(&self) -> Vec<u8> {
        let mut coder = Encoder::new();
        self.encoding.code_bytes(&mut coder, true, None);
        coder.finish()
    }

    fn fields(&self) -> Vec<u8> {
        if self.encoding.parsed.is_none() {
            return Vec::new();
        }
        let mut coder = Encoder::new();
        self.encoding.code_bytes(&mut coder, false, Some(self.predictor()));
        coder.finish()
    }

    /// All of them as one.
    fn joined(&self) -> Vec<u8> {
        let mut coder = Encoder::new();
        self.code_control(&mut coder);
        let Encoding { old, new, blocks, layout, extra, .. } = self.encoding;
        let mut mixed = Vec::with_capacity(extra.len());
        let blocks = blocks.iter().copied();
        mix(&mut coder, old, new.len() as u32, extra.len() as u32, blocks, layout, extra, &mut mixed);
        let predictor = self.encoding.parsed.map(|_| self.predictor());
        self.encoding.code_bytes(&mut coder, true, predictor);
        coder.finish()
    }
}

/// The bytes of blocks that differ, but for those of references: the equal bytes before each, and the new byte.
fn literals(old: &[u8], new: &[u8], pieces: &[Block], references: Option<&References>) -> Vec<(u64, u8)> {
    let mut found = Vec::new();
    let mut zeros = 0u64;
    for block in pieces {
        let from = &old[block.old as usize..block.old_end() as usize];
        let to = &new[block.new as usize..block.new_end() as usize];
        let mut at = 0usize;
        let mut run = |until: usize, skipped: usize| {
            for (old, new) in from[at..until].iter().zip(&to[at..until]) {
                if old == new {
                    zeros += 1;
                } else {
                    found.push((zeros, *new));
                    zeros = 0;
                }
            }
            zeros += skipped as u64;
            at = until + skipped;
        };
        for reference in references.iter().flat_map(|references| references.within(block.old, block.len)) {
            run((reference.position - block.old) as usize, reference.kind().width() as usize);
        }
        run(from.len(), 0);
    }
    found
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
