//! Where images and volumes lie, as a client may say it. Key type: [`ImagePath`].

use std::fmt;

use serde::{Deserialize, Serialize};

use super::SpecError;

/// Longest path, in bytes.
const MAX_IMAGE_PATH_LEN: usize = 255;

/// A relative path below a directory that the operator chose (images, or the tenant's volumes).
///
/// Only plain components: no leading `/`, no `.` or `..`, no empty component. Symbolic links are refused when the
/// daemon opens it (`openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImagePath(String);

impl TryFrom<String> for ImagePath {
    type Error = SpecError;

    fn try_from(text: String) -> Result<Self, SpecError> {
        Self::new("path", &text)
    }
}

impl From<ImagePath> for String {
    fn from(path: ImagePath) -> Self {
        path.0
    }
}

impl ImagePath {
    /// Checks `text`; `field` names it in the error.
    pub fn new(field: &str, text: &str) -> Result<Self, SpecError> {
        let refuse = |reason: String| Err(SpecError::new(field, reason));
        if text.is_empty() {
            return refuse("path is empty".into());
        }
        if text.len() > MAX_IMAGE_PATH_LEN {
            return refuse(format!("path has {} bytes, at most {MAX_IMAGE_PATH_LEN} are allowed", text.len()));
        }
        if text.chars().any(char::is_control) {
            return refuse(format!("path {text:?} holds a control character"));
        }
        if text.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return refuse(format!("path {text:?} must be relative, without '.', '..' or empty parts"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The path as given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_paths_that_leave_their_directory() {
        for path in ["", "/etc/shadow", "../x", "a/../b", "a//b", "a/.", "a\nb"] {
            assert!(ImagePath::new("f", path).is_err(), "{path:?}");
        }
        assert!(ImagePath::new("f", "linux-6.12/vmlinux").is_ok());
    }
}
