//! A program on a terminal of its own, which script(1) makes. Key type: [`Terminal`].

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The terminal, and whoever sits at it.
pub struct Terminal {
    program: Child,
    keys: ChildStdin,
    screen: ChildStdout,
    shown: String,
}

impl Terminal {
    /// Runs lines of shell, in which `{}` stands for `command`.
    pub fn run(lines: &str, command: &Command) -> Self {
        let quoted = |word: &OsStr| format!("'{}'", word.to_str().unwrap());
        let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect();
        let mut script = Command::new("script");
        script.args(["--quiet", "--command", &lines.replace("{}", &words.join(" ")), "/dev/null"]);
        script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut program = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (keys, screen) = (program.stdin.take().unwrap(), program.stdout.take().unwrap());
        Self { program, keys, screen, shown: String::new() }
    }

    /// Waits until `text` has been shown.
    pub fn expect(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        while !self.shown.contains(text) {
            let len = self.screen.read(&mut buffer).unwrap();
            assert_ne!(len, 0, "the terminal is gone before it shows {text:?}: {}", self.shown);
            self.shown.push_str(&String::from_utf8_lossy(&buffer[..len]));
        }
    }

    pub fn press(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).unwrap();
    }

    /// Waits until all lines have been run; gives what was shown.
    pub fn end(mut self) -> String {
        let mut rest = Vec::new();
        self.screen.read_to_end(&mut rest).unwrap();
        self.program.wait().unwrap();
        self.shown + &String::from_utf8_lossy(&rest)
    }
}
