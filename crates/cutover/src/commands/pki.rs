//! `pki init`, `pki issue`, `pki revoke`: keys are made readable by their owner only, and never replaced.

use std::path::{Path, PathBuf};

use cutover_bundle::{
    TrustAnchor,
    pki::{Authority, Issued, Validity},
};
use cutover_core::model::{Instant, Name};
use zeroize::Zeroizing;

use crate::{
    args::Pki,
    commands::Context,
    exit::Exit,
    failure::Failure,
    files::{self, Existing},
    output::{self, Form},
};

const SIGNER: &str = "signer";

pub(super) fn run(command: Pki, context: &Context) -> Result<Exit, Failure> {
    let written = match command {
        Pki::Init { dir, org, root_days, days } => init(&dir, &org, root_days, days, context.now)?,
        Pki::Issue { dir, name, org, days } => {
            let file: Name = name
                .parse()
                .map_err(|error: cutover_core::model::IdError| Failure::usage(error.to_string()))?;
            let (root, validity) = (open(&dir)?, validity(context.now, days)?);
            must_not_outlive(&root, validity, context.now)?;
            let issued = root.issue_signer(&org, &name, validity)?;
            write_pair(&dir, file.as_str(), &issued.certificate_pem, &issued.key_pem)?
        }
        Pki::Revoke { dir, serials, number, days, output } => {
            let serials: Vec<&str> = serials.iter().map(String::as_str).collect();
            let list = open(&dir)?.revocation_list(&serials, number, validity(context.now, days)?)?;
            write(&output, 0o644, list.as_bytes(), Existing::Replace)?;
            vec![output]
        }
    };
    match context.form {
        Form::Json => {
            let written: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
            output::json(&serde_json::json!({ "written": written }))?;
        }
        Form::Text => written.iter().for_each(|path| output::line(path.display().to_string())),
    }
    Ok(Exit::Done)
}

fn init(dir: &Path, org: &str, root_days: u32, days: u32, now: Instant) -> Result<Vec<PathBuf>, Failure> {
    for name in ["root.pem", "root.key", "signer.pem", "signer.key"] {
        if dir.join(name).exists() {
            return Err(Failure::usage(format!("`{}` is there already", dir.join(name).display())).hint(
                "choose another directory; `cutover pki issue` makes another signer for a PKI that is whole",
            ));
        }
    }
    files::make_directory(dir, 0o700)?;
    let root = Authority::root(org, validity(now, root_days)?)?;
    let Issued { certificate_pem, key_pem } =
        root.issue_signer(org, "Release Signer", validity(now, days.min(root_days))?)?;
    let mut written = write_pair(dir, "root", root.certificate_pem(), root.key_pem())?;
    written.extend(write_pair(dir, SIGNER, &certificate_pem, &key_pem)?);
    Ok(written)
}

/// A certificate counts no longer than its root, whatever it says.
///
/// # Errors
/// It would say more than that.
fn must_not_outlive(root: &Authority, signer: Validity, now: Instant) -> Result<(), Failure> {
    let anchor = TrustAnchor::parse(root.certificate_pem().as_bytes())?;
    let Some(end) = anchor.describe().iter().map(|root| root.not_after).min() else { return Ok(()) };
    if signer.not_after <= end {
        return Ok(());
    }
    let hint = match (end.unix() - now.unix()) / 86_400 {
        days @ 1.. => format!("pass --days {days}, or less"),
        _ => "make a new root with `cutover pki init`, and programs that trust it".to_owned(),
    };
    Err(Failure::usage(format!("the certificate would outlive its root, which ends at {end}")).hint(hint))
}

fn validity(now: Instant, days: u32) -> Result<Validity, Failure> {
    Validity::days_from(now, days).ok_or_else(|| Failure::usage(format!("{days} days is no validity")))
}

fn open(dir: &Path) -> Result<Authority, Failure> {
    let text = |name: &str| {
        let bytes = files::read("the authority's file", &dir.join(name))?;
        String::from_utf8(bytes)
            .map(Zeroizing::new)
            .map_err(|_| Failure::usage(format!("`{}` is not PEM", dir.join(name).display())))
    };
    Ok(Authority::from_pem(&text("root.pem")?, &text("root.key")?)?)
}

fn write_pair(dir: &Path, name: &str, certificate: &str, key: &str) -> Result<Vec<PathBuf>, Failure> {
    let (certificate_path, key_path) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    if certificate_path.exists() {
        return Err(Failure::usage(format!("`{}` is there already", certificate_path.display()))
            .hint("choose another name, or move the file away"));
    }
    write(&key_path, 0o600, key.as_bytes(), Existing::Keep)?;
    write(&certificate_path, 0o644, certificate.as_bytes(), Existing::Keep)?;
    Ok(vec![certificate_path, key_path])
}

fn write(path: &Path, mode: u32, bytes: &[u8], existing: Existing) -> Result<(), Failure> {
    files::write(path, mode, existing, |out| {
        out.write_all(bytes).map_err(|source| Failure::io("write", path, source))
    })
}
