//! Signals as readable descriptors: SIGTERM and SIGINT stop, SIGHUP starts a newer program in our place.
//!
//! SIGCHLD only wakes us: which child has ended is asked elsewhere.
//! In the foreground of a terminal, SIGHUP means that the terminal is gone, and stops as well.

use std::{
    io::{self, IsTerminal as _},
    os::{fd::AsFd, unix::net::UnixStream},
};

use signal_hook::{
    SigId,
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM},
    low_level::{pipe, unregister},
};

pub(super) struct Signals {
    stop: UnixStream,
    renew: UnixStream,
    child: UnixStream,
    handlers: Vec<SigId>,
}

impl Signals {
    /// Takes over the signals, and lets them through in case they are blocked.
    pub(super) fn catch() -> io::Result<Self> {
        let (stop, stop_writer) = UnixStream::pair()?;
        let (renew, renew_writer) = UnixStream::pair()?;
        let (child, child_writer) = UnixStream::pair()?;
        stop.set_nonblocking(true)?;
        child.set_nonblocking(true)?;
        renew.set_nonblocking(true)?;
        let hang_up = if io::stdin().is_terminal() { stop_writer.try_clone()? } else { renew_writer };
        let handlers = vec![
            pipe::register(SIGTERM, stop_writer.try_clone()?)?,
            pipe::register(SIGINT, stop_writer)?,
            pipe::register(SIGHUP, hang_up)?,
            pipe::register(SIGCHLD, child_writer)?,
        ];
        super::spawn::unblock_signals();
        Ok(Self { stop, renew, child, handlers })
    }

    pub(super) fn stop(&self) -> impl AsFd {
        &self.stop
    }

    pub(super) fn renew(&self) -> impl AsFd {
        &self.renew
    }

    pub(super) fn child(&self) -> impl AsFd {
        &self.child
    }

    /// Forgets that SIGCHLD came.
    pub(super) fn take_children(&mut self) {
        take(&mut self.child);
    }

    /// How often SIGTERM or SIGINT came since the last call.
    pub(super) fn take_stops(&mut self) -> usize {
        take(&mut self.stop)
    }

    /// Holds signals back until [`super::spawn::unblock_signals`]; says how often SIGTERM or SIGINT came before since the last call.
    pub(super) fn hold_back(&mut self) -> usize {
        super::spawn::block_signals();
        self.take_stops()
    }

    /// How often SIGHUP came since the last call.
    pub(super) fn take_renews(&mut self) -> usize {
        take(&mut self.renew)
    }
}

fn take(stream: &mut UnixStream) -> usize {
    io::Read::read(stream, &mut [0; 16]).unwrap_or(0)
}

impl Drop for Signals {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            unregister(handler);
        }
    }
}

#[cfg(test)]
mod tests {
    use signal_hook::low_level::raise;

    use super::*;

    #[test]
    fn stop_that_came_before_signals_are_held_back_is_told_and_a_later_one_waits() {
        let mut signals = Signals::catch().expect("caught");
        assert_eq!(signals.hold_back(), 0);
        raise(SIGTERM).expect("sent");
        assert_eq!(signals.take_stops(), 0);
        super::super::spawn::unblock_signals();
        assert_eq!(signals.hold_back(), 1);
        super::super::spawn::unblock_signals();
    }
}
