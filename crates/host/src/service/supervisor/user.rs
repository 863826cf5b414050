//! Looks up a user by name, through the system's own databases, which may be more than `/etc/passwd`.

use std::{ffi::CString, io};

/// What a process needs to become somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: libc::uid_t,
    pub(super) gid: libc::gid_t,
    pub(super) groups: Vec<libc::gid_t>,
}

/// The most groups that are asked for (NGROUPS_MAX of Linux).
const GROUPS_MAX: usize = 65_536;

impl User {
    /// The user called `name`; `None` when there is none.
    ///
    /// # Errors
    /// The databases cannot be read.
    #[allow(unsafe_code)]
    pub(super) fn find(name: &str) -> io::Result<Option<Self>> {
        let name = CString::new(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut buffer = vec![0 as libc::c_char; 16 << 10];
        // SAFETY: all pointers are valid for the calls; `entry` is read only after success, and `getgrouplist` is told
        // how many groups there is room for and says how many it wrote.
        unsafe {
            let mut entry: libc::passwd = std::mem::zeroed();
            let mut found = std::ptr::null_mut();
            let error =
                libc::getpwnam_r(name.as_ptr(), &mut entry, buffer.as_mut_ptr(), buffer.len(), &mut found);
            if found.is_null() {
                return if error == 0 { Ok(None) } else { Err(io::Error::from_raw_os_error(error)) };
            }
            let mut groups = vec![0; GROUPS_MAX];
            let mut count = libc::c_int::try_from(groups.len()).map_err(io::Error::other)?;
            if libc::getgrouplist(name.as_ptr(), entry.pw_gid, groups.as_mut_ptr(), &mut count) < 0 {
                return Err(io::Error::other("the user is in too many groups"));
            }
            groups.truncate(usize::try_from(count).map_err(io::Error::other)?);
            Ok(Some(Self { uid: entry.pw_uid, gid: entry.pw_gid, groups }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_and_nobody_else_is_made_up() {
        let root = User::find("root").expect("readable").expect("there is a root");
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&0));
        assert_eq!(User::find("no-such-user-anywhere").expect("readable"), None);
    }
}
