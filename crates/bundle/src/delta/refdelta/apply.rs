//! The decoder: a pipeline of batches in the order of the file.
//!
//! One thread lays down blocks, literals and extra bytes; a second one writes the references; the caller's thread hands
//! batches to the output, which hashes them. Buffers go round, so that the result is never held as a whole.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::mpsc;

use super::Damage;
use super::batches::{BATCH_BYTES_MAX, Batch, cut, cut_max, plan};
use super::bits::{BitCoder, Decoder};
use super::block::Block;
use super::control::{BlockModel, code_bases, code_frame_index, code_layout};
use super::filter::{self, Direction};
use super::find;
use super::frame_index::FrameIndex;
use super::header::{ABSOLUTE, CONTROL, EXTRA, FIELDS, FRAME_INDEX, Header, JOINED, LITERALS, REFERENCES};
use super::image::{Image, Layout};
use super::literals::Literals;
use super::mix::{Hint, MixModel};
use super::predict::Predictor;
use super::project::Projection;
use super::references::References;
use super::streams;
use crate::delta::{DeltaError, Inputs, Output};

/// Batches that wait between two stages.
const QUEUE: usize = 3;

/// The most memory [`decode`] takes for a patch with this header, in bytes.
pub(super) fn memory(header: &Header, patch_len: u64) -> u64 {
    let extra_len = u64::from(header.extra_len);
    let extra = if header.is(JOINED) {
        MixModel::memory(extra_len) + extra_len
    } else {
        streams::memory(header.extra_codec, header.extra_len)
    };
    u64::from(header.old_len)
        + patch_len
        // The references found, in two lists while pieces are joined, each grown by doubling; their pages and jump table
        // starts.
        + u64::from(header.references) * 32
        + u64::from(header.old_len) / 16
        // The blocks as they are, as they are cut, and sorted for the projection; batches.
        + u64::from(header.blocks) * 12
        + cut_max(header.blocks, header.new_len) * 40
        + u64::from(header.blocks) * 12
        // What waits for the frame index, the frames, the entries and the index itself.
        + u64::from(header.frame_span) * 3
        + u64::from(BATCH_BYTES_MAX) * (2 * QUEUE as u64 + 4)
        + extra
        + (16 << 20)
}

/// Everything both stages read.
struct Plan<'a> {
    old: &'a [u8],
    blocks: &'a [Block],
    batches: &'a [Batch],
    layout: &'a Layout,
    is_absolute: bool,
}

impl Plan<'_> {
    /// Lays down the blocks with their literals, and the gaps.
    fn fill<C: BitCoder>(
        &self,
        batch: &Batch,
        bytes: &mut Vec<u8>,
        extra: &mut dyn Read,
        literals: &mut Literals,
        coder: &mut C,
    ) -> std::io::Result<()> {
        bytes.clear();
        let start = batch.bytes.start;
        let mut gap = |until: u32, bytes: &mut Vec<u8>| {
            let at = bytes.len();
            let len = (until - start) as usize - at;
            if len == 0 {
                return Ok(());
            }
            bytes.resize(at + len, 0);
            extra.read_exact(&mut bytes[at..])?;
            if self.is_absolute {
                filter::rewrite(&mut bytes[at..], start + at as u32, self.layout, Direction::FromTargets);
            }
            Ok::<(), std::io::Error>(())
        };
        for block in &self.blocks[batch.blocks.clone()] {
            gap(block.new, bytes)?;
            let at = bytes.len();
            bytes.extend_from_slice(&self.old[block.old as usize..block.old_end() as usize]);
            literals.apply(coder, self.old, block.old as usize, &mut bytes[at..], &mut [].iter());
        }
        gap(batch.bytes.end, bytes)
    }

    /// Writes the references.
    fn patch<C: BitCoder>(
        &self,
        batch: &Batch,
        bytes: &mut [u8],
        predictor: &mut Predictor<'_>,
        coder: &mut C,
    ) {
        let blocks = &self.blocks[batch.blocks.clone()];
        predictor.code(coder, blocks, self.old, bytes, batch.bytes.start);
    }
}

