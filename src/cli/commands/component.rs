//! Where a command's component comes from: a file, or an OCI image layout (`oci:DIR` or `oci:DIR:TAG`).
//!
//! ```text
//!   DIR/oci-layout   DIR/index.json ──▶ manifest of TAG ──▶ its one layer of WebAssembly ──▶ DIR/blobs/sha256/…
//! ```
//! Sources: OCI Image Format Specification 1.1 (image-layout.md, image-index.md, manifest.md); media types of WebAssembly in
//! OCI artifacts as the CNCF's TAG Runtime has them. A registry is not asked: what copies images copies them to a layout.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::super::failure::{Exit, Failure};

/// Longest component, in bytes, as the API has it.
const MAX_COMPONENT_LEN: u64 = 24 << 20;
/// Longest JSON document of a layout, in bytes.
const MAX_DOCUMENT_LEN: u64 = 1 << 20;
/// How a layout is named.
const LAYOUT: &str = "oci:";
const LAYOUT_VERSION: &str = "1.0.0";
const IMAGE_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const IMAGE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const TAG: &str = "org.opencontainers.image.ref.name";
/// What the layer with the component is called, now and by older tools.
const WASM: [&str; 3] = [
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];

/// Whether `path` is that of a file, beside which others can lie.
pub(crate) fn is_file(path: &Path) -> bool {
    !path.to_str().is_some_and(|path| path.starts_with(LAYOUT))
}

/// The bytes of the component that `path` names, at most 24 MiB.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    match path.to_str().and_then(|path| path.strip_prefix(LAYOUT)) {
        Some(place) => Layout::open(place)?.component(),
        None => read_file(path, MAX_COMPONENT_LEN)
            .map_err(|failure| failure.hint("strip the component's debug sections, or build it for size")),
    }
}

