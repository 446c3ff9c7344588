//! The vocabulary that every role shares: ids, sizes, specs, lifecycle, decisions. Pure: no I/O, no clocks, no threads.
//!
//! A type enters here only when two roles need it. Everything is validated on construction, so that code behind this
//! door never sees a malformed name, a zero vCPU count or a relative device path.

mod alias;
mod attach;
mod balloon;
mod canary;
mod canonical;
#[cfg(feature = "components")]
mod component;
mod console;
mod decision;
mod device;
mod digest;
mod exit;
mod grant;
mod id;
mod image_path;
mod inventory;
mod jail;
mod journal;
mod kv;
mod labels;
mod launch;
mod lifecycle;
mod limits;
mod nvme;
mod observe;
mod pci;
mod place;
mod resources;
#[cfg(feature = "signatures")]
mod signature;
mod spec;
mod subject;
mod text;
mod vf;
mod vsock;
mod weight;

pub use alias::{AliasError, PluginAlias, VersionName};
pub use attach::{AttachRequest, DetachRequest, VmFacts};
pub use balloon::BalloonSpec;
pub use canary::{Came, CanaryCause, CanaryShare, Counts, Edition, Trial, canary_lot};
pub use canonical::{Json, NotCanonical, canonical};
#[cfg(feature = "components")]
pub use component::{ComponentNames, MAX_COMPONENT_NAMES, NotAComponent};
pub use console::{ConsoleSpec, WindowSize};
pub use decision::{
    AdmitRequest, Decision, LimitUse, Opinion, Outcome, Patch, PluginMode, PolicyFault, PolicyScope, Verdict, denier,
};
pub use device::{DeviceSpec, DiskSpec, MAX_DISK_QUEUES, MAX_NIC_QUEUES, NicBackend, NicSpec, ServedBy, TapSpec};
pub use digest::{DigestError, PluginDigest, RecordHash, SignerId};
pub use exit::{JAIL_FAILED, VmExit};
pub use grant::{Grant, NoGrant};
pub use id::{DeviceId, IdError, InstanceId, PluginId, RequestId, SignerName, TenantId, VmId, VmName};
pub use image_path::ImagePath;
pub use inventory::{
    InventoryAmount, InventoryUsage, InventoryView, InventoryVm, MAX_INVENTORY_CALLS, MAX_INVENTORY_PAGE,
    MAX_INVENTORY_VMS, VmStage,
};
pub use jail::{JailArgsError, JailFacts, locked_bytes};
pub use journal::{
    Answer, Cell, CellMark, ChainEnd, ChainFault, ChainLink, ChainVerifier, CheckpointEntry, DecisionEntry, DecisionId,
    Denial, Enforcement, EnforcementEntry, Explanation, FaultKind, JournalEntry, JournalRecord, Row, Said,
    ShadowAnswer, ShadowEntry,
};
pub use kv::{
    KvChange, KvPlace, KvRefusal, KvRest, KvStore, KvUse, KvValue, KvView, KvWrites, MAX_KV_BYTES, MAX_KV_CALLS,
    MAX_KV_KEY_BYTES, MAX_KV_KEYS, MAX_KV_VALUE_BYTES, is_kv_key,
};
pub use labels::Labels;
pub use launch::{
    DeviceChange, DeviceKind, DeviceLaunch, FIRST_WORDS, Launch, MacAddr, MacError, PciSlot, SPARE_DEVICES,
};
pub use lifecycle::{Effect, Event, FailureCause, Refused, VmState, step};
pub use limits::{Rate, RateLimits};
pub use nvme::{
    NvmeCandidate, NvmeControllerView, NvmeDecision, NvmeOutcome, NvmeRanking, NvmeSpec, NvmeVerdict, NvmeWish,
    SelectNvmeRequest,
};
pub use observe::{
    Happening, MAX_BATCH_BYTES, MAX_BATCH_EVENTS, MAX_EVENTS, OBSERVE_HOOK, ObserveOutcome, ObserveRequest,
    ObserveVerdict, ObservedEvent, VmEnd,
};
pub use pci::{Bdf, BdfError};
pub use place::{PlaceCandidate, PlaceDecision, PlaceOutcome, PlaceRanking, PlaceRequest, PlaceVerdict, Placement};
pub use resources::{CpuList, CpuListError, CpuSpec, MemorySpec, PageSize, Topology};
#[cfg(feature = "signatures")]
pub use signature::{MAX_SIGNATURES, PluginSignature, SignatureError, SignerKey, signed_message};
pub use spec::{BootSpec, SpecError, VmSpec};
pub use subject::{SubjectVm, VmImage};
pub use text::is_control;
pub use vf::{
    LastTenant, Mark, PfView, SelectVfRequest, VfCandidate, VfDecision, VfOutcome, VfRanking, VfSetting, VfSettings,
    VfVerdict, VfWish, VlanId,
};
pub use vsock::{MAX_VSOCK_CONNECTIONS, VsockSpec};
pub use weight::PluginWeight;