/// Puts batches out, holding back what waits for the derived section.
struct Writer<'a, 'b> {
    out: &'a mut Output<'b>,
    layout: &'a Layout,
    index: Option<FrameIndex>,
    /// Where the first batch in `held` begins.
    at: u32,
    held: VecDeque<Vec<u8>>,
    /// Where the batch after those in `held` begins.
    end: u32,
    frames: Vec<u8>,
    derived: Option<Vec<u8>>,
}

impl Writer<'_, '_> {
    /// Takes the next batch; `reuse` gets the buffers that are free again.
    fn take(&mut self, bytes: Vec<u8>, mut reuse: impl FnMut(Vec<u8>)) -> Result<(), DeltaError> {
        let start = self.end;
        self.end += bytes.len() as u32;
        if let Some(index) = self.index
            && self.derived.is_none()
        {
            let (from, until) = overlap(start, bytes.len(), index.frames, index.frames_len);
            if from < until {
                self.frames.extend_from_slice(&bytes[from..until]);
            }
            if self.end >= index.frames + index.frames_len {
                self.derived = Some(index.derive(&self.frames, self.layout));
            }
        }
        self.held.push_back(bytes);
        while let Some(mut bytes) = self.held.pop_front() {
            if let Some(index) = self.index {
                let (from, until) = overlap(self.at, bytes.len(), index.index, index.index_len);
                if from < until {
                    let Some(derived) = &self.derived else {
                        self.held.push_front(bytes);
                        return Ok(());
                    };
                    let skipped = (self.at + from as u32 - index.index) as usize;
                    bytes[from..until].copy_from_slice(&derived[skipped..skipped + until - from]);
                }
            }
            self.out.put(&bytes)?;
            self.at += bytes.len() as u32;
            reuse(bytes);
        }
        Ok(())
    }
}

/// Which of `len` bytes at `start` belong to the section of `section_len` bytes at `section`.
fn overlap(start: u32, len: usize, section: u32, section_len: u32) -> (usize, usize) {
    let from = section.saturating_sub(start) as usize;
    let until = ((section + section_len).saturating_sub(start) as usize).min(len);
    (from, until)
}

/// Decodes a whole patch.
pub(super) fn decode(
    inputs: &Inputs<'_>,
    header: &Header,
    begin: usize,
    out: &mut Output<'_>,
) -> Result<(), DeltaError> {
    let damaged = |damage: Damage| inputs.damaged(damage.at, damage.field, damage.reason);
    let old = inputs.whole_base()?;
    let mut packed = vec![0; (inputs.patch_bytes() - begin as u64) as usize];
    inputs.read_patch(begin as u64, &mut packed)?;
    decode_packed(&old, header, &packed, out, &damaged)
}

type Streams<'a> = [&'a [u8]; 4];

fn split<'a>(header: &Header, packed: &'a [u8]) -> Option<Streams<'a>> {
    let mut rest = packed;
    let mut streams: Streams<'_> = [&[]; 4];
    for (stream, len) in streams.iter_mut().zip(header.packed) {
        (*stream, rest) = rest.split_at_checked(len as usize)?;
    }
    Some(streams)
}

/// What the control stream says.
struct Control {
    layout: Layout,
    frame_index: Option<FrameIndex>,
    blocks: Vec<Block>,
}

