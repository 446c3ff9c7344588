//! The import `subject`: labels and images of the VM that the question is about. Part of the question: no call leaves this
//! process.

use crate::model::{SubjectVm, VmImage};

use super::Call;
use super::bindings::ostler::policy::subject::{DiskImage, Host, Image};

/// Why a call of the interface ends the plugin's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in super::super) enum NoSubject {
    /// This call is about no VM, or its hook does not say.
    #[error("subject is there at the hooks admit, attach and detach only")]
    None,
    /// The question could say it and does not.
    #[error("the question does not say which {0} the VM has; \"{0}\" in it would")]
    NotSaid(&'static str),
}

impl Call {
    /// The VM, for one call more.
    fn subject(&mut self) -> wasmtime::Result<&SubjectVm> {
        self.count()?;
        Ok(self.subject.as_ref().ok_or(NoSubject::None)?)
    }
}

impl Host for Call {
    fn labels(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        let labels = self.subject()?.labels.as_ref().ok_or(NoSubject::NotSaid("labels"))?;
        Ok(labels.as_map().iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn label(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        let labels = self.subject()?.labels.as_ref().ok_or(NoSubject::NotSaid("labels"))?;
        Ok(labels.get(&key).map(str::to_owned))
    }

    fn images(&mut self) -> wasmtime::Result<Vec<Image>> {
        let images = self.subject()?.images.as_ref().ok_or(NoSubject::NotSaid("images"))?;
        Ok(images.iter().map(image).collect())
    }
}

fn image(image: &VmImage) -> Image {
    match image {
        VmImage::Kernel(path) => Image::Kernel(path.to_string()),
        VmImage::Initrd(path) => Image::Initrd(path.to_string()),
        VmImage::Disk { id, volume } => Image::Disk(DiskImage { id: id.to_string(), volume: volume.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::daemon::policy::imports::TooManyHostCalls;
    use crate::daemon::policy::limits::MAX_HOST_CALLS;
    use crate::model::{ImagePath, Labels};

    fn call(subject: Option<SubjectVm>) -> Call {
        Call::new(Arc::default(), 0).about(subject)
    }

    fn vm() -> SubjectVm {
        let path = |text| ImagePath::new("path", text).unwrap();
        SubjectVm {
            labels: Labels::new([("team".to_owned(), "web".to_owned())].into()).ok(),
            images: Some(vec![
                VmImage::Kernel(path("linux/vmlinux")),
                VmImage::Disk { id: "root".parse().unwrap(), volume: path("a.img") },
            ]),
        }
    }

    #[test]
    fn shows_what_the_question_says() {
        let mut call = call(Some(vm()));
        assert_eq!(call.labels().unwrap(), [("team".to_owned(), "web".to_owned())]);
        assert_eq!(
            (call.label("team".into()).unwrap().as_deref(), call.label("x".into()).unwrap()),
            (Some("web"), None)
        );
        let images = call.images().unwrap();
        let [Image::Kernel(kernel), Image::Disk(disk)] = &images[..] else { panic!("{images:?}") };
        assert_eq!((kernel.as_str(), disk.id.as_str(), disk.volume.as_str()), ("linux/vmlinux", "root", "a.img"));
    }

    #[test]
    fn what_is_not_said_is_not_taken_for_nothing() {
        let mut none = call(None);
        for ended in [none.labels().err(), none.label("team".into()).err(), none.images().err()] {
            assert_eq!(ended.unwrap().downcast_ref(), Some(&NoSubject::None));
        }
        let mut unsaid = call(Some(SubjectVm { images: None, ..vm() }));
        assert!(unsaid.labels().is_ok());
        assert_eq!(unsaid.images().unwrap_err().downcast_ref(), Some(&NoSubject::NotSaid("images")));
        let mut unsaid = call(Some(SubjectVm { labels: None, ..vm() }));
        assert!(unsaid.images().is_ok());
        assert_eq!(unsaid.label("team".into()).unwrap_err().downcast_ref(), Some(&NoSubject::NotSaid("labels")));
    }

    #[test]
    fn counts_as_every_import_does() {
        let mut call = call(Some(vm()));
        for _ in 0..MAX_HOST_CALLS / 2 {
            call.labels().unwrap();
            call.images().unwrap();
        }
        assert!(call.label("team".into()).unwrap_err().is::<TooManyHostCalls>());
    }
}
