//! The Merkle tree: hashes (RFC 6962, section 2.1), proofs made from the hashes of complete subtrees, and their check (RFC 9162,
//! sections 2.1.3.2 and 2.1.4.2).

use cutover_core::model::{Digest, Hasher};

/// Why a proof proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// There is no such entry in a tree of this size.
    #[error("entry {index} is in no tree of {size} entries")]
    Outside {
        /// The entry.
        index: u64,
        /// The size.
        size: u64,
    },
    /// A tree cannot become smaller.
    #[error("a tree of {old} entries cannot become one of {new}")]
    Backwards {
        /// The size before.
        old: u64,
        /// The size now.
        new: u64,
    },
    /// It has more or fewer hashes than a proof for these sizes.
    #[error("the proof has {0} hashes, which is not the number that these sizes take")]
    Length(usize),
    /// It leads to another root.
    #[error("the proof leads to another root")]
    Root,
}

/// The hash of an entry.
pub fn leaf_hash(entry: &[u8]) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(&[0]);
    hasher.update(entry);
    hasher.finish()
}

/// The hash of two subtrees side by side.
pub fn node_hash(left: Digest, right: Digest) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(&[1]);
    hasher.update(left.as_bytes());
    hasher.update(right.as_bytes());
    hasher.finish()
}

/// The root of a tree without entries.
pub fn empty_root() -> Digest {
    Digest::of(b"")
}

/// Knows the hashes of complete subtrees.
pub trait Nodes {
    /// Why one cannot be had.
    type Error;

    /// The hash of the complete subtree over the entries `index << level` to `(index + 1) << level`.
    ///
    /// # Errors
    /// It cannot be had.
    fn node(&self, level: u32, index: u64) -> Result<Digest, Self::Error>;
}

/// The hashes of entries, in order.
impl Nodes for [Digest] {
    type Error = std::convert::Infallible;

    fn node(&self, level: u32, index: u64) -> Result<Digest, Self::Error> {
        match level {
            0 => Ok(self[usize::try_from(index).expect("an index into memory")]),
            _ => Ok(node_hash(self.node(level - 1, 2 * index)?, self.node(level - 1, 2 * index + 1)?)),
        }
    }
}

/// The largest power of two below `size`, which is at least 2.
fn split(size: u64) -> u64 {
    1 << (u64::BITS - 1 - (size - 1).leading_zeros())
}

/// The root over the entries `from` to `to`, of which there is at least one. `from` is a multiple of the largest power of two
/// in their number, as in every subtree of a tree.
fn range<N: Nodes + ?Sized>(nodes: &N, from: u64, to: u64) -> Result<Digest, N::Error> {
    let size = to - from;
    if size.is_power_of_two() {
        let level = size.trailing_zeros();
        return nodes.node(level, from >> level);
    }
    let middle = from + split(size);
    Ok(node_hash(range(nodes, from, middle)?, range(nodes, middle, to)?))
}

/// The root of the tree of the first `size` entries.
///
/// # Errors
/// Whatever `nodes` reports.
pub fn root<N: Nodes + ?Sized>(nodes: &N, size: u64) -> Result<Digest, N::Error> {
    if size == 0 { Ok(empty_root()) } else { range(nodes, 0, size) }
}

