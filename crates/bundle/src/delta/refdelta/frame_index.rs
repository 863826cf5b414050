//! `.eh_frame_hdr` follows from `.eh_frame`: a table of (address, description), sorted.
//!
//! Linux Standard Base, "Exception Frames": the header says version 1, pointer relative to itself, count, entries
//! relative to the start of the section. The generator checks that this rule makes exactly the bytes of the new file;
//! the decoder only follows it.

use super::image::{Image, Layout, u32_at};

/// Where the two sections lie in the new file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FrameIndex {
    pub(super) index: u32,
    pub(super) index_len: u32,
    pub(super) frames: u32,
    pub(super) frames_len: u32,
}

impl FrameIndex {
    /// The sections of an image, if it has both.
    pub(super) fn of(image: &Image) -> Option<Self> {
        let index = image.section(".eh_frame_hdr")?;
        let frames = image.section(".eh_frame")?;
        Some(Self {
            index: index.offset,
            index_len: index.len,
            frames: frames.offset,
            frames_len: frames.len,
        })
    }

    /// Bytes from the start of the first to the end of the second of both sections.
    pub(super) fn span(&self) -> u32 {
        let end =
            (self.index.saturating_add(self.index_len)).max(self.frames.saturating_add(self.frames_len));
        end - self.index.min(self.frames)
    }

    /// Whether both lie apart from each other in a file of `len` bytes, within `span_max` bytes.
    pub(super) fn is_sound(&self, len: u32, span_max: u32) -> bool {
        let end = |start: u32, len: u32| start.checked_add(len);
        match (end(self.index, self.index_len), end(self.frames, self.frames_len)) {
            (Some(index_end), Some(frames_end)) => {
                index_end <= len
                    && frames_end <= len
                    && (index_end <= self.frames || frames_end <= self.index)
                    && self.span() <= span_max
            }
            _ => false,
        }
    }

    /// The bytes of the table, from those of `.eh_frame`. Anything unexpected ends the list; the length is kept.
    pub(super) fn derive(&self, frames: &[u8], layout: &Layout) -> Vec<u8> {
        let index_place = layout.place(self.index);
        let frames_place = layout.place(self.frames);
        let mut entries: Vec<(u32, u32)> = Vec::with_capacity(self.index_len as usize / 8);
        let mut at = 0usize;
        while let Some(len) = u32_at(frames, at) {
            let id = u32_at(frames, at + 4).unwrap_or(0);
            if len < 4 {
                break;
            }
            if let (true, Some(begin)) = (id != 0, u32_at(frames, at + 8)) {
                if entries.len() >= self.index_len as usize / 8 {
                    break;
                }
                let place =
                    frames_place.wrapping_add(at as u64 + 8).wrapping_add_signed(i64::from(begin as i32));
                let description = frames_place.wrapping_add(at as u64);
                entries.push((
                    place.wrapping_sub(index_place) as u32,
                    description.wrapping_sub(index_place) as u32,
                ));
            }
            at += 4 + len as usize;
        }
        entries.sort_unstable_by_key(|(place, description)| (*place as i32, *description));
        let mut out = Vec::with_capacity(self.index_len as usize);
        out.extend_from_slice(&[1, 0x1B, 0x03, 0x3B]);
        out.extend_from_slice(&(frames_place.wrapping_sub(index_place + 4) as u32).to_le_bytes());
        out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
        for (place, description) in entries {
            out.extend_from_slice(&place.to_le_bytes());
            out.extend_from_slice(&description.to_le_bytes());
        }
        out.resize(self.index_len as usize, 0);
        out
    }
}
