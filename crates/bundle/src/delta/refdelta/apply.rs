//! The decoder: three stages in step, on two or three threads.
//!
//! One thread lays down blocks, literals and extra bytes batch by batch; a second one writes the references of finished
//! batches; the caller's thread hands batches to the output in the order of the file, which hashes them.

use std::sync::mpsc;

use super::Damage;
use super::batches::{Batch, plan};
use super::bits::{BitCoder, Decoder};
use super::control::{BlockModel, code_bases, code_frame_index, code_layout};
use super::filter::{self, Direction};
use super::frame_index::FrameIndex;
use super::header::{
    ABSOLUTE, CONTROL, Codec, EXTRA, FIELDS, FRAME_INDEX, Header, JOINED, LITERALS, REFERENCES,
};
use super::image::{Image, Layout};
use super::literals::LiteralModel;
use super::matching::Block;
use super::mix::{Hint, MixModel};
use super::predict::Predictor;
use super::project::Projection;
use super::references::References;
use super::streams;
use crate::delta::{DeltaError, Inputs, Output};

/// The most memory [`decode`] takes for a patch with this header, in bytes.
pub(super) fn memory(header: &Header, patch_len: u64) -> u64 {
    let is_mixed = header.is(JOINED) || header.extra_codec == Codec::Mix;
    u64::from(header.old_len)
        + u64::from(header.new_len)
        + patch_len
        + u64::from(header.extra_len)
        // The references found, in two lists while pieces are joined, each grown by doubling; their pages and jump table
        // starts.
        + u64::from(header.references) * 32
        + u64::from(header.old_len) / 16
        // The blocks, those sorted for the projection, and as many batches, with what is sent about them.
        + u64::from(header.blocks) * 160
        + streams::memory(if is_mixed { Codec::Mix } else { header.extra_codec }, header.extra_len)
        + (32 << 20)
}

/// Everything both stages read.
struct Plan<'a> {
    old: &'a [u8],
    blocks: &'a [Block],
    batches: &'a [Batch],
    order: &'a [usize],
    layout: &'a Layout,
    is_absolute: bool,
    extra: &'a [u8],
    references: Option<&'a References>,
}

/// The literals still to come.
struct Literals {
    model: LiteralModel,
    /// Bytes before the next one.
    zeros: u64,
    left: u32,
}

impl Literals {
    fn new<C: BitCoder>(coder: &mut C, count: u32) -> Self {
        let mut model = LiteralModel::new(count);
        let zeros = if count > 0 { model.gap(coder, &[], 0, 0) } else { 0 };
        Self { model, zeros, left: count }
    }

    /// Turns old bytes into new ones.
    #[inline]
    fn apply<C: BitCoder>(&mut self, coder: &mut C, old: &[u8], old_at: usize, bytes: &mut [u8]) {
        let mut at = 0;
        while self.left > 0 {
            let rest = (bytes.len() - at) as u64;
            if self.zeros >= rest {
                self.zeros -= rest;
                return;
            }
            at += self.zeros as usize;
            bytes[at] = self.model.byte(coder, old, old_at + at, 0);
            at += 1;
            self.left -= 1;
            self.zeros = if self.left > 0 { self.model.gap(coder, old, old_at + at, 0) } else { 0 };
        }
    }
}