/// The proof that entry `index` is in the tree of the first `size` entries; `index` is below `size`.
///
/// # Errors
/// Whatever `nodes` reports.
pub fn inclusion<N: Nodes + ?Sized>(nodes: &N, index: u64, size: u64) -> Result<Vec<Digest>, N::Error> {
    assert!(index < size, "entry {index} of {size}");
    let (mut from, mut to) = (0, size);
    let mut proof = Vec::new();
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            proof.push(range(nodes, middle, to)?);
            to = middle;
        } else {
            proof.push(range(nodes, from, middle)?);
            from = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// The proof that the tree of the first `old` entries became that of the first `new` by adding entries; `old` is at most `new`.
///
/// # Errors
/// Whatever `nodes` reports.
pub fn consistency<N: Nodes + ?Sized>(nodes: &N, old: u64, new: u64) -> Result<Vec<Digest>, N::Error> {
    assert!(old <= new, "{old} of {new}");
    let mut proof = Vec::new();
    if old == 0 || old == new {
        return Ok(proof);
    }
    let (mut from, mut to) = (0, new);
    let mut is_old_root = true;
    while to != old {
        let middle = from + split(to - from);
        if old <= middle {
            proof.push(range(nodes, middle, to)?);
            to = middle;
        } else {
            proof.push(range(nodes, from, middle)?);
            (from, is_old_root) = (middle, false);
        }
    }
    if !is_old_root {
        proof.push(range(nodes, from, to)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Checks that the entry with the hash `leaf` is entry `index` of the tree of `size` entries with this root.
///
/// # Errors
/// See [`ProofError`].
pub fn verify_inclusion(
    leaf: Digest,
    index: u64,
    size: u64,
    proof: &[Digest],
    root: Digest,
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::Outside { index, size });
    }
    let (mut node, mut last, mut hash) = (index, size - 1, leaf);
    for step in proof {
        if last == 0 {
            return Err(ProofError::Length(proof.len()));
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(*step, hash);
            while node & 1 == 0 && node != 0 {
                (node, last) = (node >> 1, last >> 1);
            }
        } else {
            hash = node_hash(hash, *step);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    if last != 0 {
        return Err(ProofError::Length(proof.len()));
    }
    if hash == root { Ok(()) } else { Err(ProofError::Root) }
}

/// Checks that the tree of `old` entries with the root `old_root` became that of `new` entries with the root `new_root` by adding
/// entries only. Everything begins with the empty tree.
///
/// # Errors
/// See [`ProofError`].
pub fn verify_consistency(
    (old, old_root): (u64, Digest),
    (new, new_root): (u64, Digest),
    proof: &[Digest],
) -> Result<(), ProofError> {
    if old > new {
        return Err(ProofError::Backwards { old, new });
    }
    if old == 0 || old == new {
        let expected = if old == 0 { empty_root() } else { new_root };
        return match proof {
            [] if old_root == expected => Ok(()),
            [] => Err(ProofError::Root),
            _ => Err(ProofError::Length(proof.len())),
        };
    }
    let (mut node, mut last) = (old - 1, new - 1);
    while node & 1 == 1 {
        (node, last) = (node >> 1, last >> 1);
    }
    let mut steps = proof.iter().copied();
    let length = || ProofError::Length(proof.len());
    // The old tree is complete, so that its root is a node of the new one and need not be told.
    let first = if old.is_power_of_two() { old_root } else { steps.next().ok_or_else(length)? };
    let (mut before, mut after) = (first, first);
    for step in steps {
        if last == 0 {
            return Err(length());
        }
        if node & 1 == 1 || node == last {
            before = node_hash(step, before);
            after = node_hash(step, after);
            while node & 1 == 0 && node != 0 {
                (node, last) = (node >> 1, last >> 1);
            }
        } else {
            after = node_hash(after, step);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    if last != 0 {
        return Err(length());
    }
    if before == old_root && after == new_root { Ok(()) } else { Err(ProofError::Root) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entries of the vectors in RFC 6962's reference implementation
    /// (certificate-transparency, `merkle_tree_test.cc`).
    const ENTRIES: [&str; 8] =
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    const ROOTS: [&str; 8] = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    fn leaves(count: u64) -> Vec<Digest> {
        (0..count).map(|number| leaf_hash(&number.to_be_bytes())).collect()
    }

    fn infallible<T>(result: Result<T, std::convert::Infallible>) -> T {
        let Ok(value) = result;
        value
    }

    #[test]
    fn roots_are_those_of_the_reference_vectors() {
        assert_eq!(
            empty_root().to_string(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        let leaves: Vec<Digest> = ENTRIES.iter().map(|entry| leaf_hash(&bytes(entry))).collect();
        for (index, expected) in ROOTS.iter().enumerate() {
            assert_eq!(
                infallible(root(leaves.as_slice(), index as u64 + 1)).to_string(),
                *expected,
                "{index}"
            );
        }
    }

    /// The paths of the same vectors: (index, size, hashes).
    #[test]
    fn inclusion_proof_is_that_of_the_reference_vectors() {
        let leaves: Vec<Digest> = ENTRIES.iter().map(|entry| leaf_hash(&bytes(entry))).collect();
        let proof = infallible(inclusion(leaves.as_slice(), 5, 8));
        let proof: Vec<String> = proof.iter().map(Digest::to_string).collect();
        assert_eq!(
            proof,
            [
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ]
        );
    }

    #[test]
    fn every_entry_of_every_tree_is_proven_and_nothing_else() {
        for size in 1..=66u64 {
            let leaves = leaves(size);
            let root = infallible(root(leaves.as_slice(), size));
            for index in 0..size {
                let proof = infallible(inclusion(leaves.as_slice(), index, size));
                let leaf = leaves[index as usize];
                assert_eq!(verify_inclusion(leaf, index, size, &proof, root), Ok(()), "{index} of {size}");
                let other = leaf_hash(b"another");
                assert!(verify_inclusion(other, index, size, &proof, root).is_err());
                assert!(verify_inclusion(leaf, index + 1, size, &proof, root).is_err());
                if let [first, ..] = proof.as_slice() {
                    assert!(verify_inclusion(leaf, index, size, &proof[1..], root).is_err());
                    let longer = [proof.as_slice(), &[*first]].concat();
                    assert!(verify_inclusion(leaf, index, size, &longer, root).is_err());
                    for changed in 0..proof.len() {
                        let mut proof = proof.clone();
                        proof[changed] = other;
                        assert!(verify_inclusion(leaf, index, size, &proof, root).is_err());
                    }
                }
            }
        }
    }

    #[test]
    fn every_tree_is_proven_to_have_grown_into_every_later_one_and_no_other() {
        let all = leaves(66);
        let head = |size| (size, infallible(root(all.as_slice(), size)));
        for new in 0..=66 {
            for old in 0..=new {
                let proof = infallible(consistency(all.as_slice(), old, new));
                assert_eq!(verify_consistency(head(old), head(new), &proof), Ok(()), "{old} to {new}");
                let forked = (old, leaf_hash(b"another"));
                assert!(verify_consistency(forked, head(new), &proof).is_err(), "{old} to {new}");
                let longer = [proof.as_slice(), &[forked.1]].concat();
                assert!(verify_consistency(head(old), head(new), &longer).is_err(), "{old} to {new}");
                if old > 0 && old < new {
                    assert!(verify_consistency(head(new), head(old), &proof).is_err());
                    assert!(verify_consistency(head(old), (new, forked.1), &proof).is_err());
                    for changed in 0..proof.len() {
                        let mut proof = proof.clone();
                        proof[changed] = forked.1;
                        assert!(verify_consistency(head(old), head(new), &proof).is_err());
                    }
                }
            }
        }
    }
}
