//! Finds the fields of an executable that hold addresses, without disassembling it.
//!
//! The encoder and the decoder run this over the same old file, so what it finds is part of the format: every rule here
//! is a total order over bytes, and a changed rule is a new model number. A field found by mistake costs a
//! misprediction, never correctness.

use super::image::{
    FILE_SPACE, Image, Layout, Machine, SHF_WRITE, SHT_DYNSYM, SHT_FINI_ARRAY, SHT_INIT_ARRAY, SHT_PROGBITS,
    SHT_RELA, SHT_SYMTAB, Section, u32_at, u64_at,
};

/// What a field means, which is also its class for prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Kind {
    /// x86 `call rel32`.
    Call,
    /// x86 `jmp rel32`.
    Jump,
    /// x86 `jcc rel32`.
    Branch,
    /// x86 operand relative to the instruction pointer.
    Operand,
    /// A pointer in data.
    Word,
    /// A pointer in a table whose entries move together (`.got.plt`).
    WordInSequence,
    /// `r_offset` of a RELA entry.
    RelaOffset,
    /// `r_addend` of a RELA entry.
    RelaAddend,
    /// The symbol index of a RELA entry: a record of the table at the base.
    SymbolIndex,
    /// `st_name`: an offset from the base.
    SymbolName,
    /// `st_value`.
    SymbolValue,
    /// `st_size`: the last byte, seen from the `st_value` before it.
    SymbolSize,
    /// `pc_begin` of a frame description, relative to itself.
    FrameBegin,
    /// `pc_range` of a frame description: the last byte, seen from the `pc_begin` before it.
    FrameRange,
    /// The pointer to a language-specific area, relative to itself.
    FrameArea,
    /// The pointer back to the common information, relative to itself, negative.
    FrameCommon,
    /// An offset from a base.
    Based,
    /// An entry of a jump table, an offset from its start.
    JumpTable,
    /// A counter that goes on by what the one before it did: a PLT entry's relocation, a function number of Go.
    Counter,
    /// An address as immediate or displacement in the code of a fixed program.
    Absolute,
    /// Go: an offset of code.
    GoEntry,
    /// Go: an offset of a function's record.
    GoFunction,
    /// Go: an offset of a name.
    GoName,
    /// Go: an offset of a table by program counter.
    GoTable,
    /// Go: the number of a unit's first file.
    GoUnit,
    /// Go: an offset of data about a function.
    GoData,
    /// arm64 `b` and `bl`: 26 bits of words from the instruction.
    ArmJump,
    /// arm64 `b.cond`, `cbz`, `cbnz`: 19 bits of words.
    ArmBranch,
    /// arm64 `tbz`, `tbnz`: 14 bits of words.
    ArmTest,
    /// arm64 `adrp` whose target an instruction close behind completes: 21 bits of pages.
    ArmPage,
    /// The instruction that completes it (`add`, loads, stores): 12 bits.
    ArmLow,
}

pub(super) const KINDS: usize = 31;

impl Kind {
    pub(super) const fn from_index(index: u32) -> Self {
        const ALL: [Kind; KINDS] = [
            Kind::Call,
            Kind::Jump,
            Kind::Branch,
            Kind::Operand,
            Kind::Word,
            Kind::WordInSequence,
            Kind::RelaOffset,
            Kind::RelaAddend,
            Kind::SymbolIndex,
            Kind::SymbolName,
            Kind::SymbolValue,
            Kind::SymbolSize,
            Kind::FrameBegin,
            Kind::FrameRange,
            Kind::FrameArea,
            Kind::FrameCommon,
            Kind::Based,
            Kind::JumpTable,
            Kind::Counter,
            Kind::Absolute,
            Kind::GoEntry,
            Kind::GoFunction,
            Kind::GoName,
            Kind::GoTable,
            Kind::GoUnit,
            Kind::GoData,
            Kind::ArmJump,
            Kind::ArmBranch,
            Kind::ArmTest,
            Kind::ArmPage,
            Kind::ArmLow,
        ];
        ALL[index as usize % KINDS]
    }

    /// Bytes of the field.
    #[inline(always)]
    pub(super) const fn width(self) -> u32 {
        match self {
            Self::Word
            | Self::WordInSequence
            | Self::RelaOffset
            | Self::RelaAddend
            | Self::SymbolValue
            | Self::SymbolSize => 8,
            _ => 4,
        }
    }

