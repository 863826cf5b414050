//! The real binary, as people and scripts use it.
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

mod bundle;
mod cli;
mod delta;
mod delta_release;
mod demo;
mod documents;
mod gate;
mod guides;
mod install;
mod refusals;
mod repo;
mod schema;
mod settings;
mod source;
mod world;
