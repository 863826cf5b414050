//! Finds the fields of an executable that hold addresses, without disassembling it.
//!
//! The encoder and the decoder run this over the same old file, so what it finds is part of the format: every rule here
//! and in [`arm64`] and [`x86`] is a total order over bytes, and a changed rule is a new model number. A field found by
//! mistake costs a misprediction, never correctness.

use super::{
    arm64,
    image::{
        FILE_SPACE, Image, Machine, SHF_WRITE, SHT_DYNSYM, SHT_FINI_ARRAY, SHT_INIT_ARRAY, SHT_PROGBITS,
        SHT_RELA, SHT_SYMTAB, Section, u32_at, u64_at,
    },
    references::{Kind, Reference, References, Unbounded},
    x86,
};

const TABLES_MAX: usize = 1 << 22;
const CHUNK: u32 = 64 << 10;

/// Finds at most `most` references in `file`.
pub(super) fn references(file: &[u8], image: &Image, most: usize) -> Result<References, Unbounded> {
    Finder { file, image, module: go_module(file, image), found: References::default(), most }.run()
}

struct Finder<'a> {
    file: &'a [u8],
    image: &'a Image,
    module: Option<[u64; 41]>,
    found: References,
    most: usize,
}

/// The references of one section, of which only so many are kept as show that there are too many.
struct Local {
    all: Vec<Reference>,
    most: usize,
}

impl Local {
    fn push(&mut self, reference: Reference) {
        if self.all.len() <= self.most {
            self.all.push(reference);
        }
    }
}

impl Finder<'_> {
    fn run(mut self) -> Result<References, Unbounded> {
        let mut sections: Vec<&Section> =
            self.image.sections.iter().filter(|section| section.len > 0).collect();
        sections.sort_by_key(|section| section.offset);
        if sections.windows(2).any(|pair| pair[0].end() > pair[1].offset) {
            return Err(Unbounded);
        }
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
            // Whatever the tables of the file say: everything else relies on this.
            local.retain(|reference| {
                let is_apart = reference.position >= end;
                if is_apart {
                    end = reference.position + reference.kind().width();
                }
                is_apart
            });
            if self.found.all.len() + local.len() > self.most {
                return Err(Unbounded);
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
    fn scan_code(&self, sections: &[&Section]) -> Result<Vec<Vec<Reference>>, Unbounded> {
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
            let mut count = 0;
            for &(number, at, end) in pieces {
                let before = found[number].len();
                if let Some(bytes) = self.file.get(at as usize..end as usize) {
                    let layout = &self.image.layout;
                    let is_plt = sections[number].name == ".plt";
                    match self.image.machine {
                        Machine::X86_64 => {
                            let fixed = self.image.is_fixed;
                            x86::scan(bytes, at, layout, is_plt, fixed, &mut found[number]);
                        }
                        Machine::Arm64 => arm64::scan(bytes, at, layout, &mut found[number]),
                    }
                }
                count += found[number].len() - before;
                if count > self.most {
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
            return Err(Unbounded);
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
                    let Some(target) = x86::rel32(self.file, at, layout) else { continue };
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
        // Two lists that are merged may lose all but a third.
        let most = (self.most - self.found.all.len()).saturating_mul(3).saturating_add(3);
        let mut out = Local { all: Vec::new(), most };
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
                    let entries = self.jump_tables(section, tables, most);
                    if !entries.is_empty() {
                        out.all = merge(out.all, entries);
                    }
                }
            }
            _ => {}
        }
        out.all
    }

    fn rela(&mut self, section: &Section, out: &mut Local) {
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

    fn symbols(&mut self, section: &Section, out: &mut Local) {
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

    fn words(&self, section: &Section, kind: Kind, out: &mut Local) {
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
    fn frames(&self, section: &Section, out: &mut Local) {
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

    fn go_types(&mut self, section: &Section, out: &mut Local) {
        let Some(base) = self.module.and_then(|module| self.found.base(module[37])) else { return };
        for at in (section.offset..section.end().saturating_sub(3)).step_by(4) {
            out.push(Reference::based(at, Kind::Based, base));
        }
    }

    /// Go's function table since 1.20 (Go source, src/runtime/symtab.go: `pcHeader`, `functab`, `_func`).
    fn go_functions(&mut self, section: &Section, out: &mut Local) {
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
        let Some(module) = self.module else { return };
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
        for at in
            (section.offset + units as u32..(section.offset + files as u32).saturating_sub(3)).step_by(4)
        {
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

    fn frame_index(&mut self, section: &Section, out: &mut Local) {
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

    fn jump_tables(&mut self, section: &Section, starts: &TableStarts, most: usize) -> Vec<Reference> {
        let layout = &self.image.layout;
        let mut out: Vec<Reference> = Vec::new();
        let mut at = section.offset.next_multiple_of(4);
        while at + 8 <= section.end() && out.len() <= most {
            if !starts.get(at) {
                at = starts.next(at).unwrap_or(section.end());
                continue;
            }
            let start = at;
            let base = layout.place(start);
            let begin = out.len();
            while at + 4 <= section.end() && (at == start || !starts.get(at)) && out.len() <= most {
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

/// The words of Go's `moduledata` (Go source, src/runtime/symtab.go), which begins with the place of its table and of the
/// names in it.
fn go_module(file: &[u8], image: &Image) -> Option<[u64; 41]> {
    let table = image.section(".gopclntab")?;
    let names = u64_at(file, table.offset as usize + 32)?;
    let begin = [table.address, table.address.wrapping_add(names)];
    for name in [".go.module", ".noptrdata", ".data"] {
        let Some(section) = image.section(name) else { continue };
        let bytes = file.get(section.offset as usize..section.end() as usize)?;
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
