//! `trust embed`, `trust show`, and the anchor of this very program.

use std::fs::File;

use cutover_bundle::{
    RevocationLists, TrustAnchor,
    anchor::{self, RevocationPolicy},
};

use crate::{
    args::Trust,
    commands::Context,
    exit::Exit,
    failure::Failure,
    files::{self, Existing},
    output::{self, Form},
    settings::TrustPolicy,
};

pub(super) fn run(command: Trust, context: &Context) -> Result<Exit, Failure> {
    match command {
        Trust::Embed { anchor: path, threshold, require_crl, output } => {
            let text = files::read("the trust anchor", &path)?;
            let mut anchor = TrustAnchor::parse(&text)
                .map_err(|error| Failure::about(error, format!("`{}` is no trust anchor", path.display())))?;
            if let Some(threshold) = threshold {
                anchor = anchor
                    .with_threshold(threshold)
                    .ok_or_else(|| Failure::usage(format!("{threshold} is no threshold: use 1 to 8")))?;
            }
            if require_crl {
                anchor = anchor.with_revocation(RevocationPolicy::Required);
            }
            let this = this_program()?;
            files::write(&output, 0o755, Existing::Replace, |out| {
                anchor::stamp(&this, &anchor, out)
                    .map_err(|error| Failure::about(error, format!("failed to write `{}`", output.display())))
            })?;
            show(&anchor, context, Some(&output))?;
        }
        Trust::Show => match own_anchor()? {
            Some(anchor) => show(&anchor, context, None)?,
            None if context.form == Form::Json => {
                output::json(&serde_json::json!({ "anchor": null }))?;
            }
            None => output::line("this program trusts nobody: every release is refused"),
        },
    }
    Ok(Exit::Done)
}

fn show(anchor: &TrustAnchor, context: &Context, written: Option<&std::path::Path>) -> Result<(), Failure> {
    let authorities = anchor.describe();
    let required = anchor.revocation() == RevocationPolicy::Required;
    match context.form {
        Form::Json => output::json(&serde_json::json!({
            "anchor": {
                "authorities": authorities,
                "threshold": anchor.threshold(),
                "revocation": if required { "required" } else { "when-given" },
            },
            "written": written.map(|path| path.display().to_string()),
        })),
        Form::Text => {
            if let Some(path) = written {
                output::line(format!("{} trusts:", path.display()));
            }
            for authority in authorities {
                output::line(output::printable(&format!("authority  {}", authority.subject)));
                output::line(format!("sha256     {}", authority.sha256));
                output::line(format!("valid      {} to {}", authority.not_before, authority.not_after));
            }
            output::line(format!("signers    {} needed", anchor.threshold()));
            output::line(format!(
                "revocation {}",
                if required { "lists are required" } else { "lists are used when configured" }
            ));
            Ok(())
        }
    }
}

fn this_program() -> Result<File, Failure> {
    let path = std::path::Path::new("/proc/self/exe");
    File::open(path).map_err(|source| Failure::io("open this program", path, source))
}

pub(super) fn own_anchor() -> Result<Option<TrustAnchor>, Failure> {
    TrustAnchor::of_executable(&this_program()?)
        .map_err(|error| Failure::about(error, "this program's trust anchor cannot be used"))
}

/// This program's anchor.
///
/// # Errors
/// Exit code 11 when there is none.
pub(super) fn anchor() -> Result<TrustAnchor, Failure> {
    own_anchor()?.ok_or_else(|| {
        Failure::new(Exit::NotTrusted, "this program has no trust anchor, so it can trust no release").hint(
            "make one that trusts your root with `cutover trust embed --anchor ROOT.pem -o FILE`, and use that",
        )
    })
}

/// The configured revocation lists.
///
/// # Errors
/// A list that cannot be read: it might be the one that matters.
pub(super) fn revocation_lists(policy: &TrustPolicy) -> Result<RevocationLists, Failure> {
    let mut lists = RevocationLists::none();
    for path in &policy.crl {
        let refuse = |failure: Failure| {
            Failure::new(Exit::NotTrusted, format!("cannot use the revocation list `{}`", path.display()))
                .because(failure)
        };
        let bytes = files::read("the revocation list", path).map_err(refuse)?;
        lists.add(&bytes).map_err(|error| refuse(error.into()))?;
    }
    Ok(lists)
}
