//! What an executable says about itself: which part of the file lies at which address, and where its tables are.
//!
//! [`Image::parse`] reads ELF-64 little-endian headers (System V ABI, "ELF header", "Section header", "Program header")
//! from bytes nobody vouches for. Headers that do not parse within the bounds give no image, never an error: the codec
//! then works without references.
//!
//! Positions in the file and addresses share one space here, *places*: a mapped byte has its address, any other byte
//! has [`FILE_SPACE`] plus its offset. Addresses are below [`FILE_SPACE`].

/// Where the places of unmapped bytes begin.
pub(super) const FILE_SPACE: u64 = 1 << 48;
/// Most mapped segments.
pub(super) const SEGMENTS_MAX: usize = 64;
const SECTIONS_MAX: usize = 4096;

/// Where a mapped part of the file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) address: u64,
    pub(super) is_code: bool,
}

/// The map between offsets and places. Segments ascend in offset and in address and do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) segments: Vec<Segment>,
    /// Lowest mapped address.
    pub(super) lo: u64,
    /// First address above everything mapped, memory without file content included.
    pub(super) hi: u64,
}

impl Layout {
    /// Whether the parts are in order and within a file of `file_len` bytes.
    pub(super) fn is_sound(&self, file_len: u32) -> bool {
        let mut offset = 0u64;
        let mut address = self.lo;
        for segment in &self.segments {
            let Some(end) = segment.address.checked_add(u64::from(segment.len)) else { return false };
            if u64::from(segment.offset) < offset || segment.address < address || segment.len == 0 {
                return false;
            }
            offset = u64::from(segment.offset) + u64::from(segment.len);
            address = end;
        }
        let span = self.hi.checked_sub(self.lo);
        self.segments.len() <= SEGMENTS_MAX
            && offset <= u64::from(file_len)
            && address <= self.hi
            && self.hi < FILE_SPACE
            && span.is_some_and(|span| span < 1 << 31)
    }

    /// The place of the byte at `offset`.
    #[inline]
    pub(super) fn place(&self, offset: u32) -> u64 {
        for segment in &self.segments {
            if offset.wrapping_sub(segment.offset) < segment.len {
                return segment.address + u64::from(offset - segment.offset);
            }
        }
        FILE_SPACE + u64::from(offset)
    }

    /// The offset of `place`, if the file has a byte there (or may have: unmapped offsets are not checked against the
    /// length of the file).
    #[inline]
    pub(super) fn offset(&self, place: u64) -> Option<u32> {
        if place >= FILE_SPACE {
            return u32::try_from(place - FILE_SPACE).ok();
        }
        for segment in &self.segments {
            let within = place.wrapping_sub(segment.address);
            if within < u64::from(segment.len) {
                return Some(segment.offset + within as u32);
            }
        }
        None
    }

    pub(super) fn is_mapped(&self, place: u64) -> bool {
        (self.lo..self.hi).contains(&place)
    }

    /// The segment which has the byte at `offset`, and if there is none, where the next one starts.
    pub(super) fn segment_at(&self, offset: u32) -> Result<&Segment, u32> {
        let mut next = u32::MAX;
        for segment in &self.segments {
            if offset.wrapping_sub(segment.offset) < segment.len {
                return Ok(segment);
            }
            if segment.offset > offset {
                next = next.min(segment.offset);
            }
        }
        Err(next)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    X86_64,
    Arm64,
}

/// One section with content in the file.
#[derive(Clone, Debug)]
pub(super) struct Section {
    pub(super) name: String,
    pub(super) kind: u32,
    pub(super) flags: u64,
    pub(super) address: u64,
    pub(super) offset: u32,
    pub(super) len: u32,
    /// The file range of the section that the header links to, for symbol tables their strings.
    pub(super) link: usize,
}

pub(super) const SHT_PROGBITS: u32 = 1;
pub(super) const SHT_SYMTAB: u32 = 2;
pub(super) const SHT_RELA: u32 = 4;
pub(super) const SHT_NOBITS: u32 = 8;
pub(super) const SHT_DYNSYM: u32 = 11;
pub(super) const SHT_INIT_ARRAY: u32 = 14;
pub(super) const SHT_FINI_ARRAY: u32 = 15;
pub(super) const SHF_WRITE: u64 = 1;
pub(super) const SHF_ALLOC: u64 = 2;
pub(super) const SHF_EXECINSTR: u64 = 4;

impl Section {
    pub(super) fn end(&self) -> u32 {
        self.offset + self.len
    }

    pub(super) fn is_code(&self) -> bool {
        self.flags & SHF_EXECINSTR != 0
    }

