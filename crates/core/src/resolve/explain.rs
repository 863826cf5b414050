//! PubGrub's reasons in sentences: why packages that could be had one by one cannot be had together.
//!
//! PubGrub leaves a graph of what follows from what; its report is as long as the graph. Everything here takes time and memory in
//! proportion to it.

use std::{collections::BTreeMap, sync::Arc};

use pubgrub::{DefaultStringReporter, DerivationTree, Derived, External, Reporter as _};

use super::{
    node::{Package, Range},
    ruled::abridged,
};

type Tree = DerivationTree<Package, Range, String>;

/// Says why no set of versions satisfies everybody.
pub(super) fn explain(tree: Tree) -> String {
    let tree = without_absent_versions(&Arc::new(tree), &mut BTreeMap::new());
    // How a range says that a package has to be there, and which version the host has.
    let report = DefaultStringReporter::report(&tree).replace(">absent, <", "<").replace(" >absent", "");
    let report = report.replace("this host absent", "this host");
    abridged(&report.lines().map(str::to_owned).collect::<Vec<_>>())
}

/// The graph without "there is no version of it in this range" where that only makes another cause wider. What is shared stays
/// shared, unlike with PubGrub's own function for this, which takes time and memory for every path through the graph.
fn without_absent_versions(tree: &Arc<Tree>, done: &mut BTreeMap<*const Tree, Arc<Tree>>) -> Arc<Tree> {
    let DerivationTree::Derived(derived) = tree.as_ref() else { return Arc::clone(tree) };
    if let Some(known) = done.get(&Arc::as_ptr(tree)) {
        return Arc::clone(known);
    }
    let (one, other) = (&derived.cause1, &derived.cause2);
    let absent = |cause: &Arc<Tree>| match cause.as_ref() {
        DerivationTree::External(External::NoVersions(package, range)) => {
            Some((package.clone(), range.clone()))
        }
        DerivationTree::External(_) | DerivationTree::Derived(_) => None,
    };
    let widened = match (absent(one), absent(other)) {
        (Some((package, range)), _) => widen(&without_absent_versions(other, done), &package, &range),
        (None, Some((package, range))) => widen(&without_absent_versions(one, done), &package, &range),
        (None, None) => None,
    };
    let new = widened.unwrap_or_else(|| {
        let (cause1, cause2) = (without_absent_versions(one, done), without_absent_versions(other, done));
        let (terms, shared_id) = (derived.terms.clone(), derived.shared_id);
        Arc::new(DerivationTree::Derived(Derived { terms, shared_id, cause1, cause2 }))
    });
    done.insert(Arc::as_ptr(tree), Arc::clone(&new));
    new
}

/// A cause that holds for these versions too, because there are none; `None` when it cannot be said so.
fn widen(cause: &Arc<Tree>, package: &Package, range: &Range) -> Option<Arc<Tree>> {
    match cause.as_ref() {
        DerivationTree::Derived(_) => Some(Arc::clone(cause)),
        DerivationTree::External(External::FromDependencyOf(by, by_range, on, on_range)) => {
            let (mut by_range, mut on_range) = (by_range.clone(), on_range.clone());
            let wider = if by == package { &mut by_range } else { &mut on_range };
            *wider = wider.union(range);
            let wider = External::FromDependencyOf(by.clone(), by_range, on.clone(), on_range);
            Some(Arc::new(DerivationTree::External(wider)))
        }
        DerivationTree::External(External::NotRoot(..) | External::NoVersions(..) | External::Custom(..)) => {
            None
        }
    }
}