    /// Bytes before the field that must be known to read it.
    #[inline(always)]
    pub(super) const fn look_back(self) -> u32 {
        match self {
            Self::FrameRange => 4,
            Self::SymbolSize => 8,
            Self::Call | Self::Jump | Self::Branch => 1,
            Self::Operand => 2,
            Self::ArmLow => ARM_REACH * 4,
            _ => 0,
        }
    }

    /// Whether the field counts from one of [`References::bases`].
    #[inline(always)]
    pub(super) const fn has_base(self) -> bool {
        matches!(
            self,
            Self::SymbolIndex
                | Self::SymbolName
                | Self::Based
                | Self::GoEntry
                | Self::GoFunction
                | Self::GoName
                | Self::GoTable
                | Self::GoUnit
                | Self::GoData
        )
    }

    /// Whether fields of this class tend to move by what the one before moved.
    #[inline(always)]
    pub(super) const fn is_sequence(self) -> bool {
        matches!(self, Self::WordInSequence | Self::RelaOffset | Self::Counter)
    }
}

/// A field of the old file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) position: u32,
    /// The kind in the low byte, above it the number of the base (or jump table).
    tag: u32,
}

impl Reference {
    fn new(position: u32, kind: Kind) -> Self {
        Self { position, tag: kind as u32 }
    }

    fn based(position: u32, kind: Kind, base: usize) -> Self {
        Self { position, tag: kind as u32 | (base as u32) << 8 }
    }

    #[inline(always)]
    pub(super) fn kind(self) -> Kind {
        Kind::from_index(self.tag & 0xFF)
    }

    #[inline(always)]
    pub(super) fn base(self) -> usize {
        (self.tag >> 8) as usize
    }
}

/// All references of a file, ascending and disjoint.
#[derive(Default)]
pub(super) struct References {
    pub(super) all: Vec<Reference>,
    /// The places that [`Kind::Based`], [`Kind::SymbolName`] and [`Kind::SymbolIndex`] count from.
    pub(super) bases: Vec<u64>,
    /// The places of the jump tables.
    pub(super) tables: Vec<u64>,
    /// For each page of the file the first reference at or after its start.
    pages: Vec<u32>,
}

const PAGE_BITS: u32 = 10;

/// Most entries of [`References::bases`].
pub(super) const BASES_MAX: usize = 64;
const TABLES_MAX: usize = 1 << 22;
const CHUNK: u32 = 64 << 10;

/// More references than the bound allows.
#[derive(Debug)]
pub(super) struct TooMany;

impl References {
    /// Finds at most `most` references in `file`.
    pub(super) fn find(file: &[u8], image: &Image, most: usize) -> Result<Self, TooMany> {
        Finder { file, image, found: Self::default(), most }.run()
    }

    fn index_pages(&mut self, file_len: usize) {
        self.pages = Vec::with_capacity((file_len >> PAGE_BITS) + 2);
        let mut count = 0;
        for page in 0..(file_len >> PAGE_BITS) + 2 {
            let start = (page as u64) << PAGE_BITS;
            while self.all.get(count).is_some_and(|reference| u64::from(reference.position) < start) {
                count += 1;
            }
            self.pages.push(count as u32);
        }
    }

    /// The references that lie wholly, with what is needed to read them, in `len` bytes of the old file from `start`.
    #[inline]
    pub(super) fn within(&self, start: u32, len: u32) -> impl Iterator<Item = Reference> + use<'_> {
        let mut first =
            self.pages.get((start >> PAGE_BITS) as usize).map_or(self.all.len(), |first| *first as usize);
        while self.all.get(first).is_some_and(|reference| reference.position < start) {
            first += 1;
        }
        let end = u64::from(start) + u64::from(len);
        self.all[first..]
            .iter()
            .copied()
            .take_while(move |reference| {
                u64::from(reference.position) + u64::from(reference.kind().width()) <= end
            })
            .filter(move |reference| reference.position - start >= reference.kind().look_back())
    }

    fn base(&mut self, place: u64) -> Option<usize> {
        if let Some(index) = self.bases.iter().position(|base| *base == place) {
            return Some(index);
        }
        (self.bases.len() < BASES_MAX).then(|| {
            self.bases.push(place);
            self.bases.len() - 1
        })
    }
}

struct Finder<'a> {
    file: &'a [u8],
    image: &'a Image,
    found: References,
    most: usize,
}

