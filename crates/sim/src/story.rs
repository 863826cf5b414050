//! Stories: what a machine went through, and what it does while things go wrong.

use std::sync::Arc;

use cutover_core::{
    plan::{Layout, LocalChanges, RollbackTarget},
    retain::Retention,
};
use cutover_host::{node::Edited, probe::ProbeOutcome};

use crate::{
    Action, Ended, Faults, FileSystem, Machine, Options, Reflinks,
    release::releases,
    state::{Visible, tree_path},
};

/// One story. Its name and a layout say everything about it.
#[derive(Clone, Debug)]
pub struct Story {
    /// What it is called.
    pub name: &'static str,
    /// What happened before, without faults.
    pub before: Vec<Action>,
    /// What is damaged then.
    pub damage: Damage,
    /// What happens while things go wrong.
    pub action: Action,
    /// The release whose probe fails.
    pub probe_fails: Option<usize>,
    /// Whether the file system shares extents.
    pub reflinks: Reflinks,
}

/// What is damaged before the action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Nothing.
    None,
    /// Files of the present tree are overwritten in place, removed, and given other modes.
    Present,
    /// A file of the tree that the newest restore point leads to is overwritten in place.
    Kept,
    /// The catalog is lost.
    Catalog,
}

/// Every story.
pub fn stories() -> Vec<Story> {
    use Action::{Prune, Repair, Rollback, Update};
    let story = |name, before: &[Action], action: Action| Story {
        name,
        before: before.to_vec(),
        damage: Damage::None,
        action,
        probe_fails: None,
        reflinks: Reflinks::Unsupported,
    };
    let point = |id: &str| RollbackTarget::Point(id.parse().expect("an id"));
    let keep = |keep, warm| Retention { keep, warm, ..Retention::default() };
    let first_three = [Update(0), Update(1), Update(2)];
    vec![
        story("first-install", &[], Update(0)),
        Story { probe_fails: Some(0), ..story("failing-first-install", &[], Update(0)) },
        story("update", &[Update(0)], Update(1)),
        story("second-update", &[Update(0), Update(1)], Update(2)),
        Story { reflinks: Reflinks::Supported, ..story("update-with-reflinks", &[Update(0)], Update(1)) },
        Story { damage: Damage::Present, ..story("update-over-damage", &[Update(0)], Update(1)) },
        Story {
            damage: Damage::Catalog,
            ..story("update-without-catalog", &[Update(0), Update(1)], Update(2))
        },
        Story { probe_fails: Some(1), ..story("failing-probe", &[Update(0)], Update(1)) },
        story("rollback", &[Update(0), Update(1)], Rollback(RollbackTarget::Newest)),
        story("rollback-to-older", &first_three, Rollback(point("000002"))),
        story("rollback-to-nothing", &[Update(0)], Rollback(RollbackTarget::Newest)),
        Story {
            damage: Damage::Kept,
            ..story("rollback-to-damaged", &[Update(0), Update(1)], Rollback(RollbackTarget::Newest))
        },
        story(
            "rollback-to-cold",
            &[Update(0), Update(1), Update(2), Prune(keep(3, 1))],
            Rollback(point("000002")),
        ),
        Story {
            probe_fails: Some(0),
            ..story("failing-rollback", &[Update(0), Update(1)], Rollback(RollbackTarget::Newest))
        },
        story("update-after-rollback", &[Update(0), Update(1), Rollback(RollbackTarget::Newest)], Update(2)),
        story("prune", &first_three, Prune(keep(1, 1))),
        story("prune-to-cold", &first_three, Prune(keep(3, 1))),
        Story { damage: Damage::Present, ..story("repair", &[Update(0), Update(1)], Repair(Edited::Keep)) },
    ]
}

/// The story of this name.
pub fn story(name: &str) -> Option<Story> {
    stories().into_iter().find(|story| story.name == name)
}

impl Story {
    /// The machine as it is before the action.
    ///
    /// # Errors
    /// What did not go as it should, though nothing was broken yet.
    pub fn prepare(&self, layout: Layout) -> Result<Machine, String> {
        let options = Options { reflinks: self.reflinks, ..Options::default() };
        let mut machine = Machine::new(layout, options);
        machine.fs.put("FOREIGN", b"not ours", 0o640).map_err(|error| error.to_string())?;
        for action in &self.before {
            let life = machine.run(action, Faults::none());
            if !succeeded(&life.ended) {
                return Err(format!("{action:?} failed before anything was broken: {:?}", life.ended));
            }
            // What an operator does with a shared file, between two updates.
            let site = match layout {
                Layout::Versioned | Layout::Exchange => "shared/etc/site.conf",
                Layout::InPlace => "etc/site.conf",
            };
            if machine.fs.read_file(site).is_some_and(|bytes| bytes == b"site = default") {
                machine.fs.put(site, b"site = edited", 0o600).map_err(|error| error.to_string())?;
            }
        }
        self.damage(&mut machine)?;
        if let Some(failing) = self.probe_fails {
            let failing = releases()[failing].spec.version.to_owned();
            machine.verdicts = Arc::new(move |release| {
                if release.version.to_string() == failing {
                    ProbeOutcome::Failed
                } else {
                    ProbeOutcome::Passed
                }
            });
        }
        // A clean shutdown: everything that happened so far is on disk.
        machine.fs = settled(&machine.fs);
        Ok(machine)
    }

    fn damage(&self, machine: &mut Machine) -> Result<(), String> {
        let describe = |error: std::io::Error| error.to_string();
        match self.damage {
            Damage::None => Ok(()),
            Damage::Catalog => {
                machine.lose_catalog();
                Ok(())
            }
            Damage::Present => {
                machine.local_changes = LocalChanges::Replace;
                let tree = Visible::of(&machine.fs, machine.layout).path.ok_or("nothing is installed")?;
                let at = |path: &str| tree_path(&tree, path);
                machine.fs.put(at("share/data"), b"rotten", 0o644).map_err(describe)?;
                machine.fs.put(at("bin/app"), b"app ???", 0o755).map_err(describe)?;
                machine.fs.put(at("lib/same.so"), &[7; 5000], 0o777).map_err(describe)?;
                machine.fs.remove(at("share/same")).map_err(describe)
            }
            Damage::Kept => {
                let kept = match machine.layout {
                    Layout::Versioned | Layout::Exchange => format!("releases/{}", releases()[0].name()),
                    // An in-place restore point that was damaged is refused; that is a test of its own.
                    Layout::InPlace => return Ok(()),
                };
                machine.fs.put(format!("{kept}/share/data"), b"rotten", 0o644).map_err(describe)
            }
        }
    }
}

/// Everything written back, as after a clean shutdown.
fn settled(fs: &FileSystem) -> FileSystem {
    fs.after_power_cut(2)
}

/// Whether it did what it was asked to.
pub(crate) fn succeeded(ended: &Ended) -> bool {
    match ended {
        Ended::Executed(report) => report.outcome == cutover_core::execute::Outcome::Confirmed,
        Ended::Nothing | Ended::Pruned(_) | Ended::Repaired(_) => true,
        Ended::Refused(_) | Ended::Failed(_) => false,
    }
}
