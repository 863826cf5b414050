//! Plans, releases and their signers in words.

use cutover_core::{
    model::{Encoding, Manifest},
    plan::{Change, Plan as PlanDocument, PlanKind, Source, Step},
};

use crate::output;

/// A plan in words.
pub(super) fn describe(plan: &PlanDocument) -> String {
    let name = |release: &Option<cutover_core::model::ReleaseRef>| {
        release.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string)
    };
    let mut lines = vec![format!(
        "{} {} -> {}, layout {}",
        match plan.kind {
            PlanKind::Update => "update",
            PlanKind::Rollback => "rollback",
        },
        name(&plan.from),
        name(&plan.to),
        plan.layout.name()
    )];
    lines.push(format!(
        "{} laid down anew, {} reused, {} must be free",
        output::bytes(plan.bytes.new),
        output::bytes(plan.bytes.reused),
        output::bytes(plan.bytes.need)
    ));
    lines.extend(plan.steps.iter().enumerate().map(|(index, step)| {
        format!("{:>2}. {:<14} {}", index + 1, step.name(), describe_step(step)).trim_end().to_owned()
    }));
    lines.join("\n")
}

fn describe_step(step: &Step) -> String {
    match step {
        Step::Stage(stage) => {
            let count =
                |which: fn(&Source) -> bool| stage.files.iter().filter(|file| which(&file.source)).count();
            let parts = [
                (count(|source| matches!(source, Source::Bundle)), "from the bundle"),
                (count(|source| matches!(source, Source::Present { .. })), "from the present release"),
                (count(|source| matches!(source, Source::Store)), "from the store"),
                (count(|source| matches!(source, Source::RestorePoint { .. })), "from restore points"),
                (stage.symlinks.len(), "symbolic links"),
                (stage.shared.len(), "shared"),
            ];
            let parts: Vec<String> = parts
                .iter()
                .filter(|(count, _)| *count > 0)
                .map(|(count, what)| format!("{count} {what}"))
                .collect();
            parts.join(", ")
        }
        Step::CheckTree(check) => format!("{} files of restore point {}", check.files.len(), check.point),
        Step::RestorePoint { id } => id.to_string(),
        Step::Expand(expand) => {
            let count = expand.migrations.len();
            format!(
                "to schema version {}, {count} migration{}",
                expand.version,
                if count == 1 { "" } else { "s" }
            )
        }
        Step::Switch(switch) if !switch.changes.is_empty() => {
            let count =
                |which: fn(&Change) -> bool| switch.changes.iter().filter(|change| which(change)).count();
            format!(
                "{} files, {} links, {} removals",
                count(|change| matches!(change, Change::Put { .. })),
                count(|change| matches!(change, Change::Link { .. })),
                count(|change| matches!(change, Change::Remove { .. }))
            )
        }
        Step::Switch(_) | Step::Quiesce | Step::Activate | Step::Probe | Step::Confirm => String::new(),
    }
}

/// Prints a line about who signed.
pub(super) fn tell_signer(signer: &cutover_bundle::SignedBy) {
    output::line(format!(
        "signed by {}, issued by {}, serial {}",
        output::printable(&signer.subject),
        output::printable(&signer.issuer),
        signer.serial
    ));
}

/// Who signed, for machines.
pub(super) fn signer_json(signer: &cutover_bundle::SignedBy) -> serde_json::Value {
    serde_json::json!({
        "subject": signer.subject,
        "issuer": signer.issuer,
        "serial": signer.serial,
        "not_after": signer.not_after,
        "key_sha256": signer.key_sha256,
    })
}

/// What a release is, in a few lines.
pub(super) fn summary(manifest: &Manifest) -> String {
    let packed = manifest.objects.iter().filter(|object| object.encoding == Encoding::Zstd).count();
    format!(
        "release   {} {}\nplatform  {}\nchannel   {}\nreleased  {}\nfiles     {}, {}\nobjects   {}, {} compressed, {}",
        manifest.package,
        manifest.version,
        manifest.platform,
        manifest.channel,
        manifest.released_at,
        manifest.files.len(),
        output::bytes(manifest.total_bytes()),
        manifest.objects.len(),
        packed,
        output::bytes(manifest.payload_bytes()),
    )
}

/// One line of a summary.
pub(super) fn summary_line(what: &str, value: &str) -> String {
    format!("{what:<9} {value}")
}