impl Finder<'_> {
    fn run(mut self) -> Result<References, TooMany> {
        let mut sections: Vec<&Section> =
            self.image.sections.iter().filter(|section| section.len > 0).collect();
        sections.sort_by_key(|section| section.offset);
        let code: Vec<&Section> = sections
            .iter()
            .copied()
            .filter(|section| section.is_code() && section.kind == SHT_PROGBITS)
            .collect();
        let mut scanned = self.scan_code(&code)?;
        let tables = self.table_starts(&scanned);
        let mut end = 0;
        for section in sections {
            let mut local = if section.is_code() && section.kind == SHT_PROGBITS {
                scanned.remove(0)
            } else {
                self.in_section(section, &tables)
            };
            // What overlaps an earlier section was found already.
            if section.offset < end {
                local.retain(|reference| reference.position >= end);
            }
            end = end.max(section.end());
            if self.found.all.len() + local.len() > self.most {
                return Err(TooMany);
            }
            if self.found.all.is_empty() {
                self.found.all = local;
            } else {
                self.found.all.extend_from_slice(&local);
            }
        }
        self.found.index_pages(self.file.len());
        Ok(self.found)
    }

    /// Scans code sections, each in pieces of 64 KiB that know nothing of each other, on two threads.
    fn scan_code(&self, sections: &[&Section]) -> Result<Vec<Vec<Reference>>, TooMany> {
        let mut pieces = Vec::new();
        for (number, section) in sections.iter().enumerate() {
            let mut at = section.offset;
            while at < section.end() {
                let end = section.end().min(at + CHUNK);
                pieces.push((number, at, end));
                at = end;
            }
        }
        let scan = |pieces: &[(usize, u32, u32)]| -> Vec<Vec<Reference>> {
            let mut found = vec![Vec::new(); sections.len()];
            for &(number, at, end) in pieces {
                if let Some(bytes) = self.file.get(at as usize..end as usize) {
                    let layout = &self.image.layout;
                    let is_plt = sections[number].name == ".plt";
                    match self.image.machine {
                        Machine::X86_64 => {
                            let fixed = self.image.is_fixed;
                            scan_x86(bytes, at, layout, is_plt, fixed, &mut found[number]);
                        }
                        Machine::Arm64 => scan_arm64(bytes, at, layout, &mut found[number]),
                    }
                }
                if found[number].len() > self.most {
                    break;
                }
            }
            found
        };
        let (first, second) = pieces.split_at(pieces.len() / 2);
        let (mut first, second) = std::thread::scope(|scope| {
            let other = scope.spawn(|| scan(first));
            let second = scan(second);
            (other.join().unwrap_or_default(), second)
        });
        if first.len() < second.len() {
            // The thread did not finish: it can only have panicked, which nothing in the scan does.
            return Err(TooMany);
        }
        for (all, more) in first.iter_mut().zip(second) {
            all.extend(more);
        }
        Ok(first)
    }

    /// One bit per 4-aligned place outside code which a `lea` names.
    fn table_starts(&self, scanned: &[Vec<Reference>]) -> TableStarts {
        let layout = &self.image.layout;
        let mut starts = TableStarts { bits: vec![0; self.file.len() / 256 + 1] };
        for reference in scanned.iter().flatten() {
            if reference.kind() == Kind::Operand {
                let at = reference.position as usize;
                if at >= 2 && self.file[at - 2] == 0x8D {
                    let Some(target) = rel32(self.file, at, layout) else { continue };
                    let Some(offset) = layout.offset(target) else { continue };
                    if offset % 4 == 0 && layout.segment_at(offset).is_ok_and(|segment| !segment.is_code) {
                        starts.set(offset);
                    }
                }
            }
        }
        starts
    }

    fn in_section(&mut self, section: &Section, tables: &TableStarts) -> Vec<Reference> {
        let mut out = Vec::new();
        match section.kind {
            SHT_RELA if section.is_allocated() => self.rela(section, &mut out),
            SHT_DYNSYM | SHT_SYMTAB => self.symbols(section, &mut out),
            SHT_INIT_ARRAY | SHT_FINI_ARRAY => self.words(section, Kind::Word, &mut out),
            _ if section.name == ".gopclntab" => self.go_functions(section, &mut out),
            _ if section.name == ".typelink" => self.go_types(section, &mut out),
            _ if section.name == ".eh_frame" => self.frames(section, &mut out),
            _ if section.name == ".eh_frame_hdr" => self.frame_index(section, &mut out),
            SHT_PROGBITS if section.is_allocated() => {
                if section.flags & SHF_WRITE != 0 || self.image.is_fixed {
                    let kind = if section.name == ".got.plt" { Kind::WordInSequence } else { Kind::Word };
                    self.words(section, kind, &mut out);
                }
                if section.flags & SHF_WRITE == 0 {
                    let entries = self.jump_tables(section, tables);
                    if !entries.is_empty() {
                        out = merge(out, entries);
                    }
                }
            }
            _ => {}
        }
        out
    }

    fn rela(&mut self, section: &Section, out: &mut Vec<Reference>) {
        let symbols = self.image.sections.get(section.link).filter(|symbols| symbols.kind == SHT_DYNSYM);
        let base =
            symbols.map(|symbols| self.image.layout.place(symbols.offset)).and_then(|at| self.found.base(at));
        let layout = &self.image.layout;
        let mut at = section.offset;
        while at + 24 <= section.end() {
            let offset = u64_at(self.file, at as usize).unwrap_or(0);
            if layout.is_mapped(offset) {
                out.push(Reference::new(at, Kind::RelaOffset));
            }
            if let (Some(base), Some(symbol)) = (base, u32_at(self.file, at as usize + 12))
                && symbol != 0
            {
                out.push(Reference::based(at + 12, Kind::SymbolIndex, base));
            }
            if layout.is_mapped(u64_at(self.file, at as usize + 16).unwrap_or(0)) {
                out.push(Reference::new(at + 16, Kind::RelaAddend));
            }
            at += 24;
        }
    }

    fn symbols(&mut self, section: &Section, out: &mut Vec<Reference>) {
        let strings = self.image.sections.get(section.link).filter(|strings| strings.len > 0);
        let base =
            strings.map(|strings| self.image.layout.place(strings.offset)).and_then(|at| self.found.base(at));
        let layout = &self.image.layout;
        let mut at = section.offset;
        while at + 24 <= section.end() {
            if let (Some(base), Some(name)) = (base, u32_at(self.file, at as usize))
                && name != 0
            {
                out.push(Reference::based(at, Kind::SymbolName, base));
            }
            let value = u64_at(self.file, at as usize + 8).unwrap_or(0);
            let size = u64_at(self.file, at as usize + 16).unwrap_or(0);
            if layout.is_mapped(value) {
                out.push(Reference::new(at + 8, Kind::SymbolValue));
                if size > 0 && size <= layout.hi - value {
                    out.push(Reference::new(at + 16, Kind::SymbolSize));
                }
            }
            at += 24;
        }
    }

    fn words(&self, section: &Section, kind: Kind, out: &mut Vec<Reference>) {
        let layout = &self.image.layout;
        let Some(bytes) = self.file.get(section.offset as usize..section.end() as usize) else { return };
        let skip = (8 - section.address % 8) % 8;
        let Some(bytes) = bytes.get(skip as usize..) else { return };
        let start = section.offset + skip as u32;
        let (from, span) = (layout.lo.max(0x10000), layout.hi.saturating_sub(layout.lo.max(0x10000)));
        for (index, word) in bytes.chunks_exact(8).enumerate() {
            let value = u64::from_le_bytes(word.try_into().unwrap_or_default());
            if value.wrapping_sub(from) < span {
                out.push(Reference::new(start + index as u32 * 8, kind));
            }
        }
    }

    /// Linux Standard Base, "Exception Frames".
    fn frames(&self, section: &Section, out: &mut Vec<Reference>) {
        let mut at = section.offset;
        while at + 17 <= section.end() {
            let Some(len) = u32_at(self.file, at as usize) else { return };
            if len < 4 || len > section.end() - at - 4 {
                return;
            }
            let id = u32_at(self.file, at as usize + 4).unwrap_or(0);
            if id != 0 && len >= 13 {
                out.push(Reference::new(at + 4, Kind::FrameCommon));
                out.push(Reference::new(at + 8, Kind::FrameBegin));
                out.push(Reference::new(at + 12, Kind::FrameRange));
                if len >= 17 && self.file.get(at as usize + 16) == Some(&4) {
                    out.push(Reference::new(at + 17, Kind::FrameArea));
                }
            }
            at += 4 + len;
        }
    }

    /// The words of Go's `moduledata` (Go source, src/runtime/symtab.go), which begins with the place of its table and
    /// of the names in it.
    fn go_module(&self) -> Option<[u64; 41]> {
        let table = self.image.section(".gopclntab")?;
        let names = u64_at(self.file, table.offset as usize + 32)?;
        let begin = [table.address, table.address.wrapping_add(names)];
        for name in [".go.module", ".noptrdata", ".data"] {
            let Some(section) = self.image.section(name) else { continue };
            let bytes = self.file.get(section.offset as usize..section.end() as usize)?;
            for at in (0..bytes.len().saturating_sub(41 * 8)).step_by(8) {
                if u64_at(bytes, at) == Some(begin[0]) && u64_at(bytes, at + 8) == Some(begin[1]) {
                    let mut words = [0; 41];
                    for (index, word) in words.iter_mut().enumerate() {
                        *word = u64_at(bytes, at + index * 8)?;
                    }
                    return Some(words);
                }
            }
        }
        None
    }

    fn go_types(&mut self, section: &Section, out: &mut Vec<Reference>) {
        let Some(base) = self.go_module().and_then(|module| self.found.base(module[37])) else { return };
        for at in (section.offset..section.end().saturating_sub(3)).step_by(4) {
            out.push(Reference::based(at, Kind::Based, base));
        }
    }

    /// Go's function table since 1.20 (Go source, src/runtime/symtab.go: `pcHeader`, `functab`, `_func`).
    fn go_functions(&mut self, section: &Section, out: &mut Vec<Reference>) {
        const MAGIC: u32 = 0xFFFF_FFF1;
        let start = section.offset as usize;
        let word = |index: usize| u64_at(self.file, start + index * 8).unwrap_or(0);
        if u32_at(self.file, start) != Some(MAGIC) || section.len < 72 {
            return;
        }
        let len = u64::from(section.len);
        let (count, names, units, files, tables, functions) =
            (word(1), word(4), word(5), word(6), word(7), word(8));
        if count > len / 8
            || names > units
            || units > files
            || files > tables
            || tables > functions
            || functions > len
        {
            return;
        }
        let Some(module) = self.go_module() else { return };
        let place = |offset: u64| section.address.wrapping_add(offset);
        let text = self.found.base(module[22]);
        let names = self.found.base(place(names));
        let unit_base = self.found.base(place(units));
        let file_base = self.found.base(place(files));
        let tables = self.found.base(place(tables));
        let function_base = self.found.base(place(functions));
        let data = self.found.base(module[40]);
        let (
            Some(text),
            Some(names),
            Some(unit_base),
            Some(file_base),
            Some(tables),
            Some(function_base),
            Some(data),
        ) = (text, names, unit_base, file_base, tables, function_base, data)
        else {
            return;
        };
        let field = |at: u32| u32_at(self.file, at as usize).unwrap_or(u32::MAX);
        for at in (section.offset + units as u32..section.offset + files as u32).step_by(4) {
            if field(at) != u32::MAX {
                out.push(Reference::based(at, Kind::GoName, file_base));
            }
        }
        let table = section.offset + functions as u32;
        let records = table.saturating_add(count as u32 * 8 + 4);
        if records > section.end() {
            return;
        }
        for at in (table..records - 4).step_by(8) {
            out.push(Reference::based(at, Kind::GoEntry, text));
            out.push(Reference::based(at + 4, Kind::GoFunction, function_base));
        }
        out.push(Reference::based(records - 4, Kind::GoEntry, text));
        let mut end = records;
        for entry in (table..records - 4).step_by(8) {
            let Some(at) = table.checked_add(field(entry + 4)) else { continue };
            if at < end || at.saturating_add(44) > section.end() {
                continue;
            }
            let pcs = field(at + 28);
            let datas = field(at + 40) >> 24;
            if pcs > 16 || at + 44 + (pcs + datas) * 4 > section.end() {
                continue;
            }
            out.push(Reference::based(at, Kind::GoEntry, text));
            out.push(Reference::based(at + 4, Kind::GoName, names));
            for step in [16, 20, 24] {
                if field(at + step) != 0 {
                    out.push(Reference::based(at + step, Kind::GoTable, tables));
                }
            }
            out.push(Reference::based(at + 32, Kind::GoUnit, unit_base));
            for step in 0..pcs {
                if field(at + 44 + step * 4) != 0 {
                    out.push(Reference::based(at + 44 + step * 4, Kind::GoTable, tables));
                }
            }
            for step in pcs..pcs + datas {
                if field(at + 44 + step * 4) != u32::MAX {
                    out.push(Reference::based(at + 44 + step * 4, Kind::GoData, data));
                }
            }
            end = at + 44 + (pcs + datas) * 4;
        }
        // `findfunctab`: for every 4 KiB of code the number of a function and 16 bytes.
        let buckets = module[21].saturating_sub(module[20]).div_ceil(4096).min(len / 20) as u32;
        let Some(first) = self.image.layout.offset(module[19]).filter(|first| *first >= end) else { return };
        if first.saturating_add(buckets * 20) <= section.end() {
            for bucket in 0..buckets {
                out.push(Reference::new(first + bucket * 20, Kind::Counter));
            }
        }
    }

    fn frame_index(&mut self, section: &Section, out: &mut Vec<Reference>) {
        let base = self.image.layout.place(section.offset);
        let Some(base) = self.found.base(base) else { return };
        if section.len < 12 {
            return;
        }
        out.push(Reference::based(section.offset + 4, Kind::FrameArea, base));
        let mut at = section.offset + 12;
        while at + 4 <= section.end() {
            out.push(Reference::based(at, Kind::Based, base));
            at += 4;
        }
    }

    fn jump_tables(&mut self, section: &Section, starts: &TableStarts) -> Vec<Reference> {
        let layout = &self.image.layout;
        let mut out: Vec<Reference> = Vec::new();
        let mut at = section.offset.next_multiple_of(4);
        while at + 8 <= section.end() {
            if !starts.get(at) {
                at = starts.next(at).unwrap_or(section.end());
                continue;
            }
            let start = at;
            let base = layout.place(start);
            let begin = out.len();
            while at + 4 <= section.end() && (at == start || !starts.get(at)) {
                let Some(entry) = u32_at(self.file, at as usize) else { break };
                let target = base.wrapping_add_signed(i64::from(entry as i32));
                let is_code = layout
                    .offset(target)
                    .is_some_and(|offset| layout.segment_at(offset).is_ok_and(|segment| segment.is_code));
                if !is_code || target >= FILE_SPACE {
                    break;
                }
                out.push(Reference::based(at, Kind::JumpTable, self.found.tables.len()));
                at += 4;
            }
            if out.len() - begin < 2 || self.found.tables.len() >= TABLES_MAX {
                out.truncate(begin);
            } else {
                self.found.tables.push(base);
            }
            at = at.max(start + 4);
        }
        out
    }
}

