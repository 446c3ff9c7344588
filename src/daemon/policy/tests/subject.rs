//! Plugins that see labels and images of the VM: the plugin `admission`, and a hostile one.

use super::*;
use crate::model::{AttachRequest, DeviceSpec, DiskSpec, ImagePath, Labels, PolicyScope, RateLimits, VmFacts, VmImage};

fn path(text: &str) -> ImagePath {
    ImagePath::new("path", text).unwrap()
}

/// A VM with this label, kernel and volume.
fn says(owner: &str, kernel: &str, volume: &str) -> AdmitRequest {
    let labels = Labels::new([("owner".to_owned(), owner.to_owned())].into()).unwrap();
    let disk = VmImage::Disk { id: "root".parse().unwrap(), volume: path(volume) };
    AdmitRequest { labels: Some(labels), images: Some(vec![VmImage::Kernel(path(kernel)), disk]), ..request() }
}

async fn strict(host: &PolicyHost) -> LoadedPlugin {
    let settings = [("allowed-images", "linux/"), ("allowed-volumes", "a.img"), ("required-labels", "owner=web")];
    admission(host, settings).await
}

#[tokio::test]
async fn it_decides_by_labels_and_images_of_the_question() {
    let host = host();
    let plugin = strict(&host).await;
    let none = AdmitRequest { labels: Some(Labels::default()), ..says("web", "linux/k", "a.img") };
    for (request, expected) in [
        (says("web", "linux/k", "a.img"), "allowed"),
        (says("web", "mine/k", "a.img"), "image.not-allowed"),
        (says("web", "linux/k", "b.img"), "volume.not-allowed"),
        (says("db", "linux/k", "a.img"), "label.not-allowed"),
        (none, "label.missing"),
    ] {
        let unrecorded = host.admit(chain([&plugin]), request.clone()).await;
        // What is on record is the question, and asked again it comes to the same.
        let entry = unrecorded.entry().clone();
        assert_eq!(entry.question.read::<AdmitRequest>().unwrap(), request);
        assert_eq!(code(&unrecorded.dry_run()), expected);
        let (name, scope) = ("p0".to_owned(), PolicyScope::Operator);
        let mut replayer = Replayer::new(host.clone(), plugin.clone(), name, scope, None);
        assert_eq!(replayer.again(&entry).unwrap().change, Change::Same, "{expected}");
    }
}

#[tokio::test]
async fn a_question_that_does_not_say_is_not_one_of_a_vm_without() {
    let host = host();
    let (plugin, open) = (strict(&host).await, admission(&host, []).await);
    let said = host.admit(chain([&plugin]), request()).await.dry_run();
    let Outcome::Deny { code: denied, message, .. } = &said.outcome else { panic!("{said:?}") };
    assert_eq!(denied, "policy.unavailable");
    assert!(message.contains("does not say which images"), "{message}");
    // Who does not ask does not miss it, and who would is not asked again about such a decision.
    let unrecorded = host.admit(chain([&open]), request()).await;
    let entry = unrecorded.entry().clone();
    assert_eq!(code(&unrecorded.dry_run()), "allowed");
    let again = |plugin: &LoadedPlugin, settings| {
        let (name, scope) = ("p0".to_owned(), PolicyScope::Operator);
        Replayer::new(host.clone(), plugin.clone(), name, scope, settings).again(&entry)
    };
    assert_eq!(again(&open, None).unwrap().change, Change::Same);
    assert_eq!(again(&open, Some(settings([("required-labels", "owner")]))), None);
}

#[tokio::test]
async fn a_disk_that_comes_is_judged_as_one_that_was_there() {
    let host = host();
    let plugin = strict(&host).await;
    let attach = |volume: &str| AttachRequest {
        tenant: "blue".parse().unwrap(),
        vm: VmFacts {
            name: "web".parse().unwrap(),
            vcpus: 1,
            memory_mib: 64,
            disks: 0,
            nics: 0,
            is_running: false,
            labels: Some(Labels::default()),
            images: Some(vec![VmImage::Kernel(path("linux/k"))]),
        },
        device: DeviceSpec::Disk(DiskSpec {
            id: "data".parse().unwrap(),
            volume: path(volume),
            is_read_only: false,
            is_direct: false,
            queues: 1,
            limits: RateLimits::default(),
        }),
        in_use: LimitUse::default(),
    };
    for (volume, expected) in [("a.img", "allowed"), ("b.img", "volume.not-allowed")] {
        let decision = host.attach(chain([&plugin]), attach(volume)).await.dry_run();
        assert_eq!(code(&decision), expected);
    }
}

#[tokio::test]
async fn before_there_is_a_vm_asking_for_it_is_a_trap() {
    let early = hostile(&host(), "subject-early").await.unwrap_err();
    assert!(matches!(&early, LoadError::Faulted { fault: PolicyFault::Trap(_), .. }), "{early}");
    assert!(early.to_string().contains("subject is there at the hooks"), "{early}");
}
