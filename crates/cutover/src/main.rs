//! The `cutover` program; everything is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    cutover::run(std::env::args_os()).into()
}
