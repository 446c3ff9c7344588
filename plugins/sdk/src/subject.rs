//! Labels and images of the VM that the question is about: `wit/subject.wit`, with every limit. At the hooks `admit`, `attach`
//! and `detach`; at others a call of it ends the plugin's.
//!
//! A test says what the VM has: [`testing::labelled`](crate::testing::labelled), [`testing::with_images`](crate::testing::with_images).

#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod import {
    //! A VM for tests, one for each thread.

    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::Image;

    thread_local! {
        static LABELS: RefCell<BTreeMap<String, String>> = RefCell::default();
        static IMAGES: RefCell<Vec<Image>> = RefCell::default();
    }

    /// The VM has these labels from now on, and no others.
    pub fn labelled(labels: &[(&str, &str)]) {
        LABELS.set(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect());
    }

    /// The VM has these images from now on, and no others.
    pub fn with_images(images: &[Image]) {
        IMAGES.set(images.to_vec());
    }

    pub(crate) fn labels() -> Vec<(String, String)> {
        LABELS.with_borrow(|labels| labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    pub(crate) fn label(key: &str) -> Option<String> {
        LABELS.with_borrow(|labels| labels.get(key).cloned())
    }

    pub(crate) fn images() -> Vec<Image> {
        IMAGES.with_borrow(Clone::clone)
    }
}

#[cfg(target_arch = "wasm32")]
use crate::host::subject::ostler::policy::subject as import;

pub use crate::host::subject::ostler::policy::subject::{DiskImage, Image};

/// All labels, by key.
pub fn labels() -> Vec<(String, String)> {
    import::labels()
}

/// The value of one label, which may be empty; none if there is no such label.
pub fn label(key: &str) -> Option<String> {
    import::label(key)
}

/// The kernel, the initial RAM disk if there is one, and the disks.
pub fn images() -> Vec<Image> {
    import::images()
}

#[cfg(test)]
mod tests {
    use crate::testing;

    use super::*;

    #[test]
    fn a_plugin_sees_what_a_test_says() {
        assert_eq!((labels(), images()), (Vec::new(), Vec::new()));
        testing::labelled(&[("team", "web"), ("empty", "")]);
        testing::with_images(&[Image::Kernel("linux/vmlinux".into())]);
        assert_eq!(labels()[0], ("empty".to_owned(), String::new()));
        assert_eq!((label("team").as_deref(), label("other")), (Some("web"), None));
        assert_eq!(images(), [Image::Kernel("linux/vmlinux".into())]);
    }
}
