//! Which files a VM may boot and have as disks. Key type: [`Paths`].

use ostler_policy::subject::Image;
use ostler_policy::{Refusal, refuse};

use crate::text::listed;

/// Paths that are allowed: files, and directories with all that is below them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Paths(Vec<String>);

/// What files a VM may have; `None` allows all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Files {
    /// Kernels and initial RAM disks, below the node's images.
    pub images: Option<Paths>,
    /// Disks, below the tenant's volumes.
    pub volumes: Option<Paths>,
}

impl Paths {
    /// Reads `linux-6.12/,rescue/vmlinux`: a directory ends in `/`, and whatever is below it is allowed.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let read = |entry: &str| {
            let entry = entry.trim();
            let path = entry.strip_suffix('/').unwrap_or(entry);
            let is_plain = |part: &str| !matches!(part, "" | "." | "..") && !part.chars().any(char::is_control);
            match path.split('/').all(is_plain) {
                true => Ok(entry.to_owned()),
                false => Err(format!(
                    "{entry:?} is no path: write files, and directories with a / behind them, such as linux-6.12/,rescue/vmlinux"
                )),
            }
        };
        text.split(',').map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Whether this path is among them. The host gives plain paths, without `..`: none leaves the directory that it begins with.
    fn allow(&self, path: &str) -> bool {
        let is_it =
            |allowed: &String| path == allowed || (allowed.ends_with('/') && path.starts_with(allowed.as_str()));
        self.0.iter().any(is_it)
    }

    fn judge(&self, code: &'static str, what: &str, path: &str) -> Result<(), Refusal> {
        if self.allow(path) {
            return Ok(());
        }
        Err(refuse(code, format!("{what} {path} is not allowed; allowed are {}", listed(&self.0))))
    }
}

impl Files {
    /// Whether any VM has to be looked at.
    pub(crate) fn is_open(&self) -> bool {
        self.images.is_none() && self.volumes.is_none()
    }

    /// Whether a VM may have these images.
    pub(crate) fn judge(&self, images: &[Image]) -> Result<(), Refusal> {
        images.iter().try_for_each(|image| match image {
            Image::Kernel(path) => self.judge_image("kernel", path),
            Image::Initrd(path) => self.judge_image("initial RAM disk", path),
            Image::Disk(disk) => self.judge_volume(&disk.volume),
        })
    }

    fn judge_image(&self, what: &str, path: &str) -> Result<(), Refusal> {
        self.images.as_ref().map_or(Ok(()), |paths| paths.judge("image.not-allowed", what, path))
    }

    /// Whether a VM may have this disk.
    pub(crate) fn judge_volume(&self, volume: &str) -> Result<(), Refusal> {
        self.volumes.as_ref().map_or(Ok(()), |paths| paths.judge("volume.not-allowed", "volume", volume))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_policy::subject::DiskImage;

    fn paths(text: &str) -> Paths {
        Paths::parse(text).unwrap()
    }

    #[test]
    fn a_file_is_itself_and_a_directory_all_that_is_below_it() {
        let allowed = paths("linux-6.12/, rescue/vmlinux");
        for path in ["linux-6.12/vmlinux", "linux-6.12/old/vmlinux", "rescue/vmlinux"] {
            assert!(allowed.allow(path), "{path}");
        }
        for path in
            ["linux-6.12", "linux-6.12-evil/vmlinux", "linux-6.1/vmlinux", "rescue/vmlinux.old", "my/rescue/vmlinux"]
        {
            assert!(!allowed.allow(path), "{path}");
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in ["", ",", "/", "/linux/", "a//b", "a/../b/", "./a", "linux/,", "a\nb"] {
            assert!(Paths::parse(text).unwrap_err().contains("is no path"), "{text:?}");
        }
    }

    #[test]
    fn each_kind_of_file_is_judged_by_its_own_list() {
        let files = Files { images: Some(paths("linux/")), volumes: Some(paths("base.img")) };
        let disk = |volume: &str| Image::Disk(DiskImage { id: "root".into(), volume: volume.into() });
        let (kernel, initrd) = (|path: &str| Image::Kernel(path.into()), |path: &str| Image::Initrd(path.into()));
        assert_eq!(files.judge(&[kernel("linux/k"), initrd("linux/i"), disk("base.img")]), Ok(()));
        for (image, code, part) in [
            (kernel("base.img"), "image.not-allowed", "kernel base.img is not allowed; allowed are linux/"),
            (initrd("other/i"), "image.not-allowed", "initial RAM disk other/i"),
            (disk("linux/k"), "volume.not-allowed", "volume linux/k is not allowed; allowed are base.img"),
        ] {
            let refused = files.judge(&[kernel("linux/k"), image]).unwrap_err();
            assert_eq!(refused.code, code);
            assert!(refused.message.contains(part), "{}", refused.message);
        }
        assert_eq!(Files::default().judge(&[kernel("any"), disk("thing")]), Ok(()));
        assert!(Files::default().is_open() && !files.is_open());
    }

    #[test]
    fn a_denial_is_never_longer_than_the_host_takes() {
        let long = vec!["d".repeat(200); 20].join(",");
        let files = Files { images: Some(paths(&long)), volumes: None };
        let refused = files.judge(&[Image::Initrd("p".repeat(255))]).unwrap_err();
        assert!(refused.message.len() <= 512, "{}", refused.message.len());
    }
}