struct TableStarts {
    bits: Vec<u64>,
}

impl TableStarts {
    fn set(&mut self, offset: u32) {
        if let Some(word) = self.bits.get_mut(offset as usize / 256) {
            *word |= 1 << (offset / 4 % 64);
        }
    }

    fn get(&self, offset: u32) -> bool {
        self.bits.get(offset as usize / 256).is_some_and(|word| word >> (offset / 4 % 64) & 1 == 1)
    }

    /// The first start above `offset`.
    fn next(&self, offset: u32) -> Option<u32> {
        let mut bit = offset / 4 + 1;
        loop {
            let word = self.bits.get(bit as usize / 64)? >> (bit % 64);
            if word != 0 {
                return Some((bit + word.trailing_zeros()) * 4);
            }
            bit = (bit / 64 + 1) * 64;
        }
    }
}

/// Merges two ascending lists; where fields overlap the one that begins first stays, `first` where both begin at once.
fn merge(first: Vec<Reference>, second: Vec<Reference>) -> Vec<Reference> {
    let mut out: Vec<Reference> = Vec::with_capacity(first.len() + second.len());
    let (mut first, mut second) = (first.into_iter().peekable(), second.into_iter().peekable());
    let mut end = 0;
    loop {
        let next = match (first.peek(), second.peek()) {
            (Some(a), Some(b)) if b.position < a.position => second.next(),
            (Some(_), _) => first.next(),
            (None, _) => second.next(),
        };
        let Some(next) = next else { return out };
        if next.position >= end {
            end = next.position + next.kind().width();
            out.push(next);
        }
    }
}

