//! Which delegated roles may speak for a target (TUF specification 1.0, section 4.5; TAP 15 for succinct ones).

use cutover_core::model::Digest;

use super::role::{DelegatedRole, Delegations, RoleKeys, SuccinctRoles};

impl Delegations {
    /// The keys of a role that is delegated to here.
    pub fn role_keys(&self, name: &str) -> Option<&RoleKeys> {
        let listed = self.roles.iter().find(|role| role.name == name).map(|role| &role.keys);
        listed
            .or_else(|| self.succinct_roles.as_ref().filter(|roles| roles.has(name)).map(|roles| &roles.keys))
    }

    /// The roles to ask for the target at `path`, in order, with whether each one ends the search.
    pub fn roles_for(&self, path: &str) -> Vec<(String, bool)> {
        match &self.succinct_roles {
            Some(roles) => vec![(roles.role_for(path), true)],
            None => self
                .roles
                .iter()
                .filter(|role| role.speaks_for(path))
                .map(|role| (role.name.clone(), role.terminating))
                .collect(),
        }
    }
}

impl DelegatedRole {
    fn speaks_for(&self, path: &str) -> bool {
        let by_path = self.paths.iter().flatten().any(|pattern| matches(pattern, path));
        let digest = Digest::of(path.as_bytes()).to_string();
        by_path || self.path_hash_prefixes.iter().flatten().any(|prefix| digest.starts_with(prefix.as_str()))
    }
}

impl SuccinctRoles {
    fn digits(&self) -> usize {
        // As many hexadecimal digits as the highest number needs.
        (self.bit_length as usize).div_ceil(4)
    }

    fn name(&self, number: u32) -> String {
        format!("{}-{number:0width$x}", self.name_prefix, width = self.digits())
    }

    fn role_for(&self, path: &str) -> String {
        let digest = Digest::of(path.as_bytes());
        let first = digest.as_bytes().first_chunk::<4>().copied().unwrap_or_default();
        self.name(u32::from_be_bytes(first) >> (32 - self.bit_length.clamp(1, 32)))
    }

    fn has(&self, name: &str) -> bool {
        let number = name.strip_prefix(&self.name_prefix).and_then(|rest| rest.strip_prefix('-'));
        let number = number.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        number.is_some_and(|number| {
            u64::from(number) < 1u64 << self.bit_length.min(32) && self.name(number) == name
        })
    }
}

/// Whether `path` fits a shell-style pattern: `*` stands for any characters but `/`, `?` for one of them.
fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, path): (Vec<&str>, Vec<&str>) = (pattern.split('/').collect(), path.split('/').collect());
    pattern.len() == path.len()
        && pattern.iter().zip(&path).all(|(pattern, part)| matches_part(pattern.as_bytes(), part.as_bytes()))
}

/// Without backtracking further than the last star: linear for each star.
fn matches_part(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                p = at + 1;
                t = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_within_one_component() {
        for (pattern, path, fits) in [
            ("packages/tool/*", "packages/tool/stable.json", true),
            ("packages/*", "packages/tool/stable.json", false),
            ("packages/*/*.json", "packages/tool/stable.json", true),
            ("a?c", "abc", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, path), fits, "{pattern} {path}");
        }
    }
}
