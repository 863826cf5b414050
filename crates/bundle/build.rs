//! Compiles a trust anchor into the crate: `CUTOVER_BUILD_ANCHOR` names its file at build time, and nothing can name
//! another one at run time. Without it the crate has no anchor of its own.

// A build script writes build output, which nothing has to survive a power cut for.
#![allow(clippy::disallowed_methods)]

use std::{env, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-env-changed=CUTOVER_BUILD_ANCHOR");
    let text = match env::var_os("CUTOVER_BUILD_ANCHOR") {
        Some(path) => {
            let path = PathBuf::from(path);
            let bad = |why: &str| format!("CUTOVER_BUILD_ANCHOR: {}: {why}", path.display());
            if !path.is_absolute() {
                return Err(bad("name it from `/` on: cargo builds in another directory").into());
            }
            println!("cargo::rerun-if-changed={}", path.display());
            let text = fs::read_to_string(&path).map_err(|error| bad(&error.to_string()))?;
            if !text.contains("-----BEGIN CERTIFICATE-----") {
                return Err(bad("it holds no certificate").into());
            }
            text
        }
        None => String::new(),
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out.join("anchor.pem"), text)?;
    Ok(())
}