fn rel32(file: &[u8], at: usize, layout: &Layout) -> Option<u64> {
    let field = u32_at(file, at)?;
    Some(layout.place(at as u32).wrapping_add(4).wrapping_add_signed(i64::from(field as i32)))
}

/// What may begin at an opcode byte: bytes before the field, and the kind.
#[inline(always)]
pub(super) fn field_x86(first: u8, second: u8) -> Option<(usize, Kind)> {
    match first {
        0xE8 => Some((1, Kind::Call)),
        0xE9 => Some((1, Kind::Jump)),
        0x0F if second & 0xF0 == 0x80 => Some((2, Kind::Branch)),
        _ if second & 0xC7 == 0x05 => Some((2, Kind::Operand)),
        _ => None,
    }
}

/// How many instructions behind its `adrp` one is looked for that completes it.
pub(super) const ARM_REACH: u32 = 4;

/// What of `instruction` completes an `adrp` to `register`: by what its 12 bits are multiplied, as a shift.
pub(super) fn low_arm64(instruction: u32, register: u32) -> Option<u32> {
    if instruction >> 5 & 31 != register {
        return None;
    }
    if instruction & 0x7FC0_0000 == 0x1100_0000 {
        return Some(0);
    }
    (instruction & 0x3B00_0000 == 0x3900_0000).then(|| {
        let is_vector_of_16 = instruction & 0x0480_0000 == 0x0480_0000 && instruction >> 30 == 0;
        if is_vector_of_16 { 4 } else { instruction >> 30 }
    })
}

