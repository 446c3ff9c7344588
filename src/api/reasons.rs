//! Every reason that an error of the API can carry (`google.rpc.ErrorInfo.reason`, domain `ostler`). Key type: [`Reason`].
//!
//! Stable: programs branch on them. `docs/errors.md` is made from this table.

/// Why a call failed, for programs; and what people do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    /// As in ErrorInfo.
    pub name: &'static str,
    /// The gRPC codes that it comes with, as their specification spells them.
    pub codes: &'static str,
    /// When.
    pub meaning: &'static str,
    /// What to do about it (`google.rpc.Help`).
    pub advice: &'static str,
}

const fn reason(name: &'static str, codes: &'static str, meaning: &'static str, advice: &'static str) -> Reason {
    Reason { name, codes, meaning, advice }
}

/// All of them, by name.
pub const REASONS: &[Reason] = &[
    reason(
        "ADDRESSES_EXHAUSTED",
        "RESOURCE_EXHAUSTED",
        "no /30 is left for a tap",
        "destroy VMs, or give the node a larger --network",
    ),
    reason(
        "ALIAS_FOLLOWED",
        "FAILED_PRECONDITION",
        "the plugin follows the alias: it is that of the bound version; metadata: alias",
        "have the plugin follow another alias, or none, first",
    ),
    reason(
        "ALIAS_NOT_FOUND",
        "NOT_FOUND",
        "the plugin has no such alias; metadata: alias",
        "list the plugins: they show their aliases",
    ),
    reason(
        "ANSWER_UNREADABLE",
        "INTERNAL",
        "the remembered answer of a repeated request is of another version",
        "get the resource: the request was done",
    ),
    reason(
        "ATTACH_FAILED",
        "FAILED_PRECONDITION",
        "the VM's process could not attach the device; metadata: device, cause",
        "do away with the cause, then attach it again",
    ),
    reason("BAD_FIELD", "INVALID_ARGUMENT", "a field is malformed; metadata: field", "correct the field"),
    reason(
        "BAD_IDENTITY",
        "UNAUTHENTICATED",
        "the certificate names nobody",
        "use a certificate with one SPIFFE id that the node knows",
    ),
    reason(
        "BAD_MESSAGE",
        "INVALID_ARGUMENT",
        "the request is not the message that the call takes; metadata: cause",
        "make the client anew from the node's protocol files",
    ),
    reason(
        "CANARY_ACTIVE",
        "FAILED_PRECONDITION",
        "a canary of the plugin is tried, and this would take the version away that it is compared with",
        "promote or drop the canary first",
    ),
    reason(
        "CANARY_UNFIT",
        "FAILED_PRECONDITION",
        "no plugin of that name decides, or it has other hooks: there is nothing to compare a canary with",
        "load it without a share, or as a shadow under another name",
    ),
    reason(
        "CHANGE_FAILED",
        "FAILED_PRECONDITION",
        "the device was not changed; metadata: cause",
        "do away with the cause, then change it again",
    ),
    reason(
        "DECISION_NOT_FOUND",
        "NOT_FOUND",
        "no such decision on record, or another tenant's",
        "list the decisions that you may see",
    ),
    reason(
        "DEVICES_EXHAUSTED",
        "RESOURCE_EXHAUSTED",
        "the VM's process has no thread or ring left for another device; metadata: device, cause",
        "detach a device first, or attach it while the VM is stopped",
    ),
    reason(
        "DEVICE_BUSY",
        "FAILED_PRECONDITION",
        "the device is just being attached or detached; metadata: device",
        "try again when that is over: the VM's devices show it",
    ),
    reason("DEVICE_EXISTS", "ALREADY_EXISTS", "the VM has a device of that id; metadata: device", "choose another id"),
    reason(
        "DEVICE_FIXED",
        "FAILED_PRECONDITION",
        "the device belongs to every VM; metadata: device",
        "detach disks, NICs and NVMe devices only",
    ),
    reason(
        "DEVICE_IN_USE",
        "FAILED_PRECONDITION",
        "a VM, or the host itself, has the device; metadata: address, and vm or by",
        "stop the VM first; destroy it if the device keeps its data",
    ),
    reason(
        "DEVICE_NOT_FOUND",
        "NOT_FOUND",
        "the node has no such device; metadata: address",
        "list the node's devices",
    ),
    reason(
        "DEVICE_NOT_HELD",
        "FAILED_PRECONDITION",
        "there is nothing to release; metadata: address",
        "nothing: the device is free",
    ),
    reason(
        "DEVICE_NOT_LENT",
        "FAILED_PRECONDITION",
        "the host, or policy, has no function or namespace for the device; metadata: device, cause",
        "see the cause; free a device of the host, or ask for another",
    ),
    reason(
        "DEVICE_UNCLEAN",
        "INTERNAL",
        "the device stays in quarantine; metadata: address, cause",
        "do away with the cause, then release it again",
    ),
    reason(
        "DISK_IN_USE",
        "FAILED_PRECONDITION",
        "another running VM has the disk's image; metadata: device, volume",
        "stop that VM, detach the disk from it, or open the image read-only in both",
    ),
    reason(
        "ETAG_MISMATCH",
        "ABORTED",
        "the resource has changed since it was looked at",
        "get it again, and decide anew",
    ),
    reason(
        "GUEST_UNPLUG_REFUSED",
        "DEADLINE_EXCEEDED",
        "the guest did not let the device go in time; metadata: device, waited_ms",
        "unmount or unbind it in the guest and ask again, or detach it with force",
    ),
    reason("HOST_FAILED", "INTERNAL", "the node cannot read or write what it needs", "look into the daemon's log"),
    reason(
        "INTERRUPTED",
        "ABORTED",
        "another call changed the VM's course; metadata: state",
        "get the VM, and decide anew",
    ),
    reason(
        "LAST_OF_HOOK",
        "FAILED_PRECONDITION",
        "it is the operator's last plugin with a hook; metadata: hook",
        "load another one first, or set it aside by force",
    ),
    reason(
        "MESSAGE_TOO_LONG",
        "INVALID_ARGUMENT",
        "a message of the request is longer than any may be; metadata: limit_bytes",
        "ask for less at once",
    ),
    reason(
        "NOT_ALLOWED",
        "PERMISSION_DENIED",
        "the identity may not do this, whatever exists; metadata: needs",
        "use another identity",
    ),
    reason(
        "NOT_PAUSED",
        "UNAVAILABLE",
        "a device could not be brought to rest, and the VM goes on; metadata: cause",
        "try again later",
    ),
    reason(
        "NO_CANARY",
        "FAILED_PRECONDITION",
        "the plugin has no canary, or it was rolled back",
        "list the plugins: they say what became of it",
    ),
    reason(
        "NO_PROCESS",
        "FAILED_PRECONDITION",
        "the console ends: the VM does not run; metadata: state",
        "start the VM",
    ),
    reason("NO_SLOT", "RESOURCE_EXHAUSTED", "the VM's bus is full", "detach a device first"),
    reason(
        "NO_SUCH_CALL",
        "UNIMPLEMENTED",
        "the node's daemon does not know the call",
        "use a daemon that is as new as the client",
    ),
    reason(
        "NO_SUCH_DEVICE",
        "NOT_FOUND",
        "the VM has no such device; metadata: device",
        "get the VM: it lists its devices",
    ),
    reason(
        "NVME_FAILED",
        "INTERNAL",
        "an NVMe controller does not do what it should; metadata: address, cause",
        "do away with the cause, then try again",
    ),
    reason(
        "NVME_NOT_PRIMARY",
        "FAILED_PRECONDITION",
        "the NVMe controller cannot have secondary controllers; metadata: address",
        "choose another controller",
    ),
    reason(
        "OPERATION_CANCELLED",
        "CANCELLED",
        "the operation was called off, by CancelOperation, before it was too late",
        "nothing, or ask for it anew; the message says what stays",
    ),
    reason(
        "OPERATION_INTERRUPTED",
        "UNKNOWN",
        "the daemon ended while the operation was under way: it may have been done",
        "repeat the request under its request_id, which does what is left of it",
    ),
    reason(
        "OPERATION_NOT_CANCELLABLE",
        "FAILED_PRECONDITION",
        "the operation has ended, or is past the point where it can be called off",
        "nothing if it has ended: GetOperation tells how; else wait for its end with WaitOperation",
    ),
    reason(
        "OPERATION_NOT_FOUND",
        "NOT_FOUND",
        "no such operation, none that is remembered any more, or another tenant's",
        "list the operations that you may see",
    ),
    reason("PANIC", "INTERNAL", "the daemon failed in this call alone", "report the daemon's log"),
    reason(
        "PLUGIN_ENFORCED",
        "FAILED_PRECONDITION",
        "a plugin of that name is enforced, and a shadow in its place would take it out of its chain",
        "load the shadow under another name, or make the plugin itself a shadow",
    ),
    reason(
        "PLUGIN_NOT_FOUND",
        "NOT_FOUND",
        "no plugin has that name in that chain",
        "list the plugins that you may see",
    ),
    reason(
        "PLUGIN_REFUSED",
        "INVALID_ARGUMENT",
        "the component or its settings are not accepted; metadata: cause, code",
        "correct the plugin",
    ),
    reason(
        "POLICY_BUSY",
        "UNAVAILABLE",
        "decisions of the tenant that a plugin remembers are under way and take too long",
        "try again",
    ),
    reason(
        "POLICY_DENIED",
        "PERMISSION_DENIED",
        "policy denies it; metadata: code, message, plugin, digest, took_us",
        "ask for less, or ask whoever loaded the plugin",
    ),
    reason(
        "POLICY_UNAVAILABLE",
        "UNAVAILABLE",
        "a plugin could not be asked, so it was not allowed, or could not be loaded just now; nothing was done; metadata: code, message, plugin, digest, took_us",
        "try again; if it stays so, an operator loads the plugin again",
    ),
    reason(
        "QUOTA_EXCEEDED",
        "RESOURCE_EXHAUSTED",
        "the tenant may not have so much; QuotaFailure; metadata: tenant, resource, limit, used, asked",
        "destroy or unload what is not needed, or ask the operator for more",
    ),
    reason(
        "RATE_LIMITED",
        "RESOURCE_EXHAUSTED",
        "the identity calls too fast; RetryInfo; metadata: requests_per_second, burst",
        "wait as long as RetryInfo says",
    ),
    reason(
        "REPLAY_UNDER_WAY",
        "RESOURCE_EXHAUSTED",
        "the node replays decisions for somebody already",
        "try again when that has ended",
    ),
    reason(
        "REQUEST_ID_REUSED",
        "INVALID_ARGUMENT",
        "the request_id belongs to another request of the identity",
        "make up a new id for each change",
    ),
    reason(
        "REQUEST_STALLED",
        "DEADLINE_EXCEEDED",
        "the client did not go on with its request, or took too long for it; metadata: limit_s",
        "send requests without pauses; nothing was done",
    ),
    reason(
        "ROLE_DENIED",
        "PERMISSION_DENIED",
        "a viewer asks for a change, or for a plugin to be run",
        "use an admin's identity",
    ),
    reason(
        "SHUTTING_DOWN",
        "UNAVAILABLE",
        "the daemon is ending",
        "repeat it, with the same request_id, when the daemon is back",
    ),
    reason(
        "SIGNATURE_MALFORMED",
        "INVALID_ARGUMENT",
        "a plugin's signature, or the key in it, is none, or there are too many; metadata: code",
        "send what `ostler plugin sign` writes",
    ),
    reason(
        "SIGNATURE_MISMATCH",
        "INVALID_ARGUMENT",
        "a signature is not of the component that came with it; metadata: code",
        "sign the component anew; if nobody changed it, find out who did",
    ),
    reason(
        "SIGNATURE_MISSING",
        "FAILED_PRECONDITION",
        "the chain takes only what certain signers have signed, and the plugin, or the earlier version, bears no signature; metadata: code",
        "have it signed (`ostler plugin sign`) and load it with the signature",
    ),
    reason(
        "SIGNER_UNKNOWN",
        "FAILED_PRECONDITION",
        "others have signed the plugin, or the earlier version, than the chain requires; metadata: code",
        "have one of those sign it whom the message names, or ask the operator to add the signer",
    ),
    reason(
        "START_FAILED",
        "FAILED_PRECONDITION",
        "the VM did not come up; metadata: cause",
        "do away with the cause, then start it again",
    ),
    reason(
        "STORE_FAILED",
        "INTERNAL",
        "the node cannot record this: nothing was done",
        "look into the daemon's log; is the disk full?",
    ),
    reason("TENANT_NOT_FOUND", "NOT_FOUND", "no such tenant, or another one", "list the tenants that you may see"),
    reason(
        "TOO_LONG",
        "DEADLINE_EXCEEDED",
        "the daemon did not finish in its own time limit; metadata: limit_s",
        "look at the resource: what was begun goes on",
    ),
    reason(
        "TOO_MANY_ALIASES",
        "RESOURCE_EXHAUSTED",
        "the plugin has as many aliases as it may; metadata: limit",
        "remove one first",
    ),
    reason(
        "TOO_MANY_CONNECTIONS",
        "RESOURCE_EXHAUSTED",
        "the identity has as many connections as it may; RetryInfo; metadata: limit",
        "use one connection for many calls",
    ),
    reason(
        "TOO_MANY_PLUGINS",
        "RESOURCE_EXHAUSTED",
        "the chain has no room for another plugin; metadata: limit",
        "unload one first",
    ),
    reason("USERS_EXHAUSTED", "RESOURCE_EXHAUSTED", "no user id is left for a VM's process", "destroy VMs"),
    reason(
        "VERSION_LOST",
        "FAILED_PRECONDITION",
        "the version of the plugin does not load any more",
        "load it anew from its file",
    ),
    reason(
        "VERSION_NOT_FOUND",
        "NOT_FOUND",
        "the plugin has no such version, or it is not kept any more",
        "list the plugins: they show which are kept",
    ),
    reason("VMM_DEAF", "UNAVAILABLE", "the VM's process does not react", "stop or destroy the VM"),
    reason(
        "VMM_FAILED",
        "INTERNAL",
        "the VM's process failed for the host's fault; metadata: cause",
        "look into the VM's log on the node",
    ),
    reason(
        "VM_EXISTS",
        "ALREADY_EXISTS",
        "the tenant has a VM of that name; metadata: name",
        "choose another name, or destroy that VM",
    ),
    reason("VM_NOT_FOUND", "NOT_FOUND", "no such VM, or another tenant's", "list the VMs that you may see"),
    reason(
        "WATCH_COMPACTED",
        "OUT_OF_RANGE",
        "the changes since that resume_token are not kept any more; metadata: revision, oldest",
        "watch anew, without a token",
    ),
    reason("WATCH_LAGGED", "ABORTED", "the reader was too slow and was cut off", "resume with the last resume_token"),
    reason(
        "WRONG_STATE",
        "FAILED_PRECONDITION",
        "the VM's state forbids it; metadata: state, verb",
        "bring the VM into another state first",
    ),
];

/// What to do about an error of this reason.
pub fn advice(name: &str) -> Option<&'static str> {
    REASONS.iter().find(|reason| reason.name == name).map(|reason| reason.advice)
}
