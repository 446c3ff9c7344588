//! The hooks `attach` and `detach` with the admission plugin, and with hostile ones.

use super::*;
use crate::model::{
    AttachRequest, DetachRequest, DeviceSpec, DiskSpec, ImagePath, Rate, RateLimits, TenantId, VmFacts,
};

fn facts(disks: u32) -> VmFacts {
    VmFacts {
        name: "web".parse().unwrap(),
        vcpus: 4,
        memory_mib: 1024,
        disks,
        nics: 1,
        is_running: true,
        labels: None,
        images: None,
    }
}

fn attach(disks: u32) -> AttachRequest {
    let volume = ImagePath::new("v", "data.img").unwrap();
    AttachRequest {
        tenant: "blue".parse().unwrap(),
        vm: facts(disks),
        device: DeviceSpec::Disk(DiskSpec {
            id: "data".parse().unwrap(),
            volume,
            is_read_only: false,
            is_direct: false,
            queues: 2,
            limits: RateLimits { bandwidth: Rate::new("f", 10 << 20, 0).ok(), operations: None },
        }),
        in_use: LimitUse { vms: 1, vcpus: 4, memory_mib: 1024 },
    }
}

fn detach() -> DetachRequest {
    DetachRequest { tenant: "blue".parse().unwrap(), vm: facts(1), device: "data".parse().unwrap(), is_forced: false }
}

#[tokio::test]
async fn admission_limits_what_is_attached_as_it_limits_what_is_registered() {
    let host = host();
    let plugin = admission(&host, [("max-disks", "2")]).await;
    assert_eq!(plugin.hooks(), ["admit", "attach"]);
    let allowed = host.attach(chain([&plugin]), attach(1)).await.dry_run();
    assert_eq!(code(&allowed), "allowed");
    let denied = host.attach(chain([&plugin]), attach(2)).await.dry_run();
    let Outcome::Deny { code, message, plugin: Some(_) } = &denied.outcome else { panic!("{denied:?}") };
    assert_eq!(code, "limit.disks");
    assert!(message.contains("3 disks") && message.contains("2 are allowed"), "{message}");
}

#[tokio::test]
async fn a_device_comes_only_when_the_operator_allows_and_goes_unless_somebody_objects() {
    let host = host();
    let none: Arc<[Bound]> = Arc::new([]);
    assert_eq!(code(&host.attach(none.clone(), attach(1)).await.dry_run()), "policy.no-opinion");
    assert_eq!(code(&host.detach(none, detach()).await.dry_run()), "allowed");
    let abstains = hostile(&host, "attach-abstain").await.unwrap();
    assert_eq!(code(&host.attach(chain([&abstains]), attach(1)).await.dry_run()), "policy.no-opinion");
    let plugin = admission(&host, []).await;
    let tenant: TenantId = "blue".parse().unwrap();
    let own = Bound { scope: PolicyScope::Tenant(tenant), ..bound("own", &plugin) };
    assert_eq!(
        code(&host.attach(Arc::new([own]), attach(1)).await.dry_run()),
        "policy.no-opinion",
        "a tenant cannot admit"
    );
    assert_eq!(code(&host.attach(chain([&plugin, &abstains]), attach(1)).await.dry_run()), "allowed");
    // Without the hook it has no say.
    assert_eq!(code(&host.detach(chain([&plugin]), detach()).await.dry_run()), "allowed");
    let keeps = hostile(&host, "detach-keep").await.unwrap();
    assert_eq!(code(&host.detach(chain([&keeps]), detach()).await.dry_run()), "device.kept");
}

#[tokio::test]
async fn whatever_a_plugin_does_wrong_denies() {
    let host = host();
    let plugin = admission(&host, []).await;
    for (name, expected) in
        [("attach-trap", "policy.trap"), ("attach-forge", "policy.bad-answer"), ("attach-loop", "policy.budget")]
    {
        let bad = hostile(&host, name).await.unwrap();
        let decision = host.attach(chain([&plugin, &bad]), attach(1)).await.dry_run();
        assert_eq!(code(&decision), expected, "{name}: {decision:?}");
    }
    let bad = hostile(&host, "detach-trap").await.unwrap();
    assert_eq!(code(&host.detach(chain([&bad]), detach()).await.dry_run()), "policy.trap");
}

#[tokio::test]
async fn what_was_decided_of_a_device_is_recorded_and_can_be_asked_again() {
    let host = host();
    let plugin = admission(&host, [("max-disks", "2")]).await;
    let keeps = hostile(&host, "detach-keep").await.unwrap();
    let coming = host.attach(chain([&plugin]), attach(2)).await.entry().clone();
    let going = host.detach(chain([&keeps]), detach()).await.entry().clone();
    for (entry, plugin, hook) in [(coming, &plugin, "attach"), (going, &keeps, "detach")] {
        assert_eq!((entry.hook.as_str(), entry.subject.as_str()), (hook, "vms/web/devices/data"));
        assert!(!entry.is_allowed(), "{entry:?}");
        let mut replayer = Replayer::new(host.clone(), plugin.clone(), "p0".into(), PolicyScope::Operator, None);
        let replayed = replayer.again(&entry).unwrap();
        assert_eq!(replayed.change, Change::Same, "{replayed:?}");
    }
}
