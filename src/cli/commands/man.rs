//! `ostler man`: manual pages, one per command, from the definition of the command line.

use std::fs;
use std::path::Path;

use clap::CommandFactory;

use super::super::args::{Arguments, Output};
use super::super::failure::{Exit, Failure};
use super::super::show;

/// Writes `ostler.1`, `ostler-vm.1`, `ostler-vm-run.1`, … into the directory, which is made if it is absent.
pub(crate) fn write(directory: &Path, output: Output) -> Result<(), Failure> {
    let failed = |error| {
        let failure = Failure::local(format_args!("cannot write to {}", directory.display()), &error);
        Failure { exit: Exit::Usage, ..failure }
    };
    fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(Arguments::command(), directory).map_err(failed)?;
    match output {
        Output::Table => show(&format!("{} holds the pages: man -l {0}/ostler.1\n", directory.display())),
        Output::Json => show("{}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Command;

    /// Every command that is not hidden, as its words.
    fn commands(command: &Command, words: &str, found: &mut Vec<(String, Vec<String>)>) {
        let options = command.get_arguments().filter(|option| !option.is_hide_set());
        found.push((words.to_owned(), options.filter_map(|option| option.get_long().map(str::to_owned)).collect()));
        for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
            commands(below, &format!("{words} {}", below.get_name()), found);
        }
    }

    fn all() -> Vec<(String, Vec<String>)> {
        let mut found = Vec::new();
        commands(&Arguments::command(), "ostler", &mut found);
        assert!(found.iter().any(|(words, _)| words == "ostler host nvme provision"), "{found:?}");
        found
    }

    #[test]
    fn every_command_has_a_page_that_tells_its_options() {
        let directory = tempfile::tempdir().unwrap();
        write(&directory.path().join("man"), Output::Json).unwrap();
        let page = |words: &str| fs::read_to_string(directory.path().join("man").join(words.replace(' ', "-") + ".1"));
        let found = all();
        for (words, options) in &found {
            let page = page(words).unwrap_or_else(|error| panic!("{words}: {error}"));
            for option in options {
                // roff writes a hyphen as \-.
                assert!(page.contains(&format!("\\-\\-{}", option.replace('-', "\\-"))), "{words}: --{option}\n{page}");
            }
        }
        assert_eq!(fs::read_dir(directory.path().join("man")).unwrap().count(), found.len());
        let whole = page("ostler").unwrap();
        for (code, meaning) in Exit::ALL {
            assert!(
                whole.contains(code) && whole.contains(&meaning.split('\'').next().unwrap().replace('-', "\\-")),
                "{whole}"
            );
        }
    }

    #[test]
    fn every_shell_completes_every_command() {
        use clap_complete::Shell;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell, Shell::Elvish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "ostler", &mut script);
            let script = String::from_utf8(script).unwrap();
            for (words, options) in all() {
                let name = words.split(' ').next_back().unwrap();
                assert!(script.contains(name), "{shell}: {words}");
                // clap_complete's fish scripts go two commands deep (`host nvme`), and complete no options below.
                let is_too_deep = shell == Shell::Fish && words.split(' ').count() > 3;
                for option in options.into_iter().filter(|_| !is_too_deep) {
                    assert!(script.contains(&option), "{shell}: {words} --{option}");
                }
            }
        }
    }
}
