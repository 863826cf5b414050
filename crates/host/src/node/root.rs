//! One root: what it stands on, the right to change it, and what it keeps open.
//!
//! Read [`Node`] first. What can be done with a root is beside this: `observe`, `execute`, `recover`, `status`, `verify`,
//! `prune`, `sets`.

use std::{
    collections::BTreeMap,
    io,
    num::NonZeroUsize,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use cutover_core::{
    model::{Name, Version},
    plan::{Installed, Layout},
};

use super::{
    current,
    error::NodeError,
    files::{Attempt as _, Files},
    history, place,
    state_log::StateLog,
    tree::Hashes,
};
use crate::{
    catalog::{CATALOG_PATH, Catalog, CatalogError, Filling},
    clock::Clock,
    disk::{Disk, Locked},
    nice::Nice,
};

/// One root.
pub struct Node {
    pub(super) files: Files,
    pub(super) ports: NodePorts,
    pub(super) options: NodeOptions,
    pub(super) hashes: Hashes,
    catalog: Mutex<Option<Arc<Catalog>>>,
    /// Whether a lock that was taken here is held.
    locked: Arc<AtomicBool>,
}

impl Node {
    /// Takes a look at a root. Writes nothing: a root is made by the first [`Node::lock`].
    ///
    /// # Errors
    /// [`NodeError::Layout`] or damaged state.
    pub fn open(ports: NodePorts, options: NodeOptions) -> Result<Self, NodeError> {
        let files = Files::new(Arc::clone(&ports.disk), options.threads, options.nice);
        if let (Some(present), Some(wanted)) = (current::layout(&files)?, options.layout)
            && present != wanted
        {
            return Err(NodeError::Layout { present, wanted });
        }
        let (hashes, catalog, locked) = (Hashes::default(), Mutex::default(), Arc::default());
        Ok(Self { files, ports, options, hashes, catalog, locked })
    }

    /// Takes the lock, making `.cutover` on first use. Every method that changes something needs it.
    ///
    /// # Errors
    /// [`NodeError::AlreadyRunning`], or the lock file cannot be made.
    pub fn lock(&self) -> Result<NodeLock, NodeError> {
        let files = &self.files;
        files.ensure_dir(place::META.as_ref(), 0o700)?;
        let lock = self.hold()?;
        // The layout is written last: a root that has one is whole.
        if current::layout(files)?.is_none() {
            for directory in place::DIRECTORIES {
                files.ensure_dir(directory.as_ref(), 0o700)?;
            }
            // Durable before it: a power cut may keep a later name and lose an earlier one.
            files.sync_dir(place::META.as_ref())?;
            files.sync_dir(Path::new(""))?;
            current::set_layout(files, self.options.layout.unwrap_or_default())?;
        }
        Ok(lock)
    }

    fn hold(&self) -> Result<NodeLock, NodeError> {
        match self.files.disk.lock(place::LOCK.as_ref(), &self.options.holder).attempt("lock", place::LOCK)? {
            Locked::Taken(guard) => {
                // Whoever had the lock before may have put another in its place.
                *self.catalog.lock().expect("no holder panics") = None;
                self.locked.store(true, Ordering::Release);
                Ok(NodeLock { _guard: guard, locked: Arc::clone(&self.locked) })
            }
            Locked::Held { note } => Err(NodeError::AlreadyRunning { holder: note }),
        }
    }

    /// Removes what a first use left that died before the root had a layout, without choosing one. To be called instead
    /// of [`Node::lock`] and [`Node::recover`] when there is none.
    ///
    /// # Errors
    /// [`NodeError::AlreadyRunning`], or it cannot be removed.
    pub fn forget_first_use(&self) -> Result<(), NodeError> {
        let files = &self.files;
        if files.exists(place::LAYOUT_NEW.as_ref())? {
            let _lock = self.hold()?;
            files.remove_file(place::LAYOUT_NEW.as_ref())?;
            files.sync_dir(place::META.as_ref())?;
        }
        Ok(())
    }

    /// The time.
    pub(super) fn clock(&self) -> &dyn Clock {
        self.ports.clock.as_ref()
    }

    /// The layout of the root, or the one it will get.
    pub(super) fn layout(&self) -> Result<Layout, NodeError> {
        Ok(current::layout(&self.files)?.or(self.options.layout).unwrap_or_default())
    }

    /// The release that is current, with its manifest.
    pub(super) fn installed(&self, layout: Layout) -> Result<Option<Installed>, NodeError> {
        let Some(release) = current::release(&self.files, layout)? else { return Ok(None) };
        let manifest = current::manifest_of(&self.files, &release)?;
        Ok(Some(Installed { release, manifest }))
    }

    /// The catalog, opened at the first need. With the lock, one that was damaged is moved aside and filled again; without it
    /// nothing is written, because somebody else may do just that.
    pub(super) fn catalog(&self) -> Result<Arc<Catalog>, NodeError> {
        let mut held = self.catalog.lock().expect("no holder panics");
        if let Some(catalog) = &*held {
            return Ok(Arc::clone(catalog));
        }
        let disk = self.files.disk.as_ref();
        let fill = |filling: &Filling<'_>| {
            let source = |error: NodeError| CatalogError::Io {
                attempt: "fill the tables",
                source: io::Error::other(error),
            };
            history::fill(&self.files, filling).map_err(source)
        };
        let catalog = match &self.ports.catalog {
            CatalogPort::Shared(catalog) => Arc::clone(catalog),
            CatalogPort::OnDisk if self.locked.load(Ordering::Acquire) => {
                let opened = Catalog::open(disk, &fill)?;
                if let Some(aside) = &opened.moved_aside {
                    tracing::warn!(%aside, "the catalog was damaged, is moved aside and filled again");
                }
                Arc::new(opened.catalog)
            }
            CatalogPort::OnDisk => match Catalog::open_made(disk)? {
                Some(catalog) => Arc::new(catalog),
                None => {
                    tracing::warn!(
                        "the catalog is damaged or not made yet; what lies on disk is read instead"
                    );
                    return Ok(Arc::new(Catalog::filled(&fill)?));
                }
            },
        };
        self.hashes.load(|take| catalog.fingerprints(take))?;
        *held = Some(Arc::clone(&catalog));
        Ok(catalog)
    }

    /// The catalog unless there is none yet: what only reads does not make one.
    pub(super) fn catalog_if_any(&self) -> Result<Option<Arc<Catalog>>, NodeError> {
        let shared = matches!(self.ports.catalog, CatalogPort::Shared(_));
        if shared || self.files.exists(CATALOG_PATH.as_ref())? { self.catalog().map(Some) } else { Ok(None) }
    }

    /// The state log, open for changes.
    ///
    /// # Errors
    /// It cannot be read or repaired.
    pub fn state_log(&self, _lock: &NodeLock) -> Result<StateLog<'_>, NodeError> {
        Ok(StateLog::open(&self.files, self.clock())?)
    }
}