    pub(super) fn is_allocated(&self) -> bool {
        self.flags & SHF_ALLOC != 0
    }
}

/// A parsed executable.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) machine: Machine,
    /// Whether it is loaded where its headers say (ET_EXEC).
    pub(super) is_fixed: bool,
    pub(super) layout: Layout,
    /// In the order of the section headers; a section without file content has `len` 0.
    pub(super) sections: Vec<Section>,
}

fn bytes<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(super) fn u16_at(file: &[u8], at: usize) -> Option<u16> {
    bytes(file, at).map(u16::from_le_bytes)
}

pub(super) fn u32_at(file: &[u8], at: usize) -> Option<u32> {
    bytes(file, at).map(u32::from_le_bytes)
}

pub(super) fn u64_at(file: &[u8], at: usize) -> Option<u64> {
    bytes(file, at).map(u64::from_le_bytes)
}

impl Image {
    /// Reads the headers of `file`; `None` when it is not an executable this codec knows.
    pub(super) fn parse(file: &[u8]) -> Option<Self> {
        let file_len = u32::try_from(file.len()).ok().filter(|len| *len < 1 << 31)?;
        if file.get(..7)? != b"\x7fELF\x02\x01\x01" {
            return None;
        }
        let machine = match u16_at(file, 18)? {
            62 => Machine::X86_64,
            183 => Machine::Arm64,
            _ => return None,
        };
        let is_fixed = u16_at(file, 16)? == 2;
        let layout = Self::segments(file, file_len)?;
        let sections = Self::sections(file, file_len).unwrap_or_default();
        Some(Self { machine, is_fixed, layout, sections })
    }

    fn segments(file: &[u8], file_len: u32) -> Option<Layout> {
        let table = usize::try_from(u64_at(file, 32)?).ok()?;
        let (size, count) = (u16_at(file, 54)?, u16_at(file, 56)?);
        if size != 56 || count > 256 {
            return None;
        }
        let mut layout = Layout { segments: Vec::new(), lo: u64::MAX, hi: 0 };
        for index in 0..usize::from(count) {
            let at = table.checked_add(index * 56)?;
            if u32_at(file, at)? != 1 {
                continue;
            }
            let is_code = u32_at(file, at + 4)? & 1 == 1;
            let offset = u64_at(file, at + 8)?;
            let address = u64_at(file, at + 16)?;
            let (file_size, memory_size) = (u64_at(file, at + 32)?, u64_at(file, at + 40)?);
            layout.lo = layout.lo.min(address);
            layout.hi = layout.hi.max(address.checked_add(memory_size)?);
            if file_size == 0 {
                continue;
            }
            let (offset, len) = (u32::try_from(offset).ok()?, u32::try_from(file_size).ok()?);
            layout.segments.push(Segment { offset, len, address, is_code });
            if layout.segments.len() > SEGMENTS_MAX {
                return None;
            }
        }
        (!layout.segments.is_empty() && layout.is_sound(file_len)).then_some(layout)
    }

    fn sections(file: &[u8], file_len: u32) -> Option<Vec<Section>> {
        let table = usize::try_from(u64_at(file, 40)?).ok()?;
        let (size, count) = (u16_at(file, 58)?, usize::from(u16_at(file, 60)?));
        if size != 64 || count == 0 || count > SECTIONS_MAX {
            return None;
        }
        let names = table.checked_add(usize::from(u16_at(file, 62)?) * 64)?;
        let (names_at, names_len) = (u64_at(file, names + 24)?, u64_at(file, names + 32)?);
        let names = file.get(usize::try_from(names_at).ok()?..)?;
        let names = names.get(..usize::try_from(names_len).ok()?)?;
        let mut sections = Vec::with_capacity(count);
        for index in 0..count {
            let at = table.checked_add(index * 64)?;
            let name = names.get(usize::try_from(u32_at(file, at)?).ok()?..).unwrap_or_default();
            let name = name.iter().take(64).take_while(|byte| **byte != 0);
            let name = name.map(|byte| char::from(*byte)).collect();
            let kind = u32_at(file, at + 4)?;
            let (offset, len) = (u64_at(file, at + 24)?, u64_at(file, at + 32)?);
            let inside =
                offset.checked_add(len).is_some_and(|end| end <= u64::from(file_len)) && kind != SHT_NOBITS;
            let (offset, len) = if inside { (offset as u32, len as u32) } else { (0, 0) };
            sections.push(Section {
                name,
                kind,
                flags: u64_at(file, at + 8)?,
                address: u64_at(file, at + 16)?,
                offset,
                len,
                link: u32_at(file, at + 40)? as usize,
            });
        }
        Some(sections)
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name && section.len > 0)
    }
}
