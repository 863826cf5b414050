//! The fields of an executable that hold addresses: what they mean, and all of a file in order.

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

/// How many instructions behind its `adrp` one is looked for that completes it.
pub(super) const ARM_REACH: u32 = 4;

/// A field of the old file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) position: u32,
    /// The kind in the low byte, above it the number of the base (or jump table).
    tag: u32,
}

impl Reference {
    pub(super) fn new(position: u32, kind: Kind) -> Self {
        Self { position, tag: kind as u32 }
    }

    pub(super) fn based(position: u32, kind: Kind, base: usize) -> Self {
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

/// More references than the bound allows, or sections that lie over each other, so that nothing bounds the search.
#[derive(Debug)]
pub(super) struct Unbounded;

impl References {
    pub(super) fn index_pages(&mut self, file_len: usize) {
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

    pub(super) fn base(&mut self, place: u64) -> Option<usize> {
        if let Some(index) = self.bases.iter().position(|base| *base == place) {
            return Some(index);
        }
        (self.bases.len() < BASES_MAX).then(|| {
            self.bases.push(place);
            self.bases.len() - 1
        })
    }
}