fn control(header: &Header, image: Option<&Image>, coder: &mut Decoder<'_>) -> Result<Control, Damage> {
    let damage = |field, reason: &str| Damage::new(0, field, reason);
    let layout = match image {
        Some(image) => code_layout(coder, &image.layout, &Layout::default())
            .filter(|layout| layout.is_sound(header.new_len))
            .ok_or_else(|| damage("layout", "not a layout of the new file"))?,
        None => Layout::default(),
    };
    let mut frame_index = None;
    if header.is(FRAME_INDEX) {
        let old = image.and_then(FrameIndex::of).unwrap_or_default();
        let read = code_frame_index(coder, &old, &FrameIndex::default())
            .filter(|index| index.is_sound(header.new_len, header.frame_span))
            .ok_or_else(|| damage("frame index", "not within the new file"))?;
        frame_index = Some(read);
    }
    let mut blocks = Vec::with_capacity(header.blocks as usize);
    let mut model = BlockModel::new();
    let nothing = Block { new: 0, old: 0, len: 0 };
    let mut covered = 0u64;
    for _ in 0..header.blocks {
        let block = model.code(coder, nothing).filter(|block| {
            block.len > 0 && block.new_end() <= header.new_len && block.old_end() <= header.old_len
        });
        let block = block.ok_or_else(|| damage("block", "not within both files"))?;
        covered += u64::from(block.len);
        blocks.push(block);
    }
    if covered + u64::from(header.extra_len) != u64::from(header.new_len) {
        return Err(damage("extra bytes", "blocks and extra bytes do not make the new file"));
    }
    Ok(Control { layout, frame_index, blocks })
}

fn decode_packed(
    old: &[u8],
    header: &Header,
    packed: &[u8],
    out: &mut Output<'_>,
    damaged: &dyn Fn(Damage) -> DeltaError,
) -> Result<(), DeltaError> {
    let damage = |field, reason: &str| damaged(Damage::new(0, field, reason));
    let streams =
        split(header, packed).ok_or_else(|| damage("packed size", "the streams do not fill the patch"))?;
    let image = if header.is(REFERENCES) {
        Some(Image::parse(old).ok_or_else(|| damage("flags", "the base is not an executable"))?)
    } else {
        None
    };
    let is_joined = header.is(JOINED);
    let mut coder = Decoder::new(streams[CONTROL]);
    let (control, references) = std::thread::scope(|scope| {
        let references = image
            .as_ref()
            .map(|image| scope.spawn(|| find::references(old, image, header.references as usize)));
        let control = control(header, image.as_ref(), &mut coder);
        (control, references.map(std::thread::ScopedJoinHandle::join))
    });
    let control = control.map_err(damaged)?;
    let references = match references {
        None => None,
        Some(Ok(Ok(found))) if found.all.len() == header.references as usize => Some(found),
        Some(_) => return Err(damage("references", "the base has another number of them")),
    };
    let nowhere = Layout::default();
    let old_layout = image.as_ref().map_or(&nowhere, |image| &image.layout);
    let projection = Projection::new(old_layout, &control.layout, header.old_len, &control.blocks);
    let none = References::default();
    let found = references.as_ref().unwrap_or(&none);
    let expected: Vec<u64> = found.bases.iter().map(|base| projection.of(*base).0).collect();
    let bases = code_bases(&mut coder, &expected, &[]);
    let mut extra: Box<dyn Read + Send + '_> = if is_joined {
        Box::new(std::io::Cursor::new(unmix(&mut coder, old, header, &control)))
    } else {
        streams::unpack(header.extra_codec, streams[EXTRA], header.extra_len)
            .ok_or_else(|| damage("extra bytes", "the stream does not unpack"))?
    };
    let blocks = cut(&control.blocks, header.new_len);
    let batches = plan(&blocks, header.new_len);
    let plan = Plan {
        old,
        blocks: &blocks,
        batches: &batches,
        layout: &control.layout,
        is_absolute: header.is(ABSOLUTE),
    };
    if !is_joined && !coder.is_used_up() {
        return Err(damage("control", "the stream is longer than needed"));
    }
    let predictor = Predictor::new(old_layout, &control.layout, &projection, found, &bases);
    let is_staged = !is_joined && references.is_some();
    let (mut in_step, staged) = if is_staged { (None, Some(predictor)) } else { (Some(predictor), None) };
    let mut writer = Writer {
        out,
        layout: &control.layout,
        index: control.frame_index,
        at: 0,
        held: VecDeque::new(),
        end: 0,
        frames: Vec::new(),
        derived: None,
    };
    let plan = &plan;
    let used_up = std::thread::scope(|scope| {
        let (to_fields, filled) = mpsc::sync_channel::<Vec<u8>>(QUEUE);
        let (to_writer, done) = mpsc::sync_channel::<Vec<u8>>(QUEUE);
        let (to_reuse, free) = mpsc::channel::<Vec<u8>>();
        // Whoever is last sends to the writer, and nobody else can: the writer ends when that stage does.
        let (to_next, to_writer) = if is_staged { (to_fields, Some(to_writer)) } else { (to_writer, None) };
        let fill = scope.spawn(move || {
            let mut coder = if is_joined { coder } else { Decoder::new(streams[LITERALS]) };
            let mut literals = Literals::new(header.literals);
            for batch in plan.batches {
                let mut bytes = free.try_recv().unwrap_or_default();
                plan.fill(batch, &mut bytes, &mut extra, &mut literals, &mut coder)?;
                if let Some(predictor) = &mut in_step {
                    plan.patch(batch, &mut bytes, predictor, &mut coder);
                }
                if to_next.send(bytes).is_err() {
                    return Ok(false);
                }
            }
            let is_extra_used_up = extra.read(&mut [0])? == 0;
            Ok::<_, std::io::Error>(is_extra_used_up && literals.are_all_read() && coder.is_used_up())
        });
        let patch = staged.zip(to_writer).map(|(mut predictor, to_writer)| {
            scope.spawn(move || {
                let mut coder = Decoder::new(streams[FIELDS]);
                for (batch, mut bytes) in plan.batches.iter().zip(filled) {
                    plan.patch(batch, &mut bytes, &mut predictor, &mut coder);
                    if to_writer.send(bytes).is_err() {
                        return false;
                    }
                }
                coder.is_used_up()
            })
        });
        for bytes in done {
            // Nobody takes buffers any more when all batches are filled.
            writer.take(bytes, |buffer| drop(to_reuse.send(buffer)))?;
        }
        let is_patched = patch.is_none_or(|patch| patch.join().unwrap_or(false));
        match fill.join() {
            Ok(Ok(is_filled)) => Ok(is_filled && is_patched),
            _ => Err(damage("extra bytes", "the stream does not unpack to its size")),
        }
    })?;
    if used_up { Ok(()) } else { Err(damage("patch", "more than the result needs")) }
}

