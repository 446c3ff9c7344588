// Admits VMs by their name and size. Settings, all optional:
//
//   tenant          whom this is about; what others ask for is left to other plugins
//   name-prefix     how the names of VMs begin
//   max-vcpus       vCPUs of one VM
//   max-memory-mib  memory of one VM
//   cap             true: a VM that is too large is made smaller; else it is denied
//
// admit.h is made from wit/ by the build. Memory is never freed: an instance lives for one call.

#include "admit.h"
#include "ostler.h"
#include <string.h>

typedef admit_string_t string;
typedef exports_ostler_policy_admit_hook_verdict_t verdict;
typedef exports_ostler_policy_admit_hook_vm_patch_t patch;
typedef exports_ostler_policy_lifecycle_setting_error_t setting_error;

static const char *const KNOWN[] = {"cap", "max-memory-mib", "max-vcpus", "name-prefix", "tenant"};
enum { KNOWN_LEN = sizeof KNOWN / sizeof *KNOWN };

static string literal(const char *text) {
  return (string){(uint8_t *)text, strlen(text)};
}

static bool equal(string a, string b) {
  return a.len == b.len && memcmp(a.ptr, b.ptr, a.len) == 0;
}

// Names of keys, to ask for them.
static bool text(const char *key, string *value) {
  string name = literal(key);
  return ostler_policy_settings_get_string(&name, value);
}

static bool number(const char *key, admit_option_u64_t *value, ostler_policy_settings_malformed_t *malformed) {
  string name = literal(key);
  return ostler_policy_settings_get_u64(&name, value, malformed);
}

static bool flag(const char *key, admit_option_bool_t *value, ostler_policy_settings_malformed_t *malformed) {
  string name = literal(key);
  return ostler_policy_settings_get_bool(&name, value, malformed);
}

void exports_ostler_policy_lifecycle_describe(exports_ostler_policy_lifecycle_manifest_t *ret) {
  ret->name = literal("size-limit");
  ret->version = literal("0.1.0");
  ret->summary = literal("admits VMs by their name and size");
}

static bool is_known(string key) {
  for (size_t at = 0; at < KNOWN_LEN; at++) {
    if (equal(key, literal(KNOWN[at]))) return true;
  }
  return false;
}

static string unknown(void) {
  ostler_text message = ostler_begin();
  ostler_add(&message, "unknown setting, known are ");
  for (size_t at = 0; at < KNOWN_LEN; at++) {
    if (at > 0) ostler_add(&message, ", ");
    ostler_add(&message, KNOWN[at]);
  }
  return (string){message.ptr, message.len};
}

// All that is wrong at once; true if nothing is.
bool exports_ostler_policy_lifecycle_validate_settings(exports_ostler_policy_lifecycle_list_setting_error_t *err) {
  admit_list_string_t keys;
  ostler_policy_settings_keys(&keys);
  err->ptr = ostler_take((keys.len + 3) * sizeof(setting_error));
  err->len = 0;
  for (size_t at = 0; at < keys.len; at++) {
    if (!is_known(keys.ptr[at])) err->ptr[err->len++] = (setting_error){keys.ptr[at], unknown()};
  }
  ostler_policy_settings_malformed_t malformed;
  const char *const sizes[] = {"max-vcpus", "max-memory-mib"};
  for (size_t at = 0; at < 2; at++) {
    admit_option_u64_t size;
    if (!number(sizes[at], &size, &malformed)) {
      err->ptr[err->len++] = (setting_error){malformed.key, malformed.message};
    } else if (size.is_some && size.val == 0) {
      err->ptr[err->len++] = (setting_error){literal(sizes[at]), literal("0 is too small, at least 1 is allowed")};
    }
  }
  admit_option_bool_t cap;
  if (!flag("cap", &cap, &malformed)) err->ptr[err->len++] = (setting_error){malformed.key, malformed.message};
  return err->len == 0;
}

