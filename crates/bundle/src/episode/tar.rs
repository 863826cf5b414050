//! The tar format, as far as finding one member and writing an archive needs it (POSIX.1-2017 `pax`, GNU tar).

/// Everything in a tar archive is a multiple of this.
pub(super) const BLOCK: usize = 512;

/// The longest path or pax header that is kept while a member is looked at; a longer one belongs to no `meta.json`.
const EXTENSION_BYTES_MAX: u64 = 64 << 10;

/// Finds one member in an archive whose bytes are pushed in.
pub(super) struct Finder {
    name: &'static str,
    bytes_max: u64,
    state: State,
    /// From a GNU `L` or a pax `path` before the member.
    next_path: Option<Vec<u8>>,
    /// From a pax `size` before the member.
    next_size: Option<u64>,
}

enum State {
    Header(Block),
    /// Further blocks of an old GNU sparse header; then this much content.
    Sparse(Block, u64),
    Skip(u64),
    Extension {
        kind: Extension,
        text: Vec<u8>,
        left: u64,
        padding: u64,
        whole: bool,
    },
    Member {
        content: Vec<u8>,
        left: u64,
    },
}

#[derive(Clone, Copy, PartialEq)]
enum Extension {
    GnuPath,
    Pax,
}

/// A block on its way in.
struct Block {
    bytes: Box<[u8; BLOCK]>,
    filled: usize,
}

impl Block {
    fn new() -> Self {
        Self { bytes: Box::new([0; BLOCK]), filled: 0 }
    }

    /// Takes from `data`; true when the block is full.
    fn fill(&mut self, data: &mut &[u8]) -> bool {
        let taken = data.len().min(BLOCK - self.filled);
        self.bytes[self.filled..self.filled + taken].copy_from_slice(&data[..taken]);
        self.filled += taken;
        *data = &data[taken..];
        self.filled == BLOCK
    }
}

/// What a [`Finder`] ends with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The member's content.
    Member(Vec<u8>),
    /// The archive ended without it.
    Nothing,
    /// The member is larger than allowed.
    TooLarge(u64),
    /// This is no tar archive.
    Malformed(&'static str),
}

impl Finder {
    /// Looks for the first regular file whose file name is exactly `name`, of at most `bytes_max` bytes.
    pub(super) fn new(name: &'static str, bytes_max: u64) -> Self {
        Self { name, bytes_max, state: State::Header(Block::new()), next_path: None, next_size: None }
    }

    /// Takes the next bytes; an answer is final.
    pub(super) fn push(&mut self, mut data: &[u8]) -> Option<Found> {
        while !data.is_empty() {
            match &mut self.state {
                State::Header(block) => {
                    if block.fill(&mut data) {
                        let bytes = std::mem::replace(&mut block.bytes, Box::new([0; BLOCK]));
                        block.filled = 0;
                        match self.header(&bytes) {
                            Ok(state) => self.state = state,
                            Err(found) => return Some(found),
                        }
                    }
                }
                State::Sparse(block, size) => {
                    if block.fill(&mut data) {
                        // GNU tar's struct sparse_header: 21 entries of 24 bytes, then whether another one follows.
                        let more = block.bytes[504] != 0;
                        let size = *size;
                        self.state = if more { State::Sparse(Block::new(), size) } else { skip(size) };
                    }
                }
                State::Skip(left) => {
                    let taken = (*left).min(data.len() as u64);
                    data = &data[taken as usize..];
                    *left -= taken;
                    if *left == 0 {
                        self.state = State::Header(Block::new());
                    }
                }
                State::Extension { kind, text, left, padding, whole } => {
                    let taken = (*left).min(data.len() as u64) as usize;
                    if *whole {
                        text.extend_from_slice(&data[..taken]);
                    }
                    data = &data[taken..];
                    *left -= taken as u64;
                    if *left == 0 {
                        let (kind, text, whole, padding) = (*kind, std::mem::take(text), *whole, *padding);
                        self.extended(kind, &text, whole);
                        self.state = State::Skip(padding);
                        if padding == 0 {
                            self.state = State::Header(Block::new());
                        }
                    }
                }
                State::Member { content, left } => {
                    let taken = (*left).min(data.len() as u64) as usize;
                    content.extend_from_slice(&data[..taken]);
                    data = &data[taken..];
                    *left -= taken as u64;
                    if *left == 0 {
                        return Some(Found::Member(std::mem::take(content)));
                    }
                }
            }
        }
        None
    }