fn read_file(path: &Path, most: u64) -> Result<Vec<u8>, Failure> {
    let unreadable = |error| {
        let failure = Failure::local(format_args!("cannot read {}", path.display()), &error);
        Failure { exit: Exit::Usage, ..failure }
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(most + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > most {
        return Err(unusable(format!("{} is larger than {} MiB", path.display(), most >> 20)));
    }
    Ok(bytes)
}

fn unusable(what: String) -> Failure {
    Failure::new(Exit::Usage, what)
}

/// A directory that is one, and which of its images is wanted.
struct Layout<'a> {
    dir: PathBuf,
    tag: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

impl<'a> Layout<'a> {
    /// `DIR` or `DIR:TAG`; a directory with a colon in its name needs a tag.
    fn open(place: &'a str) -> Result<Self, Failure> {
        let (dir, tag) = match place.rsplit_once(':') {
            Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag)),
            _ => (place, None),
        };
        let layout = Self { dir: PathBuf::from(dir), tag };
        let marker: Marker = layout.document(&read_file(&layout.dir.join("oci-layout"), MAX_DOCUMENT_LEN)?)?;
        if marker.image_layout_version != LAYOUT_VERSION {
            let version = marker.image_layout_version;
            return Err(layout.wrong(format_args!("is a layout of version {version:?}, not {LAYOUT_VERSION}")));
        }
        Ok(layout)
    }

    fn component(&self) -> Result<Vec<u8>, Failure> {
        let index: Index = self.document(&read_file(&self.dir.join("index.json"), MAX_DOCUMENT_LEN)?)?;
        let chosen = self.chosen(&index)?;
        let manifest: Manifest = match chosen.media_type.as_str() {
            IMAGE_MANIFEST => self.document(&self.blob(chosen, MAX_DOCUMENT_LEN)?)?,
            IMAGE_INDEX => return Err(self.wrong("names an index of several platforms; a component has none")),
            other => return Err(self.wrong(format_args!("names a {other:?}, which is no image"))),
        };
        let is_wasm = |layer: &&Descriptor| WASM.contains(&layer.media_type.as_str());
        let layers: Vec<_> = manifest.layers.iter().filter(is_wasm).collect();
        match layers[..] {
            [layer] => self.blob(layer, MAX_COMPONENT_LEN),
            [] => {
                let types: Vec<_> = manifest.layers.iter().map(|layer| format!("{:?}", layer.media_type)).collect();
                let found = if types.is_empty() { "none".to_owned() } else { types.join(", ") };
                Err(self
                    .wrong(format_args!("has no layer {:?}, but {found}: this is no WebAssembly artifact", WASM[0])))
            }
            _ => Err(self.wrong("has several layers of WebAssembly; a plugin is one component")),
        }
    }

    /// The manifest of the tag, or the only one.
    fn chosen<'b>(&self, index: &'b Index) -> Result<&'b Descriptor, Failure> {
        let tag_of = |one: &'b Descriptor| one.annotations.get(TAG).map(String::as_str);
        let found: Vec<_> =
            index.manifests.iter().filter(|one| self.tag.is_none() || tag_of(one) == self.tag).collect();
        let tags: Vec<_> = index.manifests.iter().filter_map(tag_of).collect();
        let tags = if tags.is_empty() { "no tag".to_owned() } else { tags.join(", ") };
        match (&found[..], self.tag) {
            ([one], _) => Ok(one),
            ([], None) => Err(self.wrong("holds no image")),
            ([], Some(tag)) => Err(self.wrong(format_args!("holds no image {tag:?}, but {tags}"))),
            (_, None) => Err(self
                .wrong(format_args!("holds several images: {tags}"))
                .hint(format!("name one: {LAYOUT}{}:TAG", self.dir.display()))),
            (_, Some(tag)) => Err(self.wrong(format_args!("holds several images {tag:?}"))),
        }
    }

    /// What a descriptor names, as long as it says, with the digest that it says.
    fn blob(&self, wanted: &Descriptor, most: u64) -> Result<Vec<u8>, Failure> {
        let digest = &wanted.digest;
        let is_hex = |hex: &&str| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let Some(hex) = digest.strip_prefix("sha256:").filter(is_hex) else {
            return Err(self.wrong(format_args!("names the content {digest:?}, which is no SHA-256")));
        };
        if wanted.size > most {
            return Err(self.wrong(format_args!("has {} bytes in {digest}, at most {most} are allowed", wanted.size)));
        }
        let bytes = read_file(&self.dir.join("blobs/sha256").join(hex), wanted.size)?;
        let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        if bytes.len() as u64 != wanted.size || found != hex {
            return Err(self.wrong(format_args!("has other content in {digest}: it is damaged, copy it again")));
        }
        Ok(bytes)
    }

    fn document<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(bytes).map_err(|error| self.wrong(format_args!("is no OCI image layout: {error}")))
    }

    fn wrong(&self, what: impl std::fmt::Display) -> Failure {
        unusable(format!("{LAYOUT}{} {what}", self.dir.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn blob(dir: &Path, media_type: &str, bytes: &[u8]) -> Value {
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        std::fs::write(dir.join("blobs/sha256").join(&hex), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len() })
    }

    /// Type and content.
    type Layer<'a> = (&'a str, &'a [u8]);

    /// An image for each tag, with these layers.
    fn layout(images: &[(&str, &[Layer<'_>])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let manifests = images.iter().map(|(tag, layers)| {
            let layers: Vec<_> = layers.iter().map(|(kind, bytes)| blob(dir.path(), kind, bytes)).collect();
            let manifest = json!({ "schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "layers": layers });
            let mut descriptor = blob(dir.path(), IMAGE_MANIFEST, manifest.to_string().as_bytes());
            descriptor["annotations"] = json!({ TAG: tag });
            descriptor
        });
        let index = json!({ "schemaVersion": 2, "manifests": manifests.collect::<Vec<_>>() });
        std::fs::write(dir.path().join("index.json"), index.to_string()).unwrap();
        std::fs::write(dir.path().join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string()).unwrap();
        dir
    }

    fn read_from(dir: &Path, tag: &str) -> Result<Vec<u8>, String> {
        read(Path::new(&format!("oci:{}{tag}", dir.display()))).map_err(|failure| failure.message)
    }

    #[test]
    fn gives_the_layer_of_the_only_image_or_of_a_tag() {
        let one = layout(&[("v1", &[("application/vnd.other", b"x"), (WASM[0], b"first")])]);
        for tag in ["", ":v1"] {
            assert_eq!(read_from(one.path(), tag).unwrap(), b"first");
        }
        let two = layout(&[("v1", &[(WASM[1], b"first")]), ("v2", &[(WASM[2], b"second")])]);
        assert_eq!(read_from(two.path(), ":v2").unwrap(), b"second");
        assert!(read_from(two.path(), "").unwrap_err().contains("several images: v1, v2"));
        assert!(read_from(two.path(), ":v3").unwrap_err().contains("no image \"v3\", but v1, v2"));
    }

    #[test]
    fn says_what_is_wrong_with_a_layout() {
        let refused = |change: &dyn Fn(&Path), word: &str| {
            let dir = layout(&[("v1", &[(WASM[0], b"component")])]);
            change(dir.path());
            let message = read_from(dir.path(), "").unwrap_err();
            assert!(message.contains(word), "{word:?} is not in {message:?}");
        };
        let written =
            |name: &'static str, text: &'static str| move |dir: &Path| std::fs::write(dir.join(name), text).unwrap();
        refused(&|dir| std::fs::remove_file(dir.join("oci-layout")).unwrap(), "cannot read");
        refused(&written("oci-layout", r#"{"imageLayoutVersion":"2.0.0"}"#), "version \"2.0.0\"");
        refused(&written("index.json", "{"), "no OCI image layout");
        refused(&written("index.json", r#"{"manifests":[]}"#), "holds no image");
        let odd = |kind: &str, digest: &str, size: u64| {
            let one = json!({ "manifests": [{ "mediaType": kind, "digest": digest, "size": size }] }).to_string();
            move |dir: &Path| std::fs::write(dir.join("index.json"), &one).unwrap()
        };
        refused(&odd(IMAGE_INDEX, "sha256:0", 1), "several platforms");
        refused(&odd("text/plain", "sha256:0", 1), "no image");
        refused(&odd(IMAGE_MANIFEST, "sha256:../../../../etc/passwd", 1), "no SHA-256");
        refused(&odd(IMAGE_MANIFEST, &format!("sha256:{}", "0".repeat(64)), u64::MAX), "at most");
        let damaged = |dir: &Path| {
            for entry in std::fs::read_dir(dir.join("blobs/sha256")).unwrap() {
                let path = entry.unwrap().path();
                if std::fs::read(&path).unwrap() == b"component" {
                    std::fs::write(path, b"companion").unwrap();
                }
            }
        };
        refused(&damaged, "other content");
        let none = layout(&[("v1", &[("text/plain", b"x")])]);
        assert!(read_from(none.path(), "").unwrap_err().contains("no layer"));
        let several = layout(&[("v1", &[(WASM[0], b"x"), (WASM[0], b"y")])]);
        assert!(read_from(several.path(), "").unwrap_err().contains("several layers"));
    }
}