/// The extra bytes out of the mixing model.
fn unmix(coder: &mut Decoder<'_>, old: &[u8], header: &Header, control: &Control) -> Vec<u8> {
    let mut extra = Vec::with_capacity(header.extra_len as usize);
    mix(
        coder,
        old,
        header.new_len,
        header.extra_len,
        control.blocks.iter().copied(),
        &control.layout,
        &[],
        &mut extra,
    );
    extra
}

/// Runs the mixing model over the gaps between blocks: of `actual` in the encoder, into `extra` in both.
#[expect(clippy::too_many_arguments, reason = "shared by both directions")]
pub(super) fn mix<C: BitCoder>(
    coder: &mut C,
    old: &[u8],
    new_len: u32,
    extra_len: u32,
    blocks: impl Iterator<Item = Block>,
    layout: &Layout,
    actual: &[u8],
    extra: &mut Vec<u8>,
) {
    if extra_len == 0 {
        return;
    }
    let mut model = MixModel::new(extra_len as usize);
    model.remember(&old[old.len().saturating_sub(super::mix::REMEMBERED_MAX)..]);
    let mut at = 0u32;
    let mut old_at = 0u32;
    let end = Block { new: new_len, old: 0, len: 0 };
    for block in blocks.chain(std::iter::once(end)) {
        for step in 0..block.new - at {
            let from = old_at as usize + step as usize;
            let old_byte = |at: usize| old.get(at).copied().unwrap_or(0);
            let is_code = layout.segment_at(at + step).is_ok_and(|segment| segment.is_code);
            let hint = Hint {
                old: [old_byte(from.wrapping_sub(1)), old_byte(from), old_byte(from + 1)],
                kind: u8::from(is_code),
            };
            let byte = actual.get(extra.len()).copied().unwrap_or(0);
            extra.push(model.code(coder, hint, byte));
        }
        at = block.new_end();
        old_at = block.old_end();
    }
}
