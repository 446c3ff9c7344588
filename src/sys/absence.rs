//! Unit tests that lack something of the machine. Key function: [`skip`].

use std::fs::File;
use std::io::Write;

/// Says by name that the running test did not run, in the list of such tests if there is one (`OSTLER_SKIPPED`, see
/// `cargo xtask test`). A test's thread has its name.
pub fn skip(needs: &str) {
    println!("skipped: needs {needs}");
    if let Some(list) = std::env::var_os("OSTLER_SKIPPED") {
        let mut list = File::options().create(true).append(true).open(list).unwrap();
        writeln!(list, "{}: needs {needs}", std::thread::current().name().unwrap()).unwrap();
    }
}
