//! Progress lines: whatever takes longer than two seconds says so, and what it is doing.
//!
//! Lines go to standard error, so that a command's own output in the lab stays clean.

use anyhow::{Context, Result, bail};
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const BEAT: Duration = Duration::from_secs(2);

/// Runs `work` and prints `what`; every two seconds until it ends, prints how long it has been going.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    eprintln!("== {what}");
    let (ended, waiting) = mpsc::channel::<()>();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(move || {
            while let Err(mpsc::RecvTimeoutError::Timeout) = waiting.recv_timeout(BEAT) {
                eprintln!("   … {what}: {} s", started.elapsed().as_secs());
            }
        });
        let outcome = work();
        drop(ended);
        outcome
    });
    if started.elapsed() >= BEAT && outcome.is_ok() {
        eprintln!("   {what}: done in {:.1} s", started.elapsed().as_secs_f32());
    }
    outcome.with_context(|| what.to_owned())
}

/// Runs a program to its end and returns its standard output; a failure carries the program's own words.
pub(crate) fn output_of(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}; is it installed and in PATH?"))?;
    if !output.status.success() {
        bail!("{name} failed ({}):\n{}", output.status, tail(&output.stderr, &output.stdout));
    }
    Ok(output.stdout)
}

/// Pipes the output of one program into another; both must succeed.
pub(crate) fn pipe(first: &mut Command, second: &mut Command) -> Result<()> {
    let names =
        [first.get_program().to_owned(), second.get_program().to_owned()].map(|name| name.display().to_string());
    let mut producer = first
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}; is it installed and in PATH?", names[0]))?;
    let stdout = producer.stdout.take().context("no pipe to read from")?;
    let consumer = second.stdin(stdout).status();
    let produced = producer.wait()?;
    let consumed = consumer.with_context(|| format!("cannot run {}; is it installed and in PATH?", names[1]))?;
    if !produced.success() || !consumed.success() {
        bail!("{} ended with {produced}, {} with {consumed}", names[0], names[1]);
    }
    Ok(())
}

/// Reads a stream to its end as text, whatever its bytes are.
pub(crate) fn read_lossy(mut stream: impl Read) -> String {
    let mut bytes = Vec::new();
    // A broken stream yields what came before the break: the text is for a message only.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn tail(stderr: &[u8], stdout: &[u8]) -> String {
    let text = String::from_utf8_lossy(if stderr.is_empty() { stdout } else { stderr }).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
