//! Opening bundles and deltas, for whoever looks at them, publishes or installs them.

use std::{fs::File, io, path::Path};

use cutover_bundle::{Bundle as OpenBundle, DeltaBundle, Limits, VerifiedBundle, delta::DeltaLimits};
use cutover_core::model::{Instant, Manifest, ObjectEntry};
use cutover_host::{delta_payload::DeltaPayload, payload::Payload};

use super::{documents, trust};
use crate::{exit::Exit, failure::Failure, settings::Settings};

/// A bundle that this program's anchor vouches for.
pub(super) type Verified = VerifiedBundle<File>;

/// A file that an update comes from; this program's anchor vouches for it.
pub(super) enum FromFile {
    /// A bundle that holds everything.
    Full(Verified),
    /// A delta, perhaps with a full bundle to fall back to.
    Delta(DeltaPayload<File>),
}

/// Opens a bundle and believes nothing of it.
///
/// # Errors
/// The file cannot be opened, or is no bundle that holds everything.
pub(super) fn open(path: &Path) -> Result<OpenBundle<File>, Failure> {
    let file = File::open(path).map_err(|source| Failure::io("open the bundle", path, source))?;
    if DeltaBundle::is_one(&file).map_err(|source| Failure::io("read", path, source))? {
        return Err(Failure::usage(format!(
            "`{}` is a delta bundle; give the full bundle of that release",
            path.display()
        )));
    }
    OpenBundle::open(file, &Limits::default())
        .map_err(|error| Failure::about(error, format!("cannot use `{}`", path.display())))
}

/// Opens a delta bundle and believes nothing of it; `None` when it is something else.
///
/// # Errors
/// The file cannot be opened, or begins as a delta bundle and is none.
pub(super) fn open_delta(path: &Path) -> Result<Option<DeltaBundle<File>>, Failure> {
    let file = File::open(path).map_err(|source| Failure::io("open the bundle", path, source))?;
    if !DeltaBundle::is_one(&file).map_err(|source| Failure::io("read", path, source))? {
        return Ok(None);
    }
    DeltaBundle::open(file, &Limits::default())
        .map(Some)
        .map_err(|error| Failure::about(error, format!("cannot use `{}`", path.display())))
}

/// Opens a bundle and verifies its signature and manifest against this program's anchor.
///
/// # Errors
/// As a real installation: exit code 11, 13 or 16.
pub(super) fn open_verified(path: &Path, settings: &Settings, now: Instant) -> Result<Verified, Failure> {
    let anchor = trust::anchor()?;
    let lists = trust::revocation_lists(&settings.trust_policy)?;
    let verified = open(path)?.verify(&anchor, &lists, now).map_err(|error| {
        tracing::warn!(bundle = %path.display(), code = error.code(), %error, "bundle refused");
        Failure::about(error, format!("refused `{}`", path.display()))
    })?;
    check_policy(verified.manifest(), settings).map_err(|reason| {
        Failure::new(Exit::Policy, format!("refused `{}`: {reason}", path.display()))
            .hint("`cutover config show --origin` says where these settings come from")
    })?;
    let read = |object: &ObjectEntry| object_of(&verified, object);
    documents::judge(verified.manifest(), settings, &read)
        .map_err(|failure| documents::with_hint(failure, path))?;
    Ok(verified)
}

/// Reads an object of a release that lies here whole.
///
/// # Errors
/// It is not there, or not as declared.
pub(super) fn object_of(payload: &dyn Payload, object: &ObjectEntry) -> Result<Vec<u8>, Failure> {
    let mut content = Vec::new();
    payload.copy_object(object, &mut content, &mut io::sink())?;
    Ok(content)
}

/// Opens what an update comes from, a bundle or a delta with its full bundle, as [`open_verified`] does.
///
/// # Errors
/// As [`open_verified`]; or `full` is of another release, or not needed.
pub(super) fn open_update(
    path: &Path,
    full: Option<&Path>,
    settings: &Settings,
    now: Instant,
) -> Result<FromFile, Failure> {
    let Some(delta) = open_delta(path)? else {
        if full.is_some() {
            return Err(Failure::usage("--full is for delta bundles, and this bundle is full"));
        }
        return open_verified(path, settings, now).map(FromFile::Full);
    };
    let anchor = trust::anchor()?;
    let lists = trust::revocation_lists(&settings.trust_policy)?;
    let refused = || format!("refused `{}`", path.display());
    let verified = match full {
        Some(_) => delta.verify_cut_off(&anchor, &lists, now),
        None => delta.verify(&anchor, &lists, now),
    };
    let delta = verified.map_err(|error| {
        tracing::warn!(bundle = %path.display(), code = error.code(), %error, "delta bundle refused");
        Failure::about(error, refused())
    })?;
    check_policy(delta.verified_manifest().manifest(), settings)
        .map_err(|reason| Failure::new(Exit::Policy, format!("{}: {reason}", refused())))?;
    let full = full.map(|full| open_verified(full, settings, now)).transpose()?;
    let payload = DeltaPayload::new(delta, full, DeltaLimits::default())?;
    let read = |object: &ObjectEntry| object_of(&payload, object);
    documents::judge(payload.manifest(), settings, &read)
        .map_err(|failure| documents::with_hint(failure, path))?;
    Ok(FromFile::Delta(payload))
}

/// What the settings say about releases beyond their signature.
fn check_policy(manifest: &Manifest, settings: &Settings) -> Result<(), String> {
    if let Some(name) = &settings.package.name
        && *name != manifest.package
    {
        return Err(format!(
            "it is of package `{}`, and `package.name` allows `{name}` only",
            manifest.package
        ));
    }
    let channels = &settings.trust_policy.channels;
    if !channels.is_empty() && !channels.contains(&manifest.channel) {
        let allowed: Vec<&str> = channels.iter().map(cutover_core::model::Name::as_str).collect();
        return Err(format!(
            "it is of channel `{}`, and `trust-policy.channels` allows {} only",
            manifest.channel,
            allowed.join(", ")
        ));
    }
    Ok(())
}
