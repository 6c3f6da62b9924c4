//! Attacks servers, clients and brains as somebody sees them who has only the network and the public interface.
//!
//! ```text
//! cargo run --release --example attack_kit [-- --short] [server|client|brain] [NAME]
//! ```
//!
//! What is attacked runs in a process of its own, so that the figures are only its own: resident memory and descriptors
//! before, at their peak, and after. A healthy caller runs beside each attack. Each attack prints one line; the program ends
//! with 1 if one of them failed. `--short` runs each in a small size.

mod brain;
mod child;
mod client;
mod frame;
mod healthy;
mod http2;
mod lines;
mod process;
mod server;
mod target;

use std::{env, process::ExitCode};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::time::Instant;

use crate::frame::{Attack, Broken, Size};

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    if let Some((_, words)) = words.split_first().filter(|(first, _)| *first == "child") {
        return ended(child::run(words).await);
    }
    let (options, names): (Vec<_>, Vec<_>) = words.iter().partition(|word| word.starts_with("--"));
    if options.iter().any(|option| *option != "--short") || names.len() > 2 {
        eprintln!("usage: attack_kit [--short] [server|client|brain] [NAME]");
        return ExitCode::from(2);
    }
    let size = if options.is_empty() { Size::Full } else { Size::Short };
    let attacks = [server::attacks(), client::attacks(), brain::attacks()].concat();
    let chosen: Vec<_> = attacks.iter().filter(|attack| attack.is_named(&names)).collect();
    if chosen.is_empty() {
        eprintln!("there is no such attack; there are:");
        attacks.iter().for_each(|attack| eprintln!("{} {}", attack.group, attack.name));
        return ExitCode::from(2);
    }
    ended(all(&chosen, size).await)
}

fn ended(result: Result<(), Broken>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn all(attacks: &[&Attack], size: Size) -> Result<(), Broken> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    let (begun, mut failed) = (Instant::now(), 0);
    for attack in attacks {
        let line = frame::run(attack, size).await;
        println!("{line}");
        failed += usize::from(line.has_failed());
    }
    println!("{} attacks, {failed} failed, {:.1} s", attacks.len(), begun.elapsed().as_secs_f64());
    if failed > 0 { Err(format!("{failed} attacks failed").into()) } else { Ok(()) }
}
