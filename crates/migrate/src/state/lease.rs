//! Who may migrate: one lease, with an epoch that only grows, by the database's clock.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{clock_ms, sql::Sql, table};
use crate::error::Error;

/// The name of this process as a holder: machine and where processes are counted on it, boot, process and its start, so that a
/// holder that is dead on this very machine is known to be, and a number so that two migrators of one process differ.
pub fn owner() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let pid = std::process::id();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{}/{}/{pid}/{}/{number}", host(), boot(), start_of(pid).unwrap_or(0))
}

/// As [`owner`], for a run of a migration.
pub fn owner_for(migration: &str) -> String {
    format!("{}/{migration}", owner())
}

/// Whether a holder runs this migration.
pub fn runs(owner: &str, migration: &str) -> bool {
    owner.splitn(6, '/').nth(5) == Some(migration)
}

/// Whether a holder certainly lives no more: a process of this machine and boot that is gone.
fn is_gone(owner: &str) -> bool {
    let parts: Vec<&str> = owner.splitn(6, '/').collect();
    let [host_, boot_, pid, start, ..] = parts[..] else { return false };
    if host_ != host() || boot_ != boot() || boot_ == "?" {
        return false;
    }
    match pid.parse::<u32>() {
        Ok(pid) => start_of(pid).map(|start| start.to_string()).as_deref() != Some(start),
        Err(_) => false,
    }
}

fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // A container with the machine's name counts its processes for itself (pid_namespaces(7)).
    let processes = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", name.trim(), processes.display()).replace('/', "_")
}

fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if id.trim().is_empty() { "?".to_owned() } else { id.trim().chars().take(8).collect() }
}

/// When a process started, in clock ticks since the boot (proc(5), field 22 of `stat`). `None` when there is no such process,
/// or when it is dead and only waited for (state `Z` or `X`).
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    match fields.first() {
        Some(&"Z" | &"X") | None => None,
        Some(_) => fields.get(19)?.parse().ok(),
    }
}

/// Takes the lease and returns its epoch. Call it in a transaction.
///
/// # Errors
/// [`Error::Held`] while somebody else has it.
pub fn acquire(sql: &mut dyn Sql, owner: &str, ttl_ms: u64) -> Result<u64, Error> {
    let lease = table(sql.dialect(), "lease");
    let insert = format!(
        "INSERT INTO {lease} (one, owner, epoch, expires_ms) VALUES (1, '', 0, 0) ON CONFLICT DO NOTHING"
    );
    sql.execute(&insert, &[])?;
    let lock = match sql.dialect() {
        crate::ir::Dialect::Postgres => " FOR UPDATE",
        crate::ir::Dialect::Sqlite => "",
    };
    let rows =
        sql.query(&format!("SELECT owner, epoch, expires_ms FROM {lease} WHERE one = 1{lock}"), &[])?;
    let row = rows.first().ok_or_else(|| Error::Damaged("the lease has no row".to_owned()))?;
    let (holder, epoch, expires) = (row[0].text()?.to_owned(), row[1].integer()?, row[2].integer()?);
    let now = clock_ms(sql)?;
    if expires > now && holder != owner && !is_gone(&holder) {
        let seconds = u64::try_from(expires - now).unwrap_or(0).div_ceil(1000);
        return Err(Error::Held { owner: holder, seconds });
    }
    let epoch = u64::try_from(epoch).unwrap_or(0) + 1;
    let expires = now + i64::try_from(ttl_ms).unwrap_or(i64::MAX / 2);
    let update = format!("UPDATE {lease} SET owner = $1, epoch = $2, expires_ms = $3 WHERE one = 1");
    sql.execute(&update, &[owner.into(), epoch.into(), expires.into()])?;
    Ok(epoch)
}

/// Prolongs the lease. One that was given back stays given back: whoever renews it by the clock may be a moment late.
///
/// # Errors
/// [`Error::Fenced`] when it is no longer ours.
pub fn renew(sql: &mut dyn Sql, epoch: u64, ttl_ms: u64) -> Result<(), Error> {
    let expires = clock_ms(sql)? + i64::try_from(ttl_ms).unwrap_or(i64::MAX / 2);
    let update = format!(
        "UPDATE {} SET expires_ms = $1 WHERE one = 1 AND epoch = $2 AND expires_ms > 0",
        table(sql.dialect(), "lease")
    );
    match sql.execute(&update, &[expires.into(), epoch.into()])? {
        0 => Err(Error::Fenced { epoch }),
        _ => Ok(()),
    }
}

/// Gives the lease back. One that was taken over is left alone.
///
/// # Errors
/// What the database says.
pub fn release(sql: &mut dyn Sql, epoch: u64) -> Result<(), Error> {
    let update =
        format!("UPDATE {} SET expires_ms = 0 WHERE one = 1 AND epoch = $1", table(sql.dialect(), "lease"));
    sql.execute(&update, &[epoch.into()])?;
    Ok(())
}

/// Who holds the lease now, if anybody does.
///
/// # Errors
/// What the database says.
pub fn holder(sql: &mut dyn Sql) -> Result<Option<String>, Error> {
    let now = clock_ms(sql)?;
    let query = format!("SELECT owner, expires_ms FROM {} WHERE one = 1", table(sql.dialect(), "lease"));
    let Some(row) = sql.query(&query, &[])?.into_iter().next() else { return Ok(None) };
    let owner = row[0].text()?.to_owned();
    Ok((row[1].integer()? > now && !is_gone(&owner)).then_some(owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn living_holder_is_not_gone_and_a_dead_one_is() {
        let me = owner();
        assert!(!is_gone(&me));
        assert_ne!(me, owner());
        let run = owner_for("0001_a/b");
        assert!(!is_gone(&run) && runs(&run, "0001_a/b"));
        assert!(!runs(&run, "0001_a") && !runs(&me, "0001_a/b"));
        let mut parts: Vec<&str> = me.split('/').collect();
        parts[3] = "1";
        assert!(is_gone(&parts.join("/")), "the number was given to another process");
        parts[0] = "elsewhere";
        assert!(!is_gone(&parts.join("/")), "nobody knows what lives on another machine");
    }
}