impl Plan<'_> {
    /// Lays down the blocks with their literals, and the gaps.
    fn fill<C: BitCoder>(&self, batch: &Batch, bytes: &mut [u8], literals: &mut Literals, coder: &mut C) {
        let start = batch.bytes.start;
        let mut extra = batch.extra as usize;
        let mut gap = |from: u32, to: u32, bytes: &mut [u8]| {
            let len = (to - from) as usize;
            let run = &mut bytes[(from - start) as usize..(to - start) as usize];
            run.copy_from_slice(&self.extra[extra..extra + len]);
            if self.is_absolute {
                filter::rewrite(run, from, self.layout, Direction::FromTargets);
            }
            extra += len;
        };
        let mut at = start;
        for block in &self.blocks[batch.blocks.clone()] {
            gap(at, block.new, bytes);
            at = block.new_end();
            let run = &mut bytes[(block.new - start) as usize..(at - start) as usize];
            run.copy_from_slice(&self.old[block.old as usize..block.old_end() as usize]);
            literals.apply(coder, self.old, block.old as usize, run);
        }
        gap(at, batch.bytes.end, bytes);
    }

    /// Writes the references.
    fn patch<C: BitCoder>(
        &self,
        batch: &Batch,
        bytes: &mut [u8],
        predictor: &mut Predictor<'_>,
        coder: &mut C,
    ) {
        let Some(references) = self.references else { return };
        let start = batch.bytes.start;
        for &block in &self.blocks[batch.blocks.clone()] {
            for reference in references.within(block.old, block.len) {
                let new_at = block.new + (reference.position - block.old);
                let value = predictor.code(coder, reference, self.old, bytes, start, new_at, block, 0);
                let at = (new_at - start) as usize;
                let width = reference.kind().width() as usize;
                bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
        }
    }
}

/// Puts batches out in the order of the file, holding back what waits for a derived section.
struct Writer<'a, 'b, 'c> {
    out: &'a mut Output<'b>,
    batches: &'a [Batch],
    ready: Vec<Option<&'c mut [u8]>>,
    next: usize,
    frame_index: Option<FrameIndex>,
    /// Batches with bytes of `.eh_frame` that are still to come.
    frames_missing: usize,
    derived: Option<Vec<u8>>,
    layout: &'a Layout,
}

impl<'c> Writer<'_, '_, 'c> {
    fn take(&mut self, number: usize, bytes: &'c mut [u8]) -> Result<(), DeltaError> {
        self.ready[number] = Some(bytes);
        if self.frame_index.is_some_and(|index| has_frames(&self.batches[number], index)) {
            self.frames_missing -= 1;
        }
        if self.frames_missing == 0 && self.derived.is_none() {
            self.derive();
        }
        while let Some(Some(bytes)) = self.ready.get_mut(self.next) {
            let start = self.batches[self.next].bytes.start;
            if let Some(index) = self.frame_index {
                let (from, to) = overlap(&self.batches[self.next], index.index, index.index_len);
                if from < to {
                    let Some(derived) = &self.derived else { return Ok(()) };
                    bytes[(from - start) as usize..(to - start) as usize].copy_from_slice(
                        &derived[(from - index.index) as usize..(to - index.index) as usize],
                    );
                }
            }
            self.out.put(bytes)?;
            self.next += 1;
        }
        Ok(())
    }

    fn derive(&mut self) {
        let Some(index) = self.frame_index else { return };
        let mut frames = Vec::new();
        for (batch, bytes) in self.batches.iter().zip(&self.ready) {
            let (from, to) = overlap(batch, index.frames, index.frames_len);
            if from < to {
                let Some(bytes) = bytes else { return };
                let start = batch.bytes.start;
                frames.extend_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
            }
        }
        self.derived = Some(index.derive(&frames, self.layout));
    }
}

fn has_frames(batch: &Batch, index: FrameIndex) -> bool {
    let (from, to) = overlap(batch, index.frames, index.frames_len);
    from < to
}

fn overlap(batch: &Batch, start: u32, len: u32) -> (u32, u32) {
    (start.max(batch.bytes.start), (start + len).min(batch.bytes.end))
}

