//! Exit codes of the errors of `cutover-migrate`.

use cutover_migrate::Error;

use super::Classify;
use crate::exit::Exit;

impl Classify for Error {
    fn exit(&self) -> Exit {
        match self {
            Self::File(_) | Self::Url(_) | Self::NoFile(_) | Self::Unknown(_) => Exit::Usage,
            Self::Refused(_)
            | Self::Edited { .. }
            | Self::OutOfOrder { .. }
            | Self::Unfinished(_)
            | Self::Phase { .. }
            | Self::Drift { .. }
            | Self::Plugin { .. }
            | Self::Locked(_) => Exit::Policy,
            Self::Held { .. } | Self::Fenced { .. } => Exit::InProgress,
            Self::History { .. } | Self::Damaged(_) => Exit::Damaged,
            // Nothing failed: somebody has to decide first.
            Self::Stopped { cause, .. } if matches!(**cause, Self::Locked(_)) => Exit::Policy,
            Self::Stopped { .. } => Exit::RestoreFailed,
            Self::Io { .. }
            | Self::Rejected { .. }
            | Self::Differs { .. }
            | Self::Custom { .. }
            | Self::Deadline { .. }
            | Self::Cancelled
            | Self::Sql(_)
            | Self::RolledBack { .. } => Exit::Failed,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Refused(refusals) | Self::Locked(refusals) => {
                return refusals.iter().map(|refusal| refusal.way_out.clone()).collect();
            }
            Self::Edited { id, .. } => format!(
                "restore the file as it was applied; or accept it without running it: `cutover schema rebaseline FILE --reason ..` for `{id}`"
            ),
            Self::OutOfOrder { .. } => {
                "apply the migrations in between first, or set `after` to the last one applied".to_owned()
            }
            Self::Unfinished(id) => format!(
                "finish `{id}` with `cutover schema apply`, or undo it with `cutover schema rollback {id}`"
            ),
            Self::NoFile(_) => "check the path; a new database begins with an empty file".to_owned(),
            Self::Held { .. } => "wait for it, or look at it with `cutover schema status`".to_owned(),
            Self::Fenced { .. } => "look at what the other one does with `cutover schema status`".to_owned(),
            Self::Plugin { .. } => {
                "put the approved program back; or roll the migration back, and approve the plan with the new one"
                    .to_owned()
            }
            Self::Drift { .. } => "look at `cutover schema plan` again and approve the new plan".to_owned(),
            Self::History { .. } => {
                "somebody wrote to the tables of state, or the database is an older copy: compare with a backup before you \
                 migrate again; where the copy is meant, remove the kept head (`schema.head_file`, or \
                 `.cutover/schema-head.json` in the root)"
                    .to_owned()
            }
            Self::Stopped { cause, .. } if matches!(**cause, Self::Locked(_)) => return cause.hints(),
            Self::Stopped { id, .. } => format!(
                "`cutover schema apply` tries again from where it stopped, `cutover schema rollback {id}` undoes it"
            ),
            Self::Rejected { .. } => {
                "mend these rows, or give `up` and `down` expressions that map them".to_owned()
            }
            Self::RolledBack { cause, .. } => return cause.hints(),
            Self::Url(_) => "a database is written `sqlite:PATH` or `postgres://USER@HOST/NAME`".to_owned(),
            Self::Unknown(_) => "`cutover schema status` lists the migrations".to_owned(),
            _ => return Vec::new(),
        };
        vec![hint]
    }
}
