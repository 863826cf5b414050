//! The runtime behind calls that block.

use std::{io, ops::Deref};

use tokio::runtime::{Builder, Runtime};

/// One thread for the network. May be let go of anywhere, also among tasks of another runtime.
pub(crate) struct Background(Option<Runtime>);

impl Background {
    pub(crate) fn start() -> io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("s3").enable_all().build().map(|runtime| Self(Some(runtime)))
    }
}

impl Deref for Background {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