// "3 vCPUs are asked for, 2 are allowed"
static void deny(verdict *ret, const char *code, uint64_t asked, const char *of_what, uint64_t most) {
  ostler_text message = ostler_begin();
  ostler_add_number(&message, asked);
  ostler_add(&message, of_what);
  ostler_add(&message, " are asked for, ");
  ostler_add_number(&message, most);
  ostler_add(&message, " are allowed");
  ret->tag = EXPORTS_OSTLER_POLICY_ADMIT_HOOK_VERDICT_DENY;
  ret->val.deny.code = literal(code);
  ret->val.deny.message = (string){message.ptr, message.len};
}

static void deny_name(verdict *ret, string name, string prefix) {
  ostler_text message = ostler_begin();
  ostler_add_bytes(&message, name.ptr, name.len);
  ostler_add(&message, " does not begin with ");
  ostler_add_bytes(&message, prefix.ptr, prefix.len);
  ret->tag = EXPORTS_OSTLER_POLICY_ADMIT_HOOK_VERDICT_DENY;
  ret->val.deny.code = literal("name.prefix");
  ret->val.deny.message = (string){message.ptr, message.len};
}

static void tell_smaller(string name) {
  ostler_text line = ostler_begin();
  ostler_add_bytes(&line, name.ptr, name.len);
  ostler_add(&line, " is made smaller");
  string message = {line.ptr, line.len};
  ostler_policy_log_emit(OSTLER_POLICY_LOG_LEVEL_INFO, &message);
}

// Settings were valid when the plugin was loaded. True: `ret` is the answer; false: `err` says why there is none.
bool exports_ostler_policy_admit_hook_admit_vm(exports_ostler_policy_admit_hook_admit_request_t *request, verdict *ret,
                                               exports_ostler_policy_admit_hook_error_t *err) {
  ostler_policy_types_vm_t *vm = &request->vm;
  ostler_policy_settings_malformed_t malformed;
  string tenant, prefix;
  admit_option_u64_t vcpus, memory;
  admit_option_bool_t cap;
  if (!number("max-vcpus", &vcpus, &malformed) || !number("max-memory-mib", &memory, &malformed) ||
      !flag("cap", &cap, &malformed)) {
    err->tag = OSTLER_POLICY_TYPES_ERROR_BAD_SETTINGS;
    err->val.bad_settings = malformed.message;
    return false;
  }
  if (text("tenant", &tenant) && !equal(tenant, request->tenant)) {
    ret->tag = EXPORTS_OSTLER_POLICY_ADMIT_HOOK_VERDICT_ABSTAIN;
    return true;
  }
  if (text("name-prefix", &prefix) &&
      (vm->name.len < prefix.len || memcmp(vm->name.ptr, prefix.ptr, prefix.len) != 0)) {
    deny_name(ret, vm->name, prefix);
    return true;
  }
  bool caps = cap.is_some && cap.val;
  patch *patches = ostler_take(2 * sizeof(patch));
  size_t len = 0;
  if (vcpus.is_some && vm->vcpus > vcpus.val) {
    if (!caps) return deny(ret, "limit.vcpus", vm->vcpus, " vCPUs", vcpus.val), true;
    patches[len].tag = EXPORTS_OSTLER_POLICY_ADMIT_HOOK_VM_PATCH_CAP_VCPUS;
    patches[len++].val.cap_vcpus = (uint32_t)vcpus.val;
  }
  if (memory.is_some && vm->memory_mib > memory.val) {
    if (!caps) return deny(ret, "limit.memory", vm->memory_mib, " MiB of memory", memory.val), true;
    patches[len].tag = EXPORTS_OSTLER_POLICY_ADMIT_HOOK_VM_PATCH_CAP_MEMORY_MIB;
    patches[len++].val.cap_memory_mib = memory.val;
  }
  if (len > 0) tell_smaller(vm->name);
  ret->tag = EXPORTS_OSTLER_POLICY_ADMIT_HOOK_VERDICT_ALLOW;
  ret->val.allow.ptr = patches;
  ret->val.allow.len = len;
  return true;
}
