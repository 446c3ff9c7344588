"""Admits VMs by their name and size. Settings, all optional:

tenant          whom this is about; what others ask for is left to other plugins
name-prefix     how the names of VMs begin
max-vcpus       vCPUs of one VM
max-memory-mib  memory of one VM
cap             true: a VM that is too large is made smaller; else it is denied
"""

from componentize_py_types import Err
from wit_world.exports import lifecycle
from wit_world.exports.admit_hook import (
    Verdict_Abstain,
    Verdict_Allow,
    Verdict_Deny,
    VmPatch_CapMemoryMib,
    VmPatch_CapVcpus,
)
from wit_world.imports import log, settings
from wit_world.imports.types import Denial

KNOWN = ["cap", "max-memory-mib", "max-vcpus", "name-prefix", "tenant"]


class Lifecycle:
    def describe(self):
        return lifecycle.Manifest("size-limit", "0.1.0", "admits VMs by their name and size")

    def validate_settings(self):
        """All that is wrong at once."""
        unknown = f"unknown setting, known are {', '.join(KNOWN)}"
        wrong = [lifecycle.SettingError(key, unknown) for key in settings.keys() if key not in KNOWN]
        getters = [("max-vcpus", settings.get_u64), ("max-memory-mib", settings.get_u64), ("cap", settings.get_bool)]
        for key, get in getters:
            try:
                if get(key) == 0 and key != "cap":
                    wrong.append(lifecycle.SettingError(key, "0 is too small, at least 1 is allowed"))
            except Err as malformed:
                wrong.append(lifecycle.SettingError(malformed.value.key, malformed.value.message))
        if wrong:
            raise Err(wrong)


def deny(code, message):
    return Verdict_Deny(Denial(code, message))


class AdmitHook:
    def admit_vm(self, request):
        vm, patches = request.vm, []
        only, prefix = settings.get_string("tenant"), settings.get_string("name-prefix")
        vcpus, memory = settings.get_u64("max-vcpus"), settings.get_u64("max-memory-mib")
        cap = settings.get_bool("cap") or False
        if only is not None and only != request.tenant:
            return Verdict_Abstain()
        if prefix is not None and not vm.name.startswith(prefix):
            return deny("name.prefix", f"{vm.name} does not begin with {prefix}")
        if vcpus is not None and vm.vcpus > vcpus:
            if not cap:
                return deny("limit.vcpus", f"{vm.vcpus} vCPUs are asked for, {vcpus} are allowed")
            patches.append(VmPatch_CapVcpus(vcpus))
        if memory is not None and vm.memory_mib > memory:
            if not cap:
                return deny("limit.memory", f"{vm.memory_mib} MiB of memory are asked for, {memory} are allowed")
            patches.append(VmPatch_CapMemoryMib(memory))
        if patches:
            log.emit(log.Level.INFO, f"{vm.name} is made smaller")
        return Verdict_Allow(patches)