/// Finds fields of instructions in one piece of code (Arm Architecture Reference Manual, A64).
fn scan_arm64(bytes: &[u8], offset: u32, layout: &Layout, out: &mut Vec<Reference>) {
    let start = offset.next_multiple_of(4) - offset;
    let Some(bytes) = bytes.get(start as usize..) else { return };
    let offset = offset + start;
    let words: Vec<u32> =
        bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap_or_default())).collect();
    // What completes an `adrp` before: the distance to it.
    let mut completes = vec![0u8; words.len()];
    for (index, &word) in words.iter().enumerate() {
        let at = offset + index as u32 * 4;
        let kind = match word {
            _ if completes[index] > 0 => {
                out.push(Reference::based(at, Kind::ArmLow, usize::from(completes[index])));
                continue;
            }
            _ if word & 0x7C00_0000 == 0x1400_0000 => Kind::ArmJump,
            _ if word & 0xFF00_0010 == 0x5400_0000 || word & 0x7E00_0000 == 0x3400_0000 => Kind::ArmBranch,
            _ if word & 0x7E00_0000 == 0x3600_0000 => Kind::ArmTest,
            _ if word & 0x9F00_0000 == 0x9000_0000 => {
                let register = word & 31;
                let completed = (1..=ARM_REACH as usize).find(|distance| {
                    words.get(index + distance).is_some_and(|word| low_arm64(*word, register).is_some())
                        && completes[index + distance] == 0
                });
                let Some(distance) = completed else { continue };
                completes[index + distance] = distance as u8;
                out.push(Reference::based(at, Kind::ArmPage, distance));
                continue;
            }
            _ => continue,
        };
        let target = super::predict::arm_target(kind, word, layout.place(at));
        if layout.is_mapped(target) {
            out.push(Reference::new(at, kind));
        }
    }
}