    /// What follows a header; an error ends the search.
    fn header(&mut self, block: &[u8; BLOCK]) -> Result<State, Found> {
        if block.iter().all(|byte| *byte == 0) {
            return Err(Found::Nothing);
        }
        if number(&block[148..156]) != Some(checksum(block)) {
            return Err(Found::Malformed("a member's header has a wrong checksum"));
        }
        let Some(own_size) = number(&block[124..136]) else {
            return Err(Found::Malformed("a member's size is no number"));
        };
        let kind = block[156];
        if let b'L' | b'x' = kind {
            let whole = own_size <= EXTENSION_BYTES_MAX;
            let padding = padding(own_size);
            let kind = if kind == b'L' { Extension::GnuPath } else { Extension::Pax };
            if own_size == 0 {
                return Ok(State::Header(Block::new()));
            }
            return Ok(State::Extension { kind, text: Vec::new(), left: own_size, padding, whole });
        }
        if let b'K' | b'g' = kind {
            return Ok(skip(own_size));
        }
        let path = self.next_path.take();
        let size = self.next_size.take().unwrap_or(own_size);
        // Links, devices, directories and pipes have no content, whatever they claim.
        let size = if matches!(kind, b'1'..=b'6') { 0 } else { size };
        let path = path.as_deref().unwrap_or(until_nul(&block[..100]));
        let file_name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if matches!(kind, b'0' | 0 | b'7') && file_name == self.name.as_bytes() {
            if size > self.bytes_max {
                return Err(Found::TooLarge(size));
            }
            if size == 0 {
                return Err(Found::Member(Vec::new()));
            }
            return Ok(State::Member { content: Vec::new(), left: size });
        }
        if kind == b'S' && block[482] != 0 {
            return Ok(State::Sparse(Block::new(), size));
        }
        Ok(skip(size))
    }

    fn extended(&mut self, kind: Extension, text: &[u8], whole: bool) {
        match kind {
            // A path that is too long to be kept has no file name that is looked for.
            Extension::GnuPath | Extension::Pax if !whole => self.next_path = Some(Vec::new()),
            Extension::GnuPath => self.next_path = Some(until_nul(text).to_vec()),
            Extension::Pax => {
                for (key, value) in pax_records(text) {
                    match key {
                        b"path" => self.next_path = Some(value.to_vec()),
                        b"size" => {
                            self.next_size =
                                std::str::from_utf8(value).ok().and_then(|text| text.parse().ok())
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}

fn skip(size: u64) -> State {
    match size.saturating_add(padding(size)) {
        0 => State::Header(Block::new()),
        left => State::Skip(left),
    }
}

/// The bytes that fill the last block.
pub(super) fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// The sum of a header's bytes, with its own field as spaces.
pub(super) fn checksum(block: &[u8; BLOCK]) -> u64 {
    let sum = |part: &[u8]| part.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    sum(&block[..148]) + 8 * u64::from(b' ') + sum(&block[156..])
}

/// An octal number between spaces and NULs, or GNU's binary form behind a set first bit.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        // A negative or larger one is no size.
        let value = rest
            .iter()
            .try_fold(0u64, |value, byte| (value >> 56 == 0).then(|| value << 8 | u64::from(*byte)));
        return value.filter(|_| *first == 0x80);
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// `LENGTH KEY=VALUE\n`, as often as it holds; what does not parse ends the list.
fn pax_records(mut text: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut records = Vec::new();
    while let Some(space) = text.iter().position(|byte| *byte == b' ') {
        let length = std::str::from_utf8(&text[..space]).ok().and_then(|digits| digits.parse::<usize>().ok());
        let Some(record) = length.and_then(|length| text.get(space + 1..length)) else { break };
        let Some((b'\n', record)) = record.split_last() else { break };
        let Some(equals) = record.iter().position(|byte| *byte == b'=') else { break };
        records.push((&record[..equals], &record[equals + 1..]));
        text = &text[length.unwrap_or(text.len())..];
    }
    records
}