/// The right to change a root: only one process has it. Freed when dropped, or by the kernel when the process dies.
pub struct NodeLock {
    _guard: Box<dyn std::any::Any + Send + Sync>,
    locked: Arc<AtomicBool>,
}

impl Drop for NodeLock {
    fn drop(&mut self) {
        self.locked.store(false, Ordering::Release);
    }
}

/// Where the catalog is.
#[derive(Clone, Default)]
pub enum CatalogPort {
    /// In `.cutover/catalog.db`, opened when it is first needed.
    #[default]
    OnDisk,
    /// Here: the simulation's.
    Shared(Arc<Catalog>),
}

/// What a node stands on.
#[derive(Clone)]
pub struct NodePorts {
    /// The root directory.
    pub disk: Arc<dyn Disk>,
    /// Its catalog.
    pub catalog: CatalogPort,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// The operator's choices about a root.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The layout for the first use; `None` takes what the root has, or `versioned`.
    pub layout: Option<Layout>,
    /// Other packages of this host, for requirements and conflicts.
    pub packages: BTreeMap<Name, Version>,
    /// Threads that lay down and hash files. The simulation uses one, so that the order of effects is always the same.
    pub threads: NonZeroUsize,
    /// How far these threads give way to others.
    pub nice: Nice,
    /// What the lock says about its holder, such as `pid 4711`.
    pub holder: String,
}

impl Default for NodeOptions {
    /// Any layout, no other packages, as many threads as there are processors up to four.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
        Self {
            layout: None,
            packages: BTreeMap::new(),
            threads: NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN),
            nice: Nice::NONE,
            holder: format!("pid {}", std::process::id()),
        }
    }
}