/// Where in `code` an absolute 32-bit field may begin, if the instruction at its start has one.
#[inline(always)]
fn absolute_x86(code: &[u8]) -> Option<usize> {
    let (first, second, third) = (code[0], code[1], code[2]);
    match first {
        0xB8..=0xBF | 0x68 | 0x3D => Some(1),
        0xC7 => match (second >> 6, second & 7) {
            (3, _) => Some(2),
            (0, rm) if rm != 4 && rm != 5 => Some(2),
            (1, rm) if rm != 4 => Some(3),
            (1, 4) => Some(4),
            _ => None,
        },
        0x81 if second >= 0xF8 => Some(2),
        _ if second & 0xC7 == 0x04 && third & 7 == 5 => Some(3),
        _ if second & 0xC0 == 0x80 => Some(if second & 7 == 4 { 3 } else { 2 }),
        _ => None,
    }
}

/// Candidates of 64 places at once: bit i is set where a field may begin behind an opcode at place i. `code` has 72
/// bytes. Nothing is left out that [`scan_x86`] would take: an opcode's second byte and the highest byte of its field
/// are looked at, `reach` being the highest byte of the longest distance, `top` that of the highest address.
#[inline(always)]
fn candidates_x86(code: &[u8; 72], reach: u8, top: u8, is_fixed: bool) -> u64 {
    let mut flags = [0u8; 64];
    let (shift, most) = (reach.wrapping_add(1), reach.saturating_mul(2).saturating_add(1));
    for (place, flag) in flags.iter_mut().enumerate() {
        let (first, second) = (code[place], code[place + 1]);
        let is_near = |high: u8| high.wrapping_add(shift) <= most;
        let one = (first & 0xFE == 0xE8) & is_near(code[place + 4]);
        let two = ((first == 0x0F) & (second & 0xF0 == 0x80)) | (second & 0xC7 == 0x05);
        *flag = u8::from(one | two & is_near(code[place + 5]));
    }
    if is_fixed {
        for (place, flag) in flags.iter_mut().enumerate() {
            let (first, second, third) = (code[place], code[place + 1], code[place + 2]);
            let one = (first & 0xF8 == 0xB8) | (first == 0x68) | (first == 0x3D);
            let is_move = first == 0xC7;
            let is_based = second & 0xC0 == 0x80;
            let two = is_move | (first == 0x81) | is_based;
            let three = is_move | is_based | (second & 0xC7 == 0x04) & (third & 7 == 5);
            let found = one & (code[place + 4] <= top)
                | two & (code[place + 5] <= top)
                | three & (code[place + 6] <= top)
                | is_move & (code[place + 7] <= top);
            *flag |= u8::from(found);
        }
    }
    let mut mask = 0;
    for (index, eight) in flags.chunks_exact(8).enumerate() {
        let eight = u64::from_le_bytes(eight.try_into().unwrap_or_default());
        mask |= (eight.wrapping_mul(0x0102_0408_1020_4080) >> 56) << (index * 8);
    }
    mask
}

