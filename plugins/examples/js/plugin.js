// Admits VMs by their name and size. Settings, all optional:
//
//   tenant          whom this is about; what others ask for is left to other plugins
//   name-prefix     how the names of VMs begin
//   max-vcpus       vCPUs of one VM
//   max-memory-mib  memory of one VM
//   cap             true: a VM that is too large is made smaller; else it is denied

import { emit } from "ostler:policy/log@0.1.0";
import { getBool, getString, getU64, keys } from "ostler:policy/settings@0.1.0";

const KNOWN = ["cap", "max-memory-mib", "max-vcpus", "name-prefix", "tenant"];

export const lifecycle = {
  describe: () => ({ name: "size-limit", version: "0.1.0", summary: "admits VMs by their name and size" }),

  // All that is wrong at once.
  validateSettings() {
    const wrong = keys()
      .filter((key) => !KNOWN.includes(key))
      .map((key) => ({ key, message: `unknown setting, known are ${KNOWN.join(", ")}` }));
    for (const [key, get] of [["max-vcpus", getU64], ["max-memory-mib", getU64], ["cap", getBool]]) {
      try {
        if (get(key) === 0n) wrong.push({ key, message: "0 is too small, at least 1 is allowed" });
      } catch (malformed) {
        wrong.push(malformed.payload);
      }
    }
    if (wrong.length > 0) throw wrong;
  },
};

const deny = (code, message) => ({ tag: "deny", val: { code, message } });

export const admitHook = {
  // Numbers of 64 bits are BigInts.
  admitVm({ tenant, vm }) {
    const [only, prefix, cap] = [getString("tenant"), getString("name-prefix"), getBool("cap") ?? false];
    if (only !== undefined && only !== tenant) return { tag: "abstain" };
    if (prefix !== undefined && !vm.name.startsWith(prefix)) {
      return deny("name.prefix", `${vm.name} does not begin with ${prefix}`);
    }
    const patches = [];
    const vcpus = getU64("max-vcpus");
    if (vcpus !== undefined && BigInt(vm.vcpus) > vcpus) {
      if (!cap) return deny("limit.vcpus", `${vm.vcpus} vCPUs are asked for, ${vcpus} are allowed`);
      patches.push({ tag: "cap-vcpus", val: Number(vcpus) });
    }
    const memory = getU64("max-memory-mib");
    if (memory !== undefined && vm.memoryMib > memory) {
      if (!cap) return deny("limit.memory", `${vm.memoryMib} MiB of memory are asked for, ${memory} are allowed`);
      patches.push({ tag: "cap-memory-mib", val: memory });
    }
    if (patches.length > 0) emit("info", `${vm.name} is made smaller`);
    return { tag: "allow", val: patches };
  },
};
