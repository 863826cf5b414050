//! The address cache and the address modes (RFC 3284, 5.1 to 5.3).

use super::{read_varint, table::MODES, varint_bytes};

const NEAR: usize = 4;
const SAME: usize = 3;
const MODE_SELF: u8 = 0;
const MODE_HERE: u8 = 1;
const MODE_NEAR: u8 = 2;
const MODE_SAME: u8 = MODE_NEAR + NEAR as u8;

/// The addresses that were used, by which new ones are told. Starts empty in every window.
pub(super) struct AddressCache {
    near: [u64; NEAR],
    next: usize,
    same: [u64; SAME * 256],
}

impl AddressCache {
    pub(super) fn new() -> Self {
        Self { near: [0; NEAR], next: 0, same: [0; SAME * 256] }
    }

    fn update(&mut self, address: u64) {
        self.near[self.next] = address;
        self.next = (self.next + 1) % NEAR;
        self.same[(address % (SAME as u64 * 256)) as usize] = address;
    }

    /// Reads the next address of a COPY at `here`; an address is below `here`.
    pub(super) fn decode(
        &mut self,
        mode: u8,
        here: u64,
        addresses: &[u8],
        at: &mut usize,
    ) -> Result<u64, &'static str> {
        const CUT: &str = "an address is cut off or has more than 64 bits";
        let address = match mode {
            MODE_SELF => read_varint(addresses, at).ok_or(CUT)?,
            MODE_HERE => {
                let back = read_varint(addresses, at).ok_or(CUT)?;
                here.checked_sub(back).ok_or("an address lies before the source segment")?
            }
            MODE_NEAR..MODE_SAME => {
                let forward = read_varint(addresses, at).ok_or(CUT)?;
                let near = self.near[usize::from(mode - MODE_NEAR)];
                near.checked_add(forward).ok_or("an address overflows")?
            }
            MODE_SAME..MODES => {
                let byte = *addresses.get(*at).ok_or(CUT)?;
                *at += 1;
                self.same[usize::from(mode - MODE_SAME) * 256 + usize::from(byte)]
            }
            _ => return Err("an address mode does not exist"),
        };
        if address >= here {
            return Err("an address is not before the place where it is used");
        }
        self.update(address);
        Ok(address)
    }

    /// Chooses the mode that takes the fewest bytes, appends the address and returns the mode.
    pub(super) fn encode(&mut self, address: u64, here: u64, out: &mut Vec<u8>) -> u8 {
        let slot = (address % (SAME as u64 * 256)) as usize;
        let mode = if self.same[slot] == address {
            out.push((slot % 256) as u8);
            MODE_SAME + (slot / 256) as u8
        } else {
            let near = self.near.iter().zip(MODE_NEAR..);
            let near = near.filter_map(|(near, mode)| Some((address.checked_sub(*near)?, mode)));
            let all = [(address, MODE_SELF), (here - address, MODE_HERE)].into_iter().chain(near);
            let best = all.min_by_key(|(value, _)| varint_bytes(*value));
            let (value, mode) = best.unwrap_or((address, MODE_SELF));
            super::push_varint(out, value);
            mode
        };
        self.update(address);
        mode
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_is_used_and_read_back() {
        let (mut writer, mut reader) = (AddressCache::new(), AddressCache::new());
        let (mut bytes, mut wanted, mut seen) = (Vec::new(), Vec::new(), [false; MODES as usize]);
        let mut state = 7u64;
        for step in 0..5000u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let here = 1_000_000 + step * 50;
            let address = match state >> 61 {
                0 => state >> 57,
                1 => here - 1 - (state >> 56),
                2..=4 => wanted.last().map_or(0, |(_, _, address)| address + (state >> 40 & 0x3f)),
                5 => (state >> 30) % here,
                _ => wanted.get((state >> 40) as usize % (wanted.len() + 1)).map_or(0, |(_, _, a)| *a),
            }
            .min(here - 1);
            let mode = writer.encode(address, here, &mut bytes);
            seen[usize::from(mode)] = true;
            wanted.push((mode, here, address));
        }
        assert_eq!(seen, [true; MODES as usize]);
        let mut at = 0;
        for (mode, here, address) in wanted {
            assert_eq!(reader.decode(mode, here, &bytes, &mut at), Ok(address));
        }
        assert_eq!(at, bytes.len());
    }

    #[test]
    fn addresses_outside_and_modes_that_do_not_exist_are_refused() {
        let decode = |mode, here, bytes: &[u8]| AddressCache::new().decode(mode, here, bytes, &mut 0);
        assert!(decode(MODE_SELF, 10, &[10]).is_err());
        assert!(decode(MODE_SELF, 10, &[9]).is_ok());
        assert!(decode(MODE_HERE, 10, &[0]).is_err());
        assert!(decode(MODE_HERE, 10, &[11]).is_err());
        assert!(decode(MODE_NEAR, 0, &[0]).is_err());
        assert!(decode(MODE_SAME, 10, &[]).is_err());
        assert!(decode(MODES, 10, &[1]).is_err());
        let mut cache = AddressCache::new();
        let mut most = Vec::new();
        super::super::push_varint(&mut most, u64::MAX);
        assert!(cache.decode(MODE_SELF, u64::MAX, &[5], &mut 0).is_ok());
        assert!(cache.decode(MODE_NEAR, u64::MAX, &most, &mut 0).is_err());
    }
}