/// Finds fields in one piece of code; a field lies wholly in its piece.
fn scan_x86(
    bytes: &[u8],
    offset: u32,
    layout: &Layout,
    is_plt: bool,
    is_fixed: bool,
    out: &mut Vec<Reference>,
) {
    let span = layout.hi - layout.lo;
    // A piece may begin in a segment and end beyond it.
    let reach = ((span + (1 << 17)) >> 24) as u8;
    let most = layout.hi.min(1 << 31);
    let top = (most >> 24) as u8;
    let mut scan = ScanX86 {
        bytes,
        offset,
        place: layout.place(offset),
        lo: layout.lo,
        span,
        absolute: layout.lo.max(0x10000)..most,
        is_fixed,
        out,
    };
    let end = bytes.len().saturating_sub(7);
    if is_plt || reach >= 127 {
        let mut at = 0;
        while at < end {
            at = scan.plt(at, is_plt).or_else(|| scan.field(at)).unwrap_or(at + 1);
        }
        return;
    }
    let mut at = 0;
    for group in (0..end).step_by(64) {
        let mut mask = match bytes.get(group..group + 72).and_then(|code| code.try_into().ok()) {
            Some(code) => candidates_x86(code, reach, top, is_fixed),
            None => {
                let mut code = [0; 72];
                let rest = &bytes[group..bytes.len().min(group + 72)];
                code[..rest.len()].copy_from_slice(rest);
                candidates_x86(&code, reach, top, is_fixed)
            }
        };
        while mask != 0 {
            let candidate = group + mask.trailing_zeros() as usize;
            mask &= mask - 1;
            if candidate >= at && candidate < end {
                at = scan.field(candidate).unwrap_or(candidate + 1);
            }
        }
    }
}

/// One piece of code while it is scanned.
struct ScanX86<'a> {
    bytes: &'a [u8],
    offset: u32,
    place: u64,
    lo: u64,
    span: u64,
    absolute: std::ops::Range<u64>,
    is_fixed: bool,
    out: &'a mut Vec<Reference>,
}

impl ScanX86<'_> {
    /// The instruction of a PLT entry that says which relocation it belongs to.
    fn plt(&mut self, at: usize, is_plt: bool) -> Option<usize> {
        let is_counter = is_plt && self.bytes[at] == 0x68 && (self.offset as usize + at) % 16 == 6;
        is_counter.then(|| {
            self.out.push(Reference::new(self.offset + at as u32 + 1, Kind::Counter));
            at + 5
        })
    }

    /// Takes the field behind the opcode at `at` if there is one; says where the scan goes on.
    #[inline(always)]
    fn field(&mut self, at: usize) -> Option<usize> {
        let bytes = self.bytes;
        let read = |at: usize| i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if let Some((skip, kind)) = field_x86(bytes[at], bytes[at + 1]) {
            let field = at + skip;
            let target =
                self.place.wrapping_add(field as u64 + 4).wrapping_add_signed(i64::from(read(field)));
            if target.wrapping_sub(self.lo) < self.span {
                self.out.push(Reference::new(self.offset + field as u32, kind));
                return Some(field + 4);
            }
        }
        if self.is_fixed
            && let Some(skip) = absolute_x86(&bytes[at..at + 3])
        {
            let field = at + skip;
            if self.absolute.contains(&u64::from(read(field) as u32)) {
                self.out.push(Reference::new(self.offset + field as u32, Kind::Absolute));
                return Some(field + 4);
            }
        }
        None
    }
}