/// Decodes a whole patch.
pub(super) fn decode(
    inputs: &Inputs<'_>,
    header: &Header,
    begin: usize,
    out: &mut Output<'_>,
) -> Result<(), DeltaError> {
    let damaged = |damage: Damage| inputs.damaged(damage.at, damage.field, damage.reason);
    let mut old = vec![0; header.old_len as usize];
    inputs.read_base(0, &mut old)?;
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
            .filter(|index| index.is_sound(header.new_len))
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
    let (control, references, extra) = std::thread::scope(|scope| {
        let references = image
            .as_ref()
            .map(|image| scope.spawn(|| References::find(old, image, header.references as usize)));
        let is_packed = !is_joined && header.extra_codec != Codec::Mix;
        let extra = is_packed
            .then(|| scope.spawn(|| streams::unpack(header.extra_codec, streams[EXTRA], header.extra_len)));
        let control = control(header, image.as_ref(), &mut coder);
        (
            control,
            references.map(std::thread::ScopedJoinHandle::join),
            extra.map(std::thread::ScopedJoinHandle::join),
        )
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
    let extra = match extra {
        Some(Ok(Some(extra))) => extra,
        Some(_) => return Err(damage("extra bytes", "the stream does not unpack to its size")),
        None if is_joined => unmix(&mut coder, old, header, &control),
        None => {
            let mut coder = Decoder::new(streams[EXTRA]);
            let extra = unmix(&mut coder, old, header, &control);
            if !coder.is_used_up() {
                return Err(damage("extra bytes", "the stream is longer than needed"));
            }
            extra
        }
    };
    let mut new = vec![0u8; header.new_len as usize];
    let (batches, order) = plan(&control.blocks, header.new_len, &control.layout);
    let plan = Plan {
        old,
        blocks: &control.blocks,
        batches: &batches,
        order: &order,
        layout: &control.layout,
        is_absolute: header.is(ABSOLUTE),
        extra: &extra,
        references: references.as_ref(),
    };
    let mut predictor = Predictor::new(old_layout, &control.layout, &projection, found, &bases);
    let mut slices: Vec<Option<&mut [u8]>> = Vec::with_capacity(batches.len());
    let mut rest = &mut new[..];
    for batch in &batches {
        let (slice, after) = rest.split_at_mut(batch.bytes.len());
        slices.push(Some(slice));
        rest = after;
    }
    let mut writer = Writer {
        out,
        batches: &batches,
        ready: (0..batches.len()).map(|_| None).collect(),
        next: 0,
        frame_index: control.frame_index,
        frames_missing: control
            .frame_index
            .map_or(0, |index| batches.iter().filter(|batch| has_frames(batch, index)).count()),
        derived: None,
        layout: &control.layout,
    };
    if is_joined {
        let mut literals = Literals::new(&mut coder, header.literals);
        for &number in &order {
            if let Some(bytes) = slices[number].as_deref_mut() {
                plan.fill(&batches[number], bytes, &mut literals, &mut coder);
            }
        }
        for &number in &order {
            if let Some(bytes) = slices[number].as_deref_mut() {
                plan.patch(&batches[number], bytes, &mut predictor, &mut coder);
            }
        }
        if literals.left > 0 || !coder.is_used_up() {
            return Err(damage("patch", "more than the result needs"));
        }
        for (number, bytes) in slices.into_iter().enumerate() {
            if let Some(bytes) = bytes {
                writer.take(number, bytes)?;
            }
        }
        return Ok(());
    }
    if !coder.is_used_up() {
        return Err(damage("control", "the stream is longer than needed"));
    }
    let used_up = std::thread::scope(|scope| {
        let (to_fields, filled) = mpsc::channel();
        let (to_writer, done) = mpsc::channel();
        let plan = &plan;
        let fill = scope.spawn(move || {
            let mut coder = Decoder::new(streams[LITERALS]);
            let mut literals = Literals::new(&mut coder, header.literals);
            for &number in plan.order {
                let Some(bytes) = slices[number].take() else { continue };
                plan.fill(&plan.batches[number], bytes, &mut literals, &mut coder);
                if to_fields.send((number, bytes)).is_err() {
                    return false;
                }
            }
            literals.left == 0 && coder.is_used_up()
        });
        let patch = scope.spawn(move || {
            let mut coder = Decoder::new(streams[FIELDS]);
            for (number, bytes) in filled {
                let bytes: &mut [u8] = bytes;
                plan.patch(&plan.batches[number], bytes, &mut predictor, &mut coder);
                if to_writer.send((number, bytes)).is_err() {
                    return false;
                }
            }
            coder.is_used_up()
        });
        for (number, bytes) in done {
            writer.take(number, bytes)?;
        }
        Ok(fill.join().unwrap_or(false) & patch.join().unwrap_or(false))
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
