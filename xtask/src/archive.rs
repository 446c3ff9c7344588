//! Writes initial RAM disks (cpio, the "new ASCII" form that Linux unpacks).
//!
//! The order of entries is the order of calls, owners are root, times are zero: the same input gives the same bytes.

use anyhow::{Context, Result};
use cpio::newc::{Builder, trailer};
use std::collections::BTreeSet;
use std::io::Write;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An initial RAM disk under construction.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    inode: u32,
}

impl Archive {
    /// Adds a directory and, before it, its parents. `path` has no leading slash.
    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        if path.is_empty() || self.directories.contains(path) {
            return Ok(());
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        self.directories.insert(path.to_owned());
        self.entry(path, DIRECTORY, &[], None)
    }

    /// Adds a file with permission bits `mode`.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.parent(path)?;
        self.entry(path, FILE | mode, content, None)
    }

    /// Adds a symbolic link to `target`.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.parent(path)?;
        self.entry(path, LINK, target.as_bytes(), None)
    }

    /// Adds a character device node.
    pub(crate) fn device(&mut self, path: &str, major: u32, minor: u32) -> Result<()> {
        self.parent(path)?;
        self.entry(path, CHARACTER_DEVICE, &[], Some((major, minor)))
    }

    /// Ends the archive and returns its bytes.
    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        trailer(self.bytes).context("cannot end the archive")
    }

    fn parent(&mut self, path: &str) -> Result<()> {
        path.rsplit_once('/').map_or(Ok(()), |(parent, _)| self.directory(parent))
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8], device: Option<(u32, u32)>) -> Result<()> {
        self.inode += 1;
        let length = u32::try_from(content.len()).with_context(|| format!("{path} is too large for an archive"))?;
        let mut builder = Builder::new(path).ino(self.inode).mode(mode).nlink(1);
        if let Some((major, minor)) = device {
            builder = builder.rdev_major(major).rdev_minor(minor);
        }
        let mut writer = builder.write(std::mem::take(&mut self.bytes), length);
        writer.write_all(content)?;
        self.bytes = writer.finish().with_context(|| format!("cannot add {path} to the archive"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parents_once_and_before_their_children() {
        let mut archive = Archive::default();
        archive.file("a/b/one", 0o644, b"1").unwrap();
        archive.file("a/b/two", 0o644, b"2").unwrap();
        let bytes = archive.finish().unwrap();
        let mut rest = bytes.as_slice();
        let mut names = Vec::new();
        loop {
            let reader = cpio::NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push(reader.entry().name().to_owned());
            rest = reader.finish().unwrap();
        }
        assert_eq!(names, ["a", "a/b", "a/b/one", "a/b/two"]);
    }
}
