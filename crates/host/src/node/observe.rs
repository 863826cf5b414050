//! Looking at a root: everything that a plan is made from.

use std::{collections::BTreeSet, path::PathBuf};

use cutover_core::{
    model::{Manifest, RestorePointId, SafePath, SeenTree},
    plan::{Layout, Observation, PointSeen, RollbackTarget},
};

use super::{
    current,
    error::{NodeError, PointError},
    journal,
    report::Observed,
    restore::{self, Target},
    root::Node,
    store::Store,
    tree::{self, Attributes},
};

/// The usable restore points in the order they were made, and the damaged ones.
type Points = (Vec<PointSeen>, Vec<(RestorePointId, PointError)>);

/// A restore point, or why it is of no use.
type Point = Result<PointSeen, (RestorePointId, PointError)>;

impl Node {
    /// Looks at the present tree at every path of the installed and the `wanted` manifest, and at the store. Without a wanted
    /// manifest, for a rollback to anywhere, the restore points are read too, all of them.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn observe(&self, wanted: Option<&Manifest>) -> Result<Observed, NodeError> {
        let layout = self.layout()?;
        let points = match (wanted, layout) {
            (None, _) => self.points(layout)?,
            // Their paths count, and nothing else.
            (Some(_), Layout::InPlace) => {
                let mut paths = BTreeSet::new();
                self.each_point(layout, Target::Check, |seen| {
                    paths.extend(seen.point.files.keys().chain(&seen.point.added).cloned());
                })?;
                return self.observe_with(layout, wanted, paths, (Vec::new(), Vec::new()));
            }
            (Some(_), Layout::Versioned | Layout::Exchange) => (Vec::new(), Vec::new()),
        };
        self.observe_with(layout, wanted, paths_of(layout, &points.0), points)
    }

    /// As [`Node::observe`], for a rollback to `target`: of the restore points only those are read that it depends on, and of
    /// these only those are held that a plan is made from.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn observe_for_rollback(&self, target: &RollbackTarget) -> Result<Observed, NodeError> {
        let layout = self.layout()?;
        let (mut points, mut damaged) = (Vec::new(), Vec::new());
        let oldest = match target {
            RollbackTarget::Newest => None,
            RollbackTarget::Point(id) => restore::number_of(id),
        };
        let depends = |number: &u64| oldest.is_none_or(|oldest| *number >= oldest);
        for (number, id) in
            restore::ids(&self.files)?.into_iter().rev().take_while(|(number, _)| depends(number))
        {
            match self.point(layout, number, id, Target::Read)? {
                Some(Ok(seen)) => {
                    // In place the way back leads over every one of them; the release is that of the target.
                    if layout != Layout::InPlace {
                        points.clear();
                    }
                    points.iter_mut().for_each(|newer: &mut PointSeen| newer.manifest = None);
                    points.push(seen);
                    if *target == RollbackTarget::Newest {
                        break;
                    }
                }
                Some(Err(error)) => damaged.push(error),
                None => {}
            }
        }
        points.reverse();
        damaged.reverse();
        self.observe_with(layout, None, paths_of(layout, &points), (points, damaged))
    }

    /// Looks at everything a plan depends on but the restore points, whose paths are `paths`.
    fn observe_with(
        &self,
        layout: Layout,
        wanted: Option<&Manifest>,
        mut paths: BTreeSet<SafePath>,
        (points, damaged): Points,
    ) -> Result<Observed, NodeError> {
        // It remembers digests.
        self.catalog_if_any()?;
        let installed = self.installed(layout)?;
        let manifests = installed.iter().map(|installed| installed.manifest.as_ref()).chain(wanted);
        for manifest in manifests {
            paths.extend(manifest.files.iter().map(|file| file.path.clone()));
            paths.extend(manifest.symlinks.iter().map(|link| link.path.clone()));
            if layout != Layout::InPlace {
                paths.extend(manifest.shared.iter().cloned());
            }
        }
        let (base, attributes) = match (layout, &installed) {
            (Layout::InPlace, _) => (Some(PathBuf::new()), Attributes::Read),
            (_, Some(installed)) => (Some(current::tree(layout, &installed.release)), Attributes::Ignore),
            (_, None) => (None, Attributes::Ignore),
        };
        let paths: Vec<SafePath> = paths.into_iter().collect();
        let seen = match base {
            Some(base) => tree::look(&self.files, &base, &paths, attributes, &self.hashes)?,
            None => SeenTree::new(),
        };
        let observation = Observation {
            layout,
            next_number: self.next_number()?,
            installed,
            seen,
            stored: Store::open(&self.files)?.digests(),
            packages: self.options.packages.clone(),
            copies: self.files.disk.copies(),
        };
        Ok(Observed { observation, points, damaged })
    }

    /// All restore points.
    pub(super) fn points(&self, layout: Layout) -> Result<Points, NodeError> {
        let mut points = Vec::new();
        let damaged = self.each_point(layout, Target::Read, |seen| points.push(seen))?;
        Ok((points, damaged))
    }

    /// Hands over the usable restore points in the order they were made, one at a time; returns the damaged ones.
    pub(super) fn each_point(
        &self,
        layout: Layout,
        target: Target,
        mut take: impl FnMut(PointSeen),
    ) -> Result<Vec<(RestorePointId, PointError)>, NodeError> {
        let mut damaged = Vec::new();
        for (number, id) in restore::ids(&self.files)? {
            match self.point(layout, number, id, target)? {
                Some(Ok(seen)) => take(seen),
                Some(Err(error)) => damaged.push(error),
                None => {}
            }
        }
        Ok(damaged)
    }

    /// One restore point, or why it is of no use; `None` for that of an execution that is not that far. One that has ended
    /// sealed its point, or the point is gone: what lies there without a seal is damage, and never passed over for an older one.
    fn point(
        &self,
        layout: Layout,
        number: u64,
        id: RestorePointId,
        target: Target,
    ) -> Result<Option<Point>, NodeError> {
        match restore::see(&self.files, layout, &id, target) {
            Ok(seen) => Ok(Some(Ok(seen))),
            Err(PointError::Unsealed(_)) if journal::end(&self.files, number)? == journal::End::Open => {
                Ok(None)
            }
            Err(error) => Ok(Some(Err((id, error)))),
        }
    }
}

/// The paths that restore points say something about; in the other layouts they are those of whole trees.
fn paths_of(layout: Layout, points: &[PointSeen]) -> BTreeSet<SafePath> {
    let points = points.iter().filter(|_| layout == Layout::InPlace);
    points.flat_map(|seen| seen.point.files.keys().chain(&seen.point.added)).cloned().collect()
}
